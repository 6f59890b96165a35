"""Runs in the environment .envs/torch, for test_export.py: what transformers and peft make of files.

run_transformers.py outputs FOLDER NPZ: writes `outputs` of the model in FOLDER (and of the adapter in
FOLDER/adapter, if there is one) for the token ids and masks in NPZ, as far as it can be loaded whole.
run_transformers.py make KIND FOLDER: saves random models, in both of the library's formats.
run_transformers.py serve: does these for each line of its input, a JSON list of a command's words (pytorch.py).
run_transformers.py adapted NPZ ...: for test_methods.py; what peft makes of each file's backbone and adapter.
"""
import contextlib
import io
import json
import os
import sys
import traceback

import numpy as np
import torch
import transformers
from transformers.models.deprecated import nezha

CLASSES = {name: getattr(module, name) for module in (transformers, nezha.modeling_nezha)
           for name in dir(module) if name.startswith(('Bert', 'RoFormer', 'Nezha'))}


def load(folder):
    with open(os.path.join(folder, 'config.json')) as reader:
        name, = json.load(reader)['architectures']
    model, info = CLASSES[name].from_pretrained(folder, output_loading_info=True)
    # Of a backbone without its head, the pooler may be missing: nobody asks for its output.
    missing = [key for key in info['missing_keys'] if not key.startswith('pooler.')]
    assert not missing and not info['unexpected_keys'] and not info['mismatched_keys'], info
    if os.path.isdir(os.path.join(folder, 'adapter')):
        import peft
        model = peft.PeftModel.from_pretrained(model, os.path.join(folder, 'adapter'))
    return model.eval()


def outputs(folder, path):
    arrays = np.load(path)
    inputs = {name: torch.tensor(arrays[name].astype('int64'))
              for name in ('input_ids', 'attention_mask', 'token_type_ids')}
    with torch.no_grad():
        found = load(folder)(**inputs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [str(text) for text in arrays['texts']]
    ids = [tokenizer(text, truncation=False)['input_ids'] for text in texts]
    np.savez(path + '.out.npz', outputs=found[0].numpy(), ids=json.dumps(ids))


def make(kind, folder):
    module = {'roberta': transformers, 'roformer': transformers, 'nezha': nezha}[kind]
    name = {'roberta': 'Bert', 'nezha': 'Nezha', 'roformer': 'RoFormer'}[kind]
    sizes = dict(vocab_size=120, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                 intermediate_size=96, initializer_range=0.3, max_position_embeddings=64)
    if kind == 'roformer':
        sizes['embedding_size'] = 48
    config = getattr(module, name + 'Config')(**sizes)
    torch.manual_seed(0)
    model = CLASSES[name + 'Model'](config).eval()
    for parameter in model.parameters():  # biases and norms too, which begin as 0 and 1
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for safe in (True, False):
        model.save_pretrained(os.path.join(folder, 'safe' if safe else 'bin'), safe_serialization=safe)
    half = os.path.join(folder, 'half')
    model.to(torch.bfloat16).save_pretrained(half)
    ids = torch.randint(1, 120, (4, 17))
    mask = torch.ones_like(ids)
    for row, length in enumerate((17, 11, 5, 14)):
        ids[row, length:], mask[row, length:] = 0, 0
    arrays = {}
    for name in ('safe', 'half'):
        model = type(model).from_pretrained(os.path.join(folder, name), torch_dtype=torch.float32).eval()
        if kind == 'roformer':  # positions are computed, not read: not at half precision
            model.encoder.embed_positions._init_weight()
        with torch.no_grad():
            arrays[name] = model(ids, attention_mask=mask)[0].numpy()
    np.savez(os.path.join(folder, 'expected.npz'), input_ids=ids.numpy(), **arrays)


def script(code, *args):
    """Runs the text of a program, with these as its arguments."""
    sys.argv = ['script'] + list(args)
    exec(compile(code, 'script', 'exec'), {'__name__': '__main__'})


def adapted(*paths):
    """Writes `hidden` and, by name, the adapter's gradients of sum(hidden * factors), beside each file.

    A file has `about` (JSON: kind, config, peft), backbone/NAME and adapter/NAME, and a batch.
    """
    import peft
    configs = {'lora': peft.LoraConfig, 'ia3': peft.IA3Config, 'prompt_tuning': peft.PromptTuningConfig,
               'ptuning': peft.PromptEncoderConfig}
    for path in paths:
        arrays = np.load(path)
        about = json.loads(str(arrays['about']))
        module, name = {'roberta': (transformers, 'Bert'), 'roformer': (transformers, 'RoFormer'),
                        'nezha': (nezha, 'Nezha')}[about['kind']]
        model = CLASSES[name + 'Model'](getattr(module, name + 'Config')(**about['config']))
        state = {key[len('backbone/'):]: torch.tensor(arrays[key]) for key in arrays.files
                 if key.startswith('backbone/')}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and all('pooler' in key or 'position' in key for key in missing), missing
        model = peft.get_peft_model(model, configs[about['method']](
            task_type='FEATURE_EXTRACTION', **about['peft'])).eval()
        named = dict(model.named_parameters())
        adapter = {key[len('adapter/'):]: named[key[len('adapter/'):]] for key in arrays.files
                   if key.startswith('adapter/')}
        trained = {key for key, value in named.items() if value.requires_grad}
        assert set(adapter) == trained, set(adapter) ^ trained
        for key, parameter in adapter.items():
            with torch.no_grad():
                parameter.copy_(torch.tensor(arrays['adapter/' + key]).reshape(parameter.shape))
        ids = torch.tensor(arrays['input_ids'])
        hidden = model(input_ids=ids, attention_mask=torch.tensor(arrays['attention_mask']),
                       token_type_ids=torch.zeros_like(ids))[0][:, -ids.shape[1]:]
        (hidden * torch.tensor(arrays['factors'])).sum().backward()
        np.savez(path + '.out.npz', hidden=hidden.detach().numpy(), **{
            'gradient/' + key: parameter.grad.numpy() for key, parameter in adapter.items()})


COMMANDS = {'outputs': outputs, 'make': make, 'adapted': adapted, 'script': script}


def serve():
    """Runs the commands that come as lines of JSON; answers [what was printed, the traceback or None]."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what a library prints from C is no answer
    folder = os.getcwd()
    for line in sys.stdin:
        command, *args = json.loads(line)
        printed, error = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(printed):
                COMMANDS[command](*args)
        except Exception:
            error = traceback.format_exc()
        os.chdir(folder)
        print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)


if __name__ == '__main__':
    transformers.logging.set_verbosity_error()
    serve() if sys.argv[1] == 'serve' else COMMANDS[sys.argv[1]](*sys.argv[2:])
