"""Quantizers: the forward pass sees quantized weights, the gradient goes to the float ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch

from ..adapters.compressor import QuantizerPart
from ..adapters.tracker import Tracker
from . import naming
from ._files import ExampleInputs, ModelFiles
from .binding import QuantizerBinding, TrackedWeight
from .compressor import Compressor
from .custom import CustomQuantizerBinding, OutputFunction, tensor_of


class Quantizer(QuantizerPart, Compressor):
    """Base of quantizers.

    One of your own overrides `quantize_weight`, and is computed here; or it names an algorithm that
    the server has: ``algorithm = "mine"``.

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
        example_inputs: Union[torch.Tensor, ExampleInputs, None] = None,
    ) -> None:
        """Writes the quantized model, and how it was quantized, with `torch.save`. All files
        appear, or none.

        Args:
            model_path: for the plain model's `state_dict()` with quantized values in the weights.
            calibration_path: for `calibration`.
            onnx_path: for the plain model as `torch.onnx.export` writes it, in evaluation mode,
                with what `nni_compression.onnx.apply` puts into it: codes in place of the weights,
                quantized outputs and inputs. Where that cannot be done, because the package `onnx`
                is missing or the exporter has renamed the weights, a warning says so, and the file
                has the same weights as plain numbers.
            input_shape: for `onnx_path`, where the model takes one tensor of its weights' type: the
                shape, with the batch.
            example_inputs: for `onnx_path`, what else the model is called with: a tuple of
                positional arguments, or a dict of keyword arguments.
        """
        with ModelFiles.written() as files:
            self._export_model(files, model_path, onnx_path, input_shape, example_inputs)
            if onnx_path is not None and not self._is_custom:
                self._put_codes(files.temporary(onnx_path))
            if calibration_path is not None:
                files.save(self.calibration, calibration_path)

    @property
    def calibration(self) -> dict[str, dict[str, Any]]:
        """Layer name -> "weight_bits", "weight_scale", "weight_zero_point", "channel_axis", and
        with groups "group_size".

        Scales are float32 and zero points int32 tensors, with one number or one per channel or
        group of weights; None for DoReFa. Where outputs or inputs are quantized: "output_bits",
        "output_scale", "output_zero_point", "output_range" (minimum, maximum), and so for "input".
        Layers that are not quantized yet are left out.
        """
        if self._final_calibration is not None:
            return dict(self._final_calibration)
        self.refresh()
        found: dict[str, dict[str, Any]] = {}
        binding = self._quantization()
        for name, weight in binding.weights.items():
            parameters = weight.state.parameters
            if parameters is not None and parameters.bits:  # else the values are all there is
                found[name] = {
                    "weight_bits": parameters.bits,
                    "weight_scale": parameters.scale,
                    "weight_zero_point": parameters.zero_point,
                    "channel_axis": parameters.channel_axis,
                }
                if parameters.group_size:
                    found[name]["group_size"] = parameters.group_size
        for (name, target), range_ in binding.activation_ranges.items():
            activation = binding.activation(name, target)
            if activation is not None and activation.parameters is not None:
                found.setdefault(name, {}).update(
                    {
                        f"{target}_bits": activation.parameters.bits,
                        f"{target}_scale": activation.parameters.scale,
                        f"{target}_zero_point": activation.parameters.zero_point,
                        f"{target}_range": range_,
                    }
                )
        return found

    def unwrap(self) -> Any:
        """Gives the plain model back, quantized values written in; ends the session."""
        self._final_calibration = self.calibration
        return super().unwrap()

    def _exported_state(self) -> Mapping[str, torch.Tensor]:
        state = self.compressed_state_dict()
        if not self._is_custom:  # otherwise the server has no way to the values
            keys = self._weight_keys()
            for name, weight in self._quantization().weights.items():
                state[keys[name]] = weight.dense.detach()
        return state

    def _tied_names(self) -> Mapping[str, Sequence[str]]:
        present = naming.names_by_module(naming.named_modules(self._model))
        keys = self._weight_keys()
        return {
            keys[name]: [
                naming.weight_key(each)
                for module in weight.modules
                for each in present.get(id(module), ())
            ]
            for name, weight in self._quantization().weights.items()
        }

    def _other_weights(self) -> Mapping[str, np.ndarray[Any, Any]]:
        weights = self._quantization().weights.values()
        shapes = {weight.dense.shape for weight in weights}
        compressed = {id(weight.dense) for weight in weights}
        return {
            naming.key_of(name, part): parameter.detach().cpu().numpy()
            for name, module in naming.named_modules(self._model)
            for part, parameter in (*module._parameters.items(), *module._buffers.items())
            if parameter is not None
            and id(parameter) not in compressed
            and parameter.shape in shapes
            and parameter.dtype in (torch.float32, torch.float16, torch.float64)
        }

    def _kept(self, weight: TrackedWeight) -> Optional[np.ndarray[Any, Any]]:
        weight.state.refresh()
        return None if weight.mask is None else weight.mask.cpu().numpy()

    def _quantization(self) -> QuantizerBinding:
        binding = self._bound()
        assert isinstance(binding, QuantizerBinding)
        return binding

    def _make_binding(self, tracker: Tracker, weights: Sequence[TrackedWeight]) -> QuantizerBinding:
        if not self._is_custom:
            return QuantizerBinding(tracker, weights, self.transfer)
        binding = CustomQuantizerBinding(tracker, weights, self.transfer)
        if self._quantizes_outputs:
            binding.outputs = self._output_function
        return binding

    def _output_function(self, weight: TrackedWeight) -> OutputFunction:
        where = f"{type(self).__name__}.quantize_layer_output of layer {weight.name!r}"

        def quantize(output: torch.Tensor) -> torch.Tensor:
            return tensor_of(self._compute_output(weight, output), output, where)

        return OutputFunction(quantize)


class NaiveQuantizer(Quantizer):
    """Eight bits with a scale that only grows.

    ``config_list = [{"op_types": ["default"]}]``
    """

    algorithm = "naive"


class QATQuantizer(Quantizer):
    """Quantization-aware training (Jacob et al., "Quantization and training of neural networks for
    efficient integer-arithmetic-only inference", 2018).

    ``config_list = [{"quant_types": ["weight", "output"], "quant_bits": {"weight": 8, "output": 8},
    "quant_start_step": 0, "op_types": ["default"]}]``; call `step` after each minibatch when
    `quant_start_step` is set, or outputs or inputs are quantized: their ranges, two numbers for
    each, go to the service then, in one call for all layers, and what it answers holds for the
    minibatches after that. In `eval()` mode nothing is noted. Where `torch.distributed` is
    initialised every rank has to call `step`: they reduce their ranges among themselves.
    """

    algorithm = "qat"


class DoReFaQuantizer(Quantizer):
    """Low bit widths (Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural networks
    with low bitwidth gradients", 2016).

    ``config_list = [{"quant_bits": 4, "op_types": ["default"]}]``
    """

    algorithm = "dorefa"
