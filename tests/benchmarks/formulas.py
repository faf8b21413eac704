"""What a trainer would compute by itself: NNI's formulas in PyTorch."""

import torch


def nni_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """NNI's level formula: everything up to the k-th smallest magnitude goes."""
    magnitude = weight.abs()
    count = int(weight.numel() * sparsity)
    threshold = torch.topk(magnitude.view(-1), count, largest=False)[0].max()
    return torch.gt(magnitude, threshold)


def kthvalue_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The same threshold by selection instead of a partial sort."""
    magnitude = weight.abs()
    threshold = torch.kthvalue(magnitude.view(-1), int(weight.numel() * sparsity))[0]
    return torch.gt(magnitude, threshold)


def affine_parameters(weight: torch.Tensor, bits: int) -> "tuple[float, int]":
    """Scale and zero point of an affine grid over the weight's range."""
    lowest = min(0.0, float(weight.min()))
    highest = max(0.0, float(weight.max()))
    top = 2**bits - 1
    scale = (highest - lowest) / top
    return scale, min(max(round(-lowest / scale), 0), top)


def nni_fake_quantize(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """NNI's QAT formula, one tensor operation after the other."""
    scale, zero_point = affine_parameters(weight, bits)
    codes = torch.round(torch.clamp(zero_point + weight / scale, 0, 2**bits - 1))
    return scale * (codes - zero_point)


def torch_fake_quantize(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """PyTorch's fused kernel, with the range found before."""
    scale, zero_point = affine_parameters(weight, bits)
    return torch.fake_quantize_per_tensor_affine(weight, scale, zero_point, 0, 2**bits - 1)


def nni_naive(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """NNI's naive formula: symmetric, towards zero."""
    scale = weight.abs().max() / (2 ** (bits - 1) - 1)
    return torch.mul((weight / scale).to(torch.int8).to(weight.dtype), scale)


def nni_dorefa(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """NNI's DoReFa formula."""
    squashed = weight.tanh()
    squashed = squashed / (2 * squashed.abs().max()) + 0.5
    levels = 2**bits - 1
    return 2 * (torch.round(squashed * levels) / levels) - 1
