"""Pruners: some weights are zero in every forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .backend import Backend
from .compressor import Compressor
from .custom import OwnAlgorithm
from .pruning import CustomPrunerBinding, PrunerBinding
from .tracker import Tracker


class Pruner(Compressor):
    """Base of pruners.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``.
    """

    _computes = "calc_mask"
    _custom_algorithm = "custom_pruner"

    def calc_mask(self, weight: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """The mask of a weight: override it for an algorithm of your own.

        Called when a weight, the epoch or the step changed, before the next forward pass.

        Args:
            weight: the dense weight, not to be written to.
            config: the rule of config_list that was selected.
            kwargs: `op`, `op_type`, `op_name`.

        Returns: an array or tensor of the weight's shape: bool, or 0 and 1; 1 = kept.
        """
        raise NotImplementedError(f"{self.algorithm} computes masks on the server")

    @property
    def masks(self) -> dict[str, Any]:
        """Layer name -> bool array of the weight's shape, True = kept: those in force."""
        binding = self._masks()
        if binding.final is not None:
            return dict(binding.final)
        if not binding.backend.asks_ahead:
            self.refresh()
        return self._masks().masks()

    def _masks(self) -> PrunerBinding[Any]:
        binding = self._bound()
        assert isinstance(binding, PrunerBinding)
        return binding

    def _make_binding(
        self, tracker: Tracker, weights: Sequence[Any], backend: Backend[Any]
    ) -> PrunerBinding[Any]:
        if not self._is_custom:
            return PrunerBinding(tracker, weights, backend)
        own: OwnAlgorithm[Any] = OwnAlgorithm(self, self._computes)
        return CustomPrunerBinding(tracker, weights, backend, own)
