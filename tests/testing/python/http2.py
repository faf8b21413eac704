"""One end of an HTTP/2 connection that keeps to no rule, for attacks on a server on this host."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TIMEOUT = 20.0  # seconds
BATCH = 1 << 16  # bytes that are sent at a time
FRAME = 16384  # bytes, the largest that HTTP/2 allows without asking
WINDOW = 65535  # bytes that may be sent before anything is granted
TRAILERS = ("te", "trailers")


def message(content: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC, with a flag and a length of one's own."""
    return struct.pack(">BI", flag, len(content) if length is None else length) + content


class Peer:
    """A client's end, over TLS where an authority's certificate is given. Nothing is read unless it
    is asked for.
    """

    def __init__(
        self, port: int, settings: dict[int, int] | None = None, ca: Path | None = None
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
            context.set_alpn_protocols(["h2"])
            self._socket = context.wrap_socket(self._socket, server_hostname="localhost")
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._streams = 0
        self._received = b""
        self.send_bytes(PREFACE)
        self.send(SettingsFrame(0, settings=settings or {}))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *unused: object) -> None:
        self._socket.close()

    def send(self, *frames: Frame) -> bool:
        """Sends frames; False when the server takes no more, or has closed the connection."""
        return self.send_bytes(b"".join(frame.serialize() for frame in frames))

    def send_bytes(self, content: bytes) -> bool:
        """The same for whatever one likes."""
        try:
            self._socket.sendall(content)
        except OSError:  # a timeout is one
            return False
        return True

    def flood(self, frame: bytes, count: int) -> bool:
        """Sends the same bytes again and again."""
        batch = max(1, BATCH // len(frame))
        for first in range(0, count, batch):
            if not self.send_bytes(frame * min(batch, count - first)):
                return False
        return True

    def headers(self, path: str, *extra: tuple[str, str], end: bool = False) -> HeadersFrame:
        """The headers that open the next stream."""
        self._streams += 1
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/{path}"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            *(extra or (TRAILERS,)),
        ]
        frame = HeadersFrame(2 * self._streams - 1, data=self._encoder.encode(fields))
        frame.flags.add("END_HEADERS")
        if end:
            frame.flags.add("END_STREAM")
        return frame

    def data(self, stream: int, content: bytes, *, end: bool = True) -> DataFrame:
        """A part of a request's body."""
        frame = DataFrame(stream, data=content)
        if end:
            frame.flags.add("END_STREAM")
        return frame

    def send_bodies(self, streams: list[int], body: memoryview) -> int:
        """Sends the same to all these streams, as fast as the server lets it, and ends none of
        them; the bytes sent. It is over for a stream that the server resets, and for all when
        nothing is heard for a second.
        """
        windows = {0: WINDOW, **dict.fromkeys(streams, WINDOW)}  # 0: the connection's
        left = dict.fromkeys(streams, body)
        sent = 0
        self._socket.settimeout(1.0)
        frames = self.frames()
        while left:
            for stream in list(left):
                while part := left[stream][: min(FRAME, windows[0], windows[stream])]:
                    if not self.send(self.data(stream, bytes(part), end=False)):
                        return sent
                    left[stream] = left[stream][len(part) :]
                    for window in (0, stream):
                        windows[window] -= len(part)
                    sent += len(part)
                if not left[stream]:
                    del left[stream]
            frame = next(frames, None)
            if frame is None:
                break
            if isinstance(frame, RstStreamFrame):
                left.pop(frame.stream_id, None)
            elif isinstance(frame, WindowUpdateFrame) and frame.stream_id in windows:
                windows[frame.stream_id] += frame.window_increment
            elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        self._socket.settimeout(TIMEOUT)
        return sent

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it closes the connection or says nothing for too long."""
        while True:
            while len(self._received) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(self._received[:9]))
                if len(self._received) < 9 + length:
                    break
                frame.parse_body(memoryview(self._received[9 : 9 + length]))
                self._received = self._received[9 + length :]
                yield frame
            try:
                more = self._socket.recv(1 << 16)
            except OSError:
                return
            if not more:
                return
            self._received += more

    def agree(self) -> None:
        """Takes the server's settings. Without them it resets a stream that has sent 64 KiB before
        it was read.
        """
        for frame in self.frames():
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                accepted = SettingsFrame(0)
                accepted.flags.add("ACK")
                assert self.send(accepted)
                return
        raise AssertionError("the server said no settings")

    def outcome(self, stream: int) -> str:
        """How the server ends a stream: gRPC's status as a number, HTTP's, "reset" or "closed"."""
        block = b""
        for frame in self.frames():
            if isinstance(frame, GoAwayFrame):
                return "closed"
            if frame.stream_id != stream:
                continue
            if isinstance(frame, RstStreamFrame):
                return "reset"
            if isinstance(frame, HeadersFrame):
                block = frame.data
                fields = dict(self._decoder.decode(block))
                if "grpc-status" in fields:
                    return str(fields["grpc-status"])
                if fields.get(":status", "200") != "200":
                    return str(fields[":status"])
        return "closed"

    def closed(self) -> bool:
        """Whether the server ends the connection."""
        for frame in self.frames():
            if isinstance(frame, GoAwayFrame):
                return True
        with contextlib.suppress(OSError):
            return self._socket.recv(1) == b""
        return False
