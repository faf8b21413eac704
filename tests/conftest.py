"""Fixtures: a real server for the whole run, and a client of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
for _folder in ("client/python/src", "tests/testing/python"):
    if str(_ROOT / _folder) not in sys.path:
        sys.path.insert(0, str(_ROOT / _folder))

import nni_compression as nc  # noqa: E402
import servers  # noqa: E402

# For local servers, those in examples included.
os.environ.setdefault("NNI_COMPRESSION_SERVER_BINARY", str(servers.server_binary()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what does not gate every change."""
    if os.environ.get("NNI_COMPRESSION_LONG"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def server() -> Iterator[servers.ServerProcess]:
    """A server that all tests share; its sessions are kept apart by their ids."""
    with servers.ServerProcess() as process:
        yield process


@pytest.fixture
def client(server: servers.ServerProcess) -> Iterator[nc.Client]:
    """A client of the shared server."""
    with nc.Client(server.address, timeout=60) as connected:
        yield connected
