"""Pruning and quantizing TensorFlow's Keras models and graphs through a compression server.

The names of `nni_compression.keras` and `nni_compression.tf1` combined: the classes accept both
kinds of models.

>>> from nni_compression.tensorflow import LevelPruner
>>> config_list = [{"sparsity": 0.8, "op_types": ["default"]}]
>>> pruner = LevelPruner(config_list)
>>> model = pruner(model)
>>> model.fit(x, y, callbacks=[pruner.callback()])

or, in graph mode,

>>> pruner(tf.compat.v1.get_default_graph())
>>> pruner.update_epoch(epoch, sess)

Every forward pass sees the compressed weights; the dense ones stay the model's variables.
`pruner.unwrap()` gives the plain model back with the zeros written in.
"""

from __future__ import annotations

from typing import Any

from .. import keras as _keras
from .. import tf1 as _tf1
from .._renamed import attributes_of
from ..tf1.backend import GraphBackend
from ..values.plan import Layer
from .compressor import (
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    AGPPruner,
    Compressor,
    DoReFaQuantizer,
    FPGMPruner,
    GlobalMagnitudePruner,
    L1FilterPruner,
    L2FilterPruner,
    LAMPPruner,
    LevelPruner,
    LotteryTicketPruner,
    MovementPruner,
    NaiveQuantizer,
    NMPruner,
    Pruner,
    QATQuantizer,
    Quantizer,
    RandomPruner,
    SlimPruner,
    TaylorFOWeightFilterPruner,
)

# NNI's spellings.
AGP_Pruner = AGPPruner
QAT_Quantizer = QATQuantizer

__all__ = [
    "AGPPruner",
    "AGP_Pruner",
    "ActivationAPoZRankFilterPruner",
    "ActivationMeanRankFilterPruner",
    "Compressor",
    "DoReFaQuantizer",
    "FPGMPruner",
    "GlobalMagnitudePruner",
    "L1FilterPruner",
    "L2FilterPruner",
    "LAMPPruner",
    "LevelPruner",
    "LotteryTicketPruner",
    "MovementPruner",
    "NMPruner",
    "NaiveQuantizer",
    "Pruner",
    "QATQuantizer",
    "QAT_Quantizer",
    "Quantizer",
    "RandomPruner",
    "SlimPruner",
    "TaylorFOWeightFilterPruner",
    "layers",
]

__getattr__ = attributes_of("tensorflow")


def layers(model: Any) -> list[Layer]:
    """The model's layers as a session is told of them: for search spaces, or to see their names."""
    return _tf1.layers(model) if GraphBackend.accepts(model) else _keras.layers(model)
