"""Graphs of TensorFlow 1, for a compressor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import tensorflow as tf

from .._tensorflow import rounding
from .._tensorflow.backend import TensorFlowBackend, needs_tf2onnx
from .._tensorflow.exported import exported
from .._tensorflow.files import TensorFlowFiles
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..errors import UnimplementedError
from ..values.plan import Parameter
from .answers import GraphPruning, GraphQuantizing, dense
from .graph import CompressedGraph, GraphWeight, find_graph_weights, graph_parameters


class GraphBackend(TensorFlowBackend[GraphWeight]):
    """A graph. Reads and writes of variables run inside `CompressedGraph.using`."""

    framework = "tensorflow"
    model_type = "a tf.Graph"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.graph = CompressedGraph.of(model)
        self._keeps_what_it_reads = False
        self._present: dict[str, Any] = {}  # see GraphQuantizing

    @staticmethod
    def accepts(value: Any) -> bool:
        return isinstance(value, tf.Graph)

    def find_weights(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[GraphWeight]:
        return find_graph_weights(self.model)

    def parameters(self) -> Iterable[Parameter]:
        return graph_parameters(self.model)

    # Weights.

    def read(self, weights: Sequence[GraphWeight]) -> Mapping[str, Any]:
        arrays = dense(weights)
        if self._keeps_what_it_reads:
            self._present.clear()
            self._present.update(arrays)
        return {w.name: rounding.host(arrays[w.name], w.dtype) for w in weights}

    # A binding in the model.

    def pruning(self, own: Optional[OwnAlgorithm[GraphWeight]]) -> GraphPruning:
        return GraphPruning(self.graph)

    def quantizing(self, own: Optional[OwnAlgorithm[GraphWeight]]) -> GraphQuantizing:
        if own is not None and own.quantizes_outputs:
            raise UnimplementedError(
                f"{own.name} overrides quantize_layer_output, which has no effect in a graph; only "
                "Keras models quantize outputs"
            )
        self._keeps_what_it_reads = True
        return GraphQuantizing(self.graph, self._present)

    # Files.

    def exported(
        self, binding: Binding[GraphWeight]
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        return exported(binding, self.graph.variables(), self.graph.weights)

    def write_model(
        self,
        files: TensorFlowFiles,
        binding: Binding[GraphWeight],
        model_path: str,
        onnx_path: Optional[str],
        input_shape: Optional[Sequence[Optional[int]]],
        outputs: Any = None,
    ) -> None:
        """See `Pruner.export_model`."""
        if onnx_path is not None:
            files.save_onnx(self._as_onnx(onnx_path, input_shape, outputs), onnx_path)
        files.save_checkpoint(self.graph.compressed(), model_path)

    def _as_onnx(
        self, path: str, input_shape: Optional[Sequence[Optional[int]]], outputs: Any
    ) -> Any:
        with needs_tf2onnx(path):
            from . import onnx
        return onnx.from_graph(self.graph, input_shape, outputs)
