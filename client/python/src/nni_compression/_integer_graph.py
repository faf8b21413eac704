"""Places the rounding of activations in an ONNX graph where runtimes compute with integers.

ONNX Runtime's integer kernels of convolutions and additions replace an operator between a
DequantizeLinear for each operand and QuantizeLinears that are all that reads the result. Training
rounds the outputs and inputs of layers, and no more: an addition then has a float operand, and its
result a float reader. OpenVINO has kernels for these, too, which then write and read floats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from onnx import helper, numpy_helper

_INTEGER = ("Conv", "Gemm", "MatMul", "Add")
# Those of them that have an integer kernel with a float result.
_FLOAT_RESULT = ("Gemm", "MatMul")
_CLAMPS = ("Relu", "Clip")
# Operators that commute with rounding, because they select or move numbers.
_SELECTING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
_PAIRS = (
    ["QuantizeLinear", "DequantizeLinear"],
    ["QuantizeLinear", "Clip", "DequantizeLinear"],
)


def round_once(
    graph: Any,
    rounded: Collection[str],
    new_name: Callable[[str], str],
    *,
    float_operands: bool,
) -> None:
    """Rounds what integer operators compute once, to the codes of the layers that it is for.

    Where the result of an operator with dequantized operands reaches the inputs of quantized layers
    by clamps, pooling by maximum and changes of the layout alone (with `float_operands` also that
    of an addition to the result of such a convolution):

    * it is rounded to the codes of these inputs at the operator, and no longer to those of the
      layer's outputs, which include the numbers that a ReLU then removes;
    * clamps that these codes imply are removed;
    * whatever else reads it, such as a residual connection, reads the rounded numbers.

    It stays as it is where the inputs have different codes, where the codes do not imply a clamp
    (those of symmetric schemes), and where it is an output of the graph.

    Args:
        rounded: the results of pairs of QuantizeLinear and DequantizeLinear with one scale, which
            may be replaced; other pairs stay.
        new_name: makes a name like the given one that is free in the graph.
        float_operands: whether the runtime can add a float operand and round the sum in one kernel.
    """
    _Rounding(graph, rounded, new_name, float_operands).run()


@dataclass(eq=False)
class _Pair:
    """A QuantizeLinear and a DequantizeLinear, possibly with a Clip of the codes between them."""

    nodes: list[Any]

    @property
    def source(self) -> str:
        return str(self.nodes[0].input[0])

    @property
    def result(self) -> str:
        return str(self.nodes[-1].output[0])

    @property
    def constants(self) -> list[str]:
        """Names of the scale, the zero point, and the smallest and largest code if clipped."""
        return [name for node in self.nodes[:-1] for name in node.input[1:]]

    def copied(self, source: str, new_name: Callable[[str], str]) -> _Pair:
        """The same codes for another value."""
        nodes, value = [], source
        for node in self.nodes:
            result = new_name(f"{source}_{node.op_type.lower()}")
            nodes.append(helper.make_node(node.op_type, [value, *node.input[1:]], [result]))
            value = result
        return _Pair(nodes)


class _Rounding:
    def __init__(
        self,
        graph: Any,
        rounded: Collection[str],
        new_name: Callable[[str], str],
        float_operands: bool,
    ) -> None:
        self._graph = graph
        self._rounded = {*rounded}
        self._new_name = new_name
        self._float_operands = float_operands
        self._nodes = list(graph.node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        # Names that have to stay.
        self._needed = {value.name for value in (*graph.input, *graph.output)}
        self._makers: dict[str, Any] = {}
        self._readers: defaultdict[str, list[Any]] = defaultdict(list)
        for node in self._nodes:
            self._needed.update(_captured(node))
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
            self._link(node)
        self._inserted: dict[int, _Pair] = {}  # by the id of the node that they follow
        self._removed: set[int] = set()  # ids of nodes
        self._unlinked: set[str] = set()  # inputs of removed nodes

    def run(self) -> None:
        for node in self._nodes:
            if self._is_integer(node) or (self._float_operands and self._adds_convolved(node)):
                self._round(node)
        kept = []
        for node in self._nodes:
            kept += [node] if id(node) not in self._removed else []
            kept += self._inserted[id(node)].nodes if id(node) in self._inserted else []
        del self._graph.node[:]
        self._graph.node.extend(kept)
        unused = {name for name in self._unlinked if not self._readers[name]} - self._needed
        for at in reversed(range(len(self._graph.initializer))):
            if self._graph.initializer[at].name in unused:
                del self._graph.initializer[at]

    def _round(self, node: Any) -> None:
        last = self._with_bias(node)
        value = last.output[0]
        own = self._only_pair(value)
        passed, end = self._passed(value if own is None else own.result)
        clamps = [each for each in passed if each.op_type in _CLAMPS]
        pairs = [pair for reader in self._readers[end] if (pair := self._pair(reader)) is not None]
        others = len(self._readers[end]) - len(pairs)
        if (
            not pairs
            or end in self._needed
            or (others and node.op_type in _FLOAT_RESULT)
            or not all(self._are_same_codes(pairs[0], pair) for pair in pairs)
            or not all(self._implies(pairs[0], clamp) for clamp in clamps)
        ):
            return

        rounded = pairs[0].copied(value, self._new_name)
        self._rounded.add(rounded.result)
        self._inserted[id(last)] = rounded
        self._replace(value if own is None else own.result, rounded.result)
        for each in [] if own is None else own.nodes:
            self._remove(each)
        for each in rounded.nodes:
            self._link(each)
        for clamp in clamps:
            self._replace(clamp.output[0], clamp.input[0])
            self._remove(clamp)
        # What selects numbers is between integer kernels, too, with a pair on either side.
        kept = rounded if len(clamps) == len(passed) else pairs[0]
        for pair in pairs:
            if pair is not kept:
                self._replace(pair.result, kept.result)
                for each in pair.nodes:
                    self._remove(each)
        if kept is not rounded:
            self._replace(kept.source, kept.result, but=kept.nodes[0])
            self._removed.update(map(id, kept.nodes))  # from where others may read before it
            self._inserted[id(passed[-1])] = kept

    def _passed(self, start: str) -> tuple[list[Any], str]:
        """The clamps and selecting operators that alone read a value, and the value after them."""
        passed: list[Any] = []
        end = start
        while (reader := self._only_reader(end)) is not None and (
            reader.op_type in (*_CLAMPS, *_SELECTING)
            and reader.input[0] == end
            and len(reader.output) == 1  # the places of maxima are those before rounding
        ):
            passed.append(reader)
            end = reader.output[0]
        return passed, end

    def _with_bias(self, node: Any) -> Any:
        """The node, or the Add of a bias after it."""
        reader = self._only_reader(node.output[0])
        if node.op_type != "MatMul" or reader is None or reader.op_type != "Add":
            return node
        return reader if self._constants.keys() & reader.input else node

    def _is_integer(self, node: Any) -> bool:
        return node.op_type in _INTEGER and all(map(self._is_dequantized, node.input[:2]))

    def _adds_convolved(self, node: Any) -> bool:
        """Whether a node adds something to the result of an integer convolution."""
        makers = [self._makers[name] for name in node.input if name in self._makers]
        return node.op_type == "Add" and any(
            maker.op_type == "Conv" and self._is_integer(maker) for maker in makers
        )

    def _is_dequantized(self, name: str) -> bool:
        """Whether a value is that of codes; a weight may be transposed after that."""
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            maker = self._makers.get(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _only_reader(self, name: str) -> Optional[Any]:
        readers = self._readers[name]
        return readers[0] if len(readers) == 1 and name not in self._needed else None

    def _only_pair(self, name: str) -> Optional[_Pair]:
        """The pair that alone reads a value."""
        reader = self._only_reader(name)
        return None if reader is None else self._pair(reader)

    def _pair(self, first: Any) -> Optional[_Pair]:
        """The pair that begins with a node; None also for one that has to stay."""
        nodes = [first]
        while (reader := self._only_reader(nodes[-1].output[0])) is not None and len(nodes) < 3:
            nodes.append(reader)
            if [node.op_type for node in nodes] in _PAIRS:
                return _Pair(nodes) if reader.output[0] in self._rounded else None
        return None

    def _numbers(self, pair: _Pair) -> list[Any]:
        return [numpy_helper.to_array(self._constants[name]) for name in pair.constants]

    def _are_same_codes(self, pair: _Pair, other: _Pair) -> bool:
        numbers = self._numbers(pair), self._numbers(other)
        return len(numbers[0]) == len(numbers[1]) and all(map(np.array_equal, *numbers))

    def _implies(self, pair: _Pair, clamp: Any) -> bool:
        """Whether the pair has the same codes for a number and for the clamped number."""
        scale, zero_point, *bounds = self._numbers(pair)
        kind = np.iinfo(zero_point.dtype)
        smallest, largest = bounds or (kind.min, kind.max)
        limits = [0.0, np.inf]
        if clamp.op_type == "Clip":
            for at, name in enumerate([*clamp.input[1:], "", ""][:2]):
                if name and name not in self._constants:
                    return False
                open_end = (-np.inf, np.inf)[at]
                limits[at] = numpy_helper.to_array(self._constants[name]) if name else open_end
        low, high = np.rint(np.array(limits, np.float32) / scale) + zero_point
        return bool(low <= smallest and high >= largest)

    def _link(self, node: Any) -> None:
        for name in set(node.input):
            self._readers[name].append(node)
        for name in node.output:
            self._makers[name] = node

    def _replace(self, name: str, by: str, but: Optional[Any] = None) -> None:
        """Lets all readers of a value, but for a node, read another one."""
        for node in [node for node in self._readers[name] if node is not but]:
            node.input[:] = [by if each == name else each for each in node.input]
            self._readers[by].append(node)
        self._readers[name] = [] if but is None else [but]

    def _remove(self, node: Any) -> None:
        self._removed.add(id(node))
        self._unlinked.update(node.input)
        for name in set(node.input):
            self._readers[name] = [each for each in self._readers[name] if each is not node]


def _captured(node: Any) -> Iterator[str]:
    """Names that the graphs within a node take from around them, or have themselves."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (value.name for value in graph.output)
