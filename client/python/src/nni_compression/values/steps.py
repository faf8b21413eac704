"""The result of a step of a session."""

from __future__ import annotations

from typing import Any, Optional, Union

from .quantization import QuantizedTensor

# The key of a tensor in Step: a layer for the range of its weight, or (layer, "output"),
# (layer, "input"), (layer, "gradient").
AnswerKey = Union[str, tuple[str, str]]


class StepResult(frozenset[str]):
    """The result of `Session.step`: the frozenset of stale layers, with attributes.

    Attributes:
        step: the highest step that the server has applied.
        answers: the present quantization (without codes) for every range that was sent. The key is
            the layer's name for its weight, (name, "output") or (name, "input") for activations.
    """

    step: int
    answers: dict[AnswerKey, QuantizedTensor]

    def __new__(
        cls,
        stale: Any = (),
        step: int = 0,
        answers: Optional[dict[AnswerKey, QuantizedTensor]] = None,
    ) -> StepResult:
        self = super().__new__(cls, stale)
        self.step = step
        self.answers = answers or {}
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return StepResult, (list(self), self.step, self.answers)

    @property
    def parameters(self) -> dict[str, QuantizedTensor]:
        """Layer name -> the present quantization of its weight."""
        return {key: answer for key, answer in self.answers.items() if isinstance(key, str)}

    @property
    def outputs(self) -> dict[str, QuantizedTensor]:
        """Layer name -> the present quantization of its outputs."""
        return self._of("output")

    @property
    def inputs(self) -> dict[str, QuantizedTensor]:
        """Layer name -> the present quantization of its inputs."""
        return self._of("input")

    def _of(self, target: str) -> dict[str, QuantizedTensor]:
        return {k[0]: a for k, a in self.answers.items() if isinstance(k, tuple) and k[1] == target}
