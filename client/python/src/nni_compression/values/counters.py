"""Integers that users give."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import InvalidArgumentError, InvalidTypeError

_LIMIT = 2**63


def counter(value: Any, name: str) -> int:
    """An epoch or a step as a plain number. Raises InvalidArgumentError for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidTypeError(
            f"{name} is {value!r:.80}, a {type(value).__name__}; it must be an integer"
        ) from None
    if abs(number) >= _LIMIT:
        raise InvalidArgumentError(f"{name} is {number}; it must be in [0, 2^63)")
    return number


def integer_within(value: Any, name: str, least: int, most: int) -> int:
    """A plain number in [least, most]. Raises InvalidArgumentError for anything else."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        allowed = f"[{least}, {'2^53' if most == 2**53 else most}]"
        raise InvalidArgumentError(f"{name} is {value!r}; it must be an integer in {allowed}")
    return number
