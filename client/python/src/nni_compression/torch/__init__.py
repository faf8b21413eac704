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
from .modules import unwrap
from .one_line import prune, quantize
from .pruners import (
    AGPPruner,
    GlobalMagnitudePruner,
    LAMPPruner,
    LevelPruner,
    LotteryTicketPruner,
    MovementPruner,
    Pruner,
    RandomPruner,
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
    "Compressor",
    "DoReFaQuantizer",
    "GlobalMagnitudePruner",
    "KeptFilters",
    "LAMPPruner",
    "LevelPruner",
    "LotteryTicketPruner",
    "MovementPruner",
    "NaiveQuantizer",
    "Pruner",
    "QATQuantizer",
    "QAT_Quantizer",
    "Quantizer",
    "RandomPruner",
    "ShrinkReport",
    "layers",
    "prune",
    "quantize",
    "shrink",
    "unwrap",
]

__getattr__ = attributes_of("torch")
