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
from ..values.dtypes import SAFETENSORS, DType
from ..values.tensors import Tensor

_LONGEST_HEADER = 100_000_000


class SafetensorsFile:
    """A file of one of the service's formats, mapped into memory.

    Attributes:
        entries: tensor name -> its entry in the header.

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
        """Reads the format's own metadata; raises any built-in exception when it is invalid."""

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as it is in the file, one-dimensional."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        raw = self._bytes[self._begin + begin : self._begin + end]
        array: np.ndarray[Any, Any] = np.frombuffer(raw, SAFETENSORS[entry["dtype"]].numpy)
        return array

    def typed(
        self, name: str, array: np.ndarray[Any, Any], shape: Sequence[int]
    ) -> Union[np.ndarray[Any, Any], Tensor]:
        """The array with its shape, or a `Tensor` where numpy lacks the dtype of tensor `name`."""
        dtype = self.dtype(name)
        return Tensor(array, dtype.name, shape) if dtype.bits_only else array.reshape(shape)

    def dtype(self, name: str) -> DType:
        """That of tensor `name`."""
        return SAFETENSORS[self.entries[name]["dtype"]]

    def damaged(self, why: str) -> DataLossError:
        """An error that names the file."""
        return DataLossError(f"{self._path} is damaged: {why}")

    def _check(self, name: str) -> None:
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in SAFETENSORS:
            raise self.damaged(f"tensor {name} has dtype {entry['dtype']}, which numpy lacks")
        size = count(entry["shape"]) * self.dtype(name).numpy.itemsize
        if not 0 <= begin <= end <= len(self._bytes) - self._begin or end - begin != size:
            raise self.damaged(f"tensor {name} has the offsets {begin} to {end}")


def count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor; ValueError for an invalid shape."""
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return math.prod(shape)
