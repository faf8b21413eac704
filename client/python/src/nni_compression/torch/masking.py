"""Applies a mask to a weight, as every forward pass of a pruned layer does."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by an element's bytes
# An attribute of a mask: all bits of an element, or none, and the mask's version that has them.
_BITS = "_nni_compression_bits"


def masked(weight: torch.Tensor, mask: torch.Tensor, *, sparse: bool = False) -> Any:
    """`torch.where(mask, weight, 0)`, bit for bit, and differentiable like it.

    Args:
        weight: of a floating dtype.
        mask: bool, of the weight's shape and device; it must not be written to later.
        sparse: whether the weight's gradient may be sparse, as an embedding's; it stays so.
    """
    if not sparse and (weight.device.type != "cpu" or is_traced()):
        return torch.where(mask, weight, weight.new_zeros(()))
    return _Masked.apply(weight, mask)


def keep_bits(mask: torch.Tensor, weight: torch.Tensor) -> None:
    """Keeps a mask's bits, for many products with weights like this one, as long as the mask lives
    and is not written to.

    They take the memory of a weight, as the masks of `torch.nn.utils.prune` do.
    """
    if weight.device.type != "cpu" or is_traced():
        return
    kept = _kept_bits(mask)
    like = (INTEGERS[weight.element_size()], weight.stride())
    if kept is None or (kept.dtype, kept.stride()) != like:
        bits = _bits(mask, weight).neg_()
        if type(bits) is torch.Tensor:  # a fake one, without values, is of the mode of this call
            setattr(mask, _BITS, (bits, _version(mask)))


def _kept_bits(mask: torch.Tensor) -> Optional[torch.Tensor]:
    bits, version = getattr(mask, _BITS, (None, 0))
    return bits if version == _version(mask) else None


def _version(mask: torch.Tensor) -> int:
    return -1 if mask.is_inference() else mask._version


def _bits(mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """1 where the mask has True, as integers of the weight's size and in its layout."""
    integers = INTEGERS[weight.element_size()]
    return torch.empty_like(weight, dtype=integers, requires_grad=False).copy_(mask)


def _zeroed(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # On the CPU torch.where takes several times as long as a product; the product of the bits,
    # unlike that of the values, makes no -0 and no NaN.
    if weight.device.type != "cpu":
        return torch.where(mask, weight, weight.new_zeros(()))
    integers = INTEGERS[weight.element_size()]
    kept = _kept_bits(mask)
    values = weight.detach().view(integers)
    if kept is not None and kept.dtype == integers:
        # `out`, for the layout: convolutions choose their algorithm by strides, also of dimensions
        # of size 1, which the result would not have.
        found = torch.empty_like(values, requires_grad=False)
        return torch.bitwise_and(values, kept, out=found).view(weight.dtype)
    return _bits(mask, weight).mul_(values).view(weight.dtype)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        weight, ctx.mask = args
        return _zeroed(weight, ctx.mask)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return keep(grads[0], ctx.mask), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return keep(tangents[0], ctx.mask)


def keep(gradient: Any, mask: torch.Tensor) -> Any:
    """The gradient with zeros where the mask has them; a sparse gradient stays sparse."""
    if _is_batched(gradient):
        return torch.where(mask, gradient, gradient.new_zeros(()))
    if not gradient.is_sparse:
        return masked(gradient, mask)
    gradient = gradient.coalesce()
    rows = gradient.indices()[0]
    return torch.sparse_coo_tensor(
        gradient.indices(), gradient.values() * mask[rows], gradient.shape
    )


def _never() -> bool:
    return False


def _has_batched_key(gradient: torch.Tensor) -> bool:
    keys: Any = torch._C._dispatch_keys(gradient)
    return "Batched" in str(keys)


# Whether a gradient is many, as with `torch.autograd.grad(..., is_grads_batched=True)`. Those have
# few operations, torch.where among them. PyTorch 1 has no function that tells.
_is_batched: Callable[[torch.Tensor], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", _has_batched_key
)

# torch.where is used while operations are recorded, or transformed as by torch.func.
_is_compiling: Callable[[], bool] = getattr(
    getattr(torch, "compiler", None), "is_compiling", _never
)
_is_transforming: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _never)

#: Whether the model runs only to be exported, with tensors that may have no values.
is_exporting: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_exporting", _never)

#: Whether the code is traced by torch.compile, or by torch.export in its strict mode.
is_dynamo: Callable[[], bool] = getattr(
    getattr(torch, "compiler", None), "is_dynamo_compiling", _never
)


def is_traced() -> bool:
    """Whether operations are recorded or transformed instead of only computed."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or _is_compiling() or _is_transforming()
