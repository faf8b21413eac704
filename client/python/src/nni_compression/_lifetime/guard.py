"""Ends a server with the process that has started it; a program, not a module of the package.

    guard.py FOLDER COMMAND...

Starts the command and waits until its own standard input ends, because the process that holds the
other end of that pipe has closed it or has ended, even by SIGKILL. Then it ends the server and
removes the folder. Should the guard be killed, the kernel sends the server SIGTERM. The kernel does
that when the *thread* that has started the server ends, hence not a trainer, whose threads come and
go, but this process with its single thread starts it.

When the server ends by itself, FOLDER/status gets its wait status.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys

_PR_SET_PDEATHSIG = 1
_GRACE = 30.0  # seconds from SIGTERM to SIGKILL


def main(folder: str, command: list[str]) -> None:
    """Runs the command until the standard input ends."""
    running, held_by_server = os.pipe()  # `running` ends with the server
    server = _start(command, held_by_server)
    os.close(held_by_server)
    ended, _, _ = select.select([0, running], [], [])
    if running in ended:
        _, status = os.waitpid(server, 0)
        _write(os.path.join(folder, "status"), str(status))
        select.select([0], [], [])
    else:
        os.kill(server, signal.SIGTERM)
        if not select.select([running], [], [], _GRACE)[0]:
            os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[str], held: int) -> int:
    guard = os.getpid()
    server = os.fork()
    if server != 0:
        return server
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guard:  # it has ended before the kernel was asked
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.set_inheritable(held, True)
        os.execv(command[0], command)
    except BaseException as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)


def _write(path: str, text: str) -> None:
    with open(path + ".part", "w", encoding="ascii") as file:
        file.write(text)
    os.rename(path + ".part", path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
