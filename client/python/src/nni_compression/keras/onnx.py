"""Plain Keras models in ONNX; see `_tensorflow.onnx_files`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Callable, Optional

import tensorflow as tf
from tf2onnx import convert

from .._tensorflow.onnx_files import DOMAIN, MARK, MARK_NAME, check_only, checked, finished
from ..errors import InvalidArgumentError, UnimplementedError
from ..onnx import mark
from . import kernels
from .weights import KerasWeight, find_kernels, variables

_v1 = tf.compat.v1


def from_keras(
    model: Any, input_shape: Optional[Sequence[Optional[int]]], encoded: Collection[tuple[str, str]]
) -> Any:
    """A `ModelProto` of a Keras model in inference, with its weights compressed.

    Args:
        input_shape: of its only input; None: the model's own.
        encoded: (name of a weight, "output" or "input") of the activations that get a mark, for
            `nni_compression.onnx.apply`.
    """
    inputs = _inputs_of(model, input_shape)
    found = find_kernels(model)
    known = {id(variable): name for name, variable in variables(model).items()}
    names = [known[id(weight.dense)] for weight in found]
    marks = _Marks()
    values, specs = {}, list(inputs.values())
    for name, weight in zip(names, found):
        state = kernels.variables_of(weight.owner, weight.attribute)
        dense = checked(weight.numpy(), name)
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
        custom_op_handlers={MARK: (_keep_mark, [])},
    )
    if marks.misplaced:
        raise UnimplementedError(
            f"onnx_path: the {marks.misplaced[0]} is inside a loop or a condition, where ONNX does "
            "not support quantization"
        )
    renamed = dict(zip(arguments, [*inputs, *names]))
    return finished(converted, renamed, values, list(marks.texts.values()))


def _inputs_of(model: Any, shape: Optional[Sequence[Optional[int]]]) -> dict[str, tf.TensorSpec]:
    """The inputs of a Keras model, by name."""
    known = getattr(model, "inputs", None) or []
    found = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in known}
    if shape is None and not found:
        raise InvalidArgumentError(
            "onnx_path needs input_shape: the model does not specify the shape of its input"
        )
    if shape is None:
        return found
    if not found:
        return {"input": tf.TensorSpec(shape, tf.float32)}
    check_only(len(found), shape, "inputs")
    ((name, spec),) = found.items()
    if not spec.shape.is_compatible_with(shape):
        raise InvalidArgumentError(
            f"input_shape is {tuple(shape)}; the model's input has shape {spec.shape}"
        )
    return {name: tf.TensorSpec(shape, spec.dtype)}


def _named(tensors: Sequence[Any]) -> dict[str, Any]:
    if len(tensors) == 1:
        return {"output": tensors[0]}
    return {f"output_{i}": tensor for i, tensor in enumerate(tensors)}


class _Marks:
    """Where outputs and inputs of layers are, in a model that is traced.

    Attributes:
        texts: of each mark: (id of the layer, "output" or "input") -> its text in ONNX.
        graph: the graph that is being traced.
        misplaced: texts of marks in a nested graph.
    """

    def __init__(self) -> None:
        self.texts: dict[tuple[int, str], str] = {}
        self.graph: Any = None
        self.misplaced: list[str] = []

    def of(self, layer: Any) -> dict[str, Callable[[Any], Any]]:
        """The functions that put the marks of a layer."""
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
        wide = tf.cast(value, tf.float32)  # rounding computes in float32
        marked = tf.raw_ops.CheckNumerics(tensor=wide, message="", name=f"{MARK_NAME}{number}")
        return tf.cast(marked, value.dtype)


@contextlib.contextmanager
def _reading(
    weights: Sequence[KerasWeight], tensors: Sequence[Any], marks: _Marks
) -> Iterator[None]:
    """Inside, layers use these tensors as their weights, and put the marks."""
    replacements, installed = {}, []
    try:
        for weight, tensor in zip(weights, tensors):
            if kernels.variables_of(weight.owner, weight.attribute) is None:
                state = kernels.KernelVariables(tensor.shape, tensor.dtype.as_numpy_dtype)
                kernels.compress(weight.owner, weight.attribute, state)
                installed.append(weight)
            replacements[weight.state] = tensor
        with kernels.replacing(replacements, marks.of):
            yield
    finally:
        for weight in installed:
            kernels.release(weight.owner, weight.attribute)


def _keep_mark(context: Any, node: Any, name: str, arguments: Any) -> Any:
    node.domain = DOMAIN
    return node
