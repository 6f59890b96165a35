"""What a run reads of its task's files, before anything is trained or written."""
import os
from typing import Any, Dict, List

from fltuning import few_shot
from fltuning.task import EncodedList, Task


class RunData:
    """All samples of a run.

    train: encoded; dev: samples to score, and dev_encoded; tests: {result file: samples to predict};
    public: samples of FewCLUE's public test set, to score; drawn: {'train' or 'dev': numbers of the
    records}, where few are drawn.
    """

    def __init__(self, task: Task, folder: str, settings: Any):
        """settings: with `limit`, `few_shot`, `few_shot_dev`, `draw_seed` and `few_shot_split`."""
        limit = settings.limit
        if settings.few_shot_split is not None:
            task.use_few_clue(settings.few_shot_split)
            few_shot.check_few_clue(task, folder)
        train_files = task.find_train_files(folder)
        self.drawn: Dict[str, List[int]] = {}
        for stream, (part, files, count) in enumerate([
                ('train', train_files, settings.few_shot), ('dev', task.dev_files, settings.few_shot_dev)]):
            if count is not None:
                self.drawn[part] = few_shot.draw(
                    task, folder, files, count, settings.draw_seed, limit, stream)
        train, dev = [part and frozenset(part) for part in map(self.drawn.get, ('train', 'dev'))]
        self.train: EncodedList = task.load_encoded(folder, train_files, True, limit, train)
        self.dev = task.to_predict(task.load(folder, task.dev_files, True, limit, dev))
        self.tests: Dict[str, list] = {}
        for name, result in task.test_files.items():
            if os.path.exists(os.path.join(folder, name)):
                self.tests[result] = task.to_predict(task.load(folder, [name], False, limit))
            else:
                print('%s: no file %s: %s will not be written' % (folder, name, result))
        self.public: list = []
        if task.split is not None:
            self.public = few_shot.load_public_test(task, folder, limit)
        self.dev_encoded = list(map(task.encode, self.dev))
        task.remark(os.path.join(folder, ', '.join(task.dev_files)))
