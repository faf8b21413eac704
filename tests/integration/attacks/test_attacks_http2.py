"""HTTP/2 as no client of ours speaks it, straight at a server.

After each the server serves, holds what it held, and a trainer beside has noticed nothing.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

import nni_compression as nc
from attacked import LAYER, Attacked, upload
from http2 import FRAME, PREFACE, TRAILERS, Peer, message
from metered import eventually
from servers import SERVICE
from usage import FRUGAL_HEAP, connections

LIST = f"{SERVICE}/ListSessions"
CALC_MASK = f"{SERVICE}/CalcMask"
OK = "0"
CANCELLED = "1"
TOO_LATE = "4"  # DEADLINE_EXCEEDED
CANCEL = 8
INITIAL_WINDOW_SIZE = SettingsFrame.INITIAL_WINDOW_SIZE


@contextlib.contextmanager
def dripping(peer: Peer, content: bytes) -> Iterator[None]:
    """The peer sends this 20 times a second, for 20 s at most, in a thread of its own."""
    stop = threading.Event()

    def send() -> None:
        for _ in range(400):
            if stop.wait(0.05) or not peer.send_bytes(content):
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_such_a_peer_is_answered_when_it_keeps_to_the_rules(target: Attacked) -> None:
    with Peer(target.port) as peer:
        for _ in range(2):
            headers = peer.headers(LIST)
            assert peer.send(headers, peer.data(headers.stream_id, message(b"")))
            assert peer.outcome(headers.stream_id) == OK


def test_rapid_resets(target: Attacked) -> None:
    def attack() -> None:
        with Peer(target.port) as peer:
            for _ in range(100):
                for _ in range(100):
                    headers = peer.headers(LIST)
                    reset = RstStreamFrame(headers.stream_id, error_code=CANCEL)
                    body = peer.data(headers.stream_id, message(b""))
                    if not peer.send(headers, body, reset):
                        return

    target.survives(attack)


def test_connections_that_are_reset_after_rapid_resets(target: Attacked) -> None:
    for _ in range(60):
        with Peer(target.port) as peer:  # closes with answers unread, which resets it
            for _ in range(20):
                for _ in range(100):
                    headers = peer.headers(LIST)
                    body = peer.data(headers.stream_id, message(b""))
                    reset = RstStreamFrame(headers.stream_id, error_code=CANCEL)
                    peer.send(headers, body, reset)
    assert eventually(lambda: connections(target.server.process.pid) == 0)


@pytest.mark.parametrize(
    ("frame", "count"),
    [
        pytest.param(PingFrame(0, opaque_data=b"12345678"), 100_000, id="pings"),
        pytest.param(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 1}), 50_000, id="settings"),
        pytest.param(WindowUpdateFrame(0, window_increment=1), 100_000, id="window updates"),
        pytest.param(RstStreamFrame(1, error_code=CANCEL), 100_000, id="resets of no stream"),
    ],
)
def test_a_flood_whose_answers_are_not_read(target: Attacked, frame: PingFrame, count: int) -> None:
    def attack() -> None:
        with Peer(target.port) as peer:
            peer.flood(frame.serialize(), count)

    target.survives(attack)


def test_empty_frames_of_a_body_without_end(target: Attacked) -> None:
    def attack() -> None:
        with Peer(target.port) as peer:
            headers = peer.headers(LIST)
            peer.send(headers)
            peer.flood(DataFrame(headers.stream_id, data=b"").serialize(), 100_000)

    target.survives(attack)


def test_headers_without_end(target: Attacked) -> None:
    def attack() -> None:
        with Peer(target.port) as peer:
            headers = peer.headers(LIST)
            headers.flags.discard("END_HEADERS")
            peer.send(headers)
            field = b"\x00\x03x-a\x7f\x81\x07" + b"a" * 262  # a literal that is not indexed
            more = ContinuationFrame(headers.stream_id, data=field * 60)
            peer.flood(more.serialize(), 1000)  # 16 MB

    target.survives(attack)


def test_headers_that_say_one_large_field_a_hundred_thousand_times(target: Attacked) -> None:
    def attack() -> None:
        with Peer(target.port) as peer:
            headers = peer.headers(LIST, TRAILERS, ("x-large", "a" * 3000))
            headers.flags.discard("END_HEADERS")
            peer.send(headers)
            again = bytes([0x80 | 62]) * 10_000  # the field that was indexed last
            peer.flood(ContinuationFrame(headers.stream_id, data=again).serialize(), 10)
            last = ContinuationFrame(headers.stream_id, data=b"")
            last.flags.add("END_HEADERS")
            peer.send(last)
            assert peer.outcome(headers.stream_id) != OK

    target.survives(attack)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"\x00\x03x-a\x7f\x81\xff\xff\xff\x03", id="a value of a gigabyte"),
        pytest.param(b"\x00\x7f\x81\xff\xff\xff\x03", id="a name of a gigabyte"),
        pytest.param(b"\x00\x03x-a\x7f" + b"\xff" * 40, id="a length that overflows"),
        pytest.param(b"\xff" + b"\xff" * 40, id="an index that overflows"),
        pytest.param(b"\x3f\xe1\xff\xff\xff\x03", id="a table of a gigabyte"),
    ],
)
def test_headers_that_announce_more_than_there_is(target: Attacked, field: bytes) -> None:
    def attack() -> None:
        target.forget_peak()
        for _ in range(20):
            with Peer(target.port) as peer:
                headers = peer.headers(LIST)
                headers.data += field + b"a" * 1000
                peer.send(headers, peer.data(headers.stream_id, message(b"")))
                assert peer.outcome(headers.stream_id) != OK
        assert target.peak() < 16 << 20

    target.survives(attack)


def test_answers_that_have_no_window(target: Attacked) -> None:
    def attack() -> None:
        with Peer(target.port, {INITIAL_WINDOW_SIZE: 0}) as peer:
            for _ in range(500):
                headers = peer.headers(f"{SERVICE}/ListAlgorithms")
                peer.send(headers, peer.data(headers.stream_id, message(b"")))
            with nc.Client(target.address) as client:
                assert client.algorithms()

    target.survives(attack)


def ask_for_a_mask(peer: Peer, session: nc.Session) -> int:
    """Sends all of a call; its stream."""
    peer.agree()
    headers = peer.headers(CALC_MASK)
    peer.send(headers)
    body = b"".join(map(message, upload("CalcMask", session.id)))
    for first in range(0, len(body), FRAME):
        part = body[first : first + FRAME]
        assert peer.send(peer.data(headers.stream_id, part, end=False))
    return headers.stream_id


def test_a_mask_that_nobody_reads(hasty: Attacked) -> None:
    def attack() -> None:
        with nc.Client(hasty.address) as client:
            session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
            with Peer(hasty.port, {INITIAL_WINDOW_SIZE: 0}) as peer:
                stream = ask_for_a_mask(peer, session)
                assert peer.outcome(stream) in (CANCELLED, TOO_LATE)
            session.close()

    hasty.survives(attack)


def test_a_mask_that_is_read_a_byte_at_a_time(hasty: Attacked) -> None:
    def attack() -> None:
        with nc.Client(hasty.address) as client:
            session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
            with Peer(hasty.port, {INITIAL_WINDOW_SIZE: 0}) as peer:
                stream = ask_for_a_mask(peer, session)
                with dripping(peer, WindowUpdateFrame(stream, window_increment=1).serialize()):
                    assert peer.outcome(stream) in (CANCELLED, TOO_LATE)
            session.close()

    hasty.survives(attack)


def test_a_message_that_comes_a_byte_at_a_time(hasty: Attacked) -> None:
    def attack() -> None:
        with nc.Client(hasty.address) as client:
            session = client.bind_model("level", [{"sparsity": 0.5}], [LAYER])
            with Peer(hasty.port) as peer:
                headers = peer.headers(CALC_MASK)
                opening, part, *_ = map(message, upload("CalcMask", session.id))
                begun = peer.data(headers.stream_id, opening + part[:1000], end=False)
                assert peer.send(headers, begun)
                byte = peer.data(headers.stream_id, b"\0", end=False).serialize()
                with dripping(peer, byte):
                    assert peer.outcome(headers.stream_id) == TOO_LATE
            session.close()

    hasty.survives(attack)


def test_deadlines_of_a_microsecond(target: Attacked) -> None:
    def attack() -> None:
        for method in ("ListSessions", "BindModel", "CalcMask", "Step", "Export"):
            with Peer(target.port) as peer:
                for _ in range(100):
                    headers = peer.headers(f"{SERVICE}/{method}", TRAILERS, ("grpc-timeout", "1u"))
                    body = peer.data(headers.stream_id, message(b""))
                    assert peer.send(headers, body)
                    # In time or too late, but answered.
                    assert peer.outcome(headers.stream_id) != "closed"

    target.survives(attack)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(message(b"", length=0xFFFFFFFF), id="four gigabytes"),
        pytest.param(message(b"", length=(4 << 20) + 1), id="a byte too many"),
        pytest.param(message(b"abc", flag=1), id="compressed by nobody knows what"),
        pytest.param(message(b"abc", flag=0xFF), id="a flag that does not exist"),
        pytest.param(message(b"abc", length=4), id="a byte too few"),
        pytest.param(b"\0\0", id="half of a length"),
    ],
)
def test_a_message_whose_length_or_flag_is_wrong(target: Attacked, body: bytes) -> None:
    def attack() -> None:
        for method in (f"{SERVICE}/BindModel", CALC_MASK):
            with Peer(target.port) as peer:
                headers = peer.headers(method)
                peer.send(headers, peer.data(headers.stream_id, body))
                assert peer.outcome(headers.stream_id) != OK

    target.survives(attack)


def test_messages_that_are_never_finished() -> None:
    message_size = 4 << 20
    begun = memoryview(message(b"a" * (message_size - 10), length=message_size))
    limit = 256 << 20  # of what gRPC holds, where the budget is small

    with Attacked("--memory_budget=64M", heap=FRUGAL_HEAP) as target:

        def attack() -> None:
            target.forget_peak()
            with Peer(target.port) as peer:
                peer.agree()
                streams = []
                for _ in range(400):
                    headers = peer.headers(f"{SERVICE}/BindModel")
                    peer.send(headers)
                    streams.append(headers.stream_id)
                assert peer.send_bodies(streams, begun) > 2 * limit
            assert target.peak() < 2 * limit  # it lets go of streams one by one

        target.survives(attack)


def test_noise(target: Attacked) -> None:
    def attack() -> None:
        chance = random.Random(5)
        for _ in range(300):
            with Peer(target.port) as peer:
                noise = bytearray(chance.randbytes(chance.randrange(1, 2000)))
                noise[0:2] = b"\0\0"  # a frame that is short enough to be looked at
                peer.send_bytes(bytes(noise))

    target.survives(attack)


def test_half_of_a_preface(target: Attacked) -> None:
    def attack() -> None:
        peers = []
        for length in range(500):
            peer = socket.create_connection(("127.0.0.1", target.port))
            peer.sendall(PREFACE[: length % len(PREFACE)])
            peers.append(peer)
        with nc.Client(target.address) as client:
            assert client.health() == "SERVING"
        for peer in peers:
            peer.close()

    target.survives(attack)
