"""A sink of `Recorder` for MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Optional

import mlflow

_AT_ONCE = 1000  # the most numbers that a server takes in a call


class MLflowSink:
    """Logs each number as a metric under `prefix`, with dots for slashes: "agp.sparsity.fc1".

    Characters that MLflow takes in no name become underscores.

    Args:
        run_id: of the run; by default the active one.
    """

    def __init__(self, run_id: Optional[str] = None, prefix: str = "compression/") -> None:
        self.run_id = run_id
        self.prefix = prefix

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        # A store of files would need a file and a folder of one name for slashes.
        items = [(self.prefix + _name(key), value) for key, value in metrics.items()]
        for first in range(0, len(items), _AT_ONCE):
            some = dict(items[first : first + _AT_ONCE])
            mlflow.log_metrics(some, step=epoch, run_id=self.run_id)


def _name(key: str) -> str:
    return re.sub(r"[^\w.\- ]", "_", key.replace("/", "."))
