"""Layers, and what a session will do with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from . import tensors
from ._config import from_struct, text
from ._wire import compression_pb2 as pb
from .errors import InvalidArgumentError

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
            frameworks' dtypes are taken too.
        channel_axis: the dimension that per-channel quantization keeps apart: 0 in PyTorch, the
            last one in Keras.
        aliases: further names of the same (tied) weight; a rule that names any of them matches.

    >>> Layer(name="conv1", op_type="Conv2d", shape=[20, 1, 5, 5]).shape
    (20, 1, 5, 5)
    """

    name: str
    op_type: str
    shape: Sequence[int]
    dtype: Any = "float32"
    channel_axis: int = 0
    aliases: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", tensors.dtype_name(self.dtype))
        object.__setattr__(self, "aliases", tuple(self.aliases))

    def to_wire(self, path: str) -> pb.Layer:
        """The layer's message; `path` ("layers[3]") begins error messages."""
        try:
            return pb.Layer(
                name=text(self.name, f"{path}.name"),
                op_type=text(self.op_type, f"{path}.op_type"),
                dtype=tensors.wire_dtype(self.dtype),  # type: ignore[arg-type]
                shape=self.shape,
                channel_axis=self.channel_axis,
                aliases=[text(alias, f"{path}.aliases") for alias in self.aliases],
            )
        except ValueError as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(f"{path} ({self.name!r}): {error}") from error


@dataclass(frozen=True)
class LayerPlan:
    """What the session does with one layer.

    Attributes:
        name: the layer's.
        compressed: whether it is.
        rule: index in config_list of the rule that won; None when none matched. A layer that was
            taken out by `exclude` has a rule and is not compressed.
        options: of the winning rule, defaults filled in; empty when not compressed.
        refresh: when to ask again: "once", "when_stale" or "on_weight_change"; None when not
            compressed.
        step_inputs: what `Session.step` has to carry for the layer: of "range", "output_range",
            "input_range" and "gradient".
        range_per_channel: whether a range is [2, C] instead of [2].
        range_group_size: not 0: a range is [2, n], of each so many consecutive weights in C order.
    """

    name: str
    compressed: bool
    rule: Optional[int] = None
    options: Mapping[str, Any] = field(default_factory=dict)
    refresh: Optional[str] = None
    step_inputs: tuple[str, ...] = ()
    range_per_channel: bool = False
    range_group_size: int = 0


@dataclass(frozen=True)
class Plan:
    """What the session does, layer by layer.

    Attributes:
        layers: layer name -> LayerPlan, for every layer bound, in that order.
        warnings: for people: rules that match no layer, op_names that the model lacks.
        needs_update_epoch: whether `Session.update_epoch` can change an answer.
        needs_step: whether `Session.step` can.
    """

    layers: Mapping[str, LayerPlan]
    warnings: tuple[str, ...] = ()
    needs_update_epoch: bool = False
    needs_step: bool = False

    @property
    def compressed(self) -> tuple[str, ...]:
        """Names of the layers that are compressed, in the order bound."""
        return tuple(name for name, layer in self.layers.items() if layer.compressed)

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
