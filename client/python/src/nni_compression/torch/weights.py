"""The weights of a model: their names, their modules, and the detection of changes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

from ..adapters.binding import Binding
from ..adapters.warn import warn
from ..errors import UnimplementedError
from ..values.plan import Layer, Parameter
from . import modules, naming
from .checksums import sample_of
from .transfer import DTYPES

PATTERN = "re:"  # a name in op_names that begins with it is a pattern
_MAX_BASES = 16  # that the service takes
ROOT = "."  # the name of a model that is itself a layer


class Place(NamedTuple):
    """Where a weight is: the parameter of this name in a module."""

    module: nn.Module
    part: str

    @property
    def is_weight(self) -> bool:
        """Whether the parameter is the `weight` of its module."""
        return self.part == "weight"

    @property
    def parameter(self) -> Optional[torch.Tensor]:
        """The parameter itself, never compressed."""
        return self.module._parameters.get(self.part)

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
        self.bound_dtype = self.dense.dtype
        self.bound_shape = self.dense.shape
        #: Whether it was not trained in the last step, and its checksum when it was asked for then.
        self.steady = False
        self.checksum: Optional[torch.Tensor] = None
        self._seen: Optional[torch.Tensor] = None

    @property
    def dense(self) -> torch.Tensor:
        """The parameter itself, never compressed."""
        weight = self.places[0].parameter
        assert weight is not None
        return weight

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
        """Requests a new answer when this weight, or the session, has changed."""
        if self.binding is not None:
            if self.dense.shape != self.bound_shape:
                raise RuntimeError(
                    f"the weight of layer {self.name!r} has shape {list(self.dense.shape)} and was "
                    f"bound with {list(self.bound_shape)}; call rebind() of its pruner or quantizer"
                )
            self.binding.ensure_fresh(self)

    def _modules(self, model: nn.Module) -> list[tuple[nn.Module, Optional[nn.Module]]]:
        """For each name: the module that was bound, and the one that the model has there."""
        names = zip(self.name_places, (self.name, *self.aliases))
        return [
            (place.module, naming.module_at(model, place.module_of(name))) for place, name in names
        ]

    def is_in_place(self, model: nn.Module) -> bool:
        """Whether the model still has the bound modules at their places."""
        parameter = self.places[0].parameter
        if parameter is None or parameter.shape != self.bound_shape:
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
            and (now is bound or now is None or now._parameters.get(part) is None)
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


def find_weights(model: nn.Module, rules: Sequence[Mapping[str, Any]] = ()) -> list[TorchWeight]:
    """The weights that can be compressed, in the order of named_modules(), tied ones once.

    Layers have the modules' names in the plain model, without wrappers; a model that is itself a
    layer is named ".", which is not a valid name of a module. A parameter that is not called
    `weight` is a layer of its own, under the parameter's name, if a rule may select it by type or
    by name: rules without filters are not about position embeddings.

    Warns of modules whose weight is computed from other parameters (weight_norm, parametrize), and
    of scripted ones: there is no parameter that could be compressed. Raises ValueError for a lazy
    module that has not seen data.
    """
    check_whole(model)
    computed = []
    for name, module in naming.named_modules(model):
        weight = None if _is_scripted(module) else module._parameters.get("weight")
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the weight of layer {name or ROOT!r} is not initialised; run one forward "
                "pass of the model before compressing it"
            )
        if weight is None and isinstance(getattr(module, "weight", None), torch.Tensor):
            computed.append(name or ROOT)
    places: dict[int, list[tuple[str, Place]]] = {}
    for layer, place, parameter in _places(model):
        places.setdefault(id(parameter), []).append((layer, place))
    # A parameter has all of its places, or the model would read it compressed in some of them.
    found = []
    for own in places.values():
        if any(place.is_weight or _is_named(layer, place, rules) for layer, place in own):
            found.append(TorchWeight(sorted(own, key=lambda each: not each[1].is_weight)))
    if computed:
        warn(
            f"the weights of {', '.join(computed)} are computed or scripted and will not be "
            "compressed; remove weight_norm, parametrizations and the like first"
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
                "be whole on every rank: use DistributedDataParallel, or unwrap() before sharding"
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
    layers: dict[int, str] = {}
    # As a layer has the name of its first `weight`.
    for layer, _, parameter in sorted(_places(model), key=lambda each: not each[1].is_weight):
        layers.setdefault(id(parameter), layer)
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


def _places(model: nn.Module) -> Iterator[tuple[str, Place, torch.Tensor]]:
    """Each parameter that may be a layer, with the layer's name, wherever a module has it."""
    for name, module in naming.named_modules(model):
        for part, parameter in () if _is_scripted(module) else module._parameters.items():
            if parameter is not None and _can_be_a_layer(module, part, parameter):
                place = Place(module, part)
                yield place.layer(name), place, parameter


def _can_be_a_layer(module: nn.Module, part: str, parameter: torch.Tensor) -> bool:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return False
    if part != "weight" and (
        parameter.dim() < 2 or isinstance(module, (nn.ParameterList, nn.ParameterDict))
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
