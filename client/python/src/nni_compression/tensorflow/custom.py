"""Algorithms of one's own on Keras models and in graphs: how their results get in force."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from ..adapters import custom
from . import graph, keras, kernels


def to_numpy(result: Any) -> Any:
    """A tensor as an array; bfloat16, which numpy cannot count in, as float32."""
    if tf.is_tensor(result):
        result = np.asarray(tf.convert_to_tensor(result))
    wide = getattr(result, "dtype", None) == tf.bfloat16.as_numpy_dtype
    return result.astype(np.float32) if wide else result


def quantized_output(result: Any, output: Any, where: str) -> Any:
    """What `quantize_layer_output` returned for an output, with the gradient passing straight."""
    if not tf.is_tensor(result):
        raise TypeError(f"{where} returned {result!r:.80}; it must be a tensor")
    if result.dtype != output.dtype:
        raise TypeError(f"{where} returned {result.dtype.name}; it must be {output.dtype.name}")
    if not result.shape.is_compatible_with(output.shape):
        raise ValueError(f"{where} returned shape {result.shape}; it must be {output.shape}")
    return kernels.replaced(output, result)


def _values(
    binding: custom.CustomQuantizing[Any], results: Mapping[str, Any]
) -> list[tuple[Any, Any, Any]]:
    """(weight, its quantized values, True wherever a gradient passes: everywhere) of each layer."""
    found = []
    for name, result in results.items():
        weight = binding.weights[name]
        dtype = tf.as_dtype(weight.dtype).as_numpy_dtype
        values = custom.to_values(result, weight.layer().shape, dtype, binding.where(weight))
        found.append((weight, values, np.ones(values.shape, np.bool_)))
    return found


class KerasPrunerBinding(custom.CustomPruning[keras.TrackedWeight], keras.PrunerBinding):
    """Masks that a subclass's `calc_mask` computes."""

    def _to_numpy(self, result: Any) -> Any:
        return to_numpy(result)


class KerasQuantizerBinding(custom.CustomQuantizing[keras.TrackedWeight], keras.QuantizerBinding):
    """Values that a subclass's `quantize_weight` computes.

    Attributes:
        outputs: weight and output of its layer -> the quantized output; None: as it is.
    """

    outputs: Optional[Callable[[keras.TrackedWeight, Any], Any]] = None

    def install(self, undo: contextlib.ExitStack) -> None:
        super().install(undo)
        for weight in self.weights.values():
            if self.outputs is not None and "output" in weight.targets:
                functions = kernels.activations_of(weight.owner)
                undo.callback(keras.put_back, functions, "output", functions.get("output"))
                functions["output"] = functools.partial(self.outputs, weight)

    def _set_values(self, results: Mapping[str, Any]) -> None:
        for weight, values, inside in _values(self, results):
            weight.state.set_values(values, inside)


@contextlib.contextmanager
def _growing(whole: Any) -> Iterator[None]:
    """Inside, the graph is the default one and takes operations, as a finalized one does not."""
    finalized = whole.finalized
    if finalized:  # by a MonitoredSession, when it was made
        whole._unsafe_unfinalize()
    try:
        with whole.as_default():
            yield
    finally:
        if finalized:
            whole.finalize()


class _GraphComputing(custom.Computing[graph.GraphWeight]):
    """The algorithm runs inside of the graph, with the session as its default one.

    A symbolic tensor that it returns is kept: it is what the session gives for it that changes. An
    algorithm that would be asked again would add to the graph each time.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._symbolic: dict[str, Any] = {}

    def _results(self, weights: Sequence[graph.GraphWeight]) -> Mapping[str, Any]:
        whole = weights[0].graph

        def results(session: Any) -> Mapping[str, Any]:
            with _growing(whole.graph), session.as_default():
                new = {w.name: self.compute(w) for w in weights if w.name not in self._symbolic}
            self._symbolic.update({n: r for n, r in new.items() if tf.is_tensor(r)})
            evaluated = session.run(
                {w.name: self._symbolic[w.name] for w in weights if w.name in self._symbolic}
            )
            return {**new, **evaluated}

        found: Mapping[str, Any] = whole.within(results)
        return found


class GraphPrunerBinding(
    _GraphComputing, custom.CustomPruning[graph.GraphWeight], graph.PrunerBinding
):
    """Masks that a subclass's `calc_mask` computes."""

    def _to_numpy(self, result: Any) -> Any:
        return to_numpy(result)


class GraphQuantizerBinding(
    _GraphComputing, custom.CustomQuantizing[graph.GraphWeight], graph.QuantizerBinding
):
    """Values that a subclass's `quantize_weight` computes."""

    def _set_values(self, results: Mapping[str, Any]) -> None:
        self._put_values(_values(self, results))
