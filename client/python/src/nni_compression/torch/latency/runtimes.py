"""What models and layers run in, so that they can be timed."""

from __future__ import annotations

import abc
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import InvalidArgumentError, UnimplementedError
from .._files import ModelFiles
from ..shrinking import channels
from .calls import LayerCall

Run = Callable[[], object]

_WARM_UP = 2
_LEAST, _MOST = 3, 20  # runs of a layer
_ENOUGH = 0.01  # seconds for all runs of a layer
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 15
_ROUND = 0.02  # seconds of a model's turn, at least
_ENOUGH_ROUNDS = 10.0  # seconds for all rounds
_OPSET = 18


class Runtime(abc.ABC):
    """Runs on the processor, on as many threads as `torch.get_num_threads()`.

    Attributes:
        name: as users write it.
        version: its own.
        threads: their number.
    """

    name: str
    version: str

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()

    @abc.abstractmethod
    def layer(self, call: LayerCall, dtype: torch.dtype) -> Run:
        """A layer alone, with any numbers."""

    @abc.abstractmethod
    def model(self, model: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Run:
        """A model, which must not be changed afterwards, in evaluation mode."""


class TorchRuntime(Runtime):
    """PyTorch, without compilation."""

    name = "torch"
    version = torch.__version__

    def layer(self, call: LayerCall, dtype: torch.dtype) -> Run:
        return self.model(call.layer(dtype), (torch.randn(call.shape, dtype=dtype),), {})

    def model(self, model: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Run:
        def run() -> object:
            with torch.inference_mode():  # type: ignore[no-untyped-call]
                return model(*positional, **named)

        return run


class OnnxRuntime(Runtime):
    """ONNX Runtime, with all of its optimizations."""

    name = "onnxruntime"

    def __init__(self) -> None:
        super().__init__()
        self._onnx, self._runtime = _packages("onnx", "onnxruntime")
        _packages("onnxscript")  # that torch.onnx.export needs
        self.version = self._runtime.__version__

    def layer(self, call: LayerCall, dtype: torch.dtype) -> Run:
        layer = call.layer(dtype)
        value = torch.randn(call.shape, dtype=dtype)
        session = self._session(self._one_layer(call, layer, value).SerializeToString())
        feed = {"x": value.numpy()}
        return lambda: session.run(None, feed)

    def model(self, model: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Run:
        given = _tensors((positional, named))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            with ModelFiles.written() as files:
                files.save_onnx(model, str(path), dict(named) or positional)
            session = self._session(str(path))
        names = [each.name for each in session.get_inputs()]
        if len(names) != len(given):
            raise UnimplementedError(
                f"runtime {self.name!r}: the ONNX graph of the {type(model).__name__} has "
                f"{len(names)} inputs, and example_inputs has {len(given)} tensors"
            )
        feed = {name: each.detach().numpy() for name, each in zip(names, given)}
        return lambda: session.run(None, feed)

    def _session(self, model: Any) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _one_layer(self, call: LayerCall, layer: Any, value: torch.Tensor) -> Any:
        """A graph of one layer. The exporter of PyTorch takes a second for it."""
        helper, convert = self._onnx.helper, self._onnx.numpy_helper.from_array
        weights = [convert(layer.weight.detach().numpy(), "w")]
        if call.bias:
            weights.append(convert(layer.bias.detach().numpy(), "b"))
        names = ["x", *(each.name for each in weights)]
        if call.kind != "Linear":
            kind = "ConvTranspose" if "Transpose" in call.kind else "Conv"
            nodes = [helper.make_node(kind, names, ["y"], **_attributes(layer))]
        elif len(call.shape) == 2:
            nodes = [helper.make_node("Gemm", names, ["y"], transB=1)]
        else:
            weights[0] = convert(layer.weight.detach().t().contiguous().numpy(), "w")
            nodes = [helper.make_node("MatMul", names[:2], ["product" if call.bias else "y"])]
            if call.bias:
                nodes.append(helper.make_node("Add", ["product", "b"], ["y"]))
        element = helper.np_dtype_to_tensor_dtype(value.numpy().dtype)
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", element, list(call.shape))],
            [helper.make_tensor_value_info("y", element, None)],
            weights,
        )
        opset = helper.make_opsetid("", _OPSET)
        version = helper.find_min_ir_version_for([opset])
        return helper.make_model(graph, opset_imports=[opset], ir_version=version)


def _attributes(layer: Any) -> dict[str, Any]:
    """Of the ONNX operator of a convolution."""
    reversed_pads = layer._reversed_padding_repeated_twice
    pads = [*reversed_pads[-2::-2], *reversed_pads[-1::-2]]  # all begins, then all ends
    found = {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "pads": pads,
        "group": layer.groups,
    }
    if isinstance(layer, channels.TRANSPOSED):
        found["output_padding"] = list(layer.output_padding)
    return found


def _tensors(value: Any) -> list[torch.Tensor]:
    """In the order of the inputs of an exported model."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in _tensors(each)]
    return [value] if isinstance(value, torch.Tensor) else []


RUNTIMES: Mapping[str, Callable[[], Runtime]] = {
    TorchRuntime.name: TorchRuntime,
    OnnxRuntime.name: OnnxRuntime,
}


def runtime_of(name: Any) -> Runtime:
    """By its name. InvalidArgumentError for another, UnimplementedError for one not installed."""
    made = RUNTIMES.get(name) if isinstance(name, str) else None
    if made is None:
        raise InvalidArgumentError(
            f"runtime is {name!r}; it must be one of {', '.join(map(repr, RUNTIMES))}"
        )
    return made()


def _packages(*names: str) -> list[Any]:
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UnimplementedError(
            f"runtime 'onnxruntime' needs onnx, onnxscript and onnxruntime ({error}): "
            "pip install onnx onnxscript onnxruntime"
        ) from error


def seconds(run: Run) -> float:
    """The shortest of several runs, which other load changes least."""
    for _ in range(_WARM_UP):
        run()
    taken: list[float] = []
    while len(taken) < _LEAST or (len(taken) < _MOST and sum(taken) < _ENOUGH):
        taken.append(_once(run, 1))
    return min(taken)


def compared(first: Run, second: Run) -> tuple[float, float]:
    """Seconds of both, which take turns; their quotient is the median of that of all rounds."""
    repeats = []
    for run in (first, second):
        repeats.append(max(1, round(_ROUND / max(seconds(run), 1e-9))))
    rounds: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(rounds) < _LEAST_ROUNDS or (
        len(rounds) < _MOST_ROUNDS and time.perf_counter() - start < _ENOUGH_ROUNDS
    ):
        rounds.append((_once(first, repeats[0]), _once(second, repeats[1])))
    before = statistics.median(one for one, _ in rounds)
    return before, before * statistics.median(other / one for one, other in rounds)


def _once(run: Run, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count
