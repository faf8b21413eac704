"""An NNI experiment that searches how far each layer of the digits network can be compressed.

    python3 search.py prune --server 127.0.0.1:50051
    python3 search.py quantize --trials 20 --concurrency 2
    python3 search.py prune --yaml prune.yml && nnictl create --config prune.yml

A TPE tuner draws an algorithm and, for each layer, a sparsity or a number of bits; every trial
fine-tunes the network with it, through one compression server. The output is a table of all trials,
the best configuration, and a picture of accuracy against size. Needs NNI 3.0, PyTorch, scikit-learn
and matplotlib.
"""

import argparse
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import nni
import requests
import yaml
from nni.experiment import CustomAlgorithmConfig, Experiment

import nni_compression as nc
from nni_compression.nni import pruning_space, quantization_space
from nni_compression.torch import layers

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import digits  # noqa: E402
import outcome  # noqa: E402
import trial  # noqa: E402

SPACES = {
    "prune": lambda found: pruning_space(found, sparsity=(0.5, 0.98)),
    "quantize": quantization_space,
}
# The environment variables that trials need, too, to connect to the server.
INHERITED = (
    "NNI_COMPRESSION_ALLOW_INSECURE_TOKEN",
    "NNI_COMPRESSION_SHM_SOCKET",
    "NNI_COMPRESSION_TLS",
    "NNI_COMPRESSION_TLS_CA",
    "NNI_COMPRESSION_TLS_CERTIFICATE",
    "NNI_COMPRESSION_TLS_KEY",
    "NNI_COMPRESSION_TOKEN_FILE",
)
POLL_INTERVAL = 1.0  # seconds
STARTS = 3


def make_experiment(arguments: argparse.Namespace) -> Experiment:
    """The experiment, not started yet."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = arguments.out.resolve() / "baseline.pth"
    experiment = Experiment("local")
    config = experiment.config
    config.experiment_name = f"digits-{arguments.what}"
    config.search_space = SPACES[arguments.what](layers(trial.baseline(weights)))
    config.trial_command = (
        f"{connection(arguments.server)} {shlex.quote(sys.executable)} trial.py "
        f"--baseline {shlex.quote(str(weights))}"
    )
    config.trial_code_directory = str(HERE)
    config.trial_concurrency = arguments.concurrency
    config.max_trial_number = arguments.trials
    config.tuner = CustomAlgorithmConfig(
        class_name="tuner.SteadyTpeTuner",
        code_directory=str(HERE),
        class_args={"optimize_mode": "maximize", "seed": digits.SEED},
    )
    config.experiment_working_directory = str(arguments.out.resolve() / "experiments")
    return experiment


def connection(server: str) -> str:
    """The connection settings of a trial, as environment variables in front of its command.

    The configuration is readable, so secrets are passed only as names of files.
    """
    variables = {name: os.environ[name] for name in INHERITED if os.environ.get(name)}
    variables[nc.client.SERVER_VARIABLE] = server
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def free_port() -> int:
    """A free port for NNI's web page: NNI does not accept port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(make: Callable[[], Experiment], port: Optional[int] = None) -> Experiment:
    """Starts an experiment on the port, or a free one.

    NNI waits four seconds for its own server to start, which is too short on a busy machine: then
    another experiment is made and started.
    """
    for attempt in range(1, STARTS + 1):
        experiment = make()
        try:
            experiment.start(port or free_port())
        except requests.RequestException:
            if attempt == STARTS:
                raise
        else:
            break
    return experiment


def watch(experiment: Experiment, count: int) -> list[outcome.Trial]:
    """Prints a line for each trial that ends; returns those with a result when all have ended."""
    seen: set[str] = set()
    while True:
        status = experiment.get_status()
        jobs = experiment.list_trial_jobs()
        trials = finished(jobs)
        for job in jobs:
            name = job.trialJobId
            if job.status not in ("WAITING", "RUNNING", "UNKNOWN") and name not in seen:
                seen.add(name)
                line = trials[name].line() if name in trials else f"{name} {job.status.lower()}"
                print(f"[{len(seen):>2}/{count}] {line}", flush=True)
        if status in ("DONE", "STOPPED", "ERROR"):
            return list(trials.values())
        time.sleep(POLL_INTERVAL)


def finished(jobs: Sequence[Any]) -> dict[str, outcome.Trial]:
    """The trials with a result, by name.

    Trials request their parameters when they have started, in any order. A job lists the parameters
    intended for it; its result has the number of those that it received.
    """
    drawn = {p.parameter_id: p.parameters for job in jobs for p in job.hyperParameters}
    results = {job.trialJobId: job.finalMetricData[0] for job in jobs if job.finalMetricData}
    return {
        name: outcome.Trial(name, drawn[int(result.parameterId)], result.data)
        for name, result in results.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=sorted(SPACES))
    parser.add_argument("--server", default=nc.server_address(), help="default %(default)s")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=2, help="trials at a time")
    parser.add_argument("--yaml", type=Path, help="write the configuration for nnictl, and end")
    parser.add_argument("--port", type=int, help="of NNI's web page; default a free one")
    parser.add_argument("--out", type=Path, default=Path("auto_compression_results"))
    arguments = parser.parse_args()

    with nc.Client(arguments.server) as client:
        print(f"server {client.server}: {client.health()}")
    nni.silence_stdout()
    if arguments.yaml is not None:
        config = make_experiment(arguments).config
        arguments.yaml.write_text(yaml.safe_dump(config.json(), sort_keys=False))
        return 0
    experiment = start(lambda: make_experiment(arguments), arguments.port)
    page = f"http://127.0.0.1:{experiment.port}"
    print(f"experiment {experiment.id}, {arguments.trials} trials: {page}")
    try:
        trials = watch(experiment, arguments.trials)
    finally:
        experiment.stop()
    if not trials:
        sys.exit("no trial has a result")
    outcome.show(trials, arguments.out / f"{arguments.what}.png")
    return 0 if len(trials) == arguments.trials else 1


if __name__ == "__main__":
    os.environ.setdefault("NNI_LOG_LEVEL", "warning")
    try:
        sys.exit(main())
    except nc.UnavailableError as error:
        sys.exit(f"no compression server: {error}")
