"""Forks, restarts of the server, examples in docstrings."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import multiprocessing
import os
import pkgutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest

import nni_compression as nc
from forks import CHILD_TIMEOUT, in_fork
from servers import ServerProcess

SOURCES = Path(nc.__file__).parents[1]
WEIGHT = np.random.default_rng(6).normal(size=(10, 20)).astype(np.float32)
LAYER = nc.Layer("fc", "Linear", (10, 20))


class TestForks:
    def test_a_child_works_and_ends_while_the_parent_goes_on(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session:
            assert in_fork(lambda: str(float(np.ones(10).sum()))) == "10.0"
            assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == 100

    def test_a_call_in_the_child_is_a_clear_error(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session:
            for call in (
                client.health,
                client.algorithms,
                lambda: session.calc_mask({"fc": WEIGHT}),
                lambda: nc.Client(client.server).health(),
            ):
                answer = in_fork(lambda: str(call()))  # noqa: B023
                assert answer.startswith("FailedPreconditionError: this process was forked")
                assert "spawn" in answer
            assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == 100

    def test_a_child_that_closes_what_it_inherited_closes_nothing_of_the_parents(
        self, client: nc.Client
    ) -> None:
        def work() -> str:
            with session:
                pass
            session.close()
            client.close()
            return "closed"

        with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session:
            assert in_fork(work) == "closed"
            assert session.info().state == "active"

    def test_a_fork_during_calls_of_other_threads(self, client: nc.Client) -> None:
        stop = threading.Event()

        def call() -> None:
            with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session:
                while not stop.is_set():
                    session.calc_mask({"fc": WEIGHT})

        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                assert in_fork(lambda: "done") == "done"
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    @pytest.mark.skipif(
        not grpc.__version__.startswith("1.51"), reason="the threads have other names in this gRPC"
    )
    def test_a_fork_does_not_wait_for_threads_of_grpc(self, client: nc.Client) -> None:
        def executors() -> set[Path]:
            found = set()
            for task in Path("/proc/self/task").iterdir():
                with contextlib.suppress(OSError):  # it has ended
                    if "executo" in (task / "comm").read_text():
                        found.add(task)
            return found

        assert client.health() == "SERVING"
        before = executors()
        assert before
        assert in_fork(lambda: "done") == "done"
        assert before <= executors(), "the fork has ended them, and begun others"

    def test_a_full_exit_of_a_child_does_not_hang(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session:
            script = textwrap.dedent(
                f"""
                import os, sys
                import nni_compression as nc
                client = nc.Client({client.server!r})
                session = client.join({session.id!r})
                if os.fork() == 0:
                    sys.exit(7)
                assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
                assert client.health() == "SERVING"
                """
            )
            subprocess.run(
                [sys.executable, "-c", script],
                check=True,
                timeout=CHILD_TIMEOUT,
                env={**os.environ, "PYTHONPATH": str(SOURCES)},
            )

    def test_before_the_first_call_a_child_opens_its_own_connection(
        self, server: ServerProcess
    ) -> None:
        script = textwrap.dedent(
            f"""
            import os
            import nni_compression as nc
            client = nc.Client({server.address!r})
            if os.fork() == 0:
                assert client.health() == "SERVING"
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
            assert client.health() == "SERVING"
            """
        )
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            timeout=CHILD_TIMEOUT,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )

    def test_a_spawned_process_uses_a_pickled_client(self, client: nc.Client) -> None:
        with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as session:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pruned = pool.apply(_join_and_prune, (client, session.id, str(SOURCES)))
            assert pruned == 100
            assert session.info().layers[0].achieved_sparsity == 0.5


def _join_and_prune(client: nc.Client, session_id: str, sources: str) -> int:
    with client:
        return client.join(session_id).calc_mask({"fc": WEIGHT})["fc"].pruned


class TestRestarts:
    def test_calls_wait_for_a_server_that_restarts(self) -> None:
        first = ServerProcess()
        with nc.Client(first.address, timeout=60) as client:
            session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
            assert first.stop() == 0
            started: list[ServerProcess] = []
            restart = threading.Timer(0.5, lambda: started.append(ServerProcess(port=first.port)))
            restart.start()
            try:
                with client.bind_model("level", [{"sparsity": 0.5}], [LAYER]) as again:
                    assert again.calc_mask({"fc": WEIGHT})["fc"].pruned == 100
                with pytest.raises(nc.NotFoundError):  # it had no storage
                    session.calc_mask({"fc": WEIGHT})
            finally:
                restart.join()
                for server in started:
                    server.stop()
            assert client.stats.retries > 0

    def test_an_upload_that_a_crash_cuts_is_an_error_of_the_session(self) -> None:
        """The new server does not know the session: not a hang, not a wrong answer."""
        server = ServerProcess()
        big = np.ones(32 << 20, np.float32)
        with nc.Client(server.address, timeout=60) as client:
            session = client.bind_model(
                "level", [{"sparsity": 0.5}], [nc.Layer("big", "Linear", big.shape)]
            )
            sent_before = session.stats.bytes_sent
            raised: list[BaseException] = []

            def call() -> None:
                try:
                    session.calc_mask({"big": big})
                except nc.CompressionError as error:
                    raised.append(error)

            thread = threading.Thread(target=call)
            thread.start()
            deadline = time.monotonic() + 30
            while session.stats.bytes_sent < sent_before + (16 << 20):
                assert time.monotonic() < deadline
            server.kill()
            with ServerProcess(port=server.port):
                thread.join(60)
            assert not thread.is_alive()
            assert isinstance(raised[0], nc.NotFoundError)

    def test_a_server_that_is_asked_to_end_ends_well(self) -> None:
        with ServerProcess() as server, nc.Client(server.address) as client:
            client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
            assert server.stop() == 0


def documented_modules() -> list[str]:
    """The package's modules but those that need other packages."""
    names = [nc.__name__]
    others = {f"{nc.__name__}.{name}" for name in ("adapter", "onnx", "_integer_graph")}
    for module in pkgutil.iter_modules(nc.__path__, f"{nc.__name__}."):
        if not module.ispkg and module.name not in others:
            names.append(module.name)
    return names


@pytest.mark.parametrize("name", documented_modules())
def test_examples_in_docstrings_are_true(client: nc.Client, name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    names: dict[str, Any] = {"client": client, "nc": nc, "np": np}
    failed, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_the_main_classes_have_examples(client: nc.Client) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for thing in (nc, nc.Client, nc.Session, nc.Mask, nc.Tensor, nc.Layer):
        assert any(test.examples for test in finder.find(thing)), thing


def test_the_readmes_example_runs(server: ServerProcess) -> None:
    text = (SOURCES.parent / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("127.0.0.1:50051", server.address)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["mask"].sparsity == 0.8
