"""Servers that a trainer starts: they work without settings, and end with the trainer."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

import nni_compression as nc
from forks import in_fork
from servers import server_binary

SOURCES = Path(nc.__file__).parents[1]
WEIGHT = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)
LAYER = nc.Layer("fc", "Linear", WEIGHT.shape)
TIMEOUT = 60  # seconds; generous, for a busy machine


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, here and in the programs that a test starts.

    Its path is short, unlike those of tmp_path: that of a Unix socket has little room.
    """
    with tempfile.TemporaryDirectory(prefix="nni-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


def folder_of(address: str) -> Path:
    return Path(address[len("unix:") :]).parent


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def runs(process_id: int) -> bool:
    """Whether there is such a process; one that nobody has waited for does not count."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(address: str) -> dict[str, int]:
    """The server at an address, and its guard, by their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--listen={address}" in command:
            is_guard = any(word.endswith("guard.py") for word in command)
            found["guard" if is_guard else "server"] = int(entry.name)
    return found


class Trainer:
    """A program of its own that prints the address of its server; a context manager."""

    def __init__(self, *lines: str) -> None:
        program = "\n".join(
            [
                "import multiprocessing, os, signal, sys, threading, time",
                "import nni_compression as nc",
                # Ignored where the tests are started in the background.
                "signal.signal(signal.SIGINT, signal.default_int_handler)",
                *lines,
            ]
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert folder_of(self.address).parent == Path(tempfile.gettempdir())
        self.processes = processes_of(self.address)
        assert set(self.processes) == {"guard", "server"}

    def proceed(self) -> None:
        """Ends the first wait of the program."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def server_is_gone(self) -> bool:
        return eventually(
            lambda: (
                not any(map(runs, self.processes.values())) and not folder_of(self.address).exists()
            )
        )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *unused: object) -> None:
        self.process.kill()
        self.process.communicate()


PRINT = "print(client.server, flush=True)"
LOCAL = 'client = nc.Client("local"); client.health()'
WAIT = "sys.stdin.readline()"


class TestServing:
    def test_needs_no_settings_and_uses_shared_memory(self) -> None:
        with (
            nc.local_server() as address,
            nc.Client(address) as client,
            client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session,
        ):
            assert session.calc_mask({"fc": WEIGHT})["fc"].sparsity == 0.5
            assert client.stats.bytes_sent < WEIGHT.nbytes / 10
        assert not folder_of(address).exists()

    def test_is_for_this_user_alone(self) -> None:
        with nc.local_server() as address:
            status = folder_of(address).stat()
            assert stat.S_IMODE(status.st_mode) == 0o700
            assert status.st_uid == os.geteuid()

    def test_passes_flags_on(self) -> None:
        with nc.local_server(flags=["--max_sessions=1"]) as address, nc.Client(address) as client:
            client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
            with pytest.raises(nc.ResourceExhaustedError, match="at most 1"):
                client.bind_model("level", [{"sparsity": 0.5}], [LAYER], timeout=1)

    def test_settings_for_another_server_do_not_count(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_TLS", "1")
        monkeypatch.setenv("NNI_COMPRESSION_SHM_SOCKET", str(tmp_path / "another"))
        with nc.local_server() as address, nc.Client(address) as client:
            assert client.health() == "SERVING"
            assert client.shared_array((4,)).base is not None

    @pytest.mark.parametrize("name", ["x" * 100, "a b", "tmpü", "a%41", "a,b"])
    def test_works_wherever_the_temporary_folder_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        with nc.local_server() as address, nc.Client(address) as client:
            assert client.health() == "SERVING"


class TestLocal:
    def test_clients_share_one_server(self) -> None:
        found: list[str] = []

        def connect() -> None:
            with nc.Client("local") as client:
                assert client.health() == "SERVING"
                found.append(client.server)

        threads = [threading.Thread(target=connect) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(set(found)) == 1

    def test_may_be_the_address_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SERVER", "local")
        with nc.Client() as client:
            assert client.health() == "SERVING"

    def test_is_started_again_when_it_has_died(self) -> None:
        with nc.Client("local") as first:
            os.kill(processes_of(first.server)["server"], signal.SIGKILL)
            assert eventually((folder_of(first.server) / "status").exists)
            with nc.Client("local") as second:
                assert second.health() == "SERVING"
                assert second.server != first.server
        assert not folder_of(first.server).exists()

    def test_a_spawned_process_uses_it(self) -> None:
        with nc.Client("local") as client:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert pool.apply(_health, (pickle.dumps(client), str(SOURCES))) == "SERVING"
            assert client.health() == "SERVING"

    def test_a_forked_child_ends_nothing(self) -> None:
        def work() -> str:
            second = nc.Client("local")
            second.close()
            return second.server

        with nc.Client("local") as client:
            assert client.health() == "SERVING"
            assert in_fork(work) == client.server
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            assert client.health() == "SERVING"

    def test_a_forked_child_leaves_the_with_statement_without_ending_the_server(self) -> None:
        def work() -> str:
            manager.__exit__(None, None, None)
            return "left"

        manager = nc.local_server()
        with manager as address, nc.Client(address) as client:
            assert in_fork(work) == "left"
            assert client.health() == "SERVING"
            manager.__exit__(None, None, None)
            assert not folder_of(address).exists()


def _health(pickled: bytes, sources: str) -> str:
    with pickle.loads(pickled) as client:
        return str(client.health())


@pytest.mark.usefixtures("temporary")
class TestTheEndOfATrainer:
    @pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_by_a_signal(self, sent: signal.Signals) -> None:
        with Trainer(LOCAL, PRINT, WAIT) as trainer:
            trainer.process.send_signal(sent)
            assert trainer.server_is_gone()

    @pytest.mark.parametrize(
        "end",
        ["", "raise RuntimeError", "sys.exit(3)", "os._exit(3)", "os.execv('/bin/true', ['t'])"],
    )
    def test_by_itself(self, end: str, temporary: Path) -> None:
        with Trainer(LOCAL, PRINT, WAIT, end) as trainer:
            trainer.proceed()
            assert trainer.server_is_gone()
            trainer.process.wait(TIMEOUT)
        assert list(temporary.iterdir()) == []

    def test_inside_a_with_statement(self) -> None:
        lines = [
            "with nc.local_server() as address:",
            "    print(address, flush=True)",
            f"    {WAIT}",
        ]
        for end in ("    raise RuntimeError", "    os.kill(os.getpid(), 9)"):
            with Trainer(*lines, end) as trainer:
                trainer.proceed()
                assert trainer.server_is_gone()

    def test_with_children_that_live_on(self) -> None:
        fork = "child = os.fork()"
        live_on = "if child == 0: time.sleep(600)"
        with Trainer(LOCAL, fork, live_on, PRINT, "print(child, flush=True)", WAIT) as trainer:
            assert trainer.process.stdout is not None
            child = int(trainer.process.stdout.readline())
            try:
                trainer.process.kill()
                assert trainer.server_is_gone()
                assert runs(child)
            finally:
                os.kill(child, signal.SIGKILL)

    def test_the_end_of_the_thread_that_has_started_it_is_none(self) -> None:
        """The kernel's own signal at the end of a parent is one at the end of its thread."""
        lines = [
            "address = []",
            "start = threading.Thread(target=lambda: address.append(nc.Client('local').server))",
            "start.start(); start.join()",
            "print(address[0], flush=True)",
            WAIT,
            "print(nc.Client(address[0]).health(), flush=True)",
        ]
        with Trainer(*lines) as trainer:
            assert trainer.process.stdout is not None
            trainer.proceed()
            assert trainer.process.stdout.readline() == "SERVING\n"

    def test_when_the_guard_was_killed(self) -> None:
        with Trainer(LOCAL, PRINT, WAIT) as trainer:
            os.kill(trainer.processes["guard"], signal.SIGKILL)
            assert eventually(lambda: not runs(trainer.processes["server"]))
            trainer.proceed()
            assert trainer.server_is_gone()


class TestFailures:
    def test_no_program(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("NNI_COMPRESSION_SERVER_BINARY")
        with pytest.raises(nc.FailedPreconditionError) as caught, nc.local_server():
            pass
        for part in ("NNI_COMPRESSION_SERVER_BINARY", "PATH", "cmake --install"):
            assert part in str(caught.value)
        monkeypatch.setenv("NNI_COMPRESSION_SERVER_BINARY", str(tmp_path / "absent"))
        with (
            pytest.raises(nc.FailedPreconditionError, match=r"absent', which is not a program"),
            nc.local_server(),
        ):
            pass

    def test_the_path_is_searched(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "compression_server").symlink_to(server_binary())
        monkeypatch.delenv("NNI_COMPRESSION_SERVER_BINARY")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        with nc.local_server() as address, nc.Client(address) as client:
            assert client.health() == "SERVING"

    def test_the_error_has_the_end_of_the_log(self, temporary: Path) -> None:
        with (
            pytest.raises(nc.UnavailableError, match=r"memory_budget(.|\n)*'lots'"),
            nc.local_server(flags=["--memory_budget=lots"]),
        ):
            pass
        assert list(temporary.iterdir()) == []

    def test_the_error_says_how_the_program_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SERVER_BINARY", "/bin/false")
        with (
            pytest.raises(nc.UnavailableError, match=r"/bin/false, has ended at .* with status 1:"),
            nc.local_server(),
        ):
            pass

    def test_a_server_that_does_not_answer_in_time(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = tmp_path / "server"
        program.write_text("#!/bin/sh\necho waits for a lock\nexec sleep 600\n")
        program.chmod(0o755)
        monkeypatch.setenv("NNI_COMPRESSION_SERVER_BINARY", str(program))
        with (
            pytest.raises(nc.UnavailableError, match=r"did not start in 0.5 s:\nwaits for a lock"),
            nc.local_server(timeout=0.5),
        ):
            pass

    @pytest.mark.parametrize(
        "flags",
        [["--listen=127.0.0.1:0"], ["-port_file", "x"], ["--flagfile=x"], "--max_calls=1"],
    )
    def test_flags_that_are_not_the_callers(self, flags: list[str]) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"^flags "), nc.local_server(flags=flags):
            pass
