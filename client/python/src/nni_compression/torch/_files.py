"""Files of models."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional, Union

import torch
from torch import nn

from .._files import atomic
from ..errors import InvalidArgumentError

# What a model is called with: positional arguments, or keyword arguments by their names.
ExampleInputs = Union[tuple[Any, ...], Mapping[str, Any]]


class ModelFiles(atomic.NewFiles):
    """Files of PyTorch and of ONNX."""

    def save(self, value: Any, path: str) -> None:
        """As `torch.save`."""
        torch.save(value, self.temporary(path))

    def save_onnx(self, model: nn.Module, path: str, inputs: ExampleInputs) -> None:
        """As `torch.onnx.export`, for a call with these inputs, in evaluation mode.

        Weights keep their names and values: nothing is folded into them. They are in the file
        itself; weights of more than 2 GiB, the limit of an ONNX file, are in `path` with the suffix
        ".data".
        """
        positional, named = arguments(model.eval(), inputs, "onnx_path")
        parameters = inspect.signature(torch.onnx.export).parameters
        target = str(self.temporary(path))
        if "dynamo" in parameters and parameters["dynamo"].default:  # PyTorch 2.9 and later
            program = torch.onnx.export(
                model, positional, kwargs=named, optimize=False, verbose=False
            )
            _fold_constants(program.model, set(model.state_dict()))
            program.save(target, external_data=_model_bytes(model) > atomic.LARGEST_ONNX)
        else:
            # The last of the arguments, when it is a dict, has those that are named.
            torch.onnx.export(
                model,
                (*positional, named),
                target,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )


def _fold_constants(graph: Any, kept: Collection[str]) -> None:
    """Folds constants, except for operations on tensors with these names."""
    optimizer = importlib.import_module("onnxscript.optimizer")

    def should_fold(node: Any) -> Optional[bool]:
        return False if any(v is not None and v.name in kept for v in node.inputs) else None

    optimizer.fold_constants(graph, should_fold=should_fold)
    optimizer.remove_unused_nodes(graph)


def example_inputs(
    model: nn.Module,
    input_shape: Optional[Sequence[int]],
    given: Union[torch.Tensor, ExampleInputs, None],
) -> ExampleInputs:
    """Checks these two arguments of `export_model`; exactly one is needed for `onnx_path`."""
    if (input_shape is None) == (given is None):
        raise InvalidArgumentError(
            "onnx_path needs either example_inputs, which the model is called with, or, where that "
            "is one tensor of the weights' type, its shape as input_shape; "
            f"{'neither' if given is None else 'both'} is given"
        )
    if given is None:
        parameter = next(model.parameters(), torch.empty(0))
        shape = tuple(input_shape or ())
        return (torch.zeros(shape, dtype=parameter.dtype, device=parameter.device),)
    return example_inputs_of(given)


def example_inputs_of(given: Any) -> ExampleInputs:
    """Checks this argument; a tensor is the only positional argument."""
    if isinstance(given, torch.Tensor):
        return (given,)
    if isinstance(given, Mapping):
        if not all(isinstance(name, str) for name in given):
            raise InvalidArgumentError(
                f"example_inputs has the keys {list(given)}; they must be names of arguments"
            )
        return dict(given)
    if isinstance(given, (tuple, list)):
        return tuple(given)
    raise InvalidArgumentError(
        f"example_inputs is of type {type(given).__name__}; it must be a tensor, a tuple of "
        "positional arguments, or a dict of keyword arguments"
    )


def arguments(
    model: nn.Module, inputs: ExampleInputs, user: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, after a trial run of the model with them.

    Args:
        user: what needs them, for the InvalidArgumentError if the model does not run.
    """
    positional, named = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        with torch.no_grad():
            model(*positional, **named)
    except Exception as error:
        told = [_described(value) for value in positional]
        told += [f"{name}={_described(value)}" for name, value in named.items()]
        raise InvalidArgumentError(
            f"{user}: the model does not run with ({', '.join(told)}): {error}; "
            "example_inputs says what it is called with"
        ) from error
    return positional, named


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).replace('torch.', '')} {list(value.shape)}"


def _model_bytes(model: nn.Module) -> int:
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
