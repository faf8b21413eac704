"""Runs the example's search by a real NNI experiment and prints its seconds.

    nni_experiment.py service|formulas TRIALS FOLDER

The trials go through the service at $NNI_COMPRESSION_SERVER, or compute NNI's formulas themselves.
The example's folders have to be in $PYTHONPATH.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import nni
import search
from nni.experiment import Experiment

import nni_compression as nc

LOCAL_TRIAL = Path(__file__).resolve().parent / "local_trial.py"
LOOK_EVERY = 0.2  # seconds


def main() -> None:
    where, trials, folder = sys.argv[1:]
    nni.silence_stdout()
    arguments = argparse.Namespace(
        what="prune",
        server=nc.server_address(),
        trials=int(trials),
        concurrency=2,
        out=Path(folder),
    )

    def make() -> Experiment:
        experiment = search.make_experiment(arguments)
        if where == "formulas":
            command = experiment.config.trial_command
            experiment.config.trial_command = command.replace(
                "trial.py", shlex.quote(str(LOCAL_TRIAL)), 1
            )
        return experiment

    experiment = search.start(make)
    try:
        begin = time.perf_counter()
        while (status := experiment.get_status()) != "DONE":
            if status == "ERROR":
                sys.exit("NNI ended the experiment with an error")
            time.sleep(LOOK_EVERY)
        elapsed = time.perf_counter() - begin
        ended = [job.status for job in experiment.list_trial_jobs()]
    finally:
        experiment.stop()
    if ended != ["SUCCEEDED"] * arguments.trials:
        sys.exit(f"trials ended as {ended}")
    print(f"seconds {elapsed}")


if __name__ == "__main__":
    main()
