"""Tensors on the wire: a dtype, a shape, and bytes in C order, little-endian."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Union

import numpy as np

from ..errors import InvalidArgumentError
from .dtypes import WEIGHT_DTYPES, dtype_name, numpy_dtype


class Tensor:
    """A tensor given as raw bytes, for dtypes that numpy lacks (bfloat16).

    Args:
        buffer: any contiguous buffer: an array, bytes, a memoryview. It is referred to, not copied,
            and must not change until the call is over.
        dtype: "float32", "float16", "bfloat16" or "float64".
        shape: dimensions; their product times the element size is the buffer's size.

    Raises InvalidArgumentError when the size does not fit the shape.

    >>> bits = np.array([0x3F80, 0xBF80], dtype=np.uint16)  # 1 and -1
    >>> Tensor(bits, "bfloat16", (2,))
    Tensor(dtype='bfloat16', shape=(2,))
    """

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, buffer: Any, dtype: Any, shape: Sequence[int]) -> None:
        self.dtype = dtype_name(dtype)
        self.shape = tuple(int(size) for size in shape)
        self.data = _bytes_of(buffer)
        expected = math.prod(self.shape) * numpy_dtype(self.dtype).itemsize
        if len(self.data) != expected:
            raise InvalidArgumentError(
                f"buffer has {len(self.data)} bytes; shape {self.shape} of {self.dtype} "
                f"takes {expected}"
            )

    def __repr__(self) -> str:
        return f"Tensor(dtype={self.dtype!r}, shape={self.shape})"

    @classmethod
    def of(cls, value: TensorLike, name: str, dtypes: Sequence[str] = WEIGHT_DTYPES) -> Tensor:
        """The tensor of an array: a view of its memory where it is contiguous, a copy otherwise.

        `name` is the value's name in error messages. Raises InvalidArgumentError for an array whose
        dtype is not one of `dtypes`.
        """
        if isinstance(value, Tensor):
            return value
        array = np.asarray(value)
        dtype = array.dtype.name
        if dtype not in dtypes:
            raise InvalidArgumentError(
                f"{name} has dtype {dtype}; it must be one of {', '.join(dtypes)}"
            )
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and _BIG_ENDIAN):
            array = array.astype(array.dtype.newbyteorder("<"))
        shape = array.shape
        return cls(np.ascontiguousarray(array), dtype, shape)


TensorLike = Union[np.ndarray[Any, np.dtype[Any]], Tensor]

_BIG_ENDIAN = sys.byteorder == "big"


def _bytes_of(buffer: Any) -> memoryview:
    if isinstance(buffer, np.ndarray):  # ml_dtypes' arrays have no buffer of a standard format
        if not buffer.flags.c_contiguous:
            raise InvalidArgumentError("buffer is not contiguous; it must be in C order")
        buffer = buffer.reshape(-1).view(np.uint8)
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise InvalidArgumentError("buffer is not contiguous; it must be in C order")
    return view.cast("B") if view.nbytes else memoryview(b"")
