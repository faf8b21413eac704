"""Safetensors files, written and read byte by byte, by nothing that the project has."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "F8_E4M3": np.uint8,  # the bits
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # the bits, since numpy has no such type
    "I64": np.int64,
    "I32": np.int32,
    "U32": np.uint32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

Tensors = dict[str, tuple[str, np.ndarray]]


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Writes the tensors, {name: (dtype of the format, array)}, in their order."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = bytearray()
    for name, (dtype, array) in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata; checks that every tensor is aligned to its elements."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end
        end = stop
        dtype = np.dtype(DTYPES[entry["dtype"]])
        assert (8 + length + begin) % dtype.itemsize == 0, f"{name} is not aligned"
        raw = content[8 + length + begin : 8 + length + stop]
        tensors[name] = (entry["dtype"], np.frombuffer(raw, dtype).reshape(entry["shape"]))
    assert 8 + length + end == len(content)
    return tensors, metadata
