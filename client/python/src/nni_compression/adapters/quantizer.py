"""Quantizers: the forward pass uses quantized weights, the gradient updates the float ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, cast

from ..values.quantization import Calibration
from . import export
from .backend import Backend
from .compressor import Compressor
from .custom import OwnAlgorithm
from .quantizing import CustomQuantizerBinding, QuantizerBinding, Transfer
from .tracker import Tracker
from .transfer import check, shown
from .warn import warn


@shown
class Quantizer(Compressor):
    """Base of quantizers.

    A custom algorithm overrides `quantize_weight`, which runs in the trainer, or names an algorithm
    of the server: ``algorithm = "mine"``.
    """

    _computes = "quantize_weight"
    _custom_algorithm = "custom_quantizer"

    def __init__(self, *args: Any, transfer: Optional[Transfer] = None, **kwargs: Any) -> None:
        """Makes a quantizer.

        Args:
            transfer: what is sent when weights change. "weights": the client sends the weights and
                receives the quantized values. "ranges": it sends the smallest and largest weight of
                a layer (or channel), receives scale and zero point, and rounds locally; the bits
                are the same (DoReFa: to one code). By default "ranges", which is faster also where
                the weights are in shared memory.

        The other arguments are those of `Compressor`.
        """
        super().__init__(*args, **kwargs)
        check(transfer, Transfer)
        self.transfer: Transfer = transfer or "ranges"

    def quantize_weight(self, weight: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """The quantized values of a weight: override it for an algorithm of your own.

        Called when a weight, the epoch or the step changed, before the next forward pass; the
        gradient uses a straight-through estimator. Arguments as those of `Pruner.calc_mask`.

        Returns: a tensor of the weight's shape and dtype.
        """
        raise NotImplementedError(f"{self.algorithm} quantizes on the server")

    def quantize_layer_output(self, output: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """The quantized outputs of a layer, in every forward pass; for custom algorithms."""
        raise NotImplementedError(f"{self.algorithm} does not quantize outputs here")

    @property
    def calibration(self) -> dict[str, Calibration]:
        """Layer name -> "weight_bits", "weight_scale", "weight_zero_point", "channel_axis", and
        with groups "group_size".

        Scales and zero points are numbers, or arrays with one per channel or group (float32 and
        int32 tensors in PyTorch); None for DoReFa. Where outputs or inputs are quantized:
        "output_bits", "output_scale", "output_zero_point", "output_range" (minimum, maximum), and
        the same for "input". Layers that are not quantized yet are left out.
        """
        binding = self._quantization()
        if binding.final is None and not binding.backend.asks_ahead:
            self.refresh()
        return cast(dict[str, Calibration], self._quantization().calibration())

    def _quantization(self) -> QuantizerBinding[Any]:
        binding = self._bound()
        assert isinstance(binding, QuantizerBinding)
        return binding

    def _put_codes(self, path: Path) -> None:
        """Puts the session's codes and encodings into the model's ONNX file."""
        if self._is_custom:
            return
        binding = self._quantization()
        if binding.activations and not binding.activation_ranges:
            warn(
                "onnx_path quantizes no inputs and outputs, because none were observed: run the "
                "model in training mode, then step(). Runtimes compute with floats until then"
            )
        export.put_codes(binding, path, self.export)

    def _make_binding(
        self, tracker: Tracker, weights: Sequence[Any], backend: Backend[Any]
    ) -> QuantizerBinding[Any]:
        if not self._is_custom:
            return QuantizerBinding(tracker, weights, backend, self.transfer)
        overrides = type(self).quantize_layer_output is not Quantizer.quantize_layer_output
        output = "quantize_layer_output" if overrides else None
        own: OwnAlgorithm[Any] = OwnAlgorithm(self, self._computes, output)
        return CustomQuantizerBinding(tracker, weights, backend, self.transfer, own)
