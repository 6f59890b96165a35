"""The kinds of CLUE task: samples -> batches -> head -> loss -> score -> submission.

A task script subclasses a kind, says where its files are and how they are read and encoded, and
sets its hyperparameters. Arrays: a batch of token ids is (rows, length), where a sample has one row
(or one for each choice); segment ids are 0 everywhere, as in the original.
"""
import collections
import math
import os

import compat  # noqa: F401  (before bert4keras)
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras, multilabel_categorical_crossentropy
from bert4keras.layers import GlobalPointer
from sklearn.metrics import f1_score

from data import Record, json_line, pad, read_json_lines
from errors import UserError
from functions import PromptInitializer
from tokenizer import cut

Encoded = collections.namedtuple('Encoded', 'rows label')
Encoded.__doc__ = """A sample as numbers: `rows`, token id arrays; `label`, as the kind defines it."""


class Task(object):
    """What all kinds share. A subclass sets these, a task script may change them.

    test_files: {file to predict: file in CLUE's submission format}.
    metric: the score CLUE reports, by which the best epoch is chosen.
    rows_per_sample: rows of token ids that belong to one sample.
    first_only: the head reads the vector of [CLS] alone.
    default_ids: an iterator of ids for records without; None, they must have one.
    """

    name = None
    train_files, dev_files, test_files = ['train.json'], ['dev.json'], {}
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 128, 32, 1, 10, 1e-4
    metric = 'accuracy'
    rows_per_sample = 1
    first_only = True
    label_ndim, label_dtype = 2, 'int32'
    default_ids = None

    def __init__(self, tokenizer, maxlen=None):
        self.tokenizer = tokenizer
        self.maxlen = maxlen or self.maxlen

    # For the task script to write.

    def parse(self, records, labelled):
        """The samples of some `Record`s. Raises UserError naming file, line and field."""
        raise NotImplementedError

    def encode(self, sample):
        """One sample as `Encoded`."""
        raise NotImplementedError

    # For the kind to write.

    def outputs(self, hidden, inputs):
        """The task's output tensor from (rows, length, hidden) and the model's inputs."""
        raise NotImplementedError

    def loss(self, labels, outputs):
        """The mean loss of a batch, a scalar tensor."""
        raise NotImplementedError

    def decode(self, outputs, batch):
        """What the model says of each sample of a batch, given its output array."""
        raise NotImplementedError

    def score(self, samples, results):
        """{metric: value}, the first the one CLUE reports; values from 0 to 1."""
        raise NotImplementedError

    def submission(self, samples, results):
        """The text of a result file in CLUE's format."""
        raise NotImplementedError

    def predictions(self, samples, results):
        """What a user wants to know of each sample: JSON-able dicts with ids and probabilities."""
        raise NotImplementedError

    # Shared.

    def read(self, path, labelled):
        """The samples of one file."""
        return self.parse(self.read_records(path), labelled)

    def read_records(self, path):
        """The records of a file: one JSON object a line, unless a task has another format."""
        return read_json_lines(path)

    def record(self, value, where):
        """One value of such a file as `Record`; `where` is how errors call it."""
        return Record(value, where)

    def get_id(self, record):
        """A record's id; where it may be left out, the next of `default_ids`."""
        return record.get_id(default=next(self.default_ids) if self.default_ids else None)

    def find_train_files(self, folder):
        return self.train_files

    def to_predict(self, samples):
        """The samples to ask the model about: the same, unless a kind has labels in its inputs."""
        return samples

    def extra_inputs(self):
        """Keras inputs besides token and segment ids."""
        return []

    def collate(self, batch):
        """([token ids, segment ids], labels) of a list of `Encoded`."""
        token_ids = pad([row for encoded in batch for row in encoded.rows])
        labels = np.array([[e.label] for e in batch for _ in e.rows], self.label_dtype)
        return [token_ids, np.zeros_like(token_ids)], labels

    def load(self, folder, files, labelled, limit=None):
        """The samples of some files of a folder, the first `limit` if given."""
        samples = []
        for name in files:
            samples.extend(self.read(os.path.join(folder, name), labelled))
            if limit and len(samples) >= limit:
                break
        if not samples:
            raise UserError('%s: no sample: every record is left out'
                            % os.path.join(folder, ', '.join(files)))
        return samples[:limit]

    def errors(self, samples, results):
        """Rows (text, gold, predicted, probability) of the samples that are wrong, or None."""
        return None


def first_token_head(hidden, units, activation=None):
    """A dense layer on the vector of [CLS]: (rows, length, hidden) -> (rows, units)."""
    first = keras.layers.Lambda(lambda x: x[:, 0], name='First-Token')(hidden)
    return keras.layers.Dense(units, activation=activation, name='head',
                              kernel_initializer=PromptInitializer())(first)


class Classification(Task):
    """One label a text, or pair of texts, from the vector of [CLS].

    Samples: `Text`; results: probabilities, (classes,).
    labels: the labels in files and submissions, in the order of the classes.
    """

    Text = collections.namedtuple('Text', 'id first second label')
    labels = []

    def encode(self, sample):
        """[CLS] first [SEP] or [CLS] first [SEP] second [SEP], cut to maxlen from the longer."""
        first = self.tokenizer.ids(sample.first)
        if sample.second is None:
            ids, = cut(self.maxlen, first)
        else:  # the [CLS] of the second counts while it is cut, and then goes
            first, second = cut(self.maxlen + 1, first, self.tokenizer.ids(sample.second))
            ids = first + second[1:]
        return Encoded([np.array(ids, 'int32')], sample.label or 0)

    def outputs(self, hidden, inputs):
        return first_token_head(hidden, len(self.labels), 'softmax')

    def loss(self, labels, outputs):
        return K.mean(K.sparse_categorical_crossentropy(labels, outputs))

    def decode(self, outputs, batch):
        return list(outputs)

    def score(self, samples, results):
        gold = np.array([s.label for s in samples])
        predicted = np.array([r.argmax() for r in results])
        return collections.OrderedDict([
            ('accuracy', float((gold == predicted).mean())),
            ('macro_f1', float(f1_score(gold, predicted, average='macro')))])

    def submission(self, samples, results):
        return ''.join(json_line(id=str(s.id), label=self.labels[r.argmax()])
                       for s, r in zip(samples, results))

    def predictions(self, samples, results):
        """{id, label, probabilities: {label: probability}}"""
        return [collections.OrderedDict(
            id=s.id, label=self.labels[r.argmax()],
            probabilities=collections.OrderedDict(zip(self.labels, map(float, r))))
            for s, r in zip(samples, results)]

    def errors(self, samples, results):
        for sample, result in zip(samples, results):
            best = result.argmax()
            if best != sample.label:
                text = sample.first if sample.second is None else sample.first + ' | ' + sample.second
                yield text, self.labels[sample.label], self.labels[best], float(result[best])


def softmax(scores):
    """Probabilities, in float64: (choices,) -> (choices,)."""
    weights = np.exp(scores.astype('float64') - scores.max())
    return weights / weights.sum()


class MultipleChoice(Task):
    """The best of a few choices, each a row with a score of its own from the vector of [CLS].

    Samples have `id` and `label` (the right choice); results: scores, (rows_per_sample,).
    """

    def outputs(self, hidden, inputs):
        return first_token_head(hidden, 1)

    def loss(self, labels, outputs):
        scores = K.reshape(outputs, (-1, self.rows_per_sample))  # (samples, choices)
        labels = K.reshape(labels, (-1, self.rows_per_sample))[:, 0]
        return K.mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))

    def decode(self, outputs, batch):
        return list(outputs.reshape(-1, self.rows_per_sample))

    def score(self, samples, results):
        right = [s.label == choice for s, choice in zip(samples, self.choose(samples, results))]
        return collections.OrderedDict(accuracy=float(np.mean(right)))

    def choose(self, samples, results):
        """The chosen index for each sample."""
        return [int(scores.argmax()) for scores in results]

    def submission(self, samples, results):
        return ''.join(json_line(id=str(s.id), label=str(choice))
                       for s, choice in zip(samples, self.choose(samples, results)))

    def choices(self, sample):
        """(id, texts of the choices) of a sample."""
        return sample.id, sample.choices

    def predictions(self, samples, results):
        """{id, label, choice, probabilities}: the chosen one's index and text, one each choice."""
        predictions = []
        for sample, scores, label in zip(samples, results, self.choose(samples, results)):
            sample_id, choices = self.choices(sample)
            predictions.append(collections.OrderedDict(
                id=sample_id, label=label, choice=choices[label],
                probabilities=softmax(scores[:len(choices)]).tolist()))
        return predictions


class SpanScores(GlobalPointer):
    """bert4keras's GlobalPointer with its mask as an input, of operations that ONNX has, too.

    Inputs: hidden (batch, length, hidden), mask (batch, length), not 0 where a span may begin or end.
    Output: (batch, heads, length, length), the score of (start, end); -inf where there is none.
    """

    def __init__(self, heads, head_size, **kwargs):
        kwargs['tril_mask'] = False  # done here
        super(SpanScores, self).__init__(heads, head_size, **kwargs)

    def build(self, input_shape):
        super(SpanScores, self).build(input_shape[0])

    def call(self, inputs):
        hidden, mask = inputs
        scores = super(SpanScores, self).call(hidden)
        ones, inside = tf.ones_like(scores), tf.cast(tf.not_equal(mask, 0), scores.dtype)
        keep = tf.linalg.band_part(ones, 0, -1) * inside[:, None, :, None] * inside[:, None, None]
        return tf.where(keep > 0, scores, ones * -np.inf)

    def compute_output_shape(self, input_shape):
        return super(SpanScores, self).compute_output_shape(input_shape[0])


keras.utils.get_custom_objects()['SpanScores'] = SpanScores


class EntityRecognition(Task):
    """Entities of some types, anywhere in a text: every (type, start, end) has a score.

    Samples: `Text`, with `entities` a set of (type, start, end) in characters, the end included;
    results: dicts of such, with the probability that the score stands for, sigmoid(score).
    labels: the types, in the order of the output.
    """

    Text = collections.namedtuple('Text', 'id text entities')
    labels = []
    metric = 'f1'
    first_only = False
    label_ndim, label_dtype = 4, 'int8'

    def align(self, text):
        """Token ids of a text and, for each token, the characters it stands for."""
        tokens = self.tokenizer.tokenize(text, maxlen=self.maxlen)
        return self.tokenizer.tokens_to_ids(tokens), self.tokenizer.rematch(text, tokens)

    def encode(self, sample):
        """The label is a list of (type, start token, end token), without spans off token borders."""
        token_ids, mapping = self.align(sample.text)
        starts = {chars[0]: i for i, chars in enumerate(mapping) if chars}
        ends = {chars[-1]: i for i, chars in enumerate(mapping) if chars}
        label = [(self.labels.index(kind), starts[start], ends[end])
                 for kind, start, end in sorted(sample.entities or ())
                 if start in starts and end in ends]
        return Encoded([np.array(token_ids, 'int32')], (label, mapping))

    def collate(self, batch):
        """Labels: (batch, types, length, length), 1 at (start, end)."""
        token_ids = pad([encoded.rows[0] for encoded in batch])
        length = token_ids.shape[1]
        labels = np.zeros((len(batch), len(self.labels), length, length), self.label_dtype)
        for i, encoded in enumerate(batch):
            for kind, start, end in encoded.label[0]:
                labels[i, kind, start, end] = 1
        return [token_ids, np.zeros_like(token_ids)], labels

    def outputs(self, hidden, inputs):
        return SpanScores(len(self.labels), 64, use_bias=False, name='head',
                          kernel_initializer=PromptInitializer())([hidden, inputs[0]])

    def loss(self, labels, outputs):
        shape = K.shape(outputs)
        flat = (shape[0] * shape[1], shape[2] * shape[3])
        labels = K.cast(K.reshape(labels, flat), K.floatx())
        return K.mean(multilabel_categorical_crossentropy(labels, K.reshape(outputs, flat)))

    def decode(self, outputs, batch):
        results = []
        for scores, encoded in zip(outputs, batch):
            mapping = encoded.label[1]
            spans = {}
            for kind, start, end in zip(*np.where(scores > 0)):
                # Neither [CLS], [SEP] nor padding stands for characters.
                if max(start, end) < len(mapping) and mapping[start] and mapping[end]:
                    span = self.labels[kind], mapping[start][0], mapping[end][-1]
                    spans[span] = 1 / (1 + math.exp(-scores[kind, start, end]))
            results.append(spans)
        return results

    def score(self, samples, results):
        """Micro F1 over (type, start, end)."""
        right = sum(len(s.entities & set(found)) for s, found in zip(samples, results))
        found = sum(map(len, results))
        gold = sum(len(s.entities) for s in samples)
        return collections.OrderedDict([
            ('f1', 2.0 * right / max(found + gold, 1)),
            ('precision', float(right) / max(found, 1)), ('recall', float(right) / max(gold, 1))])

    def submission(self, samples, results):
        return ''.join(json_line(id=s.id, text=s.text, label=self.spans(s, found))
                       for s, found in zip(samples, results))

    def spans(self, sample, found):
        """CLUE's {type: {name: [[start, end], ...]}}."""
        label = {}
        for kind, start, end in sorted(found):
            spans = label.setdefault(kind, {}).setdefault(sample.text[start:end + 1], [])
            spans.append([int(start), int(end)])
        return label

    def predictions(self, samples, results):
        """{id, text, label, probabilities}, both {type: {name: [one for each place]}}."""
        predictions = []
        for sample, found in zip(samples, results):
            label = self.spans(sample, found)
            predictions.append(collections.OrderedDict(
                id=sample.id, text=sample.text, label=label, probabilities={
                    kind: {name: [found[kind, start, end] for start, end in places]
                           for name, places in names.items()} for kind, names in label.items()}))
        return predictions


class ReadingComprehension(Task):
    """The answer to a question is a span of a passage, which is read through windows.

    Samples: `Window`. `question` is what identifies it; `asked`, its text, and text and answer are
    normalized; `begin` is where the window begins
    in the normalized passage; `answer` is (start, text) in the window, None if unknown, and ('', '')
    if the window does not hold it. results: (log-probability, start, end), the best span in the
    window, in characters of the normalized passage, the end excluded.
    """

    Window = collections.namedtuple('Window', 'question asked text begin answer')
    NO_ANSWER = (0, '')
    first_only = False
    label_ndim = 2

    def encode(self, sample):
        """[CLS] question [SEP] window [SEP]; the label is (start token, end token), [CLS] for none.

        Question, left, answer and right are tokenized apart, so an answer always has its tokens.
        """
        question = self.tokenizer.ids(sample.asked)
        start, answer = sample.answer or self.NO_ANSWER
        parts = [sample.text[:start], answer, sample.text[start + len(answer):]]
        tokens = [self.tokenizer.tokenize(part)[1:-1] for part in parts]
        ids = question + self.tokenizer.tokens_to_ids(sum(tokens, [])) + question[-1:]
        label = (0, 0)
        if tokens[1]:
            begin = len(question) + len(tokens[0])
            label = (begin, begin + len(tokens[1]) - 1)
        mapping = []
        if sample.answer is None:  # to be predicted: tokens back to characters
            mapping = self.tokenizer.rematch(sample.text, tokens[2])
        return Encoded([np.array(ids, 'int32')], (label, len(question), mapping, sample.begin))

    def collate(self, batch):
        """Inputs: token ids, segment ids, mask of [CLS] and the passage; labels: (batch, 2)."""
        token_ids = pad([encoded.rows[0] for encoded in batch])
        mask = np.zeros_like(token_ids)
        mask[:, 0] = 1
        for row, encoded in zip(mask, batch):
            row[encoded.label[1]:len(encoded.rows[0]) - 1] = 1
        labels = np.array([encoded.label[0] for encoded in batch], self.label_dtype)
        return [token_ids, np.zeros_like(token_ids), mask], labels

    def extra_inputs(self):
        return [keras.layers.Input(shape=(None,), name='Input-Passage')]

    def outputs(self, hidden, inputs):
        return SpanScores(1, 64, use_bias=False, name='head',
                          kernel_initializer=PromptInitializer())([hidden, inputs[-1]])

    def loss(self, labels, outputs):
        """Softmax cross-entropy over all (start, end)."""
        length = K.shape(outputs)[-1]
        logits = K.reshape(outputs, (-1, length * length))
        # -inf would give 0 * inf in the gradient; no weight is lost at this distance.
        logits = tf.maximum(logits, -1e9)
        labels = labels[:, 0] * length + labels[:, 1]
        return K.mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))

    def decode(self, outputs, batch):
        results = []
        for scores, encoded in zip(outputs[:, 0], batch):
            _, offset, mapping, begin = encoded.label
            total = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            # [CLS], which stands for no answer, is ruled out, and so are tokens of no character.
            inside = scores[offset:offset + len(mapping), offset:offset + len(mapping)].copy()
            empty = [i for i, chars in enumerate(mapping) if not chars]
            inside[empty], inside[:, empty] = -np.inf, -np.inf
            if not inside.size or inside.max() == -np.inf:
                results.append((-np.inf, begin, begin))
                continue
            start, end = np.unravel_index(inside.argmax(), inside.shape)
            results.append((float(inside[start, end] - total), begin + mapping[start][0],
                            begin + mapping[end][-1] + 1))
        return results

    def best_windows(self, samples, results):
        """{question: result}: the best window of a question wins."""
        best = collections.OrderedDict()
        for sample, result in zip(samples, results):
            if sample.question not in best or result[0] > best[sample.question][0]:
                best[sample.question] = result
        return best

    def best_spans(self, samples, results):
        """{question: (start, end)}."""
        return collections.OrderedDict(
            (key, result[1:]) for key, result in self.best_windows(samples, results).items())
