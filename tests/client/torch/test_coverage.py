"""What of a model is compressed, and what silently is not: the plan and the log say it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import nni_compression as nc
from nni_compression.values.plan import Coverage, LayerPlan, Parameter

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import LevelPruner
from torch_helpers import LEVEL, Net


def compressed(*names: str) -> dict[str, LayerPlan]:
    return {name: LayerPlan(name, True, 0) for name in names}


def bound(model: nn.Module, config_list: Any, client: nc.Client) -> Coverage:
    pruner = LevelPruner(config_list, client=client)
    pruner(model)
    coverage = pruner.plan.coverage
    assert coverage is not None
    return coverage


class TestTheLine:
    def test_a_model_that_is_covered_names_nothing(self) -> None:
        parameters = [Parameter("fc.weight", "Linear", 96, 2, "fc"), Parameter("b", "Linear", 4, 1)]
        coverage = Coverage.of(parameters, compressed("fc"))
        assert str(coverage) == "1 of 1 weights, 96 % of the parameters, are compressed"

    def test_the_largest_that_are_left_out_are_named(self) -> None:
        parameters = [Parameter(f"w{i}", "LSTM", 10 + i, 2) for i in range(8)]
        coverage = Coverage.of(
            [*parameters, Parameter("fc", "Linear", 8, 2, "fc")], compressed("fc")
        )
        assert str(coverage) == (
            "1 of 9 weights, 6.8 % of the parameters, are compressed; not covered: w7 (LSTM), "
            "w6 (LSTM), w5 (LSTM), w4 (LSTM), w3 (LSTM) and 3 more"
        )

    def test_what_is_not_all_is_never_a_hundred_percent(self) -> None:
        parameters = [Parameter("a", "Linear", 10**6, 2, "a"), Parameter("b", "Linear", 1, 2, "b")]
        assert "99.9 % of" in str(Coverage.of(parameters, compressed("a")))
        assert "100 % of" in str(Coverage.of(parameters, compressed("a", "b")))

    def test_excluded_weights_are_only_counted(self) -> None:
        layers = {**compressed("a"), "b": LayerPlan("b", False, 1)}
        parameters = [Parameter("a", "Linear", 5, 2, "a"), Parameter("b", "Linear", 5, 2, "b")]
        coverage = Coverage.of(parameters, layers)
        assert [p.name for p in coverage.excluded] == ["b"]
        assert coverage.left_out == ()
        assert str(coverage).endswith("50 % of the parameters, are compressed; excluded: 1")

    def test_a_model_without_parameters_has_none(self) -> None:
        assert Coverage.of([], {}).share == 0


class TestPyTorch:
    def test_weights_that_are_not_called_so_count(self, client: nc.Client) -> None:
        model = nn.Sequential(nn.LSTM(8, 4), nn.Linear(4, 4))
        coverage = bound(model, LEVEL, client)
        assert (coverage.compressed, coverage.weights) == (1, 3)
        assert coverage.compressed_parameters == 16
        assert coverage.parameters == sum(p.numel() for p in model.parameters())
        left_out = [(p.name, p.op_type) for p in coverage.left_out]
        assert left_out == [("0.weight_ih_l0", "LSTM"), ("0.weight_hh_l0", "LSTM")]

    def test_the_projections_of_attention_count(self, client: nc.Client) -> None:
        coverage = bound(nn.TransformerEncoderLayer(8, 2, 16), LEVEL, client)
        assert (coverage.compressed, coverage.weights) == (3, 4)
        assert {p.name for p in coverage.left_out} == {"self_attn.in_proj_weight"}
        named = [*LEVEL, {"op_types": ["MultiheadAttention"], "sparsity": 0.5}]
        assert bound(nn.TransformerEncoderLayer(8, 2, 16), named, client).share > 0.8

    def test_a_compressed_vector_is_a_weight_and_another_one_is_not(
        self, client: nc.Client
    ) -> None:
        config_list = [*LEVEL, {"op_types": ["BatchNorm2d"], "sparsity": 0.5}]
        coverage = bound(Net(), config_list, client)
        assert (coverage.compressed, coverage.weights) == (5, 5)
        assert bound(Net(), LEVEL, client).weights == 4

    def test_tied_and_computed_and_scripted_weights_are_counted_once(
        self, client: nc.Client
    ) -> None:
        model = nn.ModuleDict(
            {
                "encode": nn.Embedding(6, 4),
                "decode": nn.Linear(4, 6, bias=False),
                "normed": nn.utils.weight_norm(nn.Linear(4, 4, bias=False)),
                "scripted": torch.jit.script(nn.Linear(4, 2, bias=False)),
            }
        )
        model["decode"].weight = model["encode"].weight
        with pytest.warns(UserWarning, match="weights of scripted are computed or scripted"):
            coverage = bound(model, LEVEL, client)
        assert coverage.compressed == 2
        assert coverage.compressed_parameters == 24 + 4 + 16
        assert coverage.parameters == 24 + 4 + 16 + 8
        assert {p.name for p in coverage.left_out} == {"scripted.weight"}

    @pytest.mark.parametrize(
        ("model", "level"),
        [(Net(), logging.INFO), (nn.Sequential(nn.GRU(4, 4), nn.Linear(4, 4)), logging.WARNING)],
        ids=["covered", "not"],
    )
    def test_one_line_at_binding_warns_of_what_is_left_out(
        self, client: nc.Client, caplog: pytest.LogCaptureFixture, model: nn.Module, level: int
    ) -> None:
        with caplog.at_level(logging.INFO, "nni_compression"):
            pruner = LevelPruner(LEVEL, client=client)
            pruner(model)
            pruner.rebind()
        assert pruner.plan.coverage is not None
        lines = [record for record in caplog.records if "of the parameters" in record.message]
        assert [(line.levelno, line.message) for line in lines] == [
            (level, str(pruner.plan.coverage))
        ]
        pruner.unwrap()


class TestRulesWithoutFilters:
    def test_they_leave_the_scales_of_norms_out_and_say_so(self, client: nc.Client) -> None:
        pruner = LevelPruner([{"sparsity": 0.5}], client=client)
        with pytest.warns(UserWarning, match=r"config_list\[0\].*leaves 1 weight of one dimension"):
            pruner(Net())
        assert set(pruner.masks) == {"conv1", "conv2", "fc1", "fc2"}
        assert ["bn" in warning for warning in pruner.plan.warnings] == [True]

    @pytest.mark.parametrize("filters", [{"op_types": ["BatchNorm2d"]}, {"op_names": ["bn"]}])
    def test_a_filter_compresses_them(self, client: nc.Client, filters: Any) -> None:
        config_list = [{"sparsity": 0.5}, {"sparsity": 0.25, **filters}]
        pruner = LevelPruner(config_list, client=client)
        pruner(Net())
        assert pruner.plan.layers["bn"].options["sparsity"] == 0.25
        assert pruner.plan.warnings == ()

    def test_layers_that_are_chosen_by_hand_are_all_meant(self, client: nc.Client) -> None:
        layers = [nc.Layer("bn", "BatchNorm2d", (8,)), nc.Layer("fc", "Linear", (4, 4))]
        rules = [{"sparsity": 0.5}]
        with client.bind_model("level", rules, layers) as session:
            assert session.plan.compressed == ("bn", "fc")
        with client.bind_model("level", rules, layers, vectors_need_filter=True) as session:
            assert session.plan.compressed == ("fc",)

    def test_a_checkpoint_of_the_first_version_goes_on_with_what_it_pruned(
        self, client: nc.Client
    ) -> None:
        config_list = [{"sparsity": 0.5}]
        layers = nc.torch.layers(Net())
        session = client.bind_model("level", config_list, layers)
        weights = {
            layer.name: dict(Net().named_modules())[layer.name].weight.detach().numpy()
            for layer in layers
        }
        masks = session.calc_mask(weights)
        state = {
            "version": 1,
            "algorithm": "level",
            "session": session.id,
            "route": session.route,
            "epoch": 0,
            "step": 0,
            "masks": {
                name: {"bits": torch.from_numpy(mask.bits.copy()), "shape": list(mask.shape)}
                for name, mask in masks.items()
            },
        }
        session.close()
        pruner = LevelPruner(config_list, client=client)
        pruner.load_state_dict(state)
        pruner(Net())
        assert int((~pruner.masks["bn"]).sum()) == 4
        again = LevelPruner(config_list, client=client)
        again.load_state_dict(pruner.state_dict())
        pruner.close()
        again(Net())
        assert int((~again.masks["bn"]).sum()) == 4
