"""A server that tells what it does, as it tells Prometheus."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from servers import ServerProcess

PATIENCE = 60.0  # seconds


class Metered(ServerProcess):
    """A server with metrics, on a port of their own."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        port: int = 0,
        metrics_port: int = 0,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        port_file = folder / "metrics-port"
        port_file.unlink(missing_ok=True)
        metrics = f"--metrics_listen=127.0.0.1:{metrics_port}"
        flags = (metrics, f"--metrics_port_file={port_file}", *flags)
        super().__init__(*flags, port=port, wrapper=wrapper, environment=environment)
        self.metrics_port = int(port_file.read_text())
        self.metrics_address = f"127.0.0.1:{self.metrics_port}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        return get(f"http://{self.metrics_address}{path}")

    def samples(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line[:1] not in ("#", "")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def get(url: str) -> tuple[int, str]:
    """Status and text of a page, whatever they are."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def eventually(condition: Callable[[], Any]) -> Any:
    """The first truth that the condition gives; the last untruth after too long."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value
