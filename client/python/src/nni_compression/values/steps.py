"""The results of setting the epoch or the step of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, TypeVar, Union

from .quantization import QuantizedTensor

# The key of a tensor in Step: a layer for the range of its weight, or (layer, "output"),
# (layer, "input"), (layer, "gradient").
AnswerKey = Union[str, tuple[str, str]]


S = TypeVar("S", bound="StaleLayers")
R = TypeVar("R", bound="StepResult")


class StaleLayers(frozenset[str]):
    """The result of `Session.update_epoch`: the frozenset of stale layers, with an attribute.

    Attributes:
        masks: layer name -> checksum of the mask that the session has, `Mask.checksum` or
            `Threshold.checksum`; 0: none. A trainer with another mask has to ask for the layer,
            stale or not: another rank has got a later one. Empty for quantizers, and from older
            servers.
    """

    masks: dict[str, int]

    def __new__(cls: type[S], stale: Any = (), masks: Optional[Mapping[str, int]] = None) -> S:
        self = super().__new__(cls, stale)
        self.masks = dict(masks or {})
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return StaleLayers, (list(self), self.masks)


class StepResult(StaleLayers):
    """The result of `Session.step`: as of `Session.update_epoch`, with further attributes.

    Attributes:
        step: the highest step that the server has applied.
        answers: the present quantization (without codes) for every range that was sent. The key is
            the layer's name for its weight, (name, "output") or (name, "input") for activations.
    """

    step: int
    answers: dict[AnswerKey, QuantizedTensor]

    def __new__(
        cls: type[R],
        stale: Any = (),
        step: int = 0,
        answers: Optional[dict[AnswerKey, QuantizedTensor]] = None,
        masks: Optional[Mapping[str, int]] = None,
    ) -> R:
        self = super().__new__(cls, stale, masks)
        self.step = step
        self.answers = answers or {}
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return StepResult, (list(self), self.step, self.answers, self.masks)

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
