"""Masks: which layers need one, and how it is applied."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Union

import numpy as np

from ..errors import CompressionError, InvalidArgumentError, UnimplementedError
from ..values.magnitudes import Threshold
from ..values.masks import Mask
from ..values.plan import Plan
from . import custom
from .backend import Backend, W
from .binding import Binding
from .clocks import Clocks
from .tracker import IsMask, Tracker, split_results

Transfer = Literal["weights", "histogram"]


class PrunerBinding(Binding[W]):
    """Masks: requested when the session reports them stale, not when weights change.

    Args:
        transfer: what is sent then, of layers that take counts; None: what suits their device.
    """

    role = "pruner"

    def __init__(
        self,
        tracker: Tracker,
        weights: Sequence[W],
        backend: Backend[W],
        transfer: Optional[Transfer],
        own: Optional[custom.OwnAlgorithm[W]] = None,
    ) -> None:
        super().__init__(tracker, weights, backend, own)
        self.transfer = transfer
        self._pruning = backend.pruning(own)
        if transfer == "histogram":
            _check_counts(tracker.plan, self._pruning.why_weights_only)
        if self._pruning.why_counts_only:
            _check_only_counts(tracker.plan, transfer, self._pruning.why_counts_only)
        self._given: dict[str, Mask] = {}  # what `install` puts in force
        self._final_sparsities: dict[str, float] = {}  # of `final`
        self._masked: set[str] = set()  # a layer may be answered without a mask
        self._lacking: set[str] = set()  # those whose masks the session does not have
        self._unsettled: set[str] = set()  # those that it may have decided about, unheard

    def masks(self) -> dict[str, Any]:
        """Layer name -> the mask in force, as the framework has it."""
        return {name: self._pruning.mask(weight) for name, weight in self.weights.items()}

    def sparsities(self) -> dict[str, float]:
        if self.final is not None:
            return dict(self._final_sparsities)
        return dict(self._pruning.sparsities(list(self.weights.values())))

    def packed_masks(self) -> dict[str, Mask]:
        if self.final is None:
            return {name: self._packed(name) for name in self.weights if name in self._masked}
        return {n: Mask.from_numpy(self.backend.to_numpy(mask)) for n, mask in self.final.items()}

    def start_from(
        self, masks: Mapping[str, Mask], state: Optional[Mapping[str, Any]], *, joined: bool
    ) -> None:
        self._given = {name: mask for name, mask in masks.items() if name in self.weights}
        self._masked.update(self._given)
        if not joined:
            self._answered(self._given)
            self.tracker.mark_stale(self.tracker.session.stale)

    def give_masks(self) -> None:
        given = {name: self._packed(name) for name in self.weights if name in self._lacking}
        self._answered(self.tracker.session.set_mask(given))

    def keep_results(self) -> None:
        self._final_sparsities = self.sparsities()
        self.final = self.masks()

    def unwrap(self) -> None:
        self._pruning.unwrap(self)

    def _install(self, undo: contextlib.ExitStack) -> None:
        given, self._given = self._given, {}
        self._pruning.install(self, given, undo)

    def _clocks(self) -> Clocks:
        plan = self.tracker.plan
        return Clocks(
            self.tracker, counts_steps=plan.needs_step, counts_epochs=plan.needs_update_epoch
        )

    def _ask(self, weights: Sequence[W]) -> None:
        session, counted = self.tracker.session, self._counted()
        arrays = self.backend.read([weight for weight in weights if weight.name not in counted])
        masks, error = split_results(lambda: session.calc_mask(arrays))
        self._put(masks)
        other_error = self._count([weight for weight in weights if weight.name in counted])
        self._raise(error)
        self._raise(other_error)

    def _count(self, weights: Sequence[W]) -> Optional[CompressionError]:
        """Puts the masks that histograms give in force; returns the errors of single layers."""
        session, names = self.tracker.session, {weight.name for weight in weights}
        # What the session has of these is a threshold that never got here, and the weight, or the
        # epoch, may be another one now.
        session.set_mask({name: self._packed(name) for name in sorted(self._unsettled & names)})
        counters = self._pruning.counters(weights)
        self._unsettled |= names
        answers, error = split_results(lambda: session.calc_thresholds(counters))
        self._unsettled -= names - answers.keys()  # these are as they were
        self._put({name: found for name, found in answers.items() if isinstance(found, Mask)})
        thresholds = {n: found for n, found in answers.items() if isinstance(found, Threshold)}
        self._pruning.put_thresholds({self.weights[name]: t for name, t in thresholds.items()})
        self._answered(thresholds)
        return error

    def _put(self, masks: Mapping[str, Mask]) -> None:
        known = {name: mask for name, mask in masks.items() if name in self.weights}
        self._pruning.put({self.weights[name]: mask for name, mask in known.items()})
        self._answered(known)

    def _counted(self) -> set[str]:
        """The layers that are counted, rather than sent."""
        plan = self.tracker.plan
        taking = {name for name in self.weights if plan.layers[name].takes_counts}
        if self.transfer is not None:
            return taking if self.transfer == "histogram" else set()
        # A layer whose mask the session does not have can only be counted again, and all layers of
        # a joint rule have to be sent alike.
        found = {
            name
            for name in taking
            if name in self._lacking | self._unsettled
            or self._pruning.counts_by_default(self.weights[name])
        }
        rules = {plan.joint[name] for name in found if name in plan.joint}
        return found | {name for name in taking if plan.joint.get(name) in rules}

    def _answered(self, answers: Mapping[str, Union[Mask, Threshold]]) -> None:
        """Records what is in force now."""
        for name, answer in answers.items():
            self._masked.add(name)
            self._unsettled.discard(name)
            if isinstance(answer, Threshold):
                self._lacking.add(name)
            else:
                self._lacking.discard(name)
            self.tracker.answered(name, None, is_mask=self._is_mask(name, answer))

    def _is_mask(self, name: str, answer: Union[Mask, Threshold]) -> Optional[IsMask]:
        checksum = answer.checksum
        if isinstance(answer, Mask):
            return lambda other: other == checksum
        # The session has the mask itself as soon as a rank has exported.
        packed = functools.cache(lambda: self._packed(name).checksum)
        return lambda other: other == checksum or other == packed()

    def _packed(self, name: str) -> Mask:
        """The mask in force."""
        return Mask.from_numpy(self.backend.to_numpy(self._pruning.mask(self.weights[name])))


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

    def _clocks(self) -> Clocks:
        return Binding._clocks(self)

    def _is_mask(self, name: str, answer: Union[Mask, Threshold]) -> Optional[IsMask]:
        return None

    def _mask_of(self, weight: W, result: Any) -> Mask:
        assert self.own is not None
        array = self._pruning.to_array(result)
        return custom.to_mask(array, weight.layer().shape, self.own.where(weight))


def _check_counts(plan: Plan, why_weights_only: str) -> None:
    """Raises InvalidArgumentError for `transfer="histogram"` where nothing could be counted."""
    layers = [plan.layers[name] for name in plan.compressed]
    if not why_weights_only and layers and not any(layer.takes_counts for layer in layers):
        why_weights_only = (
            "the server takes none for these layers, only where level, agp, global_magnitude or "
            'lottery_ticket rank by score "magnitude" with normalize "none"'
        )
    if why_weights_only:
        raise InvalidArgumentError(
            f'transfer is "histogram"; {why_weights_only}; it must be "weights"'
        )


def _check_only_counts(plan: Plan, transfer: Optional[Transfer], why: str) -> None:
    """Raises an error where some weight would have to be sent."""
    if transfer == "weights":
        raise InvalidArgumentError(f'transfer is "weights"; {why}; it must be "histogram"')
    for name in plan.compressed:
        if not plan.layers[name].takes_counts:
            raise UnimplementedError(
                f"the rule of layer {name!r} needs its weight, and {why}: level, agp and "
                'global_magnitude with score "magnitude" and normalize "none" do without'
            )
