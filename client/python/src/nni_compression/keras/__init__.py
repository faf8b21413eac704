"""Pruning and quantizing Keras models of TensorFlow through a compression server.

>>> from nni_compression.keras import LevelPruner
>>> config_list = [{"sparsity": 0.8, "op_types": ["default"]}]
>>> pruner = LevelPruner(config_list)
>>> model = pruner(model)
>>> model.fit(x, y, callbacks=[pruner.callback()])

Every forward pass sees the compressed weights; the dense ones stay the model's variables.
`pruner.unwrap()` gives the plain model back with the zeros written in.
"""

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
from .weights import layers

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
