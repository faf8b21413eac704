"""A server whose allocator is counted, and what it says that it has reserved."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from metered import Metered, eventually
from nni_compression._wire import compression_pb2 as pb
from servers import SERVICE, server_binary

STILL = 5  # looks at what is live that have to agree


class Memory(NamedTuple):
    """Bytes."""

    live: int  # allocated and mapped
    reserved: int  # that are counted: of the budget, and for connections and calls
    cache: int  # of the reserved ones, kept for later


class LiveServer(Metered):
    """With tests/testing/live_memory.cc in it, and a channel to it. A context manager."""

    def __init__(self, folder: Path, *flags: str) -> None:
        library = server_binary().parents[1] / "tests" / "liblive_memory.so"
        assert library.is_file(), f"{library} is not built"
        path = folder / "live-memory"
        path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), 16)
        super().__init__(
            folder, *flags, environment={"LD_PRELOAD": str(library), "LIVE_MEMORY": str(path)}
        )
        assert self._live() > 0, "the library is not loaded"
        self.channel: grpc.Channel | None = None
        self._connect()

    def __exit__(self, *unused: object) -> None:
        self._disconnect()
        super().__exit__(*unused)

    def _connect(self) -> None:
        self.channel = self.connect()

    def connect(self) -> grpc.Channel:
        """A channel with a connection of its own, which is there."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        channel = grpc.insecure_channel(self.address, options=options)
        grpc.channel_ready_future(channel).result(60)
        return channel

    def eventually_calls(self, count: int) -> bool:
        """Whether so many calls come to run."""
        return eventually(lambda: self.samples()["nni_compression_calls_running"] == count)

    def _disconnect(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def begin(self, name: str, request: bytes, reply: Any) -> Any:
        """A unary call."""
        call = self.channel.unary_unary(
            f"/{SERVICE}/{name}", request_serializer=None, response_deserializer=reply.FromString
        )
        return call.future(request, metadata=[("nni-route", "accounting")], timeout=120)

    def call(self, name: str, request: bytes, reply: Any) -> Any:
        return self.begin(name, request, reply).result()

    def close_session(self, session: str) -> None:
        request = pb.CloseSessionRequest(session_id=session)
        self.call("CloseSession", request.SerializeToString(), pb.CloseSessionResponse)

    def _live(self) -> int:
        return struct.unpack_from("<q", self._counts, 0)[0]

    def forget_peak(self) -> None:
        """`peak` begins anew."""
        struct.pack_into("<q", self._counts, 8, self._live())

    def peak(self) -> int:
        """The most that was live at a time."""
        return struct.unpack_from("<q", self._counts, 8)[0]

    def memory(self) -> Memory:
        """As soon as it stands still."""
        seen: list[int] = []

        def stands_still() -> bool:
            seen.append(self._live())
            return len(seen) >= STILL and max(seen[-STILL:]) - min(seen[-STILL:]) < 4096

        eventually(stands_still)
        samples = self.samples()
        return Memory(
            seen[-1],
            int(
                samples["nni_compression_memory_reserved_bytes"]
                + samples.get("nni_compression_memory_overhead_bytes", 0)
            ),
            int(samples["nni_compression_weight_cache_bytes"]),
        )

    def rest(self) -> Memory:
        """Without a connection."""
        self._disconnect()
        assert eventually(lambda: self.samples()["nni_compression_connections"] == 0)
        memory = self.memory()
        self._connect()
        return memory

    def check_growth(self, before: Memory, slack: int) -> None:
        """At least half of what is live more than before is counted, but for the slack."""
        now = self.memory()
        grown = now.live - before.live
        counted = now.reserved - before.reserved
        assert grown <= 2 * (counted + slack), f"{grown} bytes are live, {counted} are counted"
