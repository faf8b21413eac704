"""The weight of a compressed module: a computed tensor that forwards writes to the parameter.

The compressed weight is computed at each read, so a write to it would be lost. Adapters are merged,
weights initialized and gradients cleared through `module.weight`, so such writes are forwarded to
the parameter, as in the plain module.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Optional, Protocol, cast

import torch
from torch import nn

_OPERATORS = "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift setitem"


def state_key(part: str) -> str:
    """The attribute of a compressed module that has the `State` of its parameter `part`."""
    return "_weight_state" if part == "weight" else f"_{part}_weight_state"


def is_compressed(module: nn.Module) -> bool:
    """Whether a module has a parameter with a `State`."""
    return bool(getattr(module, "_compressed_parts", ()))


class State(Protocol):
    """The state of a compressed module that computes its weight."""

    lost_write: bool

    def effective(self, module: nn.Module, dense: torch.Tensor) -> Any:
        """The compressed weight with the answers in force; makes no call."""

    def written(self) -> None:
        """Called when the dense weight was written to, possibly without a trace in it."""


class CompressedWeight(torch.Tensor):
    """A plain tensor in computations: as with `torch.nn.Parameter` no operation is intercepted, so
    that reading has no overhead.

    In-place methods and operators, `data`, `grad` and `requires_grad` are those of the parameter.
    Other writes, through a view or by ``out=``, change the version counter. That is detected when
    this tensor is freed, and the next read of the weight raises. Arrays of numpy, which leave no
    such trace, are read-only.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    # Weakly: the graph of a forward pass keeps weights, and a module may keep what it computed.
    _module: weakref.ref[nn.Module]
    _part: str  # the parameter's name in the module
    _version_read: Optional[int]
    _is_data: bool

    @staticmethod
    def of(
        weight: torch.Tensor, module: weakref.ref[nn.Module], part: str, *, watched: bool = True
    ) -> CompressedWeight:
        """The same tensor object, read as parameter `part` of `module`.

        Args:
            weight: not referenced elsewhere, as its class is changed.
            watched: whether writes that are not forwarded are reported.
        """
        weight.__class__ = CompressedWeight
        read = cast(CompressedWeight, weight)
        read._module = module
        read._part = part
        read._is_data = False
        read._version_read = weight._version if watched and not weight.is_inference() else None
        return read

    def is_of(self, module: nn.Module, part: str) -> bool:
        """Whether it was read as this parameter of this module."""
        return self._module() is module and self._part == part

    @property
    def _parameter(self) -> Optional[torch.Tensor]:
        module = self._module()
        return None if module is None else module._parameters.get(self._part)

    @property
    def _target(self) -> torch.Tensor:
        parameter = self._parameter
        if parameter is None:  # the module was freed: there is only this tensor
            return self.as_subclass(torch.Tensor)
        return parameter.data if self._is_data else parameter

    def _wrote(self) -> None:
        """Notifies the module, and updates this to the present weight."""
        self._report()
        module, parameter = self._module(), self._parameter
        state = _state_of(module, self._part)
        if module is not None and parameter is not None and state is not None:
            state.written()
            with torch.no_grad():
                now = state.effective(module, parameter)
                if now.shape == self.shape and now.dtype == self.dtype:
                    torch.Tensor.set_(self, now.detach())
        if self._version_read is not None:
            self._version_read = self._version

    @property
    def data(self) -> Any:
        """The same without history; writes to it are forwarded to the parameter's."""
        # With a version counter of its own, so that each is watched by itself.
        plain = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        watched = self._version_read is not None
        found = CompressedWeight.of(plain, self._module, self._part, watched=watched)
        found._is_data = True
        return found

    @data.setter
    def data(self, value: Any) -> None:
        parameter = self._parameter
        (self.as_subclass(torch.Tensor) if parameter is None else parameter).data = value
        self._wrote()

    def detach(self) -> Any:  # type: ignore[override]
        """As `data`."""
        return self.data

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """A read-only array: a write to it could not be detected."""
        array = super().numpy(*args, **kwargs)
        array.flags.writeable = False
        return array

    @property
    def grad(self) -> Any:
        """The parameter's."""
        return self._target.grad

    @grad.setter
    def grad(self, value: Any) -> None:
        self._target.grad = value

    @grad.deleter
    def grad(self) -> None:
        self._target.grad = None

    @property
    def requires_grad(self) -> Any:
        """The parameter's."""
        return self._target.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._target.requires_grad = value

    def register_hook(self, hook: Any) -> Any:
        """The parameter's: a hook on the result of one read would be lost with it."""
        return self._target.register_hook(hook)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> Any:
        return self.as_subclass(torch.Tensor).__deepcopy__(memo)  # type: ignore

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)  # type: ignore

    def _report(self) -> None:
        if self._version_read is not None and self._version != self._version_read:
            state = _state_of(self._module(), self._part)
            if state is not None:
                state.lost_write = True

    def __del__(self) -> None:
        self._report()


def _state_of(module: Optional[nn.Module], part: str) -> Optional[State]:
    return None if module is None else module.__dict__.get(state_key(part))


def _forwarded(name: str) -> Any:
    method = getattr(torch.Tensor, name)

    @functools.wraps(method)
    def call(self: CompressedWeight, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self._target, name)(*args, **kwargs)
        self._wrote()
        return result

    return call


for _name in dir(torch.Tensor):
    if _name.endswith("_") and not _name.startswith("_"):
        setattr(CompressedWeight, _name, _forwarded(_name))
for _name in _OPERATORS.split():
    setattr(CompressedWeight, f"__{_name}__", _forwarded(f"__{_name}__"))
