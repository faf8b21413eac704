"""Compressed weights and activations in the graphs of `torch.compile`.

A graph must not have the answers of the moment it was traced, and asking the server cannot be
traced. So each read of a weight, and each quantization of an activation, is one operator that is
opaque to the compiler and does what happens without a compiler, each time the graph runs. The graph
has no break and need not be compiled again when an answer changes.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from typing import Any, Callable, Optional, Protocol

import torch

_CUSTOM_OP: Any = getattr(getattr(torch, "library", None), "custom_op", None)  # from 2.4 on
# CUDA graphs would replay the answers of the moment they were captured.
_NOT_CAPTURED: Any = getattr(getattr(torch, "Tag", None), "cudagraph_unsafe", None)

#: A result, without gradient, and where gradients pass (bool); None: everywhere. Neither has memory
#: that is used elsewhere, except that the result may be the operand itself.
Result = tuple[torch.Tensor, Optional[torch.Tensor]]


class Weight(Protocol):
    """What computes a weight: see `modules.WeightState`."""

    def read_detached(self, dense: torch.Tensor) -> Result:
        """The weight with fresh answers."""


class Activation(Protocol):
    """What quantizes outputs or inputs: see `activations.Activation`."""

    def quantize_detached(self, value: torch.Tensor, training: bool) -> Result:
        """The quantized value; in training it is observed."""


_numbers = itertools.count()
_registered: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(computes: Any) -> torch.Tensor:
    """The key under which the operators find a `Weight` or an `Activation` while it lives.

    A tensor, so that the number is not a constant in a graph: similar blocks share one graph.
    """
    number = next(_numbers)
    _registered[number] = computes
    with torch.inference_mode(False):  # type: ignore[no-untyped-call]
        return torch.tensor(number, device="cpu")


def is_possible(tensor: torch.Tensor) -> bool:
    """Whether there are operators for a tensor."""
    if _CUSTOM_OP is None or _is_freezing():
        return False
    return not tensor.is_cuda or _NOT_CAPTURED is not None


def _is_freezing() -> bool:
    """Whether the compiler computes once what depends on parameters alone."""
    config = sys.modules.get("torch._inductor.config")
    return bool(getattr(config, "freezing", False))


# A compiler asks, and does not trace it.
if _CUSTOM_OP is not None:
    _compiler: Any = torch.compiler  # type: ignore[attr-defined]
    _is_freezing = _compiler.assume_constant_result(_is_freezing)


def read(dense: torch.Tensor, key: torch.Tensor) -> Any:
    """The weight with this key; differentiable in `dense`."""
    return _read(dense, key)[0]


def quantize(value: torch.Tensor, key: torch.Tensor, training: bool) -> Any:
    """The quantized value of the activation with this key; differentiable in `value`."""
    return _quantize(value, key, training)[0]


def _run_read(dense: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight: Weight = _registered[int(key)]
    return _owned(dense, lambda: weight.read_detached(dense))


def _run_quantize(
    value: torch.Tensor, key: torch.Tensor, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    activation: Activation = _registered[int(key)]
    return _owned(value, lambda: activation.quantize_detached(value, training))


def _owned(like: torch.Tensor, compute: Callable[[], Result]) -> tuple[torch.Tensor, torch.Tensor]:
    """Results of an operator have memory of their own, in the layout of `_fake`."""
    with torch.no_grad():
        result, passes = compute()
        value, mask = _fake(like)
        is_operand = result.data_ptr() == like.data_ptr()
        return (
            value.copy_(result) if is_operand else _laid_out(result, value),
            mask.fill_(True) if passes is None else _laid_out(passes, mask),
        )


def _laid_out(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The numbers found, copied into `wanted` unless they are laid out like it."""
    layouts = [(each.dtype, each.shape, each.stride()) for each in (found, wanted)]
    return found if layouts[0] == layouts[1] else wanted.copy_(found)


def _fake(like: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(like), torch.empty_like(like, dtype=torch.bool)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.others = len(inputs) - 1


def _backward(ctx: Any, gradient: torch.Tensor, _: Any) -> Any:
    (passes,) = ctx.saved_tensors
    return (torch.where(passes, gradient, gradient.new_zeros(())), *[None] * ctx.others)


def _defined(name: str, run: Callable[..., Any], parameters: str) -> Any:
    if _CUSTOM_OP is None:
        return None
    tags = {} if _NOT_CAPTURED is None else {"tags": (_NOT_CAPTURED,)}
    schema = f"({parameters}) -> (Tensor, Tensor)"
    operator = _CUSTOM_OP(f"nni_compression::{name}", run, mutates_args=(), schema=schema, **tags)
    operator.register_fake(_fake)
    operator.register_autograd(_backward, setup_context=_save)
    return operator


_read = _defined("read", _run_read, "Tensor dense, Tensor key")
_quantize = _defined("quantize", _run_quantize, "Tensor value, Tensor key, bool training")
