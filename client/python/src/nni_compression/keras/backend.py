"""Keras models, for a compressor."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

import tensorflow as tf

from .._tensorflow import rounding
from .._tensorflow.backend import TensorFlowBackend, needs_tf2onnx
from .._tensorflow.exported import exported
from .._tensorflow.files import TensorFlowFiles
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..adapters.quantizing import QuantizerBinding
from ..values.plan import Parameter
from . import weights
from .answers import KerasPruning, KerasQuantizing
from .weights import KerasWeight


class KerasBackend(TensorFlowBackend[KerasWeight]):
    """A Keras model of TensorFlow's Keras, or a layer of it."""

    framework = "keras"
    model_type = "a built Keras model of TensorFlow's Keras"

    @staticmethod
    def accepts(value: Any) -> bool:
        return weights.is_model(value)

    def find_weights(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[KerasWeight]:
        return weights.find_kernels(self.model)

    def parameters(self) -> Iterable[Parameter]:
        return weights.model_parameters(self.model)

    # Weights.

    def read(self, weights: Sequence[KerasWeight]) -> Mapping[str, Any]:
        return {weight.name: rounding.host(weight.numpy(), weight.dtype) for weight in weights}

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        # Eager, and not recorded by a gradient tape.
        scope: contextlib.AbstractContextManager[Any] = tf.init_scope()
        return scope

    # A binding in the model.

    def pruning(self, own: Optional[OwnAlgorithm[KerasWeight]]) -> KerasPruning:
        return KerasPruning()

    def quantizing(self, own: Optional[OwnAlgorithm[KerasWeight]]) -> KerasQuantizing:
        return KerasQuantizing()

    def installed(self, binding: Binding[KerasWeight], undo: contextlib.ExitStack) -> None:
        undo.callback(weights.forget_compiled, self.model)
        weights.forget_compiled(self.model)
        binding.refresh()

    def unwrapped(self) -> None:
        weights.forget_compiled(self.model)

    def call_own(
        self, method: Callable[..., Any], owner: Any, args: Sequence[Any], kwargs: Any
    ) -> Any:
        """NNI's base methods take a TensorFlow session, which a Keras model does not have, and
        `callback` passes a step, which they do not take.
        """
        parameters = [name for name in inspect.signature(method).parameters if name != "self"]
        session = {"sess": None} if "sess" in parameters else {}
        return method(owner, *args[: len(parameters) - len(session)], **{**session, **kwargs})

    # Files.

    def exported(
        self, binding: Binding[KerasWeight]
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        variables = weights.variables(self.model)
        found = {id(w.dense): w for w in weights.compressed_weights(self.model)}
        named = {n: found[id(v)] for n, v in variables.items() if id(v) in found}
        arrays = {name: weights.to_numpy(variable) for name, variable in variables.items()}
        return exported(binding, arrays, named)

    def write_model(
        self,
        files: TensorFlowFiles,
        binding: Binding[KerasWeight],
        model_path: str,
        onnx_path: Optional[str],
        input_shape: Optional[Sequence[Optional[int]]],
        outputs: Any = None,
    ) -> None:
        """See `Pruner.export_model`."""
        if onnx_path is not None:
            files.save_onnx(self._as_onnx(binding, onnx_path, input_shape, outputs), onnx_path)
        with weights.compressed(self.model):
            files.save_keras(self.model, model_path)

    def _as_onnx(
        self,
        binding: Binding[KerasWeight],
        path: str,
        input_shape: Optional[Sequence[Optional[int]]],
        outputs: Any,
    ) -> Any:
        with needs_tf2onnx(path):
            from . import onnx
        if outputs is not None:
            raise TypeError(f"outputs is {outputs!r}; it must be None: a Keras model knows its own")
        return onnx.from_keras(self.model, input_shape, _encoded(binding))


def _encoded(binding: Binding[KerasWeight]) -> Collection[tuple[str, str]]:
    """The "output" and "input" of layers that are quantized: (name of the weight, which)."""
    if not isinstance(binding, QuantizerBinding):
        return ()
    answers = binding.activation_answers
    return [key for key, answer in answers.items() if not answer.unquantized]
