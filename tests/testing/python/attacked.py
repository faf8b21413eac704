"""A server that is attacked beside a trainer that works with it all the time."""

from __future__ import annotations

import itertools
import resource
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import numpy as np

import jobs
import nni_compression as nc
from metered import eventually
from nni_compression._wire import compression_pb2 as pb
from servers import ServerProcess
from usage import EXACT_HEAP, Usage, connections, status

MEMORY = 1.05  # of what there was before may be there after an attack
ATTEMPTS = 6

LAYER = nc.Layer("fc", "Linear", (64, 512))
SIZE = 64 * 512 * 4
WEIGHT = np.random.default_rng(5).normal(size=LAYER.shape).astype(np.float32)


class Attacked:
    """The server, and what has to hold after an attack. A context manager that stops it.

    Args:
        heap: environment of the server. EXACT_HEAP tells best what is left afterwards; how much is
            needed at a time is a question for the heap that servers have.
    """

    def __init__(self, *flags: str, heap: Mapping[str, str] = EXACT_HEAP) -> None:
        # Both need a descriptor for every connection, and the server inherits this.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.server = ServerProcess(*flags, environment=heap)
        self.port = self.server.port
        self._resident = 0
        self.address = self.server.address
        with nc.Client(self.address) as client:
            self._expected = jobs.quiet_runs(client, (jobs.agp, jobs.export))

    def __enter__(self) -> Attacked:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.server.process.poll() is None:
            assert self.server.stop() == 0

    def survives(self, attack: Callable[[], object]) -> None:
        """Attacks. The server then has to serve, to hold no more than it did before, and to have
        answered a trainer that worked all the while as if there had been nothing.

        Caches and pools keep memory and threads that were needed once. Where that is more than may
        be left, the attack is made again, which has to do with them: a leak is there every time.
        """
        for _ in range(ATTEMPTS):
            before = self._rest()
            with _Bystander(self.address, self._expected):
                attack()
            assert self.server.process.poll() is None, self.server.log()
            with nc.Client(self.address) as client:
                for _ in jobs.check(jobs.export, 0, client, self._expected):
                    pass
            after = self._rest()
            if (
                after.memory <= MEMORY * before.memory
                and after.descriptors <= before.descriptors
                and after.threads <= before.threads
            ):
                return
        raise AssertionError(f"every attack leaves something: {before}, {after}")

    def forget_peak(self) -> None:
        """`peak` begins anew."""
        self._resident = self._memory("VmRSS")
        Path(f"/proc/{self.server.process.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """By how many bytes more were resident at a time than when `forget_peak` was called."""
        return self._memory("VmHWM") - self._resident

    def _memory(self, name: str) -> int:
        return status(self.server.process.pid, name) << 10

    def _rest(self) -> Usage:
        """What it holds once all connections are gone, and what they asked for is done with."""
        process_id = self.server.process.pid
        assert eventually(lambda: connections(process_id) == 0)
        samples = [Usage.of(process_id)]

        def stands_still() -> bool:
            samples.append(Usage.of(process_id))
            return len(samples) > 5 and len(set(samples[-5:])) == 1

        eventually(stands_still)
        return samples[-1]


class _Bystander:
    """Works in a thread of its own; every answer has to be that of a quiet run."""

    def __init__(self, address: str, expected: jobs.Expected) -> None:
        self._address = address
        self._expected = expected
        self._began = threading.Event()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> _Bystander:
        self._thread.start()
        self._began.wait()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            with nc.Client(self._address, timeout=60) as client:
                for seed in itertools.cycle(range(jobs.SEEDS)):
                    for _ in jobs.check(jobs.agp, seed, client, self._expected):
                        self._began.set()
                    if self._stop.is_set():
                        break
        except BaseException as error:
            self._error = error
            self._began.set()


def upload(method: str, session_id: str) -> list[bytes]:
    """The messages of a streaming call with WEIGHT: header, two halves, commit."""
    kind = getattr(pb, f"{method}Request")
    opening = kind(open={"session_id": session_id})
    if method == "Step":
        opening.open.step = 1
    if method == "Export":
        opening.open.format = "safetensors"
    opening.headers.add(
        layer="fc",
        role=pb.TENSOR_ROLE_GRADIENT if method == "Step" else pb.TENSOR_ROLE_WEIGHT,
        dtype=pb.DATA_TYPE_FLOAT32,
        shape=LAYER.shape,
        byte_length=SIZE,
    )
    half = SIZE // 2
    parts = [opening]
    for offset in (0, half):
        parts.append(kind())
        parts[-1].chunks.add(offset=offset, payload=WEIGHT.tobytes()[offset : offset + half])
    parts.append(kind())
    parts[-1].commits.add(byte_length=SIZE)
    return [part.SerializeToString() for part in parts]
