"""Going on after an interruption, and taking the result home."""

from __future__ import annotations

import io

import numpy as np
import pytest

import nni_compression as nc
import servers

pytest.importorskip("torch")

import torch

from nni_compression.torch import AGPPruner, LevelPruner, NaiveQuantizer, QATQuantizer
from torch_helpers import AGP, COMPRESSED, LEVEL, NAIVE, QAT, Net, calls, dense, images, train_step


def through_disk(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def half_trained(client):
    pruner = AGPPruner(AGP, client=client)
    model = pruner(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(5):
        pruner.update_epoch(epoch)
        train_step(model, optimizer, epoch)
        pruner.step()
    return pruner, model


def same_masks(first, second):
    return all(torch.equal(first[name], second[name]) for name in COMPRESSED)


@pytest.mark.parametrize("load_first", [True, False])
def test_an_interrupted_trainer_goes_on_in_a_session_of_its_own(client, load_first):
    pruner, model = half_trained(client)
    checkpoint = through_disk({"model": model.state_dict(), "pruner": pruner.state_dict()})
    resumed = Net(seed=9)
    resumed.load_state_dict(checkpoint["model"], strict=True)
    other = AGPPruner(AGP, client=client)
    if load_first:
        other.load_state_dict(checkpoint["pruner"])
        other(resumed)
    else:
        other(resumed)
        abandoned = other.session.id
        other.load_state_dict(checkpoint["pruner"])
        assert client.session_info(abandoned).state == "closed"
    assert other.session.id != pruner.session.id
    assert pruner.session.info().state == "active"  # somebody may be using it
    assert (other.epoch, other.steps) == (4, 5)
    before = calls(other)
    assert torch.equal(resumed.eval()(images()), model.eval()(images()))
    assert calls(other) == before
    other.update_epoch(5)
    pruner.update_epoch(5)
    assert same_masks(other.masks, pruner.masks)


def test_a_session_that_is_gone_goes_on_in_another_one_with_its_masks(client):
    pruner, model = half_trained(client)
    checkpoint = through_disk({"model": model.state_dict(), "pruner": pruner.state_dict()})
    client.join(pruner.session.id).close()
    resumed = Net(seed=9)
    resumed.load_state_dict(checkpoint["model"])
    other = AGPPruner(AGP, client=client)
    other.load_state_dict(checkpoint["pruner"])
    other(resumed)
    assert other.session.id != checkpoint["pruner"]["session"]
    assert (other.epoch, other.steps) == (4, 5)
    info = other.session.info()
    assert (info.epoch, info.step) == (4, 5)
    assert torch.equal(resumed.eval()(images()), model.eval()(images()))
    old = other.masks
    assert same_masks(old, {name: mask > 0 for name, mask in pruner.masks.items()})
    other.update_epoch(8)
    new = other.masks
    for name in COMPRESSED:
        assert not new[name][~old[name]].any()
        assert new[name].sum() < old[name].sum()


def test_a_level_pruner_resumes_with_its_masks_though_the_weights_have_moved(client):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0))
    state = through_disk(pruner.state_dict())
    masks = pruner.masks
    pruner.close()
    resumed = Net(seed=2)
    other = LevelPruner(LEVEL, client=client)
    other.load_state_dict(state)
    other(resumed)
    resumed(images())
    assert same_masks(other.masks, masks)


def test_a_server_that_was_restarted_without_storage_gets_a_new_session():
    with servers.ServerProcess() as first:
        pruner, model = half_trained(nc.Client(first.address, keep_alive=False))
        state = through_disk(pruner.state_dict())
    with servers.ServerProcess() as second, nc.Client(second.address) as client:
        other = AGPPruner(AGP, client=client)
        other.load_state_dict(state)
        resumed = Net()
        resumed.load_state_dict(model.state_dict())
        other(resumed)
        assert torch.equal(resumed.eval()(images()), model.eval()(images()))


def test_masks_of_a_large_layer_are_resumed_too(client):
    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False))

    pruner = LevelPruner(LEVEL, client=client)
    pruner(model())
    expected = pruner.masks["0"]
    state = pruner.state_dict()
    assert state["masks"]["0"]["bits"].numel() == 4096 * 4096 / 8
    pruner.close()
    other = LevelPruner(LEVEL, client=client)
    other.load_state_dict(state)
    other(model())
    assert torch.equal(other.masks["0"], expected)


@pytest.mark.parametrize("gone", [True, False])
def test_a_quantizer_resumes_at_its_step(client, gone):
    config_list = [{**QAT[0], "quant_start_step": 3}]
    quantizer = QATQuantizer(config_list, client=client)
    model = quantizer(Net())
    quantizer.step(4)
    output = model.eval()(images())
    state = through_disk(quantizer.state_dict())
    if gone:
        quantizer.close()
    other = QATQuantizer(config_list, client=client)
    other.load_state_dict(state)
    resumed = other(Net()).eval()
    assert other.session.id != state["session"]
    assert other.steps == 4
    assert torch.equal(resumed(images()), output)


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_scale_that_only_grows_is_still_there_after_an_interruption(client, gone, transfer):
    quantizer = NaiveQuantizer(NAIVE, client=client, transfer=transfer)
    model = quantizer(Net())
    with torch.no_grad():
        dense(model.fc1).mul_(10)
    scale = quantizer.calibration["fc1"]["weight_scale"]
    state = through_disk(quantizer.state_dict())
    with torch.no_grad():
        dense(model.fc1).mul_(10)
    model(images())  # the session goes on
    if gone:
        quantizer.close()
    other = NaiveQuantizer(NAIVE, client=client, transfer=transfer)
    other.load_state_dict(state)
    other(Net())
    assert torch.equal(other.calibration["fc1"]["weight_scale"], scale)
    assert other.state_dict()["memory"]["fc1"] == state["memory"]["fc1"]


@pytest.mark.parametrize("number", [np.int64, torch.tensor], ids=["numpy", "torch"])
def test_numbers_of_numpy_and_torch_are_plain_ones_in_a_checkpoint(client, number):
    pruner = AGPPruner(AGP, client=client)
    pruner(Net())
    pruner.update_epoch(number(3))
    pruner.step(number(5))
    state = pruner.state_dict()
    found = [state[key] for key in ("epoch", "step")]
    assert [(type(value), value) for value in found] == [(int, 3), (int, 5)]
    with pytest.raises(TypeError):
        pruner.update_epoch(1.5)
    with pytest.raises(TypeError):
        pruner.step(1.5)


def test_a_state_of_another_algorithm_or_version_is_refused(client):
    pruner = LevelPruner(LEVEL, client=client)
    pruner(Net())
    state = pruner.state_dict()
    with pytest.raises(ValueError, match="'level'; it must be 'agp'"):
        AGPPruner(AGP, client=client).load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        LevelPruner(LEVEL, client=client).load_state_dict({**state, "version": 99})


def test_a_session_of_another_model_is_refused(client):
    pruner = LevelPruner(LEVEL, client=client)
    pruner(Net())
    other = LevelPruner(LEVEL, client=client, session=pruner.session.id)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="other layers"):
        other(model)
    assert type(model[0]) is torch.nn.Linear


def test_a_rank_that_joins_gets_the_masks_of_the_first(client):
    first = AGPPruner(AGP, client=client)
    model = first(Net())
    first.update_epoch(3)
    model(images())
    second = AGPPruner(AGP, client=client, session=first.session.id)
    second(Net(seed=7))  # the first weight decides, whatever the second rank has
    assert second.epoch == 3
    assert same_masks(second.masks, first.masks)


def test_joining_a_session_that_does_not_exist_is_a_not_found_error(client):
    with pytest.raises(nc.NotFoundError):
        LevelPruner(LEVEL, client=client, session="0" * 32)(Net())


def test_the_exported_model_has_the_zeros_and_nnis_mask_file_has_the_masks(client, tmp_path):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net()).eval()
    output = model(images())
    for _ in range(2):
        pruner.export_model(str(tmp_path / "model.pth"), str(tmp_path / "mask.pth"))
        plain = Net(seed=4)
        plain.load_state_dict(torch.load(tmp_path / "model.pth"), strict=True)
        assert torch.equal(plain.eval()(images()), output)
        masks = torch.load(tmp_path / "mask.pth")
        assert list(masks) == list(COMPRESSED)
        for name in COMPRESSED:
            assert masks[name]["bias"] is None
            assert masks[name]["weight"].dtype is torch.float32
            weight = getattr(plain, name).weight
            assert torch.equal(masks[name]["weight"] == 0, weight == 0)
        pruner.unwrap()  # and again from the plain model


def test_the_exported_model_has_the_quantized_values_and_how_they_came(client, tmp_path):
    quantizer = QATQuantizer(QAT, client=client)
    model = quantizer(Net()).eval()
    output = model(images())
    quantizer.export_model(str(tmp_path / "model.pth"), str(tmp_path / "calibration.pth"))
    plain = Net(seed=4)
    plain.load_state_dict(torch.load(tmp_path / "model.pth"), strict=True)
    assert torch.equal(plain.eval()(images()), output)
    found = torch.load(tmp_path / "calibration.pth")["fc1"]
    assert found["weight_bits"] == 8
    codes = plain.fc1.weight / found["weight_scale"] + found["weight_zero_point"]
    assert (codes - codes.round()).abs().max() < 1e-3


def test_the_export_of_a_pruned_and_quantized_model_has_both(client, tmp_path):
    model = Net().eval()
    pruner = LevelPruner(LEVEL, client=client)
    quantizer = QATQuantizer(QAT, client=client)
    quantizer(model)
    pruner(model)
    quantizer.export_model(str(tmp_path / "model.pth"))
    plain = Net(seed=4)
    plain.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert torch.equal(plain.eval()(images()), model(images()))
    assert plain.fc2.weight.eq(0).sum() >= 160
    assert plain.fc2.weight.unique().numel() <= 256


def test_the_server_exports_what_the_model_computes_with(client, tmp_path):
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    masks = pruner.masks
    weights = {name: dense(getattr(model, name)).detach().numpy() for name in COMPRESSED}
    files = pruner.session.export(tmp_path, weights)
    assert [path.name for path in files] == ["model.safetensors"]
    assert masks["fc1"].sum() == 2048
