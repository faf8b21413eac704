"""Servers on real disks of their own that are full or may only be read.

tests/server/storage/faulty_disk_test.cc lets every operation of a disk fail; here the
kernel does it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import nni_compression as nc
from metered import eventually
from servers import ServerProcess

# A file system that no other process sees.
MOUNTING = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
BIG = nc.Layer("big", "Linear", (1024, 1024))  # a mask of 128 KiB
AGP = [{"final_sparsity": 0.9, "end_epoch": 12, "op_types": ["default"]}]


def disk_at(folder: Path, options: str) -> list[str]:
    """The command that mounts a disk at the folder and becomes what is appended to it."""
    folder.mkdir()
    script = 'mount -t tmpfs -o "$0" none "$1" && shift && exec "$@"'
    return [*MOUNTING, "sh", "-c", script, options, str(folder)]


def can_mount(folder: Path) -> bool:
    return subprocess.run([*disk_at(folder, "size=1m"), "true"], check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if not can_mount(tmp_path / "trial"):
        pytest.skip("mounting is not allowed here")
    return tmp_path / "disk"


def bind(client: nc.Client) -> nc.Session:
    session = client.bind_model("agp", AGP, [BIG])
    session.update_epoch(6)
    return session


def weight(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=BIG.shape).astype(np.float32)


def test_a_disk_that_may_only_be_read_is_refused_at_the_start(disk: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)status 1:.*Read-only file system") as caught:
        ServerProcess(f"--data_dir={disk}/data", wrapper=disk_at(disk, "size=1m,ro"))
    assert f"{disk}/data" in str(caught.value)


def fill_up(file: Path) -> None:
    """Takes all that is left of a disk."""
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while filler.write(b"\0" * size) == size:
                    pass


def test_a_session_ends_though_nothing_at_all_is_left(disk: Path) -> None:
    with (
        ServerProcess(f"--data_dir={disk}/data", wrapper=disk_at(disk, "size=8m")) as server,
        nc.Client(server.address, timeout=60) as client,
    ):
        sessions = [bind(client) for _ in range(20)]
        for seed, session in enumerate(sessions):
            session.calc_mask({"big": weight(seed)})
        mounted = Path(f"/proc/{server.process.pid}/root{disk}")
        fill_up(mounted / "filler")
        with pytest.raises(nc.ResourceExhaustedError):
            bind(client).calc_mask({"big": weight(1000)})
        for session in sessions:
            session.close()
        assert all(client.session_info(session.id).state == "closed" for session in sessions)
        # Their masks' room is there for others, and the server has its reserve again.
        last = bind(client)
        assert eventually(lambda: len(list(mounted.glob("data/records/*/*"))) == 0)
        last.calc_mask({"big": weight(1000)})
        assert eventually(lambda: (mounted / "data/reserve").stat().st_size == 1 << 20)


def test_sessions_that_end_make_room_on_a_full_disk(disk: Path) -> None:
    with (
        ServerProcess(f"--data_dir={disk}/data", wrapper=disk_at(disk, "size=5m")) as server,
        nc.Client(server.address, timeout=60) as client,
    ):
        sessions = [bind(client) for _ in range(40)]  # with room for the masks of about half
        masked = 0

        def fill() -> None:
            nonlocal masked
            for session in sessions:
                session.calc_mask({"big": weight(masked)})
                masked += 1

        with pytest.raises(nc.ResourceExhaustedError, match="No space left on device|full"):
            fill()
        assert "session_not_saved" in server.log()
        for session in sessions[: masked // 2]:
            session.close()
        refused = sessions[masked]
        # Files of closed sessions go when the server has nothing else to do.
        deadline = time.monotonic() + 30
        while True:
            try:
                mask = refused.calc_mask({"big": weight(1000)})["big"]
                break
            except nc.ResourceExhaustedError:
                assert time.monotonic() < deadline
        with ServerProcess() as other, nc.Client(other.address, timeout=60) as elsewhere:
            expected = bind(elsewhere).calc_mask({"big": weight(1000)})["big"]
        # The weight whose call failed has decided nothing.
        np.testing.assert_array_equal(mask.to_numpy(), expected.to_numpy())
