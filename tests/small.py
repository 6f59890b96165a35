"""Small data sets in CLUE's formats and a tiny backbone, for runs of a second or two."""
import contextlib
import json
import os
import re
import resource

from tools.random_backbone import write_random_backbone

DIVIDED = os.environ.get('LONG_TESTS') == 'divided'  # each stack runs half of the long tests, see conftest.py
CHARACTERS = ('问题一二三四五六七八九十甲乙丙丁的是不在有人这中大来上国和到说们为子你地出道也时年得就那要'
              '下以生会自着去之过家学对可她里后小么心多天而能好都然没日于起还发成事只作当想看文无开手'
              '用主行方又如前所本见经头面公同己老从动两长知民样现分将外但身些与高意进把法此实回理美点'
              '月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电者海口东北京'
              '效案答，。？！：；、《》（）“”|·')


def write_backbone(folder, kind='roberta', **sizes):
    """{setting: path} of a backbone of one layer and hidden size 16."""
    sizes = dict(dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                      num_attention_heads=2, stddev=0.3), **sizes)
    return write_random_backbone(str(folder), CHARACTERS, kind, **sizes)


def flags(settings):
    """{'epochs': 2} -> ['--epochs', '2']"""
    return [text for name, value in sorted(settings.items())
            for text in ('--' + name, str(value))]


def write_text(path, text):
    with open(str(path), 'w', encoding='utf-8') as writer:
        writer.write(text)


def read_text(path):
    with open(str(path), encoding='utf-8') as reader:
        return reader.read()


def write_json(path, value):
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_lines(path, records):
    write_text(path, ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))


def read_lines(path):
    with open(str(path), encoding='utf-8') as reader:
        return [json.loads(line) for line in reader]


def read_json(*parts):
    with open(os.path.join(*map(str, parts)), encoding='utf-8') as reader:
        return json.load(reader)


def sentence(number, length=6):
    """A text of its own for every number, of `length` characters of the vocabulary."""
    return ''.join(CHARACTERS[(7 * number + 3 * i * (number % 5 + 1)) % 150]
                   for i in range(length))


def afqmc(folder, train=12, dev=6, test=5):
    def pair(i):
        return {'sentence1': sentence(i, 4 + i % 5), 'sentence2': sentence(i + i % 2, 3 + i % 7)}

    write_lines(os.path.join(folder, 'train.json'),
                [dict(pair(i), label=str(i % 2)) for i in range(train)])
    write_lines(os.path.join(folder, 'dev.json'),
                [dict(pair(i + 50), label=str(i % 2)) for i in range(dev)])
    write_lines(os.path.join(folder, 'test.json'), [dict(pair(i + 80), id=i) for i in range(test)])


def cmnli(folder):
    for name in ('train', 'dev', 'test'):
        write_lines(os.path.join(folder, name + '.json'),
                    [dict({'id': i} if name == 'test' else {'label': 'neutral'},
                          sentence1='她在北京', sentence2='她在东海') for i in range(3)])


def wsc(folder):
    def line(i):
        return {'text': '她说这是美的。她们也说', 'target': {
            'span1_text': '她', 'span1_index': 0, 'span2_text': '她们', 'span2_index': 7}}

    for name in ('train', 'dev'):
        write_lines(os.path.join(folder, name + '.json'),
                    [dict(line(i), idx=i, label=['true', 'false'][i % 2]) for i in range(4)])
    for name in ('test', 'test1.0'):
        write_lines(os.path.join(folder, name + '.json'), [dict(line(i), id=i) for i in range(3)])


def c3(folder):
    def dialogue(i, labelled):
        choices = [sentence(i + k, 3 + k) for k in range(2 + i % 3)]
        question = {'question': sentence(i, 5) + '？', 'choice': choices}
        question.update({'answer': choices[i % len(choices)]} if labelled else {'id': i})
        return [['男：' + sentence(i, 9), '女：' + sentence(i + 1, 8)], [question], str(i)]

    for name in ('m-train', 'd-train', 'm-dev', 'd-dev'):
        write_json(os.path.join(folder, name + '.json'), [dialogue(i, True) for i in range(3)])
    for name in ('test1.0', 'test1.1'):
        write_json(os.path.join(folder, name + '.json'), [dialogue(i, False) for i in range(3)])


def chid(folder):
    """Lines of two texts, the first with two blanks, the second with one."""
    number = 0
    for name, labelled in [('train', 1), ('dev', 1), ('test1.0', 0), ('test1.1', 0)]:
        lines, answers = [], {}
        for i in range(2):
            tags = ['#idiom%06d#' % (number + k) for k in range(3)]
            number += 3
            lines.append({
                'content': [sentence(i, 9) + tags[0] + sentence(i, 40) + tags[1] + '。',
                            tags[2] + sentence(i, 90)],
                'candidates': [sentence(i + k, 4) for k in range(10)]})
            answers.update((tag, (i + 3 * k) % 10) for k, tag in enumerate(tags))
        write_lines(os.path.join(folder, name + '.json'), lines)
        if labelled:
            write_json(os.path.join(folder, name + '_answer.json'), answers)


def cluener(folder):
    texts = ['她在北京大学用Word 2003。', '老美說：iPhone 4好！', '东海公司']
    labels = [{'organization': {'北京大学': [[2, 5]]}, 'game': {'Word 2003': [[7, 15]]}},
              {'name': {'老美': [[0, 1]]}}, {}]
    for name in ('train', 'dev'):
        write_lines(os.path.join(folder, name + '.json'),
                    [{'text': text, 'label': label} for text, label in zip(texts, labels)])
    write_lines(os.path.join(folder, 'test.json'),
                [{'id': i, 'text': text} for i, text in enumerate(texts)])


def cmrc2018(folder):
    """The answer stands in 《》, at the begin of the first passage and the end of the third."""
    answers = ['北京大学', 'Peking University', 'Café']
    contexts = ['《%s》在北京，有1,000人。' % answers[0] + sentence(3, 150),
                '天地（《%s》）' % answers[1] + sentence(4, 20),
                sentence(5, 160) + '人为《%s》。' % answers[2]]

    def file(name, labelled):
        paragraphs = []
        for i, (context, answer) in enumerate(zip(contexts, answers)):
            question = {'id': '%s_%d' % (name, i), 'question': sentence(i, 6) + '？'}
            if labelled:
                question['answers'] = [{'text': answer, 'answer_start': context.index(answer)}]
            paragraphs.append({'id': '%s_%d' % (name, i), 'context': context, 'qas': [question]})
        return {'version': 'v1.0', 'data': [{'paragraphs': paragraphs}]}

    for name in ('train', 'dev', 'trial', 'test'):
        write_json(os.path.join(folder, name + '.json'), file(name, name in ('train', 'dev')))


def write_task(data_path, name, **sizes):
    """Write the files of a task to data_path/NAME; returns that folder."""
    folder = os.path.join(str(data_path), name)
    os.makedirs(folder)
    globals()[name](folder, **sizes)
    return folder


def edit(path, pattern, replacement):
    """Change a file in one place; a bytes replacement is written as it is."""
    with open(str(path), 'rb') as reader:
        text = reader.read().decode('utf-8')
    found = re.search(pattern, text)
    assert found, 'nothing to edit'
    if not isinstance(replacement, bytes):
        replacement = replacement.encode('utf-8')
    with open(str(path), 'wb') as writer:
        writer.write(text[:found.start()].encode('utf-8') + replacement
                     + text[found.end():].encode('utf-8'))


@contextlib.contextmanager
def room_for(size):
    """No file grows past `size` bytes inside: writing more fails in its middle, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1] if size is None else size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
