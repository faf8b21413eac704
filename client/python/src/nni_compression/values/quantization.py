"""Quantized weights and how to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, TypedDict, Union

import numpy as np
import numpy.typing as npt

from .._wire import compression_pb2 as pb
from ..errors import DataLossError, FailedPreconditionError

Number = Union[float, npt.NDArray[np.float32]]
Integer = Union[int, npt.NDArray[np.int32]]

# Numbers that a session remembers of a layer, by name.
Memory = Mapping[str, Sequence[float]]

_FORMULAS = {pb.FORMULA_AFFINE: "affine", pb.FORMULA_DOREFA: "dorefa"}
_ROUNDINGS = {
    pb.ROUNDING_HALF_EVEN: "half_even",
    pb.ROUNDING_TRUNCATE: "truncate",
    pb.ROUNDING_DOREFA: "dorefa",
}


class Calibration(TypedDict, total=False):
    """The quantization parameters of a layer, in `Quantizer.calibration` and its files.

    Scales and zero points are numbers, or arrays (tensors in PyTorch) with one for each channel or
    group; None for DoReFa.
    """

    weight_bits: int
    weight_scale: Any
    weight_zero_point: Any
    channel_axis: Optional[int]
    group_size: int
    output_bits: int
    output_scale: Any
    output_zero_point: Any
    output_range: tuple[float, float]
    input_bits: int
    input_scale: Any
    input_zero_point: Any
    input_range: tuple[float, float]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A layer's quantization: its parameters and, if requested, codes or values.

    Attributes:
        shape: the weight's; None when only a range was sent.
        unquantized: True before `quant_start_step`: the weight passes unchanged, and everything
            below is None.
        bits: of a code, 1 to 16.
        formula: how codes become values, in float32: "affine" is ``(codes - zero_point) * scale``,
            "dorefa" is ``2 * codes / (2**bits - 1) - 1``. A value that overflows is the largest
            finite number, of float32 or of the weight's type.
        rounding: how weights became codes, in float32, clamped to [code_min, code_max]:
            "half_even" is ``round_half_even(w * (1 / scale)) + zero_point``, "truncate" is
            ``trunc(w / scale)``, "dorefa" is
            ``round_half_even((tanh(w) / (2 * max|tanh(w)|) + 0.5) * code_max)``.
        scale: a float that is exactly a float32, or float32 [C], one per channel along
            `channel_axis`, or one per group; None for "dorefa".
        zero_point: an int, or int32 of the scale's shape; None for "dorefa".
        group_size: not 0: ``scale[i]`` is that of so many consecutive weights, in C order.
        codes: int8, uint8, int16 or uint16 of the weight's shape (reply "codes").
        values: the dequantized weight in its own dtype and shape (reply "values"); the bits as
            uint16 for bfloat16.
        range: of outputs and inputs: the moving average (EMA) of minimum and maximum, before
            `quant_start_step` too; None for weights.
        memory: the session's present memory of the layer, for `Client.bind_model`.
    """

    shape: Optional[tuple[int, ...]] = None
    unquantized: bool = False
    bits: Optional[int] = None
    formula: Optional[str] = None
    rounding: Optional[str] = None
    code_min: Optional[int] = None
    code_max: Optional[int] = None
    scale: Optional[Number] = None
    zero_point: Optional[Integer] = None
    channel_axis: Optional[int] = None
    group_size: int = 0
    codes: Optional[npt.NDArray[Any]] = None
    values: Optional[npt.NDArray[Any]] = None
    range: Optional[tuple[float, float]] = None
    memory: Memory = field(default_factory=dict)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The values of the codes: float32, the weight's shape.

        Bit for bit the result of the formula in float32. Raises FailedPreconditionError without
        codes: before `quant_start_step`, or when the call requested another reply.
        """
        if self.unquantized:
            raise FailedPreconditionError(
                "the layer is not quantized before quant_start_step; use the weight as it is"
            )
        if self.codes is None:
            raise FailedPreconditionError('there are no codes; ask for them with reply="codes"')
        if self.formula == "dorefa":
            assert self.bits is not None
            levels = np.float32(2**self.bits - 1)
            return self.codes.astype(np.float32) * np.float32(2) / levels - np.float32(1)
        codes = self.codes.reshape(-1, self.group_size) if self.group_size else self.codes
        centred = codes.astype(np.int32) - self._along_axis(np.asarray(self.zero_point))
        scale = self._along_axis(np.asarray(self.scale, dtype=np.float32))
        with np.errstate(over="ignore"):
            values = np.multiply(centred.astype(np.float32), scale, dtype=np.float32)
        largest = np.finfo(np.float32).max
        return np.clip(values, -largest, largest, out=values).reshape(self.codes.shape)

    def _along_axis(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The numbers in a shape that broadcasts against the codes, or against their groups."""
        if numbers.ndim == 0:
            return numbers
        if self.group_size:
            return numbers.reshape(-1, 1)
        assert self.codes is not None
        assert self.channel_axis is not None
        shape = [1] * self.codes.ndim
        shape[self.channel_axis] = -1
        return numbers.reshape(shape)


def from_wire(
    message: Any,
    *,
    shape: Optional[tuple[int, ...]] = None,
    scale: Optional[npt.NDArray[np.float32]] = None,
    zero_point: Optional[npt.NDArray[np.int32]] = None,
    codes: Optional[npt.NDArray[Any]] = None,
    values: Optional[npt.NDArray[Any]] = None,
) -> QuantizedTensor:
    """Reads a QuantizeResult or LayerParameters with its tensors."""
    numbers = getattr(message, "range", ())
    if len(numbers) not in (0, 2):
        raise DataLossError(f"layer {message.layer!r} came with a range of {len(numbers)} numbers")
    range_ = (float(numbers[0]), float(numbers[1])) if numbers else None
    memory = {numbers.name: tuple(numbers.values) for numbers in message.memory}
    if message.unquantized:
        return QuantizedTensor(shape=shape, unquantized=True, range=range_, memory=memory)
    parameters = message.parameters
    if parameters.formula not in _FORMULAS or parameters.rounding not in _ROUNDINGS:
        raise DataLossError(
            f"layer {message.layer!r} came with formula {parameters.formula} and rounding "
            f"{parameters.rounding}, which this client does not know; a newer one may"
        )
    channel_axis = parameters.channel_axis if parameters.HasField("channel_axis") else None
    if scale is None and parameters.scale:
        scale = np.array(parameters.scale, dtype=np.float32)
    if zero_point is None and parameters.zero_point:
        zero_point = np.array(parameters.zero_point, dtype=np.int32)
    if formula_needs_scale(parameters.formula):
        if scale is None or zero_point is None or scale.shape != zero_point.shape:
            raise DataLossError(f"layer {message.layer!r} came without scale or zero_point")
        if channel_axis is None and scale.size != 1:
            raise DataLossError(f"layer {message.layer!r} came with {scale.size} scales")
        if shape is not None and scale.size != _numbers(shape, channel_axis, parameters.group_size):
            raise DataLossError(
                f"layer {message.layer!r} of shape {shape} came with {scale.size} scales"
            )
    per_channel = channel_axis is not None
    return QuantizedTensor(
        shape=shape,
        bits=parameters.bits,
        formula=_FORMULAS[parameters.formula],
        rounding=_ROUNDINGS[parameters.rounding],
        code_min=parameters.code_min,
        code_max=parameters.code_max,
        scale=scale if per_channel or scale is None else float(scale[0]),
        zero_point=zero_point if per_channel or zero_point is None else int(zero_point[0]),
        channel_axis=channel_axis,
        group_size=parameters.group_size,
        codes=codes,
        values=values,
        range=range_,
        memory=memory,
    )


def _numbers(shape: tuple[int, ...], channel_axis: Optional[int], group_size: int) -> int:
    """How many scales a weight has; -1 if its shape does not fit the axis or group size."""
    if channel_axis is None:
        return 1
    if group_size:
        elements = math.prod(shape)
        return elements // group_size if elements % group_size == 0 else -1
    return shape[channel_axis] if channel_axis < len(shape) else -1


def formula_needs_scale(formula: int) -> bool:
    """Whether values of this formula depend on scale and zero_point."""
    return formula == pb.FORMULA_AFFINE
