"""Stands in for scripts/run in tests of grids: as fast as it is told, and its numbers are made up.

Its epochs are kept as those of a run are, and where STAND_IN_LOG names a file, a line says what each process did:
`start`, `epoch N`, `end`, with the name of the cell and the process ids of itself and its parent.
"""
import json
import os
import random
import sys
import time


def main(argv):
    task, flags = argv[0], {}
    for text in argv[1:]:
        if text.startswith('--'):
            name = text[2:]
            flags[name] = True
        else:
            flags[name] = text
    folder = flags['output_dir']
    cell = os.path.basename(folder)

    def log(text):
        with open(os.environ['STAND_IN_LOG'], 'a') as writer:  # one write a line: several processes append
            writer.write('%s %s %d %d\n' % (text, cell, os.getpid(), os.getppid()))

    rate = float(flags.get('learning_rate', '1e-4'))
    if rate > 1:
        print('x.py: error: epoch 1: the loss is nan; try a lower --learning_rate than %g' % rate, file=sys.stderr)
        return 2
    if flags.get('seed') == os.environ.get('STAND_IN_FAILS'):
        print('x.py: error: data_path: something is wrong', file=sys.stderr)
        return 2
    state, results = [os.path.join(folder, name) for name in ('state.json', 'results')]
    log('start')
    history = []
    if os.path.exists(state):
        with open(state) as reader:
            history = json.load(reader)
    dice = random.Random('%s %s' % (task, flags['seed']))
    base = 0.5 + 0.2 * ('fl' in flags.get('method', '') or flags.get('ffn_prompt_size', '0') != '0')
    base -= 100 * abs(rate - 2e-3)
    for epoch in range(len(history), int(flags.get('epochs', 3))):
        time.sleep(float(os.environ.get('STAND_IN_SECONDS', 0)))
        history.append({'epoch': epoch + 1, 'step': 10 * (epoch + 1), 'loss': 1.0,
                        'dev': {'accuracy': base + 0.02 * epoch + 0.01 * dice.random()}})
        with open(state + '.tmp', 'w') as writer:
            json.dump(history, writer)
        os.replace(state + '.tmp', state)
        log('epoch %d' % (epoch + 1))
    os.makedirs(results, exist_ok=True)
    record = {'task': task, 'settings': {'batch_size': 4, 'data_path': flags['data_path']}, 'history': history,
              'best': history[-1], 'samples': {'train': 40, 'dev': 20}, 'seconds': 1.0, 'peak_memory_mb': 100,
              'parameters': {'trained': 30, 'all': 1000}}
    path = os.path.join(results, task + '_run.json')
    with open(path + '.tmp', 'w') as writer:
        json.dump(record, writer)
    os.replace(path + '.tmp', path)
    log('end')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
