"""TNEWS: which of 15 sections does a headline belong to?"""
from fltuning.classification import Classification
from fltuning.task import Published
from train import main


class TNEWS(Classification):
    name = 'tnews'
    labels = [str(label) for label in range(100, 117) if label not in (105, 111)]
    test_files = {'test1.0.json': 'tnews10_predict.json', 'test.json': 'tnews11_predict.json'}
    archive = 'tnews_public.zip'
    published = {
        'train.json': Published(53360, '25c021725309a3330736380a230850fd'),
        'dev.json': Published(10000, 'f0660a3339a32e764075c801b42ece3c'),
        'test1.0.json': Published(10000, '2d1557c7548c72d5a84c47bbbd3a4e85'),
        'test.json': Published(10000, '045a6c4f59bf1a066c4a0d7afe6cd2b4'),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 5e-5
    text_fields = ['sentence']
    few_clue = 'tnews'


if __name__ == '__main__':
    main(TNEWS)
