"""Multiple choice: the best of a few choices, each a row with a score of its own."""
import collections

import numpy as np

from fltuning.files import json_line
from fltuning.submissions import check_label
from fltuning.task import Task


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities, in float64: (choices,) -> (choices,)."""
    weights = np.exp(scores.astype('float64') - scores.max())
    return weights / weights.sum()


class MultipleChoice(Task):
    """The best of a few choices, each a row with a score of its own from the vector of [CLS].

    Samples have `id` and `label` (the right choice); results: scores, (rows_per_sample,).
    """

    transformers_class = 'ForMultipleChoice'

    def head(self):
        from fltuning.heads import ChoiceHead
        return ChoiceHead(self)

    def decode(self, outputs, batch):
        return list(outputs.reshape(-1, self.rows_per_sample))

    def score(self, samples, results):
        right = [s.label == choice for s, choice in zip(samples, self.choose(samples, results))]
        return collections.OrderedDict(accuracy=float(np.mean(right)))

    def answers(self, samples, results):
        return [(self.text_of(s), int(s.label == choice), 1)
                for s, choice in zip(samples, self.choose(samples, results))]

    def choose(self, samples, results):
        """The chosen index for each sample."""
        return [int(scores.argmax()) for scores in results]

    def submission(self, samples, results):
        return ''.join(json_line(id=str(s.id), label=str(choice))
                       for s, choice in zip(samples, self.choose(samples, results)))

    def check_answer(self, sample, record):
        check_label(record, [str(i) for i in range(len(sample.choices))])

    def choices(self, sample):
        """(id, texts of the choices) of a sample."""
        return sample.id, sample.choices

    def predictions(self, samples, results):
        """{id, label, choice, probabilities}: the chosen one's index and text, one each choice."""
        predictions = []
        for sample, scores, label in zip(samples, results, self.choose(samples, results)):
            sample_id, choices = self.choices(sample)
            predictions.append(dict(
                id=sample_id, label=label, choice=choices[label],
                probabilities=softmax(scores[:len(choices)]).tolist()))
        return predictions
