"""Pruning and quantizing graphs of TensorFlow 1 through a compression server.

>>> from nni_compression.tf1 import LevelPruner
>>> config_list = [{"sparsity": 0.8, "op_types": ["default"]}]
>>> pruner = LevelPruner(config_list)
>>> pruner(tf.compat.v1.get_default_graph())
>>> pruner.update_epoch(epoch, sess)

Every forward pass sees the compressed weights; the dense ones stay the graph's variables.
`pruner.unwrap(sess)` gives the plain graph back with the zeros written in.

Frozen: maintained, without new features.
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
from .graph import layers

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
