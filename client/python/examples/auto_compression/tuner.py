"""NNI's TPE tuner, steady with several short trials at a time."""

from typing import Any

from nni.algorithms.hpo.tpe_tuner import TpeTuner


class SteadyTpeTuner(TpeTuner):
    """TPE that takes a result also after it was told that the trial has ended.

    NNI 3.0 tells both in different threads. When the end comes first, its own TPE forgets the
    trial, stumbles over the result, and the experiment stands still
    (https://github.com/microsoft/nni/issues/5798).
    """

    def trial_end(self, parameter_id: Any, success: bool, **kwargs: Any) -> None:
        """Forgets a trial that will have no result."""
        if not success:
            super().trial_end(parameter_id, success, **kwargs)
