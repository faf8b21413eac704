"""interrupts_held: Ctrl-C waits for the end of a block that it would break."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from nni_compression._transport.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_comes_when_the_block_has_ended() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")
        done.append("what follows it")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_ones_own_is_called_once_and_stays() -> None:
    came = []

    def handler(*arguments: object) -> None:
        came.append(arguments)

    signal.signal(signal.SIGINT, handler)
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert not came
    assert len(came) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_blocks_own_error_passes() -> None:
    with pytest.raises(ValueError, match="own"), interrupts_held():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_leave_the_handler_alone() -> None:
    seen = []

    def block() -> None:
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
