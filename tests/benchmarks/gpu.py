"""An epoch of AGP on a network of ResNet-50's size whose weights are on a CUDA device.

Prints a table, and fails unless the masks by histograms are those by weights, bit for bit.
"""

from __future__ import annotations

import torch

import nni_compression as nc
import peers
from agp_epoch import EPOCHS, LINK, RULE, Trainer, network
from harness import Benchmark, Line, lines, show
from nni_compression.torch import AGPPruner


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}\n")
    rules = [{"op_names": [str(number) for number in range(len(network()))], **RULE}]
    times: dict[str, list[float]] = {}
    traffic: dict[str, list[float]] = {}
    with (
        nc.Client() as client,
        peers.running("relay", peers.SERVICE, str(LINK)) as port,
        nc.Client(f"127.0.0.1:{port}") as far,
    ):
        trainers = {
            f"{what}{place}": Trainer(AGPPruner(rules, client=to, transfer=what), device="cuda")
            for what in ("weights", "histogram")
            for place, to in (("", client), (", 1 Gbit/s", far))
        }
        for number in range(EPOCHS + 1):
            for name, trainer in trainers.items():
                before = trainer.traffic()
                taken = trainer.epoch(number)
                if number > 0:  # epoch 0 prunes nothing, and the first call initializes CUDA
                    times.setdefault(name, []).append(taken)
                    traffic.setdefault(name, []).append((trainer.traffic() - before) / 1e6)
            masks = [trainer.pruner.masks for trainer in trainers.values()]
            for other in masks[1:]:
                assert all(torch.equal(mask, other[name]) for name, mask in masks[0].items())
        for trainer in trainers.values():
            trainer.pruner.close()
    title = "An epoch of AGP, ResNet-50, weights on the device"
    print(show(Benchmark(title, lines(times, "weights"))))
    carried = [Line(name, "MB", values) for name, values in traffic.items()]
    print(show(Benchmark("What travels in both directions", carried)))


if __name__ == "__main__":
    main()
