"""Conversion between plain Python values and google.protobuf.Struct."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import struct_pb2

from ..errors import InvalidArgumentError

_LARGEST_EXACT = 2**53


def to_struct(values: Mapping[str, Any], path: str) -> Any:
    """A Struct of a dict of JSON-like values; numpy's numbers and booleans are accepted too.

    NaN and infinity are passed to the server, which checks them. Raises InvalidArgumentError, with
    a message that begins with `path`, for values that a Struct cannot hold.
    """
    if not isinstance(values, Mapping):
        raise InvalidArgumentError(f"{path} is {values!r}; it must be a dict")
    struct = struct_pb2.Struct()
    _fill_struct(struct, values, path)
    return struct


def from_struct(struct: Any) -> dict[str, Any]:
    """A dict of a Struct; numbers without a fraction become int."""
    return {key: from_value(value) for key, value in struct.fields.items()}


def from_value(value: Any) -> Any:
    """A Python value of a google.protobuf.Value."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [from_value(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        whole = abs(number) <= _LARGEST_EXACT and number == int(number)
        return int(number) if whole else number
    if kind in ("string_value", "bool_value"):
        return getattr(value, kind)
    return None


def text(value: Any, path: str) -> str:
    """`value` if it is a string of valid Unicode; else raises InvalidArgumentError."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{path} is {value!r}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{path} is {value!r}; it must be valid Unicode") from error
    return value


def _fill_struct(struct: Any, values: Mapping[str, Any], path: str) -> None:
    for key, value in values.items():
        name = text(key, f"a key of {path}")
        _fill_value(struct.fields[name], value, f"{path}.{name}")


def _fill_value(out: Any, value: Any, path: str) -> None:
    if value is None:
        out.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, str):
        out.string_value = text(value, path)
    elif isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # numpy's too
        out.bool_value = bool(value)
    elif isinstance(value, numbers.Integral):
        if abs(int(value)) > _LARGEST_EXACT:
            raise InvalidArgumentError(f"{path} is {value}; it must be within +-2^53")
        out.number_value = int(value)
    elif isinstance(value, numbers.Real):
        out.number_value = float(value)
    elif isinstance(value, Mapping):
        out.struct_value.SetInParent()
        _fill_struct(out.struct_value, value, path)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        out.list_value.SetInParent()
        for i, item in enumerate(value):
            _fill_value(out.list_value.values.add(), item, f"{path}[{i}]")
    else:
        raise InvalidArgumentError(
            f"{path} is {value!r} ({type(value).__name__}); it must be a number, a string, "
            "a boolean, a list or a dict"
        )
