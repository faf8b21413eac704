"""Puts the results of a session into a model's ONNX graph.

    pruner.export("compressed", "onnx")
    nni_compression.onnx.apply("model.onnx", "compressed/model.onnx.safetensors", "small.onnx")

Needs the `onnx` package. docs/exports.md says what the bundle holds.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import onnx
from onnx import helper, numpy_helper

from . import _integer_graph
from ._files import atomic
from ._files.safetensors import SafetensorsFile
from .errors import InvalidArgumentError

PathLike = Union[str, "os.PathLike[str]"]

# The first versions of ONNX with QuantizeLinear and DequantizeLinear, and with a scale per slice.
_OPSET = 10
_OPSET_PER_CHANNEL = 13
_ACTIVATIONS = ("output", "input")
_TARGETS = ("any", "onnxruntime", "openvino")
# Bits that a weight must have in common with a constant before both are taken for the same.
_EVIDENCE = 40
# Operators that only inspect a weight: exporters leave them behind.
_NO_NUMBERS = ("Shape", "Size")


def apply(
    model: Union[PathLike, Any],
    bundle: PathLike,
    output: Optional[PathLike] = None,
    *,
    names: Optional[Mapping[str, str]] = None,
    left_out: Container[str] = (),
    others: Optional[Mapping[str, np.ndarray[Any, Any]]] = None,
    target: str = "any",
) -> Any:
    """Writes compressed weights and encodings into a graph; the `ModelProto`, changed.

    Masked weights, and those without affine codes, replace their initializers. A quantized weight
    becomes its codes and a DequantizeLinear (and a Reshape, if it has groups), which give the
    values of the session bit for bit; quantized outputs and inputs get a QuantizeLinear and a
    DequantizeLinear, with a Clip between them if the codes do not fill their type. A transposed
    initializer of two dimensions, which exporters make for MatMul, is recognized. If the exporter
    has merged initializers of equal content, as PyTorch's did before version 2.9, each weight gets
    one of its own again.

    A weight is found by its name. Where the graph lacks it, because an exporter has renamed it (as
    "onnx::MatMul_123"), it is the one initializer that has its content, transposed or not: the
    weights that are kept, or numbers that round to the codes.

    There is a warning if a weight is far from the graph's initializer of that name: the graph is
    from another step of the training, or its exporter has folded something into the weight, as
    optimizing ones do (`torch.onnx.export` needs ``optimize=False``, before PyTorch 2.9
    ``do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE``).

    Args:
        model: path of a model, or a `ModelProto`.
        bundle: what `export(..., "onnx")` wrote.
        output: path to which the model is saved, too; weights of more than 2 GiB, the limit of an
            ONNX file, are saved under the same name with the suffix ".data".
        names: names of the bundle's weights -> names of the graph's initializers, where they
            differ and the content does not tell.
        left_out: weights of the bundle that the graph does not need.
        others: the model's other parameters, or those that may be equal to a weight of the bundle.
            Exporters merge equal ones: a parameter that was merged with a weight gets an
            initializer of its own. Without this argument only one whose name ends as the weight's
            does gets one, and there is a warning for a weight that several operators use.
        target: the runtime, as the option of the rules. For its integer kernels, the results of
            convolutions, additions and matrix products are rounded once, to the codes of the layers
            that they are for, and residual connections read the rounded numbers: docs/exports.md
            says how that differs from training. With "any" the graph rounds where training does. A
            QuantizeLinear that the graph has already stays.

    Raises InvalidArgumentError when a weight is not in the graph, has another shape or dtype, is
    the content of several initializers and the name of none, when one of the others has been merged
    into it without a trace, or when the graph's opset lacks what is needed; DataLossError for a
    damaged bundle.
    """
    if target not in _TARGETS:
        raise InvalidArgumentError(f"target is {target!r}; it must be one of {', '.join(_TARGETS)}")
    proto = model if isinstance(model, onnx.ModelProto) else load(model)
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = _Graph(changed)
    content = _Bundle(Path(bundle), "onnx")
    weights = content.weights(names or {}, left_out)
    renamed = graph.find([w for w in weights if not graph.has_constant(w.name)])
    weights = [replace(w, name=renamed.get(w.name, w.name)) for w in weights]
    graph.separate({weight.name for weight in weights}, others)
    for weight in weights:
        graph.put(weight)
    if target != "any":
        _integer_graph.round_once(
            changed.graph, graph.rounded, graph.new_name, float_operands=target == "openvino"
        )
    if _tensor_bytes(changed) <= atomic.LARGEST_ONNX:  # the checker takes no more
        onnx.checker.check_model(changed)
    proto.CopyFrom(changed)  # all of it, or nothing
    if output is not None:
        save(proto, Path(output))
    return proto


def load(path: PathLike) -> Any:
    """The `ModelProto` of a file, with its external data."""
    return onnx.load(os.fspath(path))


class Match(NamedTuple):
    """The names of a bundle's weights in a graph; arguments of `apply`, under these names."""

    names: dict[str, str]
    left_out: list[str]


def match(model: Any, bundle: PathLike, tied: Mapping[str, Sequence[str]]) -> Match:
    """`names` and `left_out` for `apply`, of a graph that an exporter has made of the model.

    Exporters keep one initializer of tied weights, under one of their names, rename some, and omit
    weights that no output depends on, whose names and content are then nowhere in the graph. If no
    weight is found at all, `left_out` is empty: the graph is that of another model.

    Args:
        tied: name of a weight in the bundle -> all its names in the model.
    """
    graph = _Graph(model)
    content = _Bundle(Path(bundle), "onnx")
    weights = content.names()
    names: dict[str, str] = {}
    missing = []
    for weight in weights:
        known = (weight, *tied.get(weight, ()))
        name = next((name for name in known if graph.has_constant(name)), None)
        if name is None and not any(graph.mentions(name) for name in known):
            missing.append(weight)
        elif name is not None and name != weight:
            names[weight] = name
    renamed = graph.find(content.weights({}, set(weights) - set(missing)))
    names.update(renamed)
    missing = [weight for weight in missing if weight not in renamed]
    return Match(names, missing if len(missing) < len(weights) else [])


def save(model: Any, path: Path) -> None:
    """Writes a `ModelProto`; replaces an existing file and its external data."""
    data_file = path.with_name(f"{path.name}.data")
    if _tensor_bytes(model) <= atomic.LARGEST_ONNX:
        onnx.save(model, str(path))
        return
    data_file.unlink(missing_ok=True)  # otherwise new bytes are appended
    onnx.save(model, str(path), save_as_external_data=True, location=data_file.name)
    onnx.load_external_data_for_model(model, str(path.parent))  # which `save` has moved there


def _tensor_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def mark(weight: str, kind: str) -> str:
    """The `doc_string` of an Identity node that marks a layer's "output" or "input".

    A converter may put such nodes into a graph; without them it is the output or input of the
    operator that uses the weight.
    """
    return f"{kind} of {weight}"


@dataclass(eq=False)
class _Weight:
    """A compressed weight, under the name of its initializer: values, or codes with numbers.

    With groups, `codes` has one in each row, whatever the shape of `values`, and `turned` says that
    the values in C order are those of the transposed initializer.
    """

    name: str
    values: np.ndarray[Any, Any]
    codes: Optional[np.ndarray[Any, Any]]
    scale: np.ndarray[Any, Any]
    zero_point: np.ndarray[Any, Any]
    axis: Optional[int]
    activations: dict[str, Mapping[str, Any]]
    grouped: bool = False
    turned: bool = False

    def is_in(self, constant: np.ndarray[Any, Any]) -> bool:
        """Whether a constant of the values' shape is this weight before it was compressed."""
        kept = self.values != 0  # what a pruner has removed says nothing
        if self.codes is None:
            return bool(kept.any() and np.array_equal(constant[kept], self.values[kept]))
        step = _along(self.scale, self.axis, self.codes.ndim)
        near = np.abs(constant.reshape(self.codes.shape) - self.values.reshape(self.codes.shape))
        levels = np.ptp(self.values) / self.scale.max()
        certain = levels > 0 and kept.sum() * np.log2(1 + levels / 2) >= _EVIDENCE
        return bool(certain and (near <= step)[kept.reshape(self.codes.shape)].all())

    def is_like(self, other: _Weight) -> bool:
        """Whether either may stand for the other in a graph."""
        mine, others = (w.values if w.codes is None else w.codes for w in (self, other))
        return (
            not (self.activations or other.activations)
            and self.axis == other.axis
            and np.array_equal(mine, others)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def transposed(self) -> _Weight:
        if self.grouped:
            return replace(self, values=self.values.T, turned=True)
        axis = None if self.axis is None else 1 - self.axis
        codes = None if self.codes is None else self.codes.T
        return replace(self, values=self.values.T, codes=codes, axis=axis)


class _Bundle(SafetensorsFile):
    def read_metadata(self, metadata: Mapping[str, str]) -> None:
        self._weights: dict[str, dict[str, Any]] = json.loads(metadata["nni_compression.weights"])
        for name in self._weights:
            if name not in self.entries:
                for part in ("codes", "scale", "zero_point"):
                    self.entries[f"{name}.{part}"]

    def weights(self, names: Mapping[str, str], left_out: Container[str] = ()) -> list[_Weight]:
        unknown = set(names) - set(self._weights)
        if unknown:
            raise InvalidArgumentError(
                f"names has {min(unknown)!r}, which is not a compressed weight of the bundle; it "
                f"must be one of {', '.join(self._weights)}"
            )
        return [
            self._weight(name, names.get(name, name))
            for name in self._weights
            if name not in left_out
        ]

    def names(self) -> list[str]:
        return list(self._weights)

    def _weight(self, name: str, target: str) -> _Weight:
        told = self._weights[name]
        activations = {kind: told[kind] for kind in _ACTIVATIONS if told.get(kind)}
        nothing = np.empty(0, np.float32)
        if name in self.entries:
            if self.dtype(name).bits_only:
                kind = self.dtype(name).name
                raise InvalidArgumentError(f"weight {name!r} is {kind}, which numpy lacks")
            values = self.array(name).reshape(self.entries[name]["shape"])
            return _Weight(target, values, None, nothing, nothing, None, activations)
        shape = self.entries[f"{name}.codes"]["shape"]
        group_size = told.get("group_size")
        codes = self.array(f"{name}.codes").reshape([-1, group_size] if group_size else shape)
        scale, zero = self.array(f"{name}.scale"), self.array(f"{name}.zero_point")
        axis = told["axis"]
        values = _levels(codes, zero, axis).astype(np.float32) * _along(scale, axis, codes.ndim)
        return _Weight(
            target, values.reshape(shape), codes, scale, zero, axis, activations, bool(group_size)
        )


class _Graph:
    """The main graph of a model; its weights become initializers if they are Constant nodes."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._lift_constants()
        self._initializers = {i.name: i for i in model.graph.initializer}
        self._opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self._taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
        self.rounded: set[str] = set()  # results of the DequantizeLinears of outputs and inputs
        # Alias of an initializer -> the initializer's own name.
        self._merged: dict[str, str] = {}
        for node in model.graph.node:
            if _is_plain_identity(node):
                source = self._merged.get(node.input[0], node.input[0])
                if source in self._initializers:
                    self._merged[node.output[0]] = source

    def _lift_constants(self) -> None:
        """Turns Constant nodes that may be weights into initializers."""
        nodes = [node for node in self._graph.node if node.op_type == "Constant"]
        for node in nodes:
            (value,) = node.attribute
            if value.name == "value" and len(value.t.dims) > 1:
                tensor = self._graph.initializer.add()
                tensor.CopyFrom(value.t)
                tensor.name = node.output[0]
                self._graph.node.remove(node)

    def mentions(self, name: str) -> bool:
        """Whether anything in the graph has this name."""
        return name in self._initializers or name in self._taken

    def has_constant(self, name: str) -> bool:
        """Whether this is an initializer, or one that was merged with another one."""
        return name in self._initializers or name in self._merged

    def find(self, weights: Sequence[_Weight]) -> dict[str, str]:
        """Names of weights that the graph lacks -> names of the constants with their content.

        Without those that no constant has. Raises InvalidArgumentError when it is not certain which
        constant is which weight.
        """
        constants = [i for i in self._initializers.values() if len(i.dims) > 1] if weights else []
        places: dict[str, list[_Weight]] = {}
        holders: dict[str, list[str]] = {weight.name: [] for weight in weights}
        for constant in constants:
            held = None
            for weight in weights:
                shape = weight.values.shape
                if tuple(constant.dims) not in (shape, shape[::-1] if len(shape) == 2 else shape):
                    continue
                held = numpy_helper.to_array(constant) if held is None else held
                turned = (each for each in (held, held.T) if each.shape == shape)
                if held.dtype == weight.values.dtype and any(map(weight.is_in, turned)):
                    places.setdefault(constant.name, []).append(weight)
                    holders[weight.name].append(constant.name)
        found: dict[str, str] = {}
        for weight in weights:
            names = holders[weight.name]
            rivals = places[names[0]] if names else []
            alike = all(weight.is_like(rival) for rival in rivals)
            if len(names) != len(rivals) or not (alike or len(rivals) == 1):
                raise InvalidArgumentError(
                    f"the graph has no initializer {weight.name!r}, and its content fits "
                    f"{', '.join(names)}, as does that of "
                    f"{', '.join(r.name for r in rivals if r is not weight) or 'no other weight'} "
                    "(`names` says which is which)"
                )
            if names:
                found[weight.name] = names[rivals.index(weight)]
        return found

    def separate(
        self, weights: Collection[str], others: Optional[Mapping[str, np.ndarray[Any, Any]]]
    ) -> None:
        """Gives each of the weights an initializer of its own, and each of those they were merged
        with.

        An exporter that merges puts an Identity in place of the second weight, under its name. Any
        other Identity of a weight is a part of the model. An optimizer leaves no Identity.
        """
        results = {value.name for value in self._graph.output}
        for name, source in list(self._merged.items()):
            like_it = source in weights and _last_part(name) == _last_part(source) != ""
            known = name in weights or (like_it if others is None else name in others)
            if name in results or not known:
                continue
            own = self._graph.initializer.add()
            own.CopyFrom(self._initializers[source])
            own.name = name
            self._initializers[name] = own
            del self._merged[name]
            self._graph.node.remove(next(n for n in self._graph.node if name in n.output))

        shared = [w for w in weights if w in self._initializers and len(self._users(w)) > 1]
        if others is None and shared:
            warnings.warn(
                f"several operators use each of the weights {shared[:10]}: a parameter that is not "
                "compressed, and was equal to one of them, may have been merged with it when the "
                "graph was exported (`others` tells)",
                UserWarning,
                stacklevel=3,
            )
        for name, values in (others or {}).items():
            for weight in shared if not self.mentions(name) else ():
                found = numpy_helper.to_array(self._initializers[weight])
                if np.array_equal(found, values) or np.array_equal(found, values.T):
                    raise InvalidArgumentError(
                        f"{name!r}, which is not compressed, was merged into {weight!r} when the "
                        "graph was exported (torch.onnx.export needs optimize=False)"
                    )

    def put(self, weight: _Weight) -> None:
        found = self._initializers.get(weight.name)
        if found is None:
            close = difflib.get_close_matches(weight.name, self._initializers, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidArgumentError(
                f"the graph has no initializer {weight.name!r}, and none of its content; it has "
                f"{', '.join(sorted(self._initializers)) or 'none'}{hint} (`names` says which is "
                "which)"
            )
        before = numpy_helper.to_array(found)
        if before.dtype != weight.values.dtype:
            raise InvalidArgumentError(
                f"initializer {weight.name!r} is {before.dtype}; it must be {weight.values.dtype}"
            )
        weight = _turned(weight, before)
        _warn_if_far(weight, before)
        users = self._users(weight.name)
        for kind, encoding in weight.activations.items():
            self._need_opset(_OPSET_PER_CHANNEL, f"the {kind} of {weight.name!r}")
            marks = self._marks(mark(weight.name, kind))
            for node in marks:
                self._encode_mark(node, encoding, f"{weight.name}_{kind}")
            for node, seen in [] if marks else users:
                self._encode(node, seen, kind, encoding, weight.name)
        if weight.codes is None:
            found.CopyFrom(numpy_helper.from_array(_contiguous(weight.values), weight.name))
        else:
            self._put_codes(weight, found)

    def _put_codes(self, weight: _Weight, found: Any) -> None:
        needed = _OPSET if weight.axis is None else _OPSET_PER_CHANNEL
        self._need_opset(needed, f"weight {weight.name!r}")
        assert weight.codes is not None
        codes, zero = weight.codes, weight.zero_point
        parts = {"scale": weight.scale, "zero_point": zero}
        if codes.dtype.itemsize > 1:
            # Before opset 21 more than 8 bits are 32 without a zero point.
            codes = _levels(codes, zero, weight.axis)
            del parts["zero_point"]
        inputs = [self._constant(f"{weight.name}_codes", codes)]
        for part, numbers in parts.items():
            scalar = numbers if weight.axis is not None else numbers.reshape(())
            inputs.append(self._constant(f"{weight.name}_{part}", scalar))
        axis = {} if weight.axis is None else {"axis": weight.axis}
        nodes = [
            helper.make_node(
                "DequantizeLinear", inputs, [weight.name], name=f"{weight.name}_dequantize", **axis
            )
        ]
        if weight.grouped:
            shape = weight.values.shape[::-1] if weight.turned else weight.values.shape
            size = self._constant(f"{weight.name}_shape", np.array(shape, np.int64))
            self._append(nodes, "Reshape", [size])
            if weight.turned:
                self._append(nodes, "Transpose", [])
        self._graph.initializer.remove(found)
        for declared in [i for i in self._graph.input if i.name == weight.name]:
            self._graph.input.remove(declared)
        for node in reversed(nodes):
            self._graph.node.insert(0, node)

    def _append(self, nodes: list[Any], op_type: str, inputs: list[str]) -> None:
        """Appends a node to the last one; it takes over the output's name."""
        result = nodes[-1].output[0]
        nodes[-1].output[0] = between = self.new_name(f"{result}_before_{op_type.lower()}")
        nodes.append(helper.make_node(op_type, [between, *inputs], [result]))

    def _users(self, name: str) -> list[tuple[Any, str]]:
        """The nodes that compute with a weight, possibly transposed, and its name in each."""
        found = []
        for node in self._graph.node:
            if name in node.input and node.op_type not in _NO_NUMBERS:
                passes_on = node.op_type == "Transpose" or _is_plain_identity(node)
                found += self._users(node.output[0]) if passes_on else [(node, name)]
        return found

    def _marks(self, text: str) -> list[Any]:
        return [n for n in self._graph.node if n.op_type == "Identity" and n.doc_string == text]

    def _encode_mark(self, node: Any, encoding: Mapping[str, Any], name: str) -> None:
        """Replaces a mark by nodes that quantize and dequantize."""
        at = list(self._graph.node).index(node)
        new = self._round_trip(node.input[0], node.output[0], encoding, name)
        del self._graph.node[at]
        for each in reversed(new):
            self._graph.node.insert(at, each)

    def _encode(
        self, node: Any, weight: str, kind: str, encoding: Mapping[str, Any], name: str
    ) -> None:
        """Quantizes and dequantizes the node's output, or its input that is not the weight."""
        if kind == "output":
            node = self._with_bias(node)
            whole = node.output[0]
            node.output[0] = raw = self.new_name(f"{whole}_raw")
            new = self._round_trip(raw, whole, encoding, f"{name}_{kind}")
            at = list(self._graph.node).index(node) + 1
        elif node.op_type == "Gather":
            return  # an embedding's input are indices
        else:
            place = next(i for i, value in enumerate(node.input) if value != weight)
            whole = self.new_name(f"{name}_{kind}")
            new = self._round_trip(node.input[place], whole, encoding, f"{name}_{kind}")
            node.input[place] = whole
            at = list(self._graph.node).index(node)
        for each in reversed(new):
            self._graph.node.insert(at, each)

    def _with_bias(self, node: Any) -> Any:
        """The node, or the Add of a bias after it: exporters split layers that way."""
        users = [n for n in self._graph.node if node.output[0] in n.input]
        if node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
            other = [value for value in users[0].input if value != node.output[0]]
            if other and self.has_constant(other[0]):
                return users[0]
        return node

    def _round_trip(
        self, source: str, target: str, encoding: Mapping[str, Any], name: str
    ) -> list[Any]:
        # Signed codes are shifted to unsigned ones: ONNX Runtime's kernels for Intel's processors
        # only support unsigned activations.
        shift = 128 if encoding["code_min"] < 0 else 0
        smallest, largest = encoding["code_min"] + shift, encoding["code_max"] + shift
        if smallest < 0 or largest > 255:
            raise InvalidArgumentError(
                f"{name} has codes from {encoding['code_min']} to {encoding['code_max']}; "
                "QuantizeLinear takes 8 bits"
            )
        numbers = [
            self._constant(f"{name}_scale", np.float32(encoding["scale"])),
            self._constant(f"{name}_zero_point", np.uint8(encoding["zero_point"] + shift)),
        ]
        codes = self.new_name(f"{name}_codes")
        nodes = [helper.make_node("QuantizeLinear", [source, *numbers], [codes])]
        if (smallest, largest) != (0, 255):
            # Clips codes and not numbers, because ONNX Runtime uses its integer kernels only if
            # there is nothing but the operator between a DequantizeLinear and a QuantizeLinear.
            bounds = [
                self._constant(f"{name}_{which}", np.uint8(code))
                for which, code in (("smallest", smallest), ("largest", largest))
            ]
            clipped = self.new_name(f"{name}_clipped")
            nodes.append(helper.make_node("Clip", [codes, *bounds], [clipped]))
            codes = clipped
        nodes.append(helper.make_node("DequantizeLinear", [codes, *numbers], [target]))
        self.rounded.add(target)
        return nodes

    def _constant(self, name: str, value: Any) -> str:
        name = self.new_name(name)
        self._graph.initializer.append(numpy_helper.from_array(_contiguous(value), name))
        return name

    def new_name(self, name: str) -> str:
        """The name, or one like it that is free."""
        while name in self._taken or name in self._initializers:
            name += "_"
        self._taken.add(name)
        return name

    def _need_opset(self, version: int, what: str) -> None:
        if self._opset < version:
            raise InvalidArgumentError(
                f"the graph has opset {self._opset}; {what} needs at least {version}"
            )


def _is_plain_identity(node: Any) -> bool:
    """Whether a node is an Identity and not one of our marks."""
    starts = tuple(mark("", kind) for kind in _ACTIVATIONS)
    return node.op_type == "Identity" and not node.doc_string.startswith(starts)


def _last_part(name: str) -> str:
    """The name of a parameter within its layer; empty if the name has no layer."""
    layer, _, last = name.rpartition(".")
    return last if layer else ""


def _turned(weight: _Weight, before: np.ndarray[Any, Any]) -> _Weight:
    """The weight as the initializer has it: as it is, or transposed, whichever is nearer."""
    shape = weight.values.shape
    straight, turned = before.shape == shape, before.ndim == 2 and before.shape == shape[::-1]
    if straight and turned:
        distances = [np.abs(before - v).sum() for v in (weight.values, weight.values.T)]
        straight = bool(distances[0] <= distances[1])
    if straight:
        return weight
    if turned:
        return weight.transposed()
    raise InvalidArgumentError(
        f"initializer {weight.name!r} has shape {before.shape}; it must be {shape}"
    )


def _warn_if_far(weight: _Weight, before: np.ndarray[Any, Any]) -> None:
    """Warns when rounding does not explain the difference to the graph's weight."""
    if weight.codes is None or not weight.values.size:
        return
    kept = weight.values != 0
    far = np.abs(before - weight.values) > np.max(weight.scale)
    if (far & kept).sum() > kept.sum() / 2:
        warnings.warn(
            f"initializer {weight.name!r} is far from the session's weight: the graph is from "
            "another step of the training, or something was folded into the weight when it was "
            "exported (torch.onnx.export needs optimize=False)",
            UserWarning,
            stacklevel=4,
        )


def _levels(codes: Any, zero_point: Any, axis: Optional[int]) -> np.ndarray[Any, Any]:
    """Codes minus their zero points."""
    levels: np.ndarray[Any, Any] = codes.astype(np.int32)
    levels -= _along(zero_point.astype(np.int32), axis, codes.ndim)
    return levels


def _along(numbers: Any, axis: Optional[int], ndim: int) -> Any:
    """The numbers in a shape that broadcasts along the axis of a weight."""
    return numbers.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _contiguous(value: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.asarray(value)
    return array if array.ndim == 0 else np.ascontiguousarray(array)
