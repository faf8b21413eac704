"""Pruners of PyTorch models."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Optional, Union

import torch

from ..adapters import pruner
from ..adapters.algorithms import listed
from ..adapters.backend import Backend
from ..errors import UnimplementedError
from ._files import ExampleInputs, ModelFiles
from .backend import TorchBackend
from .compressor import Compressor
from .sharded import ShardedBackend


class Pruner(pruner.Pruner, Compressor):
    """Base of pruners of PyTorch models.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``.

    Takes models that `torch.distributed.fsdp.fully_shard` has sharded, too: all ranks then call
    the same methods together.
    """

    _backends: ClassVar[tuple[type[Backend[Any]], ...]] = (ShardedBackend, TorchBackend)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> bool tensor of the weight's shape on its device, True = kept.

        Asks the server for masks that are missing or stale; not under `fully_shard`, where masks
        are DTensors, sharded as the weights.
        """
        return super().masks

    def rewind(self) -> None:
        """See `LotteryTicketPruner.rewind`; UnimplementedError for other pruners."""
        raise UnimplementedError(
            f"{type(self).__name__} keeps no weights to rewind to; LotteryTicketPruner does"
        )

    def export_model(
        self,
        model_path: str,
        mask_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[int]] = None,
        example_inputs: Union[torch.Tensor, ExampleInputs, None] = None,
    ) -> None:
        """Writes the pruned model, and its masks, with `torch.save`. All files appear, or none.

        Args:
            model_path: for the plain model's `state_dict()` with zeros in the weights.
            mask_path: for ``{layer name: {"weight": mask, "bias": None}}``, NNI's mask file; a mask
                has the weight's shape and dtype, 1 = kept.
            onnx_path: for the plain model as `torch.onnx.export` writes it, in evaluation mode,
                with the same weights, zeros included.
            input_shape: for `onnx_path`, where the model takes one tensor of its weights' type: the
                shape, with the batch.
            example_inputs: for `onnx_path`, what else the model is called with: a tuple of
                positional arguments, or a dict of keyword arguments.
        """
        backend, weights = self._torch(), self._bound().weights
        state, masks = self.compressed_state_dict(), {}
        if mask_path is not None:
            for name, mask in self.masks.items():
                whole = backend.whole(mask).to("cpu", weights[name].dense.dtype)
                masks[name] = {"weight": whole, "bias": None}

        def write() -> None:
            with ModelFiles.written() as files:
                files.save(state, model_path)
                if onnx_path is not None:
                    backend.save_onnx(files, onnx_path, input_shape, example_inputs)
                if mask_path is not None:
                    files.save(masks, mask_path)

        backend.written(write)


@listed
class LevelPruner(Pruner): ...


@listed
class AGPPruner(Pruner): ...


@listed
class GlobalMagnitudePruner(Pruner): ...


@listed
class LAMPPruner(Pruner): ...


@listed
class MovementPruner(Pruner): ...


@listed
class NMPruner(Pruner): ...


_START = "start"  # of a checkpoint


@listed
class LotteryTicketPruner(Pruner):
    # The model's state when it was compressed, in CPU memory.
    _start: Optional[Mapping[str, Any]] = None

    def rewind(self) -> None:
        """Sets the model back to where it was when it was compressed, between two rounds.

        Parameters and buffers get the values that they had then; the masks stay, and those that are
        stale are requested first, for the weights as they are now. So it is called after
        `update_epoch`, before the first forward pass of the round. The optimizer is the caller's:
        make a new one, or reset its state.

        The copy takes as much CPU memory as the model, and is part of `state_dict`.

        >>> for epoch in range(epochs):
        ...     pruner.update_epoch(epoch)
        ...     if epoch % frequency == 0:
        ...         pruner.rewind()
        ...         optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     train(model, optimizer)
        """
        self._check_not_unwrapped()
        self.refresh()
        self.bound_model.load_state_dict(self._start)

    def compress(self) -> Any:
        """See `Compressor.compress`."""
        resumed = self._lifecycle.resume or {}
        model = super().compress()
        self._start = resumed.get(_START, self._start)
        if self._start is None:
            self._start = {name: _copied(value) for name, value in model.state_dict().items()}
        return model

    def state_dict(self) -> dict[str, Any]:
        """See `Compressor.state_dict`: with the weights that `rewind` loads."""
        return {**super().state_dict(), _START: self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Compressor.load_state_dict`."""
        super().load_state_dict(state)
        self._start = state.get(_START, self._start)


def _copied(value: Any) -> Any:
    """A copy of an entry of a model's state, in CPU memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)
