"""The lifecycle of a session that is bound to a model; each change is all or nothing."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Literal, Optional, get_args

from ..client import Client
from ..errors import FailedPreconditionError, NotFoundError
from ..session import Session
from ..values.masks import Mask
from ..values.plan import Coverage, Plan
from ..values.quantization import Memory
from . import checkpoint
from .backend import Backend, Weight
from .binding import Binding
from .grouping import Grouping
from .statistics import Ranks
from .tracker import Closer, Tracker, close_quietly
from .warn import warn

_log = logging.getLogger("nni_compression")

OnLostSession = Literal["rebind", "raise"]
OnBadWeight = Literal["raise", "keep"]


@dataclass(frozen=True)
class Settings:
    """The session's settings: arguments of `Compressor`, under these names."""

    client: Client
    own_client: bool  # whether it is closed with the session
    labels: Optional[Mapping[str, str]]
    lease: Optional[float]
    on_lost_session: OnLostSession
    on_bad_weight: OnBadWeight

    def __post_init__(self) -> None:
        _check_choice("on_lost_session", self.on_lost_session, OnLostSession)
        _check_choice("on_bad_weight", self.on_bad_weight, OnBadWeight)


@dataclass(frozen=True)
class Recipe:
    """The algorithm of a session, and how its binding is made."""

    algorithm: str
    rules: Callable[[], Sequence[Mapping[str, Any]]]  # for BindModel
    make_binding: Callable[[Tracker, Sequence[Any], Backend[Any]], Binding[Any]]
    # Of weights of the model, and of the layers that the rules compress; None: not known yet.
    grouping: Callable[[Sequence[Any], Optional[Collection[str]]], Grouping]


class Lifecycle:
    """Binds a model to a session, binds it again, and ends the session.

    Attributes:
        join: the id of the session to join; None to open one.
        route: of that session, if it is known.
        model: the one given last.
        backend: of the model, once it is being compressed.
        resume: a state that was loaded and is not bound yet.
        vectors_need_filter: whether a rule without filters leaves out weights of one dimension.
        grouping: what the session is told of the model's filters.
        ranks: those that share the session and call the same methods together, if any.
        rebind, on_lost: see `Binding`.
    """

    def __init__(self, settings: Settings, recipe: Recipe, join: Optional[str]) -> None:
        self.settings = settings
        self.join = join
        self.route: Optional[str] = None
        self.model: Any = None
        self.backend: Optional[Backend[Any]] = None
        self.optimizer: Optional[Any] = None
        self.resume: Optional[Mapping[str, Any]] = None
        self.vectors_need_filter = True
        self.grouping = Grouping()
        self.ranks: Optional[Ranks] = None
        self.rebind: Optional[Callable[[], None]] = None
        self.on_lost: Optional[Callable[[NotFoundError], None]] = None
        self.binding: Optional[Binding[Any]] = None
        self._recipe = recipe
        self._closer: Optional[Closer] = None
        self._client_closed = False
        self._unwatch: list[Callable[[], None]] = []

    @property
    def bound(self) -> Binding[Any]:
        """The binding; FailedPreconditionError before there is one."""
        if self.binding is None:
            raise FailedPreconditionError(
                "no model is bound; call the compressor with one, or compress()"
            )
        return self.binding

    @property
    def client(self) -> Any:
        """What the calls about the model are made with; see `Backend.client`."""
        assert self.backend is not None
        return self.backend.client(self.settings.client)

    def rules(self) -> Sequence[Mapping[str, Any]]:
        """The config_list."""
        return self._recipe.rules()

    def bind(self, state: Optional[Mapping[str, Any]], *, drop: bool = False) -> None:
        """Binds the model, and replaces the present binding, if any.

        Args:
            state: a result of `state_dict` to resume from; None to begin.
            drop: whether entries that fit no layer are dropped with a warning; otherwise they are a
                ValueError.
        """
        old, backend = self.binding, self.backend
        assert backend is not None
        lock: Any = contextlib.nullcontext() if old is None else old.tracker.lock
        with lock, contextlib.ExitStack() as undo:
            weights = backend.find_weights(self.rules())
            if not weights:
                raise ValueError("the model has no layer with a weight that could be compressed")
            if state is not None:
                shapes = {} if old is None or not drop else old.shapes
                layers = [weight.layer() for weight in weights]
                state = checkpoint.fit(state, layers, backend.layer_key, shapes, drop=drop)
            masks = {} if state is None else checkpoint.unpacked(state, backend)
            undo.callback(setattr, self, "vectors_need_filter", self.vectors_need_filter)
            undo.callback(setattr, self, "grouping", self.grouping)
            self.grouping = self._recipe.grouping(weights, None)
            tracker = self._open(weights, masks, state)
            undo.callback(self._end, tracker.session)
            joined = tracker.session.id == self.join
            binding = self._recipe.make_binding(tracker, weights, backend)
            if joined:
                binding.clocks.called_elsewhere()
            elif old is not None:
                binding.clocks.continue_from(old.clocks)
            binding.rebind = self.rebind
            binding.on_lost = self.on_lost
            binding.keep_on_bad_weight = self.settings.on_bad_weight == "keep"
            if binding.statistics is not None:
                binding.statistics.share(self.ranks, joined=joined)
                if state is None:  # later, layers may be frozen that have been trained
                    binding.statistics.collector.check()
            plan = tracker.plan
            coverage = Coverage.of(backend.parameters(), plan.layers)
            tracker.session.plan = replace(plan, coverage=coverage)
            binding.start_from(masks, state, joined=joined)
            if state is not None and not joined:
                _warn_of_unrestored_memory(tracker.plan, self._recipe.algorithm)
                _warn_of_layers_without_masks(plan, masks)

            # So far the model is unchanged; from here on every change can be undone.
            if old is not None:
                self._stop_watching()
                undo.callback(self._watch)
            undo.callback(setattr, self, "binding", old)
            if old is not None:
                old.leave(undo)
            binding.install(undo)
            self.binding = binding
            self._watch()
            undo.callback(self._stop_watching)
            self._installed(state, undo)
            undo.pop_all()

            closer, self._closer = self._closer, None
            if not joined:
                client = self.settings.client if self.settings.own_client else None
                self._closer = Closer(binding, tracker.session, client)
            if closer is not None:
                closer.cancel()
            if old is not None:
                old.successor = binding
                old.tracker.close()
                self._end(old.tracker.session)

    def close(self) -> None:
        """Ends the session. The model keeps computing with the present answers."""
        binding = self.binding
        if binding is not None and binding.tracker.owned:
            binding.detach()
            binding.overdue = None
            self._stop_watching()
            self._end(binding.tracker.session)
        if self._closer is not None:
            self._closer.cancel()
        if self.settings.own_client:
            self.settings.client.close()
            self._client_closed = True

    def _open(
        self,
        weights: Sequence[Weight],
        masks: Mapping[str, Mask],
        state: Optional[Mapping[str, Any]],
    ) -> Tracker:
        """A session for these weights: the one to join, or a new one that resumes from a state."""
        layers = [weight.layer() for weight in weights]
        if self._client_closed:
            self.settings = replace(self.settings, client=copy.copy(self.settings.client))
            self._client_closed = False
        client = self.client
        if self.join is not None and self.binding is None:
            session: Session = client.join(self.join, route=self.route)
            _check_layers(session, [layer.name for layer in layers])
            info = session.info()
            return Tracker(session, epoch=info.epoch, step=info.step)
        if state is not None:  # one of the first version compressed vectors without a filter
            self.vectors_need_filter = state.get("vectors_need_filter", False)
        state = state or {"epoch": 0, "step": 0}
        memory: Mapping[str, Memory] = state.get("memory", {})
        # A session whose algorithm needs no steps gets the step here, for reports.
        applied = state.get("step_applied", False)
        step = int(state["session_step"] if applied else state["step"])
        assert self.backend is not None
        backend, epoch = self.backend, int(state["epoch"])

        def open_session(rules: Sequence[Mapping[str, Any]]) -> Session:
            bound: Session = client.bind_model(
                self._recipe.algorithm,
                backend.wire_rules(rules),
                layers,
                framework=backend.framework,
                labels=self.settings.labels,
                lease=self.settings.lease,
                masks=masks or None,
                memory=memory,
                epoch=epoch,
                step=step,
                vectors_need_filter=self.vectors_need_filter,
                step_applied=applied,
                filter_groups=self.grouping.groups,
            )
            return bound

        rules = self._recipe.rules()
        session = open_session(rules)
        try:
            # Which layers the rules compress is the server's to say, and groups may depend on it.
            grouping = self._recipe.grouping(weights, _matched(session.plan, rules))
        except BaseException:
            self._end(session)
            raise
        if grouping != self.grouping:
            self._end(session)
            self.grouping = grouping
            session = open_session(self._recipe.rules())
        return Tracker(
            session,
            epoch=epoch,
            step=int(state["step"]),
            session_step=step,
            step_applied=applied,
        )

    def _installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        self.bound.installed(state, undo)

    def _watch(self) -> None:
        assert self.backend is not None
        self._unwatch += self.backend.watch(self.bound, self.optimizer)

    def _stop_watching(self) -> None:
        while self._unwatch:
            self._unwatch.pop()()

    def _end(self, session: Session) -> None:
        """Ends a session, unless it is another rank's."""
        if session.id != self.join:
            close_quietly(session, None)


def warn_of_plan(plan: Plan) -> None:
    """Logs the coverage of the model, and warns of a suspicious plan."""
    coverage = plan.coverage
    if coverage is not None:
        _log.log(logging.WARNING if coverage.left_out else logging.INFO, "%s", coverage)
    for warning in plan.warnings:
        warn(warning)
    if not plan.compressed:
        warn(
            "the config_list matches no layer of the model: nothing will be compressed. Rules "
            "match op_types (the layers' types, such as Conv2d) and op_names (their names)"
        )


def _matched(plan: Plan, rules: Sequence[Mapping[str, Any]]) -> set[str]:
    """The layers for which a rule has won that does not exclude them."""
    return {
        name
        for name, layer in plan.layers.items()
        if layer.rule is not None and not rules[layer.rule].get("exclude")
    }


def _warn_of_unrestored_memory(plan: Plan, algorithm: str) -> None:
    layers = [name for name, layer in plan.layers.items() if layer.remembers_more]
    if layers:
        _log.warning(
            "%s may keep more memory of layers %s than a checkpoint has; that part starts from "
            "scratch in the new session",
            algorithm,
            layers[:10],
        )


def _warn_of_layers_without_masks(plan: Plan, masks: Mapping[str, Mask]) -> None:
    new = [name for name in plan.compressed if masks and name not in masks]
    if new:
        warn(
            f"the checkpoint has no masks of layers {new[:10]}, which the rules compress now: it "
            "was written with other rules, or by a version that left them out"
        )


def _check_layers(session: Session, names: Sequence[str]) -> None:
    if list(session.plan.layers) != list(names):
        raise ValueError(
            f"session {session.id} is bound to a model with other layers: "
            f"{sorted(set(session.plan.layers) ^ set(names))[:10]}"
        )


def _check_choice(name: str, value: str, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {list(allowed)}")
