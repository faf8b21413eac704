"""A server that is killed again and again while trainers work with it: nothing may be lost."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import jobs
import nni_compression as nc
from servers import ServerProcess

LONGEST_LIFE = 0.3  # seconds, from the first answer of a server to its end
PATIENCE = 300.0  # seconds, for a machine that is busy with something else
# What an answered call survives costs a sync; either has to survive this.
DURABILITIES = ("process", "power")


@dataclass
class Killed:
    """What happened.

    Attributes:
        answers: calls' answers that were compared with those of a quiet run.
        runs: jobs that came to their end, by name.
        retries: attempts that a kill ended, or that found no server.
        kills: seconds that each server lived on after its first answer.
    """

    seed: int
    seconds: float = 0.0
    answers: int = 0
    retries: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)


class _Trainer(threading.Thread):
    """Works until `ending` is set, and then to the end of its job."""

    def __init__(
        self,
        address: str,
        job: jobs.Job,
        expected: jobs.Expected,
        ending: threading.Event,
        answered: Callable[[], None],
    ) -> None:
        super().__init__(name=job.__name__)
        self.job = job
        self.runs = self.retries = 0
        self.error: BaseException | None = None
        self._address = address
        self._expected = expected
        self._ending = ending
        self._answered = answered

    def run(self) -> None:
        try:
            with nc.Client(self._address, timeout=PATIENCE, connect_timeout=PATIENCE) as client:
                for seed in itertools.cycle(range(jobs.SEEDS)):
                    for _ in jobs.check(self.job, seed, client, self._expected):
                        self._answered()
                    self.runs += 1
                    if self._ending.is_set():
                        break
                self.retries = client.stats.retries
        except BaseException as error:
            self.error = error
            self._answered()


def kill(
    data_dir: Path, count: int, seed: int, say: Callable[[str], None] = lambda text: None
) -> Killed:
    """Kills a server `count` times. Raises what went wrong in a trainer."""
    found = Killed(seed)
    begin = time.monotonic()
    moments = random.Random(seed)
    with ServerProcess() as quiet, nc.Client(quiet.address) as client:
        expected = jobs.quiet_runs(client, jobs.REMEMBERING)
    answered = threading.Condition()

    def count_answer() -> None:
        with answered:
            found.answers += 1
            answered.notify_all()

    def wait_for_answer() -> bool:
        with answered:
            before = found.answers
            return answered.wait_for(lambda: found.answers > before, PATIENCE)

    def start(port: int = 0) -> ServerProcess:
        durability = DURABILITIES[len(found.kills) % len(DURABILITIES)]
        flags = (f"--data_dir={data_dir}", f"--durability={durability}")
        return ServerProcess(*flags, port=port)

    def fail_with_trainer() -> None:
        for trainer in trainers:
            if trainer.error is not None:
                raise trainer.error

    server = start()
    stop = threading.Event()
    trainers = [
        _Trainer(server.address, job, expected, stop, count_answer) for job in jobs.REMEMBERING
    ]
    try:
        for trainer in trainers:
            trainer.start()
        for number in range(1, count + 1):
            if not wait_for_answer():  # so that there is something to lose
                raise TimeoutError(f"no answer after kill {number - 1}:\n{server.log()}")
            fail_with_trainer()
            life = moments.uniform(0, LONGEST_LIFE)
            time.sleep(life)  # a random moment, whatever is under way
            server.kill()
            found.kills.append(life)
            say(f"kill {number}: {life:.3f} s after an answer")
            server = start(server.port)
    finally:
        stop.set()
        for trainer in trainers:
            if trainer.ident is not None:
                trainer.join()
    fail_with_trainer()
    with nc.Client(server.address) as client:
        if left := client.sessions():
            raise jobs.Wrong(f"{len(left)} sessions live on that were closed")
    if "session_damaged" in (log := server.log()) or server.stop() != 0:
        raise jobs.Wrong(f"the server did not end well:\n{log}")
    for trainer in trainers:
        found.runs[trainer.name] += trainer.runs
        found.retries += trainer.retries
    found.seconds = time.monotonic() - begin
    return found
