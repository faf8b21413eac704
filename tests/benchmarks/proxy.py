"""What TLS costs, and HAProxy before the server, which ends it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from subprocess import Popen

import nni_compression as nc
import peers
from certificates import Authority
from haproxy import Behind, Proxy
from harness import Benchmark, Goal, Line, lines, quotients, rates
from huge import SIZE
from servers import ServerProcess

OPEN, TLS, PROXY = "not encrypted", "TLS", "TLS, ended by HAProxy"


def run(client: nc.Client) -> list[Benchmark]:
    del client
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder, "authority")
        issued = authority.issue("localhost", names="DNS:localhost,IP:127.0.0.1")
        pair = (f"--tls_certificate={issued.certificate}", f"--tls_key={issued.key}")
        port_file = folder / "metrics-port"
        metrics = ("--metrics_listen=127.0.0.1:0", f"--metrics_port_file={port_file}")
        with (
            ServerProcess() as plain,
            ServerProcess(*pair) as encrypted,
            ServerProcess(*metrics) as shielded,
            Proxy(
                folder, [Behind(shielded.address, int(port_file.read_text()))], authority
            ) as proxy,
        ):
            ways = {OPEN: plain.address, TLS: encrypted.address, PROXY: proxy.address}
            times = peers.native("ways", str(authority.certificate), *ways.values())
            used = {
                "server": processor_seconds(plain.process),
                "server with TLS": processor_seconds(encrypted.process),
                "HAProxy": processor_seconds(proxy.process),
                "server behind it": processor_seconds(shielded.process),
            }
    uploads, epochs = (
        {way: times[kind][address] for way, address in ways.items()} for kind in ("upload", "epoch")
    )
    sent = len(uploads[TLS]) + 2  # one decides the mask, and the first round does not count
    goal = Goal(
        "T1",
        "4 GB through HAProxy, of the rate of TLS without it",
        0.70,
        quotients(uploads[TLS], uploads[PROXY]),
    )
    return [
        Benchmark(
            "Upload of 4 GB from C++",
            rates(uploads, TLS, SIZE),
            "Trainer, proxy and server share the cores; on hosts of their own they would not.",
            goals=[goal],
        ),
        Benchmark(
            "Processor time of an upload of 4 GB",
            [Line(name, "s", [total / sent]) for name, total in used.items()],
        ),
        Benchmark("UpdateEpoch from C++", lines(epochs, TLS)),
    ]


def processor_seconds(process: Popen[bytes]) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
