"""What pruners and quantizers of PyTorch models have in common."""

from __future__ import annotations

import contextlib
import copy
import importlib
import types
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, ClassVar, Optional, Union

import torch
from torch import nn

from ..adapters import binding, compressor
from ..values.plan import Parameter
from . import modules, naming
from ._files import ExampleInputs, ModelFiles, example_inputs
from .binding import TrackedWeight, find_weights, parameters, weak_method
from .transfer import to_host


class Compressor(compressor.Compressor):
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
        session: the id of a session to join, as a further rank of the same training does. It is
            left to the rank that has bound it: this one does not end it.
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

    _model_type: ClassVar[str] = "torch.nn.Module"
    _runs_custom: ClassVar[bool] = True

    _names_then: Optional[naming.NamesThen] = None  # when the model was bound

    def _export_model(
        self,
        files: ModelFiles,
        model_path: str,
        onnx_path: Optional[str],
        input_shape: Optional[Sequence[int]],
        inputs: Union[torch.Tensor, ExampleInputs, None],
    ) -> None:
        files.save(self.compressed_state_dict(), model_path)
        if onnx_path is not None:
            given = example_inputs(self._model, input_shape, inputs)
            model = copy.deepcopy(naming.without_wrappers(self._model))
            plain = modules.unwrap(naming.take_wrappers_out(model))
            files.save_onnx(plain, onnx_path, given)

    def _exported(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        names = self._weight_keys()
        layers = {key: name for name, key in names.items()}
        state = self._exported_state()
        tensors = to_host({layers.get(key, key): value for key, value in state.items()})
        return tensors, names

    def _exported_state(self) -> Mapping[str, torch.Tensor]:
        """The model's tensors, with the weights that the server makes the compressed ones of."""
        state = self.compressed_state_dict()
        keys = self._weight_keys()
        for name, weight in self._bound().weights.items():
            if weight.state.parameters is None:
                state[keys[name]] = weight.dense.detach()
        return state

    def compressed_state_dict(self) -> dict[str, Any]:
        """The plain model's `state_dict()` with zeros or quantized values in the weights.

        A layer that was put into another module since the model was bound, as adapters do, has its
        name of before: that of the model without adapters.

        Raises as `export` does where modules were replaced.
        """
        self._bound()
        self._check_not_replaced()
        model = naming.without_wrappers(self._model)
        state: dict[str, Any] = model.state_dict()
        for name, module in model.named_modules(remove_duplicate=False):
            key = naming.weight_key(name)
            if isinstance(module, modules.CompressedModule) and key in state:
                state[key] = module.weight.detach()
        keys = self._keys(model, state)
        items = [(keys[key], value) for key, value in state.items()]
        state.clear()  # and not another one: it has attributes, too
        state.update(items)
        return state

    def _keys(self, model: nn.Module, state: Iterable[str]) -> dict[str, str]:
        """Keys of the `state_dict()` of a model, without what wraps it -> what exports call them.

        The plain model's, as it was bound; wrappers that are within it are left out.
        """
        plain = naming.plain_key(model)
        keys = {key: plain(key) for key in state}
        if self._names_then is None:
            return keys
        then = self._names_then.renamed(model, keys.values())
        return {key: then[name] for key, name in keys.items()}

    def _weight_keys(self) -> dict[str, str]:
        """Layer name -> what exports call its weight."""
        model = naming.without_wrappers(self._model)
        keys = self._keys(model, model.state_dict())
        present = naming.names_by_module(model.named_modules(remove_duplicate=False))
        found = {}
        for name, weight in self._bound().weights.items():
            mine = [keys[naming.weight_key(n)] for n in present[id(weight.op)]]
            bound = naming.weight_key("" if name == "." else name)
            found[name] = bound if bound in mine else mine[0]
        return found

    def _installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        undo.callback(setattr, self, "_names_then", self._names_then)
        self._names_then = naming.NamesThen(self._model)
        super()._installed(state, undo)

    def on_every_rank(self, model: Any, state: Optional[Mapping[str, Any]] = None) -> Any:
        """Compresses the model on every rank of `torch.distributed`, all of them in one session.

        Every rank calls this, in place of calling the compressor. Rank 0 binds the session, or goes
        on from a checkpoint in a new one, and tells the others, which join it. The session ends
        with rank 0's compressor. Where rank 0 fails, all ranks raise.

        Args:
            model: of this rank; the weights are the same on all of them.
            state: what `state_dict` gave, to go on from. That of rank 0 counts, but for what this
                rank had seen of outputs and inputs since the last step.
        """
        if torch.distributed.get_rank() > 0:
            told = _of_rank_0()
            if isinstance(told, str):
                raise RuntimeError(f"rank 0 has not bound the model: {told}")
            self._join, self._route, resume = told
            if resume is not None:
                seen = {} if state is None else state.get("seen", {})
                self._resume = {**resume, "seen": seen}
            return self(model)
        try:
            if state is not None:
                self.load_state_dict(state)
            self(model)
        except BaseException as error:
            _of_rank_0(f"{type(error).__name__}: {error}")
            raise
        # Masks are asked for; what else a checkpoint has the others cannot know.
        resume = None if state is None else {**self.state_dict(), "masks": dict[str, Any]()}
        _of_rank_0((self.session.id, self.session.route, resume))
        return model

    def step(self, step: Optional[int] = None) -> None:
        """Tells that a minibatch is done: the next step, or the one given (absolute).

        Weights count as changed from here on, as not everything that writes to them leaves a trace.
        """
        self._settle()
        self._bound().weights_changed()
        super().step(step)

    def _framework(self) -> str:
        return "pytorch"

    def _is_model(self, value: Any) -> bool:
        return isinstance(value, nn.Module)

    def _find_weights(self) -> Sequence[TrackedWeight]:
        return find_weights(self._model)

    def _parameters(self) -> Iterable[Parameter]:
        return parameters(self._model)

    def _replaced(self) -> list[str]:
        model = self._model
        moved = [w for w in self._bound().weights.values() if not w.is_in_place(model)]
        present = {id(module) for module in model.modules()} if moved else ()
        return [weight.name for weight in moved if not weight.is_within_others(model, present)]

    @staticmethod
    def _layer_key(name: str) -> str:
        return naming.layer_key(name)

    def _wire_config_list(self) -> Sequence[Mapping[str, Any]]:
        """Rules may name layers as `named_modules()` of a wrapped model does."""
        rules = super()._wire_config_list()
        found = naming.both_names(self._model)
        names = {plain for _, plain, _ in found}
        plain_names = {name: plain or "." for name, plain, _ in found if name not in names}
        return [_renamed(rule, plain_names) for rule in rules] if plain_names else rules

    def _is_installed(self, binding: binding.Binding[Any]) -> bool:
        weights = binding.weights.values()
        return all(modules.state_of(weight.modules[0]) is not None for weight in weights)

    def _watch(self) -> None:
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

    @staticmethod
    def _from_numpy(array: Any) -> Any:
        return torch.from_numpy(array)

    @staticmethod
    def _to_numpy(array: Any) -> Any:
        return array.cpu().numpy()


def _renamed(rule: Any, names: Mapping[str, str]) -> Any:
    """The rule with other names of layers; what is no rule is the server's to refuse."""
    named = rule.get("op_names") if isinstance(rule, Mapping) else None
    if isinstance(named, str):
        named = [named]
    if not isinstance(named, (list, tuple)):
        return rule
    return {**rule, "op_names": [names.get(name, name) for name in named]}


def _of_rank_0(told: Any = None) -> Any:
    """What rank 0 tells all ranks, which call this, too."""
    objects = [told]
    torch.distributed.broadcast_object_list(objects, src=0)  # type: ignore[no-untyped-call]
    return objects[0]


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
