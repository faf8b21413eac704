"""The least that could receive a tensor: a gRPC stream and a TCP socket that throw bytes away.

Run as a program it prints its TCP port and serves until killed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

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


@contextlib.contextmanager
def bare_tcp() -> Iterator[int]:
    """The port of a socket that discards, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
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


def serve_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        buffer = bytearray(CHUNK)
        while True:
            connection, _ = listener.accept()
            with connection:
                while connection.recv_into(buffer):
                    pass
                connection.sendall(b"d")


if __name__ == "__main__":
    serve_tcp()
