#!/usr/bin/env bash
# Runs one of the project's programs in a stack's environment; --stack may stand anywhere.
# Usage: scripts/program.sh PROGRAM.py [--stack tf1|tf2] [flags]
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "$0")")")
program=$1 stack=tf1 args=()
shift
while (($#)); do
    case $1 in
        --stack=*) stack=${1#*=} ;;
        --stack) stack=${2-}; shift $(($# > 1)) ;;
        *) args+=("$1") ;;
    esac
    shift
done
# glibc: keep freed memory, in huge pages, as TensorFlow keeps that of its tensors (compat.py).
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1} MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_-0}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-17179869184}
exec "$root/scripts/python" --stack "$stack" "$root/$program" ${args[@]+"${args[@]}"}
