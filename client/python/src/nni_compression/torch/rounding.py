"""Quantized weights computed in the trainer, with the quantization parameters of the service.

The arithmetic is float32 in the service's order of operations, so both give the same bits (DoReFa
to one code: the last bit of tanh differs between mathematical libraries).
"""

from __future__ import annotations

import dataclasses
from typing import Optional

import numpy as np
import torch

from ..values.quantization import QuantizedTensor

DOREFA = "dorefa"
HALF_EVEN = "half_even"
TRUNCATE = "truncate"


@dataclasses.dataclass(eq=False)
class Parameters:
    """The parameters that convert a weight into codes and back.

    ``scale`` (float32) and ``zero_point`` (int32) have no dimension, or ``[C]`` with one number
    for each slice along ``channel_axis``, or, with ``group_size``, for each so many consecutive
    weights; they stay on the CPU. Both are None for DoReFa, whose only parameter is the number of
    bits.
    """

    formula: str
    rounding: str
    bits: int
    code_min: int
    code_max: int
    scale: Optional[torch.Tensor]
    zero_point: Optional[torch.Tensor]
    channel_axis: Optional[int]
    group_size: int = 0

    @property
    def depends_on_weight(self) -> bool:
        """Whether another weight could have other parameters."""
        return self.scale is not None

    @property
    def clamps(self) -> bool:
        """Whether weights outside of the parameters' range get no gradient."""
        return self.rounding == HALF_EVEN

    def __post_init__(self) -> None:
        # The largest magnitude of a value. A number, so that graphs need not compute it.
        scale = 0.0 if self.scale is None else float(self.scale.max())
        self._largest_value = scale * (self.code_max - self.code_min)

    def _scale_and_zero_point(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as float32 on the weight's device, in a shape that broadcasts over `_grouped`."""
        assert self.scale is not None and self.zero_point is not None
        scale = self.scale.to(weight.device, non_blocking=True)
        zero_point = self.zero_point.to(weight.device, torch.float32, non_blocking=True)
        if self.group_size:
            scale, zero_point = scale.reshape(-1, 1), zero_point.reshape(-1, 1)
        elif self.channel_axis is not None:
            shape = [1] * weight.dim()
            shape[self.channel_axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return scale, zero_point

    def _grouped(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(-1, self.group_size) if self.group_size else weight

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """The dequantized values: the weight's shape, dtype and device, without gradient."""
        with torch.no_grad():
            return self.rounded(weight.detach())

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The same by plain operations, which can be exported."""
        wide = weight.to(torch.float32)
        if self.formula == DOREFA:
            values = self._dorefa(wide)
        else:
            codes, scale, zero_point = self._codes(wide)
            codes.clamp_(self.code_min, self.code_max)
            values = codes.sub_(zero_point).mul_(scale)
        return self._like(weight, values)

    def _like(self, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The values in the weight's shape and dtype."""
        largest = min(torch.finfo(weight.dtype).max, torch.finfo(torch.float32).max)
        if self._largest_value > largest:
            values.clamp_(-largest, largest)
        return values.reshape(weight.shape).to(weight.dtype)

    def _codes(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes that are not clamped yet, scale and zero point, as float32 in `_grouped` shapes."""
        scale, zero_point = self._scale_and_zero_point(weight)
        weight = self._grouped(weight)
        if self.rounding == TRUNCATE:
            codes = weight.div(scale).trunc_()
        else:
            codes = weight.mul(scale.reciprocal()).round_()
        # Adding the zero point also turns -0.0, which no integer code has, into 0.0.
        return codes.add_(zero_point), scale, zero_point

    def _dorefa(self, weight: torch.Tensor) -> torch.Tensor:
        squashed = weight.tanh()
        largest = squashed.abs().max()
        codes = squashed.div(largest * 2).add_(0.5).mul_(float(self.code_max)).round_()
        values = codes.mul_(2).div_(float(self.code_max)).sub_(1)
        # A weight of zeros stays zero.
        return torch.where(largest > 0, values, torch.zeros_like(values))

    def inside(self, weight: torch.Tensor) -> torch.Tensor:
        """True where `quantize` did not clamp: bool of the weight's shape. Only if `clamps`."""
        with torch.no_grad():
            codes, _, _ = self._codes(weight.detach().to(torch.float32))
            inside = (codes >= self.code_min) & (codes <= self.code_max)
            return inside.reshape(weight.shape)

    def quantize_and_inside(
        self, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """`quantize`, and `inside` or, unless `clamps`, None: in half the time of the two."""
        if not self.clamps:
            return self.quantize(weight), None
        with torch.no_grad():
            codes, scale, zero_point = self._codes(weight.detach().to(torch.float32))
            clamped = codes.clamp(self.code_min, self.code_max)
            inside = (codes == clamped).reshape(weight.shape)
            return self._like(weight, clamped.sub_(zero_point).mul_(scale)), inside


def weight_range(
    weight: torch.Tensor, channel_axis: Optional[int], group_size: int = 0
) -> torch.Tensor:
    """Smallest and largest element as float32 on the weight's device.

    Shape ``[2]``, or ``[2, C]`` for the ``C`` slices along ``channel_axis``, or ``[2, n]`` for each
    ``group_size`` consecutive elements. NaN stays NaN.
    """
    with torch.no_grad():
        wide = weight.detach().to(torch.float32)
        if channel_axis is None:
            return torch.stack(torch.aminmax(wide))
        if group_size:
            return torch.stack(torch.aminmax(wide.reshape(-1, group_size), dim=1))
        channels = wide.movedim(channel_axis, 0).reshape(wide.shape[channel_axis], -1)
        return torch.stack(torch.aminmax(channels, dim=1))


def parameters_of(quantized: QuantizedTensor) -> Optional[Parameters]:
    """The parameters of an answer; None when the weight passes unchanged."""
    if quantized.unquantized:
        return None
    assert quantized.formula is not None and quantized.rounding is not None
    assert quantized.bits is not None
    assert quantized.code_min is not None and quantized.code_max is not None
    scale = zero_point = None
    if quantized.scale is not None:
        scale = torch.from_numpy(np.array(quantized.scale, dtype=np.float32))
        zero_point = torch.from_numpy(np.array(quantized.zero_point, dtype=np.int32))
    return Parameters(
        formula=quantized.formula,
        rounding=quantized.rounding,
        bits=quantized.bits,
        code_min=quantized.code_min,
        code_max=quantized.code_max,
        scale=scale,
        zero_point=zero_point,
        channel_axis=quantized.channel_axis,
        group_size=quantized.group_size,
    )
