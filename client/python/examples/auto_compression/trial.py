"""One trial: fine-tunes the digits network with the compression that a tuner has drawn.

NNI runs this; the other searches call `run_trial`. The server is $NNI_COMPRESSION_SERVER.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from nni_compression.nni import end_with_parent, pruning_choice, quantization_choice
from nni_compression.torch import AGPPruner, DoReFaQuantizer, LevelPruner, QATQuantizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import digits  # noqa: E402

EPOCHS = 6
# A trial that saves ten points of size may lose one point of accuracy.
POINTS_FOR_SIZE = 10.0
COMPRESSORS = {
    compressor.algorithm: compressor
    for compressor in (AGPPruner, LevelPruner, QATQuantizer, DoReFaQuantizer)
}


def baseline(path: Optional[Path]) -> digits.Net:
    """The trained network that all trials start from; trained if there is no file of it."""
    torch.manual_seed(digits.SEED)
    model = digits.Net()
    if path is not None and path.is_file():
        model.load_state_dict(torch.load(path))
    else:
        digits.train(model, digits.load_data()[0], 10)
        if path is not None:
            torch.save(model.state_dict(), path)
    return model


def saved_share(layers: Any) -> float:
    """Share of the weights' 32 bits that pruning and shorter codes save."""
    compressed = [layer for layer in layers if layer.compressed]
    saved = sum(
        layer.elements * (1 - layer.bits / 32 if layer.bits else layer.achieved_sparsity or 0)
        for layer in compressed
    )
    return float(saved / sum(layer.elements for layer in compressed))


def run_trial(
    parameters: Mapping[str, Any],
    model: digits.Net,
    report: Callable[[dict[str, float]], None],
    epochs: int = EPOCHS,
    labels: Optional[Mapping[str, str]] = None,
) -> dict[str, float]:
    """Trains the model with what was drawn.

    Args:
        parameters: of a `pruning_space` or a `quantization_space`.
        model: trained; it is compressed in place.
        report: gets the intermediate result of each epoch.
        epochs: 3 or more.
        labels: of the session, in addition to those of a trial of NNI.

    Returns "accuracy" in percent, "saved" (share of the weights' size) and "default", the score
    that the tuner maximizes.
    """
    if epochs < 3:
        raise ValueError(
            f"epochs is {epochs}; it must be at least 3, or AGP would not get to its end"
        )
    if "prune_method" in parameters:
        # The last epochs train with all that is pruned in the end; pruning takes two at least.
        agp = {"start_epoch": 0, "end_epoch": max(2, epochs - 2)}
        algorithm, config_list = pruning_choice(parameters, options={"agp": agp})
    else:
        algorithm, config_list = quantization_choice(parameters)
    data, test = digits.load_data()
    compressor = COMPRESSORS[algorithm](config_list, labels=labels)
    compressor(model)

    def result() -> dict[str, float]:
        compressor.refresh()
        accuracy = digits.accuracy(model, test)
        saved = saved_share(compressor.session.info().layers)
        score = accuracy + POINTS_FOR_SIZE * saved
        return {"default": score, "accuracy": accuracy, "saved": saved}

    digits.train(model, data, epochs, compressor, 1e-3, lambda epoch: report(result()))
    final = result()
    compressor.report(final)
    compressor.unwrap()
    return final


def main() -> None:
    import nni

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--baseline", type=Path, help="the trained network; made when missing")
    arguments = parser.parse_args()
    end_with_parent()
    digits.use_one_thread()
    parameters = nni.get_next_parameter()
    result = run_trial(
        parameters, baseline(arguments.baseline), report=nni.report_intermediate_result
    )
    nni.report_final_result(result)


if __name__ == "__main__":
    main()
