"""Statistics of layers that an algorithm asks for: when they are sent, and what is kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from ..errors import CompressionError, FailedPreconditionError, StatusCode, UnimplementedError
from ..values.parts import StatisticPart
from .tracker import Tracker
from .warn import warn

if TYPE_CHECKING:
    from .backend import Backend

_log = logging.getLogger("nni_compression")

Parts = Mapping[str, Mapping[str, StatisticPart]]  # layer -> kind -> part, of a numpy array

STATE = "statistics"  # the entry of a checkpoint
_NAMED = 10  # layers in a message

#: Kinds of what all ranks have alike once their gradients are reduced. One of them sends these.
ALIKE_ON_ALL_RANKS = frozenset(
    {"weight_gradient", "filter_taylor", "squared_gradient", "parameter"}
)

#: Kinds of what the model has, so that a new session gets them again.
KEPT_BY_THE_MODEL = frozenset({"parameter"})


def named(layers: Sequence[str]) -> str:
    """For messages: "layers '0', '2'"."""
    names = ", ".join(map(repr, layers[:_NAMED]))
    return f"layer{'s'[: len(layers) - 1]} {names}{', ...' if len(layers) > _NAMED else ''}"


class Collector(Protocol):
    """Adds up, on the trainer's device, the statistics that the plan of a binding declares."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take."""

    @property
    def steps(self) -> int:
        """How many steps of optimizers were observed that train one of the layers."""

    @property
    def batches(self) -> int:
        """How many batches, or steps, each layer was observed in, at least."""

    def check(self) -> None:
        """Raises InvalidArgumentError for layers that no training would give what is collected."""

    def has(self, name: str, kind: str) -> bool:
        """Whether there is something to take of this kind of a layer."""

    def of(self, kind: str) -> str:
        """What a kind is a statistic of: "gradient", "input" or "output"."""

    def take(self, names: Collection[str]) -> Parts:
        """What was added up for these layers since it was last taken; without empty parts."""

    def peek(self, names: Collection[str]) -> Parts:
        """The same, without taking it."""

    def add(self, parts: Parts) -> None:
        """Adds parts that were taken, or peeked at."""

    def merged(self, kind: str, one: StatisticPart, other: StatisticPart) -> StatisticPart:
        """Both parts as one, bit for bit as the server adds up the parts of a source."""

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
    was: the server counts it once. What was counted is kept, too, in host memory, so that a session
    that continues from a checkpoint has the same sums.

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
        self._counted: dict[str, dict[str, StatisticPart]] = {}  # by the session, as one part
        #: Whether a forward pass may ask: the first ones, of a calibration for example, only
        #: collect, until an epoch or a step is set.
        self.is_ready = False
        #: Another time from when it may: after so many batches, or steps.
        self.ready_after: Optional[int] = None
        # The layers and kinds of which nothing was ever collected.
        self._unobserved = {
            (name, kind)
            for name in self.layers
            for kind in tracker.plan.layers[name].statistics
            if kind not in KEPT_BY_THE_MODEL
        }
        self._declared = len(self._unobserved)
        self._warned = False

    @property
    def may_ask(self) -> bool:
        """Whether a forward pass may ask now."""
        after = self.ready_after
        if after is not None and self._ranks is None and self.collector.batches >= after:
            self.is_ready, self.ready_after = True, None
        return self.is_ready

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

    def check_observed(self, refresh: Callable[[], None]) -> None:
        """Called after a step or an epoch was set, which may have made layers stale of which
        nothing was collected.

        Whether their masks need statistics is asked with `refresh`: they do not as long as nothing
        is to be removed. Where something is missing, this raises if other layers have theirs, as
        the next forward pass would; it warns once if none has, which may only come late.
        """
        tracker = self._tracker
        if self.is_shared or not tracker.owned:
            return
        missing = {name for name, _ in self._missing()} & tracker.stale
        if not missing:
            return
        if self._is_anything_observed:
            refresh()
        elif (tracker.step or tracker.epoch) and not self._warned:
            try:
                refresh()
            except FailedPreconditionError as error:
                if not error.errors:
                    raise
                self._warned = True
                warn(error.message)

    def explained(self, error: CompressionError) -> CompressionError:
        """The error of asking for layers; where statistics are missing, one that says why."""
        missing = set() if self._source else self._missing()
        names = {name for name, _ in missing}
        refused = [
            name
            for name, reason in error.errors.items()
            if name in names and reason.code == StatusCode.FAILED_PRECONDITION
        ]
        if not refused:
            return error
        kinds = {kind for name, kind in missing if name in refused}
        explained = FailedPreconditionError(self._why_missing(refused, kinds))
        explained.errors, explained.results = error.errors, error.results
        explained.request_id = error.request_id
        return explained

    def _missing(self) -> set[tuple[str, str]]:
        """The layers and kinds of which nothing was ever collected."""
        self._unobserved = {each for each in self._unobserved if not self.collector.has(*each)}
        return self._unobserved

    @property
    def _is_anything_observed(self) -> bool:
        return len(self._missing()) < self._declared or self.collector.steps > 0

    def _why_missing(self, layers: Sequence[str], kinds: Collection[str]) -> str:
        of_gradients = any(self.collector.of(kind) == "gradient" for kind in kinds)
        are, them = ("it is", "it") if len(layers) == 1 else ("they are", "them")
        names = named(layers)
        if self._is_anything_observed and of_gradients:
            return (
                f"{names} got no gradient in {self.collector.steps} optimizer steps: {are} frozen, "
                f"unused or not in the optimizer; exclude {them} in config_list"
            )
        if self._is_anything_observed:
            return (
                f"no forward pass of {names} was observed: {are} unused; exclude {them} in "
                "config_list"
            )
        tracker = self._tracker
        by_epoch = tracker.plan.needs_update_epoch and not tracker.plan.needs_step
        when = f"epoch {tracker.epoch}" if by_epoch else f"step {tracker.step}"
        share = self._target(layers)
        told = f"{when} needs masks" if share is None else f"{when} removes {share:.3g} %"
        if of_gradients:
            return (
                f"{told}, but no optimizer step was observed for {names} so far: give the pruner "
                "the optimizer that trains them, and train this model rather than a copy"
            )
        return (
            f"{told}, but no forward pass was observed for {names} so far: run this model, rather "
            "than a copy, before the masks are due"
        )

    def _target(self, layers: Sequence[str]) -> Optional[float]:
        """How many percent of these layers are to be removed, if that is known."""
        with contextlib.suppress(CompressionError):
            reports = self._tracker.session.info().layers
            targets = [each.target_sparsity for each in reports if each.name in layers]
            known = [target for target in targets if target is not None]
            return 100 * max(known) if known else None
        return None

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
                self._unobserved -= {(name, kind) for kind in taken}
            parts = {name: self._unanswered[name] for name in wanted if name in self._unanswered}
            if not parts:
                return
            self._send(parts)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: layer -> kind -> what this source has collected.

        What the session has counted, or will have once it answers, is one part; what is not sent
        is another, so that a training that continues adds up the same numbers in the same order.
        """
        fresh = self.collector.peek(self.layers)
        found = {}
        for name in self.layers:
            counted = dict(self._counted.get(name, {}))
            for kind, part in self._unanswered.get(name, {}).items():
                counted[kind] = self._total(name, kind, part)
            kinds: dict[str, Any] = {}
            for kind in self._tracker.plan.layers[name].statistics:
                if kind in KEPT_BY_THE_MODEL:
                    continue
                parts = {"counted": counted.get(kind), "fresh": fresh.get(name, {}).get(kind)}
                held = {what: self._entry(part) for what, part in parts.items() if part is not None}
                if held:
                    kinds[kind] = {"source": self._source, **held}
            if kinds:
                found[name] = kinds
        return {STATE: found} if found else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint in a new session, which gets what the old one had counted.

        The binding is installed.
        """
        others = []
        for name, kinds in state.get(STATE, {}).items():
            if name not in self.layers:
                continue
            for kind in kinds.keys() & self._tracker.plan.layers[name].statistics:
                entry = kinds[kind]
                self._unobserved.discard((name, kind))
                if entry["source"] != self._source:
                    if kind not in ALIKE_ON_ALL_RANKS:
                        others.append(name)
                    continue
                if "counted" in entry:
                    self._unanswered.setdefault(name, {})[kind] = self._part(entry["counted"])
                if "fresh" in entry:
                    self.collector.add({name: {kind: self._part(entry["fresh"])}})
        if others:
            _log.warning(
                "rank %d starts without statistics of its own of %s: the checkpoint is another "
                "rank's",
                self._source,
                named(list(dict.fromkeys(others))),
            )

    def _entry(self, part: StatisticPart) -> dict[str, Any]:
        values = self._backend.from_numpy(part.values.copy())
        return {"values": values, "count": part.count, "exponent": part.exponent}

    def _part(self, entry: Mapping[str, Any]) -> StatisticPart:
        values = self._backend.to_numpy(entry["values"])
        return StatisticPart(values, entry["count"], entry["exponent"])

    def _total(self, name: str, kind: str, part: StatisticPart) -> StatisticPart:
        """What the session has counted of this source with another part."""
        counted = self._counted.get(name, {}).get(kind)
        return part if counted is None else self.collector.merged(kind, counted, part)

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
        part = self._pop(name, kind)
        if kind not in KEPT_BY_THE_MODEL:
            self._counted.setdefault(name, {})[kind] = self._total(name, kind, part)

    def _pop(self, name: str, kind: str) -> StatisticPart:
        kinds = self._unanswered[name]
        part = kinds.pop(kind)
        if not kinds:
            del self._unanswered[name]
        return part
