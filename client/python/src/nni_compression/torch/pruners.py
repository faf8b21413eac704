"""Pruners: some weights are zero in every forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch

from ..adapters.compressor import PrunerPart
from ..adapters.tracker import Tracker
from ..values.masks import Mask
from ._files import ExampleInputs, ModelFiles
from .binding import PrunerBinding, TrackedWeight
from .compressor import Compressor
from .custom import CustomPrunerBinding


class Pruner(Compressor, PrunerPart):
    """Base of pruners.

    One of your own overrides `calc_mask`, and is computed here; or it names an algorithm that the
    server has: ``algorithm = "random"``.
    """

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> bool tensor of the weight's shape on its device, True = kept.

        Asks the service for masks that are missing or stale.
        """
        if self._final_masks is not None:
            return dict(self._final_masks)
        self.refresh()
        return dict(self._masks().masks())

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
            self._export_model(files, model_path, onnx_path, input_shape, example_inputs)
            if mask_path is not None:
                weights = self._masks().weights
                masks = {
                    name: {"weight": mask.to("cpu", weights[name].dense.dtype), "bias": None}
                    for name, mask in self.masks.items()
                }
                files.save(masks, mask_path)

    _final_masks: Optional[dict[str, torch.Tensor]] = None

    def unwrap(self) -> Any:
        """Gives the plain model back, zeros written in; ends the session."""
        self._final_masks = self.masks
        return super().unwrap()

    def _masks(self) -> PrunerBinding:
        binding = self._bound()
        assert isinstance(binding, PrunerBinding)
        return binding

    def _make_binding(self, tracker: Tracker, weights: Sequence[TrackedWeight]) -> PrunerBinding:
        return (CustomPrunerBinding if self._is_custom else PrunerBinding)(tracker, weights)

    def _packed_masks(self) -> dict[str, Mask]:
        if self._final_masks is None:
            return super()._packed_masks()
        return {
            name: Mask.from_numpy(mask.to("cpu", torch.bool).numpy())
            for name, mask in self._final_masks.items()
        }


class LevelPruner(Pruner):
    """Removes the share `sparsity` of each layer's weights, the smallest ones, once.

    ``config_list = [{"sparsity": 0.8, "op_types": ["default"]}]``
    """

    algorithm = "level"


class AGPPruner(Pruner):
    """Removes more and more weights over the epochs (Zhu and Gupta, "To prune, or not to prune:
    exploring the efficacy of pruning for model compression", 2017).

    ``config_list = [{"initial_sparsity": 0, "final_sparsity": 0.8, "start_epoch": 0,
    "end_epoch": 10, "frequency": 1, "op_types": ["default"]}]``; call `update_epoch` in each epoch.
    """

    algorithm = "agp"
