"""The epochs of schedules, and their records, as the callbacks of all libraries have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from ..adapters.compressor import Compressor
from ..errors import InvalidArgumentError
from .recorder import Recorder


class Epochs:
    """Advances the schedules of compressors, and records what an epoch has brought.

    Args:
        recorder: gets the numbers of each epoch of the schedules.
        steps_per_epoch: so many optimizer steps count as an epoch of the schedules; None: an epoch
            is one of the training.
    """

    def __init__(self, recorder: Optional[Recorder], steps_per_epoch: Optional[int]) -> None:
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise InvalidArgumentError(
                f"steps_per_epoch is {steps_per_epoch}; it must be at least 1"
            )
        self.steps_per_epoch = steps_per_epoch
        self.unrecorded = False  # whether there were steps since the last record
        self._recorder = recorder

    def step(self, compressors: Sequence[Compressor], step: Optional[int] = None) -> None:
        """After an optimizer step, which has this number; None: the next."""
        for compressor in compressors:
            compressor.step(step)
        self.unrecorded = True

    def begin(self, compressors: Sequence[Compressor], epoch: int) -> None:
        """An epoch of the schedules begins."""
        for compressor in compressors:
            compressor.update_epoch(epoch)

    def record(self, compressors: Sequence[Compressor], *, is_first_rank: bool = True) -> None:
        """An epoch of the schedules, or the training, ends; other ranks record nothing."""
        self.unrecorded = False
        if self._recorder is not None and is_first_rank:
            self._recorder.record(*compressors)
