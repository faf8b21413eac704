"""Quantizers: the forward pass sees quantized weights, the gradient goes to the float ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch

from ..adapter import Tracker
from ..compressor import QuantizerPart
from ..errors import FailedPreconditionError
from ._files import ModelFiles
from .binding import QuantizerBinding, TrackedWeight
from .compressor import Compressor


class Quantizer(QuantizerPart, Compressor):
    """Base of quantizers. One for an algorithm of your own names it: ``algorithm = "mine"``.

    Args:
        transfer: what travels when weights change. "weights": the weights go to the service and
            the quantized values come back. "ranges": the smallest and largest weight of a layer (or
            channel) go, scale and zero point come back, and rounding happens here; the bits are the
            same (DoReFa: to one code). By default "weights" when the server is on this host.

    The other arguments are those of `Compressor`.
    """

    def export_model(
        self,
        model_path: str,
        calibration_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[int]] = None,
    ) -> None:
        """Writes the quantized model, and how it was quantized, with `torch.save`. All files
        appear, or none.

        Args:
            model_path: for the plain model's `state_dict()` with quantized values in the weights.
            calibration_path: for `calibration`.
            onnx_path: for the plain model as `torch.onnx.export` writes it, in evaluation mode,
                with the same weights.
            input_shape: of the model's input, with the batch, for `onnx_path`.
        """
        with ModelFiles.written() as files:
            self._export_model(files, model_path, onnx_path, input_shape)
            if calibration_path is not None:
                files.save(self.calibration, calibration_path)

    @property
    def calibration(self) -> dict[str, dict[str, Any]]:
        """Layer name -> "weight_bits", "weight_scale", "weight_zero_point", "channel_axis".

        Scales are float32 and zero points int32 tensors, with one number or one per channel; None
        for DoReFa. Layers that are not quantized yet are left out.
        """
        if self._final_calibration is not None:
            return dict(self._final_calibration)
        self.refresh()
        found = {}
        for name, weight in self._quantization().weights.items():
            parameters = weight.state.parameters
            if parameters is not None:
                found[name] = {
                    "weight_bits": parameters.bits,
                    "weight_scale": parameters.scale,
                    "weight_zero_point": parameters.zero_point,
                    "channel_axis": parameters.channel_axis,
                }
        return found

    _final_calibration: Optional[dict[str, dict[str, Any]]] = None

    def unwrap(self) -> Any:
        """Gives the plain model back, quantized values written in; ends the session."""
        self._final_calibration = self.calibration
        return super().unwrap()

    def _exported_state(self) -> Mapping[str, torch.Tensor]:
        masked = [name for name, w in self._quantization().weights.items() if w.mask is not None]
        if masked:
            raise FailedPreconditionError(
                f"layer {masked[0]!r} is pruned too; export the model with its pruner, which "
                "writes the quantized values as well"
            )
        state: Mapping[str, torch.Tensor] = self._model.state_dict()
        return state

    def _quantization(self) -> QuantizerBinding:
        binding = self._bound()
        assert isinstance(binding, QuantizerBinding)
        return binding

    def _make_binding(self, tracker: Tracker, weights: Sequence[TrackedWeight]) -> QuantizerBinding:
        return QuantizerBinding(tracker, weights, self.transfer)


class NaiveQuantizer(Quantizer):
    """Eight bits with a scale that only grows.

    ``config_list = [{"op_types": ["default"]}]``
    """

    algorithm = "naive"


class QATQuantizer(Quantizer):
    """Quantization-aware training (Jacob et al., "Quantization and training of neural networks for
    efficient integer-arithmetic-only inference", 2018).

    ``config_list = [{"quant_types": ["weight"], "quant_bits": 8, "quant_start_step": 0,
    "op_types": ["default"]}]``; call `step` after each minibatch when `quant_start_step` is set.
    """

    algorithm = "qat"


class DoReFaQuantizer(Quantizer):
    """Low bit widths (Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural networks
    with low bitwidth gradients", 2016).

    ``config_list = [{"quant_bits": 4, "op_types": ["default"]}]``
    """

    algorithm = "dorefa"
