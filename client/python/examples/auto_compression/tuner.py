"""NNI's TPE tuner, steady with several short trials at a time."""

import threading
from typing import Any

from nni.algorithms.hpo.tpe_tuner import TpeTuner


class SteadyTpeTuner(TpeTuner):
    """TPE that takes a result whatever it was told before.

    NNI 3.0 may tell that a trial has ended before it tells the trial's result: it does so in two
    threads, and names the ended trial by the parameters that were meant for it, which another trial
    may have got and still be training with. NNI's own TPE forgets the parameters at the first and
    stumbles over the second; then the experiment stands still, without a word
    (https://github.com/microsoft/nni/issues/5798).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()

    def generate_parameters(self, parameter_id: Any, **kwargs: Any) -> Any:
        """Draws the next trial's parameters."""
        with self._lock:
            return super().generate_parameters(parameter_id, **kwargs)

    def receive_trial_result(
        self, parameter_id: Any, parameters: Any, value: Any, **kwargs: Any
    ) -> None:
        """Learns from a result, also one of parameters that were thought to be done with."""
        with self._lock:
            self._running_params.setdefault(parameter_id, self._params[parameter_id])
            super().receive_trial_result(parameter_id, parameters, value, **kwargs)

    def trial_end(self, parameter_id: Any, success: bool, **kwargs: Any) -> None:
        """Expects no result any more."""
        with self._lock:
            super().trial_end(parameter_id, success, **kwargs)
