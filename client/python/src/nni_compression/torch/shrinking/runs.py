"""Runs of a model and of its smaller copy, which have to give the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import nn

from ...errors import InvalidArgumentError
from .._files import ExampleInputs, arguments
from .dependencies import tensors_in

_HALF = (torch.float16, torch.bfloat16)
# By how much outputs may differ, of their largest number.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass
class Traits:
    """What a model is given back after it was made comparable; by name."""

    dtypes: dict[str, torch.dtype]
    trained: dict[str, bool]  # requires_grad
    training: dict[str, bool]


def make_comparable(model: nn.Module) -> Traits:
    """Puts a model into evaluation mode, with gradients for tracing and without half precision."""
    parameters, tensors = _tensors_of(model)
    before = Traits(
        {name: tensor.dtype for name, tensor in tensors.items()},
        {name: own.requires_grad for name, own in parameters.items()},
        {name: module.training for name, module in model.named_modules()},
    )
    for tensor in tensors.values():
        if tensor.dtype in _HALF:
            tensor.data = tensor.data.float()
    for own in parameters.values():
        own.requires_grad_(own.is_floating_point())
    model.eval()
    return before


def restore(model: nn.Module, before: Traits) -> None:
    """The inverse, of a smaller copy; biases that it has in addition are as the weights."""
    parameters, tensors = _tensors_of(model)
    for name, tensor in tensors.items():
        like = name if name in before.dtypes else f"{name.rpartition('bias')[0]}weight"
        tensor.data = tensor.data.to(before.dtypes[like])
        if name in parameters:
            tensor.requires_grad_(before.trained[like])
    for name, module in model.named_modules():
        module.training = before.training[name]


def _tensors_of(model: Any) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """The parameters, and these with the buffers, under all of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters, {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


class Runs:
    """Calls of a comparable model with the example inputs, and with noise of the same kind.

    Raises InvalidArgumentError, for the user, if the model does not run with the example inputs.
    """

    def __init__(self, model: nn.Module, given: ExampleInputs, user: str = "shrink") -> None:
        self._model = model
        given = _mapped(given, _as_comparable)
        self.positional, self.named = arguments(model, given, user)
        generator = torch.Generator().manual_seed(0)

        def noise(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            numbers = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            return numbers.to(tensor.device)

        self._calls = [(self.positional, self.named)]
        noisy = _mapped(self.positional, noise), _mapped(self.named, noise)
        if self._takes(*noisy):
            self._calls.append(noisy)

    def _takes(self, positional: Any, named: Any) -> bool:
        """Whether noise is an input that the model is made for."""
        try:
            with torch.no_grad():
                outputs = tensors_in(self._model(*positional, **named))
        except Exception:  # whatever the model raises
            return False
        return all(bool(each.isfinite().all()) for each in outputs)

    def all(self) -> None:
        """Calls the model with the example inputs, and with noise."""
        for positional, named in self._calls:
            self._model(*positional, **named)

    def problem_of(self, other: nn.Module) -> str:
        """How another model's outputs differ from this one's; empty if they are equal."""
        for positional, named in self._calls:
            with torch.no_grad():
                wanted = tensors_in(self._model(*positional, **named))
                try:
                    found = tensors_in(other(*positional, **named))
                except Exception as error:  # whatever the model raises
                    return f"the model would raise {type(error).__name__}: {error}"
            problem = _difference(wanted, found)
            if problem:
                return problem
        return ""

    def check_repeatable(self) -> None:
        """Raises InvalidArgumentError if the model gives something else each time."""
        problem = self.problem_of(self._model)
        if problem:
            raise InvalidArgumentError(
                f"two calls of the {type(self._model).__name__} with example_inputs, in evaluation "
                "mode, give different outputs, so that those of the smaller model cannot be "
                "compared"
            )


def _as_comparable(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_inference():
        tensor = tensor.clone()  # one that gradients may be computed with
    return tensor.float() if tensor.dtype in _HALF else tensor


def _difference(wanted: list[torch.Tensor], found: list[torch.Tensor]) -> str:
    shapes = [[list(each.shape) for each in outputs] for outputs in (wanted, found)]
    if shapes[0] != shapes[1]:
        return f"the outputs would have the shapes {shapes[1]} in place of {shapes[0]}"
    for expected, got in zip(wanted, found):
        finite = expected.isfinite()
        largest = float(expected[finite].abs().max()) if bool(finite.any()) else 0.0
        allowed = _TOLERANCE.get(expected.dtype, 1e-4) * largest
        if not torch.allclose(got, expected, rtol=0, atol=allowed, equal_nan=True):
            return "the outputs would differ"
    return ""


def _mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A structure with a function's results in place of its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: _mapped(each, function) for key, each in value.items()}
        return mapped if type(value) is dict else value
    if type(value) in (list, tuple):
        return type(value)(_mapped(each, function) for each in value)
    return value
