"""Files that models are written to."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from ..errors import InvalidArgumentError


class ModelFiles:
    """Writes files under temporary names beside their own; `written` gives all of them theirs.

    So a full disk or an interruption leaves old files as they were, and nothing half written.
    """

    def __init__(self) -> None:
        self._files: list[tuple[Path, Path]] = []

    def save(self, value: Any, path: str) -> None:
        """As `torch.save`."""
        torch.save(value, self._temporary(path))

    def save_onnx(self, model: nn.Module, path: str, input_shape: Optional[Sequence[int]]) -> None:
        """As `torch.onnx.export`, for an input of this shape (with the batch)."""
        if input_shape is None:
            raise InvalidArgumentError(
                "onnx_path needs input_shape, the shape of the model's input"
            )
        parameter = next(model.parameters(), torch.empty(0))
        image = torch.zeros(tuple(input_shape), dtype=parameter.dtype, device=parameter.device)
        torch.onnx.export(model.eval(), (image,), str(self._temporary(path)))

    def _temporary(self, path: str) -> Path:
        target = Path(path)
        temporary = target.with_name(f".{secrets.token_hex(8)}.part")
        self._files.append((temporary, target))
        return temporary

    def _publish(self) -> None:
        for temporary, target in self._files:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)

    def _discard(self) -> None:
        for temporary, _ in self._files:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    @classmethod
    @contextlib.contextmanager
    def written(cls) -> Iterator[ModelFiles]:
        """The files appear at the end of the block, or, when it raises, not at all."""
        files = cls()
        try:
            yield files
            files._publish()
        finally:
            files._discard()
