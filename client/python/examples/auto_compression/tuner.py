"""NNI's TPE tuner, made robust for several short concurrent trials."""

import threading
from typing import Any

from nni.algorithms.hpo.tpe_tuner import TpeTuner


class SteadyTpeTuner(TpeTuner):
    """TPE that accepts a result after its trial was reported as ended.

    NNI 3.0 reports the end and the result of a trial from two threads, so the end may be first. It
    also identifies the ended trial by the parameters intended for it, which another trial may have
    received and still use. NNI's TPE forgets the parameters at the end of a trial and fails on a
    later result; then the experiment hangs silently
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
        """Learns from a result, also one for parameters whose trial was reported as ended."""
        with self._lock:
            self._running_params.setdefault(parameter_id, self._params[parameter_id])
            super().receive_trial_result(parameter_id, parameters, value, **kwargs)

    def trial_end(self, parameter_id: Any, success: bool, **kwargs: Any) -> None:
        """Forgets the parameters of a trial that has ended."""
        with self._lock:
            super().trial_end(parameter_id, success, **kwargs)
