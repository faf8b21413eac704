"""The weights of a model: their names, their modules, and the detection of changes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Optional

import torch
from torch import nn

from ..adapters.binding import Binding
from ..adapters.warn import warn
from ..values.plan import Layer, Parameter
from . import modules, naming
from .checksums import sample_of
from .transfer import DTYPES

ROOT = "."  # the name of a model that is itself a layer


class TorchWeight:
    """A weight of the model under all its names (tied weights have several modules)."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.modules = [module]
        self.aliases: list[str] = []
        self.name_modules = [module]  # of the name, and of each alias
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
    def fits(self) -> bool:
        """Whether the bound dtype holds every value of the present one."""
        return torch.promote_types(self.dense.dtype, self.bound_dtype) == self.bound_dtype

    def is_taken(self, role: str) -> bool:
        """Whether there is a "pruner", or a "quantizer", already."""
        state = modules.state_of(self.modules[0])
        return state is not None and getattr(state, role) is not None

    @property
    def channel_axis(self) -> int:
        """The dimension of the outputs."""
        return 1 if _has_inputs_first(self.modules[0]) else 0

    def layer(self) -> Layer:
        """The layer as sent to BindModel."""
        return Layer(
            name=self.name,
            op_type=modules.plain_class(self.modules[0]).__name__,
            shape=tuple(self.dense.shape),
            dtype=DTYPES[self.bound_dtype],
            channel_axis=self.channel_axis,
            aliases=self.aliases,
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

    def _places(self, model: nn.Module) -> list[tuple[nn.Module, Optional[nn.Module]]]:
        """For each name: the module that was bound, and the one that the model has there."""
        names = ("" if name == ROOT else name for name in (self.name, *self.aliases))
        found = (naming.module_at(model, name) for name in names)
        return list(zip(self.name_modules, found))

    def is_in_place(self, model: nn.Module) -> bool:
        """Whether the model still has the bound modules at their places."""
        parameter = self.modules[0]._parameters.get("weight")
        if parameter is None or parameter.shape != self.bound_shape:
            return False
        return all(bound is now for bound, now in self._places(model))

    def is_within_others(self, model: nn.Module, present: Collection[int]) -> bool:
        """Whether modules that are not in place were wrapped in others, as adapters do, which have
        no weights of their own.

        Args:
            present: the ids of all modules of the model.
        """
        if all(bound is now for bound, now in self._places(model)):
            return False  # then the weight was replaced
        return all(
            id(bound) in present
            and (now is bound or now is None or now._parameters.get("weight") is None)
            for bound, now in self._places(model)
        )

    @property
    def has_answer(self) -> bool:
        """Whether there is an answer that is not known to be stale; makes no call."""
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


def find_weights(model: nn.Module) -> list[TorchWeight]:
    """The weights that can be compressed, in the order of named_modules(), tied ones once.

    Layers have the modules' names in the plain model, without wrappers; a model that is itself a
    layer is named ".", which is not a valid name of a module.

    Warns of modules whose weight is computed from other parameters (weight_norm, parametrize), and
    of scripted ones: there is no parameter that could be compressed. Raises ValueError for a lazy
    module that has not seen data.
    """
    found: dict[int, TorchWeight] = {}
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
                found[id(weight)] = TorchWeight(name or ROOT, module)
    if computed:
        warn(
            f"the weights of {', '.join(computed)} are computed or scripted and will not be "
            "compressed; remove weight_norm, parametrizations and the like first"
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


def _add_name(weight: TorchWeight, name: str, module: nn.Module) -> None:
    weight.aliases.append(name)
    weight.name_modules.append(module)
    if all(module is not known for known in weight.modules):
        weight.modules.append(module)
