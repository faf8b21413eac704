"""What a step of a session answers."""

from __future__ import annotations

from typing import Any, Optional, Union

from .quantization import QuantizedTensor

# What a tensor in Step is: the range of a layer's weight, or (layer, "output"), (layer, "input"),
# (layer, "gradient").
AnswerKey = Union[str, tuple[str, str]]


class StepResult(frozenset[str]):
    """What `Session.step` answers: the frozenset of stale layers, and more.

    Attributes:
        step: the highest step that the server has applied.
        answers: for every range that was sent, the quantization now (without codes). The key is the
            layer's name for that of its weight, (name, "output") or (name, "input") for others.
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
        """Layer name -> how its weight is quantized now."""
        return {key: answer for key, answer in self.answers.items() if isinstance(key, str)}

    @property
    def outputs(self) -> dict[str, QuantizedTensor]:
        """Layer name -> how its outputs are quantized now."""
        return self._of("output")

    @property
    def inputs(self) -> dict[str, QuantizedTensor]:
        """Layer name -> how its inputs are quantized now."""
        return self._of("input")

    def _of(self, target: str) -> dict[str, QuantizedTensor]:
        return {k[0]: a for k, a in self.answers.items() if isinstance(k, tuple) and k[1] == target}
