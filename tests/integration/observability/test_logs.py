"""The server's log in JSON: what a line has, and that nobody who calls can write one."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from servers import ServerProcess

LAYER = nc.Layer("fc", "Linear", (4,))
SERVICE = "nni.compression.v1.CompressionService"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--log_format=json", "--log_level=debug") as process:
        yield process


def events(server: ServerProcess, name: str) -> list[dict[str, str]]:
    """The lines of one event. Every line of the log has to be an object of strings."""
    lines: list[dict[str, str]] = []
    for text in server.log().splitlines():
        fields = json.loads(text)
        assert isinstance(fields, dict), text
        assert all(isinstance(value, str) for value in fields.values()), text
        assert {"time", "level", "event"} <= fields.keys()
        lines.append(fields)
    return [fields for fields in lines if fields["event"] == name]


def call(server: ServerProcess, method: str, request: bytes, *metadata: tuple[str, str]) -> Any:
    """Makes a call; the call's end with its trailers, whether it failed or not."""
    with grpc.insecure_channel(server.address) as channel:
        made = channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return made.with_call(request, metadata=metadata)[1]
        except grpc.RpcError as error:
            return error


def test_a_failed_call_is_found_by_the_id_that_the_error_repeats(server: ServerProcess) -> None:
    with nc.Client(server.address) as client, pytest.raises(nc.NotFoundError) as raised:
        client.join("none")
    (failed,) = events(server, "call_failed")
    assert raised.value.request_id == failed["request_id"] != ""
    assert failed["method"] == f"{SERVICE}/GetSession"
    assert failed["code"] == "NOT_FOUND"
    assert failed["tenant"] == "default"
    assert failed["duration"].endswith("s")


def test_every_call_is_logged_at_the_level_debug(server: ServerProcess) -> None:
    with nc.Client(server.address) as client:
        session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
        session.update_epoch(1)
        (epoch,) = [
            fields for fields in events(server, "call") if fields["method"].endswith("UpdateEpoch")
        ]
    assert epoch["session"] == session.id
    assert len(epoch["request_id"]) == 16
    assert epoch["code"] == "OK"


def test_a_trace_is_passed_into_the_log(server: ServerProcess) -> None:
    call(server, "ListAlgorithms", b"", ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    call(server, "ListAlgorithms", b"", ("traceparent", "00-nonsense-01"))
    traced, untraced = events(server, "call")
    assert (traced["trace_id"], traced["parent_id"]) == (TRACE, SPAN)
    assert (untraced["trace_id"], untraced["parent_id"]) == ("", "")


@pytest.mark.parametrize("text", ["a b", "a" * 65, '","event":"forged'])
def test_an_id_that_is_none_is_not_repeated(server: ServerProcess, text: str) -> None:
    request = pb.GetSessionRequest(session_id="none").SerializeToString()
    ended = call(server, "GetSession", request, ("nni-request-id", text))
    assert ended.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL)
    assert "nni-request-id" not in dict(ended.trailing_metadata() or ())
    assert all(fields["request_id"] == "" for fields in events(server, "call_failed"))
    assert events(server, "forged") == []


@pytest.mark.parametrize(
    "evil",
    [
        '\n{"event":"forged"}\n',
        '\r\n{"event":"forged"}',
        '","event":"forged',
        "\\",
        "\u2028",
        "\x85",
    ],
)
def test_names_cannot_forge_a_line(server: ServerProcess, evil: str) -> None:
    with nc.Client(server.address) as client:
        for algorithm, layer, config in (
            (evil, "fc", [{"sparsity": 0.5}]),
            ("level", evil, [{"sparsity": 0.5}]),
            ("level", "fc", [{evil: 0.5}]),
            ("level", "fc", [{"sparsity": 0.5, "op_names": evil}]),
        ):
            with contextlib.suppress(nc.InvalidArgumentError):
                client.bind_model(algorithm, config, [nc.Layer(layer, "Linear", (4,))]).close()
        with pytest.raises(nc.NotFoundError):
            client.join(evil)
    assert len(events(server, "call_failed")) >= 3
    assert events(server, "forged") == []


def test_no_token_is_written(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    digest = hashlib.sha256(b"right-secret").hexdigest()
    tokens.write_text(f"{digest} team\n")
    flags = (f"--token_file={tokens}", "--log_format=json", "--log_level=debug")
    with ServerProcess(*flags) as server:
        with nc.Client(server.address, token="right-secret") as client:
            client.sessions()
            with pytest.raises(nc.NotFoundError):
                client.join("none")
        with (
            nc.Client(server.address, token="wrong-secret") as client,
            pytest.raises(nc.UnauthenticatedError),
        ):
            client.sessions()
        (failed,) = events(server, "call_failed")
        assert failed["tenant"] == "team"
        assert "secret" not in server.log()


def test_failing_calls_do_not_fill_the_log() -> None:
    calls = 1000
    request = pb.GetSessionRequest(session_id="none").SerializeToString()
    with ServerProcess("--log_format=json") as server:
        with grpc.insecure_channel(server.address) as channel:
            get = channel.unary_unary(f"/{SERVICE}/GetSession")
            for future in [get.future(request) for _ in range(calls)]:
                assert future.code() == grpc.StatusCode.NOT_FOUND
        server.process.terminate()
        assert server.process.wait(60) == 0
        failed = events(server, "call_failed")
        suppressed = events(server, "log_suppressed")
    assert 100 <= len(failed) < calls // 2
    assert {(line["of"], line["subject"]) for line in suppressed} == {("call_failed", "default")}
    assert len(failed) + sum(int(line["lines"]) for line in suppressed) == calls


def test_refused_credentials_are_logged_with_the_address(tmp_path: Path) -> None:
    calls = 1000
    tokens = tmp_path / "tokens"
    tokens.write_text("# nobody\n")
    with ServerProcess(f"--token_file={tokens}", "--log_format=json") as server:
        with grpc.insecure_channel(server.address) as channel:
            listing = channel.unary_unary(f"/{SERVICE}/ListSessions")
            metadata = [("authorization", "Bearer wrong-secret")]
            for future in [listing.future(b"", metadata=metadata) for _ in range(calls)]:
                assert future.code() == grpc.StatusCode.UNAUTHENTICATED
        refused = events(server, "call_refused")
        assert 100 <= len(refused) < calls // 2
        for line in refused:
            assert line["level"] == "warning"
            assert line["method"] == f"{SERVICE}/ListSessions"
            assert line["peer"].startswith("ipv4:127.0.0.1:")
            assert line["code"] == "UNAUTHENTICATED"
        assert "secret" not in server.log()
