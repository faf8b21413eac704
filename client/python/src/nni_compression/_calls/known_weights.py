"""Weights and statistics that the server may have already, and how to refer to them.

A weight is recognized by a fingerprint, which is cheap, and then referred to by its digest, which
costs about as much as sending it over a fast network. So only weights whose fingerprint the server
knows are hashed. docs/wire-protocol.md has the protocol.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .._wire import compression_pb2 as pb
from .._wire.frames import LONE_BYTES, Outgoing

# Smaller weights are sent without asking: that is faster.
MIN_BYTES = 16 << 10

_SAMPLES = 4096
_ROLES = (pb.TENSOR_ROLE_WEIGHT, pb.TENSOR_ROLE_STATISTIC)  # others are never sent twice


def worth_asking(requests: Sequence[Outgoing]) -> list[Outgoing]:
    """The tensors worth a FindWeights call: none when all fit into one message."""
    found = [
        request
        for request in requests
        if request.header.role in _ROLES and len(request.data) >= MIN_BYTES
    ]
    return found if sum(len(request.data) for request in found) > LONE_BYTES else []


def fingerprint(request: Outgoing) -> bytes:
    """16 bytes that are equal for equal tensors and very likely differ for others."""
    data = np.frombuffer(request.data, dtype=np.uint8)
    words = data[: len(data) // 8 * 8].view(np.uint64)
    step = max(1, len(words) // _SAMPLES)
    sample = hashlib.blake2b(_prefix(request.header), digest_size=16)
    sample.update(words[::step].tobytes())
    sample.update(data[-64:].tobytes())
    return sample.digest()


def digests(requests: Sequence[Outgoing]) -> list[bytes]:
    """TensorHeader.digest of each; computed in parallel."""
    if len(requests) < 2:
        return [_digest(request) for request in requests]
    with ThreadPoolExecutor(min(len(requests), os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest, requests))


def _digest(request: Outgoing) -> bytes:
    digest = hashlib.sha256(_prefix(request.header))
    digest.update(request.data)
    return digest.digest()


def _prefix(header: Any) -> bytes:
    shape = header.shape
    return struct.pack(f"<BI{len(shape)}q", header.dtype, len(shape), *shape)
