"""Who is let in, what operators see, and how much a tenant may have."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import nni_compression as nc
from certificates import Authority
from nni_compression._wire import compression_pb2 as pb
from servers import SERVICE, ServerProcess, add_tenant, compressionctl

LAYER = nc.Layer("fc", "Linear", (512, 256))
CONFIG = [{"sparsity": 0.5}]
WEIGHT = np.random.default_rng(7).normal(size=LAYER.shape).astype(np.float32)
METHODS = [
    f"{SERVICE}/{m.name}" for m in pb.DESCRIPTOR.services_by_name["CompressionService"].methods
]
METHODS += ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"]
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CLIENT_NAME = "nni-client-name"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access") / "tenants"


@pytest.fixture(scope="module")
def ours(file: Path) -> str:
    return add_tenant(file, "us")


@pytest.fixture(scope="module")
def theirs(file: Path) -> str:
    return add_tenant(file, "them")


@pytest.fixture(scope="module")
def operators(file: Path) -> str:
    return add_tenant(file, "ops", "--admin")


@pytest.fixture(scope="module")
def guarded(file: Path, ours: str, theirs: str, operators: str) -> Iterator[ServerProcess]:
    with ServerProcess(f"--token_file={file}") as server:
        yield server


def status_of(address: str, method: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """How a call with an empty request ends; one that answers goes well."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{method}")(iter([b""]), metadata=metadata, timeout=30)
        try:
            next(call, None)  # a watch would go on
        except grpc.RpcError as error:
            return error.code()  # type: ignore[no-any-return]
        return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer guess"),), ((CLIENT_NAME, "us"),)],
    ids=["nothing", "a wrong token", "a forged name"],
)
def test_every_method_is_denied_to_strangers(
    guarded: ServerProcess, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    assert status_of(guarded.address, method, *metadata) == grpc.StatusCode.UNAUTHENTICATED


def test_reflection_is_not_there_where_callers_are_asked(guarded: ServerProcess, ours: str) -> None:
    for metadata in ((), (("authorization", f"Bearer {ours}"),)):
        status = status_of(guarded.address, REFLECTION, *metadata)
        assert status == grpc.StatusCode.UNIMPLEMENTED


def test_doubled_tokens_are_refused(guarded: ServerProcess, ours: str, theirs: str) -> None:
    method = "grpc.health.v1.Health/Check"
    bearer = ("authorization", f"Bearer {ours}")
    assert status_of(guarded.address, method, bearer) == grpc.StatusCode.OK
    for other in (ours, theirs, "guess"):
        doubled = (bearer, ("authorization", f"Bearer {other}"))
        assert status_of(guarded.address, method, *doubled) == grpc.StatusCode.UNAUTHENTICATED


def test_foreign_and_guessed_sessions_do_not_exist(
    guarded: ServerProcess, ours: str, theirs: str
) -> None:
    with (
        nc.Client(guarded.address, token=ours) as owner,
        nc.Client(guarded.address, token=theirs) as stranger,
        owner.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        bearer = ("authorization", f"Bearer {theirs}")
        for method, request in (
            ("GetSession", pb.GetSessionRequest(session_id=session.id)),
            ("KeepAlive", pb.KeepAliveRequest(session_id=session.id)),
            ("UpdateEpoch", pb.UpdateEpochRequest(session_id=session.id, epoch=1)),
            ("ReportResults", pb.ReportResultsRequest(session_id=session.id, results={"a": 1})),
            ("CloseSession", pb.CloseSessionRequest(session_id=session.id)),
            ("FindWeights", pb.FindWeightsRequest(session_id=session.id)),
            ("CalcMask", pb.CalcMaskRequest(open={"session_id": session.id})),
            ("QuantizeWeight", pb.QuantizeWeightRequest(open={"session_id": session.id})),
            ("Step", pb.StepRequest(open={"session_id": session.id})),
            ("Export", pb.ExportRequest(open={"session_id": session.id})),
        ):
            answers = []
            for name in (session.id, "0" * 32):
                wire = request.SerializeToString().replace(session.id.encode(), name.encode())
                with grpc.insecure_channel(guarded.address) as channel:
                    call = channel.stream_stream(f"/{SERVICE}/{method}")
                    with pytest.raises(grpc.RpcError) as raised:
                        list(call(iter([wire]), metadata=(bearer,), timeout=30))
                answers.append((raised.value.code(), raised.value.details().replace(name, "ID")))
            assert answers[0] == answers[1], method
            assert answers[0][0] == grpc.StatusCode.NOT_FOUND, method
        assert stranger.sessions() == []
        assert owner.session_info(session.id).state == "active"
        assert owner.session_info(session.id).epoch == 0
        assert owner.session_info(session.id).results == {}


def test_a_call_that_began_with_a_token_ends_though_it_is_revoked_meanwhile(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tenants"
    token = add_tenant(file, "us")
    with ServerProcess(f"--token_file={file}") as server:
        bearer = (("authorization", f"Bearer {token}"),)
        with nc.Client(server.address, token=token) as client:
            session = client.bind_model("level", CONFIG, [LAYER])
            compressionctl(f"--tokens={file}", "tenant", "revoke", "us")
            began = []

            def requests() -> Iterator[bytes]:
                began.append(True)
                yield pb.CalcMaskRequest(open={"session_id": session.id}).SerializeToString()
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    health = status_of(server.address, "grpc.health.v1.Health/Check", *bearer)
                    if health == grpc.StatusCode.UNAUTHENTICATED:
                        return

            with grpc.insecure_channel(server.address) as channel:
                call = channel.stream_stream(f"/{SERVICE}/CalcMask")
                assert list(call(requests(), metadata=bearer, timeout=90)) == []
            assert began
            with pytest.raises(nc.UnauthenticatedError):
                session.calc_mask({"fc": WEIGHT})


def test_operators_see_and_close_the_sessions_of_all(
    guarded: ServerProcess, ours: str, theirs: str, operators: str
) -> None:
    with (
        nc.Client(guarded.address, token=ours) as us,
        nc.Client(guarded.address, token=theirs) as them,
        nc.Client(guarded.address, token=operators) as ops,
        us.bind_model("level", CONFIG, [LAYER]) as first,
        them.bind_model("level", CONFIG, [LAYER]) as second,
    ):
        assert {(s.id, s.tenant) for s in ops.sessions()} == {(first.id, "us"), (second.id, "them")}
        assert [(s.id, s.tenant) for s in us.sessions()] == [(first.id, "")]
        assert ops.session_info(second.id).tenant == "them"
        assert us.session_info(first.id).tenant == ""
        with pytest.raises(nc.NotFoundError):
            ops.join(second.id).keep_alive()  # looking is not working with it
        text = compressionctl(f"--server={guarded.address}", "close", second.id)
        assert "closed" in text
        assert them.session_info(second.id).state == "closed"
        assert us.session_info(first.id).state == "active"


@pytest.fixture(autouse=True)
def environment(operators: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """compressionctl is called by an operator."""
    monkeypatch.setenv("NNI_COMPRESSION_TOKEN", operators)


def test_tenants_are_listed_with_what_they_use(
    guarded: ServerProcess, file: Path, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressionctl(f"--tokens={file}", "tenant", "quota", "us", "sessions=1000")
    with (
        nc.Client(guarded.address, token=ours) as client,
        client.bind_model("level", CONFIG, [LAYER]),
    ):
        text = compressionctl(f"--tokens={file}", f"--server={guarded.address}", "tenant", "list")
        rows = {line.split()[0]: line.split() for line in text.splitlines()}
        assert rows["us"][1] == "-"
        assert rows["us"][3:5] == ["sessions=1000", "1"]
        assert rows["ops"][1] == "admin"
        assert rows["them"][4] == "0"
    monkeypatch.setenv("NNI_COMPRESSION_TOKEN", ours)
    with pytest.raises(AssertionError, match="only operators"):
        compressionctl(f"--tokens={file}", f"--server={guarded.address}", "tenant", "list")


def limited(file: Path, *limits: str) -> str:
    """The token of a tenant with these limits."""
    token = add_tenant(file, "us")
    compressionctl(f"--tokens={file}", "tenant", "quota", "us", *limits)
    return token


def test_a_quota_of_sessions_counts_live_ones(tmp_path: Path) -> None:
    token = limited(tmp_path / "tenants", "sessions=2")
    other = add_tenant(tmp_path / "tenants", "them")
    with (
        ServerProcess(f"--token_file={tmp_path}/tenants") as server,
        nc.Client(server.address, token=token) as client,
        nc.Client(server.address, token=other) as them,
    ):
        first = client.bind_model("level", CONFIG, [LAYER])
        client.bind_model("level", CONFIG, [LAYER])
        expected = "quota of sessions is 2, of which 2 are in use"
        with pytest.raises(nc.ResourceExhaustedError, match=expected):
            client.bind_model("level", CONFIG, [LAYER], timeout=0.5)
        them.bind_model("level", CONFIG, [LAYER])
        first.close()
        client.bind_model("level", CONFIG, [LAYER])


def test_a_quota_of_memory_counts_tensors_under_way_and_states(tmp_path: Path) -> None:
    token = limited(tmp_path / "tenants", "memory=300K")
    with (
        ServerProcess(f"--token_file={tmp_path}/tenants") as server,
        nc.Client(server.address, token=token) as client,
    ):
        session = client.bind_model("level", CONFIG, [LAYER])
        with pytest.raises(nc.ResourceExhaustedError, match=r"quota of memory is 307200"):
            session.calc_mask({"fc": WEIGHT})  # 512 KiB: no waiting helps
        assert client.stats.retries == 0
        compressionctl(f"--tokens={tmp_path}/tenants", "tenant", "quota", "us", "memory=1M")
        deadline = time.monotonic() + 60
        while True:  # the server looks at its file once a second
            try:
                assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == WEIGHT.size // 2
                break
            except nc.ResourceExhaustedError:
                assert time.monotonic() < deadline


def test_quotas_of_disk_and_uploads_are_set_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tenants"
    token = limited(file, "disk=1")
    monkeypatch.setenv("NNI_COMPRESSION_TOKEN", add_tenant(file, "ops", "--admin"))

    def limit(*limits: str) -> None:
        compressionctl(f"--tokens={file}", "tenant", "quota", "us", *limits)

    with (
        ServerProcess(f"--token_file={file}", f"--data_dir={tmp_path}/data") as server,
        nc.Client(server.address, token=token) as client,
    ):
        with pytest.raises(nc.ResourceExhaustedError, match="quota of disk is 1, of which 0 are"):
            client.bind_model("level", CONFIG, [LAYER])
        limit("disk=1M")
        deadline = time.monotonic() + 60
        while True:  # the server looks at its file once a second
            try:
                session = client.bind_model("level", CONFIG, [LAYER])
                break
            except nc.ResourceExhaustedError:
                assert time.monotonic() < deadline
        assert WEIGHT.size / 8 < client.session_info(session.id).disk_bytes < 1 << 20
        session.calc_mask({"fc": WEIGHT})
        limit("uploads=0")

        def call_until_the_limit_is_read() -> None:
            while time.monotonic() < deadline:
                session.calc_mask({"fc": WEIGHT})

        with pytest.raises(nc.ResourceExhaustedError, match="quota of uploads is 0"):
            call_until_the_limit_is_read()
        text = compressionctl(
            "--json", f"--tokens={file}", f"--server={server.address}", "tenant", "list"
        )
        (us,) = (row for row in json.loads(text)["tenants"] if row["tenant"] == "us")
        assert us["limits"] == {"disk": 1 << 20, "uploads": 0}
        assert us["use"]["disk_bytes"] == client.session_info(session.id).disk_bytes


def test_a_quota_of_calls_says_when_to_come_again(tmp_path: Path) -> None:
    token = limited(tmp_path / "tenants", "calls=1")
    operator = (("authorization", f"Bearer {add_tenant(tmp_path / 'tenants', 'ops', '--admin')}"),)
    with ServerProcess(f"--token_file={tmp_path}/tenants") as server:
        bearer = (("authorization", f"Bearer {token}"),)
        with (
            grpc.insecure_channel(server.address) as channel,
            nc.Client(server.address, token=token) as client,
        ):
            session = client.bind_model("level", CONFIG, [LAYER])
            release = socket.socketpair()

            def requests() -> Iterator[bytes]:
                yield pb.ExportRequest(open={"session_id": session.id}).SerializeToString()
                release[0].recv(1)

            def wait_for_calls(number: int) -> None:
                deadline = time.monotonic() + 30
                running = None
                while running != number:
                    assert time.monotonic() < deadline
                    reply = channel.unary_unary(f"/{SERVICE}/ListTenants")(b"", metadata=operator)
                    tenants = pb.ListTenantsResponse.FromString(reply).tenants
                    (running,) = [use.calls for use in tenants if use.tenant == "us"]

            wait_for_calls(0)  # a call counts until the server is done with it
            held = channel.stream_stream(f"/{SERVICE}/CalcMask")(
                requests(), metadata=bearer, timeout=60
            )
            wait_for_calls(1)
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{SERVICE}/ListSessions")(b"", metadata=bearer, timeout=30)
            refusal = refused.value
            assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "quota of calls is 1, of which 1 are in use" in refusal.details()
            trailers = dict(refusal.trailing_metadata())
            assert trailers["grpc-retry-pushback-ms"] == "1000"
            assert b"google.rpc.RetryInfo" in trailers["grpc-status-details-bin"]
            with pytest.raises(nc.ResourceExhaustedError):
                client.sessions(timeout=0.3)
            release[1].send(b"x")
            list(held)
            assert len(client.sessions()) == 1
            for end in release:
                end.close()


def test_a_name_from_a_trusted_proxy_is_believed(file: Path, ours: str) -> None:
    method = "grpc.health.v1.Health/Check"
    with ServerProcess(f"--token_file={file}", "--trusted_proxy=127.0.0.0/8,::1") as server:
        named = (CLIENT_NAME, "spiffe://example/us")
        assert status_of(server.address, method, named) == grpc.StatusCode.OK
        for forged in (
            (named, named),
            ((CLIENT_NAME, ""),),
            ((CLIENT_NAME, "two words"),),
            ((CLIENT_NAME, "us,them"),),
            (named, ("authorization", "Bearer guess")),
            (),
        ):
            assert status_of(server.address, method, *forged) == grpc.StatusCode.UNAUTHENTICATED
        with grpc.insecure_channel(server.address) as channel:
            bind = channel.unary_unary(f"/{SERVICE}/ListTenants")
            with pytest.raises(grpc.RpcError) as raised:
                bind(b"", metadata=(named,))
            assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert bind(b"", metadata=((CLIENT_NAME, "ops"),))


def test_a_forged_name_from_anywhere_else_is_refused(file: Path, ours: str) -> None:
    method = "grpc.health.v1.Health/Check"
    with ServerProcess(f"--token_file={file}", "--trusted_proxy=127.0.0.2,unix") as server:
        bearer = ("authorization", f"Bearer {ours}")
        assert status_of(server.address, method, bearer) == grpc.StatusCode.OK
        for forged in (((CLIENT_NAME, "ops"),), ((CLIENT_NAME, "ops"), bearer)):
            assert status_of(server.address, method, *forged) == grpc.StatusCode.UNAUTHENTICATED


def test_unix_sockets_are_local(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    with (
        ServerProcess(f"--listen={address}", "--trusted_proxy=unix") as server,
        nc.Client(address) as client,
    ):
        assert server.process.poll() is None
        with pytest.raises(nc.UnauthenticatedError):
            client.health()
        named = (CLIENT_NAME, "us")
        assert status_of(address, "grpc.health.v1.Health/Check", named) == grpc.StatusCode.OK


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_wider_than_loopback_needs_encryption_and_credentials_or_a_plain_word(
    file: Path, ours: str, tmp_path: Path, listen: str
) -> None:
    made = Authority(tmp_path, "ours").issue("server", names="IP:127.0.0.1")
    tls = (f"--tls_certificate={made.certificate}", f"--tls_key={made.key}")
    tokens = f"--token_file={file}"
    for flags in ((), tls, (tokens,), ("--trusted_proxy=127.0.0.1",)):
        with pytest.raises(RuntimeError, match="--allow_insecure_listen"):
            ServerProcess(f"--listen={listen}", *flags)
    for flags in ((*tls, tokens), ("--allow_insecure_listen",)):
        with ServerProcess(f"--listen={listen}", *flags):
            pass
