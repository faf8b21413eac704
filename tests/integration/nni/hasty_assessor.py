"""An assessor that stops every trial at its first intermediate result."""

from typing import Any

from nni.assessor import Assessor, AssessResult


class HastyAssessor(Assessor):
    """Finds everything bad."""

    def assess_trial(self, trial_job_id: str, trial_history: list[Any]) -> AssessResult:
        """Stops the trial."""
        return AssessResult.Bad
