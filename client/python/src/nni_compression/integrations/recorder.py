"""The numbers of compressors over a training, for tables and loggers."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Callable

from ..adapters.compressor import Compressor

#: Gets the epoch and its numbers: of `tensorboard`, `mlflow`, or any function.
Sink = Callable[[int, Mapping[str, float]], None]

_COUNTERS = ("calls", "bytes_sent", "bytes_received", "seconds_waiting")


class Recorder:
    """Collects the `metrics()` of compressors, once an epoch.

    >>> recorder = Recorder(print)
    >>> recorder.record(pruner)
    >>> [row["agp/sparsity"] for row in recorder.rows]

    Each key begins with the compressor's algorithm; those of the second compressor with the same
    algorithm begin with "ALGORITHM-2". "ALGORITHM/epoch_calls", "epoch_bytes_sent",
    "epoch_bytes_received" and "epoch_seconds_waiting" are what was added since the last record.

    Args:
        sinks: called with each record.
        per_layer: whether there are numbers of each layer, or totals only.
        sqnr: whether there is the signal-to-quantization-noise ratio of each layer; PyTorch only.

    Attributes:
        rows: all records.
    """

    def __init__(self, *sinks: Sink, per_layer: bool = True, sqnr: bool = True) -> None:
        self.rows: list[dict[str, float]] = []
        self._sinks = sinks
        self._per_layer = per_layer
        self._sqnr = sqnr and per_layer
        self._before: dict[tuple[str, str], float] = {}

    def record(self, *compressors: Compressor) -> dict[str, float]:
        """Adds a row, gives it to the sinks, and returns it."""
        row: dict[str, float] = {}
        of_algorithm: collections.Counter[str] = collections.Counter()
        for compressor in compressors:
            prefix, session = compressor.algorithm, compressor.session.id
            of_algorithm[prefix] += 1
            if of_algorithm[prefix] > 1:
                prefix += f"-{of_algorithm[prefix]}"
            for key, value in compressor.metrics(sqnr=self._sqnr).items():
                if self._per_layer or "/" not in key:
                    row[f"{prefix}/{key}"] = value
            for key in _COUNTERS:
                now = row[f"{prefix}/{key}"]
                # The counters of a new session begin at 0.
                row[f"{prefix}/epoch_{key}"] = now - self._before.get((session, key), 0.0)
                self._before[session, key] = now
        self.rows.append(row)
        epoch = max((int(compressor.epoch) for compressor in compressors), default=0)
        for sink in self._sinks:
            sink(epoch, row)
        return row
