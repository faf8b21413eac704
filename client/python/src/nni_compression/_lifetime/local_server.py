"""Servers that this process starts, and that end with it."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from ..errors import FailedPreconditionError, InvalidArgumentError, UnavailableError

LOCAL = "local"
BINARY_VARIABLE = "NNI_COMPRESSION_SERVER_BINARY"

_PROGRAM = "compression_server"
_GUARD = Path(__file__).with_name("guard.py")
_FLAGS_OF_FLAGS = ("flagfile", "fromenv", "tryfromenv")
_OWN_FLAGS = ("listen", "port_file", "shm_socket")
# Clients find the shared-memory socket of a server at unix:PATH by this.
_SHM_SUFFIX = ".shm"
_LONGEST_PATH = 107  # bytes of a Unix socket's path
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 40.0  # more than the guard takes
_POLL_INTERVAL = 0.01
_LOG_TAIL = 4096  # bytes of the log in an error


@contextlib.contextmanager
def local_server(*, flags: Sequence[str] = (), timeout: float = _START_TIMEOUT) -> Iterator[str]:
    """Starts a server for this process and this user; yields its address.

    The server listens on a Unix socket in a private folder and offers shared memory, which clients
    of this address use without further settings. It ends with the ``with`` statement or with this
    process, however that ends. Sessions live in its memory only. A forked child may use the
    address, and does not end the server.

    Args:
        flags: of `compression_server`, such as ``["--memory_budget=4G", "--compute_threads=2"]``.
        timeout: seconds that the start may take.

    The program is $NNI_COMPRESSION_SERVER_BINARY, else `compression_server` on the PATH. Raises
    FailedPreconditionError when there is none, and UnavailableError with the end of the server's
    log when it does not start.

    >>> with nc.local_server() as address, nc.Client(address) as mine:
    ...     mine.health()
    'SERVING'
    """
    server = _LocalServer(flags, timeout)
    try:
        yield server.address
    finally:
        server.stop()


def shared_local_server() -> str:
    """The address of the one server that this process has for "local"; starts it if need be.

    A forked child uses its parent's.
    """
    global _shared
    with _starting:
        if _shared is None or not _shared.running():
            if _shared is not None:
                _shared.stop()
            _shared = _LocalServer((), _START_TIMEOUT)
        return _shared.address


def is_local_server(address: str) -> bool:
    """Whether this process, or the one that it was forked from, has started the server."""
    return address in _addresses


class _LocalServer:
    """A server in a folder of its own, under a guard that ends it. Thread-safe.

    The guard waits for the end of a pipe that only this process holds: see guard.py.
    """

    def __init__(self, flags: Sequence[str], timeout: float) -> None:
        self._program = program = _find_program()
        _check_flags(flags)
        self._owner = os.getpid()
        self._folder = _make_folder()
        self._socket = self._folder / "server"
        self._log = self._folder / "log"
        self._guard: Optional[subprocess.Popen[bytes]] = None
        self._lifeline: Optional[int] = None
        self.address = f"unix:{self._socket}"
        command = [
            program,
            f"--listen={self.address}",
            f"--shm_socket={self._socket}{_SHM_SUFFIX}",
            f"--port_file={self._folder / 'port'}",
            "--drain_seconds=5",
            *flags,
        ]
        try:
            self._start(command)
            self._wait(time.monotonic() + timeout, timeout)
        except BaseException:
            self.stop()
            raise
        _addresses.add(self.address)

    def _status(self) -> str:
        """How the server has ended, for a message; empty if that is not known."""
        try:
            status = int((self._folder / "status").read_text())
        except (OSError, ValueError):
            return ""
        if os.WIFSIGNALED(status):
            return f" by signal {os.WTERMSIG(status)}"
        return f" with status {os.WEXITSTATUS(status)}"

    def running(self) -> bool:
        """Whether it accepts connections."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
        return True

    def stop(self) -> None:
        """Ends the server and waits for it; has no effect in a forked child."""
        if os.getpid() != self._owner:
            return
        with _forking:
            lifeline, self._lifeline = self._lifeline, None
            if lifeline is not None:
                _lifelines.discard(lifeline)
                with contextlib.suppress(OSError):
                    os.close(lifeline)
        _servers.discard(self)
        if self._guard is not None:
            try:
                self._guard.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._guard.kill()  # upon which the kernel ends the server
                self._guard.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, command: Sequence[str]) -> None:
        if not sys.executable:
            raise FailedPreconditionError(
                "a local server needs a Python interpreter next to it, and sys.executable is empty"
            )
        with _forking:
            held_by_guard, self._lifeline = os.pipe()
            _lifelines.add(self._lifeline)
        _servers.add(self)
        try:
            with self._log.open("wb") as log:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_GUARD), str(self._folder), *command],
                    stdin=held_by_guard,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the trainer
                )
        finally:
            os.close(held_by_guard)

    def _wait(self, deadline: float, timeout: float) -> None:
        """Waits until the server accepts calls."""
        assert self._guard is not None
        while not (self._folder / "port").exists():
            if (self._folder / "status").exists() or self._guard.poll() is not None:
                raise UnavailableError(
                    f"the local server, {self._program}, has ended at its start{self._status()}:\n"
                    f"{self._tail()}"
                )
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"the local server did not start in {timeout:g} s:\n{self._tail()}"
                )
            time.sleep(_POLL_INTERVAL)

    def _tail(self) -> str:
        return self._log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()


def _find_program() -> str:
    named = os.environ.get(BINARY_VARIABLE)
    found = shutil.which(named or _PROGRAM)
    if found is not None:
        return os.path.abspath(found)
    tried = (
        f"${BINARY_VARIABLE} is {named!r}, which is not a program"
        if named
        else f"${BINARY_VARIABLE} is not set, and there is no {_PROGRAM} on the PATH"
    )
    raise FailedPreconditionError(
        f"no server to start: {tried}. In a checkout of the project, `deploy/quickstart.sh` builds "
        f"build/release/server/{_PROGRAM}, and `cmake --install build/release --prefix PREFIX` "
        f"installs it as PREFIX/bin/{_PROGRAM}; or name the address of a server that runs"
    )


def _check_flags(flags: Sequence[str]) -> None:
    if isinstance(flags, str):
        raise InvalidArgumentError(f"flags is {flags!r}; it must be a list, such as [{flags!r}]")
    for flag in flags:
        name = flag.lstrip("-").partition("=")[0]
        if name in _FLAGS_OF_FLAGS:
            raise InvalidArgumentError(f"flags has {flag!r}; it must have the flags themselves")
        if name in _OWN_FLAGS:
            raise InvalidArgumentError(
                f"flags has {flag!r}; a local server chooses {', '.join(_OWN_FLAGS)} itself"
            )


def _make_folder() -> Path:
    """A new folder for this user only, whose path can be part of an address."""
    # Not $XDG_RUNTIME_DIR: it is removed at the logout that a trainer under nohup survives.
    folder = tempfile.gettempdir()
    longest = os.path.join(folder, "nni-compression-12345678", f"server{_SHM_SUFFIX}")
    if len(longest) > _LONGEST_PATH or not re.fullmatch(r"[A-Za-z0-9_./-]+", longest):
        folder = "/tmp"
    return Path(tempfile.mkdtemp(prefix="nni-compression-", dir=folder))  # its mode is 0700


_starting = threading.Lock()
_shared: Optional[_LocalServer] = None
_servers: set[_LocalServer] = set()  # that this process has to end
_addresses: set[str] = set()

# A forked child must not hold the pipes: a server would end with the last of the children.
_forking = threading.RLock()  # a signal handler may fork, too
_lifelines: set[int] = set()


def _after_fork_in_child() -> None:
    global _starting
    for lifeline in _lifelines:
        with contextlib.suppress(OSError):  # a daemon closes all that it does not know
            os.close(lifeline)
    _lifelines.clear()
    _servers.clear()
    _starting = threading.Lock()  # another thread of the parent may have held it
    _forking.release()


def _stop_all() -> None:
    for server in list(_servers):
        server.stop()


os.register_at_fork(
    before=_forking.acquire,
    after_in_parent=_forking.release,
    after_in_child=_after_fork_in_child,
)
# Registered before what closes open sessions at the end of the process, and thus called after it.
atexit.register(_stop_all)
