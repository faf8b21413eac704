"""deploy/haproxy.cfg in the real HAProxy, with two servers behind it."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
from hyperframe.frame import ContinuationFrame

import nni_compression as nc
from certificates import Authority
from haproxy import HAPROXY, Behind, Proxy
from http2 import Peer
from metered import Metered, eventually
from nni_compression._wire import compression_pb2 as pb
from servers import ROOT, ServerProcess, add_tenant
from usage import Peers

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

CONFIGURATION = (ROOT / "deploy/haproxy.cfg").read_text()
LAYER = nc.Layer("fc", "Linear", (64, 64))
CONFIG = [{"sparsity": 0.5}]
METHOD = "nni.compression.v1.CompressionService/ListSessions"
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def channel_to(proxy: Proxy) -> grpc.Channel:
    return grpc.secure_channel(proxy.address, grpc.ssl_channel_credentials(proxy.ca.read_bytes()))


class Caller:
    """Calls with a route of its own, as a session's client makes them."""

    def __init__(
        self, channel: grpc.Channel, route: str, credentials: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._channel = channel
        self._metadata = [("nni-route", route), *credentials]

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
    behind = [Behind(server.address, server.metrics_port) for server in pair]
    with Proxy(tmp_path, behind) as running:
        yield running


def sessions(server: ServerProcess) -> set[str]:
    with nc.Client(server.address) as client:
        return {info.id for info in client.sessions()}


def test_every_session_stays_on_its_server(proxy: Proxy, pair: list[Metered]) -> None:
    with channel_to(proxy) as channel, channel_to(proxy) as other:
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
    with channel_to(proxy) as channel:
        opened = {}
        while len(sessions(pair[0])) == 0 or len(sessions(pair[1])) == 0:
            route = f"route-{len(opened)}"
            opened[Caller(channel, route).bind()] = route
        lost = sessions(pair[0])
        ports = {"port": pair[0].port, "metrics_port": pair[0].metrics_port}
        pair[0].kill()
        for session in lost:
            assert outcome(Caller(channel, opened[session]), session) == UNAVAILABLE
        assert eventually(lambda: "Server servers/s0 is DOWN" in proxy.log())
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


def test_nobody_notices_that_connections_to_servers_have_an_age(tmp_path: Path) -> None:
    with (
        Metered(tmp_path, "--max_connection_age=300ms") as server,
        Proxy(tmp_path, [Behind(server.address, server.metrics_port)]) as proxy,
        channel_to(proxy) as channel,
    ):
        caller = Caller(channel, "route")
        session = caller.bind()
        peers = Peers(server.port)
        epoch = 0
        while peers.look() < 6:
            epoch += 1
            caller.epoch(session, epoch)


def http2(
    port: int, headers: list[tuple[str, str]], ca: Path | None, host: str = "127.0.0.1"
) -> tuple[str, dict[str, str]]:
    """Sends a request with these headers as they are, from this address; what came of it:
    "headers", "reset" or "closed", and the reply's headers."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(host, 0))
    if ca is not None:
        context = ssl.create_default_context(cafile=ca)
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
    with channel_to(proxy) as channel:
        session = Caller(channel, "mine").bind()
        outcome, headers = http2(proxy.port, ATTACKS[name], proxy.ca)
        assert outcome != "headers" or headers[":status"] == "400"
        assert proxy.process.poll() is None
        assert [server.process.poll() for server in pair] == [None, None]
        Caller(channel, "mine").epoch(session, 1)
    for server in pair:
        calls = 'nni_compression_calls_total{code="OK",method="ListSessions"}'
        assert server.samples()[calls] == 0, "a server was reached"
    good, headers = http2(proxy.port, [("te", "trailers")], proxy.ca)
    assert (good, headers[":status"]) == ("headers", "200")


def test_a_header_without_end_does_not_get_through(proxy: Proxy, pair: list[Metered]) -> None:
    """gRPC 1.51 would read all of it again with every frame."""
    with Peer(proxy.port, ca=proxy.ca) as peer:
        headers = peer.headers("nni.compression.v1.CompressionService/ListSessions")
        headers.flags.discard("END_HEADERS")
        headers.data += b"\x00\x03x-a\x7f\x81\xff\xff\xff\x03"  # a value of a gigabyte
        more = ContinuationFrame(headers.stream_id, data=b"a" * 16000)
        assert peer.send(headers)
        peer.flood(more.serialize(), 1000)
        assert peer.outcome(headers.stream_id) == "closed"
    assert proxy.process.poll() is None
    for server in pair:
        assert server.samples()['nni_compression_calls_total{code="OK",method="ListSessions"}'] == 0
    with channel_to(proxy) as channel:
        Caller(channel, "mine").bind()


def test_what_is_no_grpc_is_refused(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=proxy.ca)
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def knock(proxy: Proxy, data: bytes = b"", host: str = "127.0.0.1") -> socket.socket:
    """A connection from this address of the host, on which nothing but `data` is sent."""
    connection = socket.socket()
    connection.settimeout(30)
    connection.bind((host, 0))
    with contextlib.suppress(ConnectionError):  # it is closed at once
        connection.connect(("127.0.0.1", proxy.port))
        connection.sendall(data)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the proxy has closed it by now."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def table(stats: Path, name: str) -> str:
    """What is in one of HAProxy's tables."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(stats))
        connection.sendall(f"show table {name}\n".encode())
        with connection.makefile() as answer:
            return answer.read()


class TestStrangers:
    """What those who have no credentials can take from others."""

    @pytest.fixture
    def changes(self) -> dict[str, str]:
        """Of the limits, so that few connections reach them."""
        return {}

    @pytest.fixture
    def proxy(self, tmp_path: Path, changes: dict[str, str]) -> Iterator[Proxy]:
        add_tenant(tmp_path / "tenants", "anna")
        changes = {
            **changes,
            r"(?m)^global\n": f"global\n  stats socket {tmp_path}/stats mode 600 level admin\n",
        }
        with (
            Metered(tmp_path, f"--token_file={tmp_path}/tenants") as server,
            Proxy(
                tmp_path, [Behind(server.address, server.metrics_port)], changes=changes
            ) as proxy,
        ):
            yield proxy

    @staticmethod
    def answered(proxy: Proxy, host: str) -> bool:
        """Whether a call from this address gets as far as the server, which refuses it."""
        try:
            outcome, headers = http2(proxy.port, [("te", "trailers")], proxy.ca, host)
        except OSError:
            return False
        return outcome == "headers" and headers.get("grpc-status") == "16"

    # One thread: of several, each counts those that another is about to refuse.
    @pytest.mark.parametrize(
        "changes",
        [
            {
                "sc0_conn_cur gt 200": "sc0_conn_cur gt 4",
                r"maxconn 2000\n": "maxconn 2000\n  nbthread 1\n",
            }
        ],
    )
    def test_have_a_share_of_the_connections(self, proxy: Proxy, tmp_path: Path) -> None:
        # That which found out whether the proxy listens has ended.
        assert eventually(lambda: "conn_cur=0" in table(tmp_path / "stats", "addresses"))
        knocked = [knock(proxy) for _ in range(12)]
        assert eventually(lambda: sum(not is_closed(each) for each in knocked) == 4)
        assert self.answered(proxy, "127.0.0.2")
        assert not self.answered(proxy, "127.0.0.1")
        for each in knocked:
            each.close()
        assert eventually(lambda: self.answered(proxy, "127.0.0.1"))

    @pytest.mark.parametrize("changes", [{"sc0_conn_rate gt 400": "sc0_conn_rate gt 20"}])
    def test_connect_so_many_times_in_a_while(self, proxy: Proxy) -> None:
        assert self.answered(proxy, "127.0.0.3")

        def is_refused() -> bool:
            knock(proxy, host="127.0.0.3").close()
            return not self.answered(proxy, "127.0.0.3")

        assert eventually(is_refused)
        assert self.answered(proxy, "127.0.0.2")

    @pytest.mark.parametrize(
        "changes", [{"timeout client 65s": "timeout client 1s", "client-hs 10s": "client-hs 1s"}]
    )
    def test_are_dropped_when_they_never_begin_tls(self, proxy: Proxy) -> None:
        silent = [knock(proxy), knock(proxy, b"\x16\x03\x01\x02\x00\x01")]
        for each in silent:
            with each:
                assert each.recv(1) == b""

    def test_do_not_fill_the_table_of_routes(self, proxy: Proxy, tmp_path: Path) -> None:
        with channel_to(proxy) as channel:
            for i in range(3):
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    Caller(channel, f"stranger-{i}").bind()
                stream = channel.stream_stream("/nni.compression.v1.CompressionService/CalcMask")
                with pytest.raises(grpc.RpcError):
                    list(stream(iter([b""]), timeout=30, metadata=[("nni-route", f"s-{i}")]))
            assert "used:0" in table(tmp_path / "stats", "servers")
            token = add_tenant(tmp_path / "tenants", "bert")
            credentials = [("authorization", f"Bearer {token}")]
            caller = Caller(channel, "route-of-bert", credentials)

            def is_bound() -> bool:
                try:
                    return bool(caller.bind())
                except grpc.RpcError:
                    return False  # the server has not read the file again yet

            assert eventually(is_bound)
            assert "key=route-of-bert " in table(tmp_path / "stats", "servers")


def test_a_call_that_waits_outlives_the_limit_for_tls(pair: list[Metered], tmp_path: Path) -> None:
    """What `timeout client` is for other proxies, silence, is not a limit here."""
    changes = {"timeout client 65s": "timeout client 1s", "client-hs 10s": "client-hs 1s"}
    behind = [Behind(pair[0].address, pair[0].metrics_port)]
    with Proxy(tmp_path, behind, changes=changes) as proxy, channel_to(proxy) as channel:
        session = Caller(channel, "mine").bind()
        stream = channel.stream_stream("/nni.compression.v1.CompressionService/CalcMask")
        over = threading.Event()

        def messages() -> Iterator[bytes]:
            message = pb.CalcMaskRequest()
            message.open.session_id = session
            yield message.SerializeToString()
            over.wait(30)

        replies = stream(messages(), timeout=60, metadata=[("nni-route", "mine")])
        with knock(proxy) as silent:  # three limits in a row
            assert silent.recv(1) == b""
        for _ in range(2):
            with knock(proxy) as silent:
                assert silent.recv(1) == b""
        over.set()
        assert list(replies) == []
        assert replies.code() == OK


def test_large_tensors_come_through_unharmed(proxy: Proxy, pair: list[Metered]) -> None:
    layer = nc.Layer("fc", "Linear", (4096, 4096))
    weight = np.random.default_rng(4).normal(size=layer.shape).astype(np.float32)
    with nc.Client(proxy.address, tls=proxy.ca, timeout=120) as client:
        session = client.bind_model("level", CONFIG, [layer])
        through = session.calc_mask({"fc": weight})["fc"].to_numpy()
    with nc.Client(pair[0].address) as client:
        direct = client.bind_model("level", CONFIG, [layer]).calc_mask({"fc": weight})["fc"]
    assert np.array_equal(through, direct.to_numpy())


def test_a_client_cannot_say_who_it_is(tmp_path: Path) -> None:
    """The server believes the proxy, which knows nobody."""
    with (
        Metered(tmp_path, "--trusted_proxy=127.0.0.1") as server,
        Proxy(tmp_path, [Behind(server.address, server.metrics_port)]) as proxy,
    ):
        name = [("nni-client-name", "anna")]
        with grpc.insecure_channel(server.address) as channel:
            channel.unary_unary(f"/{METHOD}")(b"", timeout=30, metadata=name)
        with channel_to(proxy) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"/{METHOD}")(b"", timeout=30, metadata=name)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


class TestClientsWithCertificates:
    """What the comments of haproxy.cfg say, done."""

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path, "clients")

    @pytest.fixture
    def proxy(self, tmp_path: Path, authority: Authority) -> Iterator[Proxy]:
        verify = re.search(r"end the next line with: (.*)", CONFIGURATION)
        name = re.search(r"# (http-request set-header nni-client-name .*)", CONFIGURATION)
        assert verify is not None
        assert name is not None
        option = verify[1].replace("/etc/haproxy/clients.pem", str(authority.certificate))
        changes = {
            r"(?<=alpn h2)\n": f" {option}\n",
            re.escape(name[0]): name[1],
        }
        with (
            Metered(tmp_path, "--trusted_proxy=127.0.0.1") as server,
            Proxy(
                tmp_path, [Behind(server.address, server.metrics_port)], changes=changes
            ) as proxy,
        ):
            yield proxy

    def test_are_who_their_certificates_say(self, proxy: Proxy, authority: Authority) -> None:
        anna, bert = (
            nc.Tls(proxy.ca, made.certificate, made.key)
            for made in (authority.issue("anna"), authority.issue("bert"))
        )
        with (
            nc.Client(proxy.address, tls=anna) as client,
            nc.Client(proxy.address, tls=bert) as other,
        ):
            session = client.bind_model("level", CONFIG, [LAYER])
            assert [info.id for info in client.sessions()] == [session.id]
            assert other.sessions() == []

    def test_cannot_say_that_they_are_another(self, proxy: Proxy, authority: Authority) -> None:
        anna, bert = authority.issue("anna"), authority.issue("bert")
        with nc.Client(proxy.address, tls=nc.Tls(proxy.ca, anna.certificate, anna.key)) as client:
            client.bind_model("level", CONFIG, [LAYER])
        credentials = grpc.ssl_channel_credentials(
            proxy.ca.read_bytes(), bert.key.read_bytes(), bert.certificate.read_bytes()
        )
        with grpc.secure_channel(proxy.address, credentials) as channel:
            call = channel.unary_unary(f"/{METHOD}")
            for forged in ([("nni-client-name", "anna")], [("nni-client-name", "anna")] * 2):
                reply = call(b"", timeout=30, metadata=forged)
                assert list(pb.ListSessionsResponse.FromString(reply).sessions) == []

    def test_are_refused_without_one(self, proxy: Proxy) -> None:
        with (
            pytest.raises(nc.UnavailableError),
            nc.Client(proxy.address, tls=proxy.ca, connect_timeout=2, timeout=2) as client,
        ):
            client.sessions()
