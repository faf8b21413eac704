"""Masks: which layers need one, and how it is applied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from ..values.masks import Mask
from . import custom
from .backend import Backend, W
from .binding import Binding
from .tracker import Tracker, split_results


class PrunerBinding(Binding[W]):
    """Masks: requested when the session reports them stale, not when weights change."""

    role = "pruner"

    def __init__(
        self,
        tracker: Tracker,
        weights: Sequence[W],
        backend: Backend[W],
        own: Optional[custom.OwnAlgorithm[W]] = None,
    ) -> None:
        super().__init__(tracker, weights, backend, own)
        self._pruning = backend.pruning(own)
        self._given: dict[str, Mask] = {}  # what `install` puts in force
        self._masked: set[str] = set()  # a layer may be answered without a mask

    def masks(self) -> dict[str, Any]:
        """Layer name -> the mask in force, as the framework has it."""
        return {name: self._pruning.mask(weight) for name, weight in self.weights.items()}

    def sparsities(self) -> dict[str, float]:
        if self.final is not None:
            kept = {n: self.backend.to_numpy(mask) for n, mask in self.final.items()}
            return {name: 1 - float(mask.mean()) for name, mask in kept.items()}
        return dict(self._pruning.sparsities(list(self.weights.values())))

    def packed_masks(self) -> dict[str, Mask]:
        if self.final is None:
            masked = {n: w for n, w in self.weights.items() if n in self._masked}
            masks = {name: self._pruning.mask(weight) for name, weight in masked.items()}
        else:
            masks = self.final
        return {n: Mask.from_numpy(self.backend.to_numpy(mask)) for n, mask in masks.items()}

    def start_from(self, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]]) -> None:
        self._given = {name: mask for name, mask in masks.items() if name in self.weights}
        self._masked.update(self._given)
        for name in self._given:
            self.tracker.answered(name, None)
        self.tracker.mark_stale(self.tracker.session.stale)

    def keep_results(self) -> None:
        self.final = self.masks()

    def unwrap(self) -> None:
        self._pruning.unwrap(self)

    def _install(self, undo: contextlib.ExitStack) -> None:
        given, self._given = self._given, {}
        self._pruning.install(self, given, undo)

    def _ask(self, weights: Sequence[W]) -> None:
        arrays = self.backend.read(weights)
        masks, error = split_results(lambda: self.tracker.session.calc_mask(arrays))
        self._put(masks)
        self._raise(error)

    def _put(self, masks: Mapping[str, Mask]) -> None:
        known = {name: mask for name, mask in masks.items() if name in self.weights}
        self._pruning.put({self.weights[name]: mask for name, mask in known.items()})
        self._masked.update(known)
        for name in known:
            self.tracker.answered(name, None)


class CustomPrunerBinding(PrunerBinding[W]):
    """Masks that are computed in the trainer, when a weight, the epoch or the step changed.

    Masks that have changed are sent to the session.
    """

    def _ask(self, weights: Sequence[W]) -> None:
        assert self.own is not None
        tokens = self.backend.tokens(weights)
        results = self._pruning.results(self.own.compute, weights)
        masks = {weight.name: self._mask_of(weight, results[weight.name]) for weight in weights}
        before = self.packed_masks()
        changed = {
            name: mask
            for name, mask in masks.items()
            if name not in before or not np.array_equal(before[name].bits, mask.bits)
        }
        answers, error = split_results(lambda: self.tracker.session.calc_mask(changed))
        self._put(answers)
        for name, token in tokens.items():
            if name in answers or name not in changed:
                self.tracker.answered(name, token)
        self._raise(error)

    def _mask_of(self, weight: W, result: Any) -> Mask:
        assert self.own is not None
        array = self._pruning.to_array(result)
        return custom.to_mask(array, weight.layer().shape, self.own.where(weight))
