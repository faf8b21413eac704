"""Plain Keras models and graphs in ONNX, as tf2onnx converts them, with weights as they are.

A converter folds what is constant, and gives it another layout and another name. So the weights of
layers are inputs of what is converted, and become initializers afterwards: under the names of their
variables, in the layout that they have in TensorFlow, bit for bit. The graph turns them where ONNX
has another layout; runtimes do that once, when they load it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper
from tf2onnx import convert

from ..errors import InvalidArgumentError, UnimplementedError
from ..onnx import mark
from . import graph, keras, kernels

_v1 = tf.compat.v1

# An operation that changes nothing and that nobody folds; in a domain of its own the converter lets
# it be. All that it keeps of it is the name.
_MARK = "CheckNumerics"
_MARK_NAME = "nni_compression_mark_"
_DOMAIN = "nni.compression"


def from_keras(
    model: Any, input_shape: Optional[Sequence[Optional[int]]], encoded: Collection[tuple[str, str]]
) -> Any:
    """A `ModelProto` of a Keras model in inference, with its weights compressed.

    Args:
        input_shape: of its only input; None: as the model says.
        encoded: (name of a weight, "output" or "input") of what gets a mark, for
            `nni_compression.onnx.apply`.
    """
    inputs = _inputs_of(model, input_shape)
    found = keras.find_weights(model)
    known = {id(variable): name for name, variable in keras.variables(model).items()}
    names = [known[id(weight.dense)] for weight in found]
    marks = _Marks()
    values, specs = {}, list(inputs.values())
    for name, weight in zip(names, found):
        state = kernels.state_of(weight.owner, weight.attribute)
        dense = _checked(weight.numpy(), name)
        values[name] = dense if state is None else state.compressed(dense)
        specs.append(tf.TensorSpec(dense.shape, dense.dtype))
        for target in weight.targets:
            if (weight.name, target) in encoded:
                marks.texts[id(weight.owner), target] = mark(name, target)

    def run(*tensors: Any) -> dict[str, Any]:
        given = list(tensors[: len(inputs)])
        packed = given[0] if len(given) == 1 else tf.nest.pack_sequence_as(model.input, given)
        marks.graph = _v1.get_default_graph()
        with _reading(found, tensors[len(inputs) :], marks):
            return _named(tf.nest.flatten(model(packed, training=False)))

    arguments = [f"argument_{i}" for i in range(len(specs))]
    converted, _ = convert.from_function(
        tf.function(run),
        [tf.TensorSpec(s.shape, s.dtype, name) for s, name in zip(specs, arguments)],
        custom_op_handlers={_MARK: (_keep_mark, [])},
    )
    if marks.misplaced:
        raise UnimplementedError(
            f"onnx_path: the {marks.misplaced[0]} comes up inside of a loop or a condition, where "
            "nothing can be quantized in ONNX"
        )
    renamed = dict(zip(arguments, [*inputs, *names]))
    return _finished(converted, renamed, values, list(marks.texts.values()))


def from_graph(
    whole: graph.CompressedGraph, input_shape: Optional[Sequence[Optional[int]]], outputs: Any
) -> Any:
    """A `ModelProto` of what `outputs` need of a graph, with the variables of the session that the
    graph is used with, compressed ones as they are compressed.

    Args:
        input_shape: of its only placeholder; None: as the placeholders say.
        outputs: tensors of the graph, or names of tensors or operations; one, or several.
    """
    tensors = _outputs_of(whole.graph, outputs)
    definition = whole.graph.as_graph_def()
    nodes = {node.name: node for node in definition.node}
    weights = {name: w for name, w in whole.weights.items() if w.read is not None}
    names, values = {}, {}
    dense = whole.run({name: weight.read for name, weight in weights.items()})
    for number, (name, weight) in enumerate(weights.items()):
        values[name] = weight.state.compressed(_checked(dense[name], name))
        argument = _add_placeholder(definition, f"nni_compression/{number}", values[name])
        names[f"{argument}:0"] = name
        for place, read in enumerate(weight.state.reads.values()):
            source = _add_cast(definition, f"{argument}/{place}", argument, weight, read)
            for operation in read.operations:
                nodes[operation.name].input[graph.WEIGHT_INPUT] = source
    _settle_defaults(definition)
    wanted = [tensor.op.name for tensor in tensors]
    frozen = whole.within(
        lambda session: _v1.graph_util.convert_variables_to_constants(session, definition, wanted)
    )
    inputs = [n for n in frozen.node if n.op == "Placeholder" and f"{n.name}:0" not in names]
    if input_shape is not None:
        _check_only(len(inputs), input_shape, "placeholders")
        inputs[0].attr["shape"].shape.CopyFrom(tf.TensorShape(input_shape).as_proto())
    names.update({f"{node.name}:0": node.name for node in inputs})
    kept = [f"{n.name}:0" for n in frozen.node if n.op == "Placeholder"]
    converted, _ = convert.from_graph_def(
        frozen, input_names=kept, output_names=[tensor.name for tensor in tensors]
    )
    names.update({tensor.name: tensor.name.removesuffix(":0") for tensor in tensors})
    return _finished(converted, names, values, [])


def _inputs_of(model: Any, shape: Optional[Sequence[Optional[int]]]) -> dict[str, tf.TensorSpec]:
    """What a Keras model is given, by name."""
    known = getattr(model, "inputs", None) or []
    found = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in known}
    if shape is None and not found:
        raise InvalidArgumentError(
            "onnx_path needs input_shape, the shape of the model's input: the model does not say it"
        )
    if shape is None:
        return found
    if not found:
        return {"input": tf.TensorSpec(shape, tf.float32)}
    _check_only(len(found), shape, "inputs")
    ((name, spec),) = found.items()
    if not spec.shape.is_compatible_with(shape):
        raise InvalidArgumentError(
            f"input_shape is {tuple(shape)}; the model's input has shape {spec.shape}"
        )
    return {name: tf.TensorSpec(shape, spec.dtype)}


def _check_only(number: int, shape: Sequence[Optional[int]], what: str) -> None:
    if number != 1:
        raise InvalidArgumentError(
            f"input_shape is {tuple(shape)}; with {number} {what} it must be None"
        )


def _named(tensors: Sequence[Any]) -> dict[str, Any]:
    if len(tensors) == 1:
        return {"output": tensors[0]}
    return {f"output_{i}": tensor for i, tensor in enumerate(tensors)}


def _checked(array: Any, name: str) -> Any:
    if array.dtype == tf.bfloat16.as_numpy_dtype:
        raise UnimplementedError(f"weight {name!r} is bfloat16, which numpy lacks")
    return array


class _Marks:
    """Where outputs and inputs of layers are, in a model that is traced.

    Attributes:
        texts: of each mark: (id of the layer, "output" or "input") -> how it is known in ONNX.
        graph: that is traced.
        misplaced: texts of those that came up in a graph inside of it.
    """

    def __init__(self) -> None:
        self.texts: dict[tuple[int, str], str] = {}
        self.graph: Any = None
        self.misplaced: list[str] = []

    def of(self, layer: Any) -> dict[str, Callable[[Any], Any]]:
        """What puts the marks of a layer."""
        return {
            target: functools.partial(self._put, number, text)
            for number, ((owner, target), text) in enumerate(self.texts.items())
            if owner == id(layer)
        }

    def _put(self, number: int, text: str, value: Any) -> Any:
        if not tf.is_tensor(value) or not value.dtype.is_floating:
            return value  # it is not quantized either
        if _v1.get_default_graph() is not self.graph:
            self.misplaced.append(text)
            return value
        wide = tf.cast(value, tf.float32)  # the type that rounding is done in
        marked = tf.raw_ops.CheckNumerics(tensor=wide, message="", name=f"{_MARK_NAME}{number}")
        return tf.cast(marked, value.dtype)


@contextlib.contextmanager
def _reading(
    weights: Sequence[keras.TrackedWeight], tensors: Sequence[Any], marks: _Marks
) -> Iterator[None]:
    """Inside, layers have these tensors as their weights, and put the marks."""
    replacements, installed = {}, []
    try:
        for weight, tensor in zip(weights, tensors):
            if kernels.state_of(weight.owner, weight.attribute) is None:
                state = kernels.WeightState(tensor.shape, tensor.dtype.as_numpy_dtype)
                kernels.install(weight.owner, weight.attribute, state)
                installed.append(weight)
            replacements[weight.state] = tensor
        with kernels.replacing(replacements, marks.of):
            yield
    finally:
        for weight in installed:
            kernels.uninstall(weight.owner, weight.attribute)


def _keep_mark(context: Any, node: Any, name: str, arguments: Any) -> Any:
    node.domain = _DOMAIN
    return node


def _outputs_of(whole: Any, outputs: Any) -> list[Any]:
    if outputs is None:
        raise InvalidArgumentError(
            "onnx_path needs outputs, the tensors of the graph that the ONNX model gives, or their "
            "names"
        )
    single = isinstance(outputs, (str, tf.Tensor, tf.Operation))
    found = []
    for output in [outputs] if single else outputs:
        try:
            element = whole.as_graph_element(output)
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidArgumentError(f"outputs has {output!r}: {error}") from error
        found.append(element.outputs[0] if isinstance(element, tf.Operation) else element)
    return found


def _add_placeholder(definition: Any, name: str, value: Any) -> str:
    node = definition.node.add(name=name, op="Placeholder")
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    return name


def _add_cast(
    definition: Any, name: str, source: str, weight: graph.GraphWeight, read: graph.Read
) -> str:
    """The source in the type that operations read the weight in."""
    kinds = tf.as_dtype(weight.dtype), read.source.dtype.base_dtype
    if kinds[0] == kinds[1]:
        return source
    node = definition.node.add(name=name, op="Cast", input=[source])
    node.attr["SrcT"].type, node.attr["DstT"].type = (kind.as_datatype_enum for kind in kinds)
    return name


def _settle_defaults(definition: Any) -> None:
    """Placeholders that have a default give it."""
    for node in definition.node:
        if node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            node.attr["T"].type = node.attr["dtype"].type
            del node.attr["dtype"], node.attr["shape"]


def _finished(
    model: Any, names: Mapping[str, str], weights: Mapping[str, Any], marks: Sequence[str]
) -> Any:
    """The model with other names for its values, weights as initializers, and marks as nodes that
    ONNX knows, with these texts.
    """
    _rename(model.graph, names)
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    for node in model.graph.node:
        if node.domain == _DOMAIN:
            found = re.search(rf"{_MARK_NAME}(\d+)", node.name)
            assert found is not None
            node.doc_string = marks[int(found[1])]
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        what = str(error).partition("\n")[0]
        raise UnimplementedError(f"onnx_path: tf2onnx made no valid model: {what}") from error
    return model


def _rename(whole: Any, names: Mapping[str, str]) -> None:
    for value in (*whole.input, *whole.output):
        value.name = names.get(value.name, value.name)
    for node in whole.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
            for inner in attribute.graphs:
                _rename(inner, names)
