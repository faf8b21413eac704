"""A long time with mixed trainers, which are killed as the server is: nothing may leak."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import jobs
import nni_compression as nc
from metered import Metered, eventually
from servers import ROOT, ServerProcess
from usage import EXACT_HEAP, Usage, connections, growth

HERE = Path(__file__).resolve().parent
PATHS = [HERE, ROOT / "client/python/src", ROOT / "tests/testing/python"]


@dataclass(frozen=True)
class Plan:
    """How it goes, in rounds.

    Trainers work, then they let go of everything and the server rests. In the first rounds servers
    are killed or drained, and trainers killed. The last server goes on alone until the end: it
    warms up for some rounds and is measured at every rest from then on.

    Attributes:
        seconds: until the last round begins, at least.
        round_seconds: that trainers work in a round, at least; each runs every job.
        restart_rounds, warm_rounds: how many there are.
        restarts: of the server in each of the former.
        trainers: how many there are.
        kill_trainers: whether one is killed in every other round until the end.
        lease: seconds that what killed trainers leave behind lives, and reports of ended sessions.
        forget: whether a rest lasts until these reports are gone, too.
        rests: how many at either end are compared.
        memory: share by which memory may grow.
    """

    seconds: float = 30 * 60
    round_seconds: float = 30
    restart_rounds: int = 8
    warm_rounds: int = 8
    restarts: int = 3
    trainers: int = 4
    kill_trainers: bool = True
    lease: int = 20
    forget: bool = True
    rests: int = 5
    memory: float = 0.01


@dataclass(frozen=True)
class Rest:
    """A rest of the last server, `at` seconds after the beginning."""

    at: float
    usage: Usage


@dataclass
class Soaked:
    """What happened, and what the server held at its rests."""

    seed: int
    plan: Plan
    jobs: Counter[str] = field(default_factory=Counter)
    trainers_killed: int = 0
    servers_killed: int = 0
    servers_drained: int = 0
    rests: list[Rest] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def measured(self) -> list[Rest]:
        """The rests that count."""
        return self.rests[self.plan.warm_rounds :]

    @property
    def ends(self) -> tuple[list[Usage], list[Usage]]:
        """What is compared."""
        usages = [rest.usage for rest in self.measured]
        return usages[: self.plan.rests], usages[-self.plan.rests :]

    @property
    def leaks(self) -> list[str]:
        """What grew; empty: nothing."""
        return growth(*self.ends, memory=self.plan.memory)


class _Trainer:
    """trainer.py as a process."""

    def __init__(self, server: ServerProcess, shm_socket: Path, expected: Path, seed: int) -> None:
        arguments = (server.address, shm_socket, expected, seed)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "trainer.py"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        )

    def begin(self, seconds: float) -> None:
        """Sends it to work."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> Counter[str]:
        """Waits for it. Raises jobs.Wrong."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "a trainer died"}
        if "error" in answer:
            raise jobs.Wrong(answer["error"])
        return Counter(answer["jobs"])

    def kill(self) -> None:
        """Ends it without warning."""
        self._process.kill()
        self._process.communicate()


class _Soak:
    def __init__(
        self, folder: Path, plan: Plan, seed: int, flags: Sequence[str], say: Callable[[str], None]
    ) -> None:
        self.found = Soaked(seed, plan)
        self._plan = plan
        self._chance = random.Random(seed)
        self._say = say
        self._folder = folder
        self._data_dir = folder / "data"
        self._shm_socket = folder / "side"
        self._expected = folder / "expected"
        self._flags = (
            f"--data_dir={self._data_dir}",
            f"--shm_socket={self._shm_socket}",
            f"--default_lease={plan.lease}s",
            f"--report_retention={plan.lease}s",
            "--cache_budget=64M",
            *flags,
        )
        with ServerProcess(*flags) as quiet, nc.Client(quiet.address) as client:
            self._expected.write_bytes(pickle.dumps(jobs.quiet_runs(client, jobs.ALL)))
        self._trainers: list[_Trainer] = []
        self._server = Metered(folder, *self._flags, environment=EXACT_HEAP)
        self._begin = time.monotonic()

    def run(self) -> Soaked:
        try:
            self._trainers = [self._new_trainer() for _ in range(self._plan.trainers)]
            for _ in range(self._plan.restart_rounds):
                self._round(self._restart, self._plan.restarts)
            least = self._plan.warm_rounds + 2 * self._plan.rests
            while len(self.found.rests) < least or self._elapsed() < self._plan.seconds:
                odd = len(self.found.rests) % 2
                self._round(self._kill_trainer, odd if self._plan.kill_trainers else 0)
                self._rest()
            self._drain()
        finally:
            for trainer in self._trainers:
                trainer.kill()
            if self._server.process.poll() is None:
                self._server.kill()
        self.found.seconds = self._elapsed()
        return self.found

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def _new_trainer(self) -> _Trainer:
        seed = self._chance.randrange(1 << 30)
        return _Trainer(self._server, self._shm_socket, self._expected, seed)

    def _round(self, trouble: Callable[[], None], times: int) -> None:
        """All trainers work; there is trouble at random moments, whatever is under way then."""
        begin = time.monotonic()
        for trainer in self._trainers:
            trainer.begin(self._plan.round_seconds)
        for moment in sorted(self._moment() for _ in range(times)):
            time.sleep(max(0.0, begin + moment - time.monotonic()))
            trouble()
        for trainer in self._trainers:
            self.found.jobs += trainer.end()

    def _moment(self) -> float:
        return self._chance.uniform(0, self._plan.round_seconds)

    def _restart(self) -> None:
        if self._chance.random() < 0.5:
            self._kill_trainer()
        if self._chance.random() < 0.5:
            self._server.kill()
            self.found.servers_killed += 1
        else:
            self._drain()
            self.found.servers_drained += 1
        self._server = Metered(
            self._folder, *self._flags, port=self._server.port, environment=EXACT_HEAP
        )

    def _drain(self) -> None:
        if (status := self._server.stop()) != 0:
            raise jobs.Wrong(f"the server ended with status {status}")

    def _kill_trainer(self) -> None:
        index = self._chance.randrange(len(self._trainers))
        self._trainers[index].kill()
        self.found.trainers_killed += 1
        self._trainers[index] = self._new_trainer()
        self._trainers[index].begin(self._plan.round_seconds / 4)

    def _rest(self) -> None:
        """Waits until nobody holds anything, as far as that ever comes to be, and looks."""
        if not eventually(self._nobody_holds_anything):
            raise jobs.Wrong("sessions live on that were closed or whose leases are over")
        samples = [Usage.of(self._server.process.pid, self._data_dir)]
        eventually(lambda: self._stands_still(samples))
        rest = Rest(self._elapsed(), samples[-1])
        self.found.rests.append(rest)
        self._say(f"{rest.at:7.1f} s: {rest.usage}")

    def _nobody_holds_anything(self) -> bool:
        samples = self._server.samples()
        states = ("active", "closed", "expired") if self._plan.forget else ("active",)
        return samples["nni_compression_calls_running"] == 0 and not any(
            value > 0 and name.startswith("nni_compression_sessions{") and f'"{state}"' in name
            for name, value in samples.items()
            for state in states
        )

    def _stands_still(self, samples: list[Usage]) -> bool:
        """Whether it holds what it held a moment ago, and nothing of trainers or ended sessions."""
        samples.append(Usage.of(self._server.process.pid, self._data_dir))
        last, before = samples[-1], samples[-2]
        records = self._data_dir / "records"
        return (
            last.descriptors == before.descriptors
            and connections(self._server.process.pid) == 0
            and last.shared == 0
            and not any(file.is_file() for file in records.rglob("*"))
        )


def soak(
    plan: Plan,
    seed: int,
    flags: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Soaked:
    """Soaks a server with these flags beside its own. Raises what goes wrong, but for leaks."""
    with tempfile.TemporaryDirectory(prefix="nni-soak-") as folder:
        return _Soak(Path(folder), plan, seed, flags, say).run()
