"""A tuned task model as ONNX, by tf2onnx, checked with onnxruntime."""
import os
import tempfile

from fltuning import compat  # before TensorFlow
import numpy as np
import tensorflow as tf
from bert4keras.backend import K

import snippets
from fltuning import methods, weights
from fltuning.errors import UserError
from fltuning.files import replacing, write_json
from fltuning.graphs import Graph
from fltuning.extras import import_extra
from tools.merged import write_backbone
from tools.tokenizer_files import ONNX, TEXT, write_readme, write_tokenizer

OPSET = 15


def to_onnx(exported, folder):
    """model.onnx, the whole task model, with vocab.txt, tokenizer.json and task.json."""
    inputs, outputs, axes = write_model(exported, os.path.join(folder, 'model.onnx'))
    write_tokenizer(exported.dict_path, folder)
    write_json(os.path.join(folder, 'task.json'), dict(
        {name: exported.belongs_to[name] for name in ('task', 'labels', 'maxlen')},
        inputs=inputs, outputs=outputs, axes=axes, text=TEXT))
    write_readme(exported, folder, ONNX)


def build(exported):
    """The task's Keras model over the merged backbone with its whole vocabulary."""
    # TensorFlow 1.15 takes the addition of a bias that is all 0 out of the graph, and with it a shape
    # that others ask for.
    variables = {name: value if value.any() or value.ndim > 1 else value + np.float32(1e-30)
                 for name, value in exported.variables.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_backbone(exported._replace(variables=variables), folder)
        method, size = methods.of_delta('', exported.belongs_to)
        prompts = dict(method='prompt_tuning', size=size) if method in methods.AT_INPUT else {}
        settings = snippets.ModelSettings(
            backbone=exported.kind, prompt_size=exported.belongs_to['prompt_size'], padded=True,
            layers_to_transform=exported.belongs_to['layers_to_transform'], **prompts)
        paths = {'config_path': os.path.join(folder, 'bert_config.json'),
                 'checkpoint_path': os.path.join(folder, 'bert_model.ckpt')}
        model, _ = snippets.build_model(exported.task, settings, paths, None)
    pairs = weights.named_weights(model)
    weights.set_values(pairs, {name: exported.layers[name.split('/')[0]][int(name.split('/')[1])]
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
    """Write an ONNX model; returns its ([input, ...], [output], {either: [axis, ...]}) by name.

    Inputs: input_ids (batch, length), int64, 0 for padding, and for reading comprehension
    passage_mask, likewise, 1 at [CLS] and in the passage. Output: `probabilities` of the classes, or
    `scores`, as the task's kind has them.
    Raises UserError if onnxruntime does not give what the model gives, to 1e-4, or that is not a number.
    """
    import_extra('onnxruntime', 'onnx')
    tf2onnx = import_extra('tf2onnx', 'onnx')
    output = exported.task.output_name
    with Graph().build():
        if not compat.TF2:
            K.set_learning_phase(0)  # of this graph alone
        model = build(exported)
        names = ['input_ids', 'passage_mask'][:len(model.inputs) - 1]
        graph, run = frozen_graph(model, names, output)
        proto, _ = tf2onnx.convert.from_graph_def(
            graph, input_names=[name + ':0' for name in names], output_names=[output + ':0'],
            opset=OPSET)
        rename(proto)
        axes = name_axes(proto)
        with replacing(path) as temporary:
            with open(temporary, 'wb') as writer:
                writer.write(proto.SerializeToString())
            difference = check(path, temporary, run, names, len(exported.variables[
                'bert/embeddings/word_embeddings']))
            if not difference < 1e-4:
                raise UserError('%s: onnxruntime differs by %g from TensorFlow' % (path, difference))
    return names, [output], axes


def name_axes(proto):
    """{input or output: [name of an axis, or its size]}; sets the names, and takes out what is not used.

    An output's axes that tf2onnx does not know have the size of the text.
    """
    proto.doc_string = proto.graph.doc_string = ''
    axes = {}
    for values in (proto.graph.input, proto.graph.output):
        for value in values:
            dimensions = value.type.tensor_type.shape.dim
            for i, dimension in enumerate(dimensions):
                if not dimension.dim_value:
                    dimension.dim_param = 'length' if i else 'batch'
            axes[value.name] = [dimension.dim_value or dimension.dim_param for dimension in dimensions]
    return axes


def rename(proto):
    """Names without TensorFlow's ':0'."""
    for node in proto.graph.node:
        for fields in (node.input, node.output):
            for i, name in enumerate(fields):
                fields[i] = name[:-2] if name.endswith(':0') else name
    for values in (proto.graph.input, proto.graph.output, proto.graph.initializer):
        for value in values:
            value.name = value.name[:-2] if value.name.endswith(':0') else value.name


def check(path, written, run, names, vocab_size):
    """The largest difference between onnxruntime and TensorFlow on a padded batch of random ids.

    path: of the export, for errors; written: where it is now. Raises UserError.
    """
    import onnxruntime
    random = np.random.RandomState(0)
    ids = random.randint(1, vocab_size, (3, 17))
    for row, length in zip(ids, (17, 9, 4)):
        row[length:] = 0
    arrays = [ids.astype('int64'), (ids > 0).astype('int64')][:len(names)]
    session = onnxruntime.InferenceSession(written, providers=['CPUExecutionProvider'])
    ours, theirs = run(arrays), session.run(None, dict(zip(names, arrays)))[0]
    if not (ours < np.inf).all():  # NaN is not; there would be nothing to compare
        raise UserError("%s: the model's output is not a number, with its weights or those of the backbone" % path)
    finite = np.isfinite(ours)  # a span score is -inf where no span can be
    if (finite != np.isfinite(theirs)).any():
        return float('inf')
    return float(np.abs(ours[finite] - theirs[finite]).max())
