"""Layers, and how a session compresses each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from .._wire import compression_pb2 as pb
from .._wire.structs import from_struct, text
from ..errors import InvalidArgumentError
from . import dtypes
from .parts import activation_name, kind_name

_REFRESH = {
    pb.REFRESH_ONCE: "once",
    pb.REFRESH_WHEN_STALE: "when_stale",
    pb.REFRESH_ON_WEIGHT_CHANGE: "on_weight_change",
}
_ROLE_PREFIX = "TENSOR_ROLE_"


@dataclass(frozen=True)
class Layer:
    """A layer of the model, compressible or not.

    Attributes:
        name: unique in the model, as the framework names it.
        op_type: as the framework calls it: "Conv2d", "Linear", "MatMul".
        shape: of the weight; 1 to 64 dimensions, each at least 1.
        dtype: of the weight: "float32", "float16", "bfloat16" or "float64"; numpy's and the
            frameworks' dtypes are accepted too.
        channel_axis: the dimension of the output channels, for per-channel quantization: 0 in most
            of PyTorch's modules, the last one in most of Keras's layers.
        aliases: further names of the same (tied) weight; a rule that names any of them matches.
        op_type_bases: further types that the layer is of, such as base classes of its own; at most
            16. `op_types` matches any of them.
        needs_filter: whether rules with neither `op_types` nor `op_names` leave the layer out.

    >>> Layer(name="conv1", op_type="Conv2d", shape=[20, 1, 5, 5]).shape
    (20, 1, 5, 5)
    """

    name: str
    op_type: str
    shape: Sequence[int]
    dtype: Any = "float32"
    channel_axis: int = 0
    aliases: Sequence[str] = ()
    op_type_bases: Sequence[str] = ()
    needs_filter: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", dtypes.dtype_name(self.dtype))
        object.__setattr__(self, "aliases", tuple(self.aliases))
        object.__setattr__(self, "op_type_bases", tuple(self.op_type_bases))

    def to_wire(self, path: str) -> pb.Layer:
        """The layer's message; `path` ("layers[3]") begins error messages."""
        try:
            return pb.Layer(
                name=text(self.name, f"{path}.name"),
                op_type=text(self.op_type, f"{path}.op_type"),
                dtype=dtypes.wire_dtype(self.dtype),  # type: ignore[arg-type]
                shape=self.shape,
                channel_axis=self.channel_axis,
                aliases=[text(alias, f"{path}.aliases") for alias in self.aliases],
                op_type_bases=[text(b, f"{path}.op_type_bases") for b in self.op_type_bases],
                needs_filter=self.needs_filter,
            )
        except ValueError as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(f"{path} ({self.name!r}): {error}") from error


def with_names(rule: Any, layers: Iterable[Layer], path: str) -> Any:
    """The rule with the names that its `op_names` selects, where that is a function of a `Layer`.

    Raises InvalidArgumentError, which begins with the path, where it selects none.

    >>> layers = [Layer("a", "Linear", (2, 2)), Layer("b", "Linear", (9, 9))]
    >>> with_names({"sparsity": 0.5, "op_names": lambda layer: layer.shape[0] > 4}, layers, "")
    {'sparsity': 0.5, 'op_names': ['b']}
    """
    select = rule.get("op_names") if isinstance(rule, Mapping) else None
    if not callable(select):
        return rule
    names = [layer.name for layer in layers if select(layer)]
    if not names:
        raise InvalidArgumentError(f"{path}.op_names is a function that selects no layer")
    return {**rule, "op_names": names}


@dataclass(frozen=True)
class LayerPlan:
    """How the session compresses one layer.

    Attributes:
        name: the layer's.
        compressed: whether it is.
        rule: index in config_list of the rule that won; None when none matched. A layer with an
            `exclude` rule is not compressed.
        options: of the winning rule, defaults filled in; empty when not compressed.
        refresh: when to ask again: "once", "when_stale" or "on_weight_change"; None when not
            compressed.
        step_inputs: what to send with `Session.step` for the layer: any of "range", "output_range",
            "input_range" and "gradient".
        range_per_channel: whether a range is [2, C] instead of [2].
        range_group_size: not 0: a range is [2, n], of each so many consecutive weights in C order.
        remembers_more: whether the algorithm may remember more than a checkpoint has.
        joint: whether the layers of the rule are decided about together: they are stale together,
            and a `Session.calc_mask` of stale ones has to have all of them.
        takes_counts: whether `Session.calc_thresholds` takes the layer.
        statistics: what `Session.add_statistics` takes of the layer, because the algorithm uses it:
            kind -> shape; () for a histogram, which may have any number of bins.
        activation: what is applied to the layer's outputs before they are reduced to these: "relu",
            "relu6", or "" for nothing.
    """

    name: str
    compressed: bool
    rule: Optional[int] = None
    options: Mapping[str, Any] = field(default_factory=dict)
    refresh: Optional[str] = None
    step_inputs: tuple[str, ...] = ()
    range_per_channel: bool = False
    range_group_size: int = 0
    remembers_more: bool = False
    joint: bool = False
    takes_counts: bool = False
    statistics: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    activation: str = ""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model, whether the server could compress it or not.

    Attributes:
        name: in the framework: "conv1.weight".
        op_type: of the module or layer that has it.
        elements: how many numbers it has.
        dimensions: of its shape.
        layer: its name in BindModel; None: it cannot be compressed.
    """

    name: str
    op_type: str
    elements: int
    dimensions: int
    layer: Optional[str] = None


@dataclass(frozen=True)
class Coverage:
    """Which part of a model is compressed; `str()` is a line about it.

    A weight is a parameter that is compressed, or that has two or more dimensions: biases and the
    scales of norms are not weights, unless a rule compresses them.

    Attributes:
        compressed: how many weights are.
        weights: how many there are.
        compressed_parameters: numbers in the weights that are compressed.
        parameters: numbers in all of the model's parameters.
        left_out: the weights that no rule compresses, or that none could, the largest first.
        excluded: those that a rule excludes.
    """

    compressed: int
    weights: int
    compressed_parameters: int
    parameters: int
    left_out: tuple[Parameter, ...] = ()
    excluded: tuple[Parameter, ...] = ()

    @classmethod
    def of(cls, parameters: Iterable[Parameter], layers: Mapping[str, LayerPlan]) -> Coverage:
        """Of a model with these parameters, under the plan of its layers."""
        plans = [(p, layers.get(p.layer) if p.layer is not None else None) for p in parameters]
        compressed = [p for p, plan in plans if plan is not None and plan.compressed]
        others = [
            (p, plan is not None and plan.rule is not None)
            for p, plan in plans
            if p.dimensions > 1 and not (plan is not None and plan.compressed)
        ]
        others.sort(key=lambda other: -other[0].elements)
        return cls(
            compressed=len(compressed),
            weights=len(compressed) + len(others),
            compressed_parameters=sum(p.elements for p in compressed),
            parameters=sum(p.elements for p, _ in plans),
            left_out=tuple(p for p, excluded in others if not excluded),
            excluded=tuple(p for p, excluded in others if excluded),
        )

    @property
    def share(self) -> float:
        """Of the parameters in compressed weights: 0 to 1."""
        return self.compressed_parameters / self.parameters if self.parameters else 0.0

    def __str__(self) -> str:
        percent = math.floor(1000 * self.share) / 10  # rounded down: 100 only if all are
        line = (
            f"{self.compressed} of {self.weights} weights, {percent:g} % of the parameters, are "
            "compressed"
        )
        if self.left_out:
            named = [f"{p.name} ({p.op_type})" for p in self.left_out[:_NAMED]]
            more = len(self.left_out) - len(named)
            line += "; not covered: " + ", ".join(named) + (f" and {more} more" if more else "")
        if self.excluded:
            line += f"; excluded: {len(self.excluded)}"
        return line


_NAMED = 5  # weights that a line about coverage names


@dataclass(frozen=True)
class Plan:
    """How the session compresses each layer.

    Attributes:
        layers: layer name -> LayerPlan, for every layer bound, in that order.
        warnings: for people: rules that match no layer, op_names and op_types that the model lacks,
            weights of one dimension that a rule without filters leaves out.
        needs_update_epoch: whether `Session.update_epoch` can change an answer.
        needs_step: whether `Session.step` can.
        coverage: the compressed part of a model that was bound by an adapter.
    """

    layers: Mapping[str, LayerPlan]
    warnings: tuple[str, ...] = ()
    needs_update_epoch: bool = False
    needs_step: bool = False
    coverage: Optional[Coverage] = None

    @property
    def compressed(self) -> tuple[str, ...]:
        """Names of the layers that are compressed, in the order bound."""
        return tuple(name for name, layer in self.layers.items() if layer.compressed)

    @property
    def joint(self) -> Mapping[str, int]:
        """Layer name -> its rule, of the layers that are decided about together with others."""
        return {
            name: layer.rule
            for name, layer in self.layers.items()
            if layer.joint and layer.rule is not None
        }

    @classmethod
    def from_wire(cls, message: pb.Plan) -> Plan:
        """Reads the wire's plan, which states each rule once."""
        rules = {rule.rule: rule for rule in message.rules}
        options = {index: from_struct(rule.options) for index, rule in rules.items()}
        layers = {}
        for layer in message.layers:
            index = layer.rule if layer.HasField("rule") else None
            rule = rules.get(index) if index is not None and layer.compressed else None
            layers[layer.name] = LayerPlan(
                name=layer.name,
                compressed=layer.compressed,
                rule=index,
                options=dict(options[rule.rule]) if rule is not None else {},
                refresh=_REFRESH.get(rule.refresh) if rule is not None else None,
                step_inputs=tuple(map(_role_name, rule.step_inputs)) if rule is not None else (),
                range_per_channel=rule.range_per_channel if rule is not None else False,
                range_group_size=rule.range_group_size if rule is not None else 0,
                remembers_more=rule.remembers_more if rule is not None else False,
                joint=rule.joint if rule is not None else False,
                takes_counts=rule.takes_counts if rule is not None else False,
                statistics={kind_name(s.kind): tuple(s.shape) for s in layer.statistics},
                activation=next(
                    (activation_name(s.activation) for s in layer.statistics if s.activation), ""
                ),
            )
        return cls(
            layers=layers,
            warnings=tuple(message.warnings),
            needs_update_epoch=message.needs_update_epoch,
            needs_step=message.needs_step,
        )


def _role_name(role: int) -> str:
    try:
        name: str = pb.TensorRole.Name(role)
    except ValueError:
        return str(role)  # a newer server's
    return name[len(_ROLE_PREFIX) :].lower()
