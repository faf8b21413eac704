"""What callers make the server hold is what it counts.

Walks the service's descriptor: of every call, every field that can be repeated, nested or long is
sent as often or as long as the server lets it, and what the allocator says is live is compared with
what the metrics say is reserved. A call or a field that is new is sent here from its first day on.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import struct
import threading
from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from live_memory import LiveServer
from metered import eventually
from nni_compression._wire import compression_pb2 as pb
from servers import SERVICE

MIB = 1 << 20
MESSAGE = 4 * MIB - 4096  # as large as one may be, nearly
SLACK = 16 * MIB  # what need not be reserved
LEFT = MIB  # what the transport and the heap's users may keep of what they once needed
HELD = 4  # sessions of a kind that live at a time
AT_ONCE = 6  # calls of a kind that run at a time
STREAM_CALLS = 8  # streaming calls of a kind that run at a time
STREAMED_BYTES = 6 * MIB  # that each of them is sent
TENSOR_BYTES = 2 * MIB  # that each is sent of small whole tensors, of which these are many
OPENED = 32  # those that are opened with one large message
FIELD = MIB - 4096  # as large as a field of theirs may be, nearly
UNREAD = 50  # looks at a call that does not go on, after which it is taken to wait
CALLS = 500
CONNECTIONS = 200
BUDGET, TIGHT = 4096 * MIB, 24 * MIB  # the first is more than anything needs

SERVICE_PROTO = descriptor_pb2.FileDescriptorProto()
pb.DESCRIPTOR.CopyToProto(SERVICE_PROTO)
METHODS = {method.name: method for method in SERVICE_PROTO.service[0].method}


def method_types(name: str) -> tuple[type, type]:
    """Classes of a method's request and reply."""
    method = METHODS[name]
    request, reply = (kind.rpartition(".")[2] for kind in (method.input_type, method.output_type))
    return getattr(pb, request), getattr(pb, reply)


# A request of each call that succeeds, of which more is made below.


def bind_model(_: str) -> Message:
    request = pb.BindModelRequest(algorithm="custom_pruner", framework="pytorch")
    request.config_list.add().update({"options": {"list": [None], "map": {"a": 1}, "text": "t"}})
    request.layers.add(name="l", op_type="Linear", dtype=pb.DATA_TYPE_FLOAT32, shape=[1])
    return request


def tensor(request: Message, session: str) -> Message:
    """With one whole weight, worth keeping."""
    request.open.session_id = session
    request.headers.add(
        index=0,
        layer="fc",
        role=pb.TENSOR_ROLE_WEIGHT,
        dtype=pb.DATA_TYPE_FLOAT32,
        shape=[1],
        byte_length=4,
        fingerprint=b"fingerprint",
    )
    request.chunks.add(index=0, payload=struct.pack("<f", 1.0))
    request.commits.add(index=0, byte_length=4)
    return request


def statistic(session: str) -> Message:
    request = tensor(pb.AddStatisticsRequest(), session)
    header = request.headers[0]
    header.role = pb.TENSOR_ROLE_STATISTIC
    header.fingerprint = b""
    header.part.kind = pb.STATISTIC_KIND_WEIGHT_GRADIENT
    header.part.sequence = header.part.count = 1
    return request


def export(session: str) -> Message:
    request = tensor(pb.ExportRequest(), session)
    request.open.format = "report"
    request.headers[0].fingerprint = b""
    request.open.options.update({"bins": 10})
    return request


EXAMPLES: dict[str, Callable[[str], Message]] = {
    "BindModel": bind_model,
    "CalcMask": lambda session: tensor(pb.CalcMaskRequest(), session),
    "QuantizeWeight": lambda session: tensor(pb.QuantizeWeightRequest(), session),
    "AddStatistics": statistic,
    "Step": lambda session: tensor(pb.StepRequest(), session),
    "Export": export,
    "FindWeights": lambda session: pb.FindWeightsRequest(
        session_id=session, fingerprints=[b"fingerprint"]
    ),
    "UpdateEpoch": lambda session: pb.UpdateEpochRequest(session_id=session),
    "ReportResults": lambda session: pb.ReportResultsRequest(session_id=session),
    "KeepAlive": lambda session: pb.KeepAliveRequest(session_id=session),
    "GetSession": lambda session: pb.GetSessionRequest(session_id=session),
    "ListSessions": lambda _: pb.ListSessionsRequest(),
    "CloseSession": lambda session: pb.CloseSessionRequest(session_id=session),
    "ListAlgorithms": lambda _: pb.ListAlgorithmsRequest(),
    "ListTenants": lambda _: pb.ListTenantsRequest(),
}

ANY = "any"

REPEATED = FieldDescriptor.LABEL_REPEATED
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)

FieldPath = tuple[FieldDescriptor, ...]
TENSORS: FieldPath = ()  # stands for whole tensors: a header, a chunk and a commit each


def paths(descriptor: Any, before: FieldPath = ()) -> Iterator[FieldPath]:
    """Every field that can be long, repeated or nested; what is recursive, twice."""
    for field in descriptor.fields:
        path = (*before, field)
        if field.label == REPEATED or field.type in TEXTS:
            yield path
        inner = field.message_type
        if inner is not None and sum(f.message_type is inner for f in before) < 2:
            yield from paths(inner, path)


def name_of(path: FieldPath) -> str:
    return ".".join(field.name for field in path) or "whole-tensors"


# Messages are made as bytes, to which protobuf adds up what is concatenated.


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def sized(field: FieldDescriptor, payload: bytes) -> bytes:
    return varint(field.number << 3 | 2) + varint(len(payload)) + payload


def is_entry(field: FieldDescriptor) -> bool:
    """Of a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def value_of(example: Any, field: FieldDescriptor) -> Any:
    """What the example has in the field: an element; None where there is none."""
    if example is None or is_entry(field) or not hasattr(example, "DESCRIPTOR"):
        return None
    value = getattr(example, field.name)
    if field.label == REPEATED:
        return value[0] if len(value) else None
    return value


def element(field: FieldDescriptor, example: Any, i: int, empty: bool) -> bytes:
    """One more of a repeated field, unlike the others unless it is empty."""
    text = f"{i:x}".rjust(8, "0")
    if is_entry(field):
        return sized(field, sized(field.message_type.fields[0], text.encode()))
    if field.type in TEXTS:
        return sized(field, b"" if empty else text.encode())
    if empty or example is None:
        return sized(field, b"")
    return sized(field, another(example, i))


def another(example: Message, i: int) -> bytes:
    """The example under another name or index, as a later part; ANY becomes a name."""
    copied = copy.deepcopy(example)
    if isinstance(copied, pb.TensorHeader) and copied.HasField("part"):
        copied.part.sequence = 1 + i
    for field in copied.DESCRIPTOR.fields:
        if field.name == "index":
            copied.index = i % (1 << 20)
        elif field.name in ("name", "fingerprint") or getattr(copied, field.name) == ANY:
            text = f"{i:x}".rjust(8, "0")
            setattr(copied, field.name, text.encode() if field.name == "fingerprint" else text)
    return copied.SerializeToString()


def most(field: FieldDescriptor, example: Any, size: int, empty: bool, first: int) -> bytes:
    """About `size` bytes of the field: of elements, or of one value."""
    if field.label != REPEATED:
        return sized(field, b"x" * size)
    if field.message_type is None and field.type not in TEXTS:  # packed numbers
        return sized(field, (b"\0" if empty else b"\1") * size)
    one = element(field, example, first, empty)
    if one == element(field, example, first + 1, empty):
        return one * (size // len(one))
    parts: list[bytes] = []
    for i in itertools.count(first):
        parts.append(element(field, example, i, empty))
        size -= len(parts[-1])
        if size <= 0:
            return b"".join(parts)
    raise AssertionError


def number_of(first: int) -> int:
    """Of the one element that a message has where a field in it is filled."""
    return (1 << 16) + first // MIB


def filled(path: FieldPath, example: Any, size: int, empty: bool, first: int = 0) -> bytes:
    """What to add to a message so that it has so much where the path leads."""
    field, *rest = path
    inner = value_of(example, field)
    if not rest:
        return most(field, inner, size, empty, first)
    body = b""
    if is_entry(field):
        if rest[0].name != "key":
            body = sized(field.message_type.fields[0], b"another key")
    elif field.label == REPEATED and inner is not None:
        body = another(inner, number_of(first))
    return sized(field, body + filled(tuple(rest), inner, size, empty, first))


def tensors(
    example: Message, size: int, first: int, parts_of: tuple[str, ...]
) -> tuple[bytes, int]:
    """Parts of tensors, and the index after theirs."""
    fields = [example.DESCRIPTOR.fields_by_name[name] for name in parts_of]
    each = sum(len(element(field, value_of(example, field), first, False)) for field in fields)
    count = max(1, size // each)
    parts = [
        element(field, value_of(example, field), i, False)
        for field in fields
        for i in range(first, first + count)
    ]
    return b"".join(parts), first + count


UNARY = [
    (name, path)
    for name, method in METHODS.items()
    if not method.client_streaming
    for path in paths(method_types(name)[0].DESCRIPTOR)
]
STREAMS = [name for name, method in METHODS.items() if method.client_streaming]
# How a stream's tensors are sent, and what follows their headers.
KINDS = {
    "like-the-example": ("chunks", "commits"),
    "empty": ("chunks", "commits"),
    "refused": (),
    "refused-and-over": ("chunks", "commits"),
    "digest-and-over": ("commits",),
}


def kinds_of(path: FieldPath) -> list[str]:
    about_headers = path == TENSORS or path[0].name == "headers"
    return [k for k in KINDS if about_headers or not k.endswith("over")]


def streamed() -> Iterator[Any]:
    """Every call with every field. What several calls have in common gates changes once."""
    seen: set[tuple[str, str]] = set()
    for name in STREAMS:
        for path in (TENSORS, *paths(method_types(name)[0].DESCRIPTOR)):
            for kind in kinds_of(path):
                marks = []
                if path:
                    leaf = path[-1]
                    what = (leaf.message_type or leaf).full_name
                    marks = [pytest.mark.long] if (what, kind) in seen else []
                    seen.add((what, kind))
                label = "-".join((name, name_of(path), kind))
                yield pytest.param(name, path, kind, marks=marks, id=label)


def labels(cases: list[tuple[str, FieldPath]]) -> list[str]:
    return [f"{name}-{name_of(path)}" for name, path in cases]


class Held:
    """A streaming call that sends all it may and never ends; it reads nothing, or all."""

    def __init__(
        self, server: LiveServer, name: str, messages: Iterator[bytes], reads: bool = False
    ) -> None:
        self._release = threading.Event()
        self._taken = 0
        self._looks: list[int] = []
        self._all = False
        metadata = [("nni-route", "accounting")]
        if name == "Watch":
            self._call = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        elif METHODS[name].server_streaming:
            call = server.channel.stream_stream(f"/{SERVICE}/{name}")
            self._call = call(self._requests(messages), metadata=metadata)
            if reads:
                threading.Thread(target=self._read, daemon=True).start()
        else:
            call = server.channel.stream_unary(f"/{SERVICE}/{name}")
            self._call = call.future(self._requests(messages), metadata=metadata)

    def _requests(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            yield message
            self._taken += 1  # by the transport, which asks for the next one
        self._all = True
        self._release.wait()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for _ in self._call:
                pass

    def settled(self) -> bool:
        """Whether all is sent, the call has ended, or the server has not read for a while."""
        self._looks.append(self._taken)
        waits = len(self._looks) > UNREAD and self._looks[-UNREAD] == self._looks[-1] > 0
        return self._all or not self._call.is_active() or waits

    def end(self) -> None:
        self._release.set()
        self._call.cancel()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One with room for all that is allowed."""
    with LiveServer(
        tmp_path_factory.mktemp("accounting"),
        f"--memory_budget={BUDGET}",
        f"--cache_budget={64 * MIB}",
        "--report_retention=0s",
        "--stall_timeout=1h",
        "--min_upload_rate=0",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One that has to refuse most of it."""
    with LiveServer(
        tmp_path_factory.mktemp("tight"), f"--memory_budget={TIGHT}", "--report_retention=0s"
    ) as started:
        yield started


def session_of(server: LiveServer, algorithm: str, rule: dict[str, Any]) -> str:
    request = pb.BindModelRequest(algorithm=algorithm, framework="pytorch")
    request.config_list.add().update(rule)
    request.layers.add(name="fc", op_type="Linear", dtype=pb.DATA_TYPE_FLOAT32, shape=[1])
    return server.call("BindModel", request.SerializeToString(), pb.BindModelResponse).session_id


# QuantizeWeight needs a quantizer; it does for the others as well, but masks and statistics.
SESSIONS = {
    "CalcMask": ("level", {"sparsity": 0.5}),
    "AddStatistics": ("movement", {"final_sparsity": 0.5, "end_epoch": 2}),
}
QUANTIZER = ("qat", {"quant_types": ["weight", "output"]})


@contextlib.contextmanager
def back_to_base(server: LiveServer) -> Iterator[LiveServer]:
    """Afterwards the server holds what it did before, and what it keeps for later."""
    before = server.rest()
    yield before
    looks: list[tuple[int, int]] = []

    def returned() -> bool:
        after = server.rest()
        left, kept = after.live - before.live, after.cache - before.cache
        looks.append((left, kept))
        return left <= kept + LEFT

    # Tasks of calls that have ended may still be queued.
    if not eventually(returned):
        left, kept = looks[-1]
        raise AssertionError(f"{left} bytes are live, {kept} of them are said to be kept")


@pytest.mark.parametrize("empty", [False, True], ids=["like-the-example", "empty"])
@pytest.mark.parametrize(("name", "path"), UNARY, ids=labels(UNARY))
def test_requests(server: LiveServer, name: str, path: FieldPath, empty: bool) -> None:
    """What a call leaves is counted while it is there."""
    with back_to_base(server) as before:
        session = session_of(server, *SESSIONS["CalcMask"])
        sessions = [session]
        example = EXAMPLES[name](session)
        base = example.SerializeToString()
        reply = method_types(name)[1]
        size = MESSAGE - len(base)
        while size > 0:
            data = base + filled(path, example, size, empty)
            try:
                answer = server.call(name, data, reply)
                break
            except grpc.RpcError:
                size //= 2
        if name == "BindModel" and size > 0:
            sessions.append(answer.session_id)
            for _ in range(HELD - 1):
                sessions.append(server.call(name, data, reply).session_id)
        server.check_growth(before, SLACK)
        for one in dict.fromkeys(sessions):
            server.close_session(one)


@pytest.mark.parametrize("empty", [False, True], ids=["like-the-example", "empty"])
@pytest.mark.parametrize(("name", "path"), UNARY, ids=labels(UNARY))
def test_requests_at_a_time(tight: LiveServer, name: str, path: FieldPath, empty: bool) -> None:
    """However many of the largest come at once: what is not counted is never there."""
    with back_to_base(tight) as before:
        session = session_of(tight, *SESSIONS["CalcMask"])
        example = EXAMPLES[name](session)
        data = example.SerializeToString()
        data += filled(path, example, MESSAGE - len(data), empty)
        tight.forget_peak()
        calls = [tight.begin(name, data, method_types(name)[1]) for _ in range(AT_ONCE)]
        sessions = [session]
        for call in calls:
            with contextlib.suppress(grpc.RpcError):
                reply = call.result()
                if name == "BindModel":
                    sessions.append(reply.session_id)
        # Beside what is reserved, gRPC holds the messages.
        allowed = 2 * (TIGHT + AT_ONCE * 4 * MIB + SLACK)
        assert tight.peak() - before.live <= allowed
        for one in sessions:
            with contextlib.suppress(grpc.RpcError):
                tight.close_session(one)


def messages(path: FieldPath, example: Message, kind: str) -> Iterator[bytes]:
    """All that a streaming call is sent, of the path or of whole tensors."""
    example = copy.deepcopy(example)
    if kind.startswith("refused"):
        example.headers[0].layer = "unknown"
    if kind.startswith("digest"):
        example.headers[0].digest = bytes(32)
        if isinstance(example, pb.ExportRequest):  # which takes each name once
            example.headers[0].layer = ANY
    opening = type(example)()
    opening.open.CopyFrom(example.open)
    base = opening.SerializeToString()
    if path and path[0].name == "open":
        content = example.open.SerializeToString()
        inner = filled(path[1:], example.open, FIELD - len(content), kind == "empty")
        yield sized(path[0], content + inner)
        return
    yield base
    first = sent = 0
    while sent < (STREAMED_BYTES if path else TENSOR_BYTES):
        if path == TENSORS:
            message, first = tensors(example, MIB, first, ("headers", *KINDS[kind]))
        else:
            message = filled(path, example, FIELD, kind == "empty", first)
            if kind.endswith("over"):
                for name in KINDS[kind]:
                    field = example.DESCRIPTOR.fields_by_name[name]
                    message += element(field, value_of(example, field), number_of(first), False)
            first += MIB
        sent += len(message)
        yield message


@pytest.mark.parametrize(("name", "path", "kind"), streamed())
def test_streams(server: LiveServer, name: str, path: FieldPath, kind: str) -> None:
    """What calls send, and do not read, is counted while it is there."""
    with back_to_base(server) as before:
        session = session_of(server, *SESSIONS.get(name, QUANTIZER))
        example = EXAMPLES[name](session)
        count = OPENED if path and path[0].name == "open" else STREAM_CALLS
        reads = kind == "digest-and-over"  # else it would soon have to wait
        sent = list(messages(path, example, kind))
        calls = [Held(server, name, iter(sent), reads) for _ in range(count)]
        assert eventually(lambda: min([call.settled() for call in calls]))
        server.check_growth(before, SLACK)
        for call in calls:
            call.end()
        server.close_session(session)


@pytest.mark.parametrize("name", [*STREAMS, "Watch"])
def test_calls_that_do_nothing(server: LiveServer, name: str) -> None:
    """They have a price, too."""
    with back_to_base(server) as before:
        calls = [Held(server, name, iter(())) for _ in range(CALLS)]
        assert server.eventually_calls(CALLS)
        server.check_growth(before, 0)
        for call in calls:
            call.end()


def test_connections_that_do_nothing(server: LiveServer) -> None:
    with back_to_base(server) as before:
        channels = [server.connect() for _ in range(CONNECTIONS)]
        server.check_growth(before, 0)
        for channel in channels:
            channel.close()


def test_all_calls_are_here() -> None:
    assert set(EXAMPLES) == set(METHODS)
