"""Pruners of PyTorch models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import torch

from ..adapters import pruner
from ..adapters.algorithms import listed
from ._files import ExampleInputs, ModelFiles
from .compressor import Compressor


class Pruner(pruner.Pruner, Compressor):
    """Base of pruners of PyTorch models.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``.
    """

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> bool tensor of the weight's shape on its device, True = kept.

        Asks the server for masks that are missing or stale.
        """
        return super().masks

    def export_model(
        self,
        model_path: str,
        mask_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[int]] = None,
        example_inputs: Union[torch.Tensor, ExampleInputs, None] = None,
    ) -> None:
        """Writes the pruned model, and its masks, with `torch.save`. All files appear, or none.

        Args:
            model_path: for the plain model's `state_dict()` with zeros in the weights.
            mask_path: for ``{layer name: {"weight": mask, "bias": None}}``, NNI's mask file; a mask
                has the weight's shape and dtype, 1 = kept.
            onnx_path: for the plain model as `torch.onnx.export` writes it, in evaluation mode,
                with the same weights, zeros included.
            input_shape: for `onnx_path`, where the model takes one tensor of its weights' type: the
                shape, with the batch.
            example_inputs: for `onnx_path`, what else the model is called with: a tuple of
                positional arguments, or a dict of keyword arguments.
        """
        with ModelFiles.written() as files:
            files.save(self.compressed_state_dict(), model_path)
            if onnx_path is not None:
                self._torch().save_onnx(files, onnx_path, input_shape, example_inputs)
            if mask_path is not None:
                weights = self._bound().weights
                masks = {
                    name: {"weight": mask.to("cpu", weights[name].dense.dtype), "bias": None}
                    for name, mask in self.masks.items()
                }
                files.save(masks, mask_path)


@listed
class LevelPruner(Pruner): ...


@listed
class AGPPruner(Pruner): ...
