"""deploy/haproxy.cfg in the real HAProxy, with two servers behind it."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from servers import ROOT, ServerProcess
from test_metrics import Metered, eventually

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

LAYER = nc.Layer("fc", "Linear", (64, 64))
CONFIG = [{"sparsity": 0.5}]
METHOD = "nni.compression.v1.CompressionService/ListSessions"


OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """HAProxy as deployed, but for addresses and the certificate."""

    def __init__(self, folder: Path, servers: list[Metered]) -> None:
        make = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
            " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
            f" -keyout {folder}/key -out {folder}/certificate"
        )
        subprocess.run(make.split(), check=True, capture_output=True)
        self.certificate = (folder / "certificate").read_bytes()
        both = folder / "certificate.pem"
        both.write_bytes(self.certificate + (folder / "key").read_bytes())
        self.port = free_port()
        config = (ROOT / "deploy/haproxy.cfg").read_text()
        lines = "".join(
            f"  server s{i} {server.address} proto h2 check check-proto h1"
            f" port {server.metrics_port}\n"
            for i, server in enumerate(servers)
        )
        for pattern, text in (
            (r":50051 ssl crt \S+", f"127.0.0.1:{self.port} ssl crt {both}"),
            (r"  server-template .*\n", lines),
            (r"inter 1s", "inter 50ms"),
            (r"resolvers docker\n(  .*\n)+", ""),
        ):
            config, found = re.subn(pattern, lambda _, text=text: text, config)
            assert found == 1, pattern
        (folder / "haproxy.cfg").write_text(config)
        self.log = folder / "haproxy.log"
        command = [HAPROXY, "-db", "-f", str(folder / "haproxy.cfg")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        assert eventually(self._listens), self.log.read_text()

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(
            f"localhost:{self.port}", grpc.ssl_channel_credentials(self.certificate)
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Caller:
    """Calls with a route of its own, as a session's client makes them."""

    def __init__(self, channel: grpc.Channel, route: str) -> None:
        self._channel = channel
        self._metadata = [("nni-route", route)]

    def __call__(self, method: str, request: bytes) -> bytes:
        call = self._channel.unary_unary(f"/nni.compression.v1.CompressionService/{method}")
        reply: bytes = call(request, timeout=30, metadata=self._metadata)
        return reply

    def bind(self) -> str:
        request = pb.BindModelRequest(algorithm="level", framework="generic")
        request.config_list.add().update({"sparsity": 0.5})
        request.layers.add(
            name="fc", op_type="Linear", dtype=pb.DATA_TYPE_FLOAT32, shape=LAYER.shape
        )
        return pb.BindModelResponse.FromString(
            self("BindModel", request.SerializeToString())
        ).session_id

    def epoch(self, session: str, epoch: int) -> None:
        request = pb.UpdateEpochRequest(session_id=session, epoch=epoch)
        self("UpdateEpoch", request.SerializeToString())


def outcome(caller: Caller, session: str) -> grpc.StatusCode:
    """How an UpdateEpoch of the session ends."""
    try:
        caller.epoch(session, 2)
    except grpc.RpcError as error:
        return error.code()
    return OK


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Metered]]:
    started = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        started.append(Metered(folder, f"--data_dir={folder}/data"))
    yield started
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def proxy(pair: list[Metered], tmp_path: Path) -> Iterator[Proxy]:
    running = Proxy(tmp_path, pair)
    yield running
    running.stop()


def sessions(server: ServerProcess) -> set[str]:
    with nc.Client(server.address) as client:
        return {info.id for info in client.sessions()}


def test_every_session_stays_on_its_server(proxy: Proxy, pair: list[Metered]) -> None:
    with proxy.channel() as channel, proxy.channel() as other:
        callers = [Caller(channel, f"route-{i}") for i in range(24)]
        opened = {caller.bind(): f"route-{i}" for i, caller in enumerate(callers)}
        # On another connection, too.
        for session, route in opened.items():
            Caller(other, route).epoch(session, 1)
    first, second = (sessions(server) for server in pair)
    assert first | second == set(opened)
    assert first, "the routes spread"
    assert second, "the routes spread"
    assert not first & second


def test_sessions_of_a_server_that_is_away_wait_for_it(
    proxy: Proxy, pair: list[Metered], tmp_path: Path
) -> None:
    with proxy.channel() as channel:
        opened = {}
        while len(sessions(pair[0])) == 0 or len(sessions(pair[1])) == 0:
            route = f"route-{len(opened)}"
            opened[Caller(channel, route).bind()] = route
        lost = sessions(pair[0])
        ports = {"port": pair[0].port, "metrics_port": pair[0].metrics_port}
        pair[0].kill()
        for session in lost:
            assert outcome(Caller(channel, opened[session]), session) == UNAVAILABLE
        assert eventually(lambda: "Server servers/s0 is DOWN" in proxy.log.read_text())
        for session in lost:  # not sent to the other one, which would say NOT_FOUND
            assert outcome(Caller(channel, opened[session]), session) == UNAVAILABLE
        for i in range(8):
            assert Caller(channel, f"new-{i}").bind() in sessions(pair[1])
        pair[0] = Metered(tmp_path / "a", f"--data_dir={tmp_path}/a/data", **ports)

        def goes_on() -> grpc.StatusCode:
            """How the first of their calls that fails does so."""
            for session in lost:
                code = outcome(Caller(channel, opened[session]), session)
                if code != OK:
                    return code
            return OK

        codes = []
        assert eventually(lambda: codes.append(goes_on()) or codes[-1] == OK)
        assert set(codes) <= {UNAVAILABLE, OK}


def http2(
    port: int, headers: list[tuple[str, str]], certificate: bytes | None
) -> tuple[str, dict[str, str]]:
    """Sends a request with these headers as they are; what came of it: "headers", "reset" or
    "closed", and the reply's headers."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    if certificate is not None:
        context = ssl.create_default_context(cadata=certificate.decode())
        context.set_alpn_protocols(["h2"])
        raw = context.wrap_socket(raw, server_hostname="localhost")
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", f"/{METHOD}"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            *headers,
        ],
    )
    connection.send_data(1, b"\0\0\0\0\0", end_stream=True)
    with raw:
        raw.sendall(connection.data_to_send())
        while data := raw.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return "headers", dict(event.headers)
                if isinstance(event, h2.events.StreamReset):
                    return "reset", {}
                if isinstance(event, h2.events.ConnectionTerminated):
                    return "closed", {}
            raw.sendall(connection.data_to_send())
    return "closed", {}


LARGE = [(f"x-{i}", "a" * 3000) for i in range(3)]
ATTACKS = {
    "a te that is none with large headers": [("te", "x"), *LARGE],
    "a te that is none": [("te", "x")],
    "two te": [("te", "trailers"), ("te", "x")],
    "large headers": [("te", "trailers"), *LARGE],
}


@pytest.mark.parametrize("name", ATTACKS)
def test_header_attacks_do_not_get_through(proxy: Proxy, pair: list[Metered], name: str) -> None:
    with proxy.channel() as channel:
        session = Caller(channel, "mine").bind()
        outcome, headers = http2(proxy.port, ATTACKS[name], proxy.certificate)
        assert outcome != "headers" or headers[":status"] == "400"
        assert proxy.process.poll() is None
        assert [server.process.poll() for server in pair] == [None, None]
        Caller(channel, "mine").epoch(session, 1)
    for server in pair:
        calls = 'nni_compression_calls_total{code="OK",method="ListSessions"}'
        assert server.samples()[calls] == 0, "a server was reached"
    good, headers = http2(proxy.port, [("te", "trailers")], proxy.certificate)
    assert (good, headers[":status"]) == ("headers", "200")


def test_what_is_no_grpc_is_refused(proxy: Proxy) -> None:
    context = ssl.create_default_context(cadata=proxy.certificate.decode())
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_large_tensors_come_through_unharmed(
    proxy: Proxy, pair: list[Metered], monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = grpc.ssl_channel_credentials(proxy.certificate)
    monkeypatch.setattr(
        grpc,
        "insecure_channel",
        lambda address, options: grpc.secure_channel(address, credentials, options),
    )
    layer = nc.Layer("fc", "Linear", (4096, 4096))
    weight = np.random.default_rng(4).normal(size=layer.shape).astype(np.float32)
    with nc.Client(f"localhost:{proxy.port}", timeout=120) as client:
        session = client.bind_model("level", CONFIG, [layer])
        through = session.calc_mask({"fc": weight})["fc"].to_numpy()
    monkeypatch.undo()
    with nc.Client(pair[0].address) as client:
        direct = client.bind_model("level", CONFIG, [layer]).calc_mask({"fc": weight})["fc"]
    assert np.array_equal(through, direct.to_numpy())
