"""How calls are made: metadata, retries, deadlines, broken replies, forks. The server is scripted.

It is a gRPC server of this process whose methods are functions of the test, so that it can do what
the real one never should.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import pickle
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from nni_compression._wire import frames
from servers import ROOT, ScriptedServer, fails, in_turn, replies

LAYERS = [nc.Layer("a", "Linear", (4,)), nc.Layer("b", "Linear", (9,))]
BOUND = pb.BindModelResponse(
    session_id="s1",
    plan=pb.Plan(layers=[pb.LayerPlan(name=name, compressed=True) for name in "ab"]),
    lease=Duration(seconds=60),
    stale_layers=["a", "b"],
)
WEIGHTS = {"a": np.ones(4, np.float32), "b": np.ones(9, np.float32)}
UNAVAILABLE = fails(grpc.StatusCode.UNAVAILABLE, "draining")


def mask_reply(answers: int, layer: str, size: int, index: int = 0) -> pb.CalcMaskResponse:
    """A mask that keeps nothing."""
    length = (size + 7) // 8
    return pb.CalcMaskResponse(
        results=[pb.MaskResult(answers=answers, layer=layer, epoch=3, target_sparsity=1)],
        headers=[
            pb.TensorHeader(
                index=index,
                layer=layer,
                role=pb.TENSOR_ROLE_MASK,
                dtype=pb.DATA_TYPE_BIT,
                shape=[size],
                byte_length=length,
                answers=answers,
            )
        ],
        chunks=[pb.Chunk(index=index, payload=b"\0" * length)],
        commits=[pb.Commit(index=index, byte_length=length)],
    )


def layer_error(answers: int, layer: str) -> pb.CalcMaskResponse:
    error = pb.LayerError(code=3, message=f"layer {layer} has NaN at index 2")
    return pb.CalcMaskResponse(results=[pb.MaskResult(answers=answers, layer=layer, error=error)])


BOTH = replies(mask_reply(0, "a", 4), mask_reply(1, "b", 9, index=1))


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer(BindModel=replies(BOUND), CalcMask=BOTH) as server:
        yield server


@pytest.fixture
def session(scripted: ScriptedServer) -> Iterator[nc.Session]:
    with nc.Client(scripted.address, timeout=30) as client:
        yield client.bind_model("level", [], LAYERS)


class TestRoute:
    def test_every_call_carries_the_sessions_route_key(
        self, scripted: ScriptedServer, tmp_path: Path
    ) -> None:
        scripted.behaviours.update(
            UpdateEpoch=replies(pb.UpdateEpochResponse()),
            Step=replies(pb.StepResponse()),
            KeepAlive=replies(pb.KeepAliveResponse()),
            GetSession=replies(pb.GetSessionResponse()),
            CloseSession=replies(pb.CloseSessionResponse()),
            Export=replies(),
            QuantizeWeight=fails(grpc.StatusCode.FAILED_PRECONDITION, "a pruner"),
        )
        with nc.Client(scripted.address) as client:
            session = client.bind_model("level", [], LAYERS)
            session.calc_mask(WEIGHTS)
            with pytest.raises(nc.FailedPreconditionError):
                session.quantize_weight(WEIGHTS)
            session.update_epoch(1)
            session.step(1)
            session.keep_alive()
            session.info()
            session.export(tmp_path)
            session.close()
            other = client.bind_model("level", [], LAYERS)
        routes = [metadata["nni-route"] for _, metadata in scripted.calls]
        assert routes == [session.route] * 9 + [other.route]
        assert session.route != other.route
        assert 1 <= len(session.route) <= 64

    def test_calls_without_a_session_carry_the_clients(self, scripted: ScriptedServer) -> None:
        scripted.behaviours.update(
            Check=replies(b"\x08\x01"),
            ListSessions=replies(pb.ListSessionsResponse()),
            ListAlgorithms=replies(pb.ListAlgorithmsResponse()),
        )
        with nc.Client(scripted.address, route="mine") as client:
            assert client.health() == "SERVING"
            client.sessions()
            client.algorithms()
        assert [metadata["nni-route"] for _, metadata in scripted.calls] == ["mine"] * 3

    def test_a_route_can_be_handed_to_another_rank(self, scripted: ScriptedServer) -> None:
        live = pb.GetSessionResponse(
            session=pb.Session(id="s1", lease=Duration(seconds=5)), plan=BOUND.plan
        )
        scripted.behaviours["GetSession"] = replies(live)
        scripted.behaviours["KeepAlive"] = replies(pb.KeepAliveResponse(lease=Duration(seconds=5)))
        with nc.Client(scripted.address) as client:
            assert client.join("s1", route="theirs").route == "theirs"
            assert client.bind_model("level", [], LAYERS, route="theirs").route == "theirs"
        assert {metadata["nni-route"] for _, metadata in scripted.calls} == {"theirs"}


def documented_repeats() -> list[tuple[str, str]]:
    """(code, whether clients repeat the call) of each row of the table of error codes."""
    lines = (ROOT / "docs/operations.md").read_text().splitlines()
    begin = lines.index("| code | | clients repeat the call |")
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[begin + 2 :])
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    return [
        (code, repeated) for codes, _, repeated in cells for code in re.findall("[A-Z_]+", codes)
    ]


class TestRequestIds:
    def test_every_attempt_has_its_own_and_the_error_has_the_last(
        self, scripted: ScriptedServer
    ) -> None:
        ids: list[str] = []

        def fail_with_its_id(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            metadata = dict(context.invocation_metadata())
            ids.append(metadata["nni-request-id"])
            trailers = [("nni-request-id", ids[-1])]
            if len(ids) == 1:
                trailers.append(("grpc-retry-pushback-ms", "1"))
            return fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *trailers)(requests, context)

        scripted.behaviours["ListAlgorithms"] = fail_with_its_id
        with (
            nc.Client(scripted.address) as client,
            pytest.raises(nc.ResourceExhaustedError) as raised,
        ):
            client.algorithms()
        assert len(set(ids)) == len(ids) == 2
        assert raised.value.request_id == ids[-1]
        assert pickle.loads(pickle.dumps(raised.value)).request_id == ids[-1]

    def test_there_is_none_where_no_server_answered(self) -> None:
        with (
            nc.Client("127.0.0.1:1", connect_timeout=0.05) as client,
            pytest.raises(nc.UnavailableError) as raised,
        ):
            client.algorithms()
        assert raised.value.request_id is None


class TestRetries:
    def test_unavailable_is_tried_again(self, scripted: ScriptedServer) -> None:
        scripted.behaviours["BindModel"] = in_turn(UNAVAILABLE, UNAVAILABLE, replies(BOUND))
        with nc.Client(scripted.address) as client:
            assert client.bind_model("level", [], LAYERS).id == "s1"
            assert client.stats.retries == 2

    @pytest.mark.parametrize(
        ("code", "details"),
        [
            pytest.param(
                grpc.StatusCode.CANCELLED,
                "Cancelled on the server side",
                id="by a server that stops",
            ),
            pytest.param(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "Received RST_STREAM with error code 11",
                id="by a transport that is full",
            ),
        ],
    )
    def test_a_call_that_is_cut_off_is_tried_again(
        self, scripted: ScriptedServer, code: grpc.StatusCode, details: str
    ) -> None:
        scripted.behaviours["BindModel"] = in_turn(fails(code, details), replies(BOUND))
        with nc.Client(scripted.address) as client:
            assert client.bind_model("level", [], LAYERS).id == "s1"
            assert client.stats.retries == 1

    def test_a_call_that_an_older_server_lacks_says_so(self, scripted: ScriptedServer) -> None:
        # As a server of the C++ library answers a method that it does not have.
        scripted.behaviours["ReportResults"] = fails(grpc.StatusCode.UNIMPLEMENTED, "")
        with nc.Client(scripted.address) as client:
            session = client.bind_model("level", [], LAYERS)
            with pytest.raises(nc.UnimplementedError, match="no ReportResults; it is older"):
                session.report(accuracy=0.5)

    def test_a_wait_is_told_once_and_so_is_its_end(
        self, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        scripted.behaviours["BindModel"] = in_turn(UNAVAILABLE, UNAVAILABLE, replies(BOUND))
        with nc.Client(scripted.address) as client:
            client.bind_model("level", [], LAYERS)
        assert {(r.name, r.levelname) for r in caplog.records} == {("nni_compression", "WARNING")}
        wait, end = (record.getMessage() for record in caplog.records)
        assert "draining" in wait
        assert wait.endswith("trying again")
        assert f"{scripted.address} answers again, after " in end

    def test_a_retried_bind_is_the_same_request(self, scripted: ScriptedServer) -> None:
        seen: list[bytes] = []

        def record(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            seen.extend(requests)
            behave = UNAVAILABLE if len(seen) == 1 else replies(BOUND)
            return behave(iter(()), context)

        scripted.behaviours["BindModel"] = record
        with nc.Client(scripted.address) as client:
            client.bind_model("level", [], LAYERS)
            client.bind_model("level", [], LAYERS)
        ids = [pb.BindModelRequest.FromString(raw).request_id for raw in seen]
        assert ids[0] == ids[1] != ids[2]
        assert ids[0]

    def test_a_stream_is_sent_again_without_the_layers_that_were_answered(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        sent: list[list[str]] = []

        def record(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            messages = [pb.CalcMaskRequest.FromString(raw) for raw in requests]
            sent.append([header.layer for message in messages for header in message.headers])
            if len(sent) == 1:
                yield mask_reply(0, "a", 4).SerializeToString()
                context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            yield mask_reply(1, "b", 9).SerializeToString()

        scripted.behaviours["CalcMask"] = record
        assert list(session.calc_mask(WEIGHTS)) == ["a", "b"]
        assert sent == [["a", "b"], ["b"]]
        assert session.stats.retries == 1

    def test_a_half_received_tensor_begins_anew(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        half = mask_reply(0, "a", 4)
        del half.commits[:]

        def cut(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            yield half.SerializeToString()
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

        scripted.behaviours["CalcMask"] = in_turn(cut, BOTH)
        assert session.calc_mask(WEIGHTS)["a"].sparsity == 1

    def test_exhausted_with_a_pushback_waits_that_long(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        full = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ("grpc-retry-pushback-ms", "200"))
        scripted.behaviours["CalcMask"] = in_turn(full, BOTH)
        start = time.monotonic()
        session.calc_mask(WEIGHTS)
        assert time.monotonic() - start >= 0.14  # jitter takes a quarter at most
        assert session.stats.retries == 1

    def test_a_retry_info_alone_is_waited_for_too(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        retry = any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo")
        retry.value = frames.encode_field(1, Duration(nanos=200_000_000).SerializeToString())
        other = any_pb2.Any(type_url="type.googleapis.com/google.rpc.Help", value=b"\x0a\x00")
        details = b"\x08\x08" + frames.encode_field(2, b"full")  # of a google.rpc.Status
        for detail in (other, retry):
            details += frames.encode_field(3, detail.SerializeToString())
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        full = fails(exhausted, "full", ("grpc-status-details-bin", details))
        scripted.behaviours["CalcMask"] = in_turn(full, BOTH)
        start = time.monotonic()
        session.calc_mask(WEIGHTS)
        assert time.monotonic() - start >= 0.14  # jitter takes a quarter at most
        broken = fails(exhausted, "full", ("grpc-status-details-bin", details[:-1]))
        scripted.behaviours["CalcMask"] = broken
        with pytest.raises(nc.ResourceExhaustedError):
            session.calc_mask(WEIGHTS)

    def test_exhausted_without_a_pushback_is_final(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        full = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "layer a can never fit")
        scripted.behaviours["CalcMask"] = in_turn(full, BOTH)
        with pytest.raises(nc.ResourceExhaustedError, match="can never fit"):
            session.calc_mask(WEIGHTS)
        assert scripted.methods().count("/nni.compression.v1.CompressionService/CalcMask") == 1

    def test_a_pushback_beyond_the_timeout_is_not_waited_for(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        full = fails(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ("grpc-retry-pushback-ms", "60000")
        )
        scripted.behaviours["CalcMask"] = full
        start = time.monotonic()
        with pytest.raises(nc.ResourceExhaustedError):
            session.calc_mask(WEIGHTS, timeout=5)
        assert time.monotonic() - start < 5

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (grpc.StatusCode.INVALID_ARGUMENT, nc.InvalidArgumentError),
            (grpc.StatusCode.NOT_FOUND, nc.NotFoundError),
            (grpc.StatusCode.FAILED_PRECONDITION, nc.FailedPreconditionError),
            (grpc.StatusCode.UNAUTHENTICATED, nc.UnauthenticatedError),
            (grpc.StatusCode.PERMISSION_DENIED, nc.PermissionDeniedError),
            (grpc.StatusCode.DATA_LOSS, nc.DataLossError),
            (grpc.StatusCode.INTERNAL, nc.InternalError),
            (grpc.StatusCode.ABORTED, nc.AbortedError),
            (grpc.StatusCode.ALREADY_EXISTS, nc.AlreadyExistsError),
        ],
    )
    def test_other_statuses_are_errors_at_once(
        self,
        scripted: ScriptedServer,
        session: nc.Session,
        code: grpc.StatusCode,
        error: type[nc.CompressionError],
    ) -> None:
        scripted.behaviours["UpdateEpoch"] = fails(code, "what is wrong")
        with pytest.raises(error) as raised:
            session.update_epoch(1)
        assert (raised.value.code, raised.value.message) == (code.name, "what is wrong")
        assert raised.value.__cause__ is None
        assert session.stats.retries == 0

    @pytest.mark.parametrize(("code", "repeated"), documented_repeats())
    def test_calls_are_repeated_as_the_documentation_says(
        self, scripted: ScriptedServer, session: nc.Session, code: str, repeated: str
    ) -> None:
        status = grpc.StatusCode[code]
        answer = replies(pb.UpdateEpochResponse(stale_layers=["a"]))
        delay = ("grpc-retry-pushback-ms", "1")
        expected = {"no": (0, 0), "yes": (1, 1), "after the delay that the server gives": (0, 1)}
        retries = []
        for trailers in ([], [delay]):
            scripted.behaviours["UpdateEpoch"] = in_turn(fails(status, "", *trailers), answer)
            before = session.stats.retries
            with contextlib.suppress(nc.CompressionError):
                session.update_epoch(1)
            retries.append(session.stats.retries - before)
        assert tuple(retries) == expected[repeated]

    def test_jitter_leaves_the_trainers_generators_alone(self, scripted: ScriptedServer) -> None:
        import random

        scripted.behaviours["BindModel"] = in_turn(UNAVAILABLE, replies(BOUND))
        random.seed(1)
        np.random.seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist()
        with nc.Client(scripted.address) as client:
            client.bind_model("level", [], LAYERS)
        assert before == (random.getstate(), np.random.get_state()[1].tolist())

    def test_calls_go_on_when_the_server_comes_back(self, scripted: ScriptedServer) -> None:
        scripted.behaviours["UpdateEpoch"] = replies(pb.UpdateEpochResponse(stale_layers=["a"]))
        with nc.Client(scripted.address, timeout=30, keep_alive=False) as client:
            session = client.bind_model("level", [], LAYERS)
            scripted.stop()
            back = threading.Timer(1.0, scripted.start)
            back.start()
            try:
                assert session.update_epoch(1) == {"a"}
            finally:
                back.join()
            assert session.stats.retries > 0


class TestStaleLayers:
    def test_they_stay_a_frozenset_and_lose_those_that_were_answered(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        assert session.stale == {"a", "b"}
        scripted.behaviours["CalcMask"] = replies(mask_reply(0, "a", 4))
        session.calc_mask({"a": WEIGHTS["a"]})
        assert session.stale == {"b"}
        assert type(session.stale) is frozenset


class TestLeavingASession:
    def test_after_an_error_it_does_not_wait_for_a_server_that_is_gone(
        self, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits = []
        monkeypatch.setattr(
            nc.Session, "close", lambda self, *, timeout=None: limits.append(timeout)
        )
        for timeout in (300.0, 2.0, None):
            with nc.Client(scripted.address, timeout=timeout) as client:
                with client.bind_model("level", [], LAYERS):
                    pass
                with contextlib.suppress(KeyError), client.bind_model("level", [], LAYERS):
                    raise KeyError
        assert limits == [300.0, 10.0, 2.0, 2.0, None, 10.0]


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1:50051", "localhost:1", "host.example:65535", "[::1]:50051"),
            *("dns:host:50051", "dns:///host:50051", "dns://10.0.0.1/host:50051"),
            *("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv6:[::1]:50051", "unix:/run/compression"),
            *("unix:relative", "unix-abstract:compression", "xds:///service"),
        ],
    )
    def test_what_grpc_connects_to_is_taken(self, address: str) -> None:
        with nc.Client(address) as client:
            assert client.server == address

    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "localhost", "localhost:", ":50051", "localhost:50051x", "localhost:0"),
            *("localhost:-1", "localhost:+5", "localhost:65536", "localhost:0x50", "localhost:5 1"),
            *("::1:50051", "[::1]", "http://localhost:50051", "localhost:50051/", "dns:///host"),
            *("dns://host:50051", "ipv4:10.0.0.1:1,10.0.0.2", "unix:", " localhost:50051", "a\n:1"),
            *("localhost:\u0665", "h\u00f6st:1"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_at_once(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = re.escape(
            f"server is {address!r}; it must be HOST:PORT with a port in [1, 65535]"
        )
        with pytest.raises(nc.InvalidArgumentError, match=expected):
            nc.Client(address)
        monkeypatch.setenv("NNI_COMPRESSION_SERVER", address)
        with pytest.raises(nc.InvalidArgumentError, match=re.escape(f"SERVER is {address!r}")):
            nc.Client()


class TestNobodyThere:
    def test_the_error_names_the_address_and_what_to_do(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        with nc.Client(address, connect_timeout=1) as client:
            with pytest.raises(nc.UnavailableError) as raised:
                client.algorithms()
            with pytest.raises(nc.UnavailableError):
                client.health()
        assert time.monotonic() - start < 8
        assert address in str(raised.value)
        assert "compression_server --listen" in str(raised.value)
        assert "NNI_COMPRESSION_SERVER" in str(raised.value)

    def test_a_server_that_never_speaks_is_given_up(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with nc.Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout=1) as client:
                start = time.monotonic()
                with pytest.raises((nc.DeadlineExceededError, nc.UnavailableError)):
                    client.algorithms()
                assert time.monotonic() - start < 8


def senders(before: set[threading.Thread]) -> list[threading.Thread]:
    """gRPC's threads that came since; those of the scripted server do not count."""
    new = set(threading.enumerate()) - before
    return [thread for thread in new if not thread.name.startswith("ThreadPoolExecutor")]


class TestEndings:
    def test_a_deadline_names_the_call_and_its_length(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        release = threading.Event()

        def hang(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            context.add_callback(release.set)
            release.wait(30)
            yield b""

        scripted.behaviours["UpdateEpoch"] = hang
        with pytest.raises(nc.DeadlineExceededError, match=r"UpdateEpoch at .* longer than 0.3 s"):
            session.update_epoch(1, timeout=0.3)

    def test_what_a_server_waited_too_long_for_is_its_own_message(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        words = "the peer neither sent nor read for 2s"
        scripted.behaviours["UpdateEpoch"] = fails(grpc.StatusCode.DEADLINE_EXCEEDED, words)
        with pytest.raises(nc.DeadlineExceededError, match=words):
            session.update_epoch(1)

    def test_a_server_that_fails_early_stops_the_upload_and_frees_the_tensors(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        scripted.behaviours["CalcMask"] = fails(grpc.StatusCode.NOT_FOUND, "no session")
        weight = np.zeros(16 << 20, np.float32)
        gone = weakref.ref(weight)
        before = set(threading.enumerate())
        with pytest.raises(nc.NotFoundError):
            session.calc_mask({"a": weight})
        assert session.stats.bytes_sent < weight.nbytes
        del weight
        deadline = time.monotonic() + 30
        while gone() is not None or senders(before):
            assert time.monotonic() < deadline
            gc.collect()
            time.sleep(0.01)

    def test_what_happens_while_a_message_is_made_reaches_the_caller(
        self, session: nc.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: frames.MessageBuilder, *unused: Any) -> None:
            raise MemoryError("no room for a message")

        monkeypatch.setattr(frames.MessageBuilder, "chunk", broken)
        with pytest.raises(MemoryError, match="no room for a message"):
            session.calc_mask(WEIGHTS)

    def test_a_closed_client_and_a_closed_session_say_so(self, scripted: ScriptedServer) -> None:
        scripted.behaviours["CloseSession"] = replies(pb.CloseSessionResponse())
        client = nc.Client(scripted.address)
        with client.bind_model("level", [], LAYERS) as session:
            pass
        assert session.closed
        session.close()
        with pytest.raises(nc.FailedPreconditionError, match="session s1 is closed"):
            session.calc_mask(WEIGHTS)
        client.close()
        with pytest.raises(nc.FailedPreconditionError, match="client is closed"):
            client.algorithms()

    def test_closing_the_client_ends_a_call_of_another_thread(
        self, scripted: ScriptedServer
    ) -> None:
        arrived, release = threading.Event(), threading.Event()

        def hang(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            context.add_callback(release.set)
            arrived.set()
            release.wait(30)
            yield b""

        scripted.behaviours["UpdateEpoch"] = hang
        client = nc.Client(scripted.address)
        session = client.bind_model("level", [], LAYERS)
        raised: list[BaseException] = []

        def call() -> None:
            try:
                session.update_epoch(1)
            except nc.CompressionError as error:
                raised.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert arrived.wait(10)
        client.close()
        thread.join(10)
        assert isinstance(raised[0], nc.CancelledError)

    def test_closing_a_session_that_is_gone_is_no_error(self, scripted: ScriptedServer) -> None:
        scripted.behaviours["CloseSession"] = fails(grpc.StatusCode.NOT_FOUND, "no such session")
        with nc.Client(scripted.address) as client:
            client.bind_model("level", [], LAYERS).close()

    def test_an_error_inside_a_with_block_is_not_hidden_by_closing(
        self, scripted: ScriptedServer
    ) -> None:
        scripted.behaviours["CloseSession"] = fails(grpc.StatusCode.INTERNAL, "cannot close")
        with nc.Client(scripted.address) as client:
            with pytest.raises(ZeroDivisionError), client.bind_model("level", [], LAYERS):
                raise ZeroDivisionError
            with pytest.raises(nc.InternalError), client.bind_model("level", [], LAYERS):
                pass


class TestLayerErrors:
    def test_the_other_layers_results_come_with_the_error(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        scripted.behaviours["CalcMask"] = replies(layer_error(0, "a"), mask_reply(1, "b", 9))
        with pytest.raises(nc.InvalidArgumentError, match="layer a has NaN at index 2") as raised:
            session.calc_mask(WEIGHTS)
        assert raised.value.results["b"].sparsity == 1
        assert raised.value.errors["a"].code == "INVALID_ARGUMENT"
        assert session.stale == {"a"}

    def test_several_failures_are_counted(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        scripted.behaviours["CalcMask"] = replies(layer_error(0, "a"), layer_error(1, "b"))
        with pytest.raises(nc.InvalidArgumentError, match=r"\(1 more layer failed\)"):
            session.calc_mask(WEIGHTS)

    def test_a_call_that_fails_later_carries_what_it_had(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        def half(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            yield mask_reply(0, "a", 4).SerializeToString()
            context.abort(grpc.StatusCode.INTERNAL, "a bug")

        scripted.behaviours["CalcMask"] = half
        with pytest.raises(nc.InternalError, match="a bug") as raised:
            session.calc_mask(WEIGHTS)
        assert list(raised.value.results) == ["a"]
        assert session.stale == {"b"}

    def test_steps_errors_come_by_layer(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        error = pb.LayerError(code=3, message="layer b has minimum > maximum")
        parameters = pb.QuantizationParameters(
            formula=pb.FORMULA_AFFINE,
            rounding=pb.ROUNDING_HALF_EVEN,
            bits=8,
            code_max=255,
            scale=[0.5],
            zero_point=[3],
        )
        scripted.behaviours["Step"] = replies(
            pb.StepResponse(
                step=4,
                parameters=[
                    pb.LayerParameters(layer="a", parameters=parameters),
                    pb.LayerParameters(layer="b", error=error),
                ],
            )
        )
        with pytest.raises(nc.InvalidArgumentError, match="minimum > maximum") as raised:
            session.step(4, {"a": (0, 1), "b": (1, 0)})
        assert raised.value.results["a"].zero_point == 3


def without(field: str) -> pb.CalcMaskResponse:
    message = mask_reply(0, "a", 4)
    message.ClearField(field)
    return message


def changed(part: str, **values: Any) -> pb.CalcMaskResponse:
    message = mask_reply(0, "a", 4)
    target = getattr(message, part)[0]
    for name, value in values.items():
        if name == "shape":
            target.shape[:] = value
        else:
            setattr(target, name, value)
    return message


class TestBrokenReplies:
    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(b"\xff\xff", id="bytes that are no message"),
            pytest.param(b"\x0a\x02\xff\xff", id="a result that is no message"),
            pytest.param(without("results"), id="a tensor without a result"),
            pytest.param(without("headers"), id="a chunk without a header"),
            pytest.param(without("chunks"), id="a commit without its bytes"),
            pytest.param(changed("results", answers=7), id="an answer to nothing"),
            pytest.param(changed("headers", answers=7), id="a header that answers nothing"),
            pytest.param(changed("headers", shape=[5]), id="a mask of another shape"),
            pytest.param(changed("headers", byte_length=2**50), id="a petabyte announced"),
            pytest.param(changed("headers", dtype=1), id="a mask of floats"),
            pytest.param(changed("headers", role=1), id="a weight for a mask"),
            pytest.param(changed("chunks", offset=1), id="a gap"),
            pytest.param(changed("chunks", payload=b"\0\0"), id="too many bytes"),
            pytest.param(changed("chunks", payload=b"\xff"), id="bits after the last element"),
            pytest.param(changed("chunks", index=5), id="a chunk of another tensor"),
            pytest.param(changed("commits", byte_length=2), id="another total"),
            pytest.param(changed("commits", crc32=1), id="a wrong checksum"),
        ],
    )
    def test_are_data_loss_and_leave_the_session_usable(
        self, scripted: ScriptedServer, session: nc.Session, message: Any
    ) -> None:
        scripted.behaviours["CalcMask"] = in_turn(replies(message), BOTH)
        with pytest.raises(nc.DataLossError):
            session.calc_mask(WEIGHTS)
        assert list(session.calc_mask(WEIGHTS)) == ["a", "b"]

    def test_two_answers_to_one_tensor_are_data_loss(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        scripted.behaviours["CalcMask"] = replies(mask_reply(0, "a", 4), mask_reply(0, "a", 4))
        with pytest.raises(nc.DataLossError, match="out of turn"):
            session.calc_mask(WEIGHTS)

    def test_a_missing_answer_names_its_layer(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        scripted.behaviours["CalcMask"] = replies(mask_reply(0, "a", 4))
        with pytest.raises(nc.InternalError, match="'b' among them"):
            session.calc_mask(WEIGHTS)

    def test_a_formula_of_a_newer_server_is_refused(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        parameters = pb.QuantizationParameters(formula=9, rounding=1, bits=8)  # type: ignore[arg-type]
        result = pb.QuantizeResult(answers=0, layer="a", parameters=parameters)
        scripted.behaviours["QuantizeWeight"] = replies(pb.QuantizeWeightResponse(results=[result]))
        with pytest.raises(nc.DataLossError, match="formula 9"):
            session.quantize_weight({"a": WEIGHTS["a"]}, reply="parameters")

    def test_fields_of_a_newer_server_are_passed_over(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        newer = frames.encode_field(77, b"news") + b"\xe8\x07\x01"
        raw = mask_reply(0, "a", 4).SerializeToString() + newer
        scripted.behaviours["CalcMask"] = replies(newer, raw, mask_reply(1, "b", 9, index=1))
        assert list(session.calc_mask(WEIGHTS)) == ["a", "b"]


def file_reply(name: str, content: bytes, index: int = 0) -> pb.ExportResponse:
    return pb.ExportResponse(
        files=[pb.FileHeader(index=index, name=name, byte_length=len(content))],
        chunks=[pb.Chunk(index=index, payload=content)],
        commits=[pb.Commit(index=index, byte_length=len(content))],
    )


class TestExport:
    @pytest.mark.parametrize(
        "name", ["../up", "/etc/x", "a/b", "a\\b", "", ".", "..", "a\0b", "x" * 256, "c:x"]
    )
    def test_a_name_that_leaves_the_directory_is_refused(
        self, scripted: ScriptedServer, session: nc.Session, tmp_path: Path, name: str
    ) -> None:
        scripted.behaviours["Export"] = replies(file_reply(name, b"abc"))
        with pytest.raises(nc.DataLossError, match="plain file name"):
            session.export(tmp_path / "out")
        assert list(tmp_path.rglob("*")) == [tmp_path / "out"]

    def test_files_appear_all_or_none(
        self, scripted: ScriptedServer, session: nc.Session, tmp_path: Path
    ) -> None:
        cut = file_reply("two", b"abc", index=1)
        del cut.commits[:]
        (tmp_path / "one").write_bytes(b"old")
        for broken in (
            replies(file_reply("one", b"abc"), cut),
            replies(file_reply("one", b"abc"), file_reply("one", b"abc", index=1)),
            replies(file_reply("one", b"abc"), b"\xff"),
        ):
            scripted.behaviours["Export"] = broken
            with pytest.raises(nc.DataLossError):
                session.export(tmp_path)
            assert [path.name for path in tmp_path.iterdir()] == ["one"]
            assert (tmp_path / "one").read_bytes() == b"old"
        scripted.behaviours["Export"] = in_turn(
            UNAVAILABLE,
            replies(file_reply("one", b"abc"), file_reply("two", b"xyz", index=1)),
        )
        assert session.export(tmp_path) == [tmp_path / "one", tmp_path / "two"]
        assert (tmp_path / "one").read_bytes() == b"abc"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    def test_an_empty_file_is_a_file(
        self, scripted: ScriptedServer, session: nc.Session, tmp_path: Path
    ) -> None:
        empty = file_reply("empty", b"")
        del empty.chunks[:]
        scripted.behaviours["Export"] = replies(empty)
        assert session.export(tmp_path)[0].read_bytes() == b""


class TestKeepAlive:
    @staticmethod
    def bound(seconds: float) -> pb.BindModelResponse:
        response = pb.BindModelResponse()
        response.CopyFrom(BOUND)
        response.lease.FromMilliseconds(int(seconds * 1000))
        return response

    @staticmethod
    def wait_for(condition: Any) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    @pytest.fixture(autouse=True)
    def other_threads(self) -> None:
        """What clients of other tests may have left."""
        self.others = set(threading.enumerate())

    def threads(self) -> list[threading.Thread]:
        name = "nni-compression-keep-alive"
        return [t for t in threading.enumerate() if t.name == name and t not in self.others]

    def renewals(self, scripted: ScriptedServer) -> int:
        return sum(method.endswith("KeepAlive") for method in scripted.methods())

    def test_an_idle_session_is_renewed_until_it_is_closed(self, scripted: ScriptedServer) -> None:
        scripted.behaviours.update(
            BindModel=replies(self.bound(0.15)),
            KeepAlive=replies(pb.KeepAliveResponse()),
            CloseSession=replies(pb.CloseSessionResponse()),
        )
        with nc.Client(scripted.address) as client:
            session = client.bind_model("level", [], LAYERS)
            self.wait_for(lambda: self.renewals(scripted) >= 3)
            route = {m["nni-route"] for name, m in scripted.calls if name.endswith("KeepAlive")}
            assert route == {session.route}
            session.close()
            self.wait_for(lambda: not self.threads())

    def test_a_failure_is_tried_again_and_a_lost_session_is_not(
        self, scripted: ScriptedServer
    ) -> None:
        scripted.behaviours.update(
            BindModel=replies(self.bound(0.15)),
            KeepAlive=in_turn(
                fails(grpc.StatusCode.INTERNAL, "a bug"),
                replies(pb.KeepAliveResponse()),
                fails(grpc.StatusCode.NOT_FOUND, "expired"),
            ),
        )
        with nc.Client(scripted.address) as client:
            session = client.bind_model("level", [], LAYERS)
            self.wait_for(lambda: self.renewals(scripted) == 3)
            self.wait_for(lambda: not self.threads())
            assert not session.closed

    def test_the_thread_keeps_neither_client_nor_session(self, scripted: ScriptedServer) -> None:
        scripted.behaviours["BindModel"] = replies(self.bound(0.3))
        scripted.behaviours["KeepAlive"] = replies(pb.KeepAliveResponse())
        client = nc.Client(scripted.address)
        session = client.bind_model("level", [], LAYERS)
        gone = [weakref.ref(client), weakref.ref(session)]
        del client, session
        gc.collect()
        self.wait_for(lambda: all(each() is None for each in gone))
        self.wait_for(lambda: not self.threads())

    def test_it_can_be_turned_off(self, scripted: ScriptedServer) -> None:
        with nc.Client(scripted.address, keep_alive=False) as client:
            client.bind_model("level", [], LAYERS)
            assert not self.threads()


def test_statistics_count_messages_and_time(scripted: ScriptedServer) -> None:
    with nc.Client(scripted.address) as client:
        session = client.bind_model("level", [], LAYERS)
        bound = client.stats.bytes_received
        session.calc_mask({"a": WEIGHTS["a"], "b": WEIGHTS["b"]})
        assert bound == BOUND.ByteSize()
        assert session.stats.bytes_received == client.stats.bytes_received - bound
        assert session.stats.bytes_sent > sum(w.nbytes for w in WEIGHTS.values())
        assert (client.stats.calls, session.stats.calls) == (2, 1)
        assert 0 < session.stats.seconds_waiting < client.stats.seconds_waiting


def test_calls_for_no_layers_are_not_made(scripted: ScriptedServer, session: nc.Session) -> None:
    assert session.calc_mask({}) == {}
    assert session.quantize_weight({}) == {}
    assert session.quantize_range({}) == {}
    assert session.set_mask({}) == {}
    assert len(scripted.calls) == 1


def test_step_carries_ranges_of_outputs_and_inputs_and_a_repeated_one_changes_nothing(client):
    rule = {"quant_types": ["output", "input"], "quant_bits": {"output": 8, "input": 4}}
    layers = [nc.Layer(name=name, op_type="Linear", shape=(2, 3)) for name in "ab"]
    with client.bind_model("qat", [rule], layers) as session:
        assert session.plan.layers["a"].step_inputs == ("output_range", "input_range")
        assert session.plan.needs_step
        result = session.step(1, outputs={"a": (0, 255), "b": (-1, 5)}, inputs={"a": (0, 15)})
        assert set(result.outputs) == {"a", "b"}
        assert (result.outputs["a"].scale, result.outputs["a"].range) == (1.0, (0.0, 255.0))
        assert (result.inputs["a"].scale, result.inputs["a"].bits) == (1.0, 4)
        assert result.parameters == {}
        again = session.step(1, outputs={"a": (-9, 9)})
        assert again.outputs["a"].range == (0.0, 255.0)
        report = {layer.name: layer for layer in session.info().layers}
        assert report["a"].output.scale == 1.0
        assert report["b"].input is None


def test_a_bad_range_of_an_output_is_named_and_the_others_count(client):
    layers = [nc.Layer(name=name, op_type="Linear", shape=(2, 3)) for name in "ab"]
    with client.bind_model("qat", [{"quant_types": ["output"]}], layers) as session:
        with pytest.raises(
            nc.InvalidArgumentError, match="minimum not above the maximum"
        ) as caught:
            session.step(1, outputs={"a": (2, 1), "b": (0, 255)})
        assert list(caught.value.errors) == [("a", "output")]
        assert caught.value.results["b", "output"].scale == 1.0
        with pytest.raises(nc.InvalidArgumentError, match="the inputs of layer .* not quantized"):
            session.step(2, inputs={"a": (0, 1)})
