"""Modules whose weights are compressed wherever they are read.

A module is compressed by giving it a subclass of its class in which the weight, a parameter that is
called `weight` in most modules, is a property over the unchanged parameter:
`module._parameters["weight"]`, or what it is computed from (see `dense_weights`), stays what
optimizers, checkpoints and `named_parameters()` use, and every reader of `module.weight` (its own
forward, a fused kernel of its parent, a layer that shares it) gets the compressed one, as a
`CompressedWeight`. The mask is not a buffer: distributed training would send every buffer to all
ranks before every forward pass.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import sys
import threading
import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ..values.masks import Mask
from . import dense_weights, dense_writes, operator
from .activations import Activation
from .checksums import checksum_of, sample_of
from .masking import is_dynamo, is_exporting, is_traced, keep, keep_bits, masked
from .passing import CompressedWeight, state_key
from .rounding import Parameters

# Held briefly while a mask is replaced.
_replacing = threading.Lock()


class _Copying(threading.local):
    """How this thread copies modules."""

    as_it_is = False


_copying = _Copying()


@contextlib.contextmanager
def copied_as_it_is() -> Iterator[None]:
    """Inside, copies of modules have the answers in force, and none is asked for."""
    before, _copying.as_it_is = _copying.as_it_is, True
    try:
        yield
    finally:
        _copying.as_it_is = before


Observer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


class Source(Protocol):
    """The source of a module's mask or quantization while a session is open."""

    name: str

    def ensure_fresh(self) -> None:
        """Requests a new answer when this weight, or the session, has changed."""

    @property
    def has_answer(self) -> bool:
        """Whether there is an answer that is not known to be stale; makes no call."""

    def forget(self) -> None:
        """Treats the weight as changed."""

    @property
    def dense(self) -> torch.Tensor:
        """The dense weight that answers apply to."""

    def is_dense(self, weight: torch.Tensor) -> bool:
        """Whether this tensor, which a module has as its dense weight, is that one."""


class Answers:
    """The server's last answer for a weight, for copies of its module.

    Copies refer to this and not to the original's state, so that they keep neither the original nor
    its session alive.
    """

    def __init__(self) -> None:
        self.version = 0
        self.mask: Optional[torch.Tensor] = None
        self.parameters: Optional[Parameters] = None
        self.activations: dict[str, Optional[Parameters]] = {}  # "output" and "input"


@dataclass(frozen=True)
class _Bits:
    """Shows whether a weight was written to: some elements, or a checksum of all of them.

    Elements are read only on the CPU. Comparing a checksum synchronizes with the device.
    """

    dtype: torch.dtype
    sample: object
    checksum: Optional[torch.Tensor]

    @staticmethod
    def of(dense: torch.Tensor) -> Optional[_Bits]:
        """The bits of a weight; None if it cannot be read."""
        sample = None if _is_of_functorch(dense) else sample_of(dense)
        if sample is not None:
            return _Bits(dense.dtype, sample, None)
        return _Bits(dense.dtype, None, checksum_of(dense)) if _can_be_read(dense) else None

    def differ_from(self, dense: torch.Tensor) -> bool:
        """Whether the weight is known to differ; it may be on another device now."""
        if dense.dtype != self.dtype or not _can_be_read(dense):
            return False
        if self.checksum is not None:
            return not torch.equal(self.checksum, checksum_of(dense).to(self.checksum.device))
        return sample_of(dense.detach().to("cpu").contiguous()) != self.sample


def _can_be_read(dense: torch.Tensor) -> bool:
    """Whether a weight is a plain tensor with values, on a device that may be synchronized."""
    if type(dense) not in (torch.Tensor, nn.Parameter) or not has_values(dense):
        return False
    if dense.device.type != "cuda":
        return True
    return not torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def has_values(dense: torch.Tensor) -> bool:
    """Whether there are numbers that could be sent: not on "meta", nor for `torch.func`."""
    return dense.device.type != "meta" and not _is_of_functorch(dense)


def _is_of_functorch(dense: torch.Tensor) -> bool:
    """Whether a weight is batched by `torch.vmap` or differentiated by `torch.func`."""
    wrapped = getattr(getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return wrapped is not None and bool(wrapped(dense))


class WeightState:
    """The mask and quantization that turn a module's dense weight into the effective one.

    Modules that share a weight share this. A copy (deepcopy, pickle) computes the same as its
    original at that moment and is bound to no session: it keeps the mask and the parameters, and
    rounds locally. Only a deep copy that is written to, such as an exponential moving average of
    the original, continues to receive the original's answers: `follow`.
    """

    def __init__(self) -> None:
        self.pruner: Optional[Source] = None
        self.quantizer: Optional[Source] = None
        # Bool, True = kept; None: all. Replaced, by set_mask, and never written: graphs of earlier
        # forwards hold it.
        self.mask: Optional[torch.Tensor] = None
        self.parameters: Optional[Parameters] = None  # None: not quantized (yet)
        self.values: Optional[torch.Tensor] = None  # quantized by the service; None: rounded here
        self.output: Optional[Activation] = None  # None: outputs are not quantized
        self.input: Optional[Activation] = None
        # Called with (module, args, kwargs, result) of forward passes; replaced, never written.
        self.observers: tuple[Observer, ...] = ()
        self.lost_write = False  # something was written that did not reach the dense weight
        self.answers = Answers()  # for copies
        self.origin: Optional[Answers] = None  # of a copy: the original's answers
        self._followed = 0  # its version that is in force here
        self._copied: list[Optional[_Bits]] = []  # of a copy: its parameters as they were copied
        self._written = False  # of a copy: whether it is known to have been written to since
        self._present: list[Optional[_Bits]] = []  # for a copy that is being made
        self.key = operator.register(self)

    @property
    def name(self) -> str:
        """For messages; empty in a copy, which is bound to no session."""
        source = self.pruner or self.quantizer
        return "" if source is None else source.name

    def written(self) -> None:
        """Called when the dense weight was written to, possibly without a trace in it."""
        self.values = None
        for source in (self.quantizer, self.pruner):
            if source is not None:
                source.forget()

    def check_exportable(self) -> None:
        """Raises RuntimeError if an exported model would compute something else."""
        for source in (self.quantizer, self.pruner):
            if source is not None and not source.has_answer:
                raise RuntimeError(
                    f"layer {source.name!r} has no answer of the server for its present weight; "
                    "run one forward pass of the model, or call refresh() of its pruner or "
                    "quantizer, before it is exported"
                )

    def refresh(self) -> None:
        """Makes mask and quantization those of the present weight."""
        if self.quantizer is not None:
            self.quantizer.ensure_fresh()
        if self.pruner is not None:
            self.pruner.ensure_fresh()

    def set_mask(self, mask: Optional[torch.Tensor]) -> None:
        """Puts a mask in force."""
        with _replacing:
            self.mask = mask
        self.publish()

    def publish(self) -> None:
        """Updates the answers for copies."""
        told = self.answers
        told.mask = self.mask
        computed_here = self.parameters is not None and not self.parameters.bits
        told.parameters = None if computed_here else self.parameters  # values are of one weight
        told.activations = {
            target: activation.parameters
            for target, activation in (("output", self.output), ("input", self.input))
            if activation is not None
        }
        told.version += 1

    def follow(self, parameters: Sequence[torch.Tensor]) -> None:
        """In a copy whose weight was written to: puts the original's answers in force.

        A copy that was not written to is a snapshot and does not change.

        Args:
            parameters: the copy's dense weight, or all that it is computed from.
        """
        origin = self.origin
        if origin is None or not parameters or self._followed == origin.version:
            return
        if self.pruner is not None or self.quantizer is not None:
            self.origin = None  # it is bound to a session of its own
            return
        self._written = self._written or self._is_written(parameters)
        if not self._written:
            return
        self._followed = origin.version
        self.mask = origin.mask
        if self.parameters is None or self.parameters.bits:
            self.parameters = origin.parameters
        for target, of_activation in origin.activations.items():
            activation = getattr(self, target)
            if activation is not None:
                activation.parameters = of_activation

    def follow_always(self, original: WeightState) -> None:
        """Makes this the state of a copy of `original` that follows it, written to or not."""
        self.origin, self._followed, self._written = original.answers, -1, True
        for target in ("output", "input"):
            if getattr(original, target) is not None and getattr(self, target) is None:
                setattr(self, target, Activation.of_copy())

    def _is_written(self, parameters: Sequence[torch.Tensor]) -> bool:
        # A fresh parameter has version 0, and moving it to a device or dtype leaves that.
        if any(not own.is_inference() and own._version > 0 for own in parameters):
            return True
        # `.data` is written without a trace.
        copied = self._copied if len(self._copied) == len(parameters) else ()
        return any(bits is not None and bits.differ_from(p) for bits, p in zip(copied, parameters))

    def before_copy(self, parameters: Sequence[torch.Tensor]) -> None:
        """Called before the module is copied, so that the copy computes the same."""
        if not _copying.as_it_is:
            self.refresh()
        self.follow(parameters)
        self._present = [_Bits.of(parameter) for parameter in parameters]

    def __deepcopy__(self, memo: Any) -> WeightState:
        copied = WeightState.__new__(WeightState)
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied.origin = self.answers if self.origin is None else self.origin
        copied._followed = copied.origin.version
        copied._copied = self._present
        memo[id(self)] = copied
        return copied

    def snapshot(self) -> Callable[[], None]:
        """Returns a function that restores the present state, also for copies."""
        before, told = dict(self.__dict__), dict(self.answers.__dict__)

        def restore() -> None:
            self.__dict__.update(before)
            version = self.answers.version
            if version != told["version"]:
                self.answers.__dict__.update(told, version=version + 1)

        return restore

    def __getstate__(self) -> dict[str, Any]:
        packed = None
        if self.mask is not None:
            mask = Mask.from_numpy(self.mask.cpu().numpy())
            packed = (np.array(mask.bits), mask.shape)
        activations = {"output": self.output, "input": self.input}
        return {"parameters": self.parameters, "mask": packed, **activations}

    def __setstate__(self, state: dict[str, Any]) -> None:
        WeightState.__init__(self)
        self.parameters = state["parameters"]
        self.output, self.input = state.get("output"), state.get("input")
        if state["mask"] is not None:
            self.mask = torch.from_numpy(Mask(*state["mask"]).to_numpy())

    def quantized(self, dense: torch.Tensor, is_sent: bool = True) -> torch.Tensor:
        """The quantized values of the weight, or the weight; without gradient.

        Args:
            is_sent: whether this is the weight that was sent, or a replica of it that DataParallel
                made: the service's values are valid for it. All others are rounded here.
        """
        if self.parameters is None:
            return dense.detach()
        if self.values is None or not is_sent:
            return self.parameters.quantize(dense)
        return self.values.to(dense.device, dense.dtype)

    def read(
        self, module: nn.Module, dense: torch.Tensor, parameters: Sequence[torch.Tensor]
    ) -> Any:
        """The `effective` weight with fresh answers."""
        if is_exporting():
            self.check_exportable()
        else:
            _refresh(self, parameters)
        return self.effective(module, dense)

    def read_detached(self, dense: torch.Tensor) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """See `operator.Weight`."""
        self.refresh()
        self.follow((dense,))
        source = self.quantizer
        # A compiled graph gets another tensor object for the parameter that was sent.
        is_sent = source is not None and (
            source.is_dense(dense) or source.dense.data_ptr() == dense.data_ptr()
        )
        passes = None
        if self.parameters is None:
            weight = dense.detach()
        elif self.values is None or not is_sent:
            weight, passes = self.parameters.quantize_and_inside(dense)
        else:
            weight = self.values.to(dense.device, dense.dtype, copy=self.mask is None)
            passes = self.parameters.inside(dense) if self.parameters.clamps else None
        if self.mask is None:
            return weight, passes
        mask = self._mask_on(dense.device, keep=True)
        keep_bits(mask, weight)
        return masked(weight, mask), mask.clone() if passes is None else passes & mask

    def effective(self, module: nn.Module, dense: torch.Tensor) -> Any:
        """Quantized first, then masked: zeros stay zero. Differentiable in `dense`."""
        replica = bool(module.__dict__.get("_is_replica"))
        weight = dense
        if self.parameters is not None and is_exporting():
            weight = self.parameters.rounded(dense)
        elif self.parameters is not None:
            source = self.quantizer
            is_sent = source is not None and (replica or source.is_dense(dense))
            values = self.quantized(dense, is_sent)
            weight = _StraightThrough.apply(dense, values, self.parameters)
        if self.mask is None:
            return weight
        mask = self._mask_on(weight.device, keep=not replica)
        keep_bits(mask, weight)
        return masked(weight, mask, sparse=bool(module.__dict__.get("sparse")))

    def _mask_on(self, device: torch.device, *, keep: bool) -> torch.Tensor:
        """The mask where the weight is; it follows when the model moves."""
        mask = self.mask
        assert mask is not None
        if mask.device == device:
            return mask
        # A tensor made in inference mode could not be trained with later.
        with torch.inference_mode(False):  # type: ignore[no-untyped-call]
            moved = mask.to(device)
        # A call without values, on meta or fake tensors, must not leave a mask without them.
        if keep and device.type != "meta" and type(moved) is torch.Tensor:
            with _replacing:
                if self.mask is mask:  # a newer mask must not be replaced
                    self.mask = moved
        return moved


class CompressedModule(nn.Module):
    """Mixed into the class of a module with compressed weights."""

    _compressed_parts: tuple[str, ...] = ()  # names of parameters

    def __setattr__(self, name: str, value: Any) -> None:
        # An adapter may assign the weight that this module returned: then it is the parameter.
        if isinstance(value, CompressedWeight) and value.is_of(self, name):
            value = self._parameters[name]
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, with quantized inputs and outputs if these are quantized."""
        for part in self._compressed_parts:
            state = getattr(self, state_key(part))
            # In a graph, reading the weight does this; inputs are quantized before it is read.
            follows = is_dynamo() and state.input is None
            if state.origin is not None and not is_exporting() and not follows:
                _refresh(state, dense_weights.parameters(self, part))
        state = self.__dict__.get(_ACTIVATIONS)
        if state is None:
            return super().forward(*args, **kwargs)
        given = args, kwargs
        if state.input is not None:
            args = tuple(state.input(value, self.training) for value in args)
            kwargs = {name: state.input(value, self.training) for name, value in kwargs.items()}
        result = super().forward(*args, **kwargs)
        if state.observers:
            _observe(state, self, *given, result)
        return result if state.output is None else state.output(result, self.training)

    def _deep_copier(self) -> Callable[[Any], Any]:
        if parametrize.is_parametrized(self):
            return functools.partial(_deep_copied, self)
        own: Callable[[Any], Any] = super().__deepcopy__  # type: ignore[misc]
        return own  # AttributeError: a module is copied by `__reduce_ex__`

    # Defined, or `parametrize` would add its own.
    __deepcopy__ = property(_deep_copier)

    def __reduce_ex__(self, protocol: Any) -> Any:
        for part in self._compressed_parts:  # then the dicts are walked
            getattr(self, state_key(part)).before_copy(dense_weights.parameters(self, part))
        reduced = super().__reduce_ex__(max(2, protocol))
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore
            base = (plain_class(self), self._compressed_parts)
            return (_new_module, (*base, *reduced[1][1:]), *reduced[2:])
        return reduced


# Only a module with a `weight` has quantized outputs and inputs.
_ACTIVATIONS = state_key("weight")


def is_overridden(module: nn.Module, part: str) -> bool:
    """Whether a compressed parameter was parametrized since, so that its reads are another's."""
    own = getattr(type(module), part, None)
    return state_of(module, part) is not None and not isinstance(own, _Property)


class _Property(property):
    """Of a compressed parameter."""


def _weight(part: str) -> property:
    """A parameter as the forward pass uses it. The dense one is in `named_parameters()`."""

    def read(module: CompressedModule) -> Any:
        if is_dynamo() and _is_traceable(module, part):
            state: WeightState = getattr(module, state_key(part))
            dense = dense_weights.read(module, part)
            return operator.read(dense, state.key)  # type: ignore[arg-type]
        if not _has(module, part):
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {part!r}")
        try:
            return _read_weight(module, part)
        except AttributeError as error:
            # nn.Module would treat an AttributeError as a missing property and return the dense
            # parameter.
            raise RuntimeError(f"the compressed weight cannot be read: {error}") from error

    def write(module: CompressedModule, value: Any) -> None:
        # nn.Module.__setattr__ handles parameters; this one handles the plain tensors that
        # DataParallel puts into its replicas, and weights that are computed.
        computed = dense_weights.computed_by(module, part)
        if computed is None:
            module.__dict__[part] = value
        else:
            computed.assign(value)

    def delete(module: CompressedModule) -> None:
        # `remove_weight_norm` deletes the attribute that the hook assigns.
        module.__dict__.pop(part, None)

    return _Property(read, write, delete)


def _has(module: nn.Module, part: str) -> bool:
    """Whether a module has a weight; not while functions of PyTorch replace it by another."""
    if part in module._parameters or part in module.__dict__:
        return True
    return dense_weights.computed_by(module, part) is not None


def _is_traceable(module: CompressedModule, part: str) -> bool:
    """Whether a compiled graph may read the weight by the operator."""
    parameters = dense_weights.parameters(module, part)
    if not parameters or is_exporting() or getattr(module, "sparse", False):
        return False
    if module._parameters.get(part) is None and getattr(module, state_key(part)).origin is not None:
        return False  # the operator does not see the parameters of a copy that may be written to
    return operator.is_possible(parameters[0])


def _weight_mask(module: CompressedModule) -> Optional[torch.Tensor]:
    """The mask in force: bool, True = kept; None when nothing is pruned (yet)."""
    state: WeightState = getattr(module, state_key("weight"))
    return None if state.mask is None else state.mask.detach()  # without its bits


def _flat_weights(module: Any) -> list[Any]:
    """All parameters of a recurrent module, which reads them as this list."""
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _ignore(module: Any, value: Any) -> None:
    """Of an attribute that is computed."""


def _read_weight(module: CompressedModule, part: str) -> Any:
    state: WeightState = getattr(module, state_key(part))
    dense: Optional[torch.Tensor] = module._parameters.get(part)
    if dense is None:
        dense = module.__dict__.get(part)  # of a replica, which lasts for one forward pass
        if dense is not None:
            return state.read(module, dense, (dense,))
        dense = dense_weights.read(module, part)
        if dense is None:
            return None
        # Computed: what is written to it is lost in the plain module, too.
        return state.read(module, dense, dense_weights.parameters(module, part))
    if state.lost_write:
        state.lost_write = False
        raise RuntimeError(
            f"the weight of layer {state.name!r} was written to, through a view or by `out=`, as "
            f"`module.{part}` gives it; that is computed at each read, so the write is lost. Write "
            "to the parameter that named_parameters() has"
        )
    weight = state.read(module, dense, (dense,))
    if weight is dense or type(weight) is not torch.Tensor or is_traced():
        return weight
    # `max_norm` scales the weight that was read in place, at each read.
    watched = module.__dict__.get("max_norm") is None
    return CompressedWeight.of(weight, weakref.ref(module), part, watched=watched)


def _refresh(state: WeightState, parameters: Sequence[torch.Tensor]) -> None:
    state.refresh()
    state.follow(parameters)


def _observe(state: WeightState, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
    for observer in state.observers:
        observer(module, args, kwargs, result)


# Not traceable by a compiler: the one makes calls, the other depends on what was seen before.
if hasattr(torch, "compiler") and hasattr(torch.compiler, "disable"):
    _refresh, _observe = map(torch.compiler.disable, (_refresh, _observe))
elif hasattr(torch, "_dynamo"):
    _refresh, _observe = map(torch._dynamo.disable, (_refresh, _observe))


_classes: dict[tuple[type, tuple[str, ...]], type] = {}


def _class_of(module: nn.Module, parts: tuple[str, ...]) -> type:
    """The class of a module whose parameters `parts`, possibly none, are compressed."""
    base = plain_class(module)
    base = _compressed_module_class(base, parts) if parts else base
    if not parametrize.is_parametrized(module):
        return base
    # `parametrize` makes a class for each module, puts properties into it, or removes them, and
    # restores its base in the end. So that class is the most derived one.
    twin: Any = nn.Module.__new__(base)
    twin.__dict__ = module.__dict__
    parametrize._inject_new_class(twin)
    for name in twin.parametrizations:
        if name in parts:
            setattr(twin.__class__, name, vars(base)[name])
        else:
            parametrize._inject_property(twin, name)
    cls: type = twin.__class__
    return cls


def _deep_copied(module: CompressedModule, memo: Any) -> Any:
    """A copy of a parametrized module, which has to have a class of its own."""
    parts = module._compressed_parts
    for part in parts:
        getattr(module, state_key(part)).before_copy(dense_weights.parameters(module, part))
    plain: Any = _class_of(module, ())
    copied = plain.__deepcopy__(module, memo)
    copied.__class__ = _class_of(copied, parts)
    return copied


def _compressed_module_class(base: type, parts: tuple[str, ...]) -> type:
    """The one subclass of `base` whose parameters `parts` are compressed."""
    if (base, parts) not in _classes:
        members: dict[str, Any] = {part: _weight(part) for part in parts}
        members.update(__module__=__name__, _compressed_parts=parts)
        if "weight" in parts:
            members["weight_mask"] = property(_weight_mask)
        if issubclass(base, nn.RNNBase):
            members["_flat_weights"] = property(_flat_weights, _ignore)
        name = "Compressed" + base.__name__
        _classes[base, parts] = type(name, (CompressedModule, base), members)
    return _classes[base, parts]


def _new_module(base: type, parts: tuple[str, ...], *args: Any) -> Any:
    """Unpickles: the class is generated where it is needed."""
    cls: Any = _compressed_module_class(base, parts)
    return cls.__new__(cls, *args)


def _new_compressed(base: type, *args: Any) -> Any:
    """The same, of files that version 0.2 and earlier wrote."""
    return _new_module(base, ("weight",), *args)


def plain_class(module: nn.Module) -> type:
    """The class that the module has without compression, parametrizations and `fully_shard`."""
    cls = type(module)
    # Only a program that has imported this can have such a class.
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    cls = cls.__bases__[1] if sharded in cls.__bases__ else cls
    cls = cls.__bases__[0] if parametrize.is_parametrized(module) else cls
    return cls.__bases__[1] if issubclass(cls, CompressedModule) else cls


def state_of(module: nn.Module, part: str) -> Optional[WeightState]:
    """The state of a parameter of a module; None if it is not compressed."""
    return module.__dict__.get(state_key(part)) if isinstance(module, CompressedModule) else None


def install(module: nn.Module, part: str, state: WeightState) -> None:
    """Makes a module read its parameter through `state`, all kept and nothing quantized so far."""
    parts = module._compressed_parts if isinstance(module, CompressedModule) else ()
    module.__dict__[state_key(part)] = state
    if part not in parts:
        module.__class__ = _class_of(module, (*parts, part))
        module.__dict__.pop(part, None)  # that a hook assigned


def uninstall(module: nn.Module, part: str) -> None:
    """Restores the module's own parameter, whose values are unchanged."""
    if state_of(module, part) is None:
        return
    assert isinstance(module, CompressedModule)
    rest = tuple(other for other in module._compressed_parts if other != part)
    module.__class__ = _class_of(module, rest)
    del module.__dict__[state_key(part)]
    computed = dense_weights.computed_by(module, part)
    if computed is not None:
        with torch.no_grad():
            computed.restore()
    if isinstance(module, nn.RNNBase) and not rest:  # its own list may be of before a `.to()`
        module._flat_weights = _flat_weights(module)


def unwrap(model: nn.Module) -> nn.Module:
    """Makes a copy of a compressed model a plain model; returns it.

    For results of `copy.deepcopy` or `torch.load`: zeros and quantized values are written into the
    weights and the modules' own classes are restored. A model that is still bound to a session is
    unwrapped by its pruner's or quantizer's `unwrap()`; here it is a RuntimeError.
    """
    return unwrapped(model, whole=False)


def unwrapped(model: nn.Module, *, whole: bool) -> nn.Module:
    """See `unwrap`.

    Args:
        whole: whether weights that are computed become parameters, with the exact values.
    """
    compressed = [
        (module, part)
        for module in model.modules()
        if isinstance(module, CompressedModule)
        for part in module._compressed_parts
    ]
    for module, part in compressed:
        state = state_of(module, part)
        if state is not None and (state.pruner is not None or state.quantizer is not None):
            raise RuntimeError("the model is bound to a session; call unwrap() of its compressor")
    written: set[Hashable] = set()  # tied ones once
    replaced: dict[Hashable, torch.Tensor] = {}
    with torch.no_grad():
        for module, part in compressed:
            identity, weight = dense_weights.identity(module, part), getattr(module, part)
            if whole and dense_weights.computed_by(module, part) is not None:
                value = replaced.setdefault(identity, weight.detach())
                uninstall(module, part)
                dense_weights.replace(module, part, value)
                continue
            if weight is not None and identity not in written:
                written.add(identity)
                dense_weights.write(module, part, weight.detach())
            uninstall(module, part)
    for each in model.modules():
        dense_writes.unwatch(each)
    return model


class _StraightThrough(torch.autograd.Function):
    """Straight-through estimator: quantized values forward; the gradient where nothing clamped."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        dense, values, parameters = args
        ctx.parameters = parameters
        if parameters.clamps:
            ctx.save_for_backward(dense)
        return values.detach()  # a tensor object of its own: autograd writes the history onto it

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        if ctx.parameters.clamps:
            (dense,) = ctx.saved_tensors
            grad = keep(grad, ctx.parameters.inside(dense))
        return grad, None, None


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        return args[1].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def straight_through(value: torch.Tensor, replacement: torch.Tensor) -> Any:
    """The replacement; its gradient is the value's."""
    return _Replaced.apply(value, replacement)
