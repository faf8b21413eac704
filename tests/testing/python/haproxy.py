"""deploy/haproxy.cfg in the real HAProxy."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from certificates import Authority
from servers import ROOT, START_TIMEOUT

# $HAPROXY is that of another version.
HAPROXY = (
    os.environ.get("HAPROXY")
    or shutil.which("haproxy")
    or shutil.which("haproxy", path="/usr/sbin")
)


@dataclass(frozen=True)
class Behind:
    """A server behind the proxy, on this host."""

    address: str
    metrics_port: int


class Proxy:
    """HAProxy as deployed, but for addresses, the certificate and how often it looks.

    A context manager that stops it. `changes` are further replacements, by patterns that are found
    once in the file.
    """

    def __init__(
        self,
        folder: Path,
        servers: Sequence[Behind],
        authority: Authority | None = None,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        authority = authority or Authority(folder, "proxy-authority")
        issued = authority.issue("localhost", names="DNS:localhost")
        self.ca = authority.certificate
        both = folder / "certificate.pem"
        both.write_bytes(issued.certificate.read_bytes() + issued.key.read_bytes())
        self.port = _free_port()
        self.address = f"localhost:{self.port}"
        lines = "".join(
            f"  server s{i} {server.address} proto h2 check check-proto h1"
            f" port {server.metrics_port}\n"
            for i, server in enumerate(servers)
        )
        config = (ROOT / "deploy/haproxy.cfg").read_text()
        for pattern, text in {
            **(changes or {}),
            r"bind :50051 ssl crt \S+": f"bind 127.0.0.1:{self.port} ssl crt {both}",
            r"  server-template .*\n": lines,
            r"inter 1s": "inter 50ms",
            # On a busy machine an answer takes longer than that.
            r"  option httpchk": "  timeout check 30s\n  option httpchk",
            r"resolvers docker\n(  .*\n)+": "",
        }.items():
            config, found = re.subn(pattern, lambda _, text=text: text, config)
            assert found == 1, f"{pattern} is {found} times in haproxy.cfg"
        (folder / "haproxy.cfg").write_text(config)
        self._log = folder / "haproxy.log"
        command = [str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def log(self) -> str:
        """What HAProxy has written so far."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()

    def _wait(self) -> None:
        """Until it listens."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"HAProxy did not listen in {START_TIMEOUT} s:\n{self.log()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
