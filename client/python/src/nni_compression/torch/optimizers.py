"""Observing optimizers: calls before and after their steps."""

from __future__ import annotations

import importlib
import types
import weakref
from collections.abc import Sequence
from typing import Any, Callable, Optional

from ..errors import InvalidArgumentError

# Called with an optimizer and the arguments of its step, the optimizer first among them; returns
# None, or other arguments.
Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], Optional[tuple[tuple[Any, ...], Any]]]
After = Callable[[Any], None]  # called with an optimizer


def checked(optimizer: Any) -> Sequence[Any]:
    """The optimizers of an argument: none, one, or a list or tuple of them.

    Raises InvalidArgumentError for anything else.
    """
    if optimizer is None:
        return ()
    given = optimizer if isinstance(optimizer, (list, tuple)) else (optimizer,)
    for i, each in enumerate(given):
        if not (callable(getattr(each, "step", None)) and hasattr(each, "param_groups")):
            path = "optimizer" if given is not optimizer else f"optimizer[{i}]"
            raise InvalidArgumentError(
                f"{path} is {each!r:.80}, a {type(each).__name__}; it must be a "
                "torch.optim.Optimizer, or optimizer a list or tuple of them"
            )
    return list({id(each): each for each in given}.values())


def before_steps(owner: Any, call: Before, given: Sequence[Any]) -> Optional[Callable[[], None]]:
    """Calls a function before the steps of all optimizers, until what is returned is called, or
    `owner` is freed.

    PyTorch 1.13 can observe only the given optimizers, and without one None is returned.
    """
    register = _hooks("register_optimizer_step_pre_hook")
    if register is not None:
        return _until_freed(owner, register(call))
    return _wrap_steps(given, before=call)


def after_steps(owner: Any, call: After, given: Sequence[Any]) -> Optional[Callable[[], None]]:
    """The same after steps."""
    register = _hooks("register_optimizer_step_post_hook")
    if register is not None:
        return _until_freed(owner, register(lambda optimizer, args, kwargs: call(optimizer)))
    return _wrap_steps(given, after=call)


def _hooks(name: str) -> Any:
    return getattr(importlib.import_module("torch.optim.optimizer"), name, None)


def _until_freed(owner: Any, handle: Any) -> Callable[[], None]:
    remove: Callable[[], None] = handle.remove
    weakref.finalize(owner, remove)
    return remove


def _wrap_steps(given: Sequence[Any], **calls: Any) -> Optional[Callable[[], None]]:
    restore = [_wrap_step(optimizer, **calls) for optimizer in given]

    def restore_all() -> None:
        for each in restore:
            each()

    return restore_all if restore else None


def _wrap_step(
    optimizer: Any, before: Optional[Before] = None, after: Optional[After] = None
) -> Callable[[], None]:
    """Calls functions before and after each step; returns a function that ends that.

    The wrapper is a bound method, which learning-rate schedulers require of `optimizer.step`.
    """
    original = optimizer.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            changed = before(self, (self, *args), kwargs)
            if changed is not None:
                (_, *args), kwargs = changed  # type: ignore[assignment]
        result = original(*args, **kwargs)
        if after is not None:
            after(self)
        return result

    # A scheduler that wrapped `step` before relies on its attributes.
    step.__dict__.update(getattr(original, "__dict__", {}))
    mine = types.MethodType(step, optimizer)
    optimizer.step = mine

    def restore() -> None:
        if optimizer.__dict__.get("step") is mine:
            optimizer.step = original

    return restore
