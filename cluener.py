"""CLUENER: names of ten types in a text."""
from tasks import EntityRecognition
from train import main


class CLUENER(EntityRecognition):
    name = 'cluener'
    labels = ['address', 'book', 'company', 'game', 'government', 'movie', 'name', 'organization',
              'position', 'scene']
    test_files = {'test.json': 'cluener_predict.json'}
    maxlen, batch_size, epochs, learning_rate = 256, 32, 30, 1e-4

    def parse(self, records, labelled):
        return [self.Text(None if labelled else self.get_id(record), record.get_text('text'),
                          self.entities(record) if labelled else None)
                for record in records]

    def entities(self, record):
        """{(type, start, end)} of a label {type: {name: [[start, end], ...]}}, end included."""
        label, text, found = record.get_record('label'), record['text'], set()
        for kind in label:
            if kind not in self.labels:
                raise label.error(kind, 'one of the types ' + ', '.join(self.labels))
            names = label.get_record(kind)
            for name in names:
                for span in names.get_list(name, list):
                    if (len(span) != 2 or not all(type(place) is int for place in span)
                            or not 0 <= span[0] <= span[1] < len(text)
                            or text[span[0]:span[1] + 1] != name):
                        raise names.error(name, '[start, end] where the text says so')
                    found.add((kind, span[0], span[1]))
        return found


if __name__ == '__main__':
    main(CLUENER)
