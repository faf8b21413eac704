"""Files that models are written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import nn

from .._files import NewFiles
from ..errors import InvalidArgumentError


class ModelFiles(NewFiles):
    """Files of PyTorch and of ONNX."""

    def save(self, value: Any, path: str) -> None:
        """As `torch.save`."""
        torch.save(value, self.temporary(path))

    def save_onnx(self, model: nn.Module, path: str, input_shape: Optional[Sequence[int]]) -> None:
        """As `torch.onnx.export`, for an input of this shape (with the batch).

        Weights keep their names and numbers: nothing is folded into them.
        """
        if input_shape is None:
            raise InvalidArgumentError(
                "onnx_path needs input_shape, the shape of the model's input"
            )
        parameter = next(model.parameters(), torch.empty(0))
        image = torch.zeros(tuple(input_shape), dtype=parameter.dtype, device=parameter.device)
        torch.onnx.export(
            model.eval(),
            (image,),
            str(self.temporary(path)),
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
