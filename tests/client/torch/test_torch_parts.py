"""Weights that are not called `weight`: of recurrent layers, attention, experts of a MoE."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any, Callable

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import nni_compression as nc
from nni_compression.torch import (
    AGPPruner,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
    unwrap,
)
from safetensors_files import read_safetensors


class Experts(nn.Module):
    """As language models have them: one parameter of three dimensions for all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 12))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 8))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(tokens)
        for expert in range(3):
            gate, up = (tokens @ self.gate_up_proj[expert]).chunk(2, dim=-1)
            out = out + (torch.relu(gate) * up) @ self.down_proj[expert]
        return out


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **settings)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        keys = tokens[..., : self.attention.kdim]
        return self.attention(tokens, keys, tokens, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(8, 8, num_layers=2, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(tokens)[0]


class Positions(nn.Module):
    """A model that adds a position embedding of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.fc = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc(tokens + self.pos_embed)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], list[str]]] = {
    "lstm": (
        lambda: Recurrent(nn.LSTM),
        {"op_types": ["LSTM"]},
        [f"layer.weight_{kind}_l{i}" for i in range(2) for kind in ("ih", "hh")],
    ),
    "gru": (lambda: Recurrent(nn.GRU), {"op_names": "layer.weight_hh_l0"}, ["layer.weight_hh_l0"]),
    "attention": (
        Attention,
        {"op_types": ["MultiheadAttention", "Linear"]},
        ["attention.in_proj_weight", "attention.out_proj"],
    ),
    "attention of other sizes": (
        lambda: Attention(kdim=6, vdim=8, bias=False, add_bias_kv=True),
        {"op_names_re": [r".*\.[qkv]_proj_weight"]},
        [f"attention.{part}_proj_weight" for part in "qkv"],
    ),
    "experts": (
        lambda: nn.Sequential(nn.Linear(8, 8), Experts()),
        {"op_names": lambda layer: layer.op_type == "Experts"},
        ["1.gate_up_proj", "1.down_proj"],
    ),
    "root": (Positions, {"op_names": ["pos_embed", "re:f.$"]}, ["pos_embed", "fc"]),
}
ALGORITHMS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "level": (LevelPruner, {"sparsity": 0.5}),
    "agp": (AGPPruner, {"final_sparsity": 0.5, "end_epoch": 2, "start_epoch": 0}),
    "naive": (NaiveQuantizer, {}),
    "qat": (QATQuantizer, {"quant_bits": 4}),
}


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]()


def compressed(client: nc.Client, name: str, algorithm: str) -> tuple[Any, nn.Module]:
    make, options = ALGORITHMS[algorithm]
    compressor = make([{**options, **MODELS[name][1]}], client=client)
    model = compressor(built(name))
    if algorithm == "agp":
        compressor.update_epoch(2)
    return compressor, model


everywhere = pytest.mark.parametrize("name", MODELS)
by_all = pytest.mark.parametrize("algorithm", ALGORITHMS)


@everywhere
@by_all
def test_the_forward_pass_uses_the_compressed_weights(
    client: nc.Client, name: str, algorithm: str
) -> None:
    compressor, model = compressed(client, name, algorithm)
    assert sorted(compressor.plan.compressed) == sorted(MODELS[name][2])
    for train in (True, False):
        model.train(train)
        output = model(tokens())
        plain = built(name).train(train)
        state = compressor.compressed_state_dict()
        plain.load_state_dict(state)
        assert torch.equal(output, plain(tokens()))
        dense = built(name).state_dict()
        changed = [key for key, value in state.items() if not torch.equal(value, dense[key])]
        assert len(changed) == len(MODELS[name][2])
    assert list(model.state_dict()) == list(dense)
    assert all(torch.equal(value, dense[key]) for key, value in model.state_dict().items())
    if algorithm in ("level", "agp"):
        assert all(abs(m.float().mean() - 0.5) < 0.01 for m in compressor.masks.values())


@everywhere
@by_all
def test_unwrap_writes_them_and_restores_the_modules(
    client: nc.Client, name: str, algorithm: str
) -> None:
    compressor, model = compressed(client, name, algorithm)
    output = model.eval()(tokens())
    state = compressor.compressed_state_dict()
    # A module that has moved has made lists of its parameters anew.
    model.double().float()
    compressor.unwrap()
    plain = built(name)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(tokens()), output)
    for parameter in model.parameters():  # which the modules must read
        parameter.data.zero_()
    assert not model(tokens()).any()


@everywhere
@by_all
def test_gradients_reach_the_dense_weights(client: nc.Client, name: str, algorithm: str) -> None:
    compressor, model = compressed(client, name, algorithm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens()).square().sum().backward()
        optimizer.step()
        compressor.step()
    for layer in MODELS[name][2]:
        key = layer if layer in before else f"{layer}.weight"
        assert not torch.equal(model.state_dict()[key], before[key])
        mask = getattr(compressor, "masks", {}).get(layer)
        gradient = dict(model.named_parameters())[key].grad
        assert gradient is not None
        assert mask is None or not gradient[~mask].any()


@everywhere
def test_copies_compute_the_same(client: nc.Client, name: str) -> None:
    compressor, model = compressed(client, name, "level")
    output = model.eval()(tokens())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    weights_only = {} if torch.__version__ < "2" else {"weights_only": False}
    for twin in (copy.deepcopy(model), torch.load(file, **weights_only)):
        assert torch.equal(twin(tokens()), output)
        assert torch.equal(unwrap(twin)(tokens()), output)


@everywhere
def test_a_trainer_resumes_with_its_masks(client: nc.Client, name: str) -> None:
    compressor, model = compressed(client, name, "agp")
    output = model.eval()(tokens())
    state = copy.deepcopy(compressor.state_dict())
    compressor.session.close()
    make, options = ALGORITHMS["agp"]
    other = make([{**options, **MODELS[name][1]}], client=client)
    again = other(built(name).eval())
    other.load_state_dict(state)
    assert torch.equal(again(tokens()), output)
    assert all(torch.equal(mask, compressor.masks[key]) for key, mask in other.masks.items())


def test_exports_have_the_names_of_the_parameters(client: nc.Client, tmp_path: Path) -> None:
    pruner, model = compressed(client, "lstm", "level")
    pruner.export_model(str(tmp_path / "model.pth"), str(tmp_path / "mask.pth"))
    written = torch.load(tmp_path / "model.pth")
    assert all(
        torch.equal(written[key], value) for key, value in pruner.compressed_state_dict().items()
    )
    assert sorted(torch.load(tmp_path / "mask.pth")) == sorted(MODELS["lstm"][2])
    files = pruner.export(tmp_path / "out", "safetensors")
    tensors, _ = read_safetensors(next(path for path in files if path.suffix == ".safetensors"))
    assert sorted(tensors) == sorted(model.state_dict())
    for key, value in pruner.compressed_state_dict().items():
        assert torch.equal(torch.from_numpy(tensors[key][1].copy()), value)


def test_a_rule_that_does_not_name_them_leaves_them_out(client: nc.Client) -> None:
    for rule in ({}, {"op_types": ["default"]}, {"op_types": ["Linear"]}):
        pruner = LevelPruner([{"sparsity": 0.5, **rule}], client=client)
        pruner(Positions())
        assert list(pruner.plan.layers) == ["fc"]
    assert "pos_embed (Positions)" in str(pruner.plan.coverage)
    assert str(pruner.plan.coverage).startswith("1 of 2 weights")


def test_a_pruner_and_a_quantizer_share_one_module(client: nc.Client) -> None:
    model = Recurrent(nn.LSTM)
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["layer.weight_ih_l0"]}], client=client)
    quantizer = QATQuantizer([{"quant_bits": 4, "op_types": ["LSTM"]}], client=client)
    pruner(model)
    quantizer(model)
    output = model.eval()(tokens())
    assert (model.layer.weight_ih_l0 == 0).sum() >= 128
    pruner.unwrap()
    assert torch.equal(model(tokens()), output)
    quantizer.unwrap()
    assert torch.equal(model(tokens()), output)
    assert type(model.layer) is nn.LSTM


def test_a_write_to_the_weight_reaches_the_parameter(client: nc.Client) -> None:
    model = built("attention")
    pruner = LevelPruner([{"sparsity": 0.5, "op_types": ["MultiheadAttention"]}], client=client)
    pruner(model)
    with torch.no_grad():
        model.attention.in_proj_weight.fill_(2.0)
    assert (dict(model.named_parameters())["attention.in_proj_weight"] == 2).all()
    assert sorted(model.attention.in_proj_weight.unique().tolist()) == [0.0, 2.0]


def test_a_module_that_was_replaced_is_noticed(client: nc.Client) -> None:
    model = built("lstm")
    pruner = LevelPruner([{"sparsity": 0.5, "op_types": ["LSTM"]}], client=client)
    pruner(model)
    model.layer = nn.LSTM(8, 8, num_layers=2, batch_first=True)
    with pytest.warns(UserWarning, match="layer.weight_ih_l0"):
        pruner.update_epoch(1)


class Table(nn.Module):
    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.table


@pytest.mark.parametrize("order", ["table first", "table last"])
@pytest.mark.parametrize("name", ["own.table", "head", "other.table"])
def test_a_tied_parameter_is_one_layer_wherever_it_is_read(
    client: nc.Client, order: str, name: str
) -> None:
    head = nn.Linear(8, 8, bias=False)
    tables = {"own": Table(head.weight), "other": Table(head.weight)}
    parts = {**tables, "head": head} if order == "table first" else {"head": head, **tables}
    model = nn.ModuleDict(parts)
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": [name]}], client=client)
    pruner(model)
    assert pruner.plan.compressed == ("head",)
    assert (head.weight == 0).sum() == 32
    for table in tables.values():
        assert torch.equal(table.table, head.weight)
    before = [table(tokens()) for table in tables.values()]
    pruner.unwrap()
    assert all(torch.equal(table(tokens()), out) for table, out in zip(tables.values(), before))
    assert all(table.table is head.weight for table in tables.values())


def test_tied_parameters_without_a_weight_are_one_layer(client: nc.Client) -> None:
    first = Table(nn.Parameter(torch.randn(8, 8)))
    model = nn.ModuleDict({"a": first, "b": Table(first.table)})
    for name in ("a.table", "b.table"):
        pruner = LevelPruner([{"sparsity": 0.5, "op_names": [name]}], client=client)
        pruner(model)
        assert pruner.plan.compressed == ("a.table",)
        assert (model["a"].table == 0).sum() == (model["b"].table == 0).sum() == 32
        pruner.close()
        model = nn.ModuleDict(
            {"a": Table(nn.Parameter(torch.randn(8, 8))), "b": Table(first.table)}
        )
        model["b"].table = dict(model.named_parameters())["a.table"]


@pytest.mark.parametrize(
    "rule",
    [
        {"op_names_re": [r"\pLead"]},
        {"op_names": [r"re:(\w+\.?)+\.weight_proj", "fc"]},
        {"op_names": lambda layer: True, "op_types": ["Linear"]},
        {"op_types": ["Positions"], "exclude": True},
        {"op_types": ["Positions"], "op_names": ["fc"]},
    ],
    ids=lambda rule: str(sorted(rule)),
)
def test_rules_without_filters_never_mean_them(client: nc.Client, rule: Any) -> None:
    rules = [{"sparsity": 0.5}, rule if "exclude" in rule else {"sparsity": 0.6, **rule}]
    for config_list in (rules, rules[::-1]):
        pruner = LevelPruner(config_list, client=client)
        pruner(Positions())
        assert "pos_embed" not in pruner.plan.compressed
        assert "fc" in pruner.plan.compressed
        pruner.close()


def test_a_pattern_that_other_engines_never_finish_is_no_matter_of_the_client(
    client: nc.Client,
) -> None:
    model = nn.Sequential(nn.ModuleDict({"experts" * 8: Experts()}))
    pruner = LevelPruner([{"sparsity": 0.5, "op_names_re": [r"(\w+\.?)+\.no"]}], client=client)
    with pytest.warns(UserWarning, match="matches the name of no layer"):
        pruner(model)


def test_filters_may_be_tuples(client: nc.Client) -> None:
    for rule in ({"op_names": ("pos_embed",)}, {"op_types": ("Positions",)}):
        pruner = LevelPruner([{"sparsity": 0.5, **rule}], client=client)
        pruner(Positions())
        assert pruner.plan.compressed == ("pos_embed",)


def test_a_class_of_layers_with_parameters_of_its_own(client: nc.Client) -> None:
    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.lora_A = nn.Parameter(torch.zeros(2, 8))

    for types, layers in ((["Linear"], ("0",)), (["Adapted"], ("0", "0.lora_A"))):
        pruner = LevelPruner([{"sparsity": 0.5, "op_types": types}], client=client)
        pruner(nn.Sequential(Adapted()))
        assert pruner.plan.compressed == layers


def test_lists_of_parameters_are_left_out(client: nc.Client) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model.several = nn.ParameterList([torch.randn(8, 8) for _ in range(3)])
    pruner = LevelPruner([{"sparsity": 0.5, "op_names_re": [".*"]}], client=client)
    pruner(model)
    assert pruner.plan.compressed == ("0",)
    assert len(model.several[:2]) == 2


def test_layers_that_a_checkpoint_lacks_are_told(client: nc.Client) -> None:
    pruner, model = compressed(client, "attention", "level")
    model(tokens())
    state = pruner.state_dict()
    del state["masks"]["attention.out_proj"]
    pruner.session.close()
    make, options = ALGORITHMS["level"]
    other = make([{**options, **MODELS["attention"][1]}], client=client)
    other(built("attention"))
    with pytest.warns(UserWarning, match="no masks of layers .'attention.out_proj'"):
        other.load_state_dict(state)


def test_outputs_of_such_modules_are_refused(client: nc.Client) -> None:
    model = built("lstm")
    rule = {"quant_types": ["weight", "output"], "op_types": ["LSTM"]}
    quantizer = QATQuantizer([rule], client=client)
    with pytest.raises(nc.InvalidArgumentError, match="outputs of layer 'layer.weight_ih_l0'"):
        quantizer(model)
    assert type(model.layer) is nn.LSTM


@everywhere
@by_all
def test_a_plain_copy_gets_the_answers(client: nc.Client, name: str, algorithm: str) -> None:
    compressor, model = compressed(client, name, algorithm)
    output = model.eval()(tokens())
    other = built(name).eval()
    compressor.apply_to(other)
    assert torch.equal(other(tokens()), output)
