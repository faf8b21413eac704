"""Reading .safetensors files: https://huggingface.co/docs/safetensors"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from ..errors import DataLossError
from ..values.tensors import Tensor

_LONGEST_HEADER = 100_000_000

# The format's names. bfloat16, which numpy lacks, is read as its bits.
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


class SafetensorsFile:
    """A file of one of the service's formats, mapped into memory.

    Attributes:
        entries: tensor name -> what the header says of it.

    Raises DataLossError for a file that is damaged or of another format, OSError when it cannot be
    read.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._bytes: Any = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
        size = len(self._bytes)
        (length,) = struct.unpack("<Q", bytes(self._bytes[:8])) if size >= 8 else (0,)
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise self.damaged(f"its header has {length} bytes, the file {size}")
        self._begin = 8 + length
        try:
            header = json.loads(bytes(self._bytes[8 : self._begin]))
            metadata = header.pop("__metadata__", {})
            version = metadata.get(f"nni_compression.{kind}")
            self.entries: dict[str, dict[str, Any]] = header
            for name in header:
                self._check(name)
            if version == "1":
                self.read_metadata(metadata)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self.damaged(f"its header cannot be read: {error}") from None
        if version != "1":
            raise DataLossError(f"{path} is not an export of format {kind}, version 1")

    def read_metadata(self, metadata: Mapping[str, str]) -> None:
        """Takes what the format says of itself; any of Python's usual errors when it is no such."""

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as it is in the file, one-dimensional."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        raw = self._bytes[self._begin + begin : self._begin + end]
        array: np.ndarray[Any, Any] = np.frombuffer(raw, _DTYPES[entry["dtype"]])
        return array

    def typed(
        self, name: str, array: np.ndarray[Any, Any], shape: Sequence[int]
    ) -> Union[np.ndarray[Any, Any], Tensor]:
        """The array with its shape, or a `Tensor` where numpy lacks the dtype of tensor `name`."""
        if self.entries[name]["dtype"] == "BF16":
            return Tensor(array, "bfloat16", tuple(shape))
        return array.reshape(shape)

    def damaged(self, why: str) -> DataLossError:
        """An error that names the file."""
        return DataLossError(f"{self._path} is damaged: {why}")

    def _check(self, name: str) -> None:
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise self.damaged(f"tensor {name} has dtype {entry['dtype']}, which numpy lacks")
        size = count(entry["shape"]) * np.dtype(_DTYPES[entry["dtype"]]).itemsize
        if not 0 <= begin <= end <= len(self._bytes) - self._begin or end - begin != size:
            raise self.damaged(f"tensor {name} is said to be at {begin} to {end}")


def count(shape: Sequence[int]) -> int:
    """Elements of a tensor; ValueError for what is no shape."""
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return math.prod(shape)
