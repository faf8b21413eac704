"""Servers for the Python tests: the real one as a process, and a scripted one in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import grpc

ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT = 60.0  # seconds; generous, for a machine that is busy with a build
STOP_TIMEOUT = 30.0
SERVICE = "nni.compression.v1.CompressionService"


def server_binary() -> Path:
    """$COMPRESSION_SERVER_BINARY, else that of the release preset."""
    named = os.environ.get("COMPRESSION_SERVER_BINARY")
    return Path(named) if named else ROOT / "build/release/server/compression_server"


def compressionctl(*arguments: str) -> str:
    """What compressionctl prints; it has to succeed."""
    named = os.environ.get("COMPRESSIONCTL_BINARY")
    binary = named or ROOT / "build/release/client/cli/compressionctl"
    done = subprocess.run(
        [str(binary), *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_tenant(tokens: Path, name: str, *flags: str) -> str:
    """A new token of the tenant, in the server's file."""
    return compressionctl(f"--tokens={tokens}", *flags, "tenant", "add", name).strip()


class ServerProcess:
    """A compression_server on a port of its own; a context manager that stops it.

    Args:
        flags: of the server, which has no shared-memory socket unless they say so.
        port: 0 picks one.
        wrapper: a command that becomes the server's, which is appended to it.
        environment: what is added to that of the tests.
    """

    def __init__(
        self,
        *flags: str,
        port: int = 0,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        binary = server_binary()
        if not binary.is_file():
            raise RuntimeError(
                f"there is no server at {binary}; build it, or set COMPRESSION_SERVER_BINARY"
            )
        self._directory = tempfile.TemporaryDirectory(prefix="compression-server-")
        port_file = Path(self._directory.name) / "port"
        self._log_path = Path(self._directory.name) / "log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *wrapper,
                    str(binary),
                    f"--listen=127.0.0.1:{port}",
                    f"--port_file={port_file}",
                    "--shm_socket=",
                    *flags,
                ],
                stderr=log,
                stdout=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        try:
            self.port = self._wait_for_port(port_file)
            preloaded = (environment or {}).get("LD_PRELOAD", "")
            maps = Path(f"/proc/{self.process.pid}/maps").read_text()
            assert preloaded in maps, f"{preloaded} is not installed"  # the loader only warns
        except BaseException:
            self.kill()
            raise
        self.address = f"127.0.0.1:{self.port}"

    def log(self) -> str:
        """What the server has written so far."""
        return self._log_path.read_text(errors="replace")

    def stop(self) -> int:
        """Asks the server to end, waits, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._directory.cleanup()

    def stand_still(self) -> None:
        """Stops all of its threads, until `go_on`; returns when they stand."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        """Ends `stand_still`."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the server without warning."""
        self.process.kill()
        self.process.wait()
        self._directory.cleanup()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.process.returncode is None:
            self.stop()

    def _wait_for_port(self, port_file: Path) -> int:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the server ended with status {self.process.returncode}:\n{self.log()}"
                )
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(port_file.read_text())
            time.sleep(0.01)
        raise RuntimeError(f"the server did not start in {START_TIMEOUT} s:\n{self.log()}")


Behaviour = Callable[[Iterator[bytes], Any], Iterator[bytes]]


class ScriptedServer:
    """A gRPC server in this process whose methods are functions of the test.

    A behaviour takes the iterator of request messages and gRPC's context, and yields the reply
    messages; all are bytes. It can be replaced between calls. Every call's method and metadata are
    recorded in `calls`.
    """

    STREAMING = ("CalcMask", "QuantizeWeight", "Export")

    def __init__(self, **behaviours: Behaviour) -> None:
        self.behaviours = behaviours
        self.calls: list[tuple[str, dict[str, str]]] = []
        self._server: Any | None = None
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serves, on the port of the last time if there was one."""
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def methods(self) -> list[str]:
        """The methods called so far."""
        return [method for method, _ in self.calls]

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()


class _Handler(grpc.GenericRpcHandler):
    """Takes every method as a bidirectional stream, which on the wire the other shapes are too."""

    def __init__(self, owner: ScriptedServer) -> None:
        self._owner = owner

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        metadata = {item.key: item.value for item in details.invocation_metadata}
        self._owner.calls.append((details.method, metadata))
        behaviour = self._owner.behaviours.get(name)
        return None if behaviour is None else grpc.stream_stream_rpc_method_handler(behaviour)


def replies(*messages: Any) -> Behaviour:
    """A behaviour that reads all requests and then answers with these messages."""

    def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for _ in requests:
            pass
        for message in messages:
            yield message if isinstance(message, bytes) else message.SerializeToString()

    return behave


def fails(code: grpc.StatusCode, details: str, *trailers: tuple[str, str | bytes]) -> Behaviour:
    """A behaviour that ends the call with a status."""

    def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.set_trailing_metadata(trailers)
        context.abort(code, details)
        yield b""

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One behaviour for each call; the last one for all that follow."""
    remaining = list(behaviours)

    def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        behaviour = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return behaviour(requests, context)

    return behave
