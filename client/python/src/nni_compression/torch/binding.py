"""One model bound to one session: which weights it has, and how answers reach its modules."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import torch
from torch import nn

from ..adapters import binding
from ..adapters.tracker import ON_WEIGHT_CHANGE
from ..values.masks import Mask
from ..values.plan import Layer, Parameter
from ..values.quantization import QuantizedTensor
from . import modules, naming
from .activations import Activation, ranges
from .checksums import checksum_of, sample_of
from .rounding import parameters_of, weight_range
from .transfer import DTYPES, from_host, to_host

ROOT = "."  # the name of a model that is itself a layer


class TrackedWeight:
    """A weight of the model under all its names (tied weights have several modules)."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.modules = [module]
        self.aliases: list[str] = []
        self.name_modules = [module]  # of the name, and of each alias
        self.binding: Optional[_TorchBinding] = None
        self.bound_dtype = self.dense.dtype
        self.bound_shape = self.dense.shape
        #: Whether it was not trained in the last step, and its checksum when it was asked for then.
        self.steady = False
        self.checksum: Optional[torch.Tensor] = None
        self._seen: Optional[torch.Tensor] = None

    @property
    def dense(self) -> torch.Tensor:
        """The parameter itself, never compressed."""
        weight = self.modules[0]._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def op(self) -> nn.Module:
        """The module that has it; the first, of tied ones."""
        return self.modules[0]

    @property
    def tensor(self) -> torch.Tensor:
        """The dense weight, without gradient."""
        return self.dense.detach()

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

    @property
    def channel_axis(self) -> int:
        """The dimension of the outputs."""
        return 1 if _has_inputs_first(self.modules[0]) else 0

    def layer(self) -> Layer:
        """What BindModel is told."""
        return Layer(
            name=self.name,
            op_type=modules.plain_class(self.modules[0]).__name__,
            shape=tuple(self.dense.shape),
            dtype=DTYPES[self.bound_dtype],
            channel_axis=self.channel_axis,
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
        return (
            id(weight),
            version,
            weight.data_ptr(),
            weight.dtype,
            weight.device,
            sample_of(weight),
        )

    def ensure_fresh(self) -> None:
        """Asks the service when this weight, or the session, has moved on."""
        if self.binding is not None:
            if self.dense.shape != self.bound_shape:
                raise RuntimeError(
                    f"the weight of layer {self.name!r} has shape {list(self.dense.shape)} and was "
                    f"bound with {list(self.bound_shape)}; call rebind() of its pruner or quantizer"
                )
            self.binding.ensure_fresh(self)

    def _places(self, model: nn.Module) -> list[tuple[nn.Module, Optional[nn.Module]]]:
        """For each name: the module that was bound, and the one that the model has there."""
        names = ("" if name == ROOT else name for name in (self.name, *self.aliases))
        found = (naming.module_at(model, name) for name in names)
        return list(zip(self.name_modules, found))

    def is_in_place(self, model: nn.Module) -> bool:
        """Whether the model still has what was bound, where it was then."""
        parameter = self.modules[0]._parameters.get("weight")
        if parameter is None or parameter.shape != self.bound_shape:
            return False
        return all(bound is now for bound, now in self._places(model))

    def is_within_others(self, model: nn.Module, present: Collection[int]) -> bool:
        """Whether modules that are not in place were put into others, as adapters do, which have no
        weights of their own.

        Args:
            present: the ids of all modules of the model.
        """
        if all(bound is now for bound, now in self._places(model)):
            return False  # then it is the weight that is another one
        return all(
            id(bound) in present
            and (now is bound or now is None or now._parameters.get("weight") is None)
            for bound, now in self._places(model)
        )

    @property
    def has_answer(self) -> bool:
        """Whether there is one, and nothing is known that outdates it; asks nobody."""
        return self.binding is None or self.binding.tracker.status[self.name].stands

    def forget(self) -> None:
        """Treats the weight as changed."""
        if self.binding is not None:
            self.binding.tracker.forget([self.name])


def _has_inputs_first(module: nn.Module) -> bool:
    """Whether the weight is [inputs, outputs, ...]: of transposed convolutions, and of the linear
    layers that transformers calls Conv1D.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return True
    return any(
        cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.")
        for cls in type(module).__mro__
    )


def find_weights(model: nn.Module) -> list[TrackedWeight]:
    """The weights that can be compressed, in the order of named_modules(), tied ones once.

    Layers have the modules' names in the plain model, without what wraps it; a model that is itself
    a layer is called ".", which no module in it can be.

    Warns of modules whose weight is computed from other parameters (weight_norm, parametrize), and
    of scripted ones: there is no parameter that could be compressed. Raises ValueError for a lazy
    module that has not seen data.
    """
    found: dict[int, TrackedWeight] = {}
    computed = []
    for name, module in naming.named_modules(model):
        weight = None if _is_scripted(module) else module._parameters.get("weight")
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


def parameters(model: nn.Module) -> Iterator[Parameter]:
    """All parameters of a model, tied ones once, and which of them are weights of layers."""
    owners = dict(naming.named_modules(model))
    layers = {
        id(module._parameters["weight"]): name or ROOT
        for name, module in reversed(list(owners.items()))
        if not _is_scripted(module) and module._parameters.get("weight") is not None
    }
    plain = naming.plain_key(model)
    for key, parameter in model.named_parameters():
        name = plain(key)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            continue
        owner = modules.plain_class(owners[name.rpartition(".")[0]])
        yield Parameter(
            name, owner.__name__, parameter.numel(), parameter.dim(), layers.get(id(parameter))
        )


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit._script.ScriptModule)


def _add_name(weight: TrackedWeight, name: str, module: nn.Module) -> None:
    weight.aliases.append(name)
    weight.name_modules.append(module)
    if all(module is not known for known in weight.modules):
        weight.modules.append(module)


class _TorchBinding(binding.Binding[TrackedWeight]):
    """What both kinds of binding do with the modules of a model."""

    role = ""  # which slot of WeightState is this binding's: "pruner" or "quantizer"

    def install(self, undo: contextlib.ExitStack) -> None:
        for weight in self.weights.values():
            state = modules.state_of(weight.modules[0])
            if state is not None and getattr(state, self.role) is not None:
                raise RuntimeError(
                    f"layer {weight.name!r} already has a {self.role}; unwrap() that one first"
                )
        with self._computing():
            for weight in self.weights.values():
                weight.binding = self
                state = modules.state_of(weight.modules[0]) or modules.WeightState()
                undo.callback(state.snapshot())
                for module in weight.modules:
                    undo.callback(_reinstall, module, modules.state_of(module))
                    modules.install(module, state)
                self._begin(weight, state)
                setattr(state, self.role, weight)

    def _begin(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        """Puts in force what the binding goes on with, in place of what a model that was copied, or
        that had another binding, still has.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        # What is made inside an inference_mode() forward could never be trained with.
        with torch.inference_mode(False), torch.no_grad():  # type: ignore[no-untyped-call]
            yield

    def _fits(self, weight: TrackedWeight) -> bool:
        dtype = weight.dense.dtype
        return torch.promote_types(dtype, weight.bound_dtype) == weight.bound_dtype

    def _hosts(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        return to_host({w.name: w.dense.detach().to(w.bound_dtype) for w in weights})

    sends_gradients = True

    def _gradients(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        found = {}
        with self._computing():
            for weight in weights:
                gradient = weight.dense.grad
                if gradient is not None:
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    found[weight.name] = dense.detach().to(weight.bound_dtype)
            return to_host(found)

    def _asking(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        tokens = super()._asking(weights)
        for weight in weights:
            weight.checksum = checksum_of(weight.dense) if weight.steady else None
        return tokens

    def weights_changed(self) -> None:
        # What has left a trace is asked for anyway. Other weights, as of layers that are frozen,
        # are looked at: they were asked for with a checksum, or are so once more.
        doubted = []
        for name, weight in self.weights.items():
            status = self.tracker.status[name]
            if status.refresh != ON_WEIGHT_CHANGE or not status.answered or status.lasting:
                continue
            weight.steady = not status.needs(weight.token)
            if not weight.steady:
                continue
            if weight.checksum is None:
                self.tracker.forget([name])
            else:
                doubted.append((name, weight.dense, weight.checksum))
        with self._computing():
            # All are begun before the first is waited for.
            same = [(name, (checksum_of(dense) == then).all()) for name, dense, then in doubted]
            self.tracker.forget(name for name, equal in same if not bool(equal))

    def optimizer_stepped(self, optimizer: Any) -> None:
        """Treats the weights of an optimizer as changed: fused ones leave no trace of it."""
        groups = getattr(optimizer, "param_groups", ())
        stepped = {id(parameter) for group in groups for parameter in group["params"]}
        self.tracker.forget(n for n, w in self.weights.items() if id(w.dense) in stepped)

    def leave(self, undo: contextlib.ExitStack) -> None:
        for weight in self.weights.values():
            undo.callback(setattr, weight.state, self.role, weight)
            setattr(weight.state, self.role, None)


class PrunerBinding(_TorchBinding, binding.PrunerBinding[TrackedWeight]):
    """Masks of a model's modules."""

    role = "pruner"

    def _begin(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        given = self.given.pop(weight.name, None)
        state.set_mask(None if given is None else _on_device(given, weight))

    def _set_mask(self, weight: TrackedWeight, mask: Mask) -> None:
        weight.state.set_mask(_on_device(mask, weight))

    def packed_masks(self) -> dict[str, Mask]:
        return {
            name: Mask.from_numpy(weight.mask.to("cpu", torch.bool).numpy())
            for name, weight in self.weights.items()
            if weight.mask is not None
        }

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


class QuantizerBinding(_TorchBinding, binding.QuantizerBinding[TrackedWeight]):
    """Quantized weights of a model's modules."""

    role = "quantizer"

    def _begin(self, weight: TrackedWeight, state: modules.WeightState) -> None:
        state.parameters = state.values = None
        state.output = state.input = None
        for name, target in self.activations:
            if name == weight.name:
                activation = Activation()
                answer = self.activation_answers.get((name, target))
                if answer is not None:
                    activation.parameters = parameters_of(answer)
                setattr(state, target, activation)

    def _ranges(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        found = {}
        for weight in weights:
            plan = self.tracker.plan.layers[weight.name]
            axis = weight.channel_axis if plan.range_per_channel else None
            found[weight.name] = weight_range(weight.dense, axis, plan.range_group_size)
        return to_host(found)

    def _set_answer(self, weight: TrackedWeight, answer: QuantizedTensor) -> None:
        state = weight.state
        state.parameters = parameters_of(answer)
        state.values = None
        if answer.values is not None:
            state.values = from_host(answer.values, weight.bound_dtype, weight.dense.device)
        state.publish()

    def activation(self, name: str, target: str) -> Optional[Activation]:
        """The outputs or inputs of a layer; None when another binding has the model."""
        state = modules.state_of(self.weights[name].modules[0])
        return None if state is None else getattr(state, target)

    def _seen_activations(self) -> dict[tuple[str, str], list[float]]:
        keys = self.activations
        found = [(key, self.activation(*key)) for key in keys]
        present = {key: activation for key, activation in found if activation is not None}
        if not present:
            return {}
        device = self.weights[keys[0][0]].dense.device
        seen = zip(present, ranges(list(present.values()), device))
        return {key: value for key, value in seen if value}

    def seen_here(self) -> dict[tuple[str, str], list[float]]:
        found = {key: self.activation(*key) for key in self.activations}
        seen = {
            key: activation.seen(torch.device("cpu")).tolist()
            for key, activation in found.items()
            if activation is not None and activation.has_seen
        }
        return {key: [-low, high] for key, (low, high) in seen.items()}

    def see(self, ranges: Mapping[tuple[str, str], Sequence[float]]) -> None:
        for key, range_ in ranges.items():
            activation = self.activation(*key) if key in self.activations else None
            if activation is not None:
                device = self.weights[key[0]].dense.device
                activation.note(torch.tensor(range_, device=device))

    def _forget_activations(self) -> None:
        for key in self.activations:
            activation = self.activation(*key)
            if activation is not None:
                activation.forget()

    def _set_activation(self, layer: str, target: str, answer: QuantizedTensor) -> None:
        activation = self.activation(layer, target)
        if activation is not None:
            activation.parameters = parameters_of(answer)
            self.weights[layer].state.publish()

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
                state.output = state.input = None
                if state.pruner is None:
                    _write_zeros(weight)
                    _uninstall(weight)


def _on_device(mask: Mask, weight: TrackedWeight) -> torch.Tensor:
    return torch.from_numpy(mask.to_numpy()).to(weight.dense.device)


def _reinstall(module: nn.Module, state: Optional[modules.WeightState]) -> None:
    """Makes a module what it was: compressed with this state, or plain."""
    if state is None:
        modules.uninstall(module)
    else:
        modules.install(module, state)


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
