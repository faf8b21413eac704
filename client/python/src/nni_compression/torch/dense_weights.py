"""The dense weight of a module: a parameter, or what the module computes from parameters.

A weight is computed by `torch.nn.utils.weight_norm`, before each forward pass, or at each read by a
parametrization, `torch.nn.utils.parametrizations.weight_norm` for example. It is computed here at
each read: what the module has may be of an earlier forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Optional, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

# The parametrization; from PyTorch 2.0 on.
_NORM: Any = getattr(parametrizations, "_WeightNorm", ())


class Computed(Protocol):
    """How a module computes a weight."""

    def value(self) -> torch.Tensor:
        """The weight; differentiable in the parameters."""

    def originals(self) -> dict[str, torch.Tensor]:
        """The parameters that the weight was replaced by, under their keys in the module."""

    def parameters(self) -> tuple[torch.Tensor, ...]:
        """These, and all others that it is computed from."""

    def holders(self) -> set[tuple[int, str]]:
        """Where these are: the module's id, and the name in it."""

    def identity(self) -> Hashable:
        """Equal for modules that compute the same weight from the same parameters."""

    def can_be_written(self) -> bool:
        """Whether there are originals for any weight, with zeros anywhere."""

    def inverse(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """The originals of another weight: exact where it is zero, and up to rounding elsewhere."""

    def assign(self, value: torch.Tensor) -> None:
        """Called when the attribute is assigned."""

    def restore(self) -> None:
        """Called when the attribute is the module's own again."""

    def remove(self) -> None:
        """Makes the weight a parameter, or a buffer, of the module."""


def computed_by(module: nn.Module, part: str) -> Optional[Computed]:
    """How a module computes its weight `part`; None if it does not, or by other means."""
    of_all = module._modules.get("parametrizations")
    if isinstance(of_all, nn.ModuleDict) and part in of_all:
        return _Parametrized(module, part, of_all[part])
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == part and hasattr(module, f"{part}_g"):
            return _Hook(module, part, hook)
    return None


def read(module: nn.Module, part: str) -> Optional[torch.Tensor]:
    """The dense weight; None: the module has none."""
    parameter = module._parameters.get(part)
    if parameter is not None:
        return parameter
    computed = computed_by(module, part)
    return None if computed is None else computed.value()


def parameters(module: nn.Module, part: str) -> tuple[torch.Tensor, ...]:
    """The weight itself, or what it is computed from."""
    parameter = module._parameters.get(part)
    if parameter is not None:
        return (parameter,)
    computed = computed_by(module, part)
    return () if computed is None else computed.parameters()


def identity(module: nn.Module, part: str) -> Hashable:
    """Equal for modules that share the weight, while it exists."""
    parameter = module._parameters.get(part)
    computed = computed_by(module, part) if parameter is None else None
    return id(parameter) if computed is None else computed.identity()


def inverse(module: nn.Module, part: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of the module's `state_dict()` with which its weight is `value`."""
    computed = computed_by(module, part) if module._parameters.get(part) is None else None
    return {part: value} if computed is None else computed.inverse(value)


def write(module: nn.Module, part: str, value: torch.Tensor) -> None:
    """Makes `value` the dense weight, in the memory of its parameters."""
    computed = computed_by(module, part) if module._parameters.get(part) is None else None
    present: Any = module._parameters if computed is None else computed.originals()
    with torch.no_grad():
        for key, found in inverse(module, part, value).items():
            present[key].copy_(found)


def replace(module: nn.Module, part: str, value: torch.Tensor) -> None:
    """Makes a weight that is computed a parameter, of these values and in their memory."""
    computed = computed_by(module, part)
    assert computed is not None
    computed.remove()
    module._buffers.pop(part, None)
    module._parameters[part] = nn.Parameter(value, requires_grad=False)


class _Hook:
    """`torch.nn.utils.weight_norm`."""

    def __init__(self, module: nn.Module, part: str, hook: WeightNorm) -> None:
        self._module, self._part, self._hook = module, part, hook

    def value(self) -> torch.Tensor:
        weight: torch.Tensor = self._hook.compute_weight(self._module)
        return weight

    def originals(self) -> dict[str, torch.Tensor]:
        # Attributes, as a replica of DataParallel has no parameters.
        names = (f"{self._part}_g", f"{self._part}_v")
        return {name: getattr(self._module, name) for name in names}

    def parameters(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.originals().values())

    def holders(self) -> set[tuple[int, str]]:
        return {(id(self._module), name) for name in self.originals()}

    def identity(self) -> Hashable:
        return ("weight_norm", self._hook.dim, *map(id, self.parameters()))

    def can_be_written(self) -> bool:
        return all(isinstance(own, nn.Parameter) for own in self.parameters())

    def inverse(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        originals = self.originals()
        _, direction = originals.values()
        return dict(zip(originals, _norm_and_direction(value, direction, self._hook.dim)))

    def assign(self, value: torch.Tensor) -> None:
        """The hook assigns what it computes."""

    def restore(self) -> None:
        self._module.__dict__[self._part] = self.value()

    def remove(self) -> None:
        remove_weight_norm(self._module, self._part)


class _Parametrized:
    """`torch.nn.utils.parametrize`: a chain of modules, of which the first gets the originals."""

    def __init__(self, module: nn.Module, part: str, chain: Any) -> None:
        self._module, self._part, self._chain = module, part, chain

    def value(self) -> torch.Tensor:
        weight: torch.Tensor = self._chain()
        return weight

    def originals(self) -> dict[str, torch.Tensor]:
        chain = self._chain
        count = range(chain.ntensors)
        names = ["original"] if chain.is_tensor else [f"original{i}" for i in count]
        return {f"parametrizations.{self._part}.{name}": getattr(chain, name) for name in names}

    def parameters(self) -> tuple[torch.Tensor, ...]:
        others = (own for step in self._chain for own in step.parameters())
        return (*self.originals().values(), *others)

    def holders(self) -> set[tuple[int, str]]:
        owners = self._chain.modules()
        return {(id(owner), name) for owner in owners for name in owner._parameters}

    def identity(self) -> Hashable:
        kinds = (
            ("norm", step.dim) if isinstance(step, _NORM) else id(step) for step in self._chain
        )
        return ("parametrized", *kinds, *map(id, self.originals().values()))

    def can_be_written(self) -> bool:
        originals = list(self.originals().values())
        if not all(isinstance(own, nn.Parameter) for own in originals):
            return False
        if all(isinstance(step, _NORM) for step in self._chain):
            return True
        # Others are tried: an orthogonal one, for example, has an inverse for few weights.
        steps = copy.deepcopy(list(self._chain))  # a call may change them
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            value = _chained(steps, originals)
            kept = torch.rand(value.shape, generator=generator).to(value.device) < 0.5
            value = torch.where(kept, value, value.new_zeros(()))
            try:
                again = _chained(steps, _inverted(steps, value, originals))
                rounding = 16 * torch.finfo(value.dtype).eps
                return torch.allclose(again, value, rtol=rounding, atol=0)
            except Exception:  # whatever other people's code raises
                return False

    def inverse(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        originals = self.originals()
        with torch.no_grad():
            found = _inverted(list(self._chain), value, list(originals.values()))
        return dict(zip(originals, found))

    def assign(self, value: torch.Tensor) -> None:
        self._chain.right_inverse(value)

    def restore(self) -> None:
        """It is a property of the class."""

    def remove(self) -> None:
        module: Any = self._module
        module.parametrizations = nn.ModuleDict(module.parametrizations)  # it may be tied
        parametrize.remove_parametrizations(module, self._part)


def _chained(steps: Sequence[Any], originals: Iterable[torch.Tensor]) -> torch.Tensor:
    value: torch.Tensor = steps[0](*originals)
    for step in steps[1:]:
        value = step(value)
    return value


def _inverted(
    steps: Sequence[Any], value: torch.Tensor, originals: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    found: Any = value
    for step in reversed(steps):
        if isinstance(step, _NORM):
            found = _norm_and_direction(found, originals[1], step.dim)
        else:
            found = step.right_inverse(found)
    return [found] if isinstance(found, torch.Tensor) else list(found)


def _norm_and_direction(
    weight: torch.Tensor, direction: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """g and v with ``g * v / ||v|| == weight`` (Salimans and Kingma, "Weight Normalization", 2016,
    arXiv:1602.07868).

    Args:
        direction: the present v; kept where the weight is all zeros, which has no direction.
    """
    norm = torch.norm_except_dim(weight, 2, dim)
    return norm, torch.where(norm == 0, direction.detach(), weight)
