"""What callbacks of PyTorch's training libraries have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union

import torch

from ..adapters.warn import warn
from ..errors import InvalidArgumentError
from ..torch import Compressor
from ._epochs import Epochs
from .recorder import Recorder

# A model that follows the compressed one, or a function that returns it, or None until it is made.
Copy = Union[torch.nn.Module, Callable[[], Optional[torch.nn.Module]]]


class Training:
    """The compressors of one training, and their copies and numbers.

    Args:
        compressors: with a model or without; without compressors, `model.compressor` is the one.
        copies: averages and other models, which follow.
        recorder: gets the numbers of each epoch of the schedules.
        steps_per_epoch: so many optimizer steps count as an epoch of the schedules; None: an epoch
            is one of the training.
    """

    def __init__(
        self,
        compressors: Sequence[Compressor],
        copies: Iterable[Copy],
        recorder: Optional[Recorder],
        steps_per_epoch: Optional[int],
    ) -> None:
        for compressor in compressors:
            if not isinstance(compressor, Compressor):
                raise TypeError(
                    f"got a {type(compressor).__name__}; a pruner or quantizer of "
                    "nni_compression.torch is needed"
                )
        self.compressors = list(compressors)
        if isinstance(copies, torch.nn.Module):
            raise TypeError(f"copies is a {type(copies).__name__}; it must be a list of models")
        self._copies = list(copies)
        self._epochs = Epochs(recorder, steps_per_epoch)
        self._epoch: Optional[int] = None  # the training's, as the compressors have it

    def begin(self, model: torch.nn.Module, states: Optional[Sequence[Mapping[str, Any]]]) -> None:
        """Compresses the model, or continues from the states of a checkpoint.

        Ranks that train together share a session.
        """
        if not self.compressors:
            found = getattr(model, "compressor", None)
            if not isinstance(found, Compressor):
                raise InvalidArgumentError(
                    "the model has no compressor: give one to the callback, or use prune() or "
                    "quantize() of nni_compression.torch before"
                )
            self.compressors = [found]
        if states is not None and len(states) != len(self.compressors):
            raise InvalidArgumentError(
                f"the checkpoint is of {len(states)} compressors, and there are "
                f"{len(self.compressors)}"
            )
        for number, compressor in enumerate(self.compressors):
            state = None if states is None else states[number]
            if compressor.is_bound:
                _check_is_of(compressor, model)
                if state is None and compressor.session.closed:
                    state = compressor.state_dict()  # for a new session
                if state is not None:
                    compressor.load_state_dict(state)
            elif _ranks() > 1:
                compressor.on_every_rank(model, state)
            else:
                if state is not None:
                    compressor.load_state_dict(state)
                compressor(model)
        self._epoch = self.compressors[0].epoch
        self._update_copies()

    def begin_evaluation(
        self, model: torch.nn.Module, states: Optional[Sequence[Mapping[str, Any]]], path: Any
    ) -> None:
        """Continues from the states of the checkpoint whose weights the model has got.

        Warns where that is impossible, and the model is evaluated as it is.
        """
        if states is None:
            if any(compressor.is_bound for compressor in self.compressors):
                warn(
                    f"{path} has no state of the compressors: its weights are evaluated with the "
                    "masks and the quantization that were in force before"
                )
            return
        for compressor in self.compressors:
            name = type(compressor).__name__
            if compressor.is_unwrapped or (compressor.is_bound and not _is_of(compressor, model)):
                was = "was unwrapped" if compressor.is_unwrapped else "has another model"
                warn(
                    f"the {name} {was}, so the weights of {path} are evaluated without it: make "
                    "another compressor for them"
                )
                return
        self.begin(model, states)

    def continue_epoch(self, epoch: int) -> None:
        """Within an epoch, of which the library may not have said that it begins."""
        if epoch != self._epoch:
            self.begin_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Of the training."""
        self._epoch = epoch
        if self._epochs.steps_per_epoch is None:
            self._set_epoch(epoch)

    def begin_step(self, step: int, *, is_first_rank: bool) -> None:
        """Before a minibatch, or several whose gradients are accumulated."""
        steps_per_epoch = self._epochs.steps_per_epoch
        if steps_per_epoch is not None and step % steps_per_epoch == 0:
            self.end(is_first_rank=is_first_rank)
            self._set_epoch(step // steps_per_epoch)

    def end_step(self) -> None:
        """After an optimizer step, while there are gradients."""
        self._epochs.step(self.compressors)

    def end_epoch(self, *, is_first_rank: bool) -> None:
        """Of the training."""
        if self._epochs.steps_per_epoch is None:
            self._epochs.record(self.compressors, is_first_rank=is_first_rank)

    def end(self, *, is_first_rank: bool) -> None:
        """Of the training, or of an epoch of the schedules; records what is not recorded yet."""
        if self._epochs.unrecorded:
            self._epochs.record(self.compressors, is_first_rank=is_first_rank)

    def states(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [compressor.state_dict() for compressor in self.compressors]

    def close(self) -> None:
        """Ends the sessions."""
        for compressor in self.compressors:
            compressor.close()

    def _set_epoch(self, epoch: int) -> None:
        self._epochs.begin(self.compressors, epoch)
        self._update_copies()

    def _update_copies(self) -> None:
        # Each time: copies and layers may be new.
        for copy in self._copies:
            present = copy if isinstance(copy, torch.nn.Module) else copy()
            if present is not None:
                for compressor in self.compressors:
                    compressor.apply_to(present)


def _check_is_of(compressor: Compressor, model: torch.nn.Module) -> None:
    """Raises InvalidArgumentError for a compressor of another model."""
    if not _is_of(compressor, model):
        raise InvalidArgumentError(
            f"the {type(compressor).__name__} has another model already, a "
            f"{type(compressor.bound_model).__name__}; each model needs a compressor of its own"
        )


def _is_of(compressor: Compressor, model: torch.nn.Module) -> bool:
    """Whether its model is this one, a part of it, or has it as a part."""
    bound: torch.nn.Module = compressor.bound_model
    return any(part is bound for part in model.modules()) or any(
        part is model for part in bound.modules()
    )


def _ranks() -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return int(torch.distributed.get_world_size())
