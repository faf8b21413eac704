"""Pruners and quantizers that tell from the model whether it is a graph or a Keras model."""

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

    What it does with a graph `nni_compression.tf1.Compressor` says, what with a Keras model
    `nni_compression.keras.Compressor`. `sess` is of a graph; with a Keras model it is left out.
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

    A custom algorithm overrides `calc_mask`, and is computed here; or it names an algorithm that
    the server has: ``algorithm = "random"``. In a graph `calc_mask` gets a symbolic weight and may
    return a symbolic mask, which is kept and evaluated whenever another one would be asked for.
    """


class Quantizer(tf1.Quantizer, Compressor):
    """Base of quantizers.

    A custom algorithm overrides `quantize_weight`, and is computed here, in a graph as `Pruner`
    says; or it names an algorithm that the server has: ``algorithm = "mine"``.
    """


@listed
class LevelPruner(Pruner): ...


@listed
class AGPPruner(Pruner): ...


@listed
class NaiveQuantizer(Quantizer): ...


@listed
class QATQuantizer(Quantizer): ...


@listed
class DoReFaQuantizer(Quantizer): ...
