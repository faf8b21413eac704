"""Calls that no client of ours makes, or not so many of them.

After each the server serves, holds what it held, and a trainer beside has noticed nothing.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import nni_compression as nc
from attacked import LAYER, WEIGHT, Attacked, upload
from metered import eventually
from nni_compression._wire import compression_pb2 as pb
from servers import SERVICE

METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["CompressionService"].methods}
STREAMS = ("CalcMask", "QuantizeWeight", "Step", "Export")
MESSAGE_LIMIT = 4 << 20


def end_of(
    channel: grpc.Channel, method: str, *requests: bytes, timeout: float = 30, **options: Any
) -> tuple[grpc.StatusCode, str]:
    """How a call with these messages ends, and what it says."""
    call = channel.stream_stream(f"/{SERVICE}/{method}")(iter(requests), timeout=timeout, **options)
    try:
        list(call)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def connect(target: Attacked, **options: int) -> grpc.Channel:
    """A connection of its own, however many there are."""
    settings = {"use_local_subchannel_pool": 1, **options}
    return grpc.insecure_channel(
        target.address, options=[(f"grpc.{name}", value) for name, value in settings.items()]
    )


def bind_request(**changes: Any) -> pb.BindModelRequest:
    request = pb.BindModelRequest(algorithm="level", framework="pytorch", **changes)
    request.config_list.add().update({"sparsity": 0.5})
    request.layers.add(name="fc", op_type="Linear", dtype=pb.DATA_TYPE_FLOAT32, shape=LAYER.shape)
    return request


class TestMessages:
    @pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
    def test_that_unpack_to_much_more(self, target: Attacked, algorithm: grpc.Compression) -> None:
        bomb = bytes(64 << 20)  # 64 KiB on their way

        def attack() -> None:
            for method in ("BindModel", "CalcMask"):
                target.forget_peak()
                with connect(target, max_send_message_length=-1) as channel:
                    code, text = end_of(channel, method, bomb, compression=algorithm)
                assert code == grpc.StatusCode.UNIMPLEMENTED, text
                assert target.peak() < 16 << 20

        target.survives(attack)

    def test_as_large_as_it_may_be_and_a_byte_more(self, target: Attacked) -> None:
        request = bind_request()
        request.layers[0].aliases.append("")
        room = MESSAGE_LIMIT - request.ByteSize()

        def attack() -> None:
            with connect(target, max_send_message_length=-1) as channel:
                for bytes_more, expected in (
                    (0, grpc.StatusCode.INVALID_ARGUMENT),  # the name is too long
                    (1, grpc.StatusCode.RESOURCE_EXHAUSTED),
                ):
                    size = MESSAGE_LIMIT + bytes_more
                    request.layers[0].aliases[0] = "a" * room
                    while (excess := request.ByteSize() - size) != 0:
                        request.layers[0].aliases[0] = "a" * (
                            len(request.layers[0].aliases[0]) - excess
                        )
                    assert end_of(channel, "BindModel", request.SerializeToString())[0] == expected

        target.survives(attack)

    def test_that_are_cut_off_anywhere(self, target: Attacked) -> None:
        whole = bind_request(labels={"a": "b"}).SerializeToString()

        def attack() -> None:
            with connect(target) as channel, nc.Client(target.address) as client:
                bind = channel.unary_unary(f"/{SERVICE}/BindModel")
                calls = {
                    whole[:length]: bind.future(whole[:length], timeout=60)
                    for length in range(len(whole))
                }
                for part, call in calls.items():
                    if call.code() == grpc.StatusCode.OK:  # cut between two fields
                        bound = pb.BindModelResponse.FromString(call.result())
                        assert pb.BindModelRequest.FromString(part).layers
                        client.join(bound.session_id).close()
                for method in STREAMS:
                    first = upload(method, "0" * 32)[0]
                    for length in range(len(first)):
                        assert end_of(channel, method, first[:length])[0] != grpc.StatusCode.OK

        target.survives(attack)

    def test_of_wrong_types(self, target: Attacked) -> None:
        """Every field number with every wire type, in every method."""
        contents = (
            b"\xff" * 9 + b"\x01",
            b"\xff" * 8,
            b"\x04\xff\xff\xff\xff",
            b"",
            b"",
            b"\xff" * 4,
        )

        def attack() -> None:
            with connect(target) as channel, nc.Client(target.address) as client:
                calls = []
                for name in METHODS:
                    for tag in range(1, 128):
                        wire = tag & 7
                        content = contents[wire] if wire < len(contents) else b"\xff"
                        call = channel.unary_unary(f"/{SERVICE}/{name}")
                        calls.append(call.future(bytes([tag]) + content, timeout=60))
                for call in calls:
                    call.exception()
                assert client.sessions() is not None

        target.survives(attack)

    def test_beside_metadata_of_100_kib(self, target: Attacked) -> None:
        def attack() -> None:
            with connect(target) as channel:
                for metadata in (
                    [("x-large", "a" * 102_400)],
                    [(f"x-{i}", "a" * 100) for i in range(1024)],
                    [("nni-route", "a" * 102_400)],
                    [("authorization", "Bearer " + "a" * 102_400)],
                    [("large-bin", b"\0" * 102_400)],
                ):
                    code, text = end_of(channel, "ListSessions", b"", metadata=metadata)
                    # gRPC may also close the connection, while it is still being sent to.
                    ends = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
                    assert code in ends, text

        target.survives(attack)


class TestManyAtOnce:
    def test_the_same_bind_model_gives_one_session(self, target: Attacked) -> None:
        def attack() -> None:
            request = bind_request(request_id="once").SerializeToString()
            with connect(target) as channel, nc.Client(target.address) as client:
                call = channel.unary_unary(f"/{SERVICE}/BindModel")
                calls = [call.future(request, timeout=60) for _ in range(200)]
                ids = {pb.BindModelResponse.FromString(call.result()).session_id for call in calls}
                assert len(ids) == 1
                client.join(ids.pop()).close()

        target.survives(attack)

    def test_the_same_calls_of_a_session_are_applied_once(self, target: Attacked) -> None:
        rule = [{"quant_types": ["weight", "output"]}]

        def attack() -> None:
            with nc.Client(target.address) as client, ThreadPoolExecutor(16) as pool:
                session = client.bind_model("qat", rule, [LAYER])
                once = client.bind_model("qat", rule, [LAYER])
                for step in range(1, 6):
                    ranges = {"fc": (-float(step), 1.0)}
                    expected = once.step(step, outputs=ranges).outputs["fc"].range
                    calls = [pool.submit(session.step, step, outputs=ranges) for _ in range(16)]
                    assert {call.result().outputs["fc"].range for call in calls} == {expected}
                codes = [pool.submit(session.quantize_weight, {"fc": WEIGHT}) for _ in range(16)]
                assert len({call.result()["fc"].codes.tobytes() for call in codes}) == 1
                for call in [pool.submit(session.close) for _ in range(16)]:
                    call.result()
                once.close()

        target.survives(attack)

    def test_a_thousand_cancellations(self, target: Attacked) -> None:
        def attack() -> None:
            with nc.Client(target.address) as client, connect(target) as channel:
                session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
                messages = upload("CalcMask", session.id)
                for count in range(1000):
                    part = iter(messages[: 1 + count % len(messages)])
                    call = channel.stream_stream(f"/{SERVICE}/CalcMask")(part, timeout=60)
                    call.cancel()
                masks = session.calc_mask({"fc": WEIGHT})
                assert masks["fc"].pruned == WEIGHT.size // 2
                session.close()

        target.survives(attack)

    def test_uploads_that_stop_half_way(self, hasty: Attacked) -> None:
        def attack() -> None:
            stop = threading.Event()

            def stalled(messages: list[bytes]) -> Iterator[bytes]:
                yield from messages[:2]
                stop.wait(60)

            with nc.Client(hasty.address) as client, connect(hasty) as channel:
                session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
                messages = upload("CalcMask", session.id)
                call = channel.stream_stream(f"/{SERVICE}/CalcMask")
                calls = [call(stalled(messages), timeout=60) for _ in range(50)]
                assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == WEIGHT.size // 2
                for each in calls:  # the server ends them
                    assert each.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                stop.set()
                session.close()

        hasty.survives(attack)

    def test_ten_thousand_connections(self, target: Attacked) -> None:
        def attack() -> None:
            peers = []
            try:
                for _ in range(10_000):
                    peer = socket.create_connection(("127.0.0.1", target.port), timeout=20)
                    peers.append(peer)
                with nc.Client(target.address, connect_timeout=60) as client:
                    assert client.algorithms()
            finally:
                for peer in peers:
                    peer.close()

        target.survives(attack)

    def test_ten_thousand_sessions_are_opened_and_dropped(self, target: Attacked) -> None:
        def attack() -> None:
            request = bind_request(lease={"seconds": 1}).SerializeToString()
            with connect(target) as channel, nc.Client(target.address) as client:
                call = channel.unary_unary(f"/{SERVICE}/BindModel")
                for _ in range(20):
                    calls = [call.future(request, timeout=60) for _ in range(500)]
                    assert {each.code() for each in calls} <= {
                        grpc.StatusCode.OK,
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                    }
                assert eventually(lambda: len(client.sessions()) <= 1)  # the bystander's

        target.survives(attack)


@pytest.mark.parametrize("method", STREAMS)
@pytest.mark.parametrize("sent", [1, 2, 3, 4])
def test_close_in_the_middle_of_a_call(target: Attacked, method: str, sent: int) -> None:
    algorithm = "qat" if method in ("QuantizeWeight", "Step") else "level"
    rule = {"sparsity": 0.5} if algorithm == "level" else {}
    gate = threading.Event()
    reached = threading.Event()

    def requests(messages: list[bytes]) -> Iterator[bytes]:
        yield from messages[:sent]
        reached.set()
        gate.wait(60)
        yield from messages[sent:]

    with nc.Client(target.address) as client, connect(target) as channel:
        session = client.bind_model(algorithm, [rule], [LAYER])
        if method == "Export":
            session.calc_mask({"fc": WEIGHT})
        call = channel.stream_stream(f"/{SERVICE}/{method}")(
            requests(upload(method, session.id)), timeout=60
        )
        assert reached.wait(60)
        session.close()
        gate.set()
        with contextlib.suppress(grpc.RpcError):
            list(call)
        assert call.code() in (
            grpc.StatusCode.OK,  # it was over before
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.INVALID_ARGUMENT,  # nobody asked Step for a gradient
        )
        assert client.session_info(session.id).state == "closed"
        with pytest.raises(nc.NotFoundError):
            client.join(session.id)
