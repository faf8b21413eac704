"""Statistics of layers that an algorithm asks for: when they are sent, and what is kept."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from ..errors import CompressionError, StatusCode, UnimplementedError
from ..values.parts import StatisticPart
from .tracker import Tracker

if TYPE_CHECKING:
    from .backend import Backend

_log = logging.getLogger("nni_compression")

Parts = Mapping[str, Mapping[str, StatisticPart]]  # layer -> kind -> part, of a numpy array

STATE = "statistics"  # the entry of a checkpoint

#: Kinds of what all ranks have alike once their gradients are reduced. One of them sends these.
ALIKE_ON_ALL_RANKS = frozenset(
    {"weight_gradient", "filter_taylor", "squared_gradient", "parameter"}
)

#: Kinds of what the model has, so that a new session gets them again.
KEPT_BY_THE_MODEL = frozenset({"parameter"})


class Collector(Protocol):
    """Adds up, on the trainer's device, the statistics that the plan of a binding declares."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take."""

    def take(self, names: Collection[str]) -> Parts:
        """What was added up for these layers since it was last taken; without empty parts."""

    def peek(self, names: Collection[str]) -> Parts:
        """The same, without taking it."""

    def add(self, parts: Parts) -> None:
        """Adds parts that were taken, or peeked at."""

    def leave_out(self, kinds: Collection[str]) -> None:
        """Stops collecting these kinds."""


class Ranks(Protocol):
    """The processes of one training that share a session."""

    @property
    def rank(self) -> int:
        """Of this process among them."""

    def on_all(self, call: Callable[[], Any]) -> list[Any]:
        """Makes a call on every rank; the results by rank. When one raises, all do."""


class Statistics:
    """Sends what a collector has added up, before an answer that depends on it is asked for.

    Between that, parts grow in the trainer. A part is kept until it was answered, and sent as it
    was: the server counts it once.

    Args:
        tracker: of the session.
        backend: of the model.
        collector: of the binding.
    """

    def __init__(self, tracker: Tracker, backend: Backend[Any], collector: Collector) -> None:
        self.collector = collector
        self._tracker, self._backend = tracker, backend
        self._ranks: Optional[Ranks] = None
        self._source = 0
        self._unanswered: dict[str, dict[str, StatisticPart]] = {}
        self._sent: dict[str, dict[str, int]] = {}  # layer -> kind -> samples
        #: Whether a forward pass may ask: the first ones, of a calibration for example, only
        #: collect, until an epoch or a step is set.
        self.is_ready = False

    @property
    def layers(self) -> list[str]:
        """The layers that statistics are declared for."""
        plan = self._tracker.plan
        return [name for name in plan.compressed if plan.layers[name].statistics]

    def share(self, ranks: Optional[Ranks], *, joined: bool) -> None:
        """Called before anything is collected.

        Args:
            ranks: those that share the session, if they call this binding's methods together.
            joined: whether another process has bound the session.
        """
        if joined and ranks is None:
            raise UnimplementedError(
                f"the algorithm asks for statistics of layer {self.layers[0]!r}, which ranks of "
                "one session have to send together: call on_every_rank() on each of them"
            )
        self._ranks = ranks
        if ranks is not None and ranks.rank > 0:
            self._source = ranks.rank
            self.collector.leave_out(ALIKE_ON_ALL_RANKS)

    @property
    def is_shared(self) -> bool:
        """Whether other ranks share the session."""
        return self._ranks is not None

    def advance(self, call: Callable[[], None]) -> None:
        """Sets the epoch or the step.

        Ranks that share the session send their parts of what became stale by it before any of them
        can ask for a mask; what one of them raises, all do.
        """

        def advanced() -> tuple[list[str], bool]:
            call()
            return sorted(self._tracker.stale), self._has_parts

        if self._ranks is None:
            _, has_parts = advanced()
        else:
            found = self._ranks.on_all(advanced)
            stale, has_parts = found[0][0], any(has_parts for _, has_parts in found)
            if stale and has_parts:
                self._ranks.on_all(lambda: self.send(stale))
        self.is_ready = self.is_ready or has_parts

    @property
    def _has_parts(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._unanswered) or not self.collector.is_empty

    def send(self, names: Iterable[str]) -> None:
        """Sends what there is of these layers.

        When parts of single layers fail, the error has `.errors` by layer. A part that was refused
        is dropped, as it would be again.
        """
        if not self._tracker.owned:
            return
        wanted = [name for name in self.layers if name in set(names)]
        while True:
            for name, taken in self.collector.take(
                [name for name in wanted if name not in self._unanswered]
            ).items():
                self._unanswered[name] = dict(taken)
            parts = {name: self._unanswered[name] for name in wanted if name in self._unanswered}
            if not parts:
                return
            self._send(parts)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: layer -> kind -> the parts that the session has not counted, and of how
        many samples are those that it has.
        """
        fresh = self.collector.peek(self.layers)
        found = {}
        for name in self.layers:
            kinds = {}
            for kind in self._tracker.plan.layers[name].statistics:
                if kind in KEPT_BY_THE_MODEL:
                    continue
                held = (self._unanswered.get(name, {}).get(kind), fresh.get(name, {}).get(kind))
                parts = [self._entry(part) for part in held if part is not None]
                sent = self._sent.get(name, {}).get(kind, 0)
                if parts or sent:
                    kinds[kind] = {"parts": parts, "sent": sent}
            if kinds:
                found[name] = kinds
        return {STATE: found} if found else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint in a new session, which lacks what the old one had counted.

        The binding is installed.
        """
        lost = []
        for name, kinds in state.get(STATE, {}).items():
            if name not in self.layers:
                continue
            if any(entry["sent"] for entry in kinds.values()):
                lost.append(name)
            for kind, entry in kinds.items():
                for part in entry["parts"]:
                    values = self._backend.to_numpy(part["values"])
                    made = StatisticPart(values, part["count"], part["exponent"])
                    self.collector.add({name: {kind: made}})
        if lost and self._source == 0:
            _log.warning(
                "session %s starts without the statistics of layers %s that were sent to the one "
                "before; it gets those since the last answers",
                self._tracker.session.id,
                lost[:10],
            )

    def _entry(self, part: StatisticPart) -> dict[str, Any]:
        values = self._backend.from_numpy(part.values.copy())
        return {"values": values, "count": part.count, "exponent": part.exponent}

    def _send(self, parts: Parts) -> None:
        session = self._tracker.session
        answers: Mapping[str, Mapping[str, int]]
        error: Optional[CompressionError] = None
        try:
            answers = session.add_statistics(parts, source=self._source)
        except CompressionError as raised:  # some may have been answered before the call failed
            answers, error = raised.results, raised
        for name, counts in answers.items():
            for kind in counts:
                self._answered(name, kind)
        if error is None:
            return
        for name, reason in error.errors.items():
            for kind, refusal in reason.errors.items():
                if refusal.code == StatusCode.INVALID_ARGUMENT:
                    self._pop(name, kind)
                    self.is_ready = False  # or no forward pass could collect another one
        raise error

    def _answered(self, name: str, kind: str) -> None:
        sent = self._sent.setdefault(name, {})
        sent[kind] = sent.get(kind, 0) + self._pop(name, kind).count

    def _pop(self, name: str, kind: str) -> StatisticPart:
        kinds = self._unanswered[name]
        part = kinds.pop(kind)
        if not kinds:
            del self._unanswered[name]
        return part
