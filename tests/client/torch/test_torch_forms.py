"""How compressors are made, bound and ended."""

from __future__ import annotations

import gc
import re
import time
import warnings

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import (
    AGP_Pruner,
    AGPPruner,
    LevelPruner,
    Pruner,
    QAT_Quantizer,
    QATQuantizer,
    Quantizer,
)
from torch_helpers import AGP, COMPRESSED, LEVEL, QAT, Net, images


def state_of(client, session_id):
    return client.session_info(session_id).state


def test_both_call_forms_compress_the_model_in_place_and_give_the_same_masks(client):
    first, second = Net(), Net()
    pruner = LevelPruner(LEVEL, client=client)
    assert pruner(first) is first
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    other = LevelPruner(second, LEVEL, optimizer, client=client)
    assert other.compress() is second
    assert torch.equal(first.eval()(images()), second.eval()(images()))
    assert list(pruner.masks) == list(other.masks) == list(COMPRESSED)
    assert all(torch.equal(pruner.masks[name], other.masks[name]) for name in COMPRESSED)


def test_arguments_may_be_given_by_name(client):
    model = Net()
    pruner = LevelPruner(model=model, config_list=LEVEL, optimizer=None, client=client)
    assert pruner.compress() is model
    assert LevelPruner(config_list=LEVEL, client=client)(Net()).conv1.weight.eq(0).sum() == 36


def test_compressing_twice_binds_once(client):
    model = Net()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    session = pruner.session.id
    assert pruner(model) is model
    assert pruner.compress() is model
    assert pruner.session.id == session


def test_nnis_spellings_are_the_same_classes():
    assert AGP_Pruner is AGPPruner
    assert QAT_Quantizer is QATQuantizer


def test_an_algorithm_of_ones_own_needs_only_its_name(client):
    class MyPruner(Pruner):
        algorithm = "level"

    class MyQuantizer(Quantizer):
        algorithm = "qat"

    pruned = MyPruner(LEVEL, client=client)(Net())
    assert pruned.fc2.weight.eq(0).sum() == 160
    quantized = MyQuantizer(QAT, client=client)(Net())
    assert quantized.fc2.weight.unique().numel() <= 256
    with pytest.raises(TypeError, match="names no algorithm"):
        Pruner(LEVEL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "config_list is missing"),
        ((None,), "config_list is missing"),
        (("model", LEVEL), "must be a torch.nn.Module"),
    ],
)
def test_wrong_arguments_are_type_errors(arguments, message):
    with pytest.raises(TypeError, match=message):
        LevelPruner(*arguments)


def test_server_and_client_exclude_each_other(client):
    with pytest.raises(TypeError, match="server and client"):
        LevelPruner(LEVEL, client=client, server="127.0.0.1:1")


def test_a_compressor_without_a_model_says_so(client):
    pruner = LevelPruner(LEVEL, client=client)
    for use in (pruner.compress, pruner.step, pruner.state_dict, pruner.unwrap):
        with pytest.raises(RuntimeError, match="model") as raised:
            use()
        assert isinstance(raised.value, nc.FailedPreconditionError)
    with pytest.raises(RuntimeError, match="no model is bound"):
        _ = pruner.plan


def test_only_lottery_tickets_are_rewound(client):
    with pytest.raises(nc.UnimplementedError, match="LevelPruner keeps no weights"):
        LevelPruner(LEVEL, client=client).rewind()


@pytest.mark.parametrize("wrong", ["3", 2.5, torch.tensor(3.0)])
@pytest.mark.parametrize("name", ["epoch", "step"])
def test_epochs_and_steps_are_integers(client, name, wrong):
    pruner = LevelPruner(LEVEL, client=client)
    pruner(Net())
    told = re.escape(f"{name} is {wrong!r}, a {type(wrong).__name__}; it must be an integer")
    for owner in (pruner, pruner.session):
        with pytest.raises(nc.InvalidArgumentError, match=told):
            (owner.update_epoch if name == "epoch" else owner.step)(wrong)
    assert (pruner.epoch, pruner.steps) == (0, 0)
    pruner.step(torch.tensor(3))
    assert pruner.steps == 3
    pruner.close()


def test_a_compressor_takes_one_model(client):
    pruner = LevelPruner(LEVEL, client=client)
    pruner(Net())
    with pytest.raises(RuntimeError, match="has a model already"):
        pruner(Net())


def test_a_second_pruner_on_the_same_layers_is_refused_and_changes_nothing(client):
    model = Net()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    output = model.eval()(images())
    with pytest.raises(RuntimeError, match="'conv1' already has a pruner"):
        AGPPruner(AGP, client=client)(model)
    assert torch.equal(model(images()), output)
    assert len(client.sessions()) >= 1


def test_the_three_rule_config_list_of_nnis_overview_selects_layers(client):
    model = Net()
    config_list = [
        {"sparsity": 0.8, "op_types": ["default"]},
        {"sparsity": 0.6, "op_names": ["conv1", "fc1"]},
        {"exclude": True, "op_names": ["fc2"]},
    ]
    pruner = LevelPruner(config_list, client=client)
    pruner(model)
    assert [pruner.plan.layers[name].rule for name in COMPRESSED] == [1, 0, 1, 2]
    zeros = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    assert zeros == {
        "conv1": int(72 * 0.6),
        "conv2": int(576 * 0.8),
        "fc1": int(4096 * 0.6),
    }
    assert type(model.fc2) is nn.Linear


class OwnLinear(nn.Linear):
    """A layer that a library derives from Linear."""


def test_a_layer_is_of_the_types_that_its_class_derives_from(client):
    model = nn.Sequential(OwnLinear(8, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    pruner = LevelPruner([{"sparsity": 0.5, "op_types": ["Linear"]}], client=client)
    pruner(model)
    assert pruner.plan.compressed == ("0", "1", "2.out_proj")
    named = LevelPruner([{"sparsity": 0.5, "op_types": ["OwnLinear"]}], client=client)
    named(nn.Sequential(OwnLinear(8, 8), nn.Linear(8, 8)))
    assert named.plan.compressed == ("0",)


def test_rules_select_layers_by_patterns_and_by_functions(client):
    config_list = [
        {"sparsity": 0.8, "op_names_re": [r"conv\d"]},
        {"sparsity": 0.6, "op_names": ["re:.*2"]},
        {"sparsity": 0.4, "op_names": lambda layer: layer.shape == (32, 128)},
    ]
    pruner = LevelPruner(config_list, client=client)
    pruner(Net())
    rules = {name: pruner.plan.layers[name].rule for name in pruner.plan.compressed}
    assert rules == {"conv1": 0, "conv2": 1, "fc1": 2, "fc2": 1}
    nothing = [{"sparsity": 0.5, "op_names": lambda layer: False}]
    with pytest.raises(
        nc.InvalidArgumentError, match=r"config_list\[0\].op_names is a function th"
    ):
        LevelPruner(nothing, client=client)(Net())
    with pytest.raises(nc.InvalidArgumentError, match="it must be a regular expression"):
        LevelPruner([{"sparsity": 0.5, "op_names_re": ["("]}], client=client)(Net())


def test_a_custom_algorithm_selects_layers_by_patterns(client):
    class Half(Pruner):
        options = {"sparsity": float}

        def calc_mask(self, layer, config):
            return layer.weight.abs() > layer.weight.abs().median()

    pruner = Half([{"sparsity": 0.5, "op_names_re": ["fc."]}], client=client)
    pruner(Net())
    assert pruner.plan.compressed == ("fc1", "fc2")


def test_a_model_with_no_matching_layer_gets_a_clear_warning_and_works(client):
    model = Net()
    expected = model.eval()(images())
    pruner = LevelPruner([{"sparsity": 0.5, "op_types": ["Conv3d"]}], client=client)
    with pytest.warns(UserWarning, match="matches no layer of the model"):
        pruner(model)
    assert torch.equal(model(images()), expected)
    pruner.update_epoch(1)
    pruner.step()
    assert pruner.masks == {}
    assert pruner.unwrap() is model
    for call in (
        lambda: pruner(model),
        lambda: pruner.update_epoch(1),
        pruner.step,
        pruner.rebind,
    ):
        with pytest.raises(RuntimeError, match="make another compressor"):
            call()


def test_a_model_without_weights_is_an_error():
    with pytest.raises(ValueError, match="no layer with a weight"):
        LevelPruner(LEVEL)(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_warnings_of_the_plan_are_python_warnings(client):
    config_list = [*LEVEL, {"sparsity": 0.1, "op_names": ["conv9"]}]
    pruner = LevelPruner(config_list, client=client)
    with pytest.warns(UserWarning, match="conv9"):
        pruner(Net())
    assert any("conv9" in warning for warning in pruner.plan.warnings)


def test_a_fitting_config_list_gives_no_warning(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LevelPruner(LEVEL, client=client)(Net())
        model(images()).sum().backward()


@pytest.mark.parametrize(
    ("config_list", "message"),
    [
        ([{"sparsity": 1.3, "op_types": ["default"]}], r"config_list\[0\].sparsity is 1.3"),
        ([{"sparsity": 0.5, "op_type": ["Conv2d"]}], "op_types"),
        ([{"op_types": ["default"]}], "sparsity"),
    ],
)
def test_a_wrong_config_list_leaves_the_model_plain(client, config_list, message):
    model = Net()
    with pytest.raises(nc.InvalidArgumentError, match=message):
        LevelPruner(config_list, client=client)(model)
    assert type(model.conv1) is nn.Conv2d


def test_the_address_comes_from_the_keyword_or_the_environment(server, monkeypatch):
    model = LevelPruner(LEVEL, server=server.address)(Net())
    assert model.conv1.weight.eq(0).sum() == 36
    monkeypatch.setenv("NNI_COMPRESSION_SERVER", server.address)
    model = LevelPruner(LEVEL)(Net())
    assert model.conv1.weight.eq(0).sum() == 36


def test_nobody_at_the_address_is_an_unavailable_error():
    client = nc.Client("127.0.0.1:1", connect_timeout=0.2, timeout=1)
    with pytest.raises(nc.UnavailableError):
        LevelPruner(LEVEL, client=client)(Net())


def test_labels_and_lease_reach_the_session(client):
    pruner = LevelPruner(LEVEL, client=client, labels={"nni_trial": "kLm9"}, lease=120.0)
    pruner(Net())
    assert pruner.session.info().labels["nni_trial"] == "kLm9"
    assert pruner.session.lease == pytest.approx(120, abs=1)
    assert [info.id for info in client.sessions({"nni_trial": "kLm9"})] == [pruner.session.id]


def test_unwrap_and_close_end_the_session_and_leave_a_given_client_open(client):
    for end in (LevelPruner.unwrap, LevelPruner.close):
        pruner = LevelPruner(LEVEL, client=client)
        pruner(Net())
        session = pruner.session.id
        end(pruner)
        end(pruner)
        assert state_of(client, session) == "closed"


def test_a_session_lives_as_long_as_its_model_and_ends_when_it_is_forgotten(client):
    model = LevelPruner(LEVEL, client=client, labels={"test": "forgotten"})(Net())
    gc.collect()
    (info,) = client.sessions({"test": "forgotten"})
    assert model.conv1.weight.eq(0).sum() == 36
    del model
    gc.collect()
    deadline = time.monotonic() + 60
    while client.sessions({"test": "forgotten"}) and time.monotonic() < deadline:
        pass  # another thread ends it
    assert state_of(client, info.id) == "closed"


def test_a_closed_compressor_leaves_the_model_computing_the_same(client):
    model = Net()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    output = model.eval()(images())
    pruner.close()
    assert torch.equal(model(images()), output)
    assert pruner.unwrap() is model
    assert type(model.conv1) is nn.Conv2d
    assert torch.equal(model(images()), output)


def test_a_lazy_layer_that_has_seen_no_data_is_an_error_naming_it(client):
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match="layer '0' is not initialised"):
        LevelPruner(LEVEL, client=client)(model)
    model(torch.randn(2, 8))
    assert LevelPruner(LEVEL, client=client)(model)[0].weight.eq(0).sum() == 16


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        lambda: torch.jit.script(nn.Linear(4, 4)),
    ],
)
def test_a_weight_that_is_no_plain_parameter_is_left_alone_with_a_warning(client, make):
    model = nn.Sequential(make(), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="weights of 0 are computed or scripted"):
        LevelPruner(LEVEL, client=client)(model)
    assert model[1].weight.eq(0).sum() == 8
    assert model[0].weight.eq(0).sum() == 0
