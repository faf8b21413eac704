"""ONNX files of plain models, as tf2onnx converts them, with weights as they are.

A converter folds what is constant, and gives it another layout and another name. So the weights of
layers are inputs of what is converted, and become initializers afterwards: under the names of their
variables, in the layout that they have in TensorFlow, bit for bit. The graph turns them where ONNX
has another layout; runtimes do that once, when they load it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper

from ..errors import InvalidArgumentError, UnimplementedError

# An operation that changes nothing and that nobody folds; in a domain of its own the converter lets
# it be. All that it keeps of it is the name.
MARK = "CheckNumerics"
MARK_NAME = "nni_compression_mark_"
DOMAIN = "nni.compression"


def check_only(number: int, shape: Sequence[Optional[int]], what: str) -> None:
    """A shape is given for one input; InvalidArgumentError where there are more."""
    if number != 1:
        raise InvalidArgumentError(
            f"input_shape is {tuple(shape)}; with {number} {what} it must be None"
        )


def checked(array: Any, name: str) -> Any:
    """An array that ONNX can hold; UnimplementedError for others."""
    if array.dtype == tf.bfloat16.as_numpy_dtype:
        raise UnimplementedError(f"weight {name!r} is bfloat16, which numpy lacks")
    return array


def finished(
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
        if node.domain == DOMAIN:
            found = re.search(rf"{MARK_NAME}(\d+)", node.name)
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
