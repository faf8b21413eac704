"""Quantizers of PyTorch models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import torch

from ..adapters import quantizer
from ..adapters.algorithms import listed
from ._files import ExampleInputs, ModelFiles
from .compressor import Compressor


class Quantizer(quantizer.Quantizer, Compressor):
    """Base of quantizers of PyTorch models.

    A custom algorithm overrides `quantize_weight`, which runs in the trainer, or names an algorithm
    of the server: ``algorithm = "mine"``.
    """

    def export_model(
        self,
        model_path: str,
        calibration_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[int]] = None,
        example_inputs: Union[torch.Tensor, ExampleInputs, None] = None,
    ) -> None:
        """Writes the quantized model, and how it was quantized, with `torch.save`. All files
        appear, or none.

        Args:
            model_path: for the plain model's `state_dict()` with quantized values in the weights.
            calibration_path: for `calibration`.
            onnx_path: for the plain model as `torch.onnx.export` writes it, in evaluation mode,
                with what `nni_compression.onnx.apply` puts into it for the rules' target: codes in
                place of the weights, quantized outputs and inputs. If that is not possible, because
                the package `onnx` is missing or the exporter has renamed the weights, there is a
                warning, and the file has the same weights as plain numbers.
            input_shape: for `onnx_path`, where the model takes one tensor of its weights' type: the
                shape, with the batch.
            example_inputs: for `onnx_path`, what else the model is called with: a tuple of
                positional arguments, or a dict of keyword arguments.
        """
        with ModelFiles.written() as files:
            files.save(self.compressed_state_dict(), model_path)
            if onnx_path is not None:
                self._torch().save_onnx(files, onnx_path, input_shape, example_inputs)
                self._put_codes(files.temporary(onnx_path))
            if calibration_path is not None:
                files.save(self.calibration, calibration_path)


@listed
class NaiveQuantizer(Quantizer): ...


@listed
class QATQuantizer(Quantizer): ...


@listed
class DoReFaQuantizer(Quantizer): ...
