"""Pruning of models that `torch.distributed.fsdp.fully_shard` has sharded over ranks (FSDP2).

A weight is a DTensor, of which each rank has some rows: its shard. The ranks count the magnitudes
of their shards, the first one asks the server about the sums, and each makes the mask of its own
shard. There is no whole weight that a forward pass could mask, so zeros are written into the shard,
and into its gradient before an optimizer sees that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar, Union

import torch
from torch import nn

from ..adapters.backend import Pruning
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..adapters.pruning import PrunerBinding
from ..client import Client
from ..errors import UnimplementedError
from ..values.magnitudes import Counter, Threshold
from ..values.masks import Mask
from . import dense_weights, naming
from ._files import ExampleInputs, ModelFiles
from .backend import TorchBackend
from .collective import CollectiveClient, Ranks
from .magnitudes import TorchCounter, mask_above, ties_with
from .transfer import to_host
from .weights import Place, TorchWeight, find_weights

_R = TypeVar("_R")

_STATES = "_nni_compression_shards"  # an attribute of modules: name of a parameter -> ShardState


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the model, or to a part of it."""
    return next(_sharded_modules(model), None) is not None


def _sharded_modules(model: nn.Module) -> Iterator[Any]:
    # Only a program that has imported this can have such a module.
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return (module for module in model.modules() if isinstance(module, kind))


def _reshard(model: nn.Module) -> None:
    """Makes the modules have their shards, and the next forward pass gather them again."""
    for module in _sharded_modules(model):
        module.reshard()


def _is_shard(parameter: Any) -> bool:
    return isinstance(parameter, _tensor_module().DTensor)


def _tensor_module() -> Any:
    return importlib.import_module("torch.distributed.tensor")


@dataclass(eq=False)
class ShardState:
    """What is in force for a weight.

    Attributes:
        pruner: the weight of the binding that has it.
        quantizer: never one.
        mask: of the shard: bool, True = kept; None: all. Replaced and never written.
        removed: number of weights that the masks of all shards remove.
        zeros: what writes them.
    """

    pruner: Optional[ShardedWeight] = None
    quantizer: None = None
    mask: Optional[torch.Tensor] = None
    removed: int = 0
    zeros: Optional[_Zeros] = None


class ShardedWeight(TorchWeight):
    """A weight of which each rank has a part of the rows, possibly none."""

    def __init__(self, named: Sequence[tuple[str, Place]]) -> None:
        self._latest = named[0][1].dense
        super().__init__(named)

    @property
    def dense(self) -> Any:
        """The sharded parameter, also while its module has the gathered one."""
        present = self.places[0].dense
        if _is_shard(present):
            self._latest = present
        return self._latest

    @property
    def shard(self) -> torch.Tensor:
        """This rank's rows, in the memory of the parameter."""
        with torch.no_grad():
            local: torch.Tensor = self.dense.to_local()
        return local

    def first_row(self, ranks: Ranks) -> int:
        """The index of the shard's first row in the weight: rows are shared out in equal parts,
        rounded up, as long as there are any.
        """
        rows = self.bound_shape[0]
        return min(ranks.rank * -(-rows // ranks.size), rows)

    @property
    def state(self) -> Any:
        """What the weight's places share: a `ShardState`."""
        return _state_of(self.places[0])

    def is_taken(self, role: str) -> bool:
        """Whether there is a pruner already."""
        state = _state_of(self.places[0])
        return state is not None and getattr(state, role) is not None

    def token(self) -> Any:
        """Weights always count as changed: ranks cannot compare their shards one by one."""
        return object()


def _state_of(place: Place) -> Optional[ShardState]:
    states: dict[str, ShardState] = place.module.__dict__.get(_STATES, {})
    return states.get(place.part)


def _set_state(place: Place, state: Optional[ShardState]) -> None:
    """Gives a parameter of a module a state, or none."""
    states = place.module.__dict__.setdefault(_STATES, {})
    if state is None:
        states.pop(place.part, None)
    else:
        states[place.part] = state


class _Zeros:
    """Writes the zeros of masks into shards: after steps of optimizers, and before forward passes
    if something else has written to a shard; and into gradients as soon as they are complete.
    """

    def __init__(self, model: nn.Module, weights: Sequence[ShardedWeight]) -> None:
        self._model, self._weights = model, weights
        self._written: dict[str, tuple[int, ...]] = {}  # the version then
        self._removers: list[Callable[[], None]] = []
        self._with_hooks: dict[str, torch.Tensor] = {}  # parameters

    def add(self) -> None:
        """Begins to."""
        weak = weakref.ref(self)

        def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
            zeros = weak()
            if zeros is not None:
                zeros._after_step(optimizer)

        optimizers: Any = importlib.import_module("torch.optim.optimizer")
        handle = optimizers.register_optimizer_step_post_hook(stepped)
        weakref.finalize(self, handle.remove)
        model: Any = self._model
        before = model.register_forward_pre_hook(
            lambda *unused: self.write(only_changed=True), prepend=True
        )
        self._removers += [handle.remove, before.remove]
        for weight in self._weights:
            self._add_to_gradient(weight)

    def remove(self) -> None:
        """Ends it."""
        while self._removers:
            self._removers.pop()()
        self._with_hooks.clear()

    @torch.no_grad()
    def write(
        self, weights: Optional[Iterable[ShardedWeight]] = None, *, only_changed: bool = False
    ) -> None:
        """Writes zeros into the shards of these weights, or of all."""
        for weight in self._weights if weights is None else weights:
            mask, shard = weight.state.mask, weight.shard
            written = self._written.get(weight.name)
            if mask is None or (only_changed and written == _version(weight)):
                continue
            self._add_to_gradient(weight)
            shard.masked_fill_(~mask.to(shard.device), 0)
            self._written[weight.name] = _version(weight)

    def _after_step(self, optimizer: Any) -> None:
        groups = getattr(optimizer, "param_groups", ())
        stepped = {id(parameter) for group in groups for parameter in group["params"]}
        self.write([weight for weight in self._weights if id(weight.dense) in stepped])

    def _add_to_gradient(self, weight: ShardedWeight) -> None:
        """Adds a hook to the parameter if it is trained; it may be another one than before."""
        parameter = weight.dense
        if parameter.requires_grad and self._with_hooks.get(weight.name) is not parameter:
            hook = functools.partial(_zero_gradient, weight)
            self._removers.append(parameter.register_post_accumulate_grad_hook(hook).remove)
            self._with_hooks[weight.name] = parameter


def _zeros_of(weights: Iterable[ShardedWeight]) -> set[_Zeros]:
    """What writes zeros into these weights: nothing before `install` and after `unwrap`."""
    states = (_state_of(weight.places[0]) for weight in weights)
    return {state.zeros for state in states if state is not None and state.zeros is not None}


def _version(weight: ShardedWeight) -> tuple[int, ...]:
    """Changes with the shard. A write to the DTensor does not count in its local tensor."""
    return weight.shard.data_ptr(), weight.shard._version, weight.dense._version


@torch.no_grad()
def _zero_gradient(weight: ShardedWeight, parameter: Any) -> None:
    mask = weight.state.mask
    if mask is not None and parameter.grad is not None:
        gradient = parameter.grad.to_local()
        gradient.masked_fill_(~mask.to(gradient.device), 0)


class ShardCounter(TorchCounter):
    """A `Counter` of a whole weight; all ranks call it together."""

    def __init__(self, weight: ShardedWeight, ranks: Ranks) -> None:
        super().__init__(*_counted(weight))
        self.shape = tuple(weight.bound_shape)
        self._ranks = ranks
        self._offset = weight.first_row(ranks) * weight.bound_shape[1:].numel()

    def histogram(self, key: int, known_bits: int) -> torch.Tensor:
        """The sum over all shards."""
        return self._ranks.sum(super().histogram(key, known_bits))

    def first_not_finite(self) -> tuple[int, float]:
        """The first one of all shards."""
        index, value = super().first_not_finite()
        indices = self._ranks.gather(index if index < 0 else self._offset + index)
        values = self._ranks.gather(value, torch.float64)
        return next(found for found in zip(indices, values) if found[0] >= 0)


def _counted(weight: ShardedWeight) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The shard as it was bound, and the mask in force."""
    shard, mask = weight.shard.to(weight.bound_dtype), weight.state.mask
    return shard, None if mask is None else mask.to(shard.device)


class ShardedPruning(Pruning[ShardedWeight]):
    """Masks of shards."""

    why_weights_only = ""
    why_counts_only = "weights that fully_shard has sharded are counted, not sent"

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks

    def install(
        self,
        binding: PrunerBinding[ShardedWeight],
        given: Mapping[str, Mask],
        undo: contextlib.ExitStack,
    ) -> None:
        weights, mesh = list(binding.weights.values()), _mesh_of(self._model)
        for weight in weights:
            _check(weight, mesh)
        for before in _zeros_of(weights):
            before.remove()
            undo.callback(before.add)
        zeros = _Zeros(self._model, weights)
        for weight in weights:
            state = ShardState(pruner=weight, zeros=zeros)
            for place in weight.places:
                undo.callback(_set_state, place, _state_of(place))
                _set_state(place, state)
            if weight.name in given:
                self._set_mask(weight, given[weight.name])
        zeros.add()
        undo.callback(zeros.remove)

    def put(self, masks: Mapping[ShardedWeight, Mask]) -> None:
        for weight, mask in masks.items():
            self._set_mask(weight, mask)
            weight.state.zeros.write([weight])

    def counters(self, weights: Sequence[ShardedWeight]) -> Mapping[str, Counter]:
        return {weight.name: ShardCounter(weight, self._ranks) for weight in weights}

    def counts_by_default(self, weight: ShardedWeight) -> bool:
        return True

    def put_thresholds(self, thresholds: Mapping[ShardedWeight, Threshold]) -> None:
        found = {}
        for weight, threshold in thresholds.items():
            shard, kept = _counted(weight)
            ties = self._ranks.gather(ties_with(shard, threshold.key, kept))
            rank = self._ranks.rank
            pruned = min(max(threshold.ties - sum(ties[:rank]), 0), ties[rank])
            mask = mask_above(shard, threshold.key, pruned, kept)
            removed = sum(self._ranks.gather(mask.numel() - int(mask.sum())))
            threshold.check(removed)
            found[weight] = mask, removed
        for weight, (mask, removed) in found.items():
            state: ShardState = weight.state
            state.mask, state.removed = mask, removed
            assert state.zeros is not None
            state.zeros.write([weight])

    def mask(self, weight: ShardedWeight) -> Any:
        dense, mask = weight.dense, weight.state.mask
        if mask is None:
            mask = torch.ones(weight.shard.shape, dtype=torch.bool, device=weight.shard.device)
        return _tensor_module().DTensor.from_local(
            mask,
            dense.device_mesh,
            dense.placements,
            run_check=False,
            shape=dense.shape,
            stride=dense.stride(),
        )

    def sparsities(self, weights: Sequence[ShardedWeight]) -> Mapping[str, float]:
        kept = {w.name: w.bound_shape.numel() - w.state.removed for w in weights}
        return {w.name: 1 - kept[w.name] / w.bound_shape.numel() for w in weights}

    def unwrap(self, binding: Binding[ShardedWeight]) -> None:
        weights = binding.weights.values()
        for zeros in _zeros_of(weights):
            zeros.write()
            zeros.remove()
        for weight in weights:
            for place in weight.places:
                _set_state(place, None)

    def _set_mask(self, weight: ShardedWeight, mask: Mask) -> None:
        """Takes the shard's part of a mask."""
        shard, first = weight.shard, weight.first_row(self._ranks)
        rows = mask.to_numpy()[first : first + len(shard)]
        weight.state.mask = torch.tensor(rows, device=shard.device)
        weight.state.removed = mask.pruned


def _mesh_of(model: nn.Module) -> Any:
    """The devices that the model is sharded over; UnimplementedError unless they are in a row."""
    found: Any = next(filter(_is_shard, model.parameters()), None)
    if found is None:
        raise UnimplementedError("fully_shard has sharded no parameter of the model")
    mesh = found.device_mesh
    if mesh.ndim != 1:
        raise UnimplementedError(
            f"the model is sharded over {mesh}, and {_ONLY}, on a mesh of one dimension"
        )
    return mesh


_ONLY = "pruners take fully_shard without tensor parallelism and replication (HSDP)"


def _check(weight: ShardedWeight, mesh: Any) -> None:
    """Raises UnimplementedError unless `fully_shard` has sharded the rows of a compressed weight
    over the mesh of the model.
    """
    dense = weight.dense
    if not _is_shard(dense):
        raise UnimplementedError(
            f"the weight of layer {weight.name!r} is not sharded and others are: apply fully_shard "
            "to the whole model, or exclude the layer"
        )
    if dense.device_mesh != mesh or dense.placements != (_tensor_module().Shard(0),):
        raise UnimplementedError(
            f"the weight of layer {weight.name!r} has placements {list(dense.placements)} on "
            f"{dense.device_mesh}; {_ONLY}, with [Shard(dim=0)] on {mesh}, which others are on"
        )


class ShardedBackend(TorchBackend):
    """A PyTorch model to which `fully_shard` was applied; only for pruners."""

    asks_ahead = True
    is_collective = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        _reshard(model)
        self._ranks = Ranks(_mesh_of(model))

    @staticmethod
    def accepts(value: Any) -> bool:
        return isinstance(value, nn.Module) and is_fully_sharded(value)

    def client(self, client: Client) -> CollectiveClient:
        return CollectiveClient(self._ranks, client)

    def check(self) -> None:
        _reshard(self.model)
        for name, module in naming.named_modules(self.model):
            if dense_weights.computed_by(module, "weight") is not None:
                raise UnimplementedError(
                    f"the weight of layer {name!r} is computed (weight_norm, a parametrization), "
                    "which pruners do not take under fully_shard: remove the parametrization first"
                )

    def find_weights(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[TorchWeight]:
        self.check()
        return find_weights(self.model, self.wire_rules(rules), ShardedWeight)

    def why_no_statistic(self, weight: TorchWeight, kind: str) -> str:
        return (
            "which is not collected of a model that fully_shard has sharded: use "
            "DistributedDataParallel"
        )

    def weights_changed(self, binding: Binding[Any]) -> None:
        for zeros in _zeros_of(binding.weights.values()):
            zeros.write()

    def pruning(self, own: Optional[OwnAlgorithm[Any]]) -> Any:
        if own is not None:
            raise UnimplementedError(
                "an algorithm of one's own needs whole weights, and these are sharded "
                "(fully_shard): use DistributedDataParallel, or an algorithm of the server"
            )
        return ShardedPruning(self.model, self._ranks)

    def has(self, binding: Binding[Any]) -> bool:
        return all(weight.state is not None for weight in binding.weights.values())

    def installed(self, binding: Binding[Any], undo: contextlib.ExitStack) -> None:
        super().installed(binding, undo)
        self.weights_changed(binding)  # the last of all, as zeros cannot be taken back

    # Files.

    def exported(self, binding: Binding[Any]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        names = self._weight_keys(binding)
        layers = {key: name for name, key in names.items()}
        state = self._state(binding, whole=True)
        return to_host({layers.get(key, key): value for key, value in state.items()}), names

    def _state(self, binding: Binding[Any], *, whole: bool) -> dict[str, Any]:
        """See the base; empty on all ranks but the first."""
        state = super()._state(binding, whole=whole)
        for key, value in state.items():
            state[key] = self.whole(value)
        if not self._ranks.is_first:
            state.clear()
        return state

    def whole(self, value: Any) -> Any:
        """The whole tensor in CPU memory, on the first rank; others get what they have."""
        gathered = value.full_tensor() if _is_shard(value) else value
        if not self._ranks.is_first or not isinstance(gathered, torch.Tensor):
            return value
        return gathered.detach().cpu()

    def written(self, write: Callable[[], _R]) -> _R:
        result: _R = self._ranks.on_first("a method that writes files", write)
        return result

    def apply_to(self, binding: Binding[Any], copy: Any) -> None:
        raise UnimplementedError(
            "apply_to is not possible from a model under fully_shard: load compressed_state_dict() "
            "into the copy"
        )

    def save_onnx(
        self,
        files: ModelFiles,
        path: str,
        input_shape: Optional[Sequence[int]],
        inputs: Union[torch.Tensor, ExampleInputs, None],
    ) -> None:
        raise UnimplementedError(
            "onnx_path is not possible under fully_shard: load model_path into the plain model and "
            "export that"
        )

    def to_numpy(self, array: Any) -> Any:
        return super().to_numpy(array.full_tensor() if _is_shard(array) else array)
