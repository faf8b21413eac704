"""Reading the exports that hold kept weights only."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, Union

import numpy as np

from .errors import DataLossError
from .tensors import Tensor

_LONGEST_HEADER = 100_000_000

# Names of .safetensors files. bfloat16, which numpy lacks, is read as its bits.
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


def load_sparse(
    path: Union[str, os.PathLike[str]],
) -> dict[str, Union[np.ndarray[Any, Any], Tensor]]:
    """The dense tensors of a file that was exported as "sparse".

    Kept weights have the bits that they had, removed ones are 0; all other tensors are as they
    were. bfloat16, which numpy lacks, comes as `Tensor`s.

    Raises DataLossError for a file that is damaged or of another format, OSError when it cannot be
    read.

    >>> model.load_state_dict(                                             # doctest: +SKIP
    ...     {name: torch.from_numpy(array) for name, array in nc.load_sparse(path).items()})
    """
    file = _File(Path(path))
    tensors: dict[str, Union[np.ndarray[Any, Any], Tensor]] = {}
    for name, entry in file.entries.items():
        stem, dot, kind = name.rpartition(".")
        if dot and stem in file.shapes and kind in ("values", "bitmask"):
            continue
        tensors[name] = file.typed(name, np.array(file.array(name)), entry["shape"])
    for name, shape in file.shapes.items():
        tensors[name] = file.typed(f"{name}.values", file.dense(name, shape), shape)
    return tensors


class _File:
    """A .safetensors file, mapped into memory; its header says where its tensors are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: Any = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
        size = len(self._bytes)
        (length,) = struct.unpack("<Q", bytes(self._bytes[:8])) if size >= 8 else (0,)
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise self._damaged(f"its header has {length} bytes, the file {size}")
        self._begin = 8 + length
        try:
            header = json.loads(bytes(self._bytes[8 : self._begin]))
            metadata = header.pop("__metadata__", {})
            version = metadata.get("nni_compression.sparse")
            self.shapes: dict[str, list[int]] = json.loads(
                metadata.get("nni_compression.shapes", "{}")
            )
            self.entries: dict[str, dict[str, Any]] = header
            for name in header:
                self._check(name)
            for name, shape in self.shapes.items():
                _count(shape)
                if f"{name}.values" not in header or f"{name}.bitmask" not in header:
                    raise self._damaged(f"tensor {name} lacks its values or its bitmask")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header cannot be read: {error}") from None
        if version != "1":
            raise DataLossError(f"{path} is not an export of format sparse, version 1")

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as it is in the file, one-dimensional."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        raw = self._bytes[self._begin + begin : self._begin + end]
        array: np.ndarray[Any, Any] = np.frombuffer(raw, _DTYPES[entry["dtype"]])
        return array

    def dense(self, name: str, shape: list[int]) -> np.ndarray[Any, Any]:
        """The weight, zeros included, one-dimensional."""
        values = self.array(f"{name}.values")
        bits = self.array(f"{name}.bitmask")
        size = _count(shape)
        if len(bits) != (size + 7) // 8:
            raise self._damaged(f"the bitmask of {name} does not fit shape {shape}")
        kept = np.unpackbits(bits, count=size, bitorder="little").view(bool)
        if np.count_nonzero(kept) != len(values):
            raise self._damaged(f"{name} has {len(values)} values, its bitmask keeps others")
        array = np.zeros(size, values.dtype)
        array[kept] = values
        return array

    def typed(
        self, name: str, array: np.ndarray[Any, Any], shape: list[int]
    ) -> Union[np.ndarray[Any, Any], Tensor]:
        """The array with its shape, or a `Tensor` where numpy lacks the dtype of tensor `name`."""
        if self.entries[name]["dtype"] == "BF16":
            return Tensor(array, "bfloat16", shape)
        return array.reshape(shape)

    def _check(self, name: str) -> None:
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise self._damaged(f"tensor {name} has dtype {entry['dtype']}, which numpy lacks")
        size = _count(entry["shape"]) * np.dtype(_DTYPES[entry["dtype"]]).itemsize
        if not 0 <= begin <= end <= len(self._bytes) - self._begin or end - begin != size:
            raise self._damaged(f"tensor {name} is said to be at {begin} to {end}")

    def _damaged(self, why: str) -> DataLossError:
        return DataLossError(f"{self._path} is damaged: {why}")


def _count(shape: list[int]) -> int:
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return math.prod(shape)
