"""Statistics of layers, added up on the device that their tensors are on: of gradients when an
optimizer steps, of inputs and outputs in forward passes. Further parameters are as they are taken.

Nothing waits for the device until parts are taken.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch import nn

from ..adapters.statistics import Parts, named
from ..errors import InvalidArgumentError, UnimplementedError
from ..values.parts import StatisticPart
from ..values.plan import LayerPlan
from . import optimizers
from .masking import is_exporting, is_traced
from .modules import Observer, has_values
from .weights import TorchWeight, is_transposed_linear

PARAMETER = "parameter"  # the kind of further parameters

_FLOAT = 4  # bytes of a float32
_BITS = 10
BINS = 2 << _BITS  # of a histogram: 2^10 of each sign
_EXPONENTS = (-126, 127)  # of the width of its bins

_Unpacked = tuple[torch.Tensor, int]  # values and exponent of a part


def _wide(value: torch.Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64


def _as_it_is(total: torch.Tensor) -> _Unpacked:
    return total, 0


def _back_as_it_is(values: torch.Tensor, exponent: int) -> torch.Tensor:
    return values


def _add(total: torch.Tensor, more: torch.Tensor) -> None:
    total.add_(more)


def _raise(total: torch.Tensor, more: torch.Tensor) -> None:
    torch.maximum(total, more, out=total)


@dataclass(frozen=True)
class _Kind:
    """How a statistic is added up.

    Attributes:
        of: "gradient", "input" or "output".
        reduce: to a total, of tensors that nothing else has. Of the gradients of a step: (w * g, g,
            axis of the output channels, learning rate). Of inputs and outputs: a tensor of shape
            [samples, channels, positions], and the number of groups.
        merge: adds a total to another one, in place.
        unpack: a total -> what is sent.
        pack: the inverse.
        is_large: whether totals have the tensors' own type, rather than float64.
    """

    of: str
    reduce: Callable[..., torch.Tensor]
    merge: Callable[[torch.Tensor, torch.Tensor], None] = _add
    unpack: Callable[[torch.Tensor], _Unpacked] = _as_it_is
    pack: Callable[[torch.Tensor, int], torch.Tensor] = _back_as_it_is
    is_large: bool = False

    def dtype(self, tensor: torch.Tensor) -> torch.dtype:
        """Of totals of what is reduced to this tensor."""
        return tensor.dtype if self.is_large else _wide(tensor)


# Of gradients.


def _descent(product: torch.Tensor, gradient: torch.Tensor, axis: int, rate: Any) -> torch.Tensor:
    moved: torch.Tensor = product * rate
    return moved


def _mean_square(
    product: torch.Tensor, gradient: torch.Tensor, axis: int, rate: Any
) -> torch.Tensor:
    return gradient.square().mean().reshape(1)


def _filter_taylor(
    product: torch.Tensor, gradient: torch.Tensor, axis: int, rate: Any
) -> torch.Tensor:
    return product.transpose(0, axis).flatten(1).square().sum(1)


# Of inputs and outputs: [N, C, P].


def _grouped(channels: torch.Tensor, groups: int) -> torch.Tensor:
    return channels if groups == 1 else channels.reshape(groups, -1)


# Without a copy of the value: memory that is new in each step costs more than reading it twice.


def _square_sum(value: torch.Tensor, groups: int) -> torch.Tensor:
    return _grouped(torch.linalg.vector_norm(value, 2, 2).square_().sum(0), groups)


def _abs_sum(value: torch.Tensor, groups: int) -> torch.Tensor:
    return _grouped(torch.linalg.vector_norm(value, 1, 2).sum(0), groups)


def _abs_max(value: torch.Tensor, groups: int) -> torch.Tensor:
    largest = torch.maximum(value.amax(2), value.amin(2).neg_())
    return _grouped(largest.amax(0), groups)


def _sum(value: torch.Tensor, groups: int, activation: str = "") -> torch.Tensor:
    total = value.sum(2).sum(0)
    if activation:
        # What is not finite is to be refused, also where the activation makes it finite.
        total = total.mul_(0).add_(_ACTIVATIONS[activation](value).sum(2).sum(0))
    return total


def _zero_count(value: torch.Tensor, groups: int, activation: str = "") -> torch.Tensor:
    zeros = value <= 0 if activation else value == 0
    counts = zeros.sum((0, 2)).to(_wide(value))
    return counts.add_(value.sum(2).sum(0).mul_(0))  # what is not finite is to be refused


_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": lambda value: value.clamp(min=0),
    "relu6": lambda value: value.clamp(0, 6),
}
_AFTER_ACTIVATION = ("output_zero_count", "output_sum")


def _second_moment(value: torch.Tensor, groups: int) -> torch.Tensor:
    """[I, I], or [G, I, I]; only the lower triangle is used."""
    samples, channels, positions = value.shape
    rows = value.transpose(0, 1).reshape(groups, channels // groups, samples * positions)
    moments = rows @ rows.transpose(1, 2)
    return moments[0] if groups == 1 else moments


def _lower(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril_()


def _packed_triangle(total: torch.Tensor) -> _Unpacked:
    """The lower triangle, row by row."""
    return total[..., _lower(total.shape[-1], total.device)], 0


def _full_triangle(values: torch.Tensor, exponent: int) -> torch.Tensor:
    size = int((2 * values.shape[-1]) ** 0.5)
    total = values.new_zeros(*values.shape[:-1], size, size)
    total[..., _lower(size, values.device)] = values
    return total


def _range(value: torch.Tensor, groups: int) -> torch.Tensor:
    """[-minimum, maximum], which both grow."""
    smallest, largest = torch.aminmax(value)
    return torch.stack((smallest.neg(), largest))


def _turned(values: torch.Tensor, exponent: int = 0) -> torch.Tensor:
    """[minimum, maximum] of that, and the inverse."""
    return torch.stack((values[0].neg(), values[1]))


def _bounds(total: torch.Tensor) -> _Unpacked:
    return _turned(total), 0


def _histogram(value: torch.Tensor, groups: int) -> torch.Tensor:
    """The counts, and then the exponent: the smallest with which all numbers have a bin."""
    largest = value.abs().amax()
    _, exponent = torch.frexp(largest)
    exponent = (exponent - _BITS).masked_fill(largest == 0, _EXPONENTS[0]).clamp(*_EXPONENTS)
    bins = torch.ldexp(value, -exponent).floor().nan_to_num(0)
    places = bins.clamp(-BINS // 2, BINS // 2 - 1).long().flatten() + BINS // 2
    counts = value.new_zeros(BINS + 1, dtype=_wide(value))
    counts.scatter_add_(0, places, torch.ones_like(places, dtype=counts.dtype))
    counts.add_(largest.mul(0))  # what is not finite is to be refused
    counts[BINS] = exponent
    return counts


def _merge_histograms(total: torch.Tensor, more: torch.Tensor) -> None:
    """At the larger of both widths."""
    exponent = torch.maximum(total[BINS], more[BINS])
    merged = torch.zeros_like(total)
    for each in (total, more):
        bins = torch.arange(-BINS // 2, BINS // 2, device=each.device, dtype=each.dtype)
        places = torch.ldexp(bins, each[BINS] - exponent).floor().long() + BINS // 2
        merged.scatter_add_(0, places, each[:BINS])
    merged[BINS] = exponent
    total.copy_(merged)


def _counts(total: torch.Tensor) -> _Unpacked:
    return total[:BINS].clone(), int(total[BINS])


def _with_exponent(values: torch.Tensor, exponent: int) -> torch.Tensor:
    return torch.cat((values, torch.full_like(values[:1], exponent)))


_KINDS = {
    "weight_gradient": _Kind("gradient", _descent, is_large=True),
    "squared_gradient": _Kind("gradient", _mean_square),
    "filter_taylor": _Kind("gradient", _filter_taylor),
    "input_square_sum": _Kind("input", _square_sum),
    "input_second_moment": _Kind(
        "input", _second_moment, unpack=_packed_triangle, pack=_full_triangle, is_large=True
    ),
    "input_abs_max": _Kind("input", _abs_max, _raise),
    "input_abs_sum": _Kind("input", _abs_sum),
    "output_zero_count": _Kind("output", _zero_count),
    "output_sum": _Kind("output", _sum),
    **{f"{of}_range": _Kind(of, _range, _raise, _bounds, _turned) for of in ("input", "output")},
    **{
        f"{of}_histogram": _Kind(of, _histogram, _merge_histograms, _counts, _with_exponent)
        for of in ("input", "output")
    },
}


def _kind_of(name: str, layer: LayerPlan) -> _Kind:
    """How a statistic of a layer is added up.

    Raises UnimplementedError for an activation that is not known.
    """
    kind, activation = _KINDS[name], layer.activation
    if not activation or name not in _AFTER_ACTIVATION:
        return kind
    if activation not in _ACTIVATIONS:
        raise UnimplementedError(
            f"the algorithm asks for the {name} of layer {layer.name!r} after the activation "
            f"{activation}; this adapter applies {', '.join(_ACTIVATIONS)}"
        )
    return replace(kind, reduce=functools.partial(kind.reduce, activation=activation))


class _Total:
    """What a statistic is since it was taken; for each device, so that nothing is moved."""

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self.times = 0  # that something was added
        self._found: dict[torch.device, tuple[torch.Tensor, int]] = {}  # and over how many samples

    @property
    def is_empty(self) -> bool:
        return not self._found

    def add(self, reduced: torch.Tensor, count: int) -> None:
        """Adds what nothing else has."""
        self.times += 1
        self._merge(reduced, count)

    def _merge(self, reduced: torch.Tensor, count: int) -> None:
        device = reduced.device
        if device not in self._found:
            self._found[device] = reduced.to(self.kind.dtype(reduced)), count
            return
        total, before = self._found[device]
        self.kind.merge(total, reduced.to(total.dtype))
        self._found[device] = total, before + count

    def restore(self, part: StatisticPart, device: torch.device) -> None:
        """Adds a part."""
        values = torch.tensor(part.values, device=device)
        self._merge(self.kind.pack(values, part.exponent), part.count)

    def part(self) -> StatisticPart:
        """What there is; not for an empty one."""
        first, *others = self._found.values()
        total, count = first[0].clone(), first[1]
        for more, samples in others:
            self.kind.merge(total, more.to(total.device))
            count += samples
        values, exponent = self.kind.unpack(total)
        return StatisticPart(values.cpu().numpy(), count, exponent)

    def clear(self) -> None:
        """Begins a new sum."""
        self._found = {}


class _Further:
    """A further parameter of a layer.

    Args:
        read: its tensor in the model.
    """

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self._read = read
        #: What was taken last, and need not be sent again.
        self.taken: Any = None

    def part(self) -> Optional[StatisticPart]:
        """As it is now; None where that was taken."""
        values = _widened(self._read().detach()).cpu().numpy().copy()
        # One that is not finite was refused.
        is_same = np.array_equal(values, self.taken) and np.isfinite(values).all()
        return None if is_same else StatisticPart(values)


class TorchCollector:
    """Of the layers of a model, from `start` on.

    Args:
        weights: of the layers; each statistic of the plan is one that `why_none` lets through.
        plan: of all layers.
        further: layer name -> what reads the parameter that is its statistic `PARAMETER`.
    """

    def __init__(
        self,
        weights: Sequence[TorchWeight],
        plan: Mapping[str, LayerPlan],
        further: Mapping[str, Callable[[], torch.Tensor]],
    ) -> None:
        self._weights = {weight.name: weight for weight in weights}
        self._totals = {
            name: {
                kind: _Total(_kind_of(kind, plan[name]))
                for kind in plan[name].statistics
                if kind != PARAMETER
            }
            for name in self._weights
        }
        self._further = {name: _Further(read) for name, read in further.items()}
        self.steps = 0

    # See `adapters.statistics.Collector`.

    @property
    def is_empty(self) -> bool:
        # Parameters are there before the sums that are to go with them.
        totals = [total for kinds in self._totals.values() for total in kinds.values()]
        return all(total.is_empty for total in totals) if totals else not self._further

    @property
    def batches(self) -> int:
        totals = [total for kinds in self._totals.values() for total in kinds.values()]
        return min((total.times for total in totals), default=0)

    def check(self) -> None:
        frozen = [n for n in self._having("gradient") if not self._weights[n].dense.requires_grad]
        if frozen:
            kind = next(iter(self._having("gradient")[frozen[0]]))
            them = "it" if len(frozen) == 1 else "them"
            raise InvalidArgumentError(
                f"the algorithm asks for the {kind} of {named(frozen)}, and requires_grad of the "
                f"weight is False: exclude {them} in config_list, or set it to True before"
            )

    def has(self, name: str, kind: str) -> bool:
        total = self._totals.get(name, {}).get(kind)
        return total is not None and not total.is_empty

    def of(self, kind: str) -> str:
        return _KINDS[kind].of

    def take(self, names: Collection[str]) -> Parts:
        taken = self.peek(names)
        for name, parts in taken.items():
            for kind, part in parts.items():
                if kind == PARAMETER:
                    self._further[name].taken = part.values
                else:
                    self._totals[name][kind].clear()
        return taken

    def peek(self, names: Collection[str]) -> Parts:
        with torch.inference_mode(False), torch.no_grad():  # type: ignore[no-untyped-call]
            found = {
                name: {
                    kind: total.part()
                    for kind, total in self._totals[name].items()
                    if not total.is_empty
                }
                for name in names
            }
            for name in names:
                part = self._further[name].part() if name in self._further else None
                if part is not None:
                    found[name][PARAMETER] = part
        return {name: parts for name, parts in found.items() if parts}

    def add(self, parts: Parts) -> None:
        for name, kinds in parts.items():
            for kind, part in kinds.items():
                if kind == PARAMETER and name in self._further:
                    self._further[name].taken = None
                elif kind in self._totals[name]:
                    self._totals[name][kind].restore(part, self._weights[name].dense.device)

    def merged(self, kind: str, one: StatisticPart, other: StatisticPart) -> StatisticPart:
        of = _KINDS[kind]
        total, more = (
            of.pack(torch.tensor(part.values, dtype=torch.float64), part.exponent)
            for part in (one, other)
        )
        of.merge(total, more)
        values, exponent = of.unpack(total)
        return StatisticPart(values.numpy(), one.count + other.count, exponent)

    def leave_out(self, kinds: Collection[str]) -> None:
        if PARAMETER in kinds:
            self._further = {}
        for totals in self._totals.values():
            for kind in kinds & totals.keys():
                del totals[kind]

    # Collecting.

    def start(self, given: Sequence[Any]) -> list[Callable[[], None]]:
        """Begins; returns functions that end it.

        Args:
            given: optimizers.

        Raises InvalidArgumentError where PyTorch 1.13 needs the optimizer.
        """
        removers = []
        stepping = self._having("gradient")
        if stepping:
            weak = weakref.ref(self)

            def before(optimizer: Any, args: Any, kwargs: Any) -> Any:
                collector = weak()
                return (
                    None if collector is None else collector._before_step(optimizer, args, kwargs)
                )

            remove = optimizers.before_steps(self, before, given)
            if remove is None:
                name, kinds = next(iter(stepping.items()))
                raise InvalidArgumentError(
                    f"the algorithm asks for the {next(iter(kinds))} of layer {name!r}, which is "
                    f"collected when the optimizer steps: PyTorch {torch.__version__} has to be "
                    "given it, as in MovementPruner(model, config_list, optimizer)"
                )
            removers.append(remove)
        for name in {**self._having("input"), **self._having("output")}:
            removers.append(self._observe_layer(name))
        return removers

    def _having(self, of: str) -> dict[str, dict[str, _Total]]:
        """The totals of gradients, inputs or outputs, by layer and kind."""
        found = {
            name: {kind: total for kind, total in totals.items() if total.kind.of == of}
            for name, totals in self._totals.items()
        }
        return {name: totals for name, totals in found.items() if totals}

    def _before_step(
        self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Optional[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Adds up gradients. A closure computes them within the step."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._step(optimizer)
            return None

        @functools.wraps(closure)
        def with_gradients() -> Any:
            loss = closure()
            self._step(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], with_gradients, *args[2:]), kwargs
        return args, {**kwargs, "closure": with_gradients}

    def _step(self, optimizer: Any) -> None:
        rates: dict[int, Any] = {}
        for group in optimizer.param_groups:
            rate = group.get("lr")  # None: an optimizer that finds its own
            rate = 1 if rate is None else rate
            if group.get("maximize"):  # the weight moves along the gradient
                rate = -rate
            rates.update((id(own), rate) for own in group["params"])
        trained = [name for name in self._totals if id(self._weights[name].dense) in rates]
        self.steps += bool(trained)
        # Set by a GradScaler for an optimizer that unscales by itself, and skips such steps.
        scale, overflow = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        with torch.inference_mode(False), torch.no_grad():  # type: ignore[no-untyped-call]
            for name, totals in self._having("gradient").items():
                weight = self._weights[name]
                dense, found = weight.dense.detach(), weight.dense.grad
                if found is None or id(weight.dense) not in rates:
                    continue
                gradient = _widened(found.to_dense() if found.is_sparse else found)
                if scale is not None:
                    gradient = gradient / scale.to(gradient.device)
                if overflow is not None:
                    skipped = overflow.to(gradient.device) != 0
                    gradient = gradient.masked_fill(skipped, 0)
                rate = rates[id(weight.dense)]
                product = _widened(dense) * gradient
                for total in totals.values():
                    given = product, gradient, weight.channel_axis, rate
                    total.add(total.kind.reduce(*given), 1)

    def _observe_layer(self, name: str) -> Callable[[], None]:
        state = self._weights[name].state
        totals = {of: self._having(of).get(name, {}).values() for of in ("input", "output")}
        observer: Observer = functools.partial(_observe, totals)
        state.observers += (observer,)

        def remove() -> None:
            state.observers = tuple(each for each in state.observers if each is not observer)

        return remove


def _observe(
    totals: Mapping[str, Iterable[_Total]],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> None:
    """Adds up inputs and outputs of a layer, in training and in evaluation."""
    if is_exporting() or is_traced():
        return
    value = args[0] if args else next(iter(kwargs.values()), None)
    with torch.inference_mode(False), torch.no_grad():  # type: ignore[no-untyped-call]
        for of, tensor in (("input", value), ("output", result)):
            if not totals[of] or not _can_be_read(tensor):
                continue
            groups = getattr(module, "groups", 1) if of == "input" else 1
            channels = _channels(module, _widened(tensor.detach()))
            count = channels.shape[0] * channels.shape[2]
            for total in totals[of]:
                total.add(total.kind.reduce(channels, groups), count)


def _can_be_read(value: Any) -> bool:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and value.numel() > 0 and has_values(value)


def _channels(module: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """An input or output of a layer as [samples, channels, positions]."""
    size = getattr(module, "kernel_size", None)
    if size is None:
        return value.reshape(-1, value.shape[-1], 1)
    batch = value if value.dim() == len(size) + 2 else value[None]
    return batch.flatten(2)


def _widened(value: torch.Tensor) -> torch.Tensor:
    """In float32 or better."""
    return value.float() if value.element_size() < _FLOAT else value


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def why_none(weight: TorchWeight, kind: str) -> str:
    """Why a statistic, other than `PARAMETER`, cannot be collected, or a gradient not sent; empty
    where it can.
    """
    known = _KINDS.get(kind)
    if kind == "gradient" or (known is not None and known.of == "gradient"):
        if weight.is_computed:
            return "which is computed from other parameters; only those have gradients"
        return ""
    if known is None:
        return "which this adapter does not collect"
    for place in weight.places:
        module = place.module
        if not place.is_weight or not (isinstance(module, _LAYERS) or is_transposed_linear(module)):
            return "which is collected for Linear, Conv1d, Conv2d and Conv3d only"
    return ""
