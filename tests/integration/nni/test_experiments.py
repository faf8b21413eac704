"""Real NNI experiments against a real server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed_trial
import numpy as np
import outcome
import pytest
import search
from conftest import EXAMPLES, PYTHON_PATH, ROOT
from nni.experiment import CustomAlgorithmConfig, Experiment

import nni_compression as nc
import servers
from nni_compression.nni import pruning_space

TIMEOUT = 270.0
LOG_LINES = 100  # shown of each file


def wait_for(condition, what):
    """Waits until the condition holds; what the other processes do cannot be waited on."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not in {TIMEOUT} s"
        time.sleep(0.2)
    return found


def wait_until_over(experiment):
    """Waits for the experiment's end, and says when NNI itself has failed."""

    def is_over():
        status = experiment.get_status()
        assert status != "ERROR", "NNI ended the experiment with an error"
        return status == "DONE"

    wait_for(is_over, "the experiment is over")


def show_logs(folder):
    """Prints what NNI and the trials have written; pytest shows it when the test has failed."""
    for pattern in ("[!_]*/log/*.log", "[!_]*/environments/*/trials/*/trial.std*"):
        for path in sorted(folder.glob(pattern)):
            lines = path.read_text(errors="replace").splitlines()
            print(f"--- {path}, {len(lines)} lines", *lines[-LOG_LINES:], sep="\n")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that asks for a token, which this process and the trials have by its file."""
    token = servers.add_tenant(tmp_path / "tokens", "team")
    (tmp_path / "token").write_text(token + "\n")
    monkeypatch.setenv("NNI_COMPRESSION_TOKEN_FILE", str(tmp_path / "token"))
    with servers.ServerProcess(f"--token_file={tmp_path / 'tokens'}") as process:
        yield process


@pytest.fixture
def start(server, tmp_path):
    """Starts experiments, and ends them after the test."""
    started = []

    def make(command, trials, assess, environment):
        experiment = Experiment("local")
        config = experiment.config
        config.search_space = pruning_space([killed_trial.LAYER])
        variables = {
            "NNI_COMPRESSION_SERVER": server.address,
            "NNI_COMPRESSION_TOKEN_FILE": os.environ["NNI_COMPRESSION_TOKEN_FILE"],
            "PYTHONPATH": ROOT / "client/python/src",
            **environment,
        }
        settings = " ".join(f"{name}={value}" for name, value in variables.items())
        config.trial_command = f"{settings} {sys.executable} {command}"
        config.trial_code_directory = str(Path(__file__).parent)
        config.trial_concurrency = 2
        config.max_trial_number = trials
        config.tuner = CustomAlgorithmConfig(
            class_name="tuner.SteadyTpeTuner",
            code_directory=str(EXAMPLES),
            class_args={"optimize_mode": "maximize", "seed": 1},
        )
        if assess:
            config.assessor = CustomAlgorithmConfig(
                class_name="hasty_assessor.HastyAssessor", code_directory=str(Path(__file__).parent)
            )
        config.experiment_working_directory = str(tmp_path / "experiments")
        return experiment

    def start_experiment(command, trials, assess=False, **environment):
        started.append(search.start(lambda: make(command, trials, assess, environment)))
        return started[-1]

    yield start_experiment
    for experiment in started:
        experiment.stop()
    show_logs(tmp_path / "experiments")


def test_a_killed_trial_leaves_nothing_and_the_others_get_the_masks_they_would_get_alone(
    server, start, tmp_path
):
    experiment = start("killed_trial.py", 6, RESULTS=tmp_path)
    wait_until_over(experiment)
    jobs = experiment.list_trial_jobs()
    (dead,) = [job for job in jobs if job.status != "SUCCEEDED"]
    assert len(jobs) == 6

    with nc.Client(server.address) as client:
        labels = {"nni_experiment": experiment.id}
        wait_for(lambda: not client.sessions(labels), "the dead trial's lease ends")
        info = client.session_info((tmp_path / "killed").read_text())
        assert info.state == "expired"
        assert info.labels["nni_trial"] == dead.trialJobId
        with pytest.raises(nc.NotFoundError):
            client.join(info.id)

        trials = search.finished(jobs)
        assert set(trials) == {job.trialJobId for job in jobs if job is not dead}
        for name, trial in trials.items():
            alone = killed_trial.masks_of(trial.parameters, client)
            assert np.array_equal(np.load(tmp_path / f"{name}.npy"), alone)


# NNI signals only the process that it has started: with a second command that is a shell, which
# passes no SIGINT on and is killed after five seconds.
@pytest.mark.parametrize("command", ["waiting_trial.py", "waiting_trial.py; true"])
def test_stopping_an_experiment_ends_its_trials_and_their_sessions(server, start, command):
    experiment = start(command, 4)
    with nc.Client(server.address) as client:
        labels = {"nni_experiment": experiment.id}
        wait_for(lambda: len(client.sessions(labels)) == 2, "two trials have bound")
        trainers = [int(info.labels["pid"]) for info in client.sessions(labels)]
        experiment.stop()
        wait_for(lambda: not client.sessions(labels), "their sessions are closed")
        wait_for(lambda: not any(map(is_running, trainers)), "the trainers are gone")


def test_trials_that_an_assessor_stops_end_with_their_sessions(server, start):
    experiment = start("waiting_trial.py; true", 2, assess=True)
    wait_until_over(experiment)
    # NNI 3.0 often forgets that it was an assessor.
    stopped = {"EARLY_STOPPED", "USER_CANCELED"}
    assert [job.status in stopped for job in experiment.list_trial_jobs()] == [True] * 2
    with nc.Client(server.address) as client:
        labels = {"nni_experiment": experiment.id}
        wait_for(lambda: not client.sessions(labels), "their sessions are closed")


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run_search(server, tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "search.py"), *arguments, "--out", str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": PYTHON_PATH,
            "NNI_COMPRESSION_SERVER": server.address,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("what", ["prune", "quantize"])
def test_the_example_ends_with_a_table_the_best_configuration_and_a_picture(server, tmp_path, what):
    done = run_search(server, tmp_path, what, "--trials", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[ 3/3]" in done.stdout
    assert f"best: {{'{what}_method'" in done.stdout
    assert (tmp_path / f"{what}.png").read_bytes().startswith(b"\x89PNG")
    with nc.Client(server.address) as client:
        assert client.sessions() == []


def test_the_same_search_by_optuna_ends_with_the_same_table(server, tmp_path, monkeypatch, capsys):
    import optuna_search

    monkeypatch.setattr(optuna_search, "TRIALS", 2)
    monkeypatch.setenv("NNI_COMPRESSION_SERVER", server.address)
    monkeypatch.chdir(tmp_path)
    optuna_search.main()
    assert "best: {'prune_method'" in capsys.readouterr().out
    assert (tmp_path / "optuna.png").read_bytes().startswith(b"\x89PNG")
    with nc.Client(server.address) as client:
        assert client.sessions() == []


def test_nnictl_takes_the_examples_configuration(server, tmp_path):
    written = run_search(server, tmp_path, "prune", "--trials", "2", "--yaml", tmp_path / "c.yml")
    assert written.returncode == 0, written.stderr
    assert f"NNI_COMPRESSION_SERVER={server.address} " in (tmp_path / "c.yml").read_text()
    nnictl = str(Path(sys.executable).parent / "nnictl")
    environment = {**os.environ, "PYTHONPATH": PYTHON_PATH}
    del environment["NNI_COMPRESSION_TOKEN_FILE"]  # the configuration has it
    # It does not end by itself in the foreground, and that is the only way to learn its id.
    port = search.free_port()
    process = subprocess.Popen(
        [nnictl, "create", "--foreground", "--config", "c.yml", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        experiment = wait_for(lambda: connect(port), "nnictl has started the experiment")
        wait_until_over(experiment)
        assert [job.status for job in experiment.list_trial_jobs()] == ["SUCCEEDED"] * 2
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT)


def connect(port):
    try:
        return Experiment.connect(port)
    except Exception:
        return None


def test_the_front_has_the_trials_that_no_other_one_beats():
    points = {"a": (0.9, 90.0), "b": (0.5, 99.0), "c": (0.5, 98.0), "d": (0.4, 99.0)}
    trials = [
        outcome.Trial(name, {}, {"saved": saved, "accuracy": accuracy})
        for name, (saved, accuracy) in points.items()
    ]
    assert [trial.name for trial in outcome.pareto_front(trials)] == ["b", "a"]
