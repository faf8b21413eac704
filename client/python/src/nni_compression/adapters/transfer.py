"""The argument `transfer` of pruners and quantizers: what is sent in place of weights."""

from __future__ import annotations

import inspect
from typing import Any, Optional, TypeVar, get_args

from .compressor import Compressor

C = TypeVar("C", bound=type[Compressor])


def check(transfer: Optional[str], choices: Any) -> None:
    """Raises ValueError unless it is None or one of a Literal's choices."""
    allowed = get_args(choices)
    if transfer is not None and transfer not in allowed:
        told = " or ".join(f'"{choice}"' for choice in allowed)
        raise ValueError(f"transfer is {transfer!r}; it must be {told}")


def shown(cls: C) -> C:
    """Sets the constructor's signature, for help(): the base's arguments and `transfer`."""
    made: Any = cls
    base = inspect.signature(Compressor.__init__)
    transfer = inspect.signature(made.__init__).parameters["transfer"]
    made.__init__.__signature__ = base.replace(parameters=[*base.parameters.values(), transfer])
    return cls
