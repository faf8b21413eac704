"""Weights handed to a server on this host in shared memory: the same answers, and what fails."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import nni_compression as nc
from forks import in_fork
from nni_compression._transport import shared_memory
from nni_compression._transport.credentials import Credentials
from nni_compression._wire import compression_pb2 as pb
from servers import ROOT, ServerProcess

LARGE = 300_000  # elements: more than MIN_BYTES in every dtype
MEGABYTE = 1 << 20


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within half a minute; for what no event tells."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def mappings(process_id: int) -> int:
    """How many of our files a process has mapped."""
    return Path(f"/proc/{process_id}/maps").read_text().count("memfd:nni-compression")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nni-shm-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(f"--shm_socket={folder / 'side'}") as process:
        yield process


@pytest.fixture
def shared(local: ServerProcess, folder: Path) -> Iterator[nc.Client]:
    with nc.Client(local.address, shm_socket=str(folder / "side"), timeout=60) as client:
        yield client


@pytest.fixture
def network(local: ServerProcess) -> Iterator[nc.Client]:
    with nc.Client(local.address, shm_socket="", timeout=60) as client:
        yield client


STRANGER = 10001
LISTENS = """
import socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
print(listener.accept()[0].recv(1 << 16), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
class TestAStrangerAtTheSocket:
    """Somebody else than the server may have listened first."""

    @staticmethod
    def heard(folder: Path, mode: int) -> str:
        """What a user in whose folder the socket is gets to know of a token."""
        os.chown(folder, STRANGER, STRANGER)
        folder.chmod(mode)
        path = str(folder / "side")
        command = [sys.executable, "-c", LISTENS, path]
        with subprocess.Popen(command, user=STRANGER, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdout is not None
            assert peer.stdout.readline() == "listens\n"
            memory = shared_memory.SharedMemory([path], Credentials("secret"))
            assert memory.lease(MEGABYTE, MEGABYTE) is None
            return peer.stdout.read()

    @pytest.mark.parametrize("mode", [0o777, 0o755])
    def test_is_told_nothing(self, mode: int, caplog: pytest.LogCaptureFixture) -> None:
        with (
            caplog.at_level(logging.INFO, "nni_compression"),
            tempfile.TemporaryDirectory(dir="/tmp") as folder,
        ):
            assert self.heard(Path(folder), mode) == "b''\n"
        assert f"user {STRANGER} listens there" in caplog.text

    def test_is_the_server_where_nobody_else_can_have_made_the_folder(self) -> None:
        with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
            assert "Bearer secret" in self.heard(Path(folder), 0o755)

    def test_is_not_believed_in_a_folder_that_others_write_to(self) -> None:
        with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
            assert self.heard(Path(folder), 0o775) == "b''\n"


def weights_of(count: int = 4, elements: int = LARGE, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {f"w{i}": random.normal(size=elements + i).astype(np.float32) for i in range(count)}


def layers_of(weights: dict[str, Any]) -> list[nc.Layer]:
    return [nc.Layer(name, "Linear", w.shape, w.dtype) for name, w in weights.items()]


def mask_bits(client: nc.Client, weights: dict[str, Any]) -> dict[str, bytes]:
    with client.bind_model("level", [{"sparsity": 0.7}], layers_of(weights)) as session:
        return {name: mask.bits.tobytes() for name, mask in session.calc_mask(weights).items()}


def uses_network(client: nc.Client, weights: dict[str, Any]) -> bool:
    """Whether a call sends the weights' bytes in its messages."""
    before = client.stats.bytes_sent
    mask_bits(client, weights)
    return client.stats.bytes_sent - before > min(w.nbytes for w in weights.values())


class TestAnswers:
    def test_masks_are_those_of_the_network(self, shared: nc.Client, network: nc.Client) -> None:
        weights = weights_of()
        weights["small"] = np.arange(10, dtype=np.float32)
        weights["half"] = np.random.default_rng(1).normal(size=LARGE).astype(np.float16)
        weights["double"] = np.random.default_rng(2).normal(size=(100, 1001))
        assert mask_bits(shared, weights) == mask_bits(network, weights)
        assert shared.stats.bytes_sent < 100_000 < network.stats.bytes_sent

    @pytest.mark.parametrize("reply", ["codes", "values", "parameters"])
    @pytest.mark.parametrize("algorithm", ["qat", "naive", "dorefa"])
    def test_quantized_weights_are_those_of_the_network(
        self, shared: nc.Client, network: nc.Client, algorithm: str, reply: str
    ) -> None:
        weights = weights_of(2)
        weights["bits"] = nc.Tensor(
            np.full(LARGE, 0x3F80, dtype=np.uint16), "bfloat16", (LARGE // 100, 100)
        )
        found = []
        for client in (shared, network):
            with client.bind_model(algorithm, [{"quant_bits": 8}], layers_of(weights)) as session:
                answers = session.quantize_weight(weights, reply=reply).values()
                found.append([(a.codes, a.values, a.scale, a.zero_point) for a in answers])
        for ours, theirs in zip(*found):
            for a, b in zip(ours, theirs):
                np.testing.assert_array_equal(a, b)

    def test_per_channel_numbers_come_beside(self, shared: nc.Client, network: nc.Client) -> None:
        weights = {"w": np.random.default_rng(3).normal(size=(300, 1000)).astype(np.float32)}
        rule = {"quant_bits": 8, "quant_scheme": "per_channel_symmetric"}
        found = []
        for client in (shared, network):
            with client.bind_model("qat", [rule], layers_of(weights)) as session:
                found.append(session.quantize_weight(weights)["w"])
        np.testing.assert_array_equal(found[0].scale, found[1].scale)
        np.testing.assert_array_equal(found[0].codes, found[1].codes)

    def test_a_result_is_the_callers_own(self, shared: nc.Client) -> None:
        first = weights_of(1, seed=1)
        with shared.bind_model("naive", [{"quant_bits": 8}], layers_of(first)) as session:
            kept = session.quantize_weight(first)["w0"]
            assert kept.codes is not None
            before = kept.codes.copy()
            session.quantize_weight(weights_of(1, seed=2))
        np.testing.assert_array_equal(kept.codes, before)

    def test_threads_share_a_client(self, shared: nc.Client, network: nc.Client) -> None:
        count = 12  # more than there are arenas
        expected = [mask_bits(network, weights_of(3, seed=i)) for i in range(count)]
        found: list[Any] = [None] * count

        def call(i: int) -> None:
            found[i] = mask_bits(shared, weights_of(3, seed=i))

        threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected

    def test_a_checksum_is_checked_both_ways(self, local: ServerProcess, folder: Path) -> None:
        path = str(folder / "side")
        with nc.Client(local.address, shm_socket=path, checksum=True) as client:
            assert not uses_network(client, weights_of(1))

    def test_one_layers_error_leaves_the_others_alone(self, shared: nc.Client) -> None:
        weights = weights_of(2)
        weights["w0"][7] = np.nan
        with (
            shared.bind_model("level", [{"sparsity": 0.5}], layers_of(weights)) as session,
            pytest.raises(nc.InvalidArgumentError) as raised,
        ):
            session.calc_mask(weights)
        assert set(raised.value.results) == {"w1"}
        assert not uses_network(shared, weights_of(1))


class TestMemory:
    def test_regions_are_reused(self, local: ServerProcess, shared: nc.Client) -> None:
        mask_bits(shared, weights_of(3))
        before = mappings(local.process.pid)
        for seed in range(5):
            mask_bits(shared, weights_of(3, seed=seed))
        assert mappings(local.process.pid) == before == 2

    def test_a_larger_call_makes_them_grow(self, local: ServerProcess, shared: nc.Client) -> None:
        mask_bits(shared, weights_of(1))
        assert not uses_network(shared, weights_of(4, elements=1_000_000))
        assert mappings(local.process.pid) == 2

    def test_a_closed_client_leaves_nothing(self, local: ServerProcess, folder: Path) -> None:
        with nc.Client(local.address, shm_socket=str(folder / "side")) as client:
            mask_bits(client, weights_of(1))
            assert mappings(local.process.pid) > 0
        gc.collect()
        assert eventually(lambda: mappings(local.process.pid) == 0)
        assert mappings(os.getpid()) == 0

    def test_what_does_not_fit_goes_over_the_network(
        self, shared: nc.Client, network: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_memory, "memory_limit", lambda: 16 * MEGABYTE)
        weights = weights_of(6)  # 7.2 MB, where there are 4 MiB
        assert mask_bits(shared, weights) == mask_bits(network, weights)
        assert 3_000_000 < shared.stats.bytes_sent < 6_000_000

    def test_after_an_error_the_memory_is_not_used_again(
        self, local: ServerProcess, shared: nc.Client
    ) -> None:
        weights = weights_of(1)
        with shared.bind_model("level", [{"sparsity": 0.5}], layers_of(weights)) as session:
            with pytest.raises(nc.FailedPreconditionError):
                session.calc_mask(weights, epoch=7)
            assert eventually(lambda: mappings(local.process.pid) == 0)
            session.calc_mask(weights)
        assert not uses_network(shared, weights)

    def test_a_killed_trainer_gives_everything_back(
        self, local: ServerProcess, folder: Path
    ) -> None:
        code = f"""
import sys
sys.path[:0] = [{str(ROOT / "client/python/src")!r}]
import numpy as np, nni_compression as nc
client = nc.Client({local.address!r}, shm_socket={str(folder / "side")!r})
session = client.bind_model("level", [{{"sparsity": 0.5}}], [nc.Layer("w", "Linear", (300000,))])
session.calc_mask({{"w": np.ones(300000, np.float32)}})
print("mapped", flush=True)
sys.stdin.read()
"""
        trainer = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline().strip() == "mapped"
            assert mappings(local.process.pid) == 2
        finally:
            trainer.send_signal(signal.SIGKILL)
            trainer.wait()
            trainer.communicate()
        assert eventually(lambda: mappings(local.process.pid) == 0)

    def test_a_forked_child_leaves_the_parents_memory_alone(self, shared: nc.Client) -> None:
        weights = weights_of(1)
        before = mask_bits(shared, weights)

        def close() -> str:
            shared.close()
            return "closed"

        assert in_fork(close) == "closed"
        assert mask_bits(shared, weights) == before
        assert not uses_network(shared, weights)


class TestSharedArray:
    def test_a_weight_in_one_is_not_copied(
        self, local: ServerProcess, shared: nc.Client, network: nc.Client
    ) -> None:
        plain = weights_of(1, elements=4_000_000)
        before = mappings(local.process.pid)
        array = shared.shared_array((4_000_000,))
        array[:] = plain["w0"]
        assert mask_bits(shared, {"w0": array}) == mask_bits(network, plain)
        assert shared.stats.bytes_sent < 100_000
        # The array, and room for the mask: none to copy the weight to.
        assert mappings(local.process.pid) == before + 2

    def test_a_part_of_one_is_found_too(self, shared: nc.Client, network: nc.Client) -> None:
        array = shared.shared_array((2, 160_000))
        array[:] = np.random.default_rng(4).normal(size=array.shape)
        for part in (array[0], array[1], array[1, 1:]):  # the last one is not aligned
            expected = mask_bits(network, {"w": part.copy()})
            assert mask_bits(shared, {"w": part}) == expected
        assert shared.stats.bytes_sent < 100_000

    def test_its_memory_goes_with_its_last_view(
        self, local: ServerProcess, shared: nc.Client
    ) -> None:
        view = shared.shared_array((1000, 1000))[10:]
        assert mappings(os.getpid()) == 1
        del view
        gc.collect()
        assert mappings(os.getpid()) == 0
        mask_bits(shared, weights_of(1))  # the next call tells the server
        assert eventually(lambda: mappings(local.process.pid) == 2)

    def test_it_outlives_the_client_and_the_server(self, folder: Path) -> None:
        path = str(folder / "short")
        weights = weights_of(1)
        with ServerProcess(f"--shm_socket={path}") as server:
            client = nc.Client(server.address, shm_socket=path)
            array = client.shared_array(weights["w0"].shape)
            array[:] = weights["w0"]
            port = server.port
        with ServerProcess(f"--shm_socket={path}", port=port):
            assert set(mask_bits(client, {"w0": array})) == {"w0"}
            client.close()
        np.testing.assert_array_equal(array, weights["w0"])

    def test_it_is_an_ordinary_array_without_shared_memory(self, network: nc.Client) -> None:
        array = network.shared_array((3, 4), "float16")
        assert array.shape == (3, 4)
        assert array.dtype == np.float16
        assert network.shared_array((0,)).size == 0


class TestFallback:
    def test_no_socket(
        self, local: ServerProcess, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.INFO, logger="nni_compression"),
            nc.Client(local.address, shm_socket=str(folder / "none")) as client,
        ):
            for _ in range(3):
                assert uses_network(client, weights_of(1))
        assert len([r for r in caplog.records if "no shared memory" in r.message]) == 1

    def test_the_environment_names_the_socket(
        self, local: ServerProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(shared_memory.SOCKET_VARIABLE, str(folder / "side"))
        with nc.Client(local.address) as client:
            assert not uses_network(client, weights_of(1))
        with nc.Client(local.address, shm_socket="") as client:
            assert uses_network(client, weights_of(1))

    def test_a_socket_that_speaks_something_else(self, local: ServerProcess, folder: Path) -> None:
        path = str(folder / "strange")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(1)

            def answer() -> None:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1000)
                    peer.send(b"\xff\xff")

            thread = threading.Thread(target=answer)
            thread.start()
            with nc.Client(local.address, shm_socket=path) as client:
                assert uses_network(client, weights_of(1))
            thread.join()

    def test_a_server_that_does_not_admit_this_user(self, folder: Path) -> None:
        path = str(folder / "others")
        other = os.getuid() + 1
        with (
            ServerProcess(f"--shm_socket={path}", f"--shm_uids={other}") as server,
            nc.Client(server.address, shm_socket=path) as client,
        ):
            assert uses_network(client, weights_of(1))

    def test_another_servers_socket(
        self, server: ServerProcess, local: ServerProcess, folder: Path
    ) -> None:
        weights = weights_of(2)
        with nc.Client(server.address, shm_socket=str(folder / "side")) as client:
            assert set(mask_bits(client, weights)) == {"w0", "w1"}
            assert uses_network(client, weights)

    def test_a_layer_that_does_not_exist_is_still_an_error(self, shared: nc.Client) -> None:
        weights = weights_of(1)
        with shared.bind_model("level", [{"sparsity": 0.5}], layers_of(weights)) as session:
            with pytest.raises(nc.NotFoundError, match="other"):
                session.calc_mask({"other": weights["w0"]})
            session.calc_mask(weights)
        assert not uses_network(shared, weights)

    def test_a_server_that_was_started_anew(self, folder: Path) -> None:
        path = str(folder / "again")
        weights = weights_of(1)
        first = ServerProcess(f"--shm_socket={path}")
        with nc.Client(first.address, shm_socket=path) as client:
            assert not uses_network(client, weights)
            first.kill()  # leaves the socket's file behind
            with ServerProcess(f"--shm_socket={path}", port=first.port):
                assert not uses_network(client, weights)

    def test_a_pickled_client_has_memory_of_its_own(self, shared: nc.Client) -> None:
        with pickle.loads(pickle.dumps(shared)) as copy:
            assert not uses_network(copy, weights_of(1))

    def test_a_closed_client_makes_no_memory(self, local: ServerProcess, folder: Path) -> None:
        client = nc.Client(local.address, shm_socket=str(folder / "side"))
        client.close()
        with pytest.raises(nc.FailedPreconditionError):
            mask_bits(client, weights_of(1))
        assert mappings(os.getpid()) == 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of this user's sockets, for servers and clients."""
    with tempfile.TemporaryDirectory(prefix="nni-runtime-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.delenv(shared_memory.SOCKET_VARIABLE, raising=False)
        yield Path(name)


AUTO = "--shm_socket=auto"


class _ScriptedSocket:
    """A shared-memory socket that answers hello, and the requests after it when it is told to."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()

    def accept(self) -> None:
        self.peer, _ = self._listener.accept()
        assert pb.SideRequest.FromString(self.peer.recv(1 << 14)).HasField("hello")
        self.peer.send(pb.SideReply(code=0, max_bytes=1 << 30).SerializeToString())

    def take(self) -> None:
        request, files, _, _ = socket.recv_fds(self.peer, 1 << 14, 1)
        assert pb.SideRequest.FromString(request).HasField("add_region")
        for file in files:
            os.close(file)

    def answer(self, region: bytes) -> None:
        # The client may have closed the connection, which is as good.
        with contextlib.suppress(BrokenPipeError):
            self.peer.send(pb.SideReply(code=0, region=region).SerializeToString())


def test_a_reply_that_comes_too_late_is_not_that_of_the_next_request(
    tmp_path: Path,
) -> None:
    path = tmp_path / "side"
    scripted = _ScriptedSocket(path)
    late = threading.Event()

    def serve() -> None:
        scripted.accept()
        scripted.take()
        first = scripted.peer
        late.wait()
        scripted.answer(b"late")
        scripted.accept()
        first.close()
        scripted.take()
        scripted.answer(b"right")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    memory = shared_memory.SharedMemory([str(path)], Credentials())
    assert memory.works()
    memory._connection._socket.settimeout(0.1)
    assert memory.array(MEGABYTE) is None
    late.set()
    array = memory.array(MEGABYTE)
    assert array is not None
    place = memory.find(memoryview(array))
    assert place is not None
    assert place.region == b"right"
    thread.join()


class TestWithoutSettings:
    """A server offers the socket to its own user, and clients find it by the address."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1"])
    def test_the_port_leads_to_the_socket(self, runtime: Path, host: str) -> None:
        with ServerProcess(AUTO) as server:
            path = runtime / "nni-compression" / f"{server.port}.shm"
            assert path.is_socket()
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            with nc.Client(f"{host}:{server.port}") as client:
                assert not uses_network(client, weights_of(1))
        assert not path.exists()

    def test_a_unix_socket_has_it_beside(self, runtime: Path, folder: Path) -> None:
        address = f"unix:{folder / 'server'}"
        with ServerProcess(AUTO, f"--listen={address}"), nc.Client(address) as client:
            assert (folder / "server.shm").is_socket()
            assert not uses_network(client, weights_of(1))

    def test_it_can_be_switched_off_on_both_ends(
        self, runtime: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ServerProcess(AUTO) as server:
            with nc.Client(server.address, shm_socket="") as client:
                assert uses_network(client, weights_of(1))
            monkeypatch.setenv(shared_memory.SOCKET_VARIABLE, "")
            with nc.Client(server.address) as client:
                assert uses_network(client, weights_of(1))
        with ServerProcess("--shm_socket="):
            assert not list(runtime.rglob("*.shm"))

    def test_a_client_may_be_there_before_the_server(self, runtime: Path) -> None:
        with ServerProcess() as server:
            port = server.port
        client = nc.Client(f"127.0.0.1:{port}")
        with ServerProcess(AUTO, port=port), client:
            assert not uses_network(client, weights_of(1))

    def test_a_dead_servers_socket_is_replaced(self, runtime: Path) -> None:
        first = ServerProcess(AUTO)
        with nc.Client(first.address) as client:
            assert not uses_network(client, weights_of(1))
            first.kill()
            assert list(runtime.rglob("*.shm"))
            with ServerProcess(AUTO, port=first.port):
                assert not uses_network(client, weights_of(1))

    def test_a_folder_that_others_can_look_into_is_not_used(self, runtime: Path) -> None:
        folder = runtime / "nni-compression"
        folder.mkdir()
        folder.chmod(0o755)
        with ServerProcess(AUTO) as server, nc.Client(server.address) as client:
            assert not list(folder.iterdir())
            assert not uses_network(client, weights_of(1))  # there are further places

    def test_a_link_to_a_folder_is_not_used(self, runtime: Path, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        (runtime / "nni-compression").symlink_to(tmp_path)
        with ServerProcess(AUTO):
            assert not list(tmp_path.iterdir())

    def test_another_servers_socket_at_the_port_is_noticed(self, runtime: Path) -> None:
        with ServerProcess(AUTO) as other, ServerProcess() as server:
            path = runtime / "nni-compression" / f"{other.port}.shm"
            path.with_name(f"{server.port}.shm").symlink_to(path)
            weights = weights_of(2)
            with nc.Client(server.address, shm_socket="") as client:
                expected = mask_bits(client, weights)
            with nc.Client(server.address) as client:
                assert mask_bits(client, weights) == expected
                assert uses_network(client, weights)

    def test_a_server_without_one_is_not_worth_a_word(
        self, runtime: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.INFO, "nni_compression"),
            ServerProcess() as server,
            nc.Client(server.address) as client,
        ):
            assert uses_network(client, weights_of(1))
        assert not caplog.records

    def test_other_users_need_a_path(self, runtime: Path) -> None:
        with pytest.raises(RuntimeError, match=r"shm_uids needs shm_socket=PATH"):
            ServerProcess(AUTO, "--shm_uids=1000")
