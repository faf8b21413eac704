"""A client for ranks that share one model: the first rank makes the calls, and all get the answers.

Every rank calls the same methods in the same order. Each returns, or raises, on all ranks what it
does on the first, so that no rank waits for one that has failed, and none but the first needs a
server.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

import torch
import torch.distributed as dist

from ..client import Client
from ..errors import InvalidArgumentError
from ..session import Session
from ..values.magnitudes import Counter, Digits
from ..values.statistics import Stats


class _Outcome(NamedTuple):
    """What a method has returned, or raised, on the first rank."""

    method: str
    result: Any = None
    error: Optional[BaseException] = None


class _Count(NamedTuple):
    """The arguments of `Counter.count`, which all ranks are to call."""

    layer: str
    key: int
    known_bits: int


class Ranks:
    """The ranks of a one-dimensional device mesh, or all.

    Attributes:
        rank: of this process among them.
        size: their number.
    """

    def __init__(self, mesh: Any = None) -> None:
        self._group: Any = None if mesh is None else mesh.get_group()
        self._device = "cpu" if mesh is None else mesh.device_type
        self._first = 0 if mesh is None else dist.get_global_rank(self._group, 0)
        self.rank = dist.get_rank(self._group)
        self.size = dist.get_world_size(self._group)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that calls the server, and writes files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors."""
        total = tensor.to(self._device)
        dist.all_reduce(total, group=self._group)  # type: ignore[no-untyped-call]
        return total

    def gather(self, value: float, dtype: torch.dtype = torch.int64) -> list[Any]:
        """The numbers of all ranks, in their order."""
        own = torch.tensor([value], dtype=dtype, device=self._device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self._group)  # type: ignore[no-untyped-call]
        return torch.cat(found).tolist()

    def on_first(self, method: str, call: Callable[[], Any]) -> Any:
        """Makes a call on the first rank; its result, or its error, on all.

        Args:
            method: a name for it. RuntimeError on ranks that are in another method than the first.
        """
        if not self.is_first:
            return self.heard(method, self.tell())
        try:
            result = call()
            told = pickle.dumps(_Outcome(method, result))
        except BaseException as error:
            self.tell(pickle.dumps(_Outcome(method, error=_portable(error))))
            raise
        self.tell(told)
        return result

    def on_all(self, call: Callable[[], Any]) -> list[Any]:
        """Makes a call on every rank; the results by rank. When one raises, all do."""
        result, error = None, None
        try:
            result = call()
        except Exception as raised:
            error = raised
        found: list[Any] = [None] * self.size
        own = (result, None if error is None else _portable(error))
        dist.all_gather_object(found, own, group=self._group)  # type: ignore[no-untyped-call]
        if error is not None:
            raise error
        for _, theirs in found:
            if theirs is not None:
                raise theirs
        return [result for result, _ in found]

    def tell(self, told: Optional[bytes] = None) -> bytes:
        """Broadcasts what the first rank passes."""
        objects = [told]
        dist.broadcast_object_list(  # type: ignore[no-untyped-call]
            objects, src=self._first, group=self._group
        )
        assert objects[0] is not None
        return objects[0]

    def heard(self, method: str, told: bytes) -> Any:
        """The result in what the first rank has told; raises the error in it."""
        outcome: _Outcome = pickle.loads(told)
        if outcome.method != method:
            raise RuntimeError(
                f"the first rank has called {outcome.method}, and rank {self.rank} {method}: all "
                "ranks of a sharded model have to call the same methods of its pruner, in the same "
                "order"
            )
        if outcome.error is not None:
            raise outcome.error
        return outcome.result


def _portable(error: BaseException) -> BaseException:
    """The error, or one with its text where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever other people's classes raise
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class CollectiveClient:
    """Stands in for a `Client` where a model is bound; that of the first rank makes the calls."""

    def __init__(self, ranks: Ranks, client: Client) -> None:
        self._ranks, self._client = ranks, client

    def bind_model(self, *args: Any, **kwargs: Any) -> CollectiveSession:
        """See `Client.bind_model`."""
        return self._open("bind_model", lambda: self._client.bind_model(*args, **kwargs))

    def join(self, *args: Any, **kwargs: Any) -> CollectiveSession:
        """See `Client.join`."""
        return self._open("join", lambda: self._client.join(*args, **kwargs))

    def session_info(self, session_id: str) -> Any:
        """See `Client.session_info`."""
        return self._ranks.on_first("session_info", lambda: self._client.session_info(session_id))

    def _open(self, method: str, call: Callable[[], Session]) -> CollectiveSession:
        opened: list[Session] = []

        def told() -> tuple[Any, ...]:
            session = call()
            opened.append(session)
            return session.id, session.route, session.plan, session.lease, session.stale

        facts: tuple[Any, ...] = self._ranks.on_first(method, told)
        return CollectiveSession(self._ranks, opened[0] if opened else None, facts)


class CollectiveSession:
    """Stands in for a `Session`. Its methods are those of `Session`, to be called by all ranks;
    `close` is of each rank alone, as it may be called when others have failed.

    Args:
        session: on the first rank.
        facts: the values of the first attributes.

    Attributes:
        id, route, plan, lease, closed: those of `Session`.
        stale: the same, as the session was bound.
        stats: the same; of the first rank, which makes the calls.
    """

    def __init__(self, ranks: Ranks, session: Optional[Session], facts: tuple[Any, ...]) -> None:
        self._ranks, self._session = ranks, session
        self.id, self.route, self.plan, self.lease, self.stale = facts
        self.stats = Stats() if session is None else session.stats
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        """A method of `Session`."""
        if name.startswith("_") or not callable(getattr(Session, name, None)):
            raise AttributeError(f"a Session has no attribute {name!r}")
        return functools.partial(self._call, name)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._ranks.on_first(method, lambda: getattr(self._session, method)(*args, **kwargs))

    def calc_thresholds(self, counters: Mapping[str, Counter], **kwargs: Any) -> dict[str, Any]:
        """See `Session.calc_thresholds`. A counter's `count` is called on all ranks together, and
        returns the same on all.
        """
        if self._session is not None:
            led = {name: _Led(self._ranks, name, each) for name, each in counters.items()}
            answers: dict[str, Any] = self._call("calc_thresholds", led, **kwargs)
            return answers
        while True:
            told = self._ranks.tell()
            wanted = pickle.loads(told)
            if not isinstance(wanted, _Count):
                answers = self._ranks.heard("calc_thresholds", told)
                break
            with contextlib.suppress(InvalidArgumentError):  # which the first rank gets as well
                counters[wanted.layer].count(wanted.key, wanted.known_bits)
        return answers

    def set_mask(self, masks: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """See `Session.set_mask`. All ranks have the masks; they are not sent back."""
        session = self._session

        def call() -> None:
            assert session is not None
            session.set_mask(masks, **kwargs)

        self._ranks.on_first("set_mask", call)
        return dict(masks)

    def close(self, **kwargs: Any) -> None:
        """See `Session.close`; of this rank alone."""
        self.closed = True
        if self._session is not None:
            self._session.close(**kwargs)


class _Led:
    """A `Counter` of the first rank, with which the others count."""

    def __init__(self, ranks: Ranks, name: str, counter: Counter) -> None:
        self.shape, self.bits = counter.shape, counter.bits
        self._ranks, self._name, self._counter = ranks, name, counter

    def count(self, key: int, known_bits: int) -> Digits:
        """See `Counter.count`."""
        self._ranks.tell(pickle.dumps(_Count(self._name, key, known_bits)))
        return self._counter.count(key, known_bits)
