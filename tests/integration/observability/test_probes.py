"""The port of metrics and probes is attacked: probes answer, and calls are spared."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import nni_compression as nc
from metered import Metered
from servers import server_binary
from usage import status

DESCRIPTORS = 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Metered]:
    """A server that may not have many descriptors."""
    wrapper = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    with Metered(tmp_path, wrapper=wrapper) as metered:
        yield metered


def connect(server: Metered) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.metrics_port), timeout=60)


def probes_answer(server: Metered) -> None:
    assert server.get("/livez") == (200, "ok\n")
    assert server.get("/readyz") == (200, "ok\n")
    probe = [server_binary(), f"--healthcheck=http://{server.metrics_address}/readyz"]
    assert subprocess.run(probe, check=False, timeout=60).returncode == 0


def test_probes_answer_beside_peers_that_say_a_header_slowly(server: Metered) -> None:
    stop = threading.Event()

    def drip() -> None:
        """Keeps a request going, on another connection once it is cut off."""
        while not stop.is_set():
            with connect(server) as peer, contextlib.suppress(OSError):
                peer.sendall(b"GET /livez HTTP/1.1\r\nX-A: ")
                while not stop.wait(0.1):
                    peer.sendall(b"a")

    drippers = [threading.Thread(target=drip) for _ in range(8)]
    for dripper in drippers:
        dripper.start()
    try:
        for _ in range(5):
            probes_answer(server)
            assert "nni_compression_serving 1" in server.get("/metrics")[1]
    finally:
        stop.set()
        for dripper in drippers:
            dripper.join()


def test_connections_do_not_use_up_the_descriptors(server: Metered) -> None:
    with contextlib.ExitStack() as stack:
        for i in range(3 * DESCRIPTORS // 2):
            peer = stack.enter_context(connect(server))
            with contextlib.suppress(OSError):
                peer.sendall(b"GET /livez HTTP/1.1\r\n" if i % 2 else b"")
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert used < DESCRIPTORS // 4
        probes_answer(server)
        with nc.Client(server.address) as client:
            assert client.health() == "SERVING"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nX-A: ", b"a" * (1 << 20)),
        (b"GET /livez HTTP/1.1\r\n", b"A: b\r\n" * (1 << 17)),
        (b"GET /", b"a" * (1 << 20)),
        (
            b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"100000\r\n" + b"a" * (1 << 20) + b"\r\n",
        ),
    ],
    ids=["one header", "headers", "a request line", "a chunked body"],
)
def test_requests_without_end_take_no_memory(server: Metered, first: bytes, piece: bytes) -> None:
    most = 64 << 20
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = status(server.process.pid, "VmRSS")
    with connect(server) as peer, contextlib.suppress(OSError):
        peer.sendall(first)
        for _ in range(most // len(piece)):
            peer.sendall(piece)
    probes_answer(server)
    grown = (status(server.process.pid, "VmHWM") - before) << 10
    assert grown < most // 4
