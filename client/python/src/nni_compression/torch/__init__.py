"""Pruning and quantizing PyTorch models through a compression server.

>>> from nni_compression.torch import LevelPruner
>>> config_list = [{"sparsity": 0.8, "op_types": ["default"]}]
>>> pruner = LevelPruner(config_list)
>>> model = pruner(model)

Train as before. Every forward pass sees the compressed weights; the dense ones stay the model's
parameters. `pruner.unwrap()` gives the plain model back with the zeros written in.
"""

from .._renamed import attributes_of
from .compressor import Compressor
from .filter_pruners import (
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    FPGMPruner,
    L1FilterPruner,
    L2FilterPruner,
    RandomPruner,
    SlimPruner,
    TaylorFOWeightFilterPruner,
)
from .modules import unwrap
from .n_m import check_n_m
from .one_line import prune, quantize
from .pruners import (
    AGPPruner,
    GlobalMagnitudePruner,
    LAMPPruner,
    LevelPruner,
    LotteryTicketPruner,
    MovementPruner,
    NMPruner,
    Pruner,
)
from .quantizers import DoReFaQuantizer, NaiveQuantizer, QATQuantizer, Quantizer
from .shrinking.report import KeptFilters, ShrinkReport
from .shrinking.shrink import shrink
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
    "KeptFilters",
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
    "ShrinkReport",
    "SlimPruner",
    "TaylorFOWeightFilterPruner",
    "check_n_m",
    "layers",
    "prune",
    "quantize",
    "shrink",
    "unwrap",
]

__getattr__ = attributes_of("torch")
