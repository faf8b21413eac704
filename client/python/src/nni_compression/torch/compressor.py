"""The base of pruners and quantizers of PyTorch models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Optional, TypeVar

import torch

from ..adapters import compressor
from ..adapters.backend import Backend
from .backend import TorchBackend

M = TypeVar("M")


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

    def compressed_state_dict(self) -> dict[str, Any]:
        """The plain model's `state_dict()` with zeros or quantized values in the weights.

        A layer that was wrapped in another module since the model was bound, as adapters do, keeps
        its name in the model without adapters.

        Raises as `export` does where modules were replaced.
        """
        self._bound()
        self._recovery.check_not_replaced()
        return self._torch().compressed_state_dict(self._bound())

    def on_every_rank(self, model: M, state: Optional[Mapping[str, Any]] = None) -> M:
        """Compresses the model on every rank of `torch.distributed`, all of them in one session.

        Every rank calls this instead of calling the compressor. Rank 0 binds the session, or
        resumes from a checkpoint in a new one; the other ranks join it. The session ends with
        rank 0's compressor. If rank 0 fails, all ranks raise.

        Args:
            model: of this rank; the weights are the same on all ranks.
            state: a result of `state_dict` to resume from. That of rank 0 is used, except for the
                ranges of outputs and inputs that this rank has observed since the last step.
        """
        if torch.distributed.get_rank() > 0:
            told = _of_rank_0()
            if isinstance(told, str):
                raise RuntimeError(f"rank 0 has not bound the model: {told}")
            lifecycle = self._lifecycle
            lifecycle.join, lifecycle.route, resume = told
            if resume is not None:
                seen = {} if state is None else state.get("seen", {})
                lifecycle.resume = {**resume, "seen": seen}
            return self(model)
        try:
            if state is not None:
                self.load_state_dict(state)
            self(model)
        except BaseException as error:
            _of_rank_0(f"{type(error).__name__}: {error}")
            raise
        # Masks are requested from the server; the rest of the checkpoint only rank 0 has.
        resume = None if state is None else {**self.state_dict(), "masks": dict[str, Any]()}
        _of_rank_0((self.session.id, self.session.route, resume))
        return model

    def _torch(self) -> TorchBackend:
        backend = self._bound().backend
        assert isinstance(backend, TorchBackend)
        return backend


def _of_rank_0(told: Any = None) -> Any:
    """Broadcasts a value of rank 0; called by all ranks."""
    objects = [told]
    torch.distributed.broadcast_object_list(objects, src=0)  # type: ignore[no-untyped-call]
    return objects[0]
