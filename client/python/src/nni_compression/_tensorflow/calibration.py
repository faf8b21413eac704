"""`Quantizer.calibration` from the server's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters.backend import ActivationKey
from ..values.quantization import QuantizedTensor


def calibration(
    weights: Mapping[str, QuantizedTensor], activations: Mapping[ActivationKey, QuantizedTensor]
) -> dict[str, dict[str, Any]]:
    """Layer name -> its quantization parameters; layers not quantized yet are left out."""
    found: dict[str, dict[str, Any]] = {
        name: {
            "weight_bits": answer.bits,
            "weight_scale": answer.scale,
            "weight_zero_point": answer.zero_point,
            "channel_axis": answer.channel_axis,
        }
        for name, answer in weights.items()
        if not answer.unquantized
    }
    for (name, target), answer in activations.items():
        if not answer.unquantized:
            found.setdefault(name, {}).update(
                {
                    f"{target}_bits": answer.bits,
                    f"{target}_scale": answer.scale,
                    f"{target}_zero_point": answer.zero_point,
                    f"{target}_range": answer.range,
                }
            )
    return found
