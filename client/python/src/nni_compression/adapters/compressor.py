"""The base of pruners and quantizers of every framework: a model and its session."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Optional, TypeVar, Union

from ..client import Client
from ..errors import FailedPreconditionError, InvalidArgumentError
from ..session import Session
from ..values.counters import counter
from ..values.plan import Plan
from ..values.statistics import Stats
from . import checkpoint, custom, export, metrics
from .backend import Backend, backend_of, is_model_of, not_a_model
from .binding import Binding
from .grouping import Grouping
from .lifecycle import Lifecycle, OnBadWeight, OnLostSession, Recipe, Settings, warn_of_plan
from .recovery import Recovery
from .tracker import Tracker

M = TypeVar("M")
C = TypeVar("C", bound="Compressor")


class Compressor:
    """Base of pruners and quantizers; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)                       # doctest: +SKIP
    >>> model = pruner(model)                                   # doctest: +SKIP
    >>> pruner = LevelPruner(model, config_list, optimizer)     # doctest: +SKIP
    >>> model = pruner.compress()                               # doctest: +SKIP

    Errors are subclasses of `nni_compression.CompressionError`. One thread at a time may call a
    compressor; any number of threads may run the model.
    """

    algorithm: ClassVar[str] = ""

    #: Of a custom algorithm: key -> its type if it is required, or else its default. None: rules
    #: may have any keys.
    options: ClassVar[Optional[Mapping[str, Any]]] = None
    #: Of a custom algorithm: what "default" in op_types, and a rule without filters, means.
    default_op_types: ClassVar[Optional[Sequence[str]]] = None

    # What a framework sets: its backends, of which the first that accepts a model gets it.
    _backends: ClassVar[tuple[type[Backend[Any]], ...]] = ()

    # What pruners and quantizers set: the method that makes a subclass a custom algorithm, and the
    # algorithm of the server that holds its results.
    _computes: ClassVar[str] = ""
    _custom_algorithm: ClassVar[str] = ""
    _is_custom: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls._computes and cls._computes in vars(cls) and not custom.is_of_package(cls):
            cls.algorithm, cls._is_custom = cls._custom_algorithm, True
        if cls._is_custom:
            for name in ("update_epoch", "step"):
                if name in vars(cls):
                    setattr(cls, name, custom.followed(name, vars(cls)[name]))

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
        on_lost_session: OnLostSession = "rebind",
        on_bad_weight: OnBadWeight = "raise",
    ) -> None:
        """Makes a compressor; it does nothing before it has a model.

        Args:
            model: in the second form.
            config_list: NNI's list of rules; the last rule that matches a layer wins.
            optimizer: optional. A PyTorch optimizer, or each of a list or tuple of them, is
                observed for steps that leave no trace in the weights; PyTorch 2 allows that for all
                optimizers without this argument.
            server: "host:port", or "local" for a server that this process starts, see
                `nni_compression.local_server`; by default $NNI_COMPRESSION_SERVER, else
                127.0.0.1:50051.
            client: a `Client` to use instead; it is not closed here.
            session: the id of a session to join, for further ranks of the same training. The rank
                that has bound the session ends it; this one does not. After an interruption: the id
                of the session that the first rank has bound from its checkpoint.
            labels: for listing the session, logs and metrics.
            lease: seconds without a call after which the server may end the session. The client
                renews it in the background.
            on_lost_session: what to do when the server no longer has the session, because it was
                restarted or the lease ran out. "rebind": binds a new one with the present masks,
                epoch and step, and logs a warning; "raise": NotFoundError. A session that was
                explicitly closed, and one that was joined, always raise.
            on_bad_weight: what to do when the server refuses a weight, because it has a NaN.
                "raise": InvalidArgumentError that names layer, element, epoch and step; "keep": the
                layer keeps its present mask or quantization, and a warning is logged.
        """
        if not self.algorithm:
            raise TypeError(
                f"{type(self).__name__} names no algorithm and computes nothing itself: set the "
                f"class attribute `algorithm`, or override {self._computes}"
            )
        if config_list is None and not is_model_of(self._backends, model):
            model, config_list = None, model
        if model is not None and not is_model_of(self._backends, model):
            raise not_a_model(self._backends, model)
        if config_list is None:
            raise TypeError("config_list is missing; it must be a list of dicts")
        if client is not None and server is not None:
            raise TypeError("server and client are both given; a client has its server")
        if self._is_custom:
            config_list = custom.read_rules(config_list, self.options, self.default_op_types)
        self.config_list: Sequence[Mapping[str, Any]] = config_list
        settings = Settings(
            client=client if client is not None else Client(server),
            own_client=client is None,
            labels=labels,
            lease=lease,
            on_lost_session=on_lost_session,
            on_bad_weight=on_bad_weight,
        )
        recipe = Recipe(self.algorithm, self._wire_rules, self._make_binding, self._grouping)
        self._lifecycle = Lifecycle(settings, recipe, session)
        self._recovery = Recovery(self._lifecycle, self._state)
        self._lifecycle.model, self._lifecycle.optimizer = model, optimizer
        self._lifecycle.rebind = self.rebind
        self._lifecycle.on_lost = self._recovery.replace_lost_session
        self._unwrapped = False
        self._base_calls = 0  # calls of the base's update_epoch and step

    # The model.

    def __call__(self, model: M) -> M:
        """Compresses the model, in place, and returns it."""
        lifecycle = self._lifecycle
        if not is_model_of(self._backends, model):
            raise not_a_model(self._backends, model)
        if lifecycle.model is not None and model is not lifecycle.model:
            raise RuntimeError("this compressor has a model already; make another for another one")
        lifecycle.model = model
        compressed: M = self.compress()
        return compressed

    def compress(self) -> Any:
        """Compresses the model that was given to the constructor, in place, and returns it."""
        lifecycle = self._lifecycle
        if lifecycle.model is None:
            raise FailedPreconditionError("there is no model; call the compressor with one")
        self._check_not_unwrapped()
        if lifecycle.binding is None:
            lifecycle.backend = self._make_backend(lifecycle.model)
            self.bind_model(lifecycle.model)
            lifecycle.bind(lifecycle.resume)
            lifecycle.resume = None
            warn_of_plan(self.plan)
        self._recovery.settle()
        return lifecycle.model

    def _make_backend(self, model: Any) -> Backend[Any]:
        """Of a model that is to be compressed."""
        return backend_of(self._backends, model)

    def bind_model(self, model: Any) -> None:
        """Called with the model before it is compressed; for custom algorithms."""

    @property
    def is_bound(self) -> bool:
        """Whether a model has been compressed."""
        return self._lifecycle.binding is not None

    @property
    def is_unwrapped(self) -> bool:
        """Whether `unwrap` has restored the plain model."""
        return self._unwrapped

    @property
    def bound_model(self) -> Any:
        """The model, once there is one."""
        return self._lifecycle.model

    def unwrap(self) -> Any:
        """Restores the plain model, with zeros or quantized values written in; ends the session.

        Compressing that model again needs another compressor.
        """
        if self._bound().final is None:
            self._bound().clocks.check()
            self.refresh()
            self._bound().keep_results()
        binding = self._bound()
        if binding.backend.has(binding):
            self.refresh()
            self._bound().unwrap()
        self.close()
        self._unwrapped = True
        self._bound().backend.unwrapped()
        return self._lifecycle.model

    def close(self) -> None:
        """Ends the session. The model keeps computing with the present answers.

        An unreachable server is not an error: the session ends with its lease.
        """
        self._lifecycle.close()

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    # The session.

    @property
    def session(self) -> Session:
        """The session on the server."""
        return self._bound().tracker.session

    @property
    def plan(self) -> Plan:
        """How each layer is compressed, and warnings about the config_list."""
        return self._bound().tracker.plan

    @property
    def stats(self) -> Stats:
        """Statistics of the session's calls: number, bytes, time spent waiting."""
        return self.session.stats

    def metrics(self, *, sqnr: bool = False) -> dict[str, float]:
        """Numbers for a logger, of the answers in force; no call is made.

        "epoch", "step" and "coverage" (the share of the model's parameters in compressed weights).
        Pruners: "sparsity", and "sparsity/LAYER". Quantizers: "bits", "bits/LAYER" and, where there
        are such scales, "weight_scale/LAYER", "output_scale/LAYER", "input_scale/LAYER" (the mean
        over channels or groups). Totals are means over the weights' elements. Of the session's
        calls: "calls", "retries", "bytes_sent", "bytes_received", "seconds_waiting".

        Args:
            sqnr: adds "sqnr/LAYER", the signal-to-quantization-noise ratio of a quantized weight in
                dB. PyTorch only; it reads all quantized weights.
        """
        return metrics.of(self._bound(), sqnr=sqnr)

    def report(self, results: Optional[Mapping[str, float]] = None, **named: float) -> None:
        """Keeps numbers, such as the accuracy, with the session: see `Session.report`.

        Call it before the compressor is closed or unwrapped.
        """
        everything = {**(results or {}), **named}
        self._recovery.retried(lambda: self.session.report(everything))

    # Training.

    @property
    def epoch(self) -> int:
        """The epoch that was set last."""
        return self._bound().tracker.epoch

    @property
    def steps(self) -> int:
        """The step that was set last."""
        return self._bound().tracker.step

    def update_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0 on. Stale masks are requested by the next forward pass; in
        TensorFlow immediately.

        Warns of layers that were added to the model since it was bound, and of those whose module
        was replaced: call `rebind` to include them.
        """
        self._check_not_unwrapped()
        epoch = _counter(epoch, "epoch")
        self._base_calls += 1
        self._recovery.settle()
        self._recovery.warn_of_replaced_layers()
        self._recovery.warn_of_new_layers()
        self._recovery.retried(lambda: self._bound().update_epoch(epoch))
        self._bound().clocks.called("update_epoch")
        self._ask_ahead()
        self._bound().check_statistics()

    def step(self, step: Optional[int] = None) -> None:
        """Ends a minibatch: sets the next step, or the one given (absolute).

        All weights count as changed, as not every write to them leaves a trace.
        """
        self._bound().weights_changed()
        self._check_not_unwrapped()
        given = None if step is None else _counter(step, "step")
        self._base_calls += 1
        self._recovery.settle()
        self._recovery.warn_of_replaced_layers()
        number = self.steps + 1 if given is None else given
        self._recovery.retried(lambda: self._bound().take_step(number))
        self._bound().clocks.called("step")
        self._ask_ahead()
        self._bound().check_statistics()

    def rebind(self) -> None:
        """Binds the model as it is now: a new session, with the masks, the epoch and the step.

        Masks and other memory of layers that were removed, or whose weights have another shape now,
        are dropped with a warning.

        On failure nothing changes. If the server refused the model, that is final. After other
        failures, such as an unavailable server, the next call of any method or forward pass tries
        again, and raises until it succeeds.
        """
        self._check_not_unwrapped()
        self._recovery.settle()
        self._recovery.rebind()

    def refresh(self) -> None:
        """Requests now the answers that the next forward pass would request.

        In TensorFlow all weights count as changed, for example after they were loaded.
        """
        if self._bound().backend.asks_ahead:
            self._bound().weights_changed()
        self._recovery.settle()
        self._recovery.warn_of_replaced_layers()
        self._bound().refresh()

    # Checkpoints and files.

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint for `load_state_dict`, from which training resumes as if uninterrupted.

        The epoch, the step, the masks in force, packed, and the session's memory of layers. The
        weights are the model's own state.
        """
        self._recovery.warn_of_replaced_layers()
        return self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from a `state_dict()`, before or after the model was given.

        Binds a new session with the masks, epoch, step and ranges of the state. The session that
        the state was saved from is not used, as it may have advanced or be in use by another
        client; its lease ends it. Failures are as for `rebind`.

        Raises ValueError for a state with masks or other entries of layers that the model does not
        have; if no model was given yet, once it is. FailedPreconditionError after `unwrap`.
        """
        self._check_not_unwrapped()
        checkpoint.check(state, self.algorithm)
        self._lifecycle.resume = state
        if self._lifecycle.binding is not None:
            self._recovery.resume()

    def export(
        self,
        directory: Union[str, os.PathLike[str]],
        format: str = "safetensors",
        *,
        options: Optional[Mapping[str, Any]] = None,
    ) -> list[Path]:
        """Writes the model in one of the server's formats, with the plain model's names.

        The files are renamed into place when all of them are complete. A model that is pruned and
        quantized is exported as one; docs/exports.md says which compressor writes which format.

        Args:
            directory: made if it is missing.
            format: "safetensors", "pth", "sparse", "compressed-tensors", "onnx", "masks" or
                "report"; see docs/exports.md.
            options: of the format.

        Returns: the files written. FailedPreconditionError where modules were replaced after
        binding, or the session was closed, and `rebind` was not called.
        """

        def write() -> list[Path]:
            self.refresh()
            if self.session.closed:
                raise FailedPreconditionError(
                    f"session {self.session.id} is closed; "
                    + (
                        "export before unwrap()"
                        if self._unwrapped
                        else "rebind() opens another one, with what is in force now"
                    )
                )
            return export.export(self._bound(), directory, format, options)

        self._recovery.check_not_replaced()
        self._bound().clocks.check()
        return self._recovery.retried(write)

    # For the parts of a compressor, and for frameworks.

    def _bound(self) -> Binding[Any]:
        return self._lifecycle.bound

    def _state(self) -> dict[str, Any]:
        binding, lifecycle = self._bound(), self._lifecycle
        if lifecycle.resume is not None:
            return dict(lifecycle.resume)  # loaded, but not bound yet
        return checkpoint.make_state(
            binding, self.algorithm, vectors_need_filter=lifecycle.vectors_need_filter
        )

    def _ask_ahead(self) -> None:
        binding = self._bound()
        if binding.backend.asks_ahead:
            binding.refresh()

    def _check_not_unwrapped(self) -> None:
        """Raises FailedPreconditionError after `unwrap`, when calls would have no effect."""
        if self._unwrapped:
            raise FailedPreconditionError(
                "unwrap() has restored the plain model; make another compressor"
            )

    def _wire_rules(self) -> Sequence[Mapping[str, Any]]:
        if not self._is_custom:
            return self.config_list
        return custom.wire_rules(self.config_list, type(self).__name__)

    def _grouping(self, weights: Sequence[Any], matched: Optional[Collection[str]]) -> Grouping:
        """What the session is told of the filters of the model that is being bound.

        Args:
            weights: of the model.
            matched: the layers that the rules compress; None: not known yet.
        """
        return Grouping()

    def _make_binding(
        self, tracker: Tracker, weights: Sequence[Any], backend: Backend[Any]
    ) -> Binding[Any]:
        raise NotImplementedError


def _counter(value: Any, name: str) -> int:
    """An epoch or a step, as a plain number for checkpoints."""
    number = counter(value, name)
    if number < 0:
        raise InvalidArgumentError(f"{name} is {number}; it must be at least 0")
    return number
