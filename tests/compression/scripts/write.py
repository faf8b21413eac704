"""Writes the scripts that tests load: write.py FOLDER.

FOLDER/good has those of the examples, FOLDER/misbehaving what loads and then does what no algorithm
should, and the other folders one script each that a server must refuse.
"""

import pathlib
import subprocess
import sys
from typing import Dict, List, NamedTuple  # noqa: UP035

import torch
from torch import Tensor

from nni_compression.script import Layer, Statistic, save

ROOT = pathlib.Path(__file__).resolve().parents[3]


class Options(NamedTuple):
    strength: float = 0.5
    times: int = 2
    quick: bool = False
    mode: str = "plain"
    names: List[str] = ["a", "b"]  # noqa: UP006
    levels: List[float] = [1.0, 2.0]  # noqa: UP006


class NoOptions(NamedTuple):
    unused: int = 0


class Counter(torch.nn.Module):
    """Keeps everything; its state counts the calls."""

    seen: List[int]  # noqa: UP006 - TorchScript 1.13 knows no list[int] here
    names: Dict[str, float]  # noqa: UP006

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.last = ""
        self.seen = []
        self.names = {}

    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: Options, epoch: int, step: int
    ) -> Tensor:
        self.calls += 1
        self.last = layer.name
        self.seen.append(step)
        self.names[layer.name] = float(len(self.seen))
        if len(self.seen) != self.calls or self.names[layer.name] != self.calls:
            raise RuntimeError("state was lost")
        weight.zero_()  # its own copy
        mask = torch.ones_like(weight)
        mask.view(-1)[: self.calls] = 0
        return mask


class Raises(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        if epoch == 0:
            raise ValueError("epoch 0 is too early for " + layer.op_type)
        return weight


class WrongShape(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        return torch.ones(7)


class NanMask(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        return weight / 0 - weight / 0


class ZeroScale(torch.nn.Module):
    @torch.jit.export
    def quantize_weight(
        self, weight: Tensor, layer: Layer, options: NoOptions, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), torch.zeros(1)


class Hangs(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        while epoch >= 0:
            epoch = epoch + 1 - 1
        return weight


class MeasuredLayer(NamedTuple):
    name: str
    weight_gradient: Statistic
    output_histogram: Statistic


class Measured(torch.nn.Module):
    """Keeps what has a positive sum; in epoch 1, says what it knows."""

    def __init__(self):
        super().__init__()
        self.before = -1

    @torch.jit.export
    def on_gradient(
        self, gradient: Tensor, layer: MeasuredLayer, options: NoOptions, epoch: int, step: int
    ) -> None:
        self.before = layer.weight_gradient.count

    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: MeasuredLayer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        total = layer.weight_gradient
        bins = layer.output_histogram
        if total.values.dtype != torch.float64 or total.values.shape != weight.shape:
            raise RuntimeError("not a total")
        if epoch == 1:
            numbers = " ".join([str(int(number)) for number in bins.values])
            raise RuntimeError(
                f"before {self.before} count {total.count} exponent {total.exponent} "
                f"bins {numbers} count {bins.count} exponent {bins.exponent}"
            )
        mask = total.values > 0
        total.values.zero_()  # its own
        return mask


class InputLayer(NamedTuple):
    input_abs_max: Statistic


class Calibrated(torch.nn.Module):
    """A scale by the largest input."""

    @torch.jit.export
    def quantize_weight(
        self, weight: Tensor, layer: InputLayer, options: NoOptions, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        return layer.input_abs_max.values.max().reshape(1), torch.zeros(1)


class Fault(NamedTuple):
    fault: str = "none"


class Together(torch.nn.Module):
    """Removes the first weight in the first epoch, two in the second, over all layers."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    @torch.jit.export
    def calc_masks(
        self, weights: list[Tensor], layers: list[Layer], options: Fault, epoch: int, step: int
    ) -> list[Tensor]:
        self.calls += 1
        masks: list[Tensor] = []
        left = self.calls
        for weight in weights:
            mask = torch.ones_like(weight)
            remove = min(left, mask.numel())
            mask.view(-1)[:remove] = 0
            left -= remove
            weight.zero_()  # its own copy
            masks.append(mask)
        if options.fault == "few":
            masks.pop()
        if options.fault == "shape":
            masks[1] = torch.ones(7)
        if options.fault == "nan":
            masks[1] = masks[1] / 0 - masks[1] / 0
        if options.fault == "raise":
            raise ValueError("no luck with " + layers[1].name)
        return masks


class UnknownStatisticLayer(NamedTuple):
    weight_gradiant: Statistic


class UnknownStatistic(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self,
        weight: Tensor,
        layer: UnknownStatisticLayer,
        options: NoOptions,
        epoch: int,
        step: int,
    ) -> Tensor:
        return weight


class BareStatisticLayer(NamedTuple):
    weight_gradient: Tensor


class BareStatistic(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: BareStatisticLayer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        return weight


class Mean(NamedTuple):
    mean: Tensor


class MeanStatisticLayer(NamedTuple):
    weight_gradient: Mean


class MeanStatistic(torch.nn.Module):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: MeanStatisticLayer, options: NoOptions, epoch: int, step: int
    ) -> Tensor:
        return weight


class TwoMethods(Together):
    @torch.jit.export
    def calc_mask(
        self, weight: Tensor, layer: Layer, options: Fault, epoch: int, step: int
    ) -> Tensor:
        return weight


class JointGradient(Together):
    @torch.jit.export
    def on_gradient(
        self, gradient: Tensor, layer: Layer, options: Fault, epoch: int, step: int
    ) -> None:
        pass


class JointSignature(torch.nn.Module):
    @torch.jit.export
    def calc_masks(
        self, weights: Tensor, layers: Layer, options: NoOptions, epoch: int, step: int
    ) -> list[Tensor]:
        return [weights]


class WrongSignature(torch.nn.Module):
    @torch.jit.export
    def calc_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        return weight


class NoMethod(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight


REFUSED = {
    "unknown_statistic": UnknownStatistic,
    "bare_statistic": BareStatistic,
    "mean_statistic": MeanStatistic,
    "two_methods": TwoMethods,
    "joint_gradient": JointGradient,
    "joint_signature": JointSignature,
}


def main(out):
    for name in ("good", "misbehaving", "signature", "no_method", "built_in_name", *REFUSED):
        (out / name).mkdir(parents=True, exist_ok=True)
    examples = ROOT / "client/python/examples"
    for source, name in (
        ("script_pruner", "moving"),
        ("script_quantizer", "clipped"),
        ("script_global_pruner", "first_order"),
    ):
        # Each in a process of its own, as TorchScript has one Options of a process.
        command = [sys.executable, str(examples / f"{source}.py"), str(out / f"good/{name}.pt")]
        subprocess.run(command, check=True)
    save(
        Counter(),
        str(out / "misbehaving/counter.pt"),
        options={"mode": {"choices": ["plain", "fancy"]}, "levels": {"minimum": 0}},
        example={"names": ["a"]},
        renewed="step",
    )
    save(Raises(), str(out / "misbehaving/raises.pt"))
    save(WrongShape(), str(out / "misbehaving/wrong_shape.pt"))
    save(NanMask(), str(out / "misbehaving/nan_mask.pt"))
    save(ZeroScale(), str(out / "misbehaving/zero_scale.pt"))
    save(Hangs(), str(out / "misbehaving/hangs.pt"))
    save(Measured(), str(out / "misbehaving/measured.pt"), renewed="epoch")
    save(Calibrated(), str(out / "misbehaving/calibrated.pt"))
    save(Together(), str(out / "misbehaving/together.pt"), renewed="epoch")
    for name, module in REFUSED.items():
        save(module(), str(out / name / f"{name}.pt"))
    torch.jit.save(torch.jit.script(WrongSignature()), str(out / "signature/signature.pt"))
    torch.jit.save(torch.jit.script(NoMethod()), str(out / "no_method/no_method.pt"))
    save(Raises(), str(out / "built_in_name/level.pt"))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
