"""What pruners and quantizers have in common: a model, a session, and the way between them."""

from __future__ import annotations

import importlib
import types
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Callable, ClassVar, Optional

import torch
from torch import nn

from ..adapter import Closer, Tracker, close_quietly
from ..client import Client
from ..errors import NotFoundError
from ..masks import Mask
from ..plan import Plan
from ..session import Session
from ..statistics import Stats
from . import modules
from .binding import Binding, TrackedWeight, find_weights, weak_method

_STATE_VERSION = 1


class Compressor:
    """Base of pruners and quantizers; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)
    >>> model = pruner(model)
    >>> pruner = LevelPruner(model, config_list, optimizer)
    >>> model = pruner.compress()

    The model is changed in place and returned. Its parameters stay the same objects, so optimizers
    may be made before or after. The service is asked at the first forward pass that needs an
    answer, so weights may still be loaded before that. Errors are subclasses of
    `nni_compression.CompressionError`.

    Args:
        model: in the second form.
        config_list: NNI's list of rules; the last rule that matches a layer wins.
        optimizer: need not be given. It is watched for steps that leave no trace in the weights
            (PyTorch 2 lets all optimizers be watched).
        server: "host:port"; by default $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051.
        client: a `Client` to use instead; it is not closed here.
        session: the id of a session to join, as a further rank of the same training does.
        labels: for listing the session, logs and metrics.
        lease: seconds without a call after which the server may end the session. The client renews
            it in the background.

    One thread at a time may call a compressor; any number may run the model.
    """

    algorithm: ClassVar[str] = ""

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
    ) -> None:
        if not self.algorithm:
            raise TypeError(f"{type(self).__name__} names no algorithm; set the class attribute")
        if config_list is None and not isinstance(model, nn.Module):
            model, config_list = None, model
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
        if config_list is None:
            raise TypeError("config_list is missing; it must be a list of dicts")
        if client is not None and server is not None:
            raise TypeError("server and client are both given; a client has its server")
        self.config_list: Sequence[Mapping[str, Any]] = config_list
        self._model: Optional[nn.Module] = model
        self._optimizer = optimizer
        self._own_client = client is None
        self._client = client if client is not None else Client(server)
        self._join = session
        self._labels = labels
        self._lease = lease
        self._resume: Optional[Mapping[str, Any]] = None
        self._binding: Optional[Binding] = None
        self._closer: Optional[Closer] = None
        self._unwatch: list[Callable[[], None]] = []

    def __call__(self, model: nn.Module) -> nn.Module:
        """Compresses the model, in place, and returns it."""
        if self._model is not None and model is not self._model:
            raise RuntimeError("this compressor has a model already; make another for another one")
        self._model = model
        return self.compress()

    def compress(self) -> nn.Module:
        """Compresses the model that was given to the constructor, in place, and returns it."""
        if self._model is None:
            raise RuntimeError("there is no model; call the compressor with one")
        if self._binding is None:
            self._bind(self._model, self._resume, join=True)
            self._resume = None
        return self._model

    @property
    def bound_model(self) -> Optional[nn.Module]:
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
        """Tells the epoch, from 0 on. Masks that it makes stale come with the next forward."""
        tracker = self._bound().tracker
        with tracker.lock:
            tracker.update_epoch(epoch)

    def step(self, step: Optional[int] = None) -> None:
        """Tells that a minibatch is done: the next step, or the one given (absolute)."""
        tracker = self._bound().tracker
        self._take_step(tracker.step + 1 if step is None else step)

    def refresh(self) -> None:
        """Asks now for what the next forward pass would ask for."""
        self._bound().refresh()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after an interruption: for `torch.save`.

        The session's id, epoch and step, and the masks in force, packed. The weights are the
        model's own `state_dict()`.
        """
        binding = self._bound()
        return {
            "version": _STATE_VERSION,
            "algorithm": self.algorithm,
            "session": binding.tracker.session.id,
            "route": binding.tracker.session.route,
            "epoch": binding.tracker.epoch,
            "step": binding.tracker.step,
            "masks": {
                name: {"bits": torch.from_numpy(mask.bits.copy()), "shape": list(mask.shape)}
                for name, mask in self._packed_masks().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict()`, before or after the model was given.

        The session is joined again if it is still there; otherwise a new one is bound with the
        masks, epoch and step of the state.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"state['version'] is {state.get('version')!r}; it must be {_STATE_VERSION}"
            )
        if state["algorithm"] != self.algorithm:
            raise ValueError(
                f"state['algorithm'] is {state['algorithm']!r}; it must be {self.algorithm!r}"
            )
        if self._binding is None:
            self._resume = state
            return
        self._rebind(state, join=True)

    def unwrap(self) -> nn.Module:
        """Gives the plain model back, zeros or quantized values written in; ends the session."""
        binding = self._bound()
        model = self._model
        assert model is not None
        if all(modules.state_of(w.modules[0]) is not None for w in binding.weights.values()):
            binding.refresh()
            binding.unwrap()
        self.close()
        return model

    def close(self) -> None:
        """Ends the session. The model keeps computing with the answers it has.

        A server that cannot be reached is no error: the session ends with its lease.
        """
        binding = self._binding
        if binding is not None and binding.tracker.owned:
            binding.detach()
            self._stop_watching()
            close_quietly(binding.tracker.session, None)
        if self._closer is not None:
            self._closer.cancel()
        if self._own_client:
            self._client.close()

    def export_model(self, model_path: str) -> None:
        """Writes the compressed model's `state_dict()`, with the plain model's keys."""
        torch.save(self.compressed_state_dict(), model_path)

    def compressed_state_dict(self) -> dict[str, Any]:
        """The plain model's `state_dict()` with zeros or quantized values in the weights."""
        self._bound()
        model = self._model
        assert model is not None
        state: dict[str, Any] = model.state_dict()
        for name, module in model.named_modules(remove_duplicate=False):
            key = f"{name}.weight" if name else "weight"
            if isinstance(module, modules.CompressedModule) and key in state:
                state[key] = module.weight.detach()
        return state

    def _bound(self) -> Binding:
        if self._binding is None:
            raise RuntimeError("no model is bound; call the compressor with one, or compress()")
        return self._binding

    def _make_binding(self, tracker: Tracker, weights: Sequence[TrackedWeight]) -> Binding:
        raise NotImplementedError

    def _take_step(self, step: int) -> None:
        tracker = self._bound().tracker
        with tracker.lock:
            tracker.take_step(step)

    def _packed_masks(self) -> dict[str, Mask]:
        """The masks in force; empty for quantizers."""
        return {}

    def _install_masks(self, masks: Mapping[str, Mask]) -> None:
        """Puts masks in force that came with a state."""

    def _bind(self, model: nn.Module, resume: Optional[Mapping[str, Any]], *, join: bool) -> None:
        weights = find_weights(model)
        if not weights:
            raise ValueError("the model has no layer with a weight that could be compressed")
        masks = _unpack(resume["masks"]) if resume else {}
        tracker = self._open(weights, masks, resume, join=join)
        try:
            binding = self._make_binding(tracker, weights)
            binding.install()
        except BaseException:
            close_quietly(tracker.session, None)
            raise
        self._binding = binding
        binding.rebind = self._rebind_same_model
        client = self._client if self._own_client else None
        self._closer = Closer(binding, tracker.session, client)
        self._install_masks(masks)
        if masks:
            tracker.update_epoch(tracker.epoch)  # says which of them still stand
        self._watch_optimizers()
        if join:
            _warn(tracker.plan)

    def _open(
        self,
        weights: Sequence[TrackedWeight],
        masks: Mapping[str, Mask],
        resume: Optional[Mapping[str, Any]],
        *,
        join: bool,
    ) -> Tracker:
        layers = [weight.layer() for weight in weights]
        if resume is None and self._join is not None:
            session = self._client.join(self._join)
            _check_layers(session, layers)
            info = session.info()
            return Tracker(session, epoch=info.epoch, step=info.step)
        epoch, step = (resume["epoch"], resume["step"]) if resume else (0, 0)
        if resume and join:
            try:
                session = self._client.join(resume["session"], route=resume["route"])
            except NotFoundError:
                pass
            else:
                _check_layers(session, layers)
                tracker = Tracker(session, epoch=epoch, step=step)
                tracker.update_epoch(epoch)
                tracker.take_step(step)
                return tracker
        session = self._client.bind_model(
            self.algorithm,
            self.config_list,
            layers,
            framework="pytorch",
            labels=self._labels,
            lease=self._lease,
            masks=masks or None,
            epoch=epoch,
            step=step,
        )
        return Tracker(session, epoch=epoch, step=step)

    def _rebind(self, state: Mapping[str, Any], *, join: bool) -> None:
        """Leaves the session for another one: the state's, or a new one."""
        binding = self._bound()
        model = self._model
        assert model is not None
        self._stop_watching()
        binding.detach()
        binding.leave()
        if not join or binding.tracker.session.id != state["session"]:
            close_quietly(binding.tracker.session, None)
        if self._closer is not None:
            self._closer.cancel()
        self._bind(model, state, join=join)

    def _rebind_same_model(self) -> None:
        """The weights' dtype has changed to a wider one than was bound."""
        self._rebind(self.state_dict(), join=False)
        self._bound().refresh()

    def _watch_optimizers(self) -> None:
        """Hears of optimizer steps: fused ones leave version counters unchanged."""
        binding = self._bound()
        if not binding.depends_on_weights:
            return
        stepped = weak_method(binding, "optimizer_stepped")
        optimizers = importlib.import_module("torch.optim.optimizer")
        register = getattr(optimizers, "register_optimizer_step_post_hook", None)
        if register is not None:
            handle = register(lambda optimizer, args, kwargs: stepped(optimizer))
            self._unwatch.append(handle.remove)
            weakref.finalize(binding, handle.remove)
        elif self._optimizer is not None:
            self._unwatch.append(_wrap_step(self._optimizer, stepped))

    def _stop_watching(self) -> None:
        while self._unwatch:
            self._unwatch.pop()()


def _wrap_step(optimizer: Any, stepped: Callable[..., None]) -> Callable[[], None]:
    """Calls `stepped(optimizer)` after each step; returns what ends that.

    The wrapper is a bound method, as learning-rate schedulers demand of `optimizer.step`.
    """
    original = optimizer.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        stepped(self)
        return result

    # A scheduler that wrapped `step` before counts on its marks.
    step.__dict__.update(getattr(original, "__dict__", {}))
    mine = types.MethodType(step, optimizer)
    optimizer.step = mine

    def restore() -> None:
        if optimizer.__dict__.get("step") is mine:
            optimizer.step = original

    return restore


def _unpack(masks: Mapping[str, Any]) -> dict[str, Mask]:
    return {
        name: Mask(packed["bits"].cpu().numpy(), packed["shape"]) for name, packed in masks.items()
    }


def _check_layers(session: Session, layers: Sequence[Any]) -> None:
    names = [layer.name for layer in layers]
    if list(session.plan.layers) != names:
        raise ValueError(
            f"session {session.id} is bound to a model with other layers: "
            f"{sorted(set(session.plan.layers) ^ set(names))[:10]}"
        )


def _warn(plan: Plan) -> None:
    for warning in plan.warnings:
        warnings.warn(warning, UserWarning, stacklevel=5)
    if not plan.compressed:
        warnings.warn(
            "the config_list matches no layer of the model: nothing will be compressed. Rules "
            "match op_types (class names such as Conv2d) and op_names (names of named_modules())",
            UserWarning,
            stacklevel=5,
        )
