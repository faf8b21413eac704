"""Puts masks and quantization into the variables of a graph, and removes them.

All of it runs inside `CompressedGraph.using`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .._tensorflow import results, rounding
from .._tensorflow.calibration import calibration
from ..adapters.backend import Pruning, Quantizing
from ..adapters.binding import Binding
from ..adapters.custom import OwnAlgorithm
from ..adapters.pruning import PrunerBinding
from ..adapters.quantizing import QuantizerBinding
from ..values.masks import Mask
from ..values.plan import LayerPlan
from ..values.quantization import QuantizedTensor
from .graph import CompressedGraph, GraphState, GraphWeight, Slot

Puts = list[tuple[Slot, Any]]


def dense(weights: Sequence[GraphWeight]) -> Mapping[str, Any]:
    """The weights in the session, in one run of it."""
    if not weights:
        return {}
    found: Mapping[str, Any] = weights[0].graph.run({w.name: w.read for w in weights})
    return found


class _GraphEdges:
    """The common part of pruning and quantizing in a graph."""

    def __init__(self, whole: CompressedGraph) -> None:
        self._graph = whole
        self._symbolic: dict[str, Any] = {}

    def results(
        self, compute: Callable[[GraphWeight], Any], weights: Sequence[GraphWeight]
    ) -> Mapping[str, Any]:
        """Runs the algorithm inside the graph, with the session as the default one.

        A symbolic tensor that it returns is kept and evaluated again later: calling the algorithm
        again would add to the graph each time.
        """
        whole = self._graph

        def evaluated(session: Any) -> Mapping[str, Any]:
            with _growing(whole.graph), session.as_default():
                new = {w.name: compute(w) for w in weights if w.name not in self._symbolic}
            self._symbolic.update({n: r for n, r in new.items() if tf.is_tensor(r)})
            found = session.run(
                {w.name: self._symbolic[w.name] for w in weights if w.name in self._symbolic}
            )
            return {**new, **found}

        found: Mapping[str, Any] = whole.within(evaluated)
        return found

    def install(
        self,
        binding: Binding[GraphWeight],
        begin: Callable[[GraphWeight], Puts],
        undo: contextlib.ExitStack,
    ) -> None:
        """Redirects the readers of the weights through variables.

        Args:
            begin: makes the variables for answers; returns the values of the binding's initial
                state.
        """
        for weight in binding.weights.values():
            weight.prepare()
        puts = []
        for weight in binding.weights.values():
            undo.callback(weight.state.snapshot())
            puts += begin(weight)
            setattr(weight.state, binding.role, binding.refresh)
            weight.state.lead()
        self.put(binding.weights, puts)

    def unwrap(
        self,
        binding: Binding[GraphWeight],
        written: Callable[[GraphState, Any], Any],
        neutral: Callable[[GraphState], Puts],
    ) -> None:
        """Writes answers into the variables.

        Args:
            written: returns the dense weight with the answer in it.
            neutral: returns values with which a state passes the weight unchanged.
        """
        found = dense(list(binding.weights.values()))
        puts = []
        for name, weight in binding.weights.items():
            weight.write(written(weight.state, found[name]))
            setattr(weight.state, binding.role, None)
            puts += neutral(weight.state)
        self.put(binding.weights, puts)  # for sessions, which continue with their present edges
        for weight in binding.weights.values():
            if weight.state.pruner is None and weight.state.quantizer is None:
                weight.state.remove()

    def put(self, weights: Mapping[Any, Any], values: Puts) -> None:
        """Puts values in force, of any weights."""
        if weights:
            self._graph.put(values)


class GraphPruning(Pruning[GraphWeight]):
    """Masks of a graph's layers."""

    why_weights_only = "weights of graphs of TensorFlow 1 are not counted"

    def __init__(self, whole: CompressedGraph) -> None:
        self._edges = _GraphEdges(whole)

    def install(
        self,
        binding: PrunerBinding[GraphWeight],
        given: Mapping[str, Mask],
        undo: contextlib.ExitStack,
    ) -> None:
        self._edges.install(binding, lambda weight: self._begin(given, weight), undo)

    def put(self, masks: Mapping[GraphWeight, Mask]) -> None:
        puts = []
        for weight, mask in masks.items():
            puts.append((weight.state.slot(weight.state.mask), mask.to_numpy()))
        self._edges.put(masks, puts)

    def mask(self, weight: GraphWeight) -> Any:
        return weight.state.value(weight.state.mask)

    def to_array(self, result: Any) -> Any:
        return results.as_array(result)

    def results(
        self, compute: Callable[[GraphWeight], Any], weights: Sequence[GraphWeight]
    ) -> Mapping[str, Any]:
        return self._edges.results(compute, weights)

    def unwrap(self, binding: Binding[GraphWeight]) -> None:
        # A quantizer may give zeros another value: then the mask stays.
        self._edges.unwrap(
            binding,
            _masked,
            lambda state: _without_mask(state) if state.quantizer is None else [],
        )

    def _begin(self, given: Mapping[str, Mask], weight: GraphWeight) -> Puts:
        state = weight.state
        if state.mask is None:
            state.add_mask()
        mask = given.get(weight.name)
        kept = np.ones(weight.shape, np.bool_) if mask is None else mask.to_numpy()
        return [(state.slot(state.mask), kept)]


class GraphQuantizing(Quantizing[GraphWeight]):
    """Quantized weights of a graph's layers."""

    rounds_when_read = False  # the values are computed when an answer is received
    why_weights_only = (
        "a graph does not distinguish training from inference, so it must be weights only"
    )

    def __init__(self, whole: CompressedGraph, present: dict[str, Any]) -> None:
        self._edges = _GraphEdges(whole)
        self._answers: dict[str, QuantizedTensor] = {}
        self._present = present  # the weights that were read for the next answers

    def install(self, binding: QuantizerBinding[GraphWeight], undo: contextlib.ExitStack) -> None:
        self._edges.install(binding, self._begin, undo)

    def put(self, answers: Mapping[GraphWeight, QuantizedTensor]) -> None:
        puts: Puts = []
        for weight, answer in answers.items():
            self._answers[weight.name] = answer
            state = weight.state
            if not answer.unquantized:
                values, inside = rounding.values_and_inside(self._present[weight.name], answer)
                puts += [(state.slot(state.values), values), (state.slot(state.inside), inside)]
            puts.append((state.slot(state.active), np.array(not answer.unquantized)))
        self._present.clear()
        self._edges.put(answers, puts)

    def put_values(
        self, found: Mapping[str, Any], own: OwnAlgorithm[GraphWeight], weights: Any
    ) -> None:
        puts: Puts = []
        for weight, values, inside in results.values_and_passes(found, own, weights):
            state = weight.state
            puts += [(state.slot(state.values), values), (state.slot(state.inside), inside)]
            puts.append((state.slot(state.active), np.array(True)))
        self._edges.put(found, puts)

    def ranges(
        self, weights: Sequence[GraphWeight], plan: Mapping[str, LayerPlan]
    ) -> Mapping[str, Any]:
        found = dense(weights)
        self._present.clear()
        self._present.update(found)
        axes = {w.name: w.channel_axis if plan[w.name].range_per_channel else None for w in weights}
        return {w.name: rounding.array_range(found[w.name], axes[w.name]) for w in weights}

    def calibration(self, binding: QuantizerBinding[GraphWeight]) -> dict[str, dict[str, Any]]:
        return calibration(self._answers, binding.activation_answers)

    def kept(self, weight: GraphWeight) -> Optional[np.ndarray[Any, Any]]:
        return weight.state.kept()

    def results(
        self, compute: Callable[[GraphWeight], Any], weights: Sequence[GraphWeight]
    ) -> Mapping[str, Any]:
        return self._edges.results(compute, weights)

    def unwrap(self, binding: Binding[GraphWeight]) -> None:
        self._edges.unwrap(binding, self._written, self._nothing)

    def _begin(self, weight: GraphWeight) -> Puts:
        state = weight.state
        if state.values is None:
            state.add_values()
        return [(state.slot(state.active), np.array(False))]

    def _written(self, state: GraphState, dense: Any) -> Any:
        written = state.value(state.values) if state.value(state.active) else dense
        return _masked(state, written) if state.pruner is None else written

    def _nothing(self, state: GraphState) -> Puts:
        inactive = [(state.slot(state.active), np.array(False))]
        return inactive if state.pruner is not None else inactive + _without_mask(state)


def _masked(state: GraphState, weight: Any) -> Any:
    if state.mask is None:
        return weight
    return np.where(state.value(state.mask), weight, np.zeros((), weight.dtype))


def _without_mask(state: GraphState) -> Puts:
    if state.mask is None:
        return []
    return [(state.slot(state.mask), np.ones_like(state.value(state.mask)))]


@contextlib.contextmanager
def _growing(whole: Any) -> Iterator[None]:
    """Inside, the graph is the default one and accepts operations even if it is finalized."""
    finalized = whole.finalized
    if finalized:  # by a MonitoredSession, when it was made
        whole._unsafe_unfinalize()
    try:
        with whole.as_default():
            yield
    finally:
        if finalized:
            whole.finalize()
