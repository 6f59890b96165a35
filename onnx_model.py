"""A tuned task model as ONNX, by tf2onnx, checked with onnxruntime."""
import argparse
import os
import tempfile

import compat
import numpy as np
import tensorflow as tf
from bert4keras.backend import K

import deltas
import export
import train
from data import replacing
from errors import UserError

OPSET = 15


def build(exported):
    """The task's Keras model over the merged backbone with its whole vocabulary."""
    # TensorFlow 1.15 takes the addition of a bias that is all 0 out of the graph, and with it a shape
    # that others ask for.
    variables = {name: value if value.any() or value.ndim > 1 else value + np.float32(1e-30)
                 for name, value in exported.variables.items()}
    with tempfile.TemporaryDirectory() as folder:
        export.write_backbone(exported._replace(variables=variables), folder)
        settings = argparse.Namespace(
            backbone=exported.kind, prompt_size=exported.belongs_to['prompt_size'],
            ffn_prompt_size=0, padded=True,
            layers_to_transform=exported.belongs_to['layers_to_transform'])
        paths = {'config_path': os.path.join(folder, 'bert_config.json'),
                 'checkpoint_path': os.path.join(folder, 'bert_model.ckpt')}
        model, _ = train.build_model(exported.task, settings, paths, None)
    pairs = deltas.named_weights(model)
    deltas.set_values(pairs, {name: exported.layers[name.split('/')[0]][int(name.split('/')[1])]
                              for name, _ in pairs})
    return model


def function(model):
    """f(token ids, ...) of int64 tensors; segment ids are 0."""
    def outputs(*inputs):
        inputs = [tf.cast(x, 'float32') for x in inputs]
        return model([inputs[0], tf.zeros_like(inputs[0])] + inputs[1:])
    return outputs


def frozen_graph(model, names, output):
    """(GraphDef, f(arrays) -> array) of a model with its weights as constants."""
    outputs = function(model)
    if compat.TF2:
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
        signature = [tf.TensorSpec([None, None], 'int64', name=name) for name in names]
        concrete = tf.function(lambda *x: tf.identity(outputs(*x), output),
                               input_signature=signature).get_concrete_function()
        frozen = convert_variables_to_constants_v2(concrete)
        return frozen.graph.as_graph_def(), lambda arrays: concrete(*map(tf.constant, arrays)).numpy()
    inputs = [tf.placeholder('int64', [None, None], name) for name in names]
    result = tf.identity(outputs(*inputs), output)
    session = K.get_session()
    graph = tf.graph_util.convert_variables_to_constants(
        session, session.graph.as_graph_def(), [output])
    return graph, lambda arrays: session.run(result, dict(zip(inputs, arrays)))


def write_model(exported, path):
    """Write an ONNX model; returns its ([input, ...], [output]) by name.

    Inputs: input_ids (batch, length), int64, 0 for padding, and for reading comprehension
    passage_mask, likewise, 1 at [CLS] and in the passage. Output: `probabilities` of the classes, or
    `scores`, as the task's kind has them in tasks.py.
    Raises UserError if onnxruntime does not give what the model gives, to 1e-4.
    """
    try:
        import onnxruntime  # noqa: F401
        import tf2onnx
    except ImportError as error:
        raise UserError('%s: expected tf2onnx and onnxruntime, which `scripts/setup.sh %s onnx` adds'
                        % (error, compat.STACK))
    K.clear_session()
    K.set_learning_phase(0)
    model = build(exported)
    names = ['input_ids', 'passage_mask'][:len(model.inputs) - 1]
    output = 'probabilities' if isinstance(exported.task, export.Classification) else 'scores'
    graph, run = frozen_graph(model, names, output)
    proto, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=[name + ':0' for name in names], output_names=[output + ':0'], opset=OPSET)
    rename(proto)
    with replacing(path) as temporary:
        with open(temporary, 'wb') as writer:
            writer.write(proto.SerializeToString())
        difference = check(temporary, run, names, len(exported.variables[
            'bert/embeddings/word_embeddings']))
        if not difference < 1e-4:
            raise UserError('%s: onnxruntime differs by %g from TensorFlow' % (path, difference))
    return names, [output]


def rename(proto):
    """Names without TensorFlow's ':0'."""
    for node in proto.graph.node:
        for fields in (node.input, node.output):
            for i, name in enumerate(fields):
                fields[i] = name[:-2] if name.endswith(':0') else name
    for values in (proto.graph.input, proto.graph.output, proto.graph.initializer):
        for value in values:
            value.name = value.name[:-2] if value.name.endswith(':0') else value.name


def check(path, run, names, vocab_size):
    """The largest difference between onnxruntime and TensorFlow on a padded batch of random ids."""
    import onnxruntime
    random = np.random.RandomState(0)
    ids = random.randint(1, vocab_size, (3, 17))
    for row, length in zip(ids, (17, 9, 4)):
        row[length:] = 0
    arrays = [ids.astype('int64'), (ids > 0).astype('int64')][:len(names)]
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    ours, theirs = run(arrays), session.run(None, dict(zip(names, arrays)))[0]
    finite = np.isfinite(ours)  # a span score is -inf where no span can be
    if (finite != np.isfinite(theirs)).any():
        return float('inf')
    return float(np.abs(ours[finite] - theirs[finite]).max())
