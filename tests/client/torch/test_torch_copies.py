"""Copies of a compressed model: snapshots, and averages of its weights."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any, Callable

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import AGPPruner, QATQuantizer, unwrap
from nni_compression.torch import modules as torch_modules
from torch_helpers import AGP, COMPRESSED, Net, dense, images, train_step

OUTPUTS = [{"quant_types": ["weight", "input", "output"], "op_types": ["default"]}]
COMPRESSORS = [(AGPPruner, AGP), (QATQuantizer, OUTPUTS)]


class ByData(nn.Module):
    """An average as many have written it by hand: past autograd."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    def update_parameters(self, model: nn.Module) -> None:
        for mine, other in zip(self.module.parameters(), model.parameters()):
            mine.data.mul_(0.5).add_(other.data, alpha=0.5)


@pytest.fixture(params=["cpu", "device", "channels_last"])
def weights_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where weights are, or how: on a device they give no sample of their elements."""
    if request.param == "device":
        monkeypatch.setattr(torch_modules, "sample_of", lambda weight: None)
    return str(request.param)


def net(weights_are: str) -> Net:
    if weights_are == "channels_last":
        return Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Net()


AVERAGES = [torch.optim.swa_utils.AveragedModel, ByData]


def trained(compressor: Any, model: Net, *averages: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(4):
        compressor.update_epoch(epoch)
        train_step(model, optimizer, epoch)
        compressor.step()
        for average in averages:
            average.update_parameters(model)


@pytest.mark.parametrize("ended", [lambda made: None, lambda made: made.unwrap()], ids=["", "over"])
@pytest.mark.parametrize("make_average", AVERAGES)
def test_an_average_that_was_begun_first_has_the_masks_of_its_model(
    client: nc.Client,
    make_average: Callable[[nn.Module], Any],
    ended: Callable[[Any], None],
    weights_are: str,
) -> None:
    pruner = AGPPruner(AGP, client=client)
    model = pruner(net(weights_are))
    average = make_average(model)
    trained(pruner, model, average)
    masks = pruner.masks
    ended(pruner)
    for name in COMPRESSED:
        weight = getattr(average.module, name).weight
        expected = torch.where(masks[name], dense(getattr(average.module, name)), torch.zeros(()))
        assert torch.equal(weight, expected)
        assert not masks[name].all()
    output = average.module.eval()(images())
    plain = unwrap(average.module)
    assert torch.equal(plain(images()), output)
    assert int((plain.fc1.weight == 0).sum()) == int((~masks["fc1"]).sum())


@pytest.mark.parametrize("make_average", AVERAGES)
def test_an_average_of_a_quantized_model_is_quantized_as_that_is(
    client: nc.Client, make_average: Callable[[nn.Module], Any], weights_are: str
) -> None:
    quantizer = QATQuantizer(OUTPUTS, client=client)
    model = quantizer(net(weights_are))
    average = make_average(model)
    trained(quantizer, model, average)
    model.eval()(images())
    with torch.no_grad():
        for mine, other in zip(average.module.parameters(), model.parameters()):
            mine.copy_(other)
        average.module.bn.load_state_dict(model.bn.state_dict())
    assert torch.equal(average.module.eval()(images()), model(images()))


@pytest.mark.parametrize("reads_meanwhile", [False, True])
def test_an_average_does_not_keep_a_mask_that_was_undone(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch, reads_meanwhile: bool
) -> None:
    pruner = AGPPruner(AGP, client=client)
    model = pruner(Net())
    model(images())
    average = ByData(model)
    state = pruner.state_dict()
    trained(pruner, model, average)
    average.module(images())

    def fail(*args: Any) -> None:
        if reads_meanwhile:
            average.module(images())
        raise RuntimeError("no memory")

    monkeypatch.setattr(pruner._lifecycle, "_installed", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        pruner.load_state_dict(state)
    masks = pruner.masks
    for _ in range(2):
        average.module(images())
        for name in COMPRESSED:
            assert torch.equal(getattr(average.module, name).weight_mask, masks[name])
            assert not masks[name].all()
        average.update_parameters(model)


@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
def test_a_snapshot_stays_what_it_was(
    client: nc.Client, make: Any, config_list: Any, weights_are: str
) -> None:
    compressor = make(config_list, client=client)
    model = compressor(net(weights_are))
    average = ByData(model)
    trained(compressor, model, average)
    model.eval(), average.eval()
    found = [(copy.deepcopy(m), m(images())) for m in (model, average.module)]
    model.train()
    trained(compressor, model, average)
    compressor.update_epoch(9)
    model(images())
    for snapshot, output in found:
        assert torch.equal(snapshot(images()), output)
        assert torch.equal(snapshot.double().float()(images()), output)
    assert not torch.equal(average.module(images()), found[1][1])


def test_a_copy_keeps_neither_the_original_nor_its_session(client: nc.Client) -> None:
    pruner = AGPPruner(AGP, client=client)
    model = pruner(Net())
    model(images())
    copied = copy.deepcopy(model)
    gone = weakref.ref(model.fc1), weakref.ref(pruner)
    del model, pruner
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    copied(images())


def test_a_copy_that_is_compressed_itself_follows_its_own_session(client: nc.Client) -> None:
    pruner = AGPPruner(AGP, client=client)
    model = pruner(Net())
    average = ByData(model)
    own = AGPPruner(AGP, client=client)
    own(average.module)
    trained(pruner, model, average)
    assert own.masks["fc1"].all()
    average.module(images())
    assert not dense(average.module.fc1).eq(0).any()
    assert torch.equal(average.module.fc1.weight, dense(average.module.fc1))


@pytest.mark.parametrize("view", [lambda w: w[:, ::2], lambda w: w[:, :1], lambda w: w.t()[:1]])
def test_a_weight_that_is_a_view_can_be_copied_and_the_copy_follows(
    client: nc.Client, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    weight = view(torch.randn(64, 128, generator=torch.Generator().manual_seed(1)))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    pruner = AGPPruner(AGP, client=client)
    model = pruner(nn.Sequential(layer))
    inputs = torch.ones(2, weight.shape[1])
    average, snapshot = ByData(model), copy.deepcopy(model)
    for epoch in range(4):
        pruner.update_epoch(epoch)
        with torch.no_grad():
            dense(model[0]).mul_(1.5)
        model(inputs)
        average.update_parameters(model)
    average.module(inputs), snapshot(inputs)
    assert torch.equal(average.module[0].weight_mask, model[0].weight_mask)
    assert not model[0].weight_mask.all()
    assert snapshot[0].weight_mask is None or snapshot[0].weight_mask.all()


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with PyTorch 2.0")
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_copies_can_be_run_as_an_ensemble(client: nc.Client, format: torch.memory_format) -> None:
    pruner = AGPPruner(AGP, client=client)
    layer = nn.Conv2d(3, 8, 3)
    model = pruner(nn.Sequential(layer.to(memory_format=format)))  # type: ignore[call-overload]
    inputs = torch.ones(2, 3, 5, 5)
    model(inputs)
    copies = [copy.deepcopy(model) for _ in range(2)]
    pruner.update_epoch(5)
    model(inputs)
    parameters, buffers = torch.func.stack_module_state(copies)

    def run(parameters: Any, buffers: Any) -> Any:
        return torch.func.functional_call(copies[0], (parameters, buffers), (inputs,))

    found = torch.vmap(run)(parameters, buffers)
    for one, other in zip(found, copies):
        torch.testing.assert_close(one, other(inputs))
