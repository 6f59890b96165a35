#!/usr/bin/env bash
# Makes an environment, .envs/STACK, from scripts/STACK.lock, and adds what is in an extra's lock,
# scripts/STACK-EXTRA.lock. There already: does nothing.
# Usage: scripts/setup.sh tf1|tf2 [onnx|pretrain|torch|fuzz]  the stacks, and what `scripts/export --to onnx`,
#                                                        scripts/pretrain, a backbone that is
#                                                        pytorch_model.bin alone and scripts/fuzz need besides
#        scripts/setup.sh torch                          what the tests compare exported models with
#        scripts/setup.sh lab [cjk]                      scripts/report and scripts/tune, and scripts/reproduce on
#                                                        clusters; a font for Chinese in their pictures
set -euo pipefail

fail() { echo "scripts/setup.sh: $2" >&2; exit "$1"; }

stack=${1-} extra=${2-}
case $stack in
    tf1) other=tf2 versions=(3.7) ;;
    tf2 | torch | lab) other=tf1 versions=(3.11 3.12 3.13) ;;
    *) fail 2 "unknown stack '$stack': expected tf1 or tf2" ;;
esac
root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"  # and relative paths from here on: uv takes no spaces in the name of a lock file
env=.envs/$stack
lock=scripts/$stack.lock
extra_lock=${extra:+scripts/$stack-$extra.lock}
[[ -z $extra || -f $extra_lock ]] || fail 2 "unknown extra '$extra' of $stack: no $extra_lock"

# The copy of a lock is the last thing written: it says that all of it is there.
has() { [[ -x $env/bin/python ]] && cmp -s "$1" "$env/made-from-${1##*/}"; }
is_ready() { has "$lock" && { [[ -z $extra ]] || has "$extra_lock"; }; }

# Prints the full path of an interpreter of version $1. Each is run, not only looked at:
# a pyenv shim of an inactive version is on PATH and fails.
find_python() {
    local places place
    IFS=: read -ra places <<< "$PATH"
    shopt -s nullglob
    places+=("${PYENV_ROOT:-/none}"/versions/"$1"*/bin ~/.pyenv/versions/"$1"*/bin /usr/local/bin
             /opt/*/bin {~,~/.conda,/opt}{,/*conda*,/*forge*}/envs/*/bin {~,/opt}/*{conda,forge}*/bin
             ~/.local/share/uv/python/*/bin "$root"/.envs/python/*/bin)
    shopt -u nullglob
    for place in "${places[@]}"; do
        if [[ -x $place/python$1 ]]; then
            "$place/python$1" -I -c "import sys
sys.version_info[:2] == (${1/./, }) or sys.exit(1)
print(sys.executable)" 2> /dev/null && return
        fi
    done
    return 1
}

# Prints the path of uv: the user's, or the project's own from pip.
find_uv() {
    if uv --version > /dev/null 2>&1; then
        command -v uv
    else
        install_uv
    fi
}

install_uv() {
    # Pinned: later ones have no Python 3.7 to download (see install_python).
    local version=0.6.17
    if [[ $(.envs/uv/bin/uv --version 2> /dev/null) != "uv $version"* ]]; then
        rm -rf .envs/uv
        python3 -m pip --version > /dev/null 2>&1 \
            || fail 1 'needs pip for python3, or uv on PATH (Debian, Ubuntu: apt install python3-pip)'
        python3 -m pip install -qq --disable-pip-version-check --target .envs/uv "uv==$version" >&2 \
            || fail 1 "pip could not install uv==$version"
    fi
    echo "$root/.envs/uv/bin/uv"
}

# Downloads Python $1 into .envs/python, if the network lets us; a download that stalls is given up.
install_python() {
    local uv
    uv=$(install_uv 2> /dev/null) || return 1
    UV_PYTHON_INSTALL_DIR=$root/.envs/python UV_HTTP_TIMEOUT=10 \
        timeout 300 "$uv" python install --quiet "$1" > /dev/null 2>&1
}

is_ready && exit
mkdir -p .envs
exec 9> .envs/lock
if ! flock --nonblock 9; then
    echo 'Waiting for another set-up to end' >&2
    flock 9
    is_ready && exit
fi

# uv reads neither pip's settings nor the system's certificates, and a network can demand both.
index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2> /dev/null || true)}
certificates=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
[[ -z $index ]] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
[[ ! -f $certificates ]] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$certificates}
links=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2> /dev/null || true)}
[[ -z $links ]] || export UV_FIND_LINKS=${UV_FIND_LINKS:-${links// /,}}

# Installs a lock. Without dependencies, since it names all, and bert4keras asks for a Keras that tf2
# does not want; but for torch, whose builds differ in what they need (of CUDA; those of no GPU, nothing).
# With bytecode, which Python does not write itself in containers that set PYTHONDONTWRITEBYTECODE, as many do:
# there, compiling TensorFlow anew takes half of each start.
install() {
    local dependencies=(--no-deps)
    [[ $1 != *torch.lock ]] || dependencies=(--constraint "$lock")
    "$uv" pip install --quiet --compile-bytecode ${dependencies[@]+"${dependencies[@]}"} --build-constraint "$lock" \
        --python "$env/bin/python" --requirement "$1" || fail 1 "could not install $1; run it again to go on"
    cp "$1" "$env/made-from-${1##*/}"
}

add_extra() {
    [[ -n $extra ]] || exit 0
    echo "Adding $extra to .envs/$stack" >&2
    install "$extra_lock"
    exit 0
}

if has "$lock"; then
    uv=$(find_uv)
    add_extra
fi
for version in "${versions[@]}"; do
    python=$(find_python "$version") && break
done
if [[ -z $python ]]; then
    install_python "${versions[0]}" && python=$(find_python "${versions[0]}") \
        || fail 2 "the stack $stack needs Python ${versions[0]}, and none is found or can be downloaded: \
install one, or use --stack $other"
fi

echo "Setting up the stack $stack in .envs/$stack, once: this takes a minute or two" >&2
uv=$(find_uv)
rm -rf "$env/made-from-$stack.lock" "$env"  # in this order: half an environment must not look whole
"$uv" venv --quiet --python "$python" "$env" || fail 1 "could not make $env"
install "$lock"
add_extra
