"""One task from its files to its submission: the settings, the training, the predictions, the record."""
import dataclasses
import os
import sys
import time
from typing import Any, Dict, List, Optional, Tuple, Type, Union

import snippets
import tasks
from fltuning import deltas, methods, precision, provenance, run_record, run_state
from fltuning.errors import NotFinite, Parser, UserError, run_tool
from fltuning.few_shot import PUBLIC_TEST, SPLITS
from fltuning.files import file_digest, make_folder, to_json, write_json, write_text
from fltuning.history import History, Place, summary
from fltuning.locks import locked
from fltuning.run_data import RunData
from fltuning.settings import HelpFormatter, count_of, positive_number, setting, share_or_count, whole_number
from fltuning.task import Task

count = whole_number(1)


@dataclasses.dataclass
class RunSettings(snippets.ModelSettings):
    """A run. Defaults of its flags are in snippets.py and in the task."""
    data_path: str = setting('clue_dataset', str, 'folder with a folder for each task', decides=False)
    epochs: int = setting(10, count, 'passes over the training data')
    batch_size: int = setting(32, count, 'samples per batch')
    maxlen: int = setting(128, whole_number(8), 'tokens per sequence at most')
    learning_rate: float = setting(1e-4, positive_number, 'the largest; falls to 0, linearly')
    warmup: Union[int, float] = setting(0, share_or_count, 'batches, or the share of all of them, in which '
                                                           'the learning rate rises from 0')
    grad_accum_steps: int = setting(1, count, 'batches per update')
    seed: int = setting(42, whole_number(0), 'two runs with one seed are equal')
    seeds: Optional[List[int]] = setting(
        None, whole_number(0), 'a run with each, in seed_N/ of output_dir; then mean and deviation',
        many=True, instead_of='seed', decides=False)
    threads: int = setting(0, whole_number(0, 1024), 'number of threads; the last bits of results '
                                                     'depend on it; 0: one per core', decides=False)
    limit: Optional[int] = setting(None, count, 'only the first N samples of each split: a trial run')
    few_shot: Optional[int] = setting(None, count, 'train on so many records of each class, drawn by '
                                                   'draw_seed; of all, where there are no classes')
    few_shot_dev: Optional[int] = setting(None, count, 'draw so many dev records as well')
    draw_seed: int = setting(0, whole_number(0), 'of what few_shot and few_shot_dev draw')
    few_shot_split: Optional[str] = setting(
        None, str, "train on FewCLUE's files of this split", choices=SPLITS)
    bucket: bool = setting(False, bool,
                           'group samples of like lengths: faster, other batches than by chance')
    eval_every: Optional[int] = setting(None, count, 'score dev after each N batches, too, not only after '
                                                     'each epoch')
    select: str = setting('best', str, 'which weights are kept: those with the best dev score, or the last',
                          choices=['best', 'last'])
    early_stopping: Optional[int] = setting(
        None, count, 'end when dev was scored so many times in a row without a better score')
    tensorboard: str = setting('', str, 'a folder in which event files for TensorBoard go, in one of the '
                                        "task's name", decides=False)
    output_dir: str = setting('', str, 'where weights/ and results/ go; here, unless said',
                              decides=False)
    resume: bool = setting(False, bool, 'go on where a run that was stopped left off, with the same '
                                        'numbers', decides=False)


def default_settings(task: Union[Task, Type[Task]]) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """({setting: value} that snippets.py says, or else the task, {setting: that file})."""
    defaults, origin = {}, {}
    for place, file in ((task, task.name + '.py'), (snippets, 'snippets.py')):
        for name in (field.name for field in dataclasses.fields(RunSettings) if hasattr(place, field.name)):
            defaults[name], origin[name] = getattr(place, name), file
    return defaults, origin


def parse_flags(task: Type[Task], argv: Optional[List[str]] = None) -> RunSettings:
    """The settings of a run: flags over snippets.py and the task's defaults."""
    parser = Parser(
        prog=task.name + '.py', allow_abbrev=False,
        description=(sys.modules[task.__module__].__doc__ or '').strip(),
        formatter_class=HelpFormatter)
    defaults, origin = default_settings(task)
    given = RunSettings.given(argv)
    method = given.get('method')
    if method:
        defaults.update(prompt_size=0, ffn_prompt_size=0)
        defaults['learning_rate'] = methods.METHODS[method].rate or defaults['learning_rate']
    settings = RunSettings.parse(parser, argv, defaults, origin)
    methods.check_given(given, method)
    if settings.seeds and len(set(settings.seeds)) < len(settings.seeds):
        parser.error('argument --seeds: one is given twice')
    return settings


class Run:
    """A task's run from its files to its submission."""

    def __init__(self, task_class: Type[Task], settings: RunSettings):
        self.began = time.time()
        precision.use(settings.precision)
        self.folder = tasks.find_data(task_class.name, settings.data_path,
                                      settings.few_shot_split and task_class.few_clue)
        self.paths = snippets.find_backbone(settings)
        self.settings = settings = snippets.resolve_method(settings, self.paths)
        self.tokenizer, self.keep_tokens = snippets.load_tokenizer(self.paths['dict_path'])
        from fltuning import checkpoints
        checkpoints.check_backbone(maxlen=settings.maxlen,
                                   layers_to_transform=settings.layers_to_transform, **self.paths)
        self.task = task_class(self.tokenizer, settings.maxlen)
        self.data = RunData(self.task, self.folder, settings)
        self.batches = -(-len(self.data.train) // settings.batch_size)  # in an epoch
        self.steps = self.batches * settings.epochs  # with early stopping there may be fewer
        self.warmup = count_of(settings.warmup, self.steps)
        if self.warmup >= self.steps:
            raise UserError('warmup: expected fewer than the %d batches of the run, got %s'
                            % (self.steps, settings.warmup))
        self.history = History(self.task.metric, self.batches, settings.select, settings.early_stopping)
        self.events = settings.tensorboard and os.path.join(settings.tensorboard, self.task.name)
        self.written: List[str] = []

    def run(self) -> None:
        """All that is written, while no other run of this task writes there."""
        for name in ('weights', 'results'):
            make_folder(os.path.join(self.settings.output_dir, name), 'output_dir')
        if self.events:
            make_folder(self.events, 'tensorboard')
        with locked(self.path('weights', self.task.name + '.lock')):
            self.build()
            try:
                self.train()
            except NotFinite as error:
                self.record['stopped'] = str(error)
                if self.history.entries:
                    print('stopped; weights and predictions are those of the %s epoch before'
                          % self.settings.select)
                    self.finish()
                raise NotFinite('%s; try a lower --learning_rate than %g'
                                % (error, self.settings.learning_rate))
            self.finish()

    def path(self, folder: str, name: str) -> str:
        return os.path.join(self.settings.output_dir, folder, name)

    def build(self) -> None:
        """The model, its steps, and what its weights and this run belong to."""
        from fltuning import compat
        from fltuning.threads import count_threads
        from fltuning.training import Trainer
        settings, task = self.settings, self.task
        self.trainer = trainer = Trainer(
            lambda: snippets.build_model(task, settings, self.paths, self.keep_tokens),
            lambda: snippets.get_optimizer(settings.learning_rate, self.warmup, self.steps,
                                           exclude_from_weight_decay=methods.NOT_DECAYED,
                                           grad_accum_steps=settings.grad_accum_steps),
            task.head(), settings.seed, settings.threads)
        self.backbone = trainer.fingerprint(self.tokenizer._token_dict)
        self.frozen = trainer.frozen_sha256(self.tokenizer._token_dict)
        self.belongs_to = deltas.identity(task, trainer.transformer, self.backbone)
        data = {name: file_digest(os.path.join(self.folder, name))
                for name in sorted(os.listdir(self.folder)) if name.endswith('.json')}
        dropout = [trainer.transformer.dropout_rate, trainer.transformer.attention_dropout_rate]
        # All that the numbers of a run depend on.
        self.state_belongs_to = dict(
            settings.decisive(), task=task.name, stack=compat.STACK, backbone_sha256=self.backbone,
            data_sha256=data, backbone_dropout=dropout)
        trained, parameters = trainer.count()
        method = methods.name_of(settings.method, settings.prompt_size, settings.ffn_prompt_size)
        sizes = [settings.size, settings.prompt_size, settings.ffn_prompt_size]
        self.record = {
            'task': task.name, 'method': method, 'size': methods.size_of(method, *sizes),
            'settings': dict(settings.record(), **self.paths),
            'seed': settings.seed, 'stack': compat.STACK, 'threads': count_threads(settings.threads),
            'versions': provenance.versions(),
            'git_commit': provenance.git_commit(), 'backbone_kind': trainer.transformer.backbone,
            'backbone_sha256': self.backbone, 'data_sha256': data,
            'samples': {'train': len(self.data.train), 'dev': len(self.data.dev)},
            'trained_parameters': trained, 'parameters': {'trained': trained, 'all': parameters},
            'history': self.history.entries}
        if self.data.drawn:
            self.record['few_shot'] = self.data.drawn
        self.seconds, self.train_seconds = 0.0, 0.0  # of the parts of the run before this process
        self.place, self.results, self.last_results = Place(), None, None

    def predict(self, encoded: list, description: str) -> list:
        return self.trainer.predict(self.task, encoded, description, padded=self.settings.padded)

    def train(self) -> None:
        """The epochs that are left. The selected weights are kept, and the state of the last evaluation."""
        settings, task, history = self.settings, self.task, self.history
        self.state_path = self.path('weights', task.name + '.state')
        if settings.resume:
            self.load_state()
        # Not before a state of other settings was refused.
        run_record.keep_former(
            self.path('results', task.name + '_run.json'), dict(
                settings.decisive(), data_sha256=self.record['data_sha256'], backbone_sha256=self.backbone),
            settings.of_before())
        history.begin(self.path('results', task.name + '_history.jsonl'), self.events)
        self.since = time.time()  # the end of the last evaluation
        for epoch in range(history.step // self.batches, settings.epochs):
            if history.is_over:
                break
            self.train_epoch(epoch)
        history.close()
        if history.is_over:
            print('ended early: %d times in a row without a better dev %s' % (
                settings.early_stopping, task.metric))
        self.tell_left_out()
        if self.trainer.frozen_sha256(self.tokenizer._token_dict) != self.frozen:
            raise AssertionError('the frozen weights changed in training')

    def tell_left_out(self) -> None:
        """Say how many batches the updates lack: of float16, a whole run may be left out."""
        used, done = self.trainer.count_used(), self.history.step
        if used < done:
            waiting = used % self.settings.grad_accum_steps
            print('%d of %d batches were left out, since their gradients overflow float16%s; bfloat16 has a '
                  'wider range' % (done - used, done, ', and %d make no whole update' % waiting
                                   if waiting else ''))

    def train_epoch(self, epoch: int) -> None:
        """One epoch, or its rest, and its evaluations."""
        before, every = epoch * self.batches, self.settings.eval_every

        def pause(place):
            if (before + place.batches) % every or not place.samples:
                return False  # in float16 all steps so far may have been left out
            self.evaluate(before + place.batches, place.loss, place)
            return self.history.is_over

        options = dict(begin=self.place, pause=pause) if every else {}
        loss = self.trainer.train_epoch(self.task, self.data.train, self.settings, epoch, **options)
        if not self.history.is_over:
            self.evaluate(before + self.batches, loss, Place())

    def evaluate(self, step: int, loss: float, place: Place) -> None:
        """Score dev, keep the weights if they are the best, and the state; `place` is where that goes on."""
        history, started = self.history, time.time()
        self.train_seconds += started - self.since
        self.place = place
        state = self.get_state((step - 1) // self.batches)
        results = self.predict(self.data.dev_encoded, 'dev')
        scores, self.last_results = self.task.score(self.data.dev, results), results
        entry = history.add(step, loss, scores, time.time() - self.since)
        if history.selected is entry:
            self.values, self.results = self.trainer.get_values(), results
            self.save_weights()
        self.save_state(state)
        history.write()
        print('%s: loss %.4f, dev %s, best %.4f' % (
            history.name(entry), loss, ', '.join('%s %.4f' % item for item in scores.items()),
            history.best['dev'][self.task.metric]))
        self.since = time.time()

    def save_weights(self) -> None:
        deltas.save_delta(self.path('weights', self.task.name + '.weights'), self.values, dict(
            self.belongs_to, seed=self.settings.seed, versions=self.record['versions'],
            **summary(self.history.selected)))

    def get_state(self, epoch: int) -> Dict[str, Any]:
        """Of the trainer, all of it finite. Raises NotFinite, naming the epoch."""
        try:
            return self.trainer.get_state()
        except NotFinite as error:
            place = 'step %d' % self.place.batches if self.place.batches else 'its last step'
            raise NotFinite('epoch %d, %s: %s' % (epoch + 1, place, error))

    def save_state(self, values: Dict[str, Any]) -> None:
        run_state.save(self.state_path, values, self.values, dict(
            self.state_belongs_to, best=summary(self.history.selected), history=self.history.entries,
            place=list(self.place), train_seconds=self.train_seconds,
            seconds=self.seconds + time.time() - self.began))

    def load_state(self) -> None:
        """Go on after the last evaluation of an earlier run; without its state, from the start."""
        path, history = self.state_path, self.history
        if not os.path.exists(path):
            print('%s: no state of an earlier run: starting anew' % path)
            return
        self.values, theirs = run_state.load(
            path, self.trainer, self.state_belongs_to, self.settings.of_before(), lambda: self.frozen)
        history.restore(theirs['history'])
        self.place = Place(*theirs['place'])
        self.seconds, self.train_seconds = theirs['seconds'], theirs['train_seconds']
        self.save_weights()  # a run that was stopped may have left better ones, of an epoch to come
        print('%s: going on after %s' % (path, history.name(history.entries[-1], self.settings.epochs)))

    def finish(self) -> None:
        """Predictions of the selected weights, and the record of the run."""
        task, history, record = self.task, self.history, self.record
        selected = summary(history.selected)
        if self.last_results is None and 'stopped' not in record:  # its last evaluation was before it was resumed
            self.last_results = self.predict(self.data.dev_encoded, 'dev')
            self.results = self.last_results if history.selected is history.entries[-1] else None
        self.trainer.set_values(self.values)
        self.written.append(self.path('weights', task.name + '.weights'))
        if self.results is None:
            self.results = self.predict(self.data.dev_encoded, 'dev')
        points = {
            name: run_record.pack_points(task.points(self.data.dev, results), entry['dev'][task.metric])
            for name, results, entry in [('last', self.last_results, history.entries[-1]),
                                         ('selected', self.results, history.selected)] if results is not None}
        record['dev_points'] = {name: packed for name, packed in points.items() if packed}
        errors = task.errors(self.data.dev, self.results)
        if errors is not None:
            self.write(task.name + '_dev_errors.tsv', ''.join(
                '\t'.join(' '.join(str(cell).split()) for cell in row) + '\n'
                for row in [('text', 'gold', 'predicted', 'probability')] + list(errors)))
        for name, samples in self.data.tests.items():
            results = self.predict(list(map(task.encode, samples)), name)
            self.write(name, task.submission(samples, results))
        if self.data.public:
            results = self.predict(list(map(task.encode, self.data.public)), PUBLIC_TEST)
            record['test_public'] = task.score(self.data.public, results)
            print('%s: %s' % (PUBLIC_TEST, ', '.join(
                '%s %.4f' % item for item in record['test_public'].items())))
        record.update(
            best=summary(history.best), selected=selected, steps=history.step,
            sha256=run_record.checksums(self.written, self.settings.output_dir),
            seconds=round(self.seconds + time.time() - self.began, 2),
            train_seconds=round(self.train_seconds, 2), peak_memory_mb=provenance.peak_memory())
        self.write(task.name + '_run.json', to_json(record, indent=2) + '\n')
        trained, parameters = [record['parameters'][name] for name in ('trained', 'all')]
        print('%s: %s dev %s %.4f in %s; trained %s of %s parameters (%.2f %%); wrote %s' % (
            task.name, self.settings.select, task.metric, selected['dev'][task.metric],
            history.name(selected), format(trained, ','), format(parameters, ','),
            100.0 * trained / parameters, ', '.join(self.written)))

    def write(self, name: str, text: str) -> None:
        self.written.append(self.path('results', name))
        write_text(self.written[-1], text)


def run(task_class: Type[Task], argv: Optional[List[str]] = None) -> Dict[str, Any]:
    """Train a task, keep the selected weights, predict its test files. Returns the record of the run.

    With several seeds a run each; returns what `run_record.summarize` says of them.
    """
    settings = parse_flags(task_class, argv)
    if settings.seeds:
        return run_seeds(task_class, settings)
    job = Run(task_class, settings)
    job.run()
    return job.record


def run_seeds(task_class: Type[Task], settings: RunSettings) -> Dict[str, Any]:
    """A run with each seed, in a folder of its own; their scores together in results/TASK_seeds.json."""
    records, stopped = [], []
    for seed in settings.seeds or []:
        print('seed %d:' % seed)
        job = Run(task_class, dataclasses.replace(
            settings, seed=seed, seeds=None, output_dir=run_record.seed_folder(settings.output_dir, seed),
            tensorboard=settings.tensorboard and run_record.seed_folder(settings.tensorboard, seed)))
        try:
            job.run()
            records.append(job.record)
        except NotFinite as error:  # another seed may go well
            print('seed %d: %s' % (seed, error), file=sys.stderr)
            stopped.append(seed)
            if len(stopped) == len(settings.seeds or []):
                raise
        del job  # and its model, before the next is built
    found = run_record.summarize(records)
    path = os.path.join(settings.output_dir, 'results', task_class.name + '_seeds.json')
    write_json(path, found)
    print('%s: seeds %s: dev %s; wrote %s' % (task_class.name, ', '.join(map(str, found['seeds'])),
                                             run_record.tell(found['dev']), path))
    if stopped:
        raise UserError('seeds %s: stopped, and not among them' % ', '.join(map(str, stopped)))
    return found


def main(task_class: Type[Task]) -> None:
    """`python TASK.py`."""
    run_tool(task_class.name + '.py', lambda: run(task_class) and None)
