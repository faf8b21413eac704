"""Whether a training sets the clock, of steps or of epochs, that the schedule counts."""

from __future__ import annotations

from .tracker import Tracker
from .warn import warn

_STEPS = 100  # observed steps of optimizers after which step() should have been called
#: The same of calls and passes that a training may make many of in one step, or in one epoch.
_PASSES = 1000


class Clocks:
    """Warns once of a schedule that stands still because its clock is never set.

    Args:
        tracker: of the session. A clock that is not at 0, as after a checkpoint, was set.
        counts_steps, counts_epochs: what the schedule depends on.
    """

    def __init__(self, tracker: Tracker, *, counts_steps: bool, counts_epochs: bool) -> None:
        self._steps_matter, self._epochs_matter = counts_steps, counts_epochs
        self._is_set = bool(tracker.step or tracker.epoch)
        self._is_told = False
        self._optimizer_steps = self._passes = 0
        self._calls = {"step": 0, "update_epoch": 0}

    @property
    def is_watching(self) -> bool:
        """Whether steps of optimizers and forward passes are still of interest."""
        return self._needed != "" and not self._is_set and not self._is_told

    def called(self, method: str) -> None:
        """Called when `step` or `update_epoch` has set a clock."""
        self._calls[method] += 1
        if not self._needed or method == self._needed:
            self._is_set = True
        elif self._calls[method] > (1 if method == "update_epoch" else _PASSES):
            self._tell(f"{method}() was called {self._calls[method]} times")

    def called_elsewhere(self) -> None:
        """Another rank may set the clock."""
        self._is_set = True

    def continue_from(self, other: Clocks) -> None:
        """Continues what was noticed before the model was bound again."""
        self._is_set = self._is_set or other._is_set
        self._is_told, self._calls = other._is_told, other._calls
        self._optimizer_steps, self._passes = other._optimizer_steps, other._passes

    def optimizer_stepped(self) -> None:
        """Called after the step of an optimizer."""
        self._optimizer_steps += 1
        if self._needed == "step" and self._optimizer_steps >= _STEPS:
            self._tell(f"{self._optimizer_steps} steps of an optimizer were observed")

    def forward_passed(self) -> None:
        """Called in a forward pass in training mode, where optimizers cannot be observed."""
        self._passes += 1
        if self._needed == "step" and self._passes >= _PASSES:
            self._tell(f"{self._passes} forward passes in training mode were observed")

    def check(self) -> None:
        """Called when the result of a training is wanted."""
        if self._optimizer_steps or self._passes or any(self._calls.values()):
            self._tell("", again=True)

    @property
    def _needed(self) -> str:
        """The method that has to be called; empty: none, or one of two."""
        if self._steps_matter == self._epochs_matter:
            return ""
        return "step" if self._steps_matter else "update_epoch"

    def _tell(self, why: str, *, again: bool = False) -> None:
        if self._is_set or not self._needed or (self._is_told and not again):
            return
        self._is_told = True
        unit = "steps" if self._needed == "step" else "epochs"
        warn(
            f"the schedule counts {unit}, and {self._needed}() has not been called"
            + (f", while {why}" if why else "")
            + ": the masks do not change until it is"
        )
