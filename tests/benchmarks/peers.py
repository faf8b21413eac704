"""What the service is measured against or through: bare receivers of bytes, and a slow link.

Run as a program, `peers.py discard` or `peers.py relay ADDRESS BYTES_PER_SECOND`, it prints its TCP
port and serves until killed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nni_compression as nc

CHUNK = 1 << 20
METHOD = "/bare.Discard/Upload"

PROGRAM = os.environ.get("TRANSPORT_BENCHMARK", "")  # built from transport/
SERVICE = os.environ.get("NNI_COMPRESSION_SERVER", "")


@contextlib.contextmanager
def bare_grpc() -> Iterator[str]:
    """The address of a gRPC server, in C++ and in a process of its own, that discards."""
    process = subprocess.Popen(
        [PROGRAM, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate()


def shared_memory_client() -> nc.Client:
    """A client that shares memory with the server."""
    return nc.Client(shm_socket=os.environ["SHM_SOCKET"])


@contextlib.contextmanager
def server(*flags: str) -> Iterator[tuple[str, str]]:
    """A compression server with these flags: its address and its shared-memory socket."""
    with tempfile.TemporaryDirectory() as folder:
        port, side = f"{folder}/port", f"{folder}/side"
        places = (f"--port_file={port}", f"--shm_socket={side}")
        with open(f"{folder}/log", "wb") as log:
            process = subprocess.Popen(
                [os.environ["COMPRESSION_SERVER_BINARY"], "--listen=127.0.0.1:0", *places, *flags],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            while not os.path.exists(port):
                assert process.poll() is None, Path(folder, "log").read_text(encoding="utf-8")
                time.sleep(0.01)
            yield f"127.0.0.1:{int(Path(port).read_text(encoding='utf-8'))}", side
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[int]:
    """The port of this program in a process of its own: a socket that discards, or a slow link."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate()


def native(*arguments: str) -> dict[str, list[float]]:
    """What transport_benchmark measured, in seconds by contender."""
    done = subprocess.run([PROGRAM, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def upload_grpc(channel, data: memoryview) -> None:
    """Sends the bytes in chunks and waits for the answer."""
    chunks = (bytes(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK))
    assert int(channel.stream_unary(METHOD)(chunks)) == len(data)


def upload_tcp(port: int, data: memoryview) -> None:
    """Sends the bytes over a connection of its own and waits for the answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"d"


def discard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        buffer = bytearray(CHUNK)
        while True:
            connection, _ = listener.accept()
            with connection:
                while connection.recv_into(buffer):
                    pass
                connection.sendall(b"d")


def relay(address: str, bytes_per_second: float) -> None:
    """Connects everybody to the address, at this rate in either direction."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _ = listener.accept()
            far = socket.create_connection((host, int(port)))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=pump, args=(source, sink, bytes_per_second), daemon=True
                ).start()


def pump(source: socket.socket, sink: socket.socket, bytes_per_second: float) -> None:
    """Passes bytes on, each piece when a link of this rate would have carried it."""
    buffer = bytearray(1 << 16)
    free_at = 0.0  # when the link is idle again
    with contextlib.suppress(OSError):
        while size := source.recv_into(buffer):
            free_at = max(free_at, time.monotonic()) + size / bytes_per_second
            time.sleep(max(0.0, free_at - time.monotonic()))
            sink.sendall(memoryview(buffer)[:size])
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    if sys.argv[1] == "relay":
        relay(sys.argv[2], float(sys.argv[3]))
    else:
        discard()
