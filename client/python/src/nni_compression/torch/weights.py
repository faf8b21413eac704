"""The weights of a model: their names, their modules, and the detection of changes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..adapters.binding import Binding
from ..adapters.warn import warn
from ..errors import UnimplementedError
from ..values.plan import Layer, Parameter
from . import dense_weights, modules, naming
from .checksums import sample_of
from .transfer import DTYPES

PATTERN = "re:"  # a name in op_names that begins with it is a pattern
_MAX_BASES = 16  # that the service takes
ROOT = "."  # the name of a model that is itself a layer


class Place(NamedTuple):
    """Where a weight is: the parameter of this name in a module, or what it computes instead."""

    module: nn.Module
    part: str

    @property
    def is_weight(self) -> bool:
        """Whether the parameter is the `weight` of its module."""
        return self.part == "weight"

    @property
    def dense(self) -> Optional[torch.Tensor]:
        """The weight, never compressed; None if the module has none any more."""
        return dense_weights.read(self.module, self.part)

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        """The weight, or all that it is computed from."""
        return dense_weights.parameters(self.module, self.part)

    @property
    def is_computed(self) -> bool:
        """Whether the weight is not a parameter itself."""
        return self.module._parameters.get(self.part) is None

    @property
    def identity(self) -> Hashable:
        """Equal for the places of a tied weight."""
        return dense_weights.identity(self.module, self.part)

    def layer(self, module: str) -> str:
        """The name of the layer, in a module of this name."""
        return (module or ROOT) if self.is_weight else naming.key_of(module, self.part)

    def module_of(self, layer: str) -> str:
        """The inverse."""
        if not self.is_weight:
            return layer[: -len(self.part)].rstrip(".")
        return "" if layer == ROOT else layer


class TorchWeight:
    """A weight of the model under all its names (tied weights have several places)."""

    def __init__(self, named: Sequence[tuple[str, Place]]) -> None:
        """
        Args:
            named: its places, with the layer's name there; the first name is the layer's.
        """
        self.name, *self.aliases = (name for name, _ in named)
        self.name_places = [place for _, place in named]  # of the name, and of each alias
        unique = {(id(place.module), place.part): place for place in self.name_places}
        self.places = list(unique.values())
        self.binding: Optional[Binding[TorchWeight]] = None
        dense = self.dense
        self.bound_dtype, self.bound_shape = dense.dtype, dense.shape
        self._bound_shapes = [own.shape for own in self.parameters]
        #: Whether it was not trained in the last step, and its checksum when it was asked for then.
        self.steady = False
        self.checksum: Optional[torch.Tensor] = None
        self._seen: Sequence[torch.Tensor] = ()

    @property
    def dense(self) -> torch.Tensor:
        """The weight, never compressed: the parameter itself, or what the module computes."""
        weight = self.places[0].dense
        assert weight is not None
        return weight

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        """The weight, or all that it is computed from."""
        return self.places[0].parameters

    @property
    def is_computed(self) -> bool:
        """Whether it is not a parameter itself."""
        return self.places[0].is_computed

    def is_dense(self, weight: torch.Tensor) -> bool:
        """Whether this tensor, which one of the modules has as its dense weight, is `dense`."""
        return self.is_computed or weight is self.dense

    def write(self, value: torch.Tensor) -> None:
        """Makes this the dense weight."""
        dense_weights.write(*self.places[0], value)

    @property
    def op(self) -> nn.Module:
        """The module that has it; the first, of tied ones."""
        return self.places[0].module

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
        """What the weight's places share."""
        state = modules.state_of(*self.places[0])
        assert state is not None
        return state

    @property
    def fits(self) -> bool:
        """Whether the bound dtype holds every value of the present one."""
        return torch.promote_types(self.dense.dtype, self.bound_dtype) == self.bound_dtype

    def is_taken(self, role: str) -> bool:
        """Whether there is a "pruner", or a "quantizer", already."""
        state = modules.state_of(*self.places[0])
        return state is not None and getattr(state, role) is not None

    @property
    def channel_axis(self) -> int:
        """The dimension of the outputs."""
        return 1 if self.places[0].is_weight and _has_inputs_first(self.op) else 0

    def layer(self) -> Layer:
        """The layer as sent to BindModel."""
        is_weight = self.places[0].is_weight
        return Layer(
            name=self.name,
            op_type=modules.plain_class(self.op).__name__,
            shape=tuple(self.dense.shape),
            dtype=DTYPES[self.bound_dtype],
            channel_axis=self.channel_axis,
            aliases=self.aliases,
            op_type_bases=_bases(modules.plain_class(self.op)) if is_weight else (),
            needs_filter=not is_weight,
        )

    def token(self) -> Any:
        """A value that compares equal as long as the weight is unchanged.

        The version counter detects writes through autograd; the address and the object detect
        replacements. Writes to `.data` bypass both: on the CPU a sample of the elements detects
        changes of the whole weight. (On a GPU, reading it would synchronize.)
        """
        # Alive, so that no other parameter gets its id.
        self._seen = parameters = self.parameters
        return [
            (
                id(own),
                -1 if own.is_inference() else own._version,
                own.data_ptr(),
                own.dtype,
                own.device,
                sample_of(own),
            )
            for own in parameters
        ]

    def ensure_fresh(self) -> None:
        """Requests a new answer when this weight, or the session, has changed."""
        if self.binding is not None:
            if not self._has_bound_shape():
                raise RuntimeError(
                    f"the weight of layer {self.name!r} has shape {list(self.dense.shape)} and was "
                    f"bound with {list(self.bound_shape)}; call rebind() of its pruner or quantizer"
                )
            # Without values there is nothing to compare, or to send: the answers stand.
            if self.has_answer and not all(map(modules.has_values, self.parameters)):
                return
            self.binding.ensure_fresh(self)

    def _has_bound_shape(self) -> bool:
        shapes = [own.shape for own in self.parameters]
        return shapes == self._bound_shapes or self.dense.shape == self.bound_shape

    def _modules(self, model: nn.Module) -> list[tuple[nn.Module, Optional[nn.Module]]]:
        """For each name: the module that was bound, and the one that the model has there."""
        names = zip(self.name_places, (self.name, *self.aliases))
        return [
            (place.module, naming.module_at(model, place.module_of(name))) for place, name in names
        ]

    def is_in_place(self, model: nn.Module) -> bool:
        """Whether the model still has the bound modules at their places."""
        if not self.parameters or not self._has_bound_shape():
            return False
        if any(modules.is_overridden(*place) for place in self.places):
            return False
        return all(bound is now for bound, now in self._modules(model))

    def is_within_others(self, model: nn.Module, present: Collection[int]) -> bool:
        """Whether modules that are not in place were wrapped in others, as adapters do, which have
        no weights of their own.

        Args:
            present: the ids of all modules of the model.
        """
        if all(bound is now for bound, now in self._modules(model)):
            return False  # then the weight was replaced
        part = self.places[0].part
        return all(
            id(bound) in present
            and (now is bound or now is None or not dense_weights.parameters(now, part))
            for bound, now in self._modules(model)
        )

    @property
    def has_answer(self) -> bool:
        """Whether there is an answer that is not known to be stale; makes no call."""
        return self.binding is None or self.binding.tracker.status[self.name].stands

    def forget(self) -> None:
        """Treats the weight as changed."""
        if self.binding is not None:
            self.binding.tracker.forget([self.name])


def _bases(cls: type) -> list[str]:
    """The classes of modules that a class derives from, up to nn.Module, the nearest first."""
    derived = (base for base in cls.__mro__[1:] if issubclass(base, nn.Module))
    names = (base.__name__ for base in derived if base is not nn.Module)
    return list(dict.fromkeys(name for name in names if name != cls.__name__))[:_MAX_BASES]


def _has_inputs_first(module: nn.Module) -> bool:
    """Whether the weight is [inputs, outputs, ...]."""
    return isinstance(module, nn.modules.conv._ConvTransposeNd) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is the linear layer with a transposed weight that transformers calls Conv1D."""
    return any(
        cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.")
        for cls in type(module).__mro__
    )


def find_weights(
    model: nn.Module,
    rules: Sequence[Mapping[str, Any]] = (),
    make: Callable[[Sequence[tuple[str, Place]]], TorchWeight] = TorchWeight,
) -> list[TorchWeight]:
    """The weights that can be compressed, in the order of named_modules(), tied ones once.

    Layers have the modules' names in the plain model, without wrappers; a model that is itself a
    layer is named ".", which is not a valid name of a module. A parameter that is not called
    `weight` is a layer of its own, under the parameter's name, if a rule may select it by type or
    by name: rules without filters are not about position embeddings.

    Warns of modules whose weight is computed in a way that has no inverse, and of scripted ones:
    there is nothing that a compressed weight could be written to. Raises ValueError for a lazy
    module that has not seen data.
    """
    places: dict[Hashable, list[tuple[str, Place]]] = {}
    for layer, place in _places(model):
        places.setdefault(place.identity, []).append((layer, place))
    present = {place for own in places.values() for _, place in own}
    left_out = []
    for name, module in naming.named_modules(model):
        weight = None if _is_scripted(module) else module._parameters.get("weight")
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the weight of layer {name or ROOT!r} is not initialised; run one forward "
                "pass of the model before compressing it"
            )
        is_missing = weight is None and Place(module, "weight") not in present
        if is_missing and _has_weight(module):
            left_out.append(name or ROOT)
    # A parameter has all of its places, or the model would read it compressed in some of them.
    found = []
    for own in places.values():
        if any(place.is_weight or _is_named(layer, place, rules) for layer, place in own):
            found.append(make(sorted(own, key=lambda each: not each[1].is_weight)))
    if left_out:
        warn(
            f"the weights of {', '.join(left_out)} are computed or scripted and will not be "
            "compressed; remove the parametrizations first (those with an inverse for any weight, "
            "such as weight_norm, may stay)"
        )
    return found


def check_whole(model: nn.Module) -> None:
    """Raises UnimplementedError for a model whose parameters are sharded over ranks."""
    # Only a program that has imported these can have such a model.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kinds = ("FSDPModule", "FullyShardedDataParallel")
    sharded = tuple(getattr(fsdp, kind) for kind in kinds if hasattr(fsdp, kind))
    part: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    for name, module in model.named_modules():
        own = module._parameters.values()
        has_part = part is not None and any(isinstance(parameter, part) for parameter in own)
        if has_part or (sharded and isinstance(module, sharded)):
            raise UnimplementedError(
                f"the parameters of {name or type(module).__name__!r} are sharded over the ranks "
                "(fully_shard, FSDP or tensor parallelism), and a weight that is compressed has to "
                "be whole on every rank: use DistributedDataParallel, or unwrap() before sharding. "
                "Only pruners take sharded models: call them after fully_shard, not before"
            )


def layers(model: nn.Module) -> list[Layer]:
    """The model's layers as a session is told of them: for search spaces, or to see their names.

    >>> layers(torch.nn.Sequential(torch.nn.Linear(2, 5)))[0].op_type
    'Linear'
    """
    return [weight.layer() for weight in find_weights(model)]


def parameters(model: nn.Module) -> Iterator[Parameter]:
    """All parameters of a model, tied ones once, and which of them are weights of layers."""
    owners = dict(naming.named_modules(model))
    layers: dict[int, tuple[str, Place]] = {}
    # As a layer has the name of its first `weight`.
    for each in sorted(_places(model), key=lambda each: not each[1].is_weight):
        for own in each[1].parameters:
            layers.setdefault(id(own), each)
    plain = naming.plain_key(model)
    computed: set[Hashable] = set()
    for key, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            continue
        name = plain(key)
        found = layers.get(id(parameter))
        layer, place = (None, None) if found is None else found
        if layer is not None and place is not None and place.is_computed:
            if place.identity not in computed:
                computed.add(place.identity)
                yield _whole(layer, place)
            continue
        op_type = modules.plain_class(owners[name.rpartition(".")[0]]).__name__
        yield Parameter(name, op_type, parameter.numel(), parameter.dim(), layer)


def _whole(layer: str, place: Place) -> Parameter:
    """A weight that is computed, with the elements of all its parameters."""
    return Parameter(
        naming.key_of(place.module_of(layer), place.part),
        modules.plain_class(place.module).__name__,
        sum(own.numel() for own in place.parameters),
        max(own.dim() for own in place.parameters),
        layer,
    )


def _has_weight(module: nn.Module) -> bool:
    # Some parametrizations, such as spectral_norm, change when they are read.
    is_parametrized = parametrize.is_parametrized(module, "weight")
    return is_parametrized or isinstance(getattr(module, "weight", None), torch.Tensor)


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit._script.ScriptModule)


def _places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """Each weight that may be a layer, with the layer's name, wherever a module has it."""
    named = [each for each in naming.named_modules(model) if not _is_scripted(each[1])]
    computed = _computed_weights(module for _, module in named)
    held = {holder for _, holders in computed.values() for holder in holders}
    for name, module in named:
        if id(module) in computed:
            place, _ = computed[id(module)]
            yield place.layer(name), place
        for part, parameter in module._parameters.items():
            if parameter is not None and (id(module), part) not in held:
                place = Place(module, part)
                if _can_be_a_layer(place, parameter):
                    yield place.layer(name), place


def _computed_weights(of: Iterable[nn.Module]) -> dict[int, tuple[Place, set[tuple[int, str]]]]:
    """id of a module -> its weight, if that is computed, and where the parameters of that are.

    Without those that could not be written to: the computation has no inverse, or something else in
    the model has one of the parameters.
    """
    of = list(of)
    found = {}
    for module in of:
        computed = dense_weights.computed_by(module, "weight")
        if computed is not None and computed.can_be_written():
            place = Place(module, "weight")
            if _can_be_a_layer(place, computed.value()):
                found[id(module)] = (place, computed.holders())
    held = {holder for _, holders in found.values() for holder in holders}
    computing = {place.identity: place.parameters for place, _ in found.values()}
    users = Counter(id(own) for parameters in computing.values() for own in parameters)
    users.update(
        id(own)
        for module in set(of)
        for part, own in module._parameters.items()
        if (id(module), part) not in held
    )
    return {
        key: (place, holders)
        for key, (place, holders) in found.items()
        if all(users[id(own)] == 1 for own in place.parameters)
    }


def _can_be_a_layer(place: Place, parameter: torch.Tensor) -> bool:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return False
    if not place.is_weight and (
        parameter.dim() < 2 or isinstance(place.module, (nn.ParameterList, nn.ParameterDict))
    ):
        return False  # slices of such lists are lists of parameters
    return parameter.dtype in DTYPES and parameter.dim() > 0 and parameter.numel() > 0


def _is_named(layer: str, place: Place, rules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a rule may select a parameter that is not called `weight`. The server decides which
    rules do, by patterns for example.
    """
    op_type = modules.plain_class(place.module).__name__
    for rule in rules:
        if not isinstance(rule, Mapping):
            continue  # the server refuses it
        names = rule.get("op_names")
        exact = _texts(names)
        if callable(names) or rule.get("op_names_re") or layer in exact:
            return True
        if op_type in _texts(rule.get("op_types")) or any(n.startswith(PATTERN) for n in exact):
            return True
    return False


def _texts(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    is_list = isinstance(values, Sequence)
    return [text for text in values if isinstance(text, str)] if is_list else []
