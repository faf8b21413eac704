"""Pruners and quantizers of both graphs and Keras models."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, Optional

from .. import tf1
from ..adapters.algorithms import listed
from ..adapters.backend import Backend
from ..keras.backend import KerasBackend
from ..keras.compressor import make_callback
from ..tf1.backend import GraphBackend


class Compressor(tf1.Compressor):
    """Base of pruners and quantizers; both of NNI's call forms make one.

    See `nni_compression.tf1.Compressor` for graphs, `nni_compression.keras.Compressor` for Keras
    models. `sess` is only for graphs.
    """

    _backends: ClassVar[tuple[type[Backend[Any]], ...]] = (GraphBackend, KerasBackend)

    def callback(self) -> Any:
        """A callback for `model.fit` that calls `update_epoch` and `step`."""
        return make_callback(self)

    def _using(self, sess: Optional[Any]) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self._bound().backend, GraphBackend):
            return super()._using(sess)
        if sess is not None:
            raise TypeError(f"a Keras model has no session, and this is a {type(sess).__name__}")
        return contextlib.nullcontext()


class Pruner(tf1.Pruner, Compressor):
    """Base of pruners.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``. In a graph `calc_mask` gets a symbolic weight and may
    return a symbolic mask, which is kept and evaluated instead of calling the method again.
    """


class Quantizer(tf1.Quantizer, Compressor):
    """Base of quantizers.

    A custom algorithm overrides `quantize_weight`, which runs in the trainer (in a graph as for
    `Pruner`), or names an algorithm of the server: ``algorithm = "mine"``.
    """


@listed
class LevelPruner(Pruner): ...


@listed
class AGPPruner(Pruner): ...


@listed
class GlobalMagnitudePruner(Pruner): ...


@listed
class LAMPPruner(Pruner): ...


@listed
class MovementPruner(Pruner): ...


@listed
class LotteryTicketPruner(Pruner): ...


@listed
class NMPruner(Pruner): ...


@listed
class RandomPruner(Pruner): ...


@listed
class L1FilterPruner(Pruner): ...


@listed
class L2FilterPruner(Pruner): ...


@listed
class FPGMPruner(Pruner): ...


@listed
class SlimPruner(Pruner): ...


@listed
class TaylorFOWeightFilterPruner(Pruner): ...


@listed
class ActivationAPoZRankFilterPruner(Pruner): ...


@listed
class ActivationMeanRankFilterPruner(Pruner): ...


@listed
class NaiveQuantizer(Quantizer): ...


@listed
class QATQuantizer(Quantizer): ...


@listed
class DoReFaQuantizer(Quantizer): ...
