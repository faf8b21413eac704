"""Conversion of tensors between PyTorch and the numpy client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import numpy as np
import torch

from ..values.dtypes import WEIGHT_DTYPES
from ..values.tensors import Tensor

# The dtypes of weights that can be sent, by the wire's name.
DTYPES = {getattr(torch, name): name for name in WEIGHT_DTYPES}

HostTensor = Union["np.ndarray[Any, Any]", Tensor]


def to_host(weights: Mapping[str, torch.Tensor]) -> dict[str, HostTensor]:
    """Arrays that share the memory of CPU tensors where these are contiguous.

    CUDA tensors are copied once, into pinned memory, all copies in flight together. bfloat16, which
    numpy lacks, goes as raw bits.
    """
    hosts = {}
    devices = set()
    for name, weight in weights.items():
        weight = weight.detach()
        if weight.is_cuda:
            host = torch.empty(weight.shape, dtype=weight.dtype, device="cpu", pin_memory=True)
            host.copy_(weight, non_blocking=True)
            devices.add(weight.device)
            hosts[name] = host
        else:
            hosts[name] = weight.cpu().contiguous()
    for device in devices:
        torch.cuda.current_stream(device).synchronize()  # type: ignore[no-untyped-call]
    return {name: _as_array(host) for name, host in hosts.items()}


def _as_array(host: torch.Tensor) -> HostTensor:
    if host.dtype is torch.bfloat16:
        return Tensor(host.view(torch.int16).numpy(), "bfloat16", tuple(host.shape))
    array: np.ndarray[Any, Any] = host.numpy()
    return array


def from_host(array: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of an answer's array; bfloat16 is received as uint16 bits."""
    array = np.asarray(array)
    if not array.flags.writeable:
        array = array.copy()  # torch has no read-only tensors
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)
