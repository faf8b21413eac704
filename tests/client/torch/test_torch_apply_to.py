"""`apply_to`: averages, teachers and copies with the masks of the model."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import AGPPruner, LevelPruner, QATQuantizer, Quantizer, unwrap
from torch_helpers import AGP, COMPRESSED, LEVEL, Net, dense, images, train_step

OUTPUTS = [{"quant_types": ["weight", "input", "output"], "op_types": ["default"]}]


def timm_average(version: str) -> Callable[[nn.Module], nn.Module]:
    def make(model: nn.Module) -> nn.Module:
        timm = pytest.importorskip("timm")
        average: nn.Module = getattr(timm.utils, f"ModelEma{version}")(model, decay=0.5)
        return average

    return make


COPIES = {
    "deepcopy": copy.deepcopy,
    "other": lambda model: Net(seed=9),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "timm-v2": timm_average("V2"),
    "timm-v3": timm_average("V3"),
    "parallel": lambda model: nn.DataParallel(copy.deepcopy(model)),
}


def net_of(model: nn.Module) -> Any:
    return model if isinstance(model, Net) else model.module


def assert_masked(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Whether a model computes with its own weights and these masks."""
    expected = copy.deepcopy(net_of(model))
    unwrap(expected)
    for name, mask in masks.items():
        own = dense(getattr(net_of(model), name))
        assert torch.equal(getattr(net_of(model), name).weight, own * mask)
        getattr(expected, name).weight.data = own.detach() * mask
        assert not mask.all()
    assert torch.equal(net_of(model).eval()(images()), expected.eval()(images()))


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_has_the_masks_of_today_and_the_later_ones(
    client: nc.Client, kind: str, made: str
) -> None:
    pruner = AGPPruner(AGP, client=client)
    model = Net()
    copied = COPIES[kind](model) if made == "before" else None
    pruner(model)
    copied = copied if copied is not None else COPIES[kind](model)
    pruner.update_epoch(3)
    assert pruner.apply_to(copied) is copied
    first = pruner.masks
    assert_masked(copied, first)
    for epoch in (6, 9):
        pruner.update_epoch(epoch)
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert_masked(copied, pruner.masks)
    assert (pruner.masks["fc1"] != first["fc1"]).any()
    pruner.apply_to(copied)
    assert_masked(copied, pruner.masks)


def test_an_average_of_the_plain_model_is_pruned_as_it_is_updated(client: nc.Client) -> None:
    model = Net()
    average = torch.optim.swa_utils.AveragedModel(model)
    pruner = AGPPruner(AGP, client=client)
    pruner(model)
    pruner.apply_to(average)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(10):
        pruner.update_epoch(epoch)
        train_step(model, optimizer, epoch)
        average.update_parameters(model)
    model(images())
    assert not torch.equal(dense(average.module.fc1), dense(model.fc1))
    assert_masked(average, pruner.masks)
    pruner.unwrap()
    output = average.module.eval()(images())
    plain = unwrap(average.module)
    assert type(plain.fc1) is nn.Linear
    assert torch.equal(plain(images()), output)


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_a_copy_is_quantized_as_its_model_is(client: nc.Client, transfer: Any) -> None:
    quantizer = QATQuantizer(OUTPUTS, client=client, transfer=transfer)
    model, copied = Net(), Net(seed=0)
    quantizer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer.apply_to(copied)
    for step in range(2):
        train_step(model, optimizer, step)
        quantizer.step()
    model.eval()(images())
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied.eval()(images()), model.eval()(images()))
    assert not torch.equal(copied(images()), unwrap_without(copied)(images()))
    copied.train()(100 * images())  # observes nothing
    before = quantizer.calibration["fc1"]["output_range"]
    quantizer.step()
    assert quantizer.calibration["fc1"]["output_range"] == before


def unwrap_without(model: Net) -> Net:
    plain = Net()
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def test_a_copy_has_the_answers_of_a_pruner_and_of_a_quantizer(client: nc.Client) -> None:
    model, copied = Net(), Net(seed=4)
    quantizer = QATQuantizer([{"op_names": ["fc1", "fc2"]}], client=client)
    pruner = LevelPruner([{"op_names": ["conv1", "fc1"], "sparsity": 0.5}], client=client)
    quantizer(model), pruner(model)
    for compressor in (pruner, quantizer):
        compressor.apply_to(copied)
    copied.load_state_dict(model.state_dict())
    for name in COMPRESSED:
        assert torch.equal(getattr(copied, name).weight, getattr(model, name).weight)
    assert len(copied.fc2.weight.unique()) <= 256
    assert int((copied.fc1.weight == 0).sum()) >= copied.fc1.weight.numel() // 2


def test_tied_weights_of_a_copy_are_compressed_wherever_they_are(client: nc.Client) -> None:
    def tied(together: bool) -> nn.Sequential:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        if together:
            model[1].weight = model[0].weight
        return model

    pruner = LevelPruner(LEVEL, client=client)
    pruner(tied(True))
    for together in (True, False):
        copied = tied(together)
        pruner.apply_to(copied)
        for layer in copied:
            assert torch.equal(layer.weight, dense(layer) * pruner.masks["0"])


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(32, 11)


class Without(Net):
    def __init__(self) -> None:
        super().__init__()
        del self.fc1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Without, "the Without lacks 1 of the 4 compressed layers: fc1; nothing was applied"),
        (Wider, r"layer 'fc2' has shape \[10, 32\], and that of the copy \[11, 32\]"),
        (lambda: nn.Sequential(Net()), "the Sequential lacks 4 of the 4 compressed layers"),
    ],
)
def test_a_copy_that_does_not_fit_is_refused_and_unchanged(
    client: nc.Client, other: Callable[[], nn.Module], said: str
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(Net())
    copied = other()
    classes = [type(module) for module in copied.modules()]
    with pytest.raises(nc.InvalidArgumentError, match=said):
        pruner.apply_to(copied)
    assert [type(module) for module in copied.modules()] == classes


def test_a_compressed_model_is_not_a_copy(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    for bound in (model, AGPPruner(AGP, client=client)(Net())):
        with pytest.raises(nc.InvalidArgumentError, match="layer 'conv1' is bound to a session"):
            pruner.apply_to(bound)
    with pytest.raises(TypeError, match="copy is a dict; it must be a torch.nn.Module"):
        pruner.apply_to({})
    pruner.unwrap()
    with pytest.raises(RuntimeError, match="has restored the plain model"):
        pruner.apply_to(Net())


def test_values_of_a_custom_algorithm_are_for_one_model(client: nc.Client) -> None:
    class Signs(Quantizer):
        def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
            return weight.sign()

    quantizer = Signs([{"op_types": ["default"]}], client=client)
    quantizer(Net())
    with pytest.raises(nc.InvalidArgumentError, match="computed by a custom algorithm"):
        quantizer.apply_to(Net())
