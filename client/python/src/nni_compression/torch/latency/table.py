"""Latencies of layers, measured once and kept in a file for other models and processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..._files import atomic
from .calls import LayerCall
from .runtimes import Runtime, seconds

_log = logging.getLogger("nni_compression")

_FORMAT = 1
_LARGEST = 50_000  # entries of a file, about 8 MB


class Table:
    """Seconds of calls of layers, in one runtime, on one machine.

    They are in a folder `nni-compression/latency` of $XDG_CACHE_HOME or ~/.cache: a file for each
    processor, number of threads, runtime, version of it, and type of numbers. A file that is
    damaged, or that cannot be written, costs a measurement.
    """

    def __init__(self, runtime: Runtime, dtype: torch.dtype) -> None:
        self._runtime = runtime
        self._dtype = dtype
        self._about = {
            "format": _FORMAT,
            "runtime": runtime.name,
            "version": runtime.version,
            "threads": runtime.threads,
            "dtype": str(dtype),
            "processor": _processor(),
        }
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "nni-compression" / "latency"
        self.path = folder / f"{runtime.name}-{digest[:16]}.json"
        self._known = self._read()
        self._new: dict[str, float] = {}

    def seconds(self, call: LayerCall) -> float:
        """Of a call; it is measured if it is not known."""
        key = str(call)
        if key not in self._known:
            self._new[key] = self._known[key] = seconds(self._runtime.layer(call, self._dtype))
        return self._known[key]

    def save(self) -> None:
        """Adds what was measured to the file, which others may have changed meanwhile."""
        if not self._new:
            return
        known = {**self._read(), **self._new}
        kept = dict(list(known.items())[-_LARGEST:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.NewFiles.written() as files:
                text = json.dumps({"about": self._about, "seconds": kept}, indent=0)
                files.temporary(self.path).write_text(text, encoding="utf-8")
        except OSError as error:
            _log.warning("shrink: the latencies of layers are not kept: %s", error)
        self._new.clear()

    def _read(self) -> dict[str, float]:
        try:
            read = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("shrink: %s cannot be read and is replaced: %s", self.path, error)
            return {}
        return _checked(read)


def _checked(read: Any) -> dict[str, float]:
    """The entries that are positive numbers."""
    entries = read.get("seconds") if isinstance(read, Mapping) else None
    if not isinstance(entries, Mapping):
        return {}
    return {k: v for k, v in entries.items() if isinstance(v, float) and 0 < v < float("inf")}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
