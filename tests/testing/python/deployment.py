"""Runs the server of an image behind HAProxy, and the quickstart's trainer against it.

    deployment.py CONTAINER

`buildah` made the container and does not isolate its network, so ports 50051 and 9464 have to be
free. tests/deployment.sh runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haproxy import Behind, Proxy
from servers import ROOT, START_TIMEOUT, STOP_TIMEOUT

USER = 10001
TOKENS = "--tokens=/etc/compression/tenants"
DATA, ACCESS = "/var/lib/compression", "/etc/compression"


class Image:
    """The image that a container was made from, with volumes as `docker run -v` has them."""

    def __init__(self, container: str, volumes: Path) -> None:
        inspected = subprocess.run(
            ["buildah", "inspect", container], check=True, stdout=subprocess.PIPE
        )
        self.config: dict[str, Any] = json.loads(inspected.stdout)["Docker"]["config"]
        mounted = subprocess.run(
            ["buildah", "mount", container], check=True, stdout=subprocess.PIPE, text=True
        )
        self.root = Path(mounted.stdout.strip())
        self._container = container
        self._volumes = {DATA: volumes / "data", ACCESS: volumes / "access"}
        for folder in self._volumes.values():
            folder.mkdir()
            os.chown(folder, USER, USER)

    def command(self, *arguments: str) -> list[str]:
        """What runs these arguments in the container."""
        volumes = [f"--volume={here}:{there}" for there, here in self._volumes.items()]
        return ["buildah", "run", *volumes, self._container, "--", *arguments]

    def healthcheck(self) -> list[str]:
        kind, *arguments = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        return self.command(*arguments)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(found.stat().st_size for found in self._files() if found.is_file())

    def writable(self) -> list[str]:
        """What its user could change, beside the volumes."""
        found = []
        for path in self._files():
            facts = path.lstat()
            inside = f"/{path.relative_to(self.root)}"
            open_to_all = facts.st_mode & stat.S_IWOTH and not path.is_symlink()
            if inside not in self._volumes and (facts.st_uid == USER or open_to_all):
                found.append(inside)
        return found

    def _files(self) -> Iterator[Path]:
        return self.root.rglob("*")


@contextlib.contextmanager
def serving(image: Image, log: Path) -> Iterator[None]:
    """The server as the image starts it, but for the file of tokens; it has to drain in the end."""
    command = image.command(*image.config["Entrypoint"], "--token_file=/etc/compression/tenants")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline = time.monotonic() + START_TIMEOUT
    while subprocess.run(image.healthcheck(), capture_output=True).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    yield
    os.kill(server_pid(), signal.SIGTERM)
    assert process.wait(STOP_TIMEOUT) == 0, log.read_text()
    assert subprocess.run(image.healthcheck(), capture_output=True).returncode == 1


def server_pid() -> int:
    """Of the one server among this namespace's processes."""
    name = "compression_server"[:15]  # as the kernel keeps it
    return int(subprocess.run(["pgrep", "-x", name], check=True, stdout=subprocess.PIPE).stdout)


def use(image: Image, folder: Path, token: str) -> None:
    """Runs the trainer: without a token it gets nowhere, with it all goes well."""
    with Proxy(folder, [Behind("127.0.0.1:50051", 9464)]) as proxy:
        environment = {
            **os.environ,
            "NNI_COMPRESSION_SERVER": proxy.address,
            "NNI_COMPRESSION_TLS_CA": str(proxy.ca),
        }
        trainer = [sys.executable, str(ROOT / "client/python/examples/digits.py")]
        stranger = subprocess.run(trainer, env=environment, capture_output=True, text=True)
        assert "UnauthenticatedError" in stranger.stderr, stranger.stderr
        environment["NNI_COMPRESSION_TOKEN"] = token
        subprocess.run(trainer, env=environment, check=True)
    with urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=10) as reply:
        metrics = reply.read().decode()
    calls = re.search(r'calls_total{code="OK",method="CalcMask"} (\d+)', metrics)
    assert calls is not None, metrics
    assert int(calls[1]) > 0, "the trainer had another server"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = Image(sys.argv[1], folder)
        print(f"the image has {image.size() / 1e6:.0f} MB")
        assert image.config["User"] == f"{USER}:{USER}", image.config["User"]
        assert image.writable() == [], image.writable()
        add = image.command("compressionctl", "tenant", "add", "trainer", TOKENS)
        added = subprocess.run(
            add, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert added.stdout.strip(), "compressionctl printed no token"
        with serving(image, folder / "server.log"):
            use(image, folder, added.stdout.strip())
        print("the trainer ran in a container's server, through the proxy, with TLS and a token")


if __name__ == "__main__":
    main()
