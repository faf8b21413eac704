"""Servers that are killed and come back: what was answered is there, bit for bit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import numpy as np
import pytest

import nni_compression as nc
from metered import eventually
from nni_compression._wire import compression_pb2 as pb
from servers import ROOT, SERVICE, ServerProcess, server_binary

RANDOM = np.random.default_rng(11)
LAYERS = [nc.Layer(f"fc{i}", "Linear", (64, 512)) for i in range(6)]
BIG = nc.Layer("big", "Linear", (1024, 1024))  # its mask is a file of its own
AGP = [{"final_sparsity": 0.9, "end_epoch": 12, "op_types": ["default"]}]
EPOCHS = 12


def weights(epoch: int) -> dict[str, np.ndarray]:
    """What the trainer has at this epoch."""
    random = np.random.default_rng(epoch)
    return {
        layer.name: random.normal(size=layer.shape).astype(np.float32) for layer in [*LAYERS, BIG]
    }


def train(client: nc.Client, answered: threading.Event | None = None) -> dict[str, np.ndarray]:
    """The masks of a run."""
    session = client.bind_model("agp", AGP, [*LAYERS, BIG])
    masks = {}
    for epoch in range(EPOCHS + 1):
        session.update_epoch(epoch)
        masks = {name: mask.to_numpy() for name, mask in session.calc_mask(weights(epoch)).items()}
        if answered is not None:
            answered.set()
    session.close()
    return masks


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


class Restarting:
    """A server over a directory that is killed and started anew on its port."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.flags = (f"--data_dir={data_dir}", *flags)
        self.server = ServerProcess(*self.flags)
        self.address = self.server.address

    def kill_and_restart(self) -> None:
        self.server.kill()
        self.server = ServerProcess(*self.flags, port=self.server.port)


@pytest.fixture(params=["process", "power"])
def restarting(data_dir: Path, request: pytest.FixtureRequest) -> Iterator[Restarting]:
    server = Restarting(data_dir, f"--durability={request.param}")
    yield server
    if server.server.process.poll() is None:
        assert server.server.stop() == 0


def test_a_session_closed_beside_a_call_of_it_is_no_error_in_the_log(data_dir: Path) -> None:
    layers, given = [*LAYERS, BIG], weights(0)
    with (
        ServerProcess(f"--data_dir={data_dir}") as server,
        nc.Client(server.address) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        for number in range(150):
            session = client.bind_model("level", [{"sparsity": 0.5}], layers)
            call = beside.submit(session.calc_mask, given)
            for _ in range(number % 15):  # later and later in the call
                client.session_info(session.id)
            session.close()
            wait([call])
        assert "session_not_saved" not in server.log()


def test_trainers_go_on_while_their_server_is_killed_again_and_again(
    restarting: Restarting,
) -> None:
    with ServerProcess() as quiet, nc.Client(quiet.address, timeout=60) as client:
        expected = train(client)

    def trainer() -> dict[str, np.ndarray]:
        with nc.Client(restarting.address, timeout=120, connect_timeout=120) as client:
            return train(client)

    with ThreadPoolExecutor(3) as pool:
        trainers = [pool.submit(trainer) for _ in range(3)]
        for pause in RANDOM.uniform(0.02, 0.4, size=6):
            # A random moment; whatever it is, the outcome has to be the same.
            if not wait(trainers, timeout=pause).not_done:
                break
            restarting.kill_and_restart()
        results = [trainer.result() for trainer in trainers]
    for masks in results:
        for name, mask in expected.items():
            np.testing.assert_array_equal(masks[name], mask)


def test_a_session_of_most_of_the_memory_is_there_after_kill(data_dir: Path) -> None:
    """A loaded session takes what it took before, not that and what was read of it."""
    shape, budget = (128, 256), 64 << 20
    layers = [nc.Layer(f"fc{i}", "Linear", shape) for i in range(int(0.75 * budget) // (8 << 15))]
    moved = RANDOM.normal(size=shape).astype(np.float32)
    rule = {"final_sparsity": 0.5, "schedule_unit": "step", "end_step": 100}
    server = Restarting(data_dir, f"--memory_budget={budget}", "--cache_budget=0")
    with nc.Client(server.address, timeout=20) as client:
        session = client.bind_model("movement", [rule], layers)
        for layer in layers:
            session.add_statistics({layer.name: {"weight_gradient": moved}})
        server.kill_and_restart()
        session.step(100)
        mask = session.calc_mask({layers[0].name: moved})[layers[0].name].to_numpy()
        np.testing.assert_array_equal(mask, -moved > np.sort(-moved, None)[moved.size // 2 - 1])
        session.close()
    assert server.server.stop() == 0


def test_what_was_answered_is_there_after_kill(restarting: Restarting) -> None:
    with nc.Client(restarting.address, timeout=60) as client:
        session = client.bind_model("agp", AGP, [*LAYERS, BIG], labels={"run": "7"})
        session.update_epoch(5)
        before = session.calc_mask(weights(5))
        restarting.kill_and_restart()
        after = session.calc_mask(weights(6))  # another weight changes nothing at this epoch
        for name in before:
            np.testing.assert_array_equal(before[name].to_numpy(), after[name].to_numpy())
        assert [s.id for s in client.sessions()] == [session.id]
        session.close()
        restarting.kill_and_restart()
        assert client.sessions() == []


def test_a_thousand_sessions_are_back_at_once(data_dir: Path) -> None:
    server = ServerProcess(f"--data_dir={data_dir}")
    with nc.Client(server.address, timeout=60) as client:
        for _ in range(1000):
            client.bind_model("level", [{"sparsity": 0.5}], [LAYERS[0]])
        server.kill()
        with ServerProcess(f"--data_dir={data_dir}") as again:
            recovered = next(
                line for line in again.log().splitlines() if "sessions_recovered" in line
            )
            assert "live=1000" in recovered
            with nc.Client(again.address, timeout=60) as client:
                assert len(client.sessions()) == 1000


def refused_server(data_dir: Path) -> subprocess.CompletedProcess[str]:
    """A run of a server that is expected not to start."""
    return subprocess.run(
        [server_binary(), "--listen=127.0.0.1:0", f"--data_dir={data_dir}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_server_is_refused_and_a_replacement_waits(data_dir: Path) -> None:
    first = ServerProcess(f"--data_dir={data_dir}")
    second = refused_server(data_dir)
    assert second.returncode == 1
    assert "in use by another server" in second.stderr
    stopper = threading.Timer(0.3, first.stop)
    stopper.start()
    with ServerProcess(f"--data_dir={data_dir}", "--data_dir_lock_wait=60s") as replacement:
        assert replacement.process.poll() is None
    stopper.join()


def test_a_damaged_file_costs_only_its_session(data_dir: Path) -> None:
    server = ServerProcess(f"--data_dir={data_dir}")
    with nc.Client(server.address, timeout=60) as client:
        ids = []
        for epoch in (1, 2):
            session = client.bind_model("level", [{"sparsity": 0.5}], [BIG])
            session.calc_mask({"big": weights(epoch)["big"]})
            ids.append(session.id)
    server.kill()
    files = sorted(path for path in (data_dir / "records").rglob("*") if path.is_file())
    assert len(files) == 2
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    with (
        ServerProcess(f"--data_dir={data_dir}") as again,
        nc.Client(again.address, timeout=60) as client,
    ):
        lost = []
        for session_id in ids:
            try:
                client.join(session_id).update_epoch(1)
            except nc.DataLossError:
                lost.append(session_id)
        assert len(lost) == 1
        assert any(
            "session_damaged" in line and lost[0] in line for line in again.log().splitlines()
        )


def test_epochs_are_stored_quickly_enough_to_be_answered(data_dir: Path) -> None:
    """Not a benchmark: it shows that nothing syncs or waits for a timer at every call."""
    with (
        ServerProcess(f"--data_dir={data_dir}") as server,
        nc.Client(server.address, timeout=60) as client,
    ):
        session = client.bind_model("agp", AGP, LAYERS)
        times = []
        for epoch in range(300):
            start = time.perf_counter()
            session.update_epoch(epoch)
            times.append(time.perf_counter() - start)
        print(f"update_epoch, median: {sorted(times)[150] * 1e3:.3f} ms")


class TestDamage:
    """Bytes of the catalogue that have changed while no server looked."""

    @pytest.mark.parametrize(
        "change",
        [
            "sessions SET lease_nanoseconds = -1 WHERE id = :id",
            "sessions SET sequence = 7, lease_nanoseconds = 0",
            "sessions SET sequence = -1 WHERE id = :id",
            "sessions SET ended = 1 WHERE id = :id",
            "sessions SET fingerprint = x'00' WHERE id = :id",
            "records SET bytes = substr(bytes, 2) WHERE part = -2 AND"
            " session = (SELECT number FROM sessions WHERE id = :id)",
        ],
    )
    def test_costs_the_session_that_it_is_of(self, data_dir: Path, change: str) -> None:
        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            damaged = client.bind_model("level", [{"sparsity": 0.5}], [BIG]).id
            others = [client.bind_model("level", [{"sparsity": 0.5}], [BIG]).id for _ in range(2)]
        with contextlib.closing(sqlite3.connect(data_dir / "catalogue.db")) as catalogue:
            parameters = {"id": damaged.encode()} if ":id" in change else {}
            catalogue.execute(f"UPDATE {change}", parameters)
            catalogue.commit()
        given = {"big": weights(1)["big"]}
        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            for session in [damaged] if ":id" in change else [damaged, *others]:
                with pytest.raises(nc.DataLossError) as raised:
                    client.join(session).calc_mask(given)
                assert str(data_dir) not in str(raised.value)
                closed = ctl("close", session, f"--server={server.address}")
                assert closed.returncode == 0, closed.stderr
            if ":id" in change:
                for session in others:
                    assert client.join(session).calc_mask(given)["big"].sparsity == 0.5
            assert server.log().count("event=session_damaged") >= 1
            assert damaged in server.log()

    @pytest.mark.parametrize(
        ("algorithm", "rule"), [("level", {"sparsity": 0.5}), ("naive", {"quant_bits": 8})]
    )
    def test_a_record_that_is_missing_is_not_begun_anew(
        self, data_dir: Path, algorithm: str, rule: dict[str, object]
    ) -> None:
        def compress(session: nc.Session, seed: int) -> None:
            some = {layer.name: weights(seed)[layer.name] for layer in LAYERS[:3]}
            (session.calc_mask if algorithm == "level" else session.quantize_weight)(some)

        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            damaged, other = (client.bind_model(algorithm, [rule], LAYERS[:3]) for _ in range(2))
            compress(damaged, 1)
            compress(other, 1)
        with contextlib.closing(sqlite3.connect(data_dir / "catalogue.db")) as catalogue:
            removed = catalogue.execute(
                "DELETE FROM records WHERE part = 1 AND session ="
                " (SELECT number FROM sessions WHERE id = ?)",
                [damaged.id.encode()],
            )
            assert removed.rowcount == 1
            catalogue.commit()
        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            with pytest.raises(nc.DataLossError):
                compress(client.join(damaged.id), 2)
            compress(client.join(other.id), 2)
            (line,) = [line for line in server.log().splitlines() if "session_damaged" in line]
            assert damaged.id in line
            assert "the record of layer 1 is missing" in line

    def test_of_the_log_is_told_and_its_files_are_kept(self, data_dir: Path) -> None:
        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            session = client.bind_model("level", [{"sparsity": 0.5}], [BIG])
            session.calc_mask({"big": weights(1)["big"]})
            server.kill()
        (record,) = (path for path in (data_dir / "records").rglob("*") if path.is_file())
        log = data_dir / "catalogue.db-wal"
        content = bytearray(log.read_bytes())
        frame = 24 + int.from_bytes(content[8:12], "big")  # a header and a page
        commits = [
            at for at in range(32, len(content), frame) if any(content[at + 4 : at + 8])
        ]  # of the schema, the session, and its mask
        content[commits[1] + frame + 100] ^= 0xFF
        log.write_bytes(content)
        lost = data_dir / "lost" / (record.parent.name + record.name)
        with ServerProcess(f"--data_dir={data_dir}") as server:
            assert "event=catalogue_log_damaged" in server.log()
            assert eventually(lost.exists)
        assert not record.exists()


def ctl(*arguments: str, within: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A run of compressionctl, by another program if need be."""
    binary = os.environ.get(
        "COMPRESSIONCTL_BINARY", ROOT / "build/release/client/cli/compressionctl"
    )
    return subprocess.run(
        [*within, binary, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


class TestBackup:
    def test_a_backup_under_load_is_the_sessions_at_one_moment(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        backup, restored = tmp_path / "backup", tmp_path / "restored"
        with (
            ServerProcess(f"--data_dir={data_dir}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            session = client.bind_model("agp", AGP, [*LAYERS, BIG])
            session.update_epoch(3)
            before = session.calc_mask(weights(3))
            run = ctl("backup", f"--data_dir={data_dir}", str(backup))
            assert run.returncode == 0, run.stderr
            for epoch in range(4, 8):  # replaces every mask, and with it every file
                session.update_epoch(epoch)
                session.calc_mask(weights(epoch))
        run = ctl("restore", f"--data_dir={restored}", str(backup))
        assert run.returncode == 0, run.stderr
        with (
            ServerProcess(f"--data_dir={restored}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            after = client.join(session.id).calc_mask(weights(9))
        for name in before:
            np.testing.assert_array_equal(before[name].to_numpy(), after[name].to_numpy())

    def test_trainers_that_are_ahead_of_it_are_told_and_others_go_on(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        backup, restored = tmp_path / "backup", tmp_path / "restored"
        with (
            ServerProcess(f"--data_dir={data_dir}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            ahead = [client.bind_model("agp", AGP, [*LAYERS, BIG]) for _ in range(3)]
            quantizer = client.bind_model("naive", [{}], [BIG])
            level = client.bind_model("agp", AGP, [*LAYERS, BIG])
            for session in (*ahead, level):
                session.update_epoch(3)
                session.calc_mask(weights(3))
            quantizer.step(1)
            run = ctl("backup", f"--data_dir={data_dir}", str(backup))
            assert run.returncode == 0, run.stderr
            # By each kind of call.
            ahead[0].update_epoch(4)
            ahead[1].calc_mask({"big": nc.Mask.from_numpy(np.ones(BIG.shape, bool))})
            ahead[2].set_mask({"big": np.ones(BIG.shape, bool)})
            quantizer.step(2)
            server.kill()
            run = ctl("restore", f"--data_dir={restored}", str(backup))
            assert run.returncode == 0, run.stderr
            with ServerProcess(f"--data_dir={restored}", port=server.port):
                behind = r"stored at revision \d+, older than revision \d+"
                with pytest.raises(nc.NotFoundError, match=behind):
                    ahead[0].update_epoch(5)
                with pytest.raises(nc.NotFoundError, match=behind):
                    ahead[1].calc_mask(weights(4))
                with pytest.raises(nc.NotFoundError, match=behind):
                    ahead[2].export(tmp_path / "masks", format="masks")
                with pytest.raises(nc.NotFoundError, match=behind):
                    quantizer.step(3)
                # Nothing that it was told of is missing.
                assert level.update_epoch(4) == {layer.name for layer in (*LAYERS, BIG)}

    @pytest.mark.parametrize("told", ["x", "-1", "1.5", "", str(2**64)])
    def test_a_revision_that_is_no_number_is_refused(self, told: str) -> None:
        with (
            ServerProcess() as server,
            nc.Client(server.address) as client,
            grpc.insecure_channel(server.address) as channel,
        ):
            session = client.bind_model("agp", AGP, LAYERS)
            request = pb.UpdateEpochRequest(session_id=session.id, epoch=1)
            call = channel.unary_unary(f"/{SERVICE}/UpdateEpoch")
            metadata = (("nni-session-revision", told),)
            with pytest.raises(grpc.RpcError) as refused:
                call(request.SerializeToString(), metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert f'nni-session-revision is "{told}"' in refused.value.details()
            assert session.info().epoch == 0

    @pytest.mark.parametrize("made_by", ["this version", "one that made no folder for no file"])
    @pytest.mark.parametrize("layers", [[], LAYERS[:1]], ids=["no session", "small layers"])
    def test_a_server_without_record_files_comes_back(
        self, data_dir: Path, tmp_path: Path, layers: list[nc.Layer], made_by: str
    ) -> None:
        backup, restored = tmp_path / "backup", tmp_path / "restored"
        with (
            ServerProcess(f"--data_dir={data_dir}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            sessions = [client.bind_model("level", [{"sparsity": 0.5}], [one]) for one in layers]
            sent = {layer.name: weights(1)[layer.name] for layer in layers}
            before = [session.calc_mask(sent) for session in sessions]
            run = ctl("backup", f"--data_dir={data_dir}", str(backup))
            assert run.returncode == 0, run.stderr
        if made_by != "this version":
            (backup / "records").rmdir()
        run = ctl("restore", f"--data_dir={restored}", str(backup))
        assert run.returncode == 0, run.stderr
        assert {path.name for path in restored.iterdir()} == {"catalogue.db", "records"}
        with (
            ServerProcess(f"--data_dir={restored}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            for session, masks in zip(sessions, before):
                other = {layer.name: weights(2)[layer.name] for layer in layers}
                after = client.join(session.id).calc_mask(other)
                for name, mask in masks.items():
                    np.testing.assert_array_equal(mask.to_numpy(), after[name].to_numpy())

    @pytest.fixture
    def backup(self, data_dir: Path, tmp_path: Path) -> Path:
        """Of a session with a record file."""
        with (
            ServerProcess(f"--data_dir={data_dir}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            session = client.bind_model("level", [{"sparsity": 0.5}], [BIG])
            session.calc_mask({"big": weights(1)["big"]})
        assert ctl("backup", f"--data_dir={data_dir}", str(tmp_path / "backup")).returncode == 0
        return tmp_path / "backup"

    @pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
    def test_a_restore_that_fails_leaves_room_for_the_next(
        self, backup: Path, tmp_path: Path, there: bool
    ) -> None:
        restored = tmp_path / "restored"
        if there:
            restored.mkdir()
        (backup / "records").rename(backup / "elsewhere")
        run = ctl("restore", f"--data_dir={restored}", str(backup))
        assert run.returncode == 1
        assert f"'{backup}/records' is missing" in run.stderr
        assert restored.exists() == there
        (backup / "elsewhere").rename(backup / "records")
        run = ctl("restore", f"--data_dir={restored}", str(backup))
        assert run.returncode == 0, run.stderr

    def test_what_a_restore_leaves_that_was_killed_is_in_nobodys_way(
        self, backup: Path, tmp_path: Path
    ) -> None:
        restored = tmp_path / "restored"
        (restored / "records/ab").mkdir(parents=True)
        (restored / "records/ab/cd").write_text("half")
        for suffix in ("", "-journal"):
            (restored / f"catalogue.db.unfinished{suffix}").write_text("half")
        folder = os.open(restored, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            run = ctl("restore", f"--data_dir={restored}", str(backup))
            assert run.returncode == 1
            assert "or another backup or restore, uses" in run.stderr
            assert (restored / "records/ab/cd").exists()
            server = refused_server(restored)
            assert server.returncode == 1
            assert "is being written by a restore" in server.stderr
        finally:
            os.close(folder)
        server = refused_server(restored)
        assert server.returncode == 1
        assert "has a restore that was not finished" in server.stderr
        assert (restored / "records/ab/cd").exists()
        run = ctl("restore", f"--data_dir={restored}", str(backup))
        assert run.returncode == 0, run.stderr
        assert {path.name for path in restored.iterdir()} == {"catalogue.db", "records"}
        assert not (restored / "records/ab/cd").exists()

    def test_a_server_waits_for_the_directory_that_is_there(self, tmp_path: Path) -> None:
        """A restore that fails removes the directory that it made; another one makes it anew."""
        restored, log = tmp_path / "restored", tmp_path / "log"
        waiting = [server_binary(), "--listen=127.0.0.1:0", f"--data_dir={restored}"]
        waiting += ["--data_dir_lock_wait=600s", f"--port_file={tmp_path / 'port'}"]

        def locked() -> int:
            restored.mkdir()
            folder = os.open(restored, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
            return folder

        first = locked()
        with log.open("wb") as out:
            server = subprocess.Popen(waiting, stdout=out, stderr=out)
        try:
            assert eventually(lambda: log.read_text().count("waiting_for_data_dir") == 1)
            restored.rmdir()
            second = locked()
            os.close(first)
            assert eventually(lambda: log.read_text().count("waiting_for_data_dir") == 2)
            assert list(restored.iterdir()) == []
            os.close(second)
            assert eventually((tmp_path / "port").exists), log.read_text()
            assert (restored / "catalogue.db").exists()
        finally:
            server.kill()
            server.wait()

    def test_sessions_of_a_server_that_did_not_mind_an_unfinished_restore_live_on(
        self, data_dir: Path
    ) -> None:
        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            sessions = {client.bind_model("level", [{"sparsity": 0.5}], LAYERS).id}
        (data_dir / "catalogue.db.unfinished").write_text("half")
        with ServerProcess(f"--data_dir={data_dir}") as server, nc.Client(server.address) as client:
            assert {session.id for session in client.sessions()} == sessions

    def test_nothing_is_restored_beneath_a_server(self, backup: Path, tmp_path: Path) -> None:
        restored = tmp_path / "restored"
        with ServerProcess(f"--data_dir={restored}"):
            run = ctl("restore", f"--data_dir={restored}", str(backup))
            assert run.returncode == 1
            assert f"a server, or another backup or restore, uses '{restored}'" in run.stderr

    def test_nothing_else_is_removed_to_make_room(self, backup: Path, tmp_path: Path) -> None:
        restored = tmp_path / "restored"
        restored.mkdir()
        for left in ("catalogue.db", "catalogue.db.unfinished", "notes"):
            (restored / left).write_text("somebody's")
        run = ctl("restore", f"--data_dir={restored}", str(backup))
        assert run.returncode == 1
        assert "is not empty" in run.stderr
        assert len(list(restored.iterdir())) == 3

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
    @pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
    def test_what_root_restores_is_the_servers(
        self, data_dir: Path, backup: Path, tmp_path: Path, there: bool
    ) -> None:
        owner = 10001
        for path in (data_dir, *data_dir.rglob("*")):
            os.chown(path, owner, owner)
        again, restored = tmp_path / "again", tmp_path / "restored"
        if there:
            again.mkdir()
            restored.mkdir()
        for run in (
            ctl("backup", f"--data_dir={data_dir}", str(again)),
            ctl("restore", f"--data_dir={restored}", str(again)),
        ):
            assert run.returncode == 0, run.stderr
        for path in (again, *again.rglob("*"), restored, *restored.rglob("*")):
            assert (path.stat().st_uid, path.stat().st_gid) == (owner, owner), path
        assert any(path.is_file() for path in (restored / "records").rglob("*"))

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
    def test_a_backup_goes_where_root_may_not_set_owners(
        self, data_dir: Path, backup: Path, tmp_path: Path
    ) -> None:
        """As on a network file system that takes root for nobody."""
        for path in (data_dir, *data_dir.rglob("*"), backup, *backup.rglob("*")):
            os.chown(path, 10001, 10001)
        no_chown = ("setpriv", "--bounding-set=-chown", "--inh-caps=-chown")
        run = ctl("backup", f"--data_dir={data_dir}", str(tmp_path / "again"), within=no_chown)
        assert run.returncode == 0, run.stderr
        assert (tmp_path / "again/catalogue.db").stat().st_uid == 0
        # A server could not open it.
        run = ctl("restore", f"--data_dir={tmp_path}/restored", str(backup), within=no_chown)
        assert run.returncode == 1
        assert "cannot set the owner of" in run.stderr
        assert not (tmp_path / "restored").exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
    def test_a_lock_that_cannot_be_the_servers_is_not_left_behind(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        ServerProcess(f"--data_dir={data_dir}").stop()
        for path in (data_dir, *data_dir.rglob("*")):
            os.chown(path, 10001, 10001)
        keep = data_dir / "keep-files"
        keep.unlink()
        no_chown = ("setpriv", "--bounding-set=-chown", "--inh-caps=-chown")
        run = ctl("backup", f"--data_dir={data_dir}", str(tmp_path / "again"), within=no_chown)
        assert run.returncode == 1
        assert f"cannot set the owner of '{keep}'" in run.stderr
        assert not keep.exists()

    def test_a_backup_is_made_in_a_namespace_that_lacks_the_owner(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        alone = ("unshare", "--user", "--map-root-user")
        if os.geteuid() != 0 or subprocess.run([*alone, "true"], check=False).returncode != 0:
            pytest.skip("needs root, and user namespaces")
        ServerProcess(f"--data_dir={data_dir}").stop()
        for path in (data_dir, *data_dir.rglob("*")):
            os.chown(path, 10001, 10001)
            path.chmod(0o755 if path.is_dir() else 0o666)  # root of the namespace is another user
        data_dir.chmod(0o777)
        for parent in data_dir.parents[:3]:
            parent.chmod(0o777)
        run = ctl("backup", f"--data_dir={data_dir}", str(tmp_path / "again"), within=alone)
        assert run.returncode == 0, run.stderr

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
    @pytest.mark.parametrize("left", ["nothing", "the server's", "root's"])
    def test_the_lock_stays_the_servers_when_root_makes_the_backup(
        self, data_dir: Path, tmp_path: Path, left: str
    ) -> None:
        owner = 10001
        ServerProcess(f"--data_dir={data_dir}").stop()
        keep = data_dir / "keep-files"
        for path in (data_dir, *data_dir.iterdir()):
            os.chown(path, owner, owner)
        if left == "nothing":  # as the first version leaves it
            keep.unlink(missing_ok=True)
        if left == "root's":  # as the first version's backup leaves it
            os.chown(keep, 0, 0)
        run = ctl("backup", f"--data_dir={data_dir}", str(tmp_path / "backup"))
        assert run.returncode == 0, run.stderr
        assert keep.stat().st_uid == owner
        assert {path.stat().st_uid for path in data_dir.iterdir()} == {owner}

    def test_a_link_in_place_of_the_lock_is_not_followed(
        self, data_dir: Path, tmp_path: Path
    ) -> None:
        ServerProcess(f"--data_dir={data_dir}").stop()
        keep, elsewhere = data_dir / "keep-files", tmp_path / "elsewhere"
        keep.unlink(missing_ok=True)
        keep.symlink_to(elsewhere)
        run = ctl("backup", f"--data_dir={data_dir}", str(tmp_path / "backup"))
        assert run.returncode == 1
        assert str(keep) in run.stderr
        with ServerProcess(f"--data_dir={data_dir}") as server:
            assert "event=files_not_removed" in server.log()
            assert str(keep) in server.log()
        assert not elsewhere.exists()

    def test_damage_and_wrong_directories_are_refused(self, data_dir: Path, tmp_path: Path) -> None:
        backup = tmp_path / "backup"
        with (
            ServerProcess(f"--data_dir={data_dir}") as server,
            nc.Client(server.address, timeout=60) as client,
        ):
            session = client.bind_model("level", [{"sparsity": 0.5}], [BIG])
            session.calc_mask({"big": weights(1)["big"]})
            assert ctl("backup", f"--data_dir={data_dir}", str(backup)).returncode == 0
        again = ctl("backup", f"--data_dir={data_dir}", str(backup))
        assert again.returncode == 1
        assert "not empty" in again.stderr
        assert "catalogue.db" in ctl("restore", f"--data_dir={tmp_path}/x", str(tmp_path)).stderr
        (file,) = (path for path in (backup / "records").rglob("*") if path.is_file())
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[:-1])
        restored = tmp_path / "restored"
        damaged = ctl("restore", f"--data_dir={restored}", str(backup))
        assert damaged.returncode == 1
        assert "is damaged" in damaged.stderr
        assert not restored.exists()
