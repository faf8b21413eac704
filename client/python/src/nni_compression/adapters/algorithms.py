"""The server's algorithms that have a class in every framework: one table of them.

A framework makes its classes of the table, with `@listed` in front of a subclass of its own
`Pruner` or `Quantizer`, which adds at most what the trainer does for the algorithm:

    @listed
    class LevelPruner(Pruner): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional, TypeVar

from .compressor import Compressor


@dataclass(frozen=True)
class ListedAlgorithm:
    """A line of the table.

    Attributes:
        name: on the server.
        kind: which base its classes have.
        class_name: of its classes.
        nni_name: NNI's spelling of that, where it differs.
        doc: of its classes.
    """

    name: str
    kind: Literal["Pruner", "Quantizer"]
    class_name: str
    nni_name: Optional[str]
    doc: str


ALGORITHMS = (
    ListedAlgorithm(
        "level",
        "Pruner",
        "LevelPruner",
        None,
        """Removes the share `sparsity` of each layer's weights, the smallest ones, once.

    ``config_list = [{"sparsity": 0.8, "op_types": ["default"]}]``
    """,
    ),
    ListedAlgorithm(
        "agp",
        "Pruner",
        "AGPPruner",
        "AGP_Pruner",
        """Removes more and more weights over the epochs (Zhu and Gupta, "To prune, or not to prune:
    exploring the efficacy of pruning for model compression", 2017).

    ``config_list = [{"initial_sparsity": 0, "final_sparsity": 0.8, "start_epoch": 0,
    "end_epoch": 10, "frequency": 1, "op_types": ["default"]}]``; call `update_epoch` in each epoch.
    """,
    ),
    ListedAlgorithm(
        "global_magnitude",
        "Pruner",
        "GlobalMagnitudePruner",
        None,
        """Removes the share `sparsity` of all weights of a rule's layers together, the smallest
    ones, so that each layer loses what is below one threshold (Han et al., "Learning both weights
    and connections for efficient neural networks", 2015).

    ``config_list = [{"sparsity": 0.8, "op_types": ["default"]}]``
    """,
    ),
    ListedAlgorithm(
        "lamp",
        "Pruner",
        "LAMPPruner",
        None,
        """Removes the share `sparsity` of all weights of a rule's layers together, those that
    distort their layer's output least (Lee et al., "Layer-adaptive sparsity for the magnitude-based
    pruning", 2021). Every layer that has a weight other than zero keeps at least one.

    ``config_list = [{"sparsity": 0.8, "op_types": ["default"]}]``
    """,
    ),
    ListedAlgorithm(
        "movement",
        "Pruner",
        "MovementPruner",
        None,
        """Removes more and more weights over the steps, those that training moves towards zero
    (Sanh et al., "Movement pruning: adaptive sparsity by fine-tuning", 2020).

    ``config_list = [{"final_sparsity": 0.8, "schedule_unit": "step", "end_step": 1000,
    "op_types": ["default"]}]``; call `step` after each step of the optimizer. PyTorch only:
    elsewhere compressing a model is an InvalidArgumentError.
    """,
    ),
    ListedAlgorithm(
        "lottery_ticket",
        "Pruner",
        "LotteryTicketPruner",
        None,
        """Removes weights in rounds, between which the trainer sets the others back to where they
    started (Frankle and Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural
    networks", 2019).

    ``config_list = [{"sparsity": 0.8, "rounds": 4, "frequency": 10, "op_types": ["default"]}]``: a
    round is `frequency` epochs. Call `update_epoch` in each epoch.
    """,
    ),
    ListedAlgorithm(
        "n_m",
        "Pruner",
        "NMPruner",
        None,
        """Keeps the `n` largest of `m` consecutive input channels of each layer, once, which sparse
    tensor cores use (Mishra et al., "Accelerating sparse deep neural networks", 2021).

    ``config_list = [{"n": 2, "m": 4, "op_types": ["default"]}]``. A layer with fewer than `m` input
    channels is left out with a warning.
    """,
    ),
    ListedAlgorithm(
        "random",
        "Pruner",
        "RandomPruner",
        None,
        """Removes the share `sparsity` of each layer's weights at random, once: what another pruner
    has to be better than. The same `seed` gives the same masks.

    ``config_list = [{"sparsity": 0.8, "seed": 0, "op_types": ["default"]}]``
    """,
    ),
    ListedAlgorithm(
        "l1_filter",
        "Pruner",
        "L1FilterPruner",
        None,
        """Removes the share `sparsity` of each layer's filters, those with the smallest sums of
    magnitudes (Li et al., "Pruning filters for efficient ConvNets", 2017).

    ``config_list = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]``
    """,
    ),
    ListedAlgorithm(
        "l2_filter",
        "Pruner",
        "L2FilterPruner",
        None,
        """Removes the share `sparsity` of each layer's filters, those with the smallest L2 norms.

    ``config_list = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]``
    """,
    ),
    ListedAlgorithm(
        "fpgm",
        "Pruner",
        "FPGMPruner",
        None,
        """Removes the share `sparsity` of each layer's filters, those closest to all others (He et
    al., "Filter pruning via geometric median for deep convolutional neural networks acceleration",
    2019).

    ``config_list = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]``
    """,
    ),
    ListedAlgorithm(
        "slim",
        "Pruner",
        "SlimPruner",
        None,
        """Removes the share `sparsity` of the filters of all layers of a rule together, those with
    the smallest scale in the normalization that follows (Liu et al., "Learning efficient
    convolutional networks through network slimming", 2017).

    ``config_list = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]``, or "BatchNorm2d" for masks of the
    scales themselves. Convolutions in PyTorch only: elsewhere compressing a model is an
    InvalidArgumentError.
    """,
    ),
    ListedAlgorithm(
        "taylor",
        "Pruner",
        "TaylorFOWeightFilterPruner",
        None,
        """Removes the share `sparsity` of each layer's filters, those whose weights change the loss
    least, to the first order (Molchanov et al., "Importance estimation for neural network pruning",
    2019).

    ``config_list = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]``; call `step` after some steps of
    the optimizer. PyTorch only: elsewhere compressing a model is an InvalidArgumentError.
    """,
    ),
    ListedAlgorithm(
        "apoz",
        "Pruner",
        "ActivationAPoZRankFilterPruner",
        None,
        """Removes the share `sparsity` of each layer's filters, those whose outputs are most often
    zero after the `activation` (Hu et al., "Network trimming: a data-driven neuron pruning approach
    towards efficient deep architectures", 2016).

    ``config_list = [{"sparsity": 0.5, "activation": "relu", "op_types": ["Conv2d"]}]``; call `step`
    after some forward passes. PyTorch only: elsewhere compressing a model is an
    InvalidArgumentError.
    """,
    ),
    ListedAlgorithm(
        "mean_activation",
        "Pruner",
        "ActivationMeanRankFilterPruner",
        None,
        """Removes the share `sparsity` of each layer's filters, those whose outputs have the
    smallest mean after the `activation` (Molchanov et al., "Pruning convolutional neural networks
    for resource efficient inference", 2017).

    ``config_list = [{"sparsity": 0.5, "activation": "relu", "op_types": ["Conv2d"]}]``; call `step`
    after some forward passes. PyTorch only: elsewhere compressing a model is an
    InvalidArgumentError.
    """,
    ),
    ListedAlgorithm(
        "naive",
        "Quantizer",
        "NaiveQuantizer",
        None,
        """Eight bits with a scale that only grows.

    ``config_list = [{"op_types": ["default"]}]``
    """,
    ),
    ListedAlgorithm(
        "qat",
        "Quantizer",
        "QATQuantizer",
        "QAT_Quantizer",
        """Quantization-aware training (Jacob et al., "Quantization and training of neural networks
    for efficient integer-arithmetic-only inference", 2018).

    ``config_list = [{"quant_types": ["weight", "output"], "quant_bits": {"weight": 8, "output": 8},
    "quant_start_step": 0, "op_types": ["default"]}]``; call `step` after each minibatch when
    `quant_start_step` is set, or outputs or inputs are quantized: their ranges, two numbers for
    each, are sent to the server then, in one call for all layers, and its answer holds for the
    minibatches after that. In `eval()` mode, and in inference, no range is observed. In PyTorch,
    where `torch.distributed` is initialized, every rank has to call `step`: they reduce their
    ranges among themselves. Graphs of TensorFlow 1 quantize weights only.
    """,
    ),
    ListedAlgorithm(
        "dorefa",
        "Quantizer",
        "DoReFaQuantizer",
        None,
        """Low bit widths (Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural
    networks with low bitwidth gradients", 2016).

    ``config_list = [{"quant_bits": 4, "op_types": ["default"]}]``
    """,
    ),
)

_BY_CLASS = {algorithm.class_name: algorithm for algorithm in ALGORITHMS}

C = TypeVar("C", bound=type[Compressor])


def listed(cls: C) -> C:
    """Sets a class's algorithm and docstring, found in the table by the class's name."""
    found = _BY_CLASS[cls.__name__]
    made: Any = cls
    made.algorithm, made.__doc__ = found.name, found.doc
    return cls
