"""The base of pruners and quantizers of PyTorch models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Optional, TypeVar, Union

import torch

from ..adapters import compressor, statistics
from ..adapters.backend import Backend, backend_of
from ..errors import InvalidArgumentError
from . import copies, naming, optimizers, pretrained
from .backend import TorchBackend
from .collective import Ranks

M = TypeVar("M")

_OF_A_RANK = ("seen", statistics.STATE)  # entries of a checkpoint


class Compressor(compressor.Compressor):
    """Base of pruners and quantizers of PyTorch models; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)
    >>> model = pruner(model)
    >>> pruner = LevelPruner(model, config_list, optimizer)
    >>> model = pruner.compress()

    The model is changed in place and returned. Its parameters stay the same objects, so optimizers
    may be made before or after. The server is asked at the first forward pass that needs an answer,
    so weights may still be loaded before that. Errors are subclasses of
    `nni_compression.CompressionError`.

    One thread at a time may call a compressor; any number of threads may run the model.
    """

    _backends: ClassVar[tuple[type[Backend[Any]], ...]] = (TorchBackend,)

    def __init__(
        self, *args: Any, statistic_parameters: Optional[Mapping[str, str]] = None, **kwargs: Any
    ) -> None:
        """Makes a compressor.

        Args:
            statistic_parameters: for algorithms that ask for the statistic `parameter`: layer name
                -> the name of the parameter that belongs to the layer, with a number for each of
                its output channels: ``{"conv1": "bn1.weight"}``.

        The other arguments are those of `adapters.compressor.Compressor`.
        """
        if not isinstance(statistic_parameters, (Mapping, type(None))):
            raise InvalidArgumentError(
                f"statistic_parameters is a {type(statistic_parameters).__name__}; it must be a "
                "dict of layers"
            )
        super().__init__(*args, **kwargs)
        optimizers.checked(self._lifecycle.optimizer)
        self.statistic_parameters = dict(statistic_parameters or {})

    def _make_backend(self, model: Any) -> Backend[Any]:
        backend = super()._make_backend(model)
        assert isinstance(backend, TorchBackend)
        backend.statistic_parameters = self.statistic_parameters
        return backend

    def save_pretrained(
        self,
        folder: Union[str, os.PathLike[str]],
        *,
        tokenizer: Any = None,
        format: str = "safetensors",
        max_shard_bytes: Optional[int] = None,
        overwrite: bool = False,
        options: Optional[Mapping[str, Any]] = None,
    ) -> list[Path]:
        """Writes a model of transformers, with compressed weights, as a folder for
        `from_pretrained`.

        As the model's own `save_pretrained`, which writes the dense weights: configuration,
        generation configuration, and weights. All files appear, or none.

        Args:
            folder: made if it is missing.
            tokenizer: or a processor, whose files are written too.
            format: "safetensors": zeros and quantized values, in the model's own types.
                "compressed-tensors": a quantizer's codes; the configuration gets a
                `quantization_config`, and loading needs the package of that name.
            max_shard_bytes: of a file of weights.
            overwrite: whether files of the folder are replaced, and older weights removed;
                otherwise they are an AlreadyExistsError.
            options: of the format "compressed-tensors"; see docs/exports.md.

        Returns: the files written.
        """
        self._check_not_unwrapped()
        self.refresh()
        backend = self._torch()
        model = naming.without_wrappers(backend.model)
        computed = backend.computed_layers(self._bound())
        pretrained.check(model, format, options, computed)
        if backend.is_collective and format != "safetensors":
            raise InvalidArgumentError(
                f'format is {format!r}; under fully_shard it must be "safetensors"'
            )
        state = self.compressed_state_dict() if format == "safetensors" else None
        return backend.written(
            lambda: pretrained.save(
                model,
                Path(folder),
                state=state,
                export=lambda part, given: self.export(part, format, options=given),
                tokenizer=tokenizer,
                max_shard_bytes=max_shard_bytes,
                overwrite=overwrite,
                options=options,
            )
        )

    def apply_to(self, copy: M) -> M:
        """Gives another model the masks and quantization of this one; returns it.

        For an average of the weights (EMA), a teacher, or a copy for evaluation: a deep copy of the
        compressed model or of the plain one, or any model with these layers, also in a wrapper or
        an average (`AveragedModel`, timm's `ModelEmaV3`). From then on its forward passes use
        today's masks and quantization, applied to its own weights, and later ones once the
        compressed model has them. It has no session and makes no call;
        `nni_compression.torch.unwrap` makes it a plain model.

        With a pruner and a quantizer, call it of both: each is for its own layers.

        Raises InvalidArgumentError, and changes nothing, unless the copy has every compressed layer
        under its name and with a weight of its shape, and if a custom algorithm has computed the
        values.
        """
        copies.check_is_module(copy)
        self._check_not_unwrapped()
        self.refresh()
        self._torch().apply_to(self._bound(), copy)
        return copy

    def __deepcopy__(self, memo: Any) -> None:
        """None: a copy of a model has no session, and this may be an attribute of the model."""

    def __reduce__(self) -> Any:
        """As `__deepcopy__`."""
        return _no_compressor, ()

    def compressed_state_dict(self) -> dict[str, Any]:
        """The plain model's `state_dict()` with zeros or quantized values in the weights.

        A layer that was wrapped in another module since the model was bound, as adapters do, keeps
        its name in the model without adapters.

        Raises as `export` does where modules were replaced.
        """
        self._bound()
        self._recovery.check_not_replaced()
        if self._bound().final is None:
            self._bound().clocks.check()
        if self._bound().statistics is not None:
            self.refresh()  # forward passes do not ask before there are some
        return self._torch().compressed_state_dict(self._bound())

    def on_every_rank(self, model: M, state: Optional[Mapping[str, Any]] = None) -> M:
        """Compresses the model on every rank of `torch.distributed`, all of them in one session.

        Every rank calls this instead of calling the compressor. Rank 0 binds the session, or
        resumes from a checkpoint in a new one; the other ranks join it. The session ends with
        rank 0's compressor. If rank 0 fails, all ranks raise.

        Where the algorithm asks for statistics, all ranks have to call `step` and `update_epoch`
        together: each waits there until all have sent theirs, and raises if one of them does.

        Args:
            model: of this rank; the weights are the same on all ranks.
            state: a result of `state_dict` to resume from. That of rank 0 is used, except for the
                ranges of outputs and inputs that this rank has observed since the last step, and
                its statistics.
        """
        backend = backend_of(self._backends, model)
        if isinstance(backend, TorchBackend) and backend.is_collective:
            if state is not None:
                self.load_state_dict(state)
            return self(model)
        self._lifecycle.ranks = Ranks()
        if torch.distributed.get_rank() > 0:
            told = _of_rank_0()
            if isinstance(told, str):
                raise RuntimeError(f"rank 0 has not bound the model: {told}")
            lifecycle = self._lifecycle
            lifecycle.join, lifecycle.route, resume = told
            if resume is not None:
                own = {} if state is None else state
                lifecycle.resume = {**resume, **{key: own.get(key, {}) for key in _OF_A_RANK}}
            return self(model)
        try:
            if state is not None:
                self.load_state_dict(state)
            self(model)
        except BaseException as error:
            _of_rank_0(f"{type(error).__name__}: {error}")
            raise
        # Only rank 0 has all of the checkpoint.
        resume = None if state is None else self.state_dict()
        _of_rank_0((self.session.id, self.session.route, resume))
        return model

    def _torch(self) -> TorchBackend:
        backend = self._bound().backend
        assert isinstance(backend, TorchBackend)
        return backend


def _no_compressor() -> None:
    """What a compressor is in a copy or a file."""


def _of_rank_0(told: Any = None) -> Any:
    """Broadcasts a value of rank 0; called by all ranks."""
    objects = [told]
    torch.distributed.broadcast_object_list(objects, src=0)  # type: ignore[no-untyped-call]
    return objects[0]
