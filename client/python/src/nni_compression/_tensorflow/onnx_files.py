"""ONNX files of plain models, as tf2onnx converts them, with unchanged weights.

A converter folds constants and changes their layout and names. So the weights of layers are inputs
during the conversion and become initializers afterwards: under the names of their variables, in
TensorFlow's layout, bit for bit. The graph transposes them where ONNX has another layout; runtimes
do that once, at load time.
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

# An identity operation that is not folded: it has its own domain, so the converter keeps it, but
# preserves only its name.
MARK = "CheckNumerics"
MARK_NAME = "nni_compression_mark_"
DOMAIN = "nni.compression"


def check_only(number: int, shape: Sequence[Optional[int]], what: str) -> None:
    """Raises InvalidArgumentError when a shape is given for more than one input."""
    if number != 1:
        raise InvalidArgumentError(
            f"input_shape is {tuple(shape)}; with {number} {what} it must be None"
        )


def checked(array: Any, name: str) -> Any:
    """The array if ONNX can hold it; else raises UnimplementedError."""
    if array.dtype == tf.bfloat16.as_numpy_dtype:
        raise UnimplementedError(f"weight {name!r} is bfloat16, which numpy lacks")
    return array


def finished(
    model: Any, names: Mapping[str, str], weights: Mapping[str, Any], marks: Sequence[str]
) -> Any:
    """Renames the model's values, makes weights initializers, and replaces marks by standard ONNX
    nodes with these texts.
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
