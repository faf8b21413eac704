"""Work in a child that is forked from a process with connections."""

from __future__ import annotations

import multiprocessing
from typing import Callable

CHILD_TIMEOUT = 60  # seconds


def in_fork(work: Callable[[], str]) -> str:
    """What `work` returns in a forked child that then ends as a DataLoader worker does."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        try:
            send.send(work())
        except BaseException as error:
            send.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=child)
    process.start()
    try:
        assert receive.poll(CHILD_TIMEOUT), "the child hangs"
        answer: str = receive.recv()
        process.join(CHILD_TIMEOUT)
        assert process.exitcode == 0, "the child did not end"
    finally:
        process.kill()
        process.join()
    return answer
