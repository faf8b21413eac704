"""The messages of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .._wire import compression_pb2 as pb
from .._wire import frames
from ..errors import CompressionError, InternalError, code_from_number, make_error
from ..values import quantization
from ..values.plan import Plan
from ..values.quantization import QuantizedTensor
from ..values.steps import AnswerKey, StepResult
from ..values.tensors import Tensor
from .exchange import raise_layer_errors, range_header, tensor_header

_TARGETS = {
    pb.TENSOR_ROLE_OUTPUT_RANGE: "output",
    pb.TENSOR_ROLE_INPUT_RANGE: "input",
    pb.TENSOR_ROLE_GRADIENT: "gradient",
}


def step_requests(
    ranges: Optional[Mapping[str, Any]],
    outputs: Optional[Mapping[str, Any]],
    inputs: Optional[Mapping[str, Any]],
    gradients: Optional[Mapping[str, Any]],
) -> list[frames.Outgoing]:
    """The messages of a step's request; see `Session.step`."""
    sent = [
        (name, value, role)
        for role, values in (
            (pb.TENSOR_ROLE_RANGE, ranges),
            (pb.TENSOR_ROLE_OUTPUT_RANGE, outputs),
            (pb.TENSOR_ROLE_INPUT_RANGE, inputs),
        )
        for name, value in (values or {}).items()
    ]
    requests = [range_header(name, value, i, role) for i, (name, value, role) in enumerate(sent)]
    for name, value in (gradients or {}).items():
        tensor = Tensor.of(value, f"gradients[{name!r}]")
        requests.append(tensor_header(name, tensor, len(requests), pb.TENSOR_ROLE_GRADIENT))
    return requests


def step_result(reply: pb.StepResponse, expected: int, plan: Plan) -> StepResult:
    """Reads the reply; raises the errors of single layers."""
    if len(reply.parameters) != expected:
        raise InternalError(
            f"the server answered {len(reply.parameters)} of the {expected} tensors sent"
        )
    answers: dict[AnswerKey, QuantizedTensor] = {}
    errors: dict[AnswerKey, CompressionError] = {}
    for layer in reply.parameters:
        target = _TARGETS.get(layer.role)
        key = layer.layer if target is None else (layer.layer, target)
        if layer.HasField("error"):
            errors[key] = make_error(code_from_number(layer.error.code), layer.error.message)
        elif layer.role != pb.TENSOR_ROLE_GRADIENT:  # which has no answer of its own
            answers[key] = quantization.from_wire(layer)
    raise_layer_errors(errors, answers)
    return StepResult(reply.stale_layers, reply.step, answers, masks_of(reply.masks, plan))


def masks_of(checksums: Sequence[int], plan: Plan) -> dict[str, int]:
    """`StaleLayers.masks` of a reply; empty where it has none of this plan."""
    layers = plan.compressed
    return dict(zip(layers, checksums)) if len(checksums) == len(layers) else {}
