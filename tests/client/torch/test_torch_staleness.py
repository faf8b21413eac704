"""When the service is asked: as seldom as possible, and never too seldom."""

from __future__ import annotations

import copy

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
)
from torch_helpers import (
    AGP,
    COMPRESSED,
    DOREFA,
    LEVEL,
    NAIVE,
    QAT,
    Net,
    calls,
    dense,
    images,
    train_step,
)

COMPRESSORS = [
    (LevelPruner, LEVEL),
    (AGPPruner, AGP),
    (QATQuantizer, QAT),
    (NaiveQuantizer, NAIVE),
    (DoReFaQuantizer, DOREFA),
]
everywhere = pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
quantizers = pytest.mark.parametrize(("make", "config_list"), COMPRESSORS[2:])
transfers = pytest.mark.parametrize("transfer", ["weights", "ranges"])


@everywhere
def test_binding_asks_for_nothing_and_the_first_forward_asks_for_all_layers_in_one_stream(
    client, make, config_list
):
    compressor = make(config_list, client=client)
    model = compressor(Net())
    assert calls(compressor) == 0
    model(images())
    assert calls(compressor) == 1
    assert compressor.session.info().layers
    assert not any(layer.stale for layer in compressor.session.info().layers if layer.compressed)


@everywhere
def test_a_forward_with_unchanged_weights_makes_no_call(client, make, config_list):
    compressor = make(config_list, client=client)
    model = compressor(Net())
    model(images())
    made = calls(compressor)
    for _ in range(3):
        model(images()).sum().backward()
        model.eval()(images())
    _ = model.fc1.weight
    _ = list(model.parameters()), model.state_dict()
    assert calls(compressor) == made


@everywhere
def test_the_first_read_of_any_weight_asks_for_all_layers(client, make, config_list):
    compressor = make(config_list, client=client)
    model = compressor(Net())
    _ = model.fc2.weight
    model(images())
    assert calls(compressor) == 1


@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS[:2])
def test_a_pruner_does_not_ask_when_weights_change(client, make, config_list):
    pruner = make(config_list, client=client)
    model = pruner(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        train_step(model, optimizer)
        pruner.step()
    assert calls(pruner) == 1


def test_a_level_pruner_does_not_tell_epochs_that_change_nothing(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    for epoch in range(5):
        pruner.update_epoch(epoch)
        model(images())
    assert calls(pruner) == 1
    assert pruner.epoch == 4


def test_agp_asks_once_for_each_epoch_that_prunes_more(client):
    pruner = AGPPruner(AGP, client=client)
    model = pruner(Net())
    made = []
    for epoch in range(14):
        before = calls(pruner)
        pruner.update_epoch(epoch)
        for _ in range(3):
            model(images())
        made.append(calls(pruner) - before)
    assert made[:8] == [2] * 8
    assert made[10:] == [1] * 4  # the epoch is told, nothing is asked


@quantizers
def test_a_quantizer_that_sends_weights_asks_once_for_each_change(client, make, config_list):
    quantizer = make(config_list, client=client, transfer="weights")
    model = quantizer(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        train_step(model, optimizer)
    model(images())
    assert calls(quantizer) == 5


@quantizers
def test_a_quantizer_that_sends_ranges_sends_them_with_the_step(client, make, config_list):
    quantizer = make(config_list, client=client, transfer="ranges")
    model = quantizer(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        train_step(model, optimizer)
        quantizer.step()
    model(images())
    # One for the first forward, one for each step; DoReFa needs no range after the first.
    assert calls(quantizer) == (1 if make is DoReFaQuantizer else 5)


@quantizers
def test_ranges_are_far_less_to_send_than_weights(client, make, config_list):
    sent = {}
    for transfer in ("weights", "ranges"):
        quantizer = make(config_list, client=client, transfer=transfer)
        model = quantizer(nn.Sequential(nn.Linear(256, 256)))
        model(torch.randn(1, 256))
        sent[transfer] = quantizer.stats.bytes_sent + quantizer.stats.bytes_received
    assert sent["ranges"] < 1000
    assert sent["weights"] > 2 * 4 * 256 * 256


@quantizers
@transfers
def test_only_the_layers_whose_weights_changed_are_sent(client, make, config_list, transfer):
    quantizer = make(config_list, client=client, transfer=transfer)
    model = quantizer(Net())
    model(images())
    expected = {name: getattr(model, name).weight.detach().clone() for name in COMPRESSED}
    before = quantizer.stats.bytes_sent
    with torch.no_grad():
        dense(model.conv1).mul_(2)
    assert not torch.equal(model.conv1.weight, expected["conv1"]) or make is DoReFaQuantizer
    for name in COMPRESSED[1:]:
        assert torch.equal(getattr(model, name).weight, expected[name])
    assert quantizer.stats.bytes_sent - before < 72 * 4 + 300


def changes(model):
    """Every way to change a weight that has ever been seen."""

    def in_place():
        with torch.no_grad():
            dense(model.fc1).mul_(1.5)

    def data_in_place():
        dense(model.fc1).data.mul_(1.5)

    def data_replaced():
        dense(model.fc1).data = dense(model.fc1).data * 1.5

    def numpy_view():
        dense(model.fc1).detach().numpy()[...] *= 1.5

    def replaced():
        model.fc1.weight = nn.Parameter(dense(model.fc1).detach() * 1.5)

    def loaded():
        state = copy.deepcopy(model.state_dict())
        state["fc1.weight"] *= 1.5
        model.load_state_dict(state)

    return [in_place, data_in_place, data_replaced, numpy_view, replaced, loaded]


@quantizers
@transfers
@pytest.mark.parametrize("way", range(6))
def test_every_way_to_change_a_weight_is_noticed(client, make, config_list, transfer, way):
    quantizer = make(config_list, client=client, transfer=transfer)
    model = quantizer(Net())
    model(images())
    for _ in range(3):
        changes(model)[way]()
        fresh = make(config_list, client=client)
        expected = fresh(nn.Sequential(nn.Linear(128, 32)))
        with torch.no_grad():
            dense(expected[0]).copy_(dense(model.fc1))
        assert torch.equal(model.fc1.weight, expected[0].weight)


@pytest.mark.skipif(torch.__version__ < "2", reason="optimizers have hooks since PyTorch 2.0")
def test_a_fused_optimizer_that_leaves_the_version_counter_is_noticed(client):
    quantizer = QATQuantizer(QAT, client=client)
    model = quantizer(Net())
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    train_step(model, optimizer)
    made = calls(quantizer)
    model(images())
    assert calls(quantizer) == made + 1


class SilentOptimizer(torch.optim.Optimizer):
    """Changes one element behind the version counter, as a fused kernel does."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.numel() > 1000:
                    parameter.data.view(-1)[7] = 5.0  # no element that a sample would see


def test_an_optimizer_that_was_given_is_watched_whatever_it_does(client):
    model = Net()
    optimizer = SilentOptimizer(model.parameters())
    quantizer = QATQuantizer(model, QAT, optimizer, client=client)
    quantizer.compress()
    before = model.fc1.weight.detach().clone()
    optimizer.step()
    assert model.fc1.weight.max() > 4.9
    assert not torch.equal(model.fc1.weight, before)
    quantizer.unwrap()


def test_learning_rate_schedulers_work_with_a_watched_optimizer(client):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    early = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    quantizer = QATQuantizer(model, QAT, optimizer, client=client)
    quantizer.compress()
    late = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train_step(model, optimizer)
    early.step()
    late.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    quantizer.unwrap()
    train_step(model, optimizer)


@quantizers
@transfers
def test_refresh_and_close_stop_nothing_but_calls(client, make, config_list, transfer):
    quantizer = make(config_list, client=client, transfer=transfer)
    model = quantizer(Net())
    quantizer.refresh()
    assert calls(quantizer) == 1
    output = model.eval()(images())
    quantizer.close()
    assert torch.equal(model(images()), output)
    with torch.no_grad():
        dense(model.fc1).mul_(0.5)
    model(images())
    quantizer.step()
    quantizer.update_epoch(3)


def test_before_quant_start_step_weights_pass_unchanged_and_are_not_sent_again(client):
    config_list = [{**QAT[0], "quant_start_step": 3}]
    for transfer in ("weights", "ranges"):
        quantizer = QATQuantizer(config_list, client=client, transfer=transfer)
        model = quantizer(Net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            quantized = not torch.equal(model.fc1.weight, dense(model.fc1))
            assert quantized == (step >= 3)
            train_step(model, optimizer)
            quantizer.step()
        assert quantizer.steps == 6


def test_the_weights_before_quant_start_step_are_sent_once(client):
    config_list = [{**QAT[0], "quant_start_step": 100}]
    quantizer = QATQuantizer(config_list, client=client, transfer="weights")
    model = quantizer(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        train_step(model, optimizer)
    assert calls(quantizer) == 1


def test_a_step_may_be_given_as_an_absolute_number(client):
    config_list = [{**QAT[0], "quant_start_step": 50}]
    quantizer = QATQuantizer(config_list, client=client)
    model = quantizer(Net())
    quantizer.step(49)
    assert torch.equal(model.fc1.weight, dense(model.fc1))
    quantizer.step()
    assert quantizer.steps == 50
    assert not torch.equal(model.fc1.weight, dense(model.fc1))
    assert quantizer.session.info().step == 50


@everywhere
def test_a_weight_that_is_not_finite_raises_an_error_naming_its_layer(client, make, config_list):
    compressor = make(config_list, client=client)
    model = compressor(Net())
    with torch.no_grad():
        dense(model.fc1)[1, 2] = float("nan")
    with pytest.raises(nc.InvalidArgumentError, match="fc1"):
        model(images())
    assert list(compressor.session.plan.compressed) == list(COMPRESSED)
    with torch.no_grad():
        dense(model.fc1)[1, 2] = 0.1
    model(images())
    if make is AGPPruner:  # prunes nothing in epoch 0
        compressor.update_epoch(5)
    assert not torch.equal(model.fc1.weight, dense(model.fc1))


@quantizers
def test_a_range_that_is_not_finite_raises_an_error_naming_its_layer(client, make, config_list):
    quantizer = make(config_list, client=client, transfer="ranges")
    model = quantizer(Net())
    with torch.no_grad():
        dense(model.conv2)[0, 0, 0, 0] = float("inf")
    with pytest.raises(nc.InvalidArgumentError, match="conv2"):
        model(images())


def test_after_an_error_only_the_layers_without_an_answer_are_sent_again(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    with torch.no_grad():
        dense(model.conv1)[0, 0, 0, 0] = float("nan")
    with pytest.raises(nc.InvalidArgumentError, match="conv1"):
        model(images())
    sent = pruner.stats.bytes_sent
    with torch.no_grad():
        dense(model.conv1)[0, 0, 0, 0] = 0.0
    model(images())
    assert pruner.stats.bytes_sent - sent < 72 * 4 + 300


def test_a_lost_session_is_a_not_found_error(client):
    pruner = AGPPruner(AGP, client=client)
    model = pruner(Net())
    model(images())
    client.join(pruner.session.id).close()
    with pytest.raises(nc.NotFoundError):
        pruner.update_epoch(1)
    model(images())  # with the masks there are


def test_the_stats_tell_what_the_session_cost(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    weights = sum(dense(getattr(model, name)).numel() for name in COMPRESSED)
    assert pruner.stats.bytes_sent > 4 * weights
    assert weights / 8 < pruner.stats.bytes_received < weights / 8 + 1000
    assert 0 < pruner.stats.seconds_waiting < 60


def test_ranges_travel_by_default():
    assert QATQuantizer(QAT, server="127.0.0.1:1").transfer == "ranges"
    assert QATQuantizer(QAT, server="192.0.2.1:50051").transfer == "ranges"
    with pytest.raises(ValueError, match="transfer is 'codes'"):
        QATQuantizer(QAT, server="127.0.0.1:1", transfer="codes")
