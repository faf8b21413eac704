"""Reads exports that hold only kept weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from ._files.safetensors import SafetensorsFile, count
from .values.tensors import Tensor


def load_sparse(
    path: Union[str, os.PathLike[str]],
) -> dict[str, Union[np.ndarray[Any, Any], Tensor]]:
    """The dense tensors of a file that was exported as "sparse".

    Kept weights have their original bits, removed ones are 0; all other tensors are unchanged.
    bfloat16, which numpy lacks, is returned as `Tensor`.

    Raises DataLossError for a file that is damaged or of another format, OSError when it cannot be
    read.

    >>> model.load_state_dict(                                             # doctest: +SKIP
    ...     {name: torch.from_numpy(array) for name, array in nc.load_sparse(path).items()})
    """
    file = _SparseFile(Path(path), "sparse")
    tensors: dict[str, Union[np.ndarray[Any, Any], Tensor]] = {}
    for name, entry in file.entries.items():
        stem, dot, kind = name.rpartition(".")
        if dot and stem in file.shapes and kind in ("values", "bitmask"):
            continue
        tensors[name] = file.typed(name, np.array(file.array(name)), entry["shape"])
    for name, shape in file.shapes.items():
        tensors[name] = file.typed(f"{name}.values", file.dense(name), shape)
    return tensors


class _SparseFile(SafetensorsFile):
    """Attributes: shapes, of the sparse weights by name."""

    def read_metadata(self, metadata: Mapping[str, str]) -> None:
        self.shapes: dict[str, list[int]] = json.loads(metadata["nni_compression.shapes"])
        for name, shape in self.shapes.items():
            count(shape)
            if f"{name}.values" not in self.entries or f"{name}.bitmask" not in self.entries:
                raise ValueError(f"tensor {name} lacks its values or its bitmask")

    def dense(self, name: str) -> np.ndarray[Any, Any]:
        """The weight, zeros included, one-dimensional."""
        values = self.array(f"{name}.values")
        bits = self.array(f"{name}.bitmask")
        shape = self.shapes[name]
        size = count(shape)
        if len(bits) != (size + 7) // 8:
            raise self.damaged(f"the bitmask of {name} does not fit shape {shape}")
        kept = np.unpackbits(bits, count=size, bitorder="little").view(bool)
        if np.count_nonzero(kept) != len(values):
            raise self.damaged(f"{name} has {len(values)} values, its bitmask keeps others")
        array = np.zeros(size, values.dtype)
        array[kept] = values
        return array
