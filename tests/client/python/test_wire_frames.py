"""The hand-written framing against protobuf's, and on bytes that are wrong."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from nni_compression._wire import compression_pb2 as pb
from nni_compression._wire import frames
from nni_compression.errors import DataLossError

MAX_MESSAGE = 4 << 20


def outgoing(index: int, size: int, seed: int = 0) -> frames.Outgoing:
    data = np.random.default_rng(seed + index).integers(0, 256, size, dtype=np.uint8)
    header = pb.TensorHeader(
        index=index,
        layer=f"layer{index}",
        role=pb.TENSOR_ROLE_WEIGHT,
        dtype=pb.DATA_TYPE_UINT8,
        shape=[max(size, 1)],
        byte_length=size,
    )
    return frames.Outgoing(header, memoryview(data))


def messages_of(tensors: list[frames.Outgoing], **options: object) -> list[bytes]:
    opening = pb.CalcMaskRequest.Open(session_id="abc").SerializeToString()
    return list(frames.request_messages(opening, tensors, **options))  # type: ignore[arg-type]


def reassemble(messages: list[bytes]) -> dict[int, bytes]:
    """What a server reads, with the order of effects and the rules of the wire checked."""
    headers: dict[int, pb.TensorHeader] = {}
    payloads: dict[int, bytearray] = {}
    done: dict[int, bytes] = {}
    for i, raw in enumerate(messages):
        assert 0 < len(raw) <= MAX_MESSAGE
        message = pb.CalcMaskRequest.FromString(raw)
        assert message.HasField("open") == (i == 0)
        for header in message.headers:
            assert header.index not in headers
            headers[header.index] = header
            payloads[header.index] = bytearray()
        for chunk in message.chunks:
            assert chunk.payload
            assert chunk.offset == len(payloads[chunk.index])
            payloads[chunk.index] += chunk.payload
        for commit in message.commits:
            done[commit.index] = bytes(payloads.pop(commit.index))
            assert commit.byte_length == len(done[commit.index])
            assert headers[commit.index].byte_length == commit.byte_length
            if commit.HasField("crc32"):
                assert commit.crc32 == zlib.crc32(done[commit.index])
    assert not payloads
    return done


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32 - 1, 2**48, 2**64 - 1])
def test_a_varint_is_read_back(value: int) -> None:
    encoded = frames.encode_varint(value)
    assert list(frames.walk(memoryview(b"\x08" + encoded))) == [(1, value)]


@pytest.mark.parametrize(("index", "offset", "size"), [(0, 0, 1), (200, 2**40, 130), (3, 5, 70000)])
def test_a_chunk_is_what_protobuf_reads(index: int, offset: int, size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    raw = frames.encode_chunk_prefix(index, offset, size) + payload
    expected = pb.CalcMaskRequest(chunks=[pb.Chunk(index=index, offset=offset, payload=payload)])
    assert pb.CalcMaskRequest.FromString(raw) == expected


def test_a_chunk_of_protobuf_is_read_without_copying_its_payload() -> None:
    message = pb.CalcMaskResponse(chunks=[pb.Chunk(index=7, offset=2**33, payload=b"abc")])
    raw = message.SerializeToString()
    ((number, content),) = frames.fields(raw)
    chunk = frames.decode_chunk(content)
    assert (number, chunk.index, chunk.offset) == (frames.CHUNK, 7, 2**33)
    assert chunk.payload == b"abc"
    assert chunk.payload.obj is raw


def test_small_tensors_share_one_message() -> None:
    tensors = [outgoing(i, size) for i, size in enumerate([1, 1000, 5, 100_000])]
    messages = messages_of(tensors)
    assert len(messages) == 1
    assert reassemble(messages) == {i: bytes(t.data) for i, t in enumerate(tensors)}


def test_a_small_models_tensors_go_in_one_message() -> None:
    tensors = [outgoing(i, size) for i, size in enumerate([2_000, 100_000, 1_600_000, 20_000])]
    messages = messages_of(tensors)
    assert len(messages) == 1
    assert len(messages[0]) < 4 << 20
    assert reassemble(messages) == {i: bytes(t.data) for i, t in enumerate(tensors)}


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("headers_first", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        [frames.LONE_BYTES],
        [frames.LONE_BYTES + 1],
        [frames.CHUNK_BYTES],
        [frames.CHUNK_BYTES + 1],
        [10, 3 * frames.CHUNK_BYTES, 10, 10],
        [2 * frames.CHUNK_BYTES, 2 * frames.CHUNK_BYTES - 1, 5],
        [300_000] * 20,
        [3] * 5000,
    ],
)
def test_tensors_of_any_size_arrive(sizes: list[int], headers_first: bool, checksum: bool) -> None:
    tensors = [outgoing(i, size) for i, size in enumerate(sizes)]
    messages = messages_of(tensors, headers_first=headers_first, checksum=checksum)
    assert reassemble(messages) == {i: bytes(t.data) for i, t in enumerate(tensors)}


def test_a_tensor_of_many_chunks_shares_no_message_with_others_payloads() -> None:
    tensors = [outgoing(0, 100), outgoing(1, 3 * frames.CHUNK_BYTES + 5), outgoing(2, 100)]
    for raw in messages_of(tensors):
        indices = {chunk.index for chunk in pb.CalcMaskRequest.FromString(raw).chunks}
        assert indices in ({0}, {1}, {2})


def test_all_headers_come_before_the_first_payload_when_asked() -> None:
    tensors = [outgoing(i, 2 * frames.CHUNK_BYTES) for i in range(3)]
    messages = [pb.CalcMaskRequest.FromString(m) for m in messages_of(tensors, headers_first=True)]
    first_payload = next(i for i, message in enumerate(messages) if message.chunks)
    assert sum(len(message.headers) for message in messages[: first_payload + 1]) == 3


def test_a_tensor_without_bytes_is_sent_without_chunks() -> None:
    (raw,) = messages_of([outgoing(0, 0)])
    message = pb.CalcMaskRequest.FromString(raw)
    assert (len(message.headers), len(message.chunks), len(message.commits)) == (1, 0, 1)


def test_fields_come_in_the_order_in_which_they_take_effect() -> None:
    late = pb.CalcMaskResponse(commits=[pb.Commit(index=1)]).SerializeToString()
    early = pb.CalcMaskResponse(results=[pb.MaskResult(answers=1)]).SerializeToString()
    unknown = frames.encode_field(99, b"newer") + b"\x98\x06\x01"  # and a varint field 99
    numbers = [number for number, _ in frames.fields(late + unknown + early)]
    assert numbers == [frames.RESULT, frames.COMMIT, 99]


def test_every_truncation_is_either_a_shorter_message_or_an_error() -> None:
    header = pb.TensorHeader(index=3, layer="a", shape=[4], byte_length=4)
    message = pb.CalcMaskResponse(
        results=[pb.MaskResult(answers=1, layer="a")],
        headers=[header],
        chunks=[pb.Chunk(index=3, offset=0, payload=b"1234")],
        commits=[pb.Commit(index=3, byte_length=4, crc32=5)],
    )
    raw = message.SerializeToString()
    whole = []
    for length in range(len(raw)):
        try:
            whole.append(len(frames.fields(raw[:length])))
        except DataLossError:
            continue
    assert whole == [0, 1, 2, 3]  # the cuts between fields


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80",  # a tag that does not end
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x",  # a length of 2^64 - 1
        b"\x0a\x05abc",  # a length past the end
        b"\x08" + b"\xff" * 11,  # a number of more than 10 bytes
        b"\x02\x01x",  # field number 0
        b"\x0b\x0c",  # a group
        b"\x0f",  # a wire type that does not exist
        b"\x0d\x01\x02",  # a fixed32 of 2 bytes
        b"\x09\x01",  # a fixed64 of 1 byte
    ],
)
def test_bytes_that_are_no_message_are_data_loss(raw: bytes) -> None:
    with pytest.raises(DataLossError, match="the server sent a message"):
        frames.fields(raw)


def test_random_bytes_never_raise_anything_else() -> None:
    random = np.random.default_rng(7)
    for _ in range(3000):
        raw = random.integers(0, 256, random.integers(0, 60), dtype=np.uint8).tobytes()
        try:
            for _, content in frames.fields(raw):
                frames.decode_chunk(content)
        except DataLossError:
            continue
