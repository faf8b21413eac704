"""One model bound to one session: which weights it has, and how answers reach its modules."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import torch
from torch import nn

from ..adapter import ON_WEIGHT_CHANGE, Tracker, split_results
from ..masks import Mask
from ..plan import Layer
from . import modules
from .rounding import Parameters, parameters_of, weight_range
from .transfer import DTYPES, from_host, to_host

ROOT = "."  # the name of a model that is itself a layer


class TrackedWeight:
    """A weight of the model under all its names (tied weights have several modules)."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.modules = [module]
        self.aliases: list[str] = []
        self.binding: Optional[Binding] = None
        self.bound_dtype = self.dense.dtype
        self._seen: Optional[torch.Tensor] = None

    @property
    def dense(self) -> torch.Tensor:
        """The parameter itself, never compressed."""
        weight = self.modules[0]._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def mask(self) -> Optional[torch.Tensor]:
        """The mask in force; None: all kept."""
        return self.state.mask

    @property
    def state(self) -> modules.WeightState:
        """What the weight's modules share."""
        state = modules.state_of(self.modules[0])
        assert state is not None
        return state

    def layer(self) -> Layer:
        """What BindModel is told."""
        return Layer(
            name=self.name,
            op_type=modules.plain_class(self.modules[0]).__name__,
            shape=tuple(self.dense.shape),
            dtype=DTYPES[self.bound_dtype],
            channel_axis=0,
            aliases=self.aliases,
        )

    def token(self) -> Any:
        """Equal for as long as the weight is unchanged.

        The version counter sees what goes through autograd, the address and the object see
        replacements. `.data` is written past both: on the CPU a sample of the elements is looked
        at, which shows any change of the weight as a whole. (On a GPU looking would wait for it.)
        """
        weight = self.dense
        self._seen = weight  # alive, so that no other parameter gets its id
        version = -1 if weight.is_inference() else weight._version
        return id(weight), version, weight.data_ptr(), weight.dtype, weight.device, _sample(weight)

    def ensure_fresh(self) -> None:
        """Asks the service when this weight, or the session, has moved on."""
        if self.binding is not None:
            self.binding.ensure_fresh(self)


def _sample(weight: torch.Tensor) -> Any:
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    flat = weight.detach().view(-1)
    return tuple(flat[:: max(1, flat.numel() // 16)].tolist())


def find_weights(model: nn.Module) -> list[TrackedWeight]:
    """The weights that can be compressed, in the order of named_modules(), tied ones once.

    Layers have the modules' names; a model that is itself a layer is called ".", which no module in
    it can be.

    Warns of modules whose weight is computed from other parameters (weight_norm, parametrize), and
    of scripted ones: there is no parameter that could be compressed. Raises ValueError for a lazy
    module that has not seen data.
    """
    found: dict[int, TrackedWeight] = {}
    computed = []
    for name, module in model.named_modules(remove_duplicate=False):
        scripted = isinstance(module, torch.jit._script.ScriptModule)
        weight = None if scripted else module._parameters.get("weight")
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the weight of layer {name or ROOT!r} is not initialised; run one forward "
                "pass of the model before compressing it"
            )
        if weight is None:
            if isinstance(getattr(module, "weight", None), torch.Tensor):
                computed.append(name or ROOT)
        elif weight.dtype in DTYPES and weight.dim() and weight.numel():
            if id(weight) in found:
                _add_name(found[id(weight)], name or ROOT, module)
            else:
                found[id(weight)] = TrackedWeight(name or ROOT, module)
    if computed:
        warnings.warn(
            f"the weights of {', '.join(computed)} are computed or scripted and will not be "
            "compressed; remove weight_norm, parametrizations and the like first",
            UserWarning,
            stacklevel=5,
        )
    return list(found.values())


def layers(model: nn.Module) -> list[Layer]:
    """The model's layers as a session is told of them: for search spaces, or to see their names.

    >>> layers(torch.nn.Sequential(torch.nn.Linear(2, 5)))[0].op_type
    'Linear'
    """
    return [weight.layer() for weight in find_weights(model)]


def _add_name(weight: TrackedWeight, name: str, module: nn.Module) -> None:
    weight.aliases.append(name)
    if all(module is not known for known in weight.modules):
        weight.modules.append(module)


class Binding:
    """Keeps the compressed weights of a model in step with a session.

    Subclasses say how to ask and what to do with answers. Any thread may read weights; the service
    is asked by one at a time.

    Args:
        tracker: of the session.
        weights: every weight that was bound; only those that the plan compresses are touched.
    """

    role = ""  # which slot of WeightState is this binding's: "pruner" or "quantizer"

    def __init__(self, tracker: Tracker, weights: Sequence[TrackedWeight]) -> None:
        self.tracker = tracker
        self.weights = {w.name: w for w in weights if w.name in tracker.status}
        self._tokens: Mapping[str, Callable[[], Any]] = {
            name: weight.token for name, weight in self.weights.items()
        }
        self.rebind: Optional[Callable[[], None]] = None

    def install(self) -> None:
        """Makes the modules read through this binding.

        Raises RuntimeError, before anything is changed, when another pruner (or quantizer) has one
        of the weights already.
        """
        for weight in self.weights.values():
            state = modules.state_of(weight.modules[0])
            if state is not None and getattr(state, self.role) is not None:
                raise RuntimeError(
                    f"layer {weight.name!r} already has a {self.role}; unwrap() that one first"
                )
        for weight in self.weights.values():
            weight.binding = self
            state = modules.state_of(weight.modules[0]) or modules.WeightState()
            for module in weight.modules:
                modules.install(module, state)
            self._reset(weight, state)
            setattr(state, self.role, weight)

    def _reset(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        """Drops what a copy of a compressed model still has of its original's session."""
        raise NotImplementedError

    def ensure_fresh(self, weight: TrackedWeight) -> None:
        """Asks for all layers that need it when this one does."""
        tracker = self.tracker
        if tracker.owned and tracker.status[weight.name].needs(weight.token):
            self.refresh()

    def refresh(self) -> None:
        """Asks for all layers that need it, in one stream. Errors name the layer."""
        # What is made inside an inference_mode() forward could never be trained with.
        inference_off = torch.inference_mode(False)  # type: ignore[no-untyped-call]
        with self.tracker.lock, inference_off, torch.no_grad():
            names = self.tracker.pending(self._tokens)
            if not names:
                return
            if any(not self._fits(self.weights[name]) for name in names):
                assert self.rebind is not None
                self.rebind()
                return
            self._ask([self.weights[name] for name in names])

    def _fits(self, weight: TrackedWeight) -> bool:
        """Whether the bound dtype holds every value of the present one."""
        dtype = weight.dense.dtype
        return torch.promote_types(dtype, weight.bound_dtype) == weight.bound_dtype

    def _ask(self, weights: Sequence[TrackedWeight]) -> None:
        raise NotImplementedError

    def _hosts(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        return to_host({w.name: w.dense.detach().to(w.bound_dtype) for w in weights})

    @property
    def depends_on_weights(self) -> bool:
        """Whether some layer has to be asked for when its weight changes."""
        return any(s.refresh == ON_WEIGHT_CHANGE for s in self.tracker.status.values())

    def optimizer_stepped(self, optimizer: Any) -> None:
        """Treats the weights of an optimizer as changed: fused ones leave no trace of it."""
        groups = getattr(optimizer, "param_groups", ())
        stepped = {id(parameter) for group in groups for parameter in group["params"]}
        self.tracker.forget(n for n, w in self.weights.items() if id(w.dense) in stepped)

    def detach(self) -> None:
        """Makes no call from now on; the answers there are stay in force."""
        self.tracker.close()

    def leave(self) -> None:
        """Takes this binding out of the modules, which get another one."""
        for weight in self.weights.values():
            setattr(weight.state, self.role, None)

    def unwrap(self) -> None:
        """Writes the answers into the dense weights and takes this binding out of the modules."""
        raise NotImplementedError


class PrunerBinding(Binding):
    """Masks: asked for when the session says so, whatever the weight does."""

    role = "pruner"

    def _reset(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        state.mask = None

    def _ask(self, weights: Sequence[TrackedWeight]) -> None:
        arrays = self._hosts(weights)
        masks, error = split_results(lambda: self.tracker.session.calc_mask(arrays))
        for name, mask in masks.items():
            self.set_mask(name, mask)
            self.tracker.answered(name, None)
        if error is not None:
            raise error

    def set_mask(self, name: str, mask: Mask) -> None:
        """Puts a mask in force for all modules of the weight."""
        weight = self.weights[name]
        weight.state.mask = torch.from_numpy(mask.to_numpy()).to(weight.dense.device)

    def masks(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Layer name -> bool tensor on the weight's device, True = kept."""
        for name, weight in self.weights.items():
            device = weight.dense.device
            if weight.mask is None:
                yield name, torch.ones(weight.dense.shape, dtype=torch.bool, device=device)
            else:
                yield name, weight.mask.to(device)

    def unwrap(self) -> None:
        with torch.no_grad():
            for weight in self.weights.values():
                state = weight.state
                _write_zeros(weight)
                state.pruner = None
                # A quantizer that is still there may give zeros another value: the mask stays.
                if state.quantizer is None and state.parameters is None:
                    _uninstall(weight)


class QuantizerBinding(Binding):
    """Quantized weights: values that the service computed, or parameters for rounding here.

    Args:
        transfer: "weights" or "ranges".
    """

    role = "quantizer"

    def __init__(self, tracker: Tracker, weights: Sequence[TrackedWeight], transfer: str) -> None:
        super().__init__(tracker, weights)
        self.transfer = transfer

    def _reset(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        state.parameters = state.values = None

    def _ask(self, weights: Sequence[TrackedWeight]) -> None:
        tokens = {w.name: w.token() for w in weights}
        session = self.tracker.session
        if self.transfer == "weights":
            arrays = self._hosts(weights)
            answers, error = split_results(lambda: session.quantize_weight(arrays, reply="values"))
        else:
            ranges = self._ranges(weights)
            answers, error = split_results(lambda: session.quantize_range(ranges))
        self._take(answers, tokens)
        if error is not None:
            raise error

    def step(self, number: int) -> None:
        """Sets the session's step; in "ranges", what changed and the plan asks for goes with it."""
        with self.tracker.lock, torch.no_grad():
            asked = []
            if self.transfer == "ranges":
                plan = self.tracker.plan
                asked = [
                    self.weights[name]
                    for name in self.tracker.pending(self._tokens)
                    if "range" in plan.layers[name].step_inputs
                ]
            tokens = {w.name: w.token() for w in asked}
            ranges = self._ranges(asked)
            answers, error = split_results(lambda: self.tracker.take_step(number, ranges))
            self._take(answers, tokens)
            if error is not None:
                raise error

    def _ranges(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        """Layer name -> float32 [2], or [2, C] where the plan wants a range per channel."""
        layers = self.tracker.plan.layers
        return to_host(
            {
                w.name: weight_range(w.dense, 0 if layers[w.name].range_per_channel else None)
                for w in weights
            }
        )

    def _take(self, answers: Mapping[str, Any], tokens: Mapping[str, Any]) -> None:
        for name, answer in answers.items():
            weight = self.weights[name]
            state = weight.state
            state.parameters = parameters_of(answer)
            state.values = None
            if answer.values is not None:
                state.values = from_host(answer.values, weight.bound_dtype, weight.dense.device)
            self.tracker.answered(name, tokens[name], lasting=self._lasts(state.parameters))

    def _lasts(self, parameters: Optional[Parameters]) -> bool:
        """Whether the answer holds for any weight: the server says when it no longer does."""
        if parameters is None:
            return True
        return self.transfer == "ranges" and not parameters.depends_on_weight

    def detach(self) -> None:
        # Nobody tells the values of a changed weight any more: it is rounded here from now on.
        super().detach()
        for weight in self.weights.values():
            state = modules.state_of(weight.modules[0])
            if state is not None:
                state.values = None

    def unwrap(self) -> None:
        with torch.no_grad():
            for weight in self.weights.values():
                state = weight.state
                weight.dense.copy_(state.quantized(weight.dense))
                state.parameters = state.values = state.quantizer = None
                if state.pruner is None:
                    _write_zeros(weight)
                    _uninstall(weight)


def _write_zeros(weight: TrackedWeight) -> None:
    mask = weight.mask
    if mask is not None:
        weight.dense.masked_fill_(~mask.to(weight.dense.device), 0)


def _uninstall(weight: TrackedWeight) -> None:
    for module in weight.modules:
        modules.uninstall(module)


def weak_method(owner: Any, name: str) -> Callable[..., None]:
    """Calls the owner's method for as long as it lives."""
    reference = weakref.ref(owner)

    def call(*args: Any, **kwargs: Any) -> None:
        alive = reference()
        if alive is not None:
            getattr(alive, name)(*args, **kwargs)

    return call
