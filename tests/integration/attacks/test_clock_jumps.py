"""Somebody sets the machine's clock while a server runs: nobody may notice."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import nni_compression as nc
from metered import Metered, eventually
from nni_compression._wire import compression_pb2 as pb
from servers import SERVICE, ServerProcess

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")

LAYER = nc.Layer("fc", "Linear", (64, 64))
LEVEL = [{"sparsity": 0.5}]
WEIGHT = np.random.default_rng(5).normal(size=LAYER.shape).astype(np.float32)


class Clock:
    """The wall clock of the servers that are started meanwhile."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")

    def set(self, offset: str) -> None:
        """Sets it off against the machine's: "+1d"."""
        # In one piece, since the server looks at the file whenever it asks for the time.
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    file = tmp_path / "offset"
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    return Clock(file)


def logged_years(server: ServerProcess) -> set[str]:
    """The years in which the server has written to its log."""
    return {line[len("time=") :][:4] for line in server.log().splitlines()}


@pytest.mark.parametrize("offset", ["+400d", "-400d"])
def test_leases_and_uploads_go_on_though_the_clock_jumps(
    clock: Clock, offset: str, tmp_path: Path
) -> None:
    over = threading.Event()
    reached = threading.Event()

    def requests(session: nc.Session) -> Iterator[bytes]:
        yield pb.CalcMaskRequest(open={"session_id": session.id}).SerializeToString()
        reached.set()
        over.wait(60)

    with (
        ServerProcess(f"--data_dir={tmp_path}/data", "--stall_timeout=60s") as server,
        nc.Client(server.address, keep_alive=False) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        called, idle, before = (
            client.bind_model("level", LEVEL, [LAYER], lease=lease) for lease in (60, 60, 2)
        )
        mask = called.calc_mask({"fc": WEIGHT})["fc"]
        upload = channel.stream_stream(f"/{SERVICE}/CalcMask")(requests(called), timeout=60)
        assert reached.wait(60)
        clock.set(offset)
        with pytest.raises(nc.NotFoundError):
            client.join("none")  # which is logged
        assert len(logged_years(server)) == 2, "the server has another clock"

        # The leases that are short run out as always, and no other does.
        after = client.bind_model("level", LEVEL, [LAYER], lease=1)
        left = [called.id, idle.id]
        assert eventually(lambda: [session.id for session in client.sessions()] == left)
        assert {client.session_info(s.id).state for s in (before, after)} == {"expired"}
        over.set()
        assert list(upload) == []
        assert upload.code() == grpc.StatusCode.OK
        again = called.calc_mask({"fc": -WEIGHT})["fc"]
        assert again.bits.tobytes() == mask.bits.tobytes()
        assert server.stop() == 0


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_a_drain_takes_no_longer_though_the_clock_jumps(clock: Clock, offset: str) -> None:
    over = threading.Event()
    reached = threading.Event()

    def requests(session: nc.Session) -> Iterator[bytes]:
        yield pb.CalcMaskRequest(open={"session_id": session.id}).SerializeToString()
        reached.set()
        over.wait(120)

    with (
        ServerProcess("--drain_seconds=3", "--stall_timeout=10m") as server,
        nc.Client(server.address, keep_alive=False) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        session = client.bind_model("level", LEVEL, [LAYER])
        upload = channel.stream_stream(f"/{SERVICE}/CalcMask")(requests(session))
        assert reached.wait(60)
        server.process.terminate()
        assert eventually(lambda: "event=drain" in server.log())
        clock.set(offset)
        # The call that runs ends with the drain, after which it is cancelled.
        assert server.process.wait(60) == 0
        with pytest.raises(grpc.RpcError):
            list(upload)
        over.set()


def test_what_is_measured_does_not_jump_with_the_clock(clock: Clock, tmp_path: Path) -> None:
    with Metered(tmp_path) as server:
        with nc.Client(server.address) as client:
            session = client.bind_model("level", LEVEL, [LAYER])
            stop = threading.Event()

            def jump() -> None:
                offsets = itertools.cycle(("+1d", "-1d"))
                while not stop.wait(0.001):
                    clock.set(next(offsets))

            jumper = threading.Thread(target=jump)
            jumper.start()
            try:
                for seed in range(200):
                    session.calc_mask({"fc": WEIGHT * (seed + 1)})
            finally:
                stop.set()
                jumper.join()
            samples = server.samples()
            computed = samples['nni_compression_compute_seconds_total{algorithm="level"}']
            assert 0 < computed < 3600
            assert 0 <= client.session_info(session.id).compute_time < 3600
            assert samples['nni_compression_call_seconds_sum{method="CalcMask"}'] < 3600
        # A thread of gRPC 1.51 sleeps until 100 ms later by this clock. One jump of so many may
        # come between its two looks at the clock; then it sleeps for two days, and the end waits.
        server.kill()
