"""A real server for every test module, on a free port."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))


def server_binary():
    default = ROOT / "build/release/server/compression_server"
    return pathlib.Path(os.environ.get("COMPRESSION_SERVER_BINARY", default))


@pytest.fixture(scope="session")
def server_address(tmp_path_factory):
    """HOST:PORT of a running server; the environment of the tests names it."""
    folder = tmp_path_factory.mktemp("server")
    port_file = folder / "port"
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            [server_binary(), "--listen=127.0.0.1:0", f"--port_file={port_file}"],
            stdin=subprocess.DEVNULL,
            stderr=log,
        ) as process,
    ):
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the server did not start in 60 s"
            time.sleep(0.02)
        address = f"127.0.0.1:{port_file.read_text().strip()}"
        os.environ["NNI_COMPRESSION_SERVER"] = address
        yield address
        process.terminate()
        assert process.wait(60) == 0, "the server did not drain"
