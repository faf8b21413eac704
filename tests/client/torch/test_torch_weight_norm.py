"""Weights that modules compute from parameters: weight_norm, and other parametrizations."""

from __future__ import annotations

import copy
import io
import types
import warnings
from pathlib import Path
from typing import Any, Callable

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import nni_compression as nc
from nni_compression.torch import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    Pruner,
    QATQuantizer,
    layers,
    modules,
    prune,
    quantize,
    unwrap,
)
from torch_helpers import process_group, run_ranks

DEFAULT = {"op_types": ["default"]}


class Doubled(nn.Module):
    """A parametrization of someone's own, with an inverse for any weight."""

    def forward(self, half: torch.Tensor) -> torch.Tensor:
        return 2 * half

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


class Symmetric(nn.Module):
    """One that has an inverse for some weights only."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).T

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu()


def by_hook(module: nn.Module, dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated
        return nn.utils.weight_norm(module, dim=dim)


def by_parametrization(module: nn.Module, dim: int | None = 0) -> nn.Module:
    return parametrizations.weight_norm(module, dim=dim)


def doubled(module: nn.Module, dim: int | None = 0) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Doubled())


NORMS: dict[str, Callable[..., nn.Module]] = {"hook": by_hook}
if hasattr(parametrizations, "weight_norm"):  # PyTorch 2.0 and later
    NORMS["parametrization"] = by_parametrization
KINDS = {**NORMS, "one's own": doubled}
ORIGINALS = {
    "hook": ["weight_g", "weight_v"],
    "parametrization": [f"parametrizations.weight.original{i}" for i in range(2)],
    "one's own": ["parametrizations.weight.original"],
}
ALGORITHMS: dict[str, Callable[[nc.Client], Any]] = {
    "level": lambda client: LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client),
    "agp": lambda client: AGPPruner(
        [{"final_sparsity": 0.5, "start_epoch": 0, "end_epoch": 2, **DEFAULT}], client=client
    ),
    "naive": lambda client: NaiveQuantizer([DEFAULT], client=client),
    "dorefa": lambda client: DoReFaQuantizer([{"quant_bits": 4, **DEFAULT}], client=client),
    "qat": lambda client: QATQuantizer([{"quant_bits": 4, **DEFAULT}], client=client),
    "qat by weights": lambda client: QATQuantizer(
        [{"quant_bits": 4, **DEFAULT}], client=client, transfer="weights"
    ),
}
NAMES = ["conv", "last", "fc"]

everywhere = pytest.mark.parametrize("kind", KINDS)
normed = pytest.mark.parametrize("kind", NORMS)
by_all = pytest.mark.parametrize("algorithm", ALGORITHMS)


class Net(nn.Module):
    """Two convolutions and a linear layer, [N, 4, 6] -> [N, 5]; norms over different axes."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv = norm(nn.Conv1d(4, 6, 3, padding=1))
        self.last = norm(nn.Conv1d(6, 8, 3, groups=2), 2)
        self.fc = norm(nn.Linear(32, 5), None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(torch.relu(self.conv(x)))
        return self.fc(torch.relu(x).flatten(1))


def built(kind: str) -> Net:
    torch.manual_seed(0)
    model = Net(KINDS[kind])
    with torch.no_grad():  # so that the norms are those of no weight
        for name, parameter in model.named_parameters():
            if name.endswith(ORIGINALS[kind][0]):
                parameter.mul_(1.5)
    return model


def compressed(client: nc.Client, kind: str, algorithm: str = "level") -> tuple[Any, Any]:
    compressor = ALGORITHMS[algorithm](client)
    model = compressor(built(kind))
    if algorithm == "agp":
        compressor.update_epoch(2)
    return compressor, model


def inputs() -> torch.Tensor:
    return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(3))


def dense_of(kind: str, state: Any = None) -> dict[str, torch.Tensor]:
    """Layer name -> the weight that the plain model computes, with the parameters of a state."""
    model = built(kind).eval()
    model.load_state_dict(state or model.state_dict())
    model(inputs())
    return {name: getattr(model, name).weight.detach() for name in NAMES}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@everywhere
@by_all
def test_the_forward_pass_uses_the_compressed_weight(
    client: nc.Client, kind: str, algorithm: str
) -> None:
    compressor, model = compressed(client, kind, algorithm)
    assert compressor.plan.compressed == tuple(NAMES)
    dense = dense_of(kind)
    for train in (True, False):
        output = model.train(train)(inputs())
        for name in NAMES:
            weight = getattr(model, name).weight
            if algorithm in ("level", "agp"):
                mask = compressor.masks[name]
                assert mask.float().mean() == pytest.approx(0.5, abs=0.02)
                assert torch.equal(weight, dense[name] * mask)
            else:
                assert 2 < weight.unique().numel() <= (256 if algorithm == "naive" else 16)
                assert algorithm == "dorefa" or (weight - dense[name]).abs().max() < 0.1
        plain = built(kind).train(train)
        with torch.no_grad():
            plain.load_state_dict(compressor.compressed_state_dict())
            assert close(plain(inputs()), output)
    keys = [f"{name}.{key}" for name in NAMES for key in ORIGINALS[kind]]
    assert set(keys) <= set(model.state_dict())
    before = built(kind).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@everywhere
def test_layers_have_the_names_and_types_of_the_modules(client: nc.Client, kind: str) -> None:
    for model in (built(kind), compressed(client, kind)[1]):
        told = [(layer.name, layer.op_type, layer.shape) for layer in layers(model)]
        assert told == [
            ("conv", "Conv1d", (6, 4, 3)),
            ("last", "Conv1d", (8, 3, 3)),
            ("fc", "Linear", (5, 32)),
        ]
    pruner = LevelPruner([{"sparsity": 0.5, "op_names_re": [".*"]}], client=client)
    pruner(built(kind))
    assert pruner.plan.compressed == tuple(NAMES)  # and not what they are computed from


@everywhere
def test_coverage_counts_them_with_all_their_parameters(client: nc.Client, kind: str) -> None:
    pruner, model = compressed(client, kind)
    coverage = pruner.plan.coverage
    assert (coverage.compressed, coverage.weights, coverage.left_out) == (3, 3, ())
    biases = sum(getattr(model, name).bias.numel() for name in NAMES)
    assert coverage.parameters == sum(p.numel() for p in model.parameters())
    assert coverage.compressed_parameters == coverage.parameters - biases
    part = LevelPruner([{"sparsity": 0.5, "op_names": ["fc"]}], client=client)
    part(built(kind))
    left_out = {(p.name, p.op_type) for p in part.plan.coverage.left_out}
    assert left_out == {("conv.weight", "Conv1d"), ("last.weight", "Conv1d")}


@everywhere
@by_all
def test_unwrap_writes_it_and_restores_the_modules(
    client: nc.Client, kind: str, algorithm: str
) -> None:
    compressor, model = compressed(client, kind, algorithm)
    output = model.eval()(inputs())
    state = compressor.compressed_state_dict()
    zeros = {name: getattr(model, name).weight == 0 for name in NAMES}
    compressor.unwrap()
    plain = built(kind)
    for one, other in zip(model.modules(), plain.modules()):
        assert type(one).__name__ == type(other).__name__
        assert type(one).__mro__[1:] == type(other).__mro__[1:]
        assert set(vars(one)) == set(vars(other))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for name in NAMES:  # also before a forward pass
        assert torch.equal(getattr(model, name).weight == 0, zeros[name])
    assert close(model(inputs()), output)
    with torch.no_grad():  # what it is computed from still counts
        for parameter in model.parameters():
            parameter.zero_()
    assert not model.fc.bias.any()


@everywhere
@by_all
def test_gradients_reach_the_parameters_and_their_steps_are_noticed(
    client: nc.Client, kind: str, algorithm: str
) -> None:
    compressor, model = compressed(client, kind, algorithm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        optimizer.step()
        compressor.step()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert not torch.equal(parameter, before[key])
        dense = dense_of(kind, model.state_dict())
        for name in NAMES:
            weight = getattr(model, name).weight
            mask = getattr(compressor, "masks", {}).get(name)
            if mask is not None:
                assert torch.equal(weight, dense[name] * mask)
            elif algorithm == "dorefa":
                squashed = dense[name].tanh()
                codes = ((squashed / (2 * squashed.abs().max()) + 0.5) * 15).round()
                assert torch.allclose(weight, codes * 2 / 15 - 1, atol=1e-6)
            else:
                assert (weight - dense[name]).abs().max() < 0.15


@normed
def test_the_gradient_is_that_of_the_masked_weight(client: nc.Client, kind: str) -> None:
    pruner, model = compressed(client, kind)
    model(inputs()).square().sum().backward()
    plain = built(kind)
    weights = {}
    for name in NAMES:
        g, v = (plain.get_parameter(f"{name}.{key}") for key in ORIGINALS[kind])
        dims = tuple(d for d in range(v.dim()) if g.dim() == 0 or g.shape[d] == 1)
        norm = v.square().sum(dims, keepdim=True).sqrt()
        weights[name] = g * v / norm * pruner.masks[name]
    out = nn.functional.conv1d(inputs(), weights["conv"], plain.conv.bias, padding=1)
    out = nn.functional.conv1d(out.relu(), weights["last"], plain.last.bias, groups=2)
    out = nn.functional.linear(out.relu().flatten(1), weights["fc"], plain.fc.bias)
    out.square().sum().backward()
    for (key, one), (_, other) in zip(model.named_parameters(), plain.named_parameters()):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4), key


@everywhere
def test_an_unchanged_weight_is_not_asked_for_again(client: nc.Client, kind: str) -> None:
    quantizer, model = compressed(client, kind, "qat by weights")
    model(inputs())
    calls = quantizer.stats.calls
    for _ in range(3):
        model(inputs())
        assert model.conv.weight is not None
    assert quantizer.stats.calls == calls
    with torch.no_grad():
        model.get_parameter(f"conv.{ORIGINALS[kind][0]}").mul_(1.1)
    model(inputs())
    assert quantizer.stats.calls > calls


@everywhere
def test_a_read_between_forward_passes_has_the_present_parameters(
    client: nc.Client, kind: str
) -> None:
    pruner, model = compressed(client, kind)
    model(inputs())
    before = model.conv.weight.detach().clone()
    model.get_parameter(f"conv.{ORIGINALS[kind][0]}").data.mul_(2)
    assert close(model.conv.weight, 2 * before)


@normed
@pytest.mark.parametrize("name", NAMES)
def test_slices_without_a_kept_element_are_zero_and_not_nan(
    client: nc.Client, kind: str, name: str
) -> None:
    class Slices(Pruner):
        """Prunes a slice of each norm, and all of the weight that has one norm only."""

        options = {"sparsity": float}

        def calc_mask(self, weight: torch.Tensor, config: Any, **_: Any) -> torch.Tensor:
            mask = torch.ones_like(weight, dtype=torch.bool)
            mask[(..., 1) if name == "last" else 1 if name == "conv" else slice(None)] = False
            return mask

    pruner = Slices([{"sparsity": 0.5, "op_names": [name]}], client=client)
    model = pruner(built(kind))
    output = model.eval()(inputs())
    plain = built(kind).eval()
    plain.load_state_dict(pruner.compressed_state_dict())
    mask = pruner.masks[name]
    pruner.unwrap()
    for each in (plain, model):
        assert close(each(inputs()), output)
        assert torch.equal(getattr(each, name).weight != 0, mask)
    g, v = (model.get_parameter(f"{name}.{key}") for key in ORIGINALS[kind])
    assert (g == 0).any()
    assert v.all()  # keeps the direction, so that training goes on
    model(inputs()).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@everywhere
def test_copies_compute_the_same_and_are_unwrapped(client: nc.Client, kind: str) -> None:
    pruner, model = compressed(client, kind)
    output = model.eval()(inputs())
    twins = [copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))]
    file = io.BytesIO()
    if kind == "hook":
        torch.save(model, file)
        file.seek(0)
        twins.append(
            torch.load(file, **({} if torch.__version__ < "2" else {"weights_only": False}))
        )
    else:
        with pytest.raises(RuntimeError, match="only supported through state_dict"):
            torch.save(model, file)
    for twin in twins:
        assert torch.equal(twin(inputs()), output)
        pruned = twin.conv.weight == 0
        assert close(unwrap(twin)(inputs()), output)
        assert torch.equal(twin.conv.weight == 0, pruned)
        twin(inputs()).sum().backward()
    assert torch.equal(model(inputs()), output)


@everywhere
def test_an_average_follows_and_a_snapshot_does_not(client: nc.Client, kind: str) -> None:
    pruner = AGPPruner(
        [{"final_sparsity": 0.8, "start_epoch": 0, "end_epoch": 4, **DEFAULT}], client=client
    )
    model = pruner(built(kind))
    model(inputs())
    average = torch.optim.swa_utils.AveragedModel(model)
    snapshot = copy.deepcopy(model)
    for epoch in range(1, 5):
        pruner.update_epoch(epoch)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        model(inputs())
        average.update_parameters(model)
        average(inputs())
    assert torch.equal(average.module.conv.weight != 0, pruner.masks["conv"])
    snapshot(inputs())
    assert (snapshot.conv.weight == 0).float().mean() < 0.1


@everywhere
@pytest.mark.parametrize("algorithm", ["level", "qat"])
def test_a_plain_copy_gets_the_answers(client: nc.Client, kind: str, algorithm: str) -> None:
    compressor, model = compressed(client, kind, algorithm)
    output = model.eval()(inputs())
    other = built(kind).eval()
    assert compressor.apply_to(other) is other
    assert torch.equal(other(inputs()), output)
    assert close(unwrap(other)(inputs()), output)


@everywhere
def test_a_trainer_resumes_with_its_masks(client: nc.Client, kind: str) -> None:
    pruner, model = compressed(client, kind, "agp")
    output = model.eval()(inputs())
    state, weights = copy.deepcopy(pruner.state_dict()), model.state_dict()
    pruner.session.close()
    other = ALGORITHMS["agp"](client)
    again = other(built(kind).eval())
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert torch.equal(again(inputs()), output)
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in other.masks.items())
    other.rebind()
    assert torch.equal(again(inputs()), output)


@everywhere
def test_a_pruner_and_a_quantizer_share_a_module(client: nc.Client, kind: str) -> None:
    model = built(kind)
    pruner, quantizer = ALGORITHMS["level"](client), ALGORITHMS["qat"](client)
    quantizer(pruner(model))
    output = model.eval()(inputs())
    assert ((model.conv.weight == 0) | pruner.masks["conv"]).all()
    pruner.unwrap()
    assert close(model(inputs()), output)
    quantizer.unwrap()
    assert close(model(inputs()), output)
    assert type(model.conv).__name__ == type(built(kind).conv).__name__


def removed(module: nn.Module, kind: str) -> nn.Module:
    if kind == "hook":
        return nn.utils.remove_weight_norm(module)
    return parametrize.remove_parametrizations(module, "weight")


@everywhere
@pytest.mark.parametrize("algorithm", ["level", "naive"])
def test_a_removed_norm_leaves_a_compressed_parameter(
    client: nc.Client, kind: str, algorithm: str
) -> None:
    compressor, model = compressed(client, kind, algorithm)
    output = model.eval()(inputs())
    twin = copy.deepcopy(model)
    for name in NAMES:
        removed(getattr(model, name), kind)
    # A parametrization leaves the weight as it is read, which is quantized again.
    rounding = 1e-2 if algorithm == "naive" else 1e-6
    assert torch.allclose(model(inputs()), output, atol=rounding)
    assert torch.equal(twin(inputs()), output)  # whose class is not the original's
    assert sorted(model.state_dict()) == sorted(
        f"{n}.{p}" for n in NAMES for p in ("weight", "bias")
    )
    with torch.no_grad():
        model.conv.weight.fill_(0.5)
    compressor.step()
    model(inputs())
    if algorithm == "level":
        assert torch.equal(model.conv.weight != 0, compressor.masks["conv"])
    compressor.unwrap()
    assert type(model.conv) is nn.Conv1d
    removed(twin.conv, kind)
    assert torch.allclose(twin(inputs()), output, atol=rounding)


def check_plain(model: nn.Module, output: torch.Tensor, first: str) -> None:
    """That a model is no longer compressed, and its first layer has a class like this."""
    cls = type(model.conv)
    assert (cls.__name__, cls.__mro__[-3]) == (first, nn.modules.conv._ConvNd), cls.__mro__
    assert not any(name.startswith("_weight_state") for name in vars(model.conv))
    assert close(model(inputs()), output)


@everywhere
@pytest.mark.parametrize("order", ["before", "after"])
def test_other_parameters_are_parametrized_or_no_longer(
    client: nc.Client, kind: str, order: str
) -> None:
    model = built(kind)
    if order == "before":
        parametrize.register_parametrization(model.conv, "bias", Doubled())
    pruner = ALGORITHMS["level"](client)
    pruner(model)
    output = model(inputs()).detach()
    if order == "after":
        parametrize.register_parametrization(model.conv, "bias", Doubled())
        parametrize.register_parametrization(model.fc, "bias", Doubled())
    twins = [copy.deepcopy(model) for _ in range(3)]
    parametrize.remove_parametrizations(model.conv, "bias")
    removed(twins[0].conv, kind)  # and the bias stays parametrized
    for each in (model, *twins):
        assert close(each(inputs()), output)
        assert torch.equal(each.conv.weight != 0, pruner.masks["conv"])
        assert each.conv.weight_mask is not None
    parametrize.remove_parametrizations(twins[1].conv, "bias")
    pruner.unwrap()
    check_plain(model, output, "Conv1d" if kind == "hook" else "ParametrizedConv1d")
    for twin in twins:
        unwrap(twin)
    check_plain(twins[0], output, "ParametrizedConv1d")
    assert sorted(twins[0].conv.state_dict()) == ["parametrizations.bias.original", "weight"]
    parametrize.remove_parametrizations(twins[0].conv, "bias")
    check_plain(twins[0], output, "Conv1d")
    check_plain(twins[2], output, "ParametrizedConv1d")
    twins[2](inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in twins[2].parameters())


def test_a_layer_without_a_computed_weight_gets_a_parametrized_bias(client: nc.Client) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    pruner = LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client)
    weight = pruner(model)[0].weight.detach().clone()
    parametrize.register_parametrization(model[0], "bias", Doubled())
    twin = copy.deepcopy(model)
    assert torch.equal(twin[0].weight, weight)
    assert type(twin[0]) is not type(model[0])
    pruner.unwrap()
    unwrap(twin)
    for each in (model, twin):
        assert type(each[0]).__mro__[1] is nn.Linear
        assert torch.equal(each[0].weight, weight)
        parametrize.remove_parametrizations(each[0], "bias")
        assert type(each[0]) is nn.Linear


def test_a_weight_that_is_parametrized_later_is_a_replaced_one(
    client: nc.Client, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruner = LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client)
    pruner(model)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    with pytest.warns(UserWarning, match=r"layers \['0'\] are no longer those that were bound"):
        pruner.update_epoch(1)
    with pytest.raises(nc.FailedPreconditionError, match=r"layers \['0'\] are no longer"):
        pruner.export(tmp_path, "safetensors")


@everywhere
def test_a_norm_may_be_removed_after_unwrap(client: nc.Client, kind: str) -> None:
    pruner, model = compressed(client, kind)
    output = model.eval()(inputs())
    pruner.unwrap()
    for name in NAMES:
        removed(getattr(model, name), kind)
    assert close(model(inputs()), output)
    assert type(model.fc) is nn.Linear


@everywhere
@pytest.mark.parametrize("algorithm", ["level", "qat"])
def test_exports_have_the_weight_in_place_of_its_parameters(
    client: nc.Client, tmp_path: Path, kind: str, algorithm: str
) -> None:
    from safetensors_files import read_safetensors  # which is not found by the ranks below

    compressor, model = compressed(client, kind, algorithm)
    output = model.eval()(inputs())
    plain = nn.Module.__new__(Net)
    torch.manual_seed(0)
    Net.__init__(plain, lambda module, dim=0: module)
    for format in ("safetensors", "pth"):
        files = compressor.export(tmp_path / format, format)
        if format == "pth":
            state = torch.load(next(path for path in files if path.suffix == ".pth"))
        else:
            (file,) = (path for path in files if path.suffix == ".safetensors")
            tensors, _ = read_safetensors(file)
            state = {key: torch.from_numpy(array.copy()) for key, (_, array) in tensors.items()}
        plain.load_state_dict(state)
        assert torch.equal(plain.eval()(inputs()), output)
    compressor.export_model(
        str(tmp_path / "model.pth"), *([str(tmp_path / "mask.pth")] if algorithm == "level" else [])
    )
    same = built(kind).eval()
    same.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert close(same(inputs()), output)


@everywhere
@pytest.mark.parametrize("algorithm", ["level", "qat", "naive"])
def test_an_onnx_file_has_the_weights(
    client: nc.Client, tmp_path: Path, kind: str, algorithm: str
) -> None:
    onnx = pytest.importorskip("onnx", reason="not packaged by Debian; the part torch has it")
    runtime = pytest.importorskip("onnxruntime", reason="not packaged by Debian")
    compressor, model = compressed(client, kind, algorithm)
    output = model.eval()(inputs())
    for _ in range(2):  # the model is unchanged
        path = tmp_path / "model.onnx"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="onnx_path gets")
            compressor.export_model(
                str(tmp_path / "model.pth"), onnx_path=str(path), input_shape=[3, 4, 6]
            )
        graph = onnx.load(path).graph
        names = {constant.name for constant in graph.initializer}
        for name in NAMES:
            assert {f"{name}.weight", f"{name}.weight_codes"} & names
            assert not {f"{name}.{key}" for key in ORIGINALS[kind]} & names
        session = runtime.InferenceSession(str(path))
        (found,) = session.run(None, {graph.input[0].name: inputs().numpy()})
        assert torch.allclose(torch.from_numpy(found), output, atol=1e-4)
        assert torch.equal(model(inputs()), output)


@everywhere
def test_tied_modules_are_one_layer(client: nc.Client, kind: str) -> None:
    model = nn.ModuleDict({"a": KINDS[kind](nn.Linear(8, 8)), "b": KINDS[kind](nn.Linear(8, 8))})
    a, b = model["a"], model["b"]
    if kind == "hook":
        b.weight_g, b.weight_v = a.weight_g, a.weight_v
    else:
        b.parametrizations = a.parametrizations
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["a", "b"]}], client=client)
    pruner(model)
    assert pruner.plan.compressed == ("a",)
    assert (a.weight == 0).sum() == 32
    assert torch.equal(a.weight, b.weight)
    state, weight = pruner.compressed_state_dict(), a.weight.detach()
    assert all(torch.equal(state[f"a.{k}"], state[f"b.{k}"]) for k in ORIGINALS[kind])
    twin = unwrap(copy.deepcopy(model))
    whole = modules.unwrapped(copy.deepcopy(model), whole=True)  # as for ONNX
    pruner.unwrap()
    for each in (model, twin, whole):
        assert close(each["a"].weight, weight)
        assert torch.equal(each["a"].weight, each["b"].weight)
    assert sorted(whole.state_dict()) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    assert torch.equal(whole["b"].weight, weight)


@normed
def test_a_parameter_that_something_else_has_too_is_left_alone(
    client: nc.Client, kind: str
) -> None:
    model = nn.ModuleDict({"a": KINDS[kind](nn.Linear(8, 8)), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].get_parameter(ORIGINALS[kind][1])
    pruner = LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client)
    with pytest.warns(UserWarning, match="weights of a are computed"):
        pruner(model)
    assert pruner.plan.compressed == ("b",)


@everywhere
def test_one_line_compresses_them(client: nc.Client, kind: str) -> None:
    model = prune(built(kind), "level", sparsity=0.5, client=client)
    assert (model.conv.weight == 0).sum() == 36
    model.compressor.unwrap()
    model = quantize(model, "qat", quant_bits=4, client=client)
    model(inputs())
    assert model.conv.weight.unique().numel() <= 16


def test_outputs_and_inputs_are_quantized(client: nc.Client) -> None:
    for kind in KINDS:
        rule = {"quant_types": ["weight", "output", "input"], "quant_bits": 8, **DEFAULT}
        quantizer = QATQuantizer([rule], client=client)
        model = quantizer(built(kind))
        for _ in range(3):
            model(inputs())
            quantizer.step()
        assert {"output_scale", "input_scale"} <= set(quantizer.calibration["conv"])
        assert model.eval()(inputs()).unique().numel() <= 256


@everywhere
def test_an_assigned_weight_is_the_parametrizations_matter(client: nc.Client, kind: str) -> None:
    pruner, model = compressed(client, kind)
    model(inputs())
    with torch.no_grad():
        model.conv.weight = torch.full((6, 4, 3), 2.0)
    model(inputs())
    if kind == "hook":  # computes it anew in each forward pass
        assert torch.equal(model.conv.weight, dense_of(kind)["conv"] * pruner.masks["conv"])
    else:
        assert close(model.conv.weight, 2.0 * pruner.masks["conv"])


def test_an_algorithm_that_wants_their_gradients_is_refused(client: nc.Client) -> None:
    from nni_compression.adapters.pruning import PrunerBinding
    from nni_compression.torch.backend import TorchBackend

    for kind in KINDS:
        model = nn.Sequential(nn.Linear(4, 4), KINDS[kind](nn.Linear(4, 4)))
        backend = TorchBackend(model)
        weights = backend.find_weights([])
        for wanting, refused in ((weights[:1], False), (weights, True)):
            plans = {
                w.name: types.SimpleNamespace(step_inputs=("gradient",), statistics={})
                for w in wanting
            }
            plan = types.SimpleNamespace(layers=plans, needs_step=False, needs_update_epoch=False)
            tracker: Any = types.SimpleNamespace(
                status=dict.fromkeys(plans), plan=plan, epoch=0, step=0
            )
            if refused:
                with pytest.raises(nc.InvalidArgumentError, match="layer '1', which is computed"):
                    PrunerBinding(tracker, wanting, backend, None)
            else:
                PrunerBinding(tracker, wanting, backend, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.spectral_norm,
    ],
    ids=["symmetric", "spectral_norm", "orthogonal", "hook of spectral_norm"],
)
def test_a_computation_without_an_inverse_is_left_alone_with_a_warning(
    client: nc.Client, make: Callable[[nn.Module], nn.Module]
) -> None:
    model = nn.Sequential(make(nn.Linear(7, 7)), nn.Linear(7, 7))
    before = copy.deepcopy(model.state_dict())
    pruner = LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client)
    with pytest.warns(UserWarning, match="weights of 0 are computed or scripted"):
        pruner(model)
    assert pruner.plan.compressed == ("1",)
    assert "0." in str(pruner.plan.coverage)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not (model[0].weight == 0).any()


@normed
def test_a_chain_of_parametrizations_is_inverted(client: nc.Client, kind: str) -> None:
    if kind == "hook":
        pytest.skip("it is the only one")
    model = nn.Sequential(doubled(by_parametrization(nn.Linear(8, 8))))
    pruner = LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client)
    weight = pruner(model)[0].weight.detach()
    assert (weight == 0).sum() == 32
    pruner.unwrap()
    assert close(model[0].weight, weight)


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("hook", "level"), ("parametrization", "qat by weights"), ("one's own", "level")],
)
def test_a_compiled_model_is_one_graph(client: nc.Client, kind: str, algorithm: str) -> None:
    if not hasattr(torch.library, "custom_op"):
        pytest.skip("operators of one's own came with PyTorch 2.4")
    torch._dynamo.reset()
    eager, model = compressed(client, kind, algorithm)
    compressor, twin = compressed(client, kind, algorithm)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for own, each, call in ((eager, model, model), (compressor, twin, compiled)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            call(inputs()).square().mean().backward()
            optimizer.step()
            own.step()
    for (key, one), (_, other) in zip(model.named_parameters(), twin.named_parameters()):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), key
    with torch.no_grad():
        assert torch.allclose(compiled(inputs()), model(inputs()), rtol=1e-4, atol=1e-5)
    # A copy follows with a graph break for each of its layers.
    copied = copy.deepcopy(model)
    output = torch.compile(copied, backend="aot_eager")(inputs())
    assert torch.allclose(output, model(inputs()), rtol=1e-4, atol=1e-5)


def replica(module: nn.Module) -> Any:
    """As torch.nn.parallel.replicate makes it."""
    made = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        setattr(made, name, replica(child))
    for name, parameter in module._parameters.items():
        setattr(made, name, parameter * 1)  # no leaf
    return made


@everywhere
@pytest.mark.parametrize("algorithm", ["level", "qat by weights"])
def test_the_replicas_of_dataparallel_compute_the_same(
    client: nc.Client, kind: str, algorithm: str
) -> None:
    _, model = compressed(client, kind, algorithm)
    output = model(inputs())
    found = replica(model)(inputs())
    assert torch.equal(found, output)
    found.sum().backward()
    assert all(p.grad.count_nonzero() > 0 for p in model.parameters())


RANK = """
import sys
import test_torch_weight_norm
test_torch_weight_norm.be_a_rank(*sys.argv[1:])
"""


def be_a_rank(rank: str, address: str, meeting: str) -> None:
    """One of two processes with halves of a batch."""
    with process_group(int(rank), 2, meeting):
        for kind in KINDS:
            model: Any = nn.parallel.DistributedDataParallel(built(kind))
            pruner = LevelPruner([{"sparsity": 0.5, **DEFAULT}], server=address)
            pruner.on_every_rank(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                model(inputs()[int(rank) :: 2]).square().mean().backward()
                optimizer.step()
                pruner.step()
            pruner.unwrap()
            total = sum(float(p.detach().double().sum()) for p in model.parameters())
            print(total, int((model.module.conv.weight == 0).sum()))
            del model, optimizer, pruner


def test_ranks_of_ddp_agree(server: Any, tmp_path: Path) -> None:
    first, second = run_ranks(2, RANK, server.address, str(tmp_path / "meeting"))
    assert first == second
    assert [line.split()[1] for line in first.splitlines()] == ["36"] * len(KINDS)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert"])
class TestTransformers:
    def model(self, name: str) -> Any:
        transformers = pytest.importorskip("transformers")
        kind = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert"}[name]
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = getattr(transformers, f"{kind}Config")(
            **sizes,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_kernel=(3, 3),
            conv_stride=(2, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            vocab_size=8,
        )
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}Model")(config).eval()

    def output(self, model: Any) -> torch.Tensor:
        sound = torch.randn(1, 200, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return model(sound).last_hidden_state

    @pytest.mark.parametrize("algorithm", ["prune", "quantize"])
    def test_a_folder_loads_with_the_compressed_weights(
        self, client: nc.Client, tmp_path: Path, name: str, algorithm: str
    ) -> None:
        model = self.model(name)
        if algorithm == "prune":
            prune(model, sparsity=0.5, client=client)
        else:
            quantize(model, quant_bits=8, client=client)
        conv = model.encoder.pos_conv_embed.conv
        assert "encoder.pos_conv_embed.conv" in model.compressor.plan.compressed
        expected = self.output(model)
        model.compressor.save_pretrained(tmp_path)
        found, problems = type(self.model(name)).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(problems.values()), problems
        assert close(self.output(found.eval()), expected)
        assert torch.equal(found.encoder.pos_conv_embed.conv.weight == 0, conv.weight == 0)


@normed
def test_a_folder_of_codes_is_refused(client: nc.Client, tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(config)
    NORMS[kind](model.model.layers[0].mlp.up_proj)
    quantize(model, quant_bits=8, client=client)
    with pytest.raises(nc.InvalidArgumentError, match="weights of model.layers.0.mlp.up_proj are"):
        model.compressor.save_pretrained(tmp_path, format="compressed-tensors")
    assert not list(tmp_path.iterdir())
