"""A sink of `Recorder` for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils import tensorboard

_SummaryWriter: Any = tensorboard.SummaryWriter  # type: ignore[attr-defined]


class TensorBoardSink:
    """Writes each number as a scalar under `prefix`.

    Args:
        writer: a SummaryWriter, or the folder for one.
    """

    def __init__(self, writer: Any, prefix: str = "compression/") -> None:
        is_writer = hasattr(writer, "add_scalar")
        self.writer = writer if is_writer else _SummaryWriter(writer)
        self.prefix = prefix

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(self.prefix + key, value, epoch)
        self.writer.flush()
