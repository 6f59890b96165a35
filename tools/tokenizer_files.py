"""What a tokenizer elsewhere needs to cut texts as bert4keras does, and what is to be said of it."""
import os

from fltuning.files import copy_file, write_json, write_text
from fltuning.tokenizer import load_tokens

LONGEST_WORD = 200  # characters; a longer one is [UNK], and of `transformers` by itself one of over 100
TEXT = {'tokenizer': 'tokenizer.json, or WordPiece over vocab.txt', 'lower_case': True,
        'strip_accents': True, 'longest_word': LONGEST_WORD, 'special_tokens_in_texts': False}
PREPARED = """
Texts are put into lower case and lose their accents, each Chinese character is a word, and words are
cut into pieces of vocab.txt. A word of more than {longest} characters is [UNK]. What looks like a special
token in a text, such as [MASK], is text: it becomes [, mask and ]. A few characters are read otherwise
elsewhere: those of private use, and those that are newer than the Unicode of the program that reads them.
"""
FAST = """
tokenizer.json says all this to the fast tokenizers, which AutoTokenizer takes. The slow ones (use_fast=False)
read vocab.txt alone: there, a word of more than 100 characters is [UNK], and [MASK] in a text is a mask.
"""
HEAD = """
The model is without the task's head, whose weights are in head.safetensors.
"""
TRANSFORMERS = """
    from transformers import {auto}, AutoTokenizer
    model = {auto}.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{head}""" + PREPARED + FAST
PEFT = """
The backbone is in this folder, the trained keys and values are in adapter/. From anywhere:

    from peft import PeftModel
    from transformers import {auto}, AutoTokenizer
    model = {auto}.from_pretrained(FOLDER)
    model = PeftModel.from_pretrained(model, FOLDER + '/adapter')
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)

peft finds the backbone by a path that begins at the current folder, so its AutoPeftModel classes load
'adapter' inside this folder only.
{head}""" + PREPARED + FAST
ONNX = """
model.onnx takes token ids of [CLS] text [SEP], or [CLS] text [SEP] second text [SEP], int64, padded with 0;
task.json names its inputs, outputs and their axes.
""" + PREPARED + """
tokenizer.json says all this to the library `tokenizers`.
"""


def write_readme(exported, folder, text, auto=''):
    """auto: the class of `transformers` that loads the model; AutoModel is the backbone alone."""
    write_text(os.path.join(folder, 'README.md'), '# {task}, up to {maxlen} tokens\n{text}'.format(
        text=text.format(longest=LONGEST_WORD, auto=auto, head=HEAD if auto == 'AutoModel' else ''),
        **exported.belongs_to))


def write_tokenizer_config(folder, maxlen):
    write_json(os.path.join(folder, 'tokenizer_config.json'), {
        'tokenizer_class': 'BertTokenizer', 'do_lower_case': True, 'split_special_tokens': True,
        'model_max_length': maxlen})


def write_tokenizer(dict_path, folder):
    """vocab.txt and tokenizer.json."""
    tokens = load_tokens(dict_path)
    copy_file(dict_path, os.path.join(folder, 'vocab.txt'))
    single = [special('[CLS]'), {'Sequence': {'id': 'A', 'type_id': 0}}, special('[SEP]')]
    second = [{'Sequence': {'id': 'B', 'type_id': 1}}, special('[SEP]', 1)]
    write_json(os.path.join(folder, 'tokenizer.json'), {
        'version': '1.0', 'truncation': None, 'padding': None,
        'added_tokens': [],  # or else they are looked for in texts
        'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True,
                       'strip_accents': True, 'lowercase': True},
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'post_processor': {
            'type': 'TemplateProcessing', 'single': single, 'pair': single + second,
            'special_tokens': {token: {'id': token, 'ids': [tokens[token]], 'tokens': [token]}
                               for token in ('[CLS]', '[SEP]')}},
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {'type': 'WordPiece', 'unk_token': '[UNK]', 'continuing_subword_prefix': '##',
                  'max_input_chars_per_word': LONGEST_WORD, 'vocab': tokens}})


def special(token, segment=0):
    return {'SpecialToken': {'id': token, 'type_id': segment}}
