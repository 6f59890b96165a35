"""The settings you edit, and what every task loads from them: tokenizer, backbone, optimizer."""

# The backbone: files in Google's layout, as the RoBERTa, NEZHA and RoFormer releases have it, or a
# Hugging Face folder: its name as config_path, and the other two left empty. All three empty: the
# small one in pretrained/, a roberta unless `backbone` says otherwise.
backbone = 'auto'  # auto (read off the checkpoint), roberta, nezha or roformer
config_path = ''  # e.g. '/models/chinese_roberta_wwm_ext_L-12_H-768_A-12/bert_config.json'
checkpoint_path = ''  # e.g. '/models/chinese_roberta_wwm_ext_L-12_H-768_A-12/bert_model.ckpt'
dict_path = ''  # e.g. '/models/chinese_roberta_wwm_ext_L-12_H-768_A-12/vocab.txt'

# What is trained besides the task's head.
prompt_size = 0  # P-Tuning V2: trainable keys and values in every attention
ffn_prompt_size = 160  # FL-Tuning: trainable hidden units in every feed-forward network
layers_to_transform = ''  # the layers that get either, from 0, e.g. '0-5,11'; '' for all
prompt_dropout = 0.1  # dropout of the keys and values in training

data_path = 'clue_dataset'  # a folder with a folder for each task; this, beside this file
output_dir = ''  # where weights/ and results/ go; '' for the current folder
seed = 42  # one seed, one result
precision = 'float32'  # or bfloat16 or float16, on the stack tf2: faster on processors that have it

# ---------------------------------------------------------------------------- end of the settings
import dataclasses
import os
import sys
from typing import Any, Dict, List, Optional, Tuple

from fltuning.methods import METHODS, resolve
from fltuning.precision import NAMES as PRECISIONS
from fltuning.settings import Settings, layer_numbers, percent, setting, whole_number
from fltuning.settings import share as part_of_one  # `share` is a setting

ROOT = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass
class BackboneSettings(Settings):
    """Which backbone to use. Of its files the contents decide, not the paths."""
    backbone: str = setting('auto', str, 'kind of the backbone; auto reads it off the checkpoint',
                            choices=['auto', 'roberta', 'nezha', 'roformer'])
    config_path: str = setting('', str, 'bert_config.json of the backbone, or its Hugging Face folder',
                               decides=False)
    checkpoint_path: str = setting('', str, 'TensorFlow checkpoint of the backbone; of a Hugging Face '
                                            'folder it need not be named', decides=False)
    dict_path: str = setting('', str, 'vocab.txt of the backbone, likewise', decides=False)


@dataclasses.dataclass
class ModelSettings(BackboneSettings):
    """What a model is: its backbone, what is trained besides the head, how it is computed."""
    prompt_size: int = setting(0, whole_number(0),
                               'P-Tuning V2: trainable keys and values in every attention')
    ffn_prompt_size: int = setting(0, whole_number(0), 'FL-Tuning: trainable hidden units in every '
                                                       'feed-forward network')
    layers_to_transform: Optional[List[int]] = setting(
        None, layer_numbers, 'the layers that get either, from 0, e.g. 0-5,11; empty for all')
    prompt_dropout: float = setting(0.1, part_of_one, 'P-Tuning V2: dropout of the keys and values in training')
    method: Optional[str] = setting(None, str, 'a way of tuning by its name, in place of the two sizes',
                                    choices=list(METHODS))
    size: Optional[int] = setting(None, whole_number(1), 'with --method: hidden units, prefixes, input '
                                                         'prompts or rank')
    share: Optional[float] = setting(None, percent, 'with --method, in place of --size: what it trains, in '
                                                    'percent of the backbone; 3, unless said', decides=False)
    padded: bool = setting(False, bool, 'the plain path: on padding too, predicting samples as they '
                                        'stand; the same numbers, slower; for comparison')
    precision: str = setting('float32', str, 'of products, and of frozen weights in memory; a low one needs '
                                             'the stack tf2', choices=PRECISIONS)


def resolve_method(settings: ModelSettings, paths: Dict[str, Any]) -> ModelSettings:
    """Settings whose method has its size, or which have the two sizes that it is a name for."""
    if not settings.method:
        return settings
    from fltuning import checkpoints
    kind = settings.backbone
    if kind == 'auto':
        kind = checkpoints.detect_backbone(paths['config_path'], paths['checkpoint_path'])
    return dataclasses.replace(settings, **resolve(
        settings.method, settings.size, settings.share, settings.layers_to_transform,
        checkpoints.read_config(paths['config_path']), kind))


def find_backbone(settings: BackboneSettings, kind: Optional[str] = None) -> Dict[str, str]:
    """{setting: path} of the backbone; of the small bundled one where none is set.

    kind: of the bundled one, unless settings.backbone says it; 'roberta' unless either does.
    """
    from fltuning import checkpoints
    paths = {name: getattr(settings, name)
             for name in ('config_path', 'checkpoint_path', 'dict_path')}
    if not any(paths.values()):
        kind = settings.backbone if settings.backbone != 'auto' else kind or 'roberta'
        paths['config_path'] = os.path.join(ROOT, 'pretrained', kind)
        # Not among predictions that go to standard output.
        print('no backbone is set: using the small one in pretrained/%s; set config_path in snippets.py'
              % kind, file=sys.stderr)
    return checkpoints.find_files(**paths)


# What loads TensorFlow is imported where it is needed: settings are read and checked without it.


def load_tokenizer(dict_path: str) -> Tuple[Any, List[int]]:
    """The tokenizer of the simplified vocabulary, and the ids of the tokens that were kept."""
    from fltuning import tokenizer
    return tokenizer.load_tokenizer(dict_path)


def load_backbone(config_path: str, checkpoint_path: Optional[str], keep_tokens: Optional[list] = None,
                  backbone: str = 'auto', **options: Any) -> Any:
    """The backbone with its prompts, everything else frozen: a bert4keras Transformer.

    options: of `PromptTuning` and of bert4keras's Transformer.
    """
    from models import PtuningV2AddFNNPtuning, build_transformer_model
    transformer = build_transformer_model(
        config_path, checkpoint_path, model=PtuningV2AddFNNPtuning, backbone=backbone,
        keep_tokens=keep_tokens, return_keras_model=False, **options)
    transformer.freeze()
    return transformer


def build_model(task: Any, settings: ModelSettings, paths: Dict[str, Optional[str]],
                keep_tokens: Optional[list], layers: Optional[dict] = None) -> Tuple[Any, Any]:
    """(Keras model, transformer) of a task: frozen backbone, prompts, head.

    paths: of the backbone's files, which settings need not name; checkpoint_path None: no weights yet.
    layers: {name: layer}, frozen ones of another transformer to share.
    """
    from fltuning.compat import keras
    transformer = load_backbone(
        paths['config_path'], paths['checkpoint_path'], keep_tokens, settings.backbone,
        prompt_size=settings.prompt_size, ffn_prompt_size=settings.ffn_prompt_size,
        layers_to_transform=settings.layers_to_transform, prompt_dropout=settings.prompt_dropout,
        method=settings.method, size=settings.size,
        packed=not settings.padded, first_only=task.first_only and not settings.padded,
        keyed_dropout=True, precision=settings.precision, low_weights=True, layers=layers)
    head = task.head()
    inputs = transformer.inputs + head.extra_inputs()
    return keras.models.Model(inputs, head.outputs(transformer.output, inputs)), transformer


def get_optimizer(learning_rate: float, num_warmup_steps: int, num_train_steps: int,
                  weight_decay_rate: float = 0.01, exclude_from_weight_decay=('Norm', 'bias'),
                  grad_accum_steps: int = 1) -> Any:
    """Adam with weight decay; the rate rises from 0 in the warm-up and then falls to 0, linearly.

    Steps count batches, also where `grad_accum_steps` of them make one update. Where the last few are
    fewer, they make the last update.
    """
    from fltuning.optimizer import PromptAdam
    schedule = {0: 0.0, num_warmup_steps: 1.0} if num_warmup_steps else {0: 1.0}
    schedule[max(num_train_steps, num_warmup_steps + 1)] = 0.0
    return PromptAdam(
        learning_rate, weight_decay_rate=weight_decay_rate, lr_schedule=schedule,
        exclude_from_weight_decay=exclude_from_weight_decay, grad_accum_steps=grad_accum_steps,
        num_train_steps=num_train_steps)
