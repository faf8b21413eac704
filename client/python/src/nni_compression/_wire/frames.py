"""The messages of the streaming calls, encoded and decoded by hand.

protobuf's Python runtime would copy every payload two or three times. Here a message is joined from
small encoded fields and views of the tensors' memory (one copy), and a received one is parsed field
by field, so that payloads are copied once, to their destination. The layout is in
compression.proto ("Tensors on the wire").
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional, Union

from ..errors import DataLossError
from . import compression_pb2 as pb

# Field numbers that all streaming messages share.
OPEN = RESULT = FILE = 1
HEADER = 2
CHUNK = 3
COMMIT = 4
ANSWER = 5

# Payload of one chunk, and maximum size of a message of small tensors. The wire allows 4 MiB.
CHUNK_BYTES = 1 << 20
# Tensors of no more than this in all are sent in one message without a sending thread: that is
# faster than overlapping sending with computing.
LONE_BYTES = 3 << 20

_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be sent: its header, with index and byte length, and its bytes."""

    header: pb.TensorHeader
    data: memoryview

    @property
    def by_reference(self) -> bool:
        """Whether the server finds the bytes elsewhere, so that no chunks follow."""
        return bool(self.header.HasField("shared_memory") or self.header.digest)


@dataclass(frozen=True)
class ReceivedChunk:
    """A piece of a received payload; `payload` is a view of the message."""

    index: int
    offset: int
    payload: memoryview


def encode_varint(value: int) -> bytes:
    """A non-negative integer as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(content)) + content


def encode_chunk_prefix(index: int, offset: int, payload_bytes: int) -> bytes:
    """All of a chunk's field but the payload's bytes, which come right after it."""
    inner = b"\x08" + encode_varint(index) + b"\x10" + encode_varint(offset)
    inner += b"\x1a" + encode_varint(payload_bytes)
    tag = encode_varint(CHUNK << 3 | _BYTES)
    return tag + encode_varint(len(inner) + payload_bytes) + inner


class MessageBuilder:
    """Collects the fields of one message, in the order in which they take effect."""

    def __init__(self) -> None:
        self._first: list[bytes] = []
        self._headers: list[bytes] = []
        self._chunks: list[Union[bytes, memoryview]] = []
        self._commits: list[bytes] = []
        self.size = 0
        self.has_payload = False

    def open(self, content: bytes) -> None:
        """Adds the field that opens the call."""
        self._append(self._first, encode_field(OPEN, content))

    def header(self, tensor: Outgoing) -> None:
        """Adds a tensor's header."""
        self._append(self._headers, encode_field(HEADER, tensor.header.SerializeToString()))

    def chunk(self, tensor: Outgoing, offset: int, payload: memoryview) -> None:
        """Adds a chunk; `payload` is referred to until `finish`."""
        prefix = encode_chunk_prefix(tensor.header.index, offset, len(payload))
        self._chunks += (prefix, payload)
        self.size += len(prefix) + len(payload)
        self.has_payload = True

    def commit(self, tensor: Outgoing, checksum: bool) -> None:
        """Adds a tensor's commit, with a CRC-32 of its bytes if wanted."""
        commit = pb.Commit(index=tensor.header.index, byte_length=len(tensor.data))
        if checksum:
            commit.crc32 = zlib.crc32(tensor.data)
        self._append(self._commits, encode_field(COMMIT, commit.SerializeToString()))

    def finish(self) -> bytes:
        """The message; the builder is empty afterwards."""
        message = b"".join((*self._first, *self._headers, *self._chunks, *self._commits))
        self.__init__()  # type: ignore[misc]
        return message

    def _append(self, part: list[bytes], field: bytes) -> None:
        part.append(field)
        self.size += len(field)


def best_chunk_bytes(total: int) -> int:
    """Payload of a chunk in a call that sends so many bytes."""
    return LONE_BYTES if total <= LONE_BYTES else CHUNK_BYTES


def request_messages(
    open_content: bytes,
    tensors: Iterable[Outgoing],
    *,
    headers_first: bool = False,
    checksum: bool = False,
    chunk_bytes: Optional[int] = None,
) -> Iterator[bytes]:
    """The messages of one call: as few as the tensors fit into.

    Small tensors share messages. A tensor that does not fit into the rest of a message begins one
    of its own and shares none, so that a server short of memory never holds a part of one tensor
    while it waits for memory for the next. `headers_first` sends all headers before the first
    payload, as Export requires. Tensors are consumed lazily, unless all have to be known before the
    first.
    """
    if chunk_bytes is None:
        tensors = list(tensors)
        chunk_bytes = best_chunk_bytes(sum(len(tensor.data) for tensor in tensors))
    builder = MessageBuilder()
    builder.open(open_content)
    if headers_first:
        tensors = list(tensors)
        for tensor in tensors:
            builder.header(tensor)
            if builder.size >= chunk_bytes:
                yield builder.finish()
    for tensor in tensors:
        size = len(tensor.data)
        if tensor.by_reference:
            builder.header(tensor)
            builder.commit(tensor, checksum)
            if size > chunk_bytes:  # it is worth beginning with
                yield builder.finish()
            continue
        if builder.has_payload and builder.size + size > chunk_bytes:
            yield builder.finish()
        if not headers_first:
            builder.header(tensor)
        for offset in range(0, size, chunk_bytes):
            builder.chunk(tensor, offset, tensor.data[offset : offset + chunk_bytes])
            if offset + chunk_bytes < size:
                yield builder.finish()
        builder.commit(tensor, checksum)
        if size > chunk_bytes:
            yield builder.finish()
    if builder.size:
        yield builder.finish()


def walk(message: memoryview) -> Iterator[tuple[int, Union[int, memoryview]]]:
    """The fields of an encoded message: (number, integer or view of the content).

    Raises DataLossError when the bytes are not such a message.
    """
    position = 0
    end = len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise DataLossError("the server sent a message with a field number of 0")
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise DataLossError(f"the server sent a message with a field of wire type {kind}")
        if length > end - position:
            raise DataLossError(
                f"the server sent a message whose field {number} claims {length} bytes, "
                f"where {end - position} are left"
            )
        content = message[position : position + length]
        position += length
        yield number, content if kind == _BYTES else int.from_bytes(content, "little")


def fields(message: bytes) -> list[tuple[int, memoryview]]:
    """The length-delimited fields of a streaming message, in the order in which they take effect.

    Fields of other kinds, from a newer server, are skipped. Raises DataLossError.
    """
    found = [(n, value) for n, value in walk(memoryview(message)) if isinstance(value, memoryview)]
    found.sort(key=lambda item: item[0])  # stable: equal fields stay in their order
    return found


def decode_chunk(content: memoryview) -> ReceivedChunk:
    """Reads a chunk without copying its payload. Raises DataLossError."""
    index = offset = 0
    payload = content[:0]
    for number, value in walk(content):
        if number == 3 and isinstance(value, memoryview):
            payload = value
        elif number == 1 and isinstance(value, int):
            index = value
        elif number == 2 and isinstance(value, int):
            offset = value
    return ReceivedChunk(index, offset, payload)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The varint at `position` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise DataLossError("the server sent a message that ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DataLossError("the server sent a message with a number longer than 10 bytes")
