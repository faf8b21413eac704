"""Plain graphs in ONNX; see `_tensorflow.onnx_files`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf
from tf2onnx import convert

from .._tensorflow.onnx_files import check_only, checked, finished
from ..errors import InvalidArgumentError
from .graph import WEIGHT_INPUT, CompressedGraph, GraphWeight, Read

_v1 = tf.compat.v1


def from_graph(
    whole: CompressedGraph, input_shape: Optional[Sequence[Optional[int]]], outputs: Any
) -> Any:
    """A `ModelProto` of the operations that `outputs` need, with the variables of the present
    session, compressed ones with their effective values.

    Args:
        input_shape: of its only placeholder; None: the placeholders' own.
        outputs: tensors of the graph, or names of tensors or operations; one, or several.
    """
    tensors = _outputs_of(whole.graph, outputs)
    definition = whole.graph.as_graph_def()
    nodes = {node.name: node for node in definition.node}
    weights = {name: w for name, w in whole.weights.items() if w.read is not None}
    names, values = {}, {}
    dense = whole.run({name: weight.read for name, weight in weights.items()})
    for number, (name, weight) in enumerate(weights.items()):
        values[name] = weight.state.compressed(checked(dense[name], name))
        argument = _add_placeholder(definition, f"nni_compression/{number}", values[name])
        names[f"{argument}:0"] = name
        for place, read in enumerate(weight.state.reads.values()):
            source = _add_cast(definition, f"{argument}/{place}", argument, weight, read)
            for operation in read.operations:
                nodes[operation.name].input[WEIGHT_INPUT] = source
    _settle_defaults(definition)
    wanted = [tensor.op.name for tensor in tensors]
    frozen = whole.within(
        lambda session: _v1.graph_util.convert_variables_to_constants(session, definition, wanted)
    )
    inputs = [n for n in frozen.node if n.op == "Placeholder" and f"{n.name}:0" not in names]
    if input_shape is not None:
        check_only(len(inputs), input_shape, "placeholders")
        inputs[0].attr["shape"].shape.CopyFrom(tf.TensorShape(input_shape).as_proto())
    names.update({f"{node.name}:0": node.name for node in inputs})
    kept = [f"{n.name}:0" for n in frozen.node if n.op == "Placeholder"]
    converted, _ = convert.from_graph_def(
        frozen, input_names=kept, output_names=[tensor.name for tensor in tensors]
    )
    names.update({tensor.name: tensor.name.removesuffix(":0") for tensor in tensors})
    return finished(converted, names, values, [])


def _outputs_of(whole: Any, outputs: Any) -> list[Any]:
    if outputs is None:
        raise InvalidArgumentError(
            "onnx_path needs outputs, the output tensors of the ONNX model in the graph, or their "
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


def _add_cast(definition: Any, name: str, source: str, weight: GraphWeight, read: Read) -> str:
    """The source in the type that operations read the weight in."""
    kinds = tf.as_dtype(weight.dtype), read.source.dtype.base_dtype
    if kinds[0] == kinds[1]:
        return source
    node = definition.node.add(name=name, op="Cast", input=[source])
    node.attr["SrcT"].type, node.attr["DstT"].type = (kind.as_datatype_enum for kind in kinds)
    return name


def _settle_defaults(definition: Any) -> None:
    """Replaces placeholders that have a default by it."""
    for node in definition.node:
        if node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            node.attr["T"].type = node.attr["dtype"].type
            del node.attr["dtype"], node.attr["shape"]
