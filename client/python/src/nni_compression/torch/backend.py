"""PyTorch models, for a compressor."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, ClassVar, Optional, TypeVar, Union

import numpy as np
import torch
from torch import nn

from ..adapters.backend import Backend
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..adapters.tracker import ON_WEIGHT_CHANGE
from ..errors import InvalidArgumentError
from ..values.plan import LayerPlan, Parameter
from . import copies, dense_weights, dense_writes, modules, naming, optimizers, statistics
from ._files import ExampleInputs, ModelFiles, example_inputs
from .answers import TorchPruning, TorchQuantizing
from .checksums import checksum_of
from .transfer import to_host
from .weights import TorchWeight, check_whole, find_weights, parameters

_R = TypeVar("_R")


class TorchBackend(Backend[TorchWeight]):
    """A PyTorch model."""

    framework = "pytorch"
    model_type = "a torch.nn.Module"
    asks_ahead = False
    #: Whether all ranks call a compressor's methods together, and share its session.
    is_collective: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: Layer name -> name of its further parameter, for algorithms that ask for that.
        self.statistic_parameters: Mapping[str, str] = {}
        #: Whether these are of all layers with a norm behind them.
        self.knows_norms = False
        self._bound_names: Optional[naming.BoundNames] = None  # when the model was bound

    @staticmethod
    def accepts(value: Any) -> bool:
        return isinstance(value, nn.Module)

    def check(self) -> None:
        """Raises UnimplementedError for a model that cannot be compressed, or no longer."""
        check_whole(self.model)

    def find_weights(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[TorchWeight]:
        self.check()
        return find_weights(self.model, self.wire_rules(rules))

    def parameters(self) -> Iterable[Parameter]:
        return parameters(self.model)

    def layer_key(self, name: str) -> str:
        return naming.layer_key(name)

    def wire_rules(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Rules may name layers as `named_modules()` of a wrapped model does."""
        found = naming.both_names(self.model)
        names = {plain for _, plain, _ in found}
        plain_names = {name: plain or "." for name, plain, _ in found if name not in names}
        return [_renamed(rule, plain_names) for rule in rules] if plain_names else rules

    def replaced(self, weights: Collection[TorchWeight]) -> list[str]:
        self.check()
        moved = [w for w in weights if not w.is_in_place(self.model)]
        present = {id(module) for module in self.model.modules()} if moved else ()
        return [weight.name for weight in moved if not weight.is_within_others(self.model, present)]

    # Weights.

    def read(self, weights: Sequence[TorchWeight]) -> Mapping[str, Any]:
        return to_host({w.name: w.dense.detach().to(w.bound_dtype) for w in weights})

    def why_no_statistic(self, weight: TorchWeight, kind: str) -> str:
        if kind != statistics.PARAMETER:
            return statistics.why_none(weight, kind)
        named = self._further_name(weight)
        if named is None:
            example = f"statistic_parameters={ {weight.name: 'bn.weight'} }"
            if self.knows_norms:
                return (
                    "and there is no norm right behind it with a number for each of its filters: "
                    f"exclude the layer in config_list, or name a parameter, as in {example}"
                )
            return f"which has to be named, as in {example}"
        told = f"which is {named!r} by statistic_parameters; it must"
        if named not in self._places():
            return f"{told} be the name of a parameter of the model"
        found, wanted = self._further(weight)().shape, [weight.dense.shape[weight.channel_axis]]
        if list(found) == wanted:
            return ""
        return f"{told} have the shape {wanted}, and has {list(found)}"

    def collector(
        self, weights: Sequence[TorchWeight], plan: Mapping[str, LayerPlan]
    ) -> statistics.TorchCollector:
        names = {name for name, _ in naming.named_modules(self.model)}
        names.update(name for weight in weights for name in (weight.name, *weight.aliases))
        unknown = [name for name in self.statistic_parameters if name not in names]
        if unknown:
            raise InvalidArgumentError(
                f"statistic_parameters names {unknown[0]!r}, which is no layer of the model"
            )
        further = {
            weight.name: self._further(weight)
            for weight in weights
            if statistics.PARAMETER in plan[weight.name].statistics
        }
        return statistics.TorchCollector(weights, plan, further)

    def _further_name(self, weight: TorchWeight) -> Optional[str]:
        """The name that was given for a layer's further parameter."""
        given = self.statistic_parameters
        return next((given[n] for n in (weight.name, *weight.aliases) if n in given), None)

    def _further(self, weight: TorchWeight) -> Callable[[], torch.Tensor]:
        """What reads a layer's further parameter, which has a name that is right."""
        module, part = self._places()[str(self._further_name(weight))]
        return lambda: module._parameters[part]  # type: ignore[return-value]

    def _places(self) -> dict[str, tuple[nn.Module, str]]:
        """Where the model's parameters are, by name."""
        return {
            naming.key_of(name, part): (module, part)
            for name, module in naming.named_modules(self.model)
            for part, parameter in module._parameters.items()
            if parameter is not None
        }

    def gradients(self, weights: Sequence[TorchWeight]) -> Mapping[str, Any]:
        found = {}
        with self.computing():
            for weight in weights:
                gradient = weight.dense.grad
                if gradient is not None:
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    found[weight.name] = dense.detach().to(weight.bound_dtype)
            return to_host(found)

    def tokens(self, weights: Sequence[TorchWeight]) -> Mapping[str, Any]:
        tokens = super().tokens(weights)
        for weight in weights:
            weight.checksum = checksum_of(weight.dense) if weight.steady else None
        return tokens

    def weights_changed(self, binding: Binding[TorchWeight]) -> None:
        # Changes that leave a trace make a weight stale anyway. Other weights, such as those of
        # frozen layers, are compared by checksum, or requested once more with one.
        tracker = binding.tracker
        doubted = []
        for name, weight in binding.weights.items():
            status = tracker.status[name]
            if status.refresh != ON_WEIGHT_CHANGE or not status.answered or status.lasting:
                continue
            weight.steady = not status.needs(weight.token)
            if not weight.steady:
                continue
            if weight.checksum is None:
                tracker.forget([name])
            else:
                doubted.append((name, weight.dense, weight.checksum))
        with binding.computing():
            # All computations start before the first result is awaited.
            same = [(name, (checksum_of(dense) == then).all()) for name, dense, then in doubted]
            tracker.forget(name for name, equal in same if not bool(equal))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        # Tensors that are made in inference mode could not be used in training.
        with torch.inference_mode(False), torch.no_grad():  # type: ignore[no-untyped-call]
            yield

    # A binding in the model.

    def pruning(self, own: Optional[OwnAlgorithm[TorchWeight]]) -> TorchPruning:
        return TorchPruning()

    def quantizing(self, own: Optional[OwnAlgorithm[TorchWeight]]) -> TorchQuantizing:
        return TorchQuantizing()

    def has(self, binding: Binding[TorchWeight]) -> bool:
        weights = binding.weights.values()
        return all(modules.state_of(*weight.places[0]) is not None for weight in weights)

    def installed(self, binding: Binding[TorchWeight], undo: contextlib.ExitStack) -> None:
        undo.callback(setattr, self, "_bound_names", self._bound_names)
        self._bound_names = naming.BoundNames(self.model)
        undo.callback(dense_writes.watch(naming.without_wrappers(self.model)))

    def unwrapped(self) -> None:
        dense_writes.unwatch(naming.without_wrappers(self.model))

    def watch(
        self, binding: Binding[TorchWeight], optimizer: Optional[Any]
    ) -> Sequence[Callable[[], None]]:
        """Observes optimizer steps: fused ones leave version counters unchanged."""
        given = optimizers.checked(optimizer)
        removers = []
        if binding.depends_on_weights:
            remove = optimizers.after_steps(binding, _Stepped(binding), given)
            removers += [] if remove is None else [remove]
        if binding.clocks.is_watching:
            removers.append(_watch_clocks(binding, self.model, given))
        if binding.statistics is not None:
            collector = binding.statistics.collector
            assert isinstance(collector, statistics.TorchCollector)
            removers += collector.start(given)
        return removers

    # Files.

    def exported(
        self, binding: Binding[TorchWeight]
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        names = self._weight_keys(binding)
        state = self._state(binding, whole=True)
        for name, weight in binding.weights.items():
            if binding.role == "pruner":
                is_dense = weight.state.parameters is None
            else:  # the server cannot compute the values of a custom algorithm
                is_dense = binding.own is None
            if is_dense:
                state[names[name]] = weight.dense.detach()
        layers = {key: name for name, key in names.items()}
        tensors = to_host({layers.get(key, key): value for key, value in state.items()})
        return tensors, names

    def tied_names(self, binding: Binding[TorchWeight]) -> Mapping[str, Sequence[str]]:
        present = naming.names_by_module(naming.named_modules(self.model))
        keys = self._weight_keys(binding)
        return {
            keys[name]: [
                naming.key_of(each, part)
                for module, part in weight.places
                for each in present.get(id(module), ())
            ]
            for name, weight in binding.weights.items()
        }

    def other_weights(self, binding: Binding[TorchWeight]) -> Mapping[str, np.ndarray[Any, Any]]:
        weights = binding.weights.values()
        shapes = {weight.dense.shape for weight in weights}
        compressed = {id(own) for weight in weights for own in weight.parameters}
        return {
            naming.key_of(name, part): parameter.detach().cpu().numpy()
            for name, module in naming.named_modules(self.model)
            for part, parameter in (*module._parameters.items(), *module._buffers.items())
            if parameter is not None
            and id(parameter) not in compressed
            and parameter.shape in shapes
            and parameter.dtype in (torch.float32, torch.float16, torch.float64)
        }

    def sqnr(self, binding: Binding[TorchWeight]) -> Mapping[str, float]:
        found = {}
        with self.computing():
            for name, weight in binding.weights.items():
                state = modules.state_of(*weight.places[0])
                if state is not None and state.parameters is not None:
                    wide = weight.dense.detach().double()
                    noise = (wide - state.quantized(weight.dense).double()).square().sum()
                    found[name] = 10 * torch.log10(wide.square().sum() / noise)
        return {name: float(ratio) for name, ratio in found.items()}

    def compressed_state_dict(self, binding: Binding[TorchWeight]) -> dict[str, Any]:
        """See `Compressor.compressed_state_dict`."""
        return self._state(binding, whole=False)

    def _state(self, binding: Binding[TorchWeight], *, whole: bool) -> dict[str, Any]:
        """The `state_dict()` with compressed weights, under the names of exports.

        Args:
            whole: whether weights that are computed stand in place of their parameters.
        """
        model = naming.without_wrappers(self.model)
        state: dict[str, Any] = model.state_dict()
        for name, module in model.named_modules(remove_duplicate=False):
            if not isinstance(module, modules.CompressedModule):
                continue
            for part in module._compressed_parts:
                weight = getattr(module, part)
                if weight is None:
                    continue
                found = dense_weights.inverse(module, part, weight.detach())
                own = {naming.key_of(name, key): value for key, value in found.items()}
                if not own.keys() <= state.keys():
                    continue
                state.update(own)
                if whole and part not in found:
                    for key in own:
                        del state[key]
                    state[naming.key_of(name, part)] = weight.detach()
        keys = self._keys(model, state)
        items = [(keys[key], value) for key, value in state.items()]
        state.clear()  # and not another one: it has attributes, too
        state.update(items)
        return state

    def whole(self, value: torch.Tensor) -> torch.Tensor:
        """A parameter or a mask as files have it, on the rank that writes them."""
        return value

    def written(self, write: Callable[[], _R]) -> _R:
        """The result of a function that writes files, on the rank that does so."""
        return write()

    def apply_to(self, binding: Binding[TorchWeight], copy: Any) -> None:
        """See `Compressor.apply_to`."""
        copies.apply(binding, copy)

    def computed_layers(self, binding: Binding[TorchWeight]) -> list[str]:
        """The layers whose weight is computed from other parameters."""
        return [name for name, weight in binding.weights.items() if weight.is_computed]

    def save_onnx(
        self,
        files: ModelFiles,
        path: str,
        input_shape: Optional[Sequence[int]],
        inputs: Union[torch.Tensor, ExampleInputs, None],
    ) -> None:
        """Writes the plain model with the effective weights."""
        given = example_inputs(self.model, input_shape, inputs)
        model = copy.deepcopy(naming.without_wrappers(self.model))
        plain = modules.unwrapped(naming.remove_wrappers(model), whole=True)
        files.save_onnx(plain, path, given)

    def from_numpy(self, array: Any) -> Any:
        return torch.from_numpy(array)

    def to_numpy(self, array: Any) -> Any:
        return array.cpu().numpy()

    def _keys(self, model: nn.Module, state: Iterable[str]) -> dict[str, str]:
        """Keys of the `state_dict()` of a model without wrappers -> their names in exports.

        Those are the names of the plain model as it was bound, without nested wrappers.
        """
        plain = naming.plain_key(model)
        keys = {key: plain(key) for key in state}
        if self._bound_names is None:
            return keys
        then = self._bound_names.renamed(model, keys.values())
        return {key: then[name] for key, name in keys.items()}

    def _weight_keys(self, binding: Binding[TorchWeight]) -> dict[str, str]:
        """Layer name -> the name of its weight in exports."""
        model = naming.without_wrappers(self.model)
        present = naming.names_by_module(model.named_modules(remove_duplicate=False))
        own = {
            name: [naming.key_of(n, weight.places[0].part) for n in present[id(weight.op)]]
            for name, weight in binding.weights.items()
        }
        # Those that are computed are not in the model's state.
        computed = [key for weight_keys in own.values() for key in weight_keys]
        keys = self._keys(model, dict.fromkeys([*model.state_dict(), *computed]))
        found = {}
        for name, weight in binding.weights.items():
            place = weight.places[0]
            mine = [keys[key] for key in own[name]]
            bound = naming.key_of(place.module_of(name), place.part)
            found[name] = bound if bound in mine else mine[0]
        return found


def _renamed(rule: Any, names: Mapping[str, str]) -> Any:
    """The rule with other names of layers; the server refuses values that are not rules."""
    named = rule.get("op_names") if isinstance(rule, Mapping) else None
    if isinstance(named, str):
        named = [named]
    if not isinstance(named, (list, tuple)):
        return rule
    return {**rule, "op_names": [names.get(name, name) for name in named]}


def _watch_clocks(
    binding: Binding[TorchWeight], model: nn.Module, given: Sequence[Any]
) -> Callable[[], None]:
    """Counts steps of optimizers; where these cannot be observed, forward passes in training."""
    weak = weakref.ref(binding)

    def stepped(optimizer: Any) -> None:
        binding = weak()
        if binding is None or not binding.clocks.is_watching:
            return
        if next(_trained(optimizer, binding), None) is not None:
            binding.clocks.optimizer_stepped()

    remove = optimizers.after_steps(binding, stepped, given)
    if remove is not None:
        return remove
    weak_model = weakref.ref(model)

    def passes(module: nn.Module, args: Any) -> None:
        binding = weak()
        if module is weak_model() and module.training and binding is not None:
            binding.clocks.forward_passed()

    # Not a hook of the model's own, which copies and files of it would have.
    handle = nn.modules.module.register_module_forward_pre_hook(passes)
    weakref.finalize(binding, handle.remove)
    return handle.remove


def _trained(optimizer: Any, binding: Binding[TorchWeight]) -> Iterator[str]:
    """The names of the layers whose weights an optimizer has."""
    groups = getattr(optimizer, "param_groups", ())
    stepped = {id(parameter) for group in groups for parameter in group["params"]}
    for name, weight in binding.weights.items():
        if any(id(own) in stepped for own in weight.parameters):
            yield name


class _Stepped:
    """Called with an optimizer after its step: treats its weights as changed.

    Has a weak reference to the binding.
    """

    def __init__(self, binding: Binding[TorchWeight]) -> None:
        self._binding = weakref.ref(binding)

    def __call__(self, optimizer: Any) -> None:
        binding = self._binding()
        if binding is not None:
            binding.tracker.forget(_trained(optimizer, binding))
