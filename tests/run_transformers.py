"""Runs in the environment .envs/torch, for test_export.py: what transformers and peft make of files.

run_transformers.py outputs FOLDER NPZ: writes `outputs` of the model in FOLDER (and of the adapter in
FOLDER/adapter, if there is one) for the token ids and masks in NPZ, as far as it can be loaded whole.
run_transformers.py make KIND FOLDER: saves random models, in both of the library's formats.
"""
import json
import os
import sys

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


if __name__ == '__main__':
    transformers.logging.set_verbosity_error()
    {'outputs': outputs, 'make': make}[sys.argv[1]](*sys.argv[2:])
