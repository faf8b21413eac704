"""The data types of elements, in one table: their names here, on the wire, in files and in numpy.

The names are those of PyTorch and TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from .._wire import compression_pb2 as pb
from ..errors import InvalidArgumentError


@dataclass(frozen=True)
class DType:
    """A data type.

    Attributes:
        name: in numpy and the frameworks.
        safetensors: the name in the safetensors format.
        numpy: the type of the array that holds elements, little-endian.
        wire: the contract's enum value; None for a type that occurs in files only.
        weight: whether a weight may have it.
        bits_only: whether numpy lacks the type, so that its array holds bits.
    """

    name: str
    safetensors: str
    numpy: np.dtype[Any]
    wire: Optional[int]
    weight: bool = False
    bits_only: bool = False


_TABLE = (
    DType("float32", "F32", np.dtype("<f4"), pb.DATA_TYPE_FLOAT32, weight=True),
    DType("float16", "F16", np.dtype("<f2"), pb.DATA_TYPE_FLOAT16, weight=True),
    DType("bfloat16", "BF16", np.dtype("<u2"), pb.DATA_TYPE_BFLOAT16, weight=True, bits_only=True),
    DType("float64", "F64", np.dtype("<f8"), pb.DATA_TYPE_FLOAT64, weight=True),
    DType("uint8", "U8", np.dtype("u1"), pb.DATA_TYPE_UINT8),
    DType("int8", "I8", np.dtype("i1"), pb.DATA_TYPE_INT8),
    DType("uint16", "U16", np.dtype("<u2"), pb.DATA_TYPE_UINT16),
    DType("int16", "I16", np.dtype("<i2"), pb.DATA_TYPE_INT16),
    DType("int32", "I32", np.dtype("<i4"), pb.DATA_TYPE_INT32),
    DType("int64", "I64", np.dtype("<i8"), pb.DATA_TYPE_INT64),
    DType("bool", "BOOL", np.dtype("?"), pb.DATA_TYPE_BOOL),
    DType("uint32", "U32", np.dtype("<u4"), None),
    DType("uint64", "U64", np.dtype("<u8"), None),
)
SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE}
_ON_THE_WIRE = {dtype.name: dtype for dtype in _TABLE if dtype.wire is not None}
_NAMES = {dtype.wire: dtype.name for dtype in _ON_THE_WIRE.values()}

WEIGHT_DTYPES = tuple(dtype.name for dtype in _TABLE if dtype.weight)
DTYPES = tuple(_ON_THE_WIRE)


def dtype_name(dtype: Any) -> str:
    """The wire's name of a dtype: a name ("float32", "torch.float32") or a numpy dtype.

    Raises InvalidArgumentError for a dtype that cannot be sent.
    """
    if isinstance(dtype, str):
        name = dtype
    else:
        try:
            name = np.dtype(dtype).name
        except TypeError:  # a framework's own: "torch.float32", "<dtype: 'float32'>"
            name = str(dtype)
    name = name.rpartition(".")[2]
    if name not in _ON_THE_WIRE:
        raise InvalidArgumentError(f"dtype is {dtype}; it must be one of {', '.join(DTYPES)}")
    return name


def wire_dtype(name: str) -> int:
    """The wire's enum value of a dtype name."""
    wire = _ON_THE_WIRE[name].wire
    assert wire is not None
    return wire


def dtype_from_wire(wire: int) -> str:
    """The name of a wire enum value; "" when it is unknown or DATA_TYPE_BIT."""
    return _NAMES.get(wire, "")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type that holds elements of this dtype; uint16, as bits, for bfloat16."""
    return _ON_THE_WIRE[name].numpy
