"""Pruners: some weights are zero in every forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .backend import Backend
from .compressor import Compressor
from .custom import OwnAlgorithm
from .pruning import CustomPrunerBinding, PrunerBinding, Transfer
from .tracker import Tracker
from .transfer import check, shown


@shown
class Pruner(Compressor):
    """Base of pruners.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``.
    """

    _computes = "calc_mask"
    _custom_algorithm = "custom_pruner"

    def __init__(self, *args: Any, transfer: Optional[Transfer] = None, **kwargs: Any) -> None:
        """Makes a pruner.

        Args:
            transfer: what is sent when masks are stale. "weights": the client sends the weights and
                receives the masks. "histogram": it counts the magnitudes of a layer's weights,
                sends the histogram, a few kilobytes in one call for each 16 bits of the weights'
                type, receives a threshold, and makes the mask, which is the same bit for bit. The
                server has no mask then until an `export` sends it. By default "histogram" for
                weights on a CUDA device or sharded by `fully_shard`, and "weights" for others.
                Layers of algorithms that need the weights (those whose plan has no `takes_counts`)
                are sent as weights in any case. All ranks of a training have to have the same.

        The other arguments are those of `Compressor`.
        """
        super().__init__(*args, **kwargs)
        check(transfer, Transfer)
        self.transfer = transfer

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
            return PrunerBinding(tracker, weights, backend, self.transfer)
        own: OwnAlgorithm[Any] = OwnAlgorithm(self, self._computes)
        return CustomPrunerBinding(tracker, weights, backend, self.transfer, own)
