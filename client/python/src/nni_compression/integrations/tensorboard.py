"""A sink of `Recorder` for TensorBoard."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any


class TensorBoardSink:
    """Writes each number as a scalar under `prefix`.

    Args:
        writer: a SummaryWriter, or the folder for one: PyTorch's, or TensorFlow's where there is no
            PyTorch.
    """

    def __init__(self, writer: Any, prefix: str = "compression/") -> None:
        is_writer = hasattr(writer, "add_scalar")
        self.writer = writer if is_writer else _writer(writer)
        self.prefix = prefix

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(self.prefix + key, value, epoch)
        self.writer.flush()


class _TensorFlowWriter:
    def __init__(self, folder: str) -> None:
        self._summary = importlib.import_module("tensorflow").summary
        self._writer = self._summary.create_file_writer(folder)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        with self._writer.as_default():
            self._summary.scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()


def _writer(folder: Any) -> Any:
    if importlib.util.find_spec("torch") is None:
        return _TensorFlowWriter(str(folder))
    return importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)
