"""Tensors passed to a server on this host through shared memory.

Files of shared memory (memfd) are made and sealed here, passed to the server over its shared-memory
socket, and reused from call to call: the first write to a page costs ten times the copy.
docs/wire-protocol.md has the protocol.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from .._wire import compression_pb2 as pb
from .address import loopback_port
from .credentials import Credentials

_log = logging.getLogger("nni_compression")

SOCKET_VARIABLE = "NNI_COMPRESSION_SHM_SOCKET"
SOCKET_SUFFIX = ".shm"

# Smaller tensors are sent with the call: shared memory would not be faster.
MIN_BYTES = 256 << 10

# Maximum padding of a place.
SPACING = _ALIGNMENT = 64

_VERSION = 1
_PAUSE = 60.0  # seconds without shared memory after a failure
_PAUSE_WITHOUT_SERVER = 5.0  # where no server listens: it may be starting
_TIMEOUT = 5.0  # of the shared-memory socket; the server answers at once
_MAX_PACKET = 16 << 10
_MAX_ARENAS = 8  # concurrent calls with shared memory; further ones use the network
_MAX_MEMORY_SHARE = 0.25  # of the machine's or container's memory
_GRANULE = 2 << 20

# Copies of at least so many bytes use several threads.
_PARALLEL_COPY_BYTES = 16 << 20
_MAX_COPY_THREADS = 4

# Since 3.9 or 3.10 in the standard library, or never; the numbers are Linux's.
_F_ADD_SEALS = 1033
_F_SEAL_SHRINK = 2
_F_SEAL_GROW = 4
_MAP_POPULATE = 0x8000


class _RefusedError(Exception):
    """The server refuses a region, or the system cannot allocate one."""


class _NoServerError(_RefusedError):
    """No server listens."""


def socket_paths(path: Optional[str], address: str) -> list[str]:
    """Where the shared-memory socket of the server at `address` may be, best first.

    `path` alone if it is given ("": nowhere). Else PATH.shm for a server at unix:PATH, and
    $NNI_COMPRESSION_SHM_SOCKET. For a server at a port of this host without such a variable: the
    places where it offers the socket to its own user.
    """
    if path is not None:
        return [path] if path else []
    named = os.environ.get(SOCKET_VARIABLE)
    paths = [named] if named else []
    if address.startswith("unix:"):
        return [address[len("unix:") :] + SOCKET_SUFFIX, *paths]
    port = loopback_port(address)
    return paths if port is None or named is not None else _paths_of_port(port)


def _paths_of_port(port: int) -> list[str]:
    user = os.geteuid()
    folders = [f"/run/user/{user}/nni-compression", f"/tmp/nni-compression-{user}"]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        folders.insert(0, f"{runtime}/nni-compression")
    return [f"{folder}/{port}{SOCKET_SUFFIX}" for folder in dict.fromkeys(folders)]


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = [""]
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        groups += [line[3:] for line in lines if line.startswith("0::")]
    for group in groups:
        with contextlib.suppress(OSError, ValueError):  # "max", or there are no limits here
            limit = min(limit, int(Path(f"/sys/fs/cgroup{group}/memory.max").read_text()))
    return limit


class SharedMemory:
    """One client's shared-memory socket and its arenas. Thread-safe.

    A missing socket or a server that refuses is not an error: `lease` returns None, and tensors are
    sent over the network. A forked child starts with empty state.
    """

    def __init__(self, paths: Sequence[str], credentials: Credentials) -> None:
        self._paths = paths
        self._credentials = credentials
        self._usable = bool(paths) and hasattr(os, "memfd_create")
        self._not_before = 0.0  # on the monotonic clock
        self._logged = False
        self._begin()

    def works(self) -> bool:
        """Whether tensors will go through shared memory; connects."""
        if not self._ready():
            return False
        with self._lock:
            try:
                self._connected()
            except (_RefusedError, OSError) as error:
                self._disable(error)
                return False
            return True

    @property
    def path(self) -> str:
        """Of the socket that it is connected to; "" for none."""
        return "" if self._connection is None else self._connection.path

    def problem(self) -> Optional[str]:
        """Connects, and returns what prevents that; None if it works."""
        if not self._paths:
            return "there is no socket"
        if not hasattr(os, "memfd_create"):
            return "this system has no memfd_create"
        if os.getpid() != self._pid:
            self._begin()
        with self._lock:
            try:
                self._connected()
            except (_RefusedError, OSError) as error:
                return str(error)
        return None

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: Optional[_SharedMemorySocket] = None
        self._idle: list[Arena] = []
        self._leased: set[Arena] = set()
        self._arrays: dict[int, _Array] = {}  # by address
        # The regions of arrays that were freed.
        self._dropped: list[tuple[_SharedMemorySocket, bytes]] = []

    def array(self, size: int) -> Optional[npt.NDArray[np.uint8]]:
        """Memory for a weight that the server reads in place; None when it cannot be allocated.

        The server may read it for as long as the array, or a view of it, exists.
        """
        if not self._ready():
            return None
        with self._lock:
            try:
                connection = self._connected()
                file = _SharedFile(connection, size, writable=False)
            except (_RefusedError, OSError) as error:
                _log.info("no shared memory for an array of %d bytes: %s", size, error)
                return None
            array = _Array(connection, file.region, len(file.bytes))
            address = _address(file.bytes)
            self._arrays[address] = array
            weakref.finalize(file.memory, self._forget, address, os.getpid())
            return file.bytes

    def find(self, data: memoryview) -> Optional[pb.SharedPlace]:
        """The place of bytes that are in an array of `array`; None for other bytes."""
        if not self._arrays or os.getpid() != self._pid:
            return None
        address = _address(np.frombuffer(data, np.uint8))
        with self._lock:
            for start, array in list(self._arrays.items()):
                offset = address - start
                inside = offset >= 0 and offset + len(data) <= array.size
                if inside and array.connection is self._connection and offset % _ALIGNMENT == 0:
                    return pb.SharedPlace(region=array.region, offset=offset)
        return None

    def _forget(self, address: int, process: int) -> None:
        # Called in any thread at any time, even one that holds the lock: the region is dropped
        # later.
        if process == self._pid:
            array = self._arrays.pop(address, None)
            if array is not None:
                self._dropped.append((array.connection, array.region))

    def lease(self, weight_bytes: int, result_bytes: int) -> Optional[Arena]:
        """An arena for one attempt of a call, to be returned by `release` or `discard`.

        It may be smaller than requested. The first lease of a size has to allocate its files.
        """
        if not self._ready():
            return None
        with self._lock:
            try:
                connection = self._connected()
            except (_RefusedError, OSError) as error:
                self._disable(error)
                return None
            if len(self._leased) >= _MAX_ARENAS:
                return None
            arena = self._idle.pop() if self._idle else Arena(connection)
            others = sum(each.size for each in (*self._idle, *self._leased))
            try:
                arena.reserve(weight_bytes, result_bytes, connection.max_bytes - others)
            except (_RefusedError, OSError) as error:
                _log.debug("no more shared memory: %s", error)
                with contextlib.suppress(_RefusedError, OSError):
                    arena.drop()
                return None
            self._leased.add(arena)
            return arena

    def release(self, arena: Arena) -> None:
        """Returns the arena of a call in which the server has answered every request."""
        arena.reset()
        with self._lock:
            self._leased.discard(arena)
            if arena.connection is self._connection:
                self._idle.append(arena)
                self._idle.sort(key=lambda each: each.size)

    def discard(self, arena: Arena) -> None:
        """Drops the arena of a call whose memory the server may still read or write."""
        with self._lock:
            self._leased.discard(arena)
            with contextlib.suppress(_RefusedError, OSError):
                arena.drop()

    def disown(self) -> None:
        """Called when the server that answers calls does not know the regions."""
        with self._lock:
            if self._connection is not None and self._connection.broken():
                self._disconnect()  # the server was restarted
            else:
                self._disable("the socket is another server's")

    def close(self) -> None:
        """Closes the connection; the server unmaps all regions that no call uses."""
        self._usable = False
        if os.getpid() == self._pid:
            with self._lock:
                self._disconnect()

    def _ready(self) -> bool:
        """Whether shared memory may be used now."""
        if not self._usable or time.monotonic() < self._not_before:
            return False
        if os.getpid() != self._pid:
            self._begin()
        return True

    def _connected(self) -> _SharedMemorySocket:
        if self._connection is not None and self._connection.broken():
            _log.debug("a shared-memory socket was closed by the server")
            self._disconnect()
        if self._connection is None:
            self._connection = self._connect()
        while self._dropped:
            connection, region = self._dropped.pop()
            if connection is self._connection:
                connection.drop_region(region)
        return self._connection

    def _connect(self) -> _SharedMemorySocket:
        """To the first path where a server answers."""
        failures = []
        kind: type[_RefusedError] = _NoServerError
        for path in self._paths:
            try:
                return _SharedMemorySocket(path, self._credentials)
            except FileNotFoundError:
                failures.append(f"{path} does not exist")
            except ConnectionRefusedError as error:
                failures.append(f"{path}: {error}")
            except (_RefusedError, OSError) as error:
                failures.append(f"{path}: {error}")
                kind = _RefusedError
        raise kind("; ".join(failures))

    def _disable(self, why: object) -> None:
        # A server that offers no socket where none is expected is nothing to tell a user.
        expected = len(self._paths) == 1 or any(map(os.path.exists, self._paths))
        level = logging.DEBUG if self._logged or not expected else logging.INFO
        _log.log(level, "no shared memory, using the network: %s", why)
        self._logged = True
        pause = _PAUSE_WITHOUT_SERVER if isinstance(why, _NoServerError) else _PAUSE
        self._not_before = time.monotonic() + pause
        self._disconnect()

    def _disconnect(self) -> None:
        self._idle = []
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class _SharedMemorySocket:
    """A connection to the shared-memory socket. One thread at a time."""

    def __init__(self, path: str, credentials: Credentials) -> None:
        self.path = path
        self._failed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.connect(path)
            _check_peer(self._socket, path)
            hello = pb.SideRequest.Hello(version=_VERSION)
            for key, value in credentials.metadata():
                hello.metadata.add(key=key, value=value)
            reply = self._ask(pb.SideRequest(hello=hello))
        except BaseException:
            self._socket.close()
            raise
        self.max_bytes = min(int(reply.max_bytes), int(memory_limit() * _MAX_MEMORY_SHARE))

    def broken(self) -> bool:
        """Whether the server has closed the connection, or a request went without its reply."""
        if self._failed:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))  # the server never sends unasked

    def add_region(self, fd: int, size: int, writable: bool) -> bytes:
        """Passes a file; returns the region's id."""
        request = pb.SideRequest.AddRegion(byte_length=size, writable=writable)
        return bytes(self._ask(pb.SideRequest(add_region=request), [fd]).region)

    def drop_region(self, region: bytes) -> None:
        self._ask(pb.SideRequest(drop_region=pb.SideRequest.DropRegion(region=region)))

    def close(self) -> None:
        self._socket.close()

    def _ask(self, request: Any, fds: Any = ()) -> Any:
        if self._failed:
            raise _RefusedError("an earlier request went without its reply")
        # A reply after a timeout would be taken for that of the next request.
        self._failed = True
        packet = request.SerializeToString()
        if fds:
            socket.send_fds(self._socket, [packet], fds)
        else:
            self._socket.send(packet)
        answer = self._socket.recv(_MAX_PACKET)
        try:
            reply = pb.SideReply.FromString(answer)
        except DecodeError as error:
            raise _RefusedError(f"the peer is not a compression server: {error}") from error
        if not answer:
            raise _RefusedError("the server closed the connection")
        self._failed = False
        if reply.code != 0:
            raise _RefusedError(reply.message)
        return reply


def _check_peer(connection: socket.socket, path: str) -> None:
    """Raises _RefusedError unless the listening process may receive the token and the weights.

    Its user must be this user, root, or the owner of the socket's folder if no other user can have
    created the socket or the folder. In /tmp, for example, any user may have listened first.
    """
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, peer, _ = struct.unpack("3i", found)
    mine = {0, os.geteuid()}
    if peer in mine:
        return
    folder, *above = Path(os.path.realpath(path)).parents
    owners = [folder.stat().st_uid, *(each.stat().st_uid for each in above)]
    writable = [each for each in (folder, *above) if each.stat().st_mode & 0o022]
    if owners[0] == peer and set(owners) <= {*mine, peer} and not writable:
        return
    raise _RefusedError(
        f"user {peer} listens there, neither this user nor root, and the folder is not "
        "exclusively that user's" + (f": others may write to {writable[0]}" if writable else "")
    )


class _SharedFile:
    """A sealed file of shared memory, mapped by the client and the server."""

    def __init__(self, connection: _SharedMemorySocket, size: int, writable: bool) -> None:
        fd = os.memfd_create("nni-compression", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
            flags = mmap.MAP_SHARED | _MAP_POPULATE
            # Never closed explicitly: freed with the last array that refers to it.
            self.memory = mmap.mmap(fd, size, flags=flags)
            self.bytes = np.frombuffer(self.memory, dtype=np.uint8)
            self.region = connection.add_region(fd, size, writable)
        finally:
            os.close(fd)
        self.used = 0

    def take(self, size: int) -> Optional[int]:
        """The offset of `size` bytes, if there is room."""
        offset = self.used
        if size > len(self.bytes) - offset:
            return None
        self.used = (offset + size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
        return offset


@dataclass(frozen=True)
class _Array:
    """A file that holds a caller's weight."""

    connection: _SharedMemorySocket
    region: bytes
    size: int


class Arena:
    """Shared memory of one call at a time: a file for weights, one for results.

    A bump allocator: places are allocated in order, and all are freed after the call.
    """

    def __init__(self, connection: _SharedMemorySocket) -> None:
        self.connection = connection
        self._weights: Optional[_SharedFile] = None
        self._results: Optional[_SharedFile] = None

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(len(file.bytes) for file in (self._weights, self._results) if file is not None)

    def reserve(self, weight_bytes: int, result_bytes: int, limit: int) -> None:
        """Grows the files as needed, both together up to `limit`."""
        results = 0 if self._results is None else len(self._results.bytes)
        self._weights = self._grown(self._weights, weight_bytes, limit - results, writable=False)
        weights = 0 if self._weights is None else len(self._weights.bytes)
        self._results = self._grown(self._results, result_bytes, limit - weights, writable=True)

    def put(self, data: memoryview) -> Optional[pb.SharedPlace]:
        """Copies a weight; None when there is no room."""
        if self._weights is None:
            return None
        offset = self._weights.take(len(data))
        if offset is None:
            return None
        _copy(self._weights.bytes[offset : offset + len(data)], np.frombuffer(data, np.uint8))
        return pb.SharedPlace(region=self._weights.region, offset=offset)

    def place_result(self, size: int) -> Optional[pb.SharedPlace]:
        """Room for a result of at most `size` bytes; None when there is none."""
        if self._results is None or size == 0:
            return None
        offset = self._results.take(size)
        if offset is None:
            return None
        return pb.SharedPlace(region=self._results.region, offset=offset, capacity=size)

    def result(self, place: pb.SharedPlace, size: int) -> npt.NDArray[np.uint8]:
        """A copy of what the server wrote."""
        assert self._results is not None
        found = np.empty(size, dtype=np.uint8)
        _copy(found, self._results.bytes[place.offset : place.offset + size])
        return found

    def reset(self) -> None:
        """Frees all places."""
        for file in (self._weights, self._results):
            if file is not None:
                file.used = 0

    def drop(self) -> None:
        """Makes the server drop the regions."""
        for file in (self._weights, self._results):
            if file is not None:
                self.connection.drop_region(file.region)
        self._weights = self._results = None

    def _grown(
        self, file: Optional[_SharedFile], size: int, limit: int, *, writable: bool
    ) -> Optional[_SharedFile]:
        old = 0 if file is None else len(file.bytes)
        size = (size + _GRANULE - 1) // _GRANULE * _GRANULE
        if old >= min(size, limit):
            return file
        if file is not None:
            self.connection.drop_region(file.region)
            size = max(size, 2 * old)
        size = min(size, limit) // _GRANULE * _GRANULE
        return _SharedFile(self.connection, size, writable) if size > 0 else None


def _address(array: npt.NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _copy(to: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
    """Copies with several threads if that pays; numpy releases the GIL."""
    size = len(source)
    # Counting the cores takes as long as copying 100 KB.
    threads = min(os.cpu_count() or 1, _MAX_COPY_THREADS) if size >= _PARALLEL_COPY_BYTES else 1
    if threads < 2:
        np.copyto(to, source)
        return
    step = (size // threads + 4095) // 4096 * 4096
    parts = [slice(start, start + step) for start in range(0, size, step)]
    others = [
        threading.Thread(target=np.copyto, args=(to[part], source[part]), daemon=True)
        for part in parts[1:]
    ]
    for thread in others:
        thread.start()
    np.copyto(to[parts[0]], source[parts[0]])
    for thread in others:
        thread.join()
