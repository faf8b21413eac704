"""A real NNI experiment through the service, and with NNI's formulas in its trials.

$EXPERIMENT_TRIALS (20) and $EXPERIMENT_ROUNDS (3) make it smaller.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import nni_compression as nc
from harness import Benchmark, Goal, lines, quotients

TRIALS = int(os.environ.get("EXPERIMENT_TRIALS", "20"))
ROUNDS = int(os.environ.get("EXPERIMENT_ROUNDS", "3"))
HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "client/python/examples"
PATHS = [str(HERE), str(EXAMPLES / "auto_compression"), str(EXAMPLES), os.environ["PYTHONPATH"]]
CONTENDERS = {"NNI's formulas in the trial": "formulas", "service": "service"}


def experiment(where: str, folder: Path) -> float:
    """Seconds of an experiment; `folder` keeps the network that all of them start from."""
    done = subprocess.run(
        [
            os.environ["NNI_PYTHON"],
            str(HERE / "nni_experiment.py"),
            where,
            str(TRIALS),
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^seconds ([\d.]+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"the experiment failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


def run(client: nc.Client) -> list[Benchmark]:
    del client
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, where in CONTENDERS.items():
                times[name].append(experiment(where, Path(folder)))
    local, service = times.values()
    ratios = quotients(service, local)
    what = "an experiment's time, of one with local formulas"
    goal = Goal("I1", what, 1, ratios, at_least=False)
    title = f"An NNI experiment of {TRIALS} trials on the digits network, two at a time"
    found = lines(times, next(iter(CONTENDERS)), scale=1, unit="s")
    return [Benchmark(title, found, goals=[goal])]
