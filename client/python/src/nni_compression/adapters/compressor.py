"""What pruners and quantizers of every framework have in common: a model, a session, and between.

An adapter makes a subclass with the hooks at the end of `Compressor`, and of it its pruners and
quantizers, with `PrunerPart` and `QuantizerPart`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional, Union

import numpy as np

from ..client import Client
from ..errors import (
    CompressionError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StatusCode,
)
from ..session import Session
from ..values.masks import Mask
from ..values.plan import Coverage, Layer, Parameter, Plan
from ..values.quantization import Memory
from ..values.statistics import Stats
from . import checkpoints, custom
from .binding import Binding, PrunerBinding, QuantizerBinding, Weight
from .tracker import Closer, Tracker, close_quietly, is_on_this_host

_STATE_VERSION = 1
_PACKAGE = __name__.partition(".")[0] + "."
_log = logging.getLogger("nni_compression")


class Compressor:
    """Base of pruners and quantizers; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)                       # doctest: +SKIP
    >>> model = pruner(model)                                   # doctest: +SKIP
    >>> pruner = LevelPruner(model, config_list, optimizer)     # doctest: +SKIP
    >>> model = pruner.compress()                               # doctest: +SKIP

    Errors are subclasses of `nni_compression.CompressionError`.

    Args:
        model: in the second form.
        config_list: NNI's list of rules; the last rule that matches a layer wins.
        optimizer: need not be given.
        server: "host:port"; by default $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051.
        client: a `Client` to use instead; it is not closed here.
        session: the id of a session to join, as a further rank of the same training does. It is
            left to the rank that has bound it: this one does not end it. After an interruption it
            is that of the session which the first rank has bound from its checkpoint.
        labels: for listing the session, logs and metrics.
        lease: seconds without a call after which the server may end the session. The client renews
            it in the background.
        on_lost_session: what to do when the server no longer has the session, because it was
            restarted or the lease ran out. "rebind": a new one is bound with the masks, the epoch
            and the step that are here, and a warning is logged; "raise": NotFoundError. A session
            that somebody has closed, and one that was joined, always raise.
        on_bad_weight: what to do when the server refuses a weight, because it has a NaN. "raise":
            InvalidArgumentError that names layer, element, epoch and step; "keep": the layer keeps
            the mask or quantization that it has, and a warning is logged.

    One thread at a time may call a compressor; any number may run the model.
    """

    algorithm: ClassVar[str] = ""

    #: Of an algorithm of one's own: key -> its type if it is required, or else its default. None:
    #: rules may have any keys.
    options: ClassVar[Optional[Mapping[str, Any]]] = None
    #: Of an algorithm of one's own: what "default" in op_types, and a rule without filters, means.
    default_op_types: ClassVar[Optional[Sequence[str]]] = None

    _computes: ClassVar[str] = ""  # the method that makes a subclass an algorithm of one's own
    _custom_algorithm: ClassVar[str] = ""  # the one that holds its results
    _is_custom: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls._computes and cls._computes in vars(cls) and not cls.__module__.startswith(_PACKAGE):
            cls.algorithm, cls._is_custom = cls._custom_algorithm, True
        if cls._is_custom:
            for name in ("update_epoch", "step"):
                if name in vars(cls):
                    setattr(cls, name, _followed(name, vars(cls)[name]))

    def __init__(
        self,
        model: Any = None,
        config_list: Any = None,
        optimizer: Optional[Any] = None,
        *,
        server: Optional[str] = None,
        client: Optional[Client] = None,
        session: Optional[str] = None,
        labels: Optional[Mapping[str, str]] = None,
        lease: Optional[float] = None,
        on_lost_session: str = "rebind",
        on_bad_weight: str = "raise",
    ) -> None:
        if not self.algorithm:
            raise TypeError(
                f"{type(self).__name__} names no algorithm and computes nothing itself: set the "
                f"class attribute `algorithm`, or override {self._computes}"
            )
        if config_list is None and not self._is_model(model):
            model, config_list = None, model
        if model is not None and not self._is_model(model):
            raise TypeError(f"model is a {type(model).__name__}; it must be a {self._model_type}")
        if config_list is None:
            raise TypeError("config_list is missing; it must be a list of dicts")
        if client is not None and server is not None:
            raise TypeError("server and client are both given; a client has its server")
        _check_choice("on_lost_session", on_lost_session, ("rebind", "raise"))
        _check_choice("on_bad_weight", on_bad_weight, ("raise", "keep"))
        if self._is_custom:
            config_list = custom.read_rules(config_list, self.options, self.default_op_types)
        self.config_list: Sequence[Mapping[str, Any]] = config_list
        self._model: Any = model
        self._optimizer = optimizer
        self._own_client = client is None
        self._client = client if client is not None else Client(server)
        self._join = session
        self._route: Optional[str] = None  # of the session to join, if it is known
        self._labels = labels
        self._lease = lease
        self._rebind_lost = on_lost_session == "rebind"
        self._keep_on_bad_weight = on_bad_weight == "keep"
        self._resume: Optional[Mapping[str, Any]] = None
        self._binding: Optional[Binding[Any]] = None
        self._unwrapped = False
        self._closer: Optional[Closer] = None
        self._unwatch: list[Callable[[], None]] = []
        self._vectors_need_filter = True
        self._told = 0  # how often the base was told of an epoch or a step

    def __call__(self, model: Any) -> Any:
        """Compresses the model, in place, and returns it."""
        if self._model is not None and model is not self._model:
            raise RuntimeError("this compressor has a model already; make another for another one")
        self._model = model
        return self.compress()

    def compress(self) -> Any:
        """Compresses the model that was given to the constructor, in place, and returns it."""
        if self._model is None:
            raise RuntimeError("there is no model; call the compressor with one")
        self._check_not_unwrapped()
        if self._binding is None:
            self.bind_model(self._model)
            self._bind(self._resume)
            self._resume = None
            _warn(self.plan)
        self._settle()
        return self._model

    def bind_model(self, model: Any) -> None:
        """Called with the model before it is compressed; for algorithms of one's own."""

    @property
    def bound_model(self) -> Any:
        """The model, once there is one."""
        return self._model

    @property
    def session(self) -> Session:
        """The session on the server."""
        return self._bound().tracker.session

    @property
    def plan(self) -> Plan:
        """What is done with each layer, and warnings about the config_list."""
        return self._bound().tracker.plan

    @property
    def stats(self) -> Stats:
        """What the calls of the session cost: number, bytes, time spent waiting."""
        return self.session.stats

    @property
    def epoch(self) -> int:
        """The epoch that was set last."""
        return self._bound().tracker.epoch

    @property
    def steps(self) -> int:
        """The step that was set last."""
        return self._bound().tracker.step

    def update_epoch(self, epoch: int) -> None:
        """Tells the epoch, from 0 on. Masks that it makes stale come with the next forward.

        Warns of layers that the model has got since it was bound, and of those whose module is
        another one by now: `rebind` takes them in.
        """
        self._check_not_unwrapped()
        epoch = operator.index(epoch)  # a checkpoint is to have a plain number
        self._told += 1
        self._settle()
        self._warn_of_replaced_layers()
        self._warn_of_new_layers()
        try:
            self._set_epoch(epoch)
        except NotFoundError as error:
            self._replace_lost_session(error)
            self._set_epoch(epoch)

    def step(self, step: Optional[int] = None) -> None:
        """Tells that a minibatch is done: the next step, or the one given (absolute)."""
        self._check_not_unwrapped()
        step = None if step is None else operator.index(step)
        self._told += 1
        self._settle()
        self._warn_of_replaced_layers()
        step = self._bound().tracker.step + 1 if step is None else step
        try:
            self._take_step(step)
        except NotFoundError as error:
            self._replace_lost_session(error)
            self._take_step(step)

    def rebind(self) -> None:
        """Binds the model as it is now: a new session, with the masks, the epoch and the step.

        Warns of masks, and of what else was remembered, of layers that the model has no more, or
        whose weights have another shape: that is dropped.

        Should that fail, nothing has changed. What was refused is over; what failed otherwise, as
        when no server answers, is done again by the next call of any method or forward pass, which
        raises until it succeeds.
        """
        self._check_not_unwrapped()
        self._settle()
        self._until_it_succeeds(lambda: self._bind(self._state(), drop=True))

    def refresh(self) -> None:
        """Asks now for what the next forward pass would ask for."""
        self._settle()
        self._warn_of_replaced_layers()
        self._bound().refresh()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after an interruption, as if there had been none.

        The epoch, the step, the masks in force, packed, and what the session remembers of layers.
        The weights are the model's own state.
        """
        self._warn_of_replaced_layers()
        return self._state()

    def _state(self) -> dict[str, Any]:
        binding = self._bound()
        if self._resume is not None:
            return dict(self._resume)  # loaded, but not bound yet
        tracker = binding.tracker
        return {
            "version": _STATE_VERSION,
            "algorithm": self.algorithm,
            "session": tracker.session.id,
            "route": tracker.session.route,
            "epoch": tracker.epoch,
            "step": tracker.step,
            "session_step": tracker.session_step,
            "step_applied": tracker.step_applied,
            "vectors_need_filter": self._vectors_need_filter,
            "masks": {
                name: {"bits": self._from_numpy(mask.bits.copy()), "shape": list(mask.shape)}
                for name, mask in self._packed_masks().items()
            },
            **self._further_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict()`, before or after the model was given.

        The state wins over a session that has gone on since, or has fallen behind: a new one is
        bound with the masks, epoch, step and ranges of the state, and the one that the state is of
        is left alone, as somebody may still be using it. Its lease ends it. Should that fail, it is
        as for `rebind`.

        ValueError for a state with masks, or anything else, of layers that the model does not have;
        without a model yet, when there is one.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"state['version'] is {state.get('version')!r}; it must be {_STATE_VERSION}"
            )
        if state["algorithm"] != self.algorithm:
            raise ValueError(
                f"state['algorithm'] is {state['algorithm']!r}; it must be {self.algorithm!r}"
            )
        self._resume = state
        if self._binding is not None:
            self._until_it_succeeds(self._bind_resumed)

    def export(
        self,
        directory: Union[str, os.PathLike[str]],
        format: str = "safetensors",
        *,
        options: Optional[Mapping[str, Any]] = None,
    ) -> list[Path]:
        """Writes the model in one of the server's formats, with the plain model's names.

        The files appear under their names when all of them are complete. A model that is pruned and
        quantized is exported as one; docs/exports.md says which of the two writes which format.

        Args:
            directory: made if need be.
            format: "safetensors", "pth", "sparse", "compressed-tensors", "onnx", "masks" or
                "report"; docs/exports.md has them.
            options: of the format.

        Returns: the files written. FailedPreconditionError where modules were replaced after
        binding, and `rebind` was not called.
        """
        self._check_not_replaced()
        try:
            return self._export(directory, format, options)
        except NotFoundError as error:
            self._replace_lost_session(error)
            return self._export(directory, format, options)

    def _export(
        self,
        directory: Union[str, os.PathLike[str]],
        format: str,
        options: Optional[Mapping[str, Any]],
    ) -> list[Path]:
        self.refresh()
        self._give_masks()
        if format == "masks":
            return self.session.export(directory, format=format, options=options)
        tensors, names = self._exported()
        given = {"names": names, **(options or {})}
        return self.session.export(directory, tensors, format, options=given)

    def unwrap(self) -> Any:
        """Gives the plain model back, zeros or quantized values written in; ends the session.

        Compressing that model again takes another compressor.
        """
        if self._is_installed(self._bound()):
            self.refresh()
            self._bound().unwrap()
        self.close()
        self._unwrapped = True
        return self._model

    def close(self) -> None:
        """Ends the session. The model keeps computing with the answers it has.

        A server that cannot be reached is no error: the session ends with its lease.
        """
        binding = self._binding
        if binding is not None and binding.tracker.owned:
            binding.detach()
            binding.overdue = None
            self._stop_watching()
            self._end(binding.tracker.session)
        if self._closer is not None:
            self._closer.cancel()
        if self._own_client:
            self._client.close()

    def _bound(self) -> Binding[Any]:
        if self._binding is None:
            raise RuntimeError("no model is bound; call the compressor with one, or compress()")
        return self._binding

    def _set_epoch(self, epoch: int) -> None:
        tracker = self._bound().tracker
        with tracker.lock:
            tracker.update_epoch(epoch)
            if self._is_custom:
                tracker.forget()

    def _take_step(self, step: int) -> None:
        binding = self._bound()
        tracker = binding.tracker
        with tracker.lock:
            tracker.take_step(step, gradients=binding.gradients())
            if self._is_custom:
                tracker.forget()

    def _check_not_unwrapped(self) -> None:
        """Nothing that is told would have an effect."""
        if self._unwrapped:
            raise RuntimeError("unwrap() has given the plain model back; make another compressor")

    def _settle(self) -> None:
        """Makes up for a rebind that failed; raises as it did when it fails again."""
        binding = self._bound()
        if binding.overdue is not None and binding.tracker.owned:
            binding.overdue()

    def _until_it_succeeds(self, bind: Callable[[], None], *, lost: bool = False) -> None:
        """Binds. If that fails, every call tries again first, lest it went on as if nothing were.

        What the server, or anything here, refuses is not tried again unless the session there was
        is `lost`: all is as it was before.
        """
        binding = self._bound()
        binding.overdue = lambda: self._until_it_succeeds(bind, lost=lost)
        try:
            bind()
        except Exception as error:
            if not lost and _is_refusal(error):
                binding.overdue, self._resume = None, None
            raise
        binding.overdue = None

    def _bind_resumed(self) -> None:
        assert self._resume is not None
        self._bind(self._resume)
        self._resume = None

    def _replace_lost_session(self, error: NotFoundError) -> None:
        """Binds another session in place of one that the server has lost; else raises `error`."""
        lost = self.session
        replace = not error.errors and self._rebind_lost and lost.id != self._join
        with contextlib.suppress(NotFoundError):
            # What somebody has closed was meant to end.
            replace = replace and self._client.session_info(lost.id).state != "closed"
        if not replace:
            raise error
        self._until_it_succeeds(self._bind_another, lost=True)

    def _bind_another(self) -> None:
        """Goes on in a new session from what is here."""
        lost = self.session
        self._bind(self._state(), drop=True)
        _log.warning(
            "the server no longer has session %s; session %s goes on with what is here, "
            "at epoch %d, step %d",
            lost.id,
            self.session.id,
            self.epoch,
            self.steps,
        )

    def _warn_of_new_layers(self) -> None:
        known = self._bound().tracker.plan.layers
        with contextlib.suppress(ValueError):  # of layers that are not built yet
            bound = {id(weight.op) for weight in self._bound().weights.values()}
            found = [w for w in self._find_weights() if id(w.op) not in bound]
            new = [w.name for w in found if w.name not in known]
            if new:
                warnings.warn(
                    f"layers {new[:10]} came into the model after it was bound and are not "
                    "compressed; rebind() takes them in",
                    UserWarning,
                    stacklevel=4,
                )

    def _warn_of_replaced_layers(self) -> None:
        replaced = self._replaced()
        if replaced:
            warnings.warn(_replaced_text(replaced), UserWarning, stacklevel=4)

    def _check_not_replaced(self) -> None:
        """FailedPreconditionError where the model is no longer what answers are about."""
        replaced = self._replaced()
        if replaced:
            raise FailedPreconditionError(_replaced_text(replaced))

    def _packed_masks(self) -> dict[str, Mask]:
        """The masks in force; empty for quantizers."""
        return {}

    def _give_masks(self) -> None:
        """Gives the session the masks of another compressor, which count in exports."""

    def _further_state(self) -> dict[str, Any]:
        """What else `state_dict` has."""
        return {}

    def _prepare(
        self, binding: Any, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]]
    ) -> None:
        """Tells a binding that is not installed yet what it goes on with."""

    def _installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        """Does what is left to do once the binding is installed; what it changes can be undone."""

    def _end(self, session: Session) -> None:
        """Ends a session, unless it is another rank's."""
        if session.id != self._join:
            close_quietly(session, None)

    def _bind(self, state: Optional[Mapping[str, Any]], *, drop: bool = False) -> None:
        """Binds the model, in place of a binding that there is; all of it is done, or nothing.

        Args:
            state: what `state_dict` gave, to go on from; None to begin.
            drop: whether what fits no layer is dropped, with a warning; otherwise it is a
                ValueError.
        """
        old = self._binding
        lock: Any = contextlib.nullcontext() if old is None else old.tracker.lock
        with lock, contextlib.ExitStack() as undo:
            weights = self._find_weights()
            if not weights:
                raise ValueError("the model has no layer with a weight that could be compressed")
            if state is not None:
                state = self._fitted(state, [weight.layer() for weight in weights], drop)
            masks = self._unpack(state["masks"]) if state is not None else {}
            undo.callback(setattr, self, "_vectors_need_filter", self._vectors_need_filter)
            tracker = self._open(weights, masks, state)
            undo.callback(self._end, tracker.session)
            joined = tracker.session.id == self._join
            binding = self._make_binding(tracker, weights)
            binding.rebind = self.rebind
            binding.on_lost = self._replace_lost_session
            binding.keep_on_bad_weight = self._keep_on_bad_weight
            if isinstance(binding, custom.Computing):
                binding.compute, binding.where = self._compute, self._where
            plan = tracker.plan
            coverage = Coverage.of(self._parameters(), plan.layers)
            tracker.session.plan = replace(plan, coverage=coverage)
            # A session that others move on may have other masks than the state: they are asked for.
            self._prepare(binding, {} if joined else masks, state)

            if state is not None and not joined:
                _warn_of_what_is_not_restored(tracker.plan, self.algorithm)

            # So far the model is as it was; from here on every change can be undone.
            if old is not None:
                self._stop_watching()
                undo.callback(self._watch)
            undo.callback(setattr, self, "_binding", old)
            if old is not None:
                old.leave(undo)
            binding.install(undo)
            self._binding = binding
            self._watch()
            undo.callback(self._stop_watching)
            self._installed(state, undo)
            undo.pop_all()

            closer, self._closer = self._closer, None
            if not joined:
                client = self._client if self._own_client else None
                self._closer = Closer(binding, tracker.session, client)
            if closer is not None:
                closer.cancel()
            if old is not None:
                old.successor = binding
                old.tracker.close()
                self._end(old.tracker.session)

    def _fitted(
        self, state: Mapping[str, Any], layers: Sequence[Layer], drop: bool
    ) -> Mapping[str, Any]:
        """What `state_dict` gave, under the names of these layers, and of nothing else."""
        bound = self._binding.shapes if drop and self._binding is not None else {}
        changed = {la.name for la in layers if bound.get(la.name, la.shape) != tuple(la.shape)}
        result, left_out = checkpoints.fitted(state, layers, self._layer_key, changed)
        if not left_out:
            return result
        told = ", ".join(left_out[:10]) + (", ..." if len(left_out) > 10 else "")
        if not drop:
            names = [layer.name for layer in layers]
            raise ValueError(
                f"{len(left_out)} entries of the state fit no layer of the model: {told}; "
                f"its layers are {names[:10]}{' and so on' if len(names) > 10 else ''}"
            )
        warnings.warn(f"dropped, as no layer has it: {told}", UserWarning, stacklevel=5)
        return result

    def _open(
        self,
        weights: Sequence[Weight],
        masks: Mapping[str, Mask],
        state: Optional[Mapping[str, Any]],
    ) -> Tracker:
        """A session for these weights: the one to join, or a new one that goes on from a state."""
        layers = [weight.layer() for weight in weights]
        if self._join is not None and self._binding is None:
            session = self._client.join(self._join, route=self._route)
            _check_layers(session, layers)
            info = session.info()
            return Tracker(session, epoch=info.epoch, step=info.step)
        if state is not None:  # one of the first version compressed vectors without a filter
            self._vectors_need_filter = state.get("vectors_need_filter", False)
        state = state or {"epoch": 0, "step": 0}
        memory: Mapping[str, Memory] = state.get("memory", {})
        # A session that was told no step, as its algorithm needs none, is told of it for reports.
        applied = state.get("step_applied", False)
        step = int(state["session_step"] if applied else state["step"])
        session = self._client.bind_model(
            self.algorithm,
            self._wire_config_list(),
            layers,
            framework=self._framework(),
            labels=self._labels,
            lease=self._lease,
            masks=masks or None,
            memory=memory,
            epoch=int(state["epoch"]),
            step=step,
            vectors_need_filter=self._vectors_need_filter,
            step_applied=applied,
        )
        return Tracker(
            session,
            epoch=int(state["epoch"]),
            step=int(state["step"]),
            session_step=step,
            step_applied=applied,
        )

    def _wire_config_list(self) -> Sequence[Mapping[str, Any]]:
        if not self._is_custom:
            return self.config_list
        return custom.wire_rules(self.config_list, type(self).__name__)

    def _config_of(self, name: str) -> Mapping[str, Any]:
        """The rule that won for a layer."""
        rule = self._bound().tracker.plan.layers[name].rule
        assert rule is not None
        return self.config_list[rule]

    def _compute(self, weight: Weight) -> Any:
        """What an algorithm of one's own returns for a weight."""
        method = getattr(self, self._computes)
        return method(weight.tensor, self._config_of(weight.name), **custom.arguments(weight))

    def _where(self, weight: Weight) -> str:
        """Begins messages about what it returned."""
        return f"{type(self).__name__}.{self._computes} of layer {weight.name!r}"

    def _run_own(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls an `update_epoch` or `step` of one's own."""
        return method(self, *args, **kwargs)

    def _stop_watching(self) -> None:
        while self._unwatch:
            self._unwatch.pop()()

    def _unpack(self, masks: Mapping[str, Any]) -> dict[str, Mask]:
        return {
            name: Mask(self._to_numpy(packed["bits"]), packed["shape"])
            for name, packed in masks.items()
        }

    # What an adapter says of its framework.

    _model_type: ClassVar[str] = "model"  # for messages

    def _framework(self) -> str:
        """As BindModel has it."""
        raise NotImplementedError

    def _is_model(self, value: Any) -> bool:
        raise NotImplementedError

    def _find_weights(self) -> Sequence[Any]:
        """The weights of the model that can be compressed, tied ones once."""
        raise NotImplementedError

    def _parameters(self) -> Iterable[Parameter]:
        """All parameters of the model, those that cannot be compressed too, each once."""
        raise NotImplementedError

    def _make_binding(self, tracker: Tracker, weights: Sequence[Any]) -> Binding[Any]:
        raise NotImplementedError

    def _exported(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """The model's tensors for the server, and how the weights that it knows by their layers'
        names are called in the model.

        Of weights that it compresses, what it makes the compressed ones of.
        """
        raise NotImplementedError

    def _replaced(self) -> list[str]:
        """The layers whose module, in the model, is no longer the one that was bound."""
        return []

    @staticmethod
    def _layer_key(name: str) -> str:
        """Equal for the names that one layer has in a model and in a wrapper of that model."""
        return name

    def _is_installed(self, binding: Binding[Any]) -> bool:
        """Whether the model still reads its weights through the binding."""
        return True

    def _watch(self) -> None:
        """Begins to hear of what changes weights, where that leaves no trace in them.

        What ends it again goes into `_unwatch`.
        """

    @staticmethod
    def _from_numpy(array: Any) -> Any:
        """An array as `state_dict` has it: something that the framework's files can hold."""
        return array

    @staticmethod
    def _to_numpy(array: Any) -> Any:
        return np.asarray(array)


class PrunerPart(Compressor):
    """What pruners add to a compressor."""

    _computes = "calc_mask"
    _custom_algorithm = "custom_pruner"

    def calc_mask(self, weight: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """The mask of a weight: override it for an algorithm of your own.

        Called when a weight, the epoch or the step changed, before the next forward pass.

        Args:
            weight: the dense weight, not to be written to.
            config: the rule of config_list that was selected.
            kwargs: `op`, `op_type`, `op_name`.

        Returns: an array or tensor of the weight's shape: bool, or 0 and 1; 1 = kept.
        """
        raise NotImplementedError(f"{self.algorithm} computes masks on the server")

    def _masks(self) -> PrunerBinding[Any]:
        binding = self._bound()
        assert isinstance(binding, PrunerBinding)
        return binding

    def _packed_masks(self) -> dict[str, Mask]:
        return self._masks().packed_masks()

    def _prepare(
        self, binding: Any, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]]
    ) -> None:
        binding.give_masks(masks)


class QuantizerPart(Compressor):
    """What quantizers add to a compressor.

    Args:
        transfer: what travels when weights change. "weights": the weights go to the service and
            the quantized values come back. "ranges": the smallest and largest weight of a layer (or
            channel) go, scale and zero point come back, and rounding happens here; the bits are the
            same (DoReFa: to one code). By default "weights" when the server is on this host.

    The other arguments are those of `Compressor`.
    """

    _computes = "quantize_weight"
    _custom_algorithm = "custom_quantizer"

    def quantize_weight(self, weight: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """The quantized values of a weight: override it for an algorithm of your own.

        Called when a weight, the epoch or the step changed, before the next forward pass; gradients
        pass straight through. Arguments as those of `PrunerPart.calc_mask`.

        Returns: a tensor of the weight's shape and dtype.
        """
        raise NotImplementedError(f"{self.algorithm} quantizes on the server")

    def quantize_layer_output(self, output: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """The quantized outputs of a layer, in every forward pass; for algorithms of your own."""
        raise NotImplementedError(f"{self.algorithm} does not quantize outputs here")

    def _compute_output(self, weight: Weight, output: Any) -> Any:
        """What an algorithm of one's own returns for the output of a weight's layer."""
        config = self._config_of(weight.name)
        return self.quantize_layer_output(output, config, **custom.arguments(weight))

    @property
    def _quantizes_outputs(self) -> bool:
        mine = type(self).quantize_layer_output
        return self._is_custom and mine is not QuantizerPart.quantize_layer_output

    def __init__(self, *args: Any, transfer: Optional[str] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if transfer not in (None, "weights", "ranges"):
            raise ValueError(f'transfer is {transfer!r}; it must be "weights" or "ranges"')
        if transfer is None:
            transfer = "weights" if is_on_this_host(self._client.server) else "ranges"
        self.transfer = transfer

    _gave_masks = False

    def _give_masks(self) -> None:
        if self._is_custom:  # its values are computed here, and masked here
            return
        weights = self._bound().weights
        kept = {name: self._kept(weight) for name, weight in weights.items()}
        if not self._gave_masks and all(mask is None for mask in kept.values()):
            return
        self.session.set_mask(
            {
                name: np.ones(weights[name].layer().shape, np.bool_) if mask is None else mask
                for name, mask in kept.items()
            }
        )
        self._gave_masks = True

    def _kept(self, weight: Any) -> Any:
        """What the pruner of a layer keeps, a boolean array; None where there is no pruner."""
        raise NotImplementedError

    _final_calibration: Optional[dict[str, dict[str, Any]]] = None

    def _put_codes(self, path: Path) -> None:
        """Writes what the session has made of the model into its ONNX graph."""
        try:
            from .. import onnx

            if self._final_calibration is not None:
                raise InvalidArgumentError("unwrap() has ended the session")
            with tempfile.TemporaryDirectory() as folder:
                (bundle,) = self.export(folder, "onnx")
                model = onnx.load(path)
                names, absent = onnx.match(model, bundle, self._tied_names())
                others = self._other_weights()
                onnx.apply(model, bundle, names=names, left_out=absent, others=others)
                if absent:
                    warnings.warn(
                        f"onnx_path has no weights {absent[:10]}: no output depends on them",
                        UserWarning,
                        stacklevel=3,
                    )
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # the weights of before
            onnx.save(model, path)
        except (ImportError, InvalidArgumentError) as error:
            warnings.warn(
                f"onnx_path gets the quantized weights as plain numbers: {error}",
                UserWarning,
                stacklevel=3,
            )

    def _tied_names(self) -> Mapping[str, Sequence[str]]:
        """What exports call a weight -> what the model calls it, once or, as it is tied, often."""
        return {}

    def _other_weights(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Name -> the tensors that are not compressed and have the shape of one that is.

        An exporter may have merged those with these.
        """
        return {}

    def _quantization(self) -> QuantizerBinding[Any]:
        binding = self._bound()
        assert isinstance(binding, QuantizerBinding)
        return binding

    def _take_step(self, step: int) -> None:
        self._quantization().step(step)
        if self._is_custom:
            self._quantization().tracker.forget()

    def _further_state(self) -> dict[str, Any]:
        binding = self._quantization()
        found = {
            "memory": {
                name: {key: list(numbers) for key, numbers in memory.items()}
                for name, memory in binding.memory.items()
            },
            "activations": _nested(binding.activation_ranges),
            "seen": _nested(binding.seen_here()),
        }
        return {key: value for key, value in found.items() if value}

    def _prepare(
        self, binding: Any, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]]
    ) -> None:
        if state is not None:
            binding.memory.update(state.get("memory", {}))
            binding.give_activations(_flat(state.get("activations", {})))

    def _installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        self._gave_masks = False
        if state is not None:
            self._quantization().see(_flat(state.get("seen", {})))
        super()._installed(state, undo)


def _nested(
    ranges: Mapping[tuple[str, str], Sequence[float]],
) -> dict[str, dict[str, list[float]]]:
    """Layer name -> "output" or "input" -> range."""
    found: dict[str, dict[str, list[float]]] = {}
    for (name, target), range_ in ranges.items():
        found.setdefault(name, {})[target] = list(range_)
    return found


def _flat(
    ranges: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[tuple[str, str], Sequence[float]]:
    """What `_nested` was given."""
    return {(name, target): value for name, of in ranges.items() for target, value in of.items()}


def _followed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass's own `update_epoch` or `step`, after which the base's has been called, too."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._told
        result = self._run_own(method, args, kwargs)
        self._bound().tracker.forget()
        if self._told == before:
            base = next(b for b in type(self).__mro__ if b.__module__.startswith(_PACKAGE))
            getattr(base, name)(self, *args, **kwargs)
        return result

    return call


def _replaced_text(names: Sequence[str]) -> str:
    return (
        f"the model's layers {list(names[:10])} are no longer those that were bound: their modules "
        "were replaced or removed; they are not compressed. rebind() takes the model in as it is"
    )


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {list(allowed)}")


def _is_refusal(error: Exception) -> bool:
    """Whether the same would fail again, whoever answers."""
    refusals = (StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION)
    return not isinstance(error, CompressionError) or error.code in refusals


def _check_layers(session: Session, layers: Sequence[Any]) -> None:
    names = [layer.name for layer in layers]
    if list(session.plan.layers) != names:
        raise ValueError(
            f"session {session.id} is bound to a model with other layers: "
            f"{sorted(set(session.plan.layers) ^ set(names))[:10]}"
        )


def _warn_of_what_is_not_restored(plan: Plan, algorithm: str) -> None:
    layers = [name for name, layer in plan.layers.items() if layer.remembers_more]
    if layers:
        _log.warning(
            "%s may remember more of layers %s than a checkpoint has; it begins anew with that in "
            "the new session",
            algorithm,
            layers[:10],
        )


def _warn(plan: Plan) -> None:
    coverage = plan.coverage
    if coverage is not None:
        _log.log(logging.WARNING if coverage.left_out else logging.INFO, "%s", coverage)
    for warning in plan.warnings:
        warnings.warn(warning, UserWarning, stacklevel=4)
    if not plan.compressed:
        warnings.warn(
            "the config_list matches no layer of the model: nothing will be compressed. Rules "
            "match op_types (the layers' types, such as Conv2d) and op_names (their names)",
            UserWarning,
            stacklevel=4,
        )
