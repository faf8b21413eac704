"""The least that could receive a tensor: a gRPC stream and a TCP socket that throw bytes away.

Run as a program, `peers.py grpc` or `peers.py tcp`, it prints its port and serves until killed.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

CHUNK = 1 << 20
METHOD = "/bare.Discard/Upload"


@contextlib.contextmanager
def running(kind: str) -> Iterator[int]:
    """The port of a peer in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, kind],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def serve_grpc() -> None:
    from concurrent import futures

    import grpc

    def upload(messages, _context):
        return str(sum(map(len, messages))).encode()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == METHOD:
                return grpc.stream_unary_rpc_method_handler(upload)
            return None

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


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


if __name__ == "__main__":
    {"grpc": serve_grpc, "tcp": serve_tcp}[sys.argv[1]]()
