"""A trainer in a process of its own, so that it can be killed: runs jobs as it is told to.

    trainer.py SERVER SHM_SOCKET EXPECTED SEED

EXPECTED is a file of what jobs answer, pickled. Reads lines with a number of seconds, and answers
each when these are over with a line of JSON: how many jobs it ran, by name, or the error that ended
it. The end of its input ends it.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import jobs
import nni_compression as nc

TIMEOUT = 120.0  # seconds, restarts of the server included


def work(
    seconds: float, server: str, shm_socket: str, expected: jobs.Expected, chance: random.Random
) -> Counter[str]:
    """Every job in random order, and again until the time is over; how many of each.

    Each has a connection of its own; large weights go now through the network, now by shared
    memory. Raises what is wrong.
    """
    end = time.monotonic() + seconds
    done: Counter[str] = Counter()
    left = list(jobs.ALL)
    while left or time.monotonic() < end:
        job = left.pop(chance.randrange(len(left))) if left else chance.choice(jobs.ALL)
        with nc.Client(
            server,
            timeout=TIMEOUT,
            connect_timeout=TIMEOUT,
            shm_socket=chance.choice(("", shm_socket)),
        ) as client:
            for _ in jobs.check(job, chance.randrange(jobs.SEEDS), client, expected):
                pass
        done[job.__name__] += 1
    return done


def main() -> None:
    server, shm_socket, expected_file, seed = sys.argv[1:]
    expected = pickle.loads(Path(expected_file).read_bytes())
    chance = random.Random(int(seed))
    for line in sys.stdin:
        answer: dict[str, object]
        try:
            answer = {"jobs": work(float(line), server, shm_socket, expected, chance)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
