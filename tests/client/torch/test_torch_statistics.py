"""Statistics that are collected in a training loop, compared with plain formulas."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import nni_compression as nc
from nni_compression._calls.exchange import combined
from nni_compression.errors import make_error
from servers import ServerProcess, server_binary

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import Pruner
from nni_compression.torch.statistics import TorchCollector
from nni_compression.torch.weights import find_weights
from nni_compression.values.plan import LayerPlan
from torch_helpers import run_ranks

PLUGIN = server_binary().parents[1] / "tests/compression/plugins/statistics"
KINDS_OF_INPUTS = (
    "input_square_sum",
    "input_second_moment",
    "input_abs_max",
    "input_abs_sum",
    "input_histogram",
    "input_range",
)
KINDS_OF_OUTPUTS = ("output_histogram", "output_zero_count", "output_sum", "output_range")
KINDS_OF_GRADIENTS = ("weight_gradient", "filter_taylor", "squared_gradient")


class NeedsStatistics(Pruner):
    """Removes weight i where number i of the first kind of statistics is below a threshold."""

    algorithm = "needs_statistics"


@pytest.fixture(scope="module")
def plugin() -> Iterator[ServerProcess]:
    """A server with that algorithm."""
    with ServerProcess(f"--plugin_dir={PLUGIN}") as process:
        yield process


@pytest.fixture
def plugin_client(plugin: ServerProcess) -> Iterator[nc.Client]:
    with nc.Client(plugin.address, timeout=60) as connected:
        yield connected


SHAPES = {  # of an input of each layer, after the samples
    "fc": (5, 6),
    "conv1": (4, 9),
    "conv2": (4, 6, 5),
    "conv3": (2, 4, 3, 3),
}


class Layers(nn.Module):
    """One layer of each kind, next to each other; convolutions with and without groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 3)
        self.conv1 = nn.Conv1d(4, 8, 3, groups=2, stride=2)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv3d(2, 2, 2, groups=2)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        results = [getattr(self, name)(value).relu() for name, value in inputs.items()]
        return torch.stack([result.square().mean() for result in results]).sum()


def inputs(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    found = {
        name: scale * torch.randn(seed % 3 + 2, *shape, generator=random)
        for name, shape in SHAPES.items()
    }
    found["conv2"] = found["conv2"].contiguous(memory_format=torch.channels_last)
    return found


def compress(
    kinds: Any, client: nc.Client, model: nn.Module, optimizer: Any = None, **options: Any
) -> NeedsStatistics:
    pruner = NeedsStatistics(
        model,
        [{"kinds": list(kinds), "op_types": ["default"]}],
        optimizer,
        client=client,
        **options,
    )
    pruner.compress()
    return pruner


def unsent(pruner: Pruner) -> dict[str, dict[str, Any]]:
    """Layer -> kind -> its one part that was not sent."""
    found: dict[str, dict[str, Any]] = {}
    for name, kinds in pruner.state_dict().get("statistics", {}).items():
        for kind, entry in kinds.items():
            if "fresh" in entry:
                found.setdefault(name, {})[kind] = entry["fresh"]
    return found


def rows_of(value: torch.Tensor, name: str) -> np.ndarray[Any, Any]:
    """[samples and positions, channels] in double."""
    axis = -1 if name == "fc" else 1
    array = np.moveaxis(value.detach().double().numpy(), axis, -1)
    return array.reshape(-1, array.shape[-1])


def counted(numbers: np.ndarray[Any, Any], bins: int, exponent: int) -> np.ndarray[Any, Any]:
    places = np.clip(np.floor(numbers / 2.0**exponent), -bins // 2, bins // 2 - 1)
    return np.bincount((places + bins // 2).astype(int).ravel(), minlength=bins)


def expected(kind: str, rows: np.ndarray[Any, Any], groups: int, part: Any) -> Any:
    inner = rows.reshape(len(rows), groups, -1)
    moments = np.einsum("ngi,ngj->gij", inner, inner)
    lower = np.stack([moment[np.tril_indices(len(moment))] for moment in moments])
    found = {
        "input_square_sum": (inner**2).sum(0),
        "input_second_moment": lower,
        "input_abs_max": np.abs(inner).max(0),
        "input_abs_sum": np.abs(inner).sum(0),
        "output_zero_count": (rows == 0).sum(0),
        "output_sum": rows.sum(0),
    }.get(kind)
    if found is not None:
        return found[0] if groups == 1 and kind.startswith("input") else found
    if kind.endswith("range"):
        return [rows.min(), rows.max()]
    # The smallest width with which no number is beyond the bins.
    bins = len(part["values"])
    largest = np.abs(rows).max()
    assert bins / 4 * 2.0 ** part["exponent"] <= largest < bins / 2 * 2.0 ** part["exponent"]
    return counted(rows, bins, part["exponent"])


def eagerly(run: Callable[[], Any]) -> None:
    run()


def in_inference_mode(run: Callable[[], Any]) -> None:
    with torch.inference_mode():
        run()


@pytest.mark.parametrize("kind", [*KINDS_OF_INPUTS, *KINDS_OF_OUTPUTS])
def test_inputs_and_outputs_are_added_up_over_batches(plugin_client: nc.Client, kind: str) -> None:
    model = Layers()
    pruner = compress([kind], plugin_client, model)
    seen: dict[str, list[Any]] = {name: [] for name in SHAPES}
    side = 1 if kind.startswith("output") else 0
    handles = [
        getattr(model, name).register_forward_hook(
            lambda module, args, result, name=name: seen[name].append((args[0], result)[side])
        )
        for name in SHAPES
    ]
    # In training, in evaluation and in inference, with numbers that need wider and wider bins.
    for seed, run in enumerate([eagerly, eagerly, in_inference_mode]):
        model.train(seed == 0)
        run(lambda seed=seed: model(inputs(seed, scale=10.0 ** (seed - 1))))
    for handle in handles:
        handle.remove()
    for name, found in unsent(pruner).items():
        rows = np.concatenate([rows_of(value, name) for value in seen[name]])
        groups = getattr(getattr(model, name), "groups", 1) if side == 0 else 1
        part = found[kind]
        reference = np.asarray(expected(kind, rows, groups, part), np.float64)
        np.testing.assert_allclose(part["values"].numpy(), reference, rtol=1e-5, atol=1e-5)
        assert part["values"].shape == reference.shape
        assert part["count"] == len(rows)
    pruner.step()
    model.eval()(inputs(0))  # the parts are sent, and the mask is asked for
    report = {layer.name: layer.statistics[kind] for layer in pruner.session.info().layers}
    assert report.keys() == SHAPES.keys()
    assert all(statistic.sources.keys() == {0} for statistic in report.values())
    pruner.close()


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [("", -np.inf, np.inf), ("relu", 0, np.inf), ("relu6", 0, 6)],
)
def test_zeros_and_sums_of_outputs_are_those_after_the_activation(
    activation: str, low: float, high: float
) -> None:
    torch.manual_seed(0)
    model = Layers()
    kinds = {"output_zero_count": (6,), "output_sum": (6,), "output_range": (2,)}
    plan = {"conv2": LayerPlan("conv2", True, statistics=kinds, activation=activation)}
    (weight,) = [each for each in find_weights(model) if each.name == "conv2"]
    totals = TorchCollector([weight], plan, {})._totals["conv2"]
    values = 5 * torch.randn(4, 6, 7)
    values[values.abs() < 2] = 0
    for half in (values[:2], values[2:]):
        for total in totals.values():
            total.add(total.kind.reduce(half, 1), 14)
    after = np.clip(values.double().numpy(), low, high)
    found = {kind: total.part().values for kind, total in totals.items()}
    np.testing.assert_array_equal(found["output_zero_count"], (after == 0).sum((0, 2)))
    np.testing.assert_allclose(found["output_sum"], after.sum((0, 2)), rtol=1e-6)
    assert found["output_range"].tolist() == [values.min(), values.max()]
    for bad in (np.inf, -np.inf, np.nan):
        values[1, 2, 3] = bad
        for kind in ("output_zero_count", "output_sum"):
            finite = totals[kind].kind.reduce(values, 1).isfinite()
            assert finite.tolist() == [True, True, False, True, True, True], (kind, bad)


def test_an_activation_that_is_not_known_is_refused_by_name() -> None:
    model = Layers()
    plan = {"fc": LayerPlan("fc", True, statistics={"output_sum": (3,)}, activation="17")}
    (weight,) = [each for each in find_weights(model) if each.name == "fc"]
    with pytest.raises(nc.UnimplementedError, match="output_sum of layer 'fc' after .* 17; .*relu"):
        TorchCollector([weight], plan, {})


def trained(model: nn.Module, optimizer: Any, seed: int) -> dict[str, Any]:
    """One step; the gradients that it was made of."""
    optimizer.zero_grad()
    model(inputs(seed)).backward()
    return {name: getattr(model, name)._parameters["weight"].grad.clone() for name in SHAPES}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: getattr(model, name)._parameters["weight"].detach().clone() for name in SHAPES}


def test_gradients_are_added_up_when_the_optimizer_steps(plugin_client: nc.Client) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(
        [
            {"params": [*model.fc.parameters(), *model.conv1.parameters()], "lr": 0.5},
            {"params": [*model.conv2.parameters(), *model.conv3.parameters()]},
        ],
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
    )
    rates = {"fc": 0.5, "conv1": 0.5, "conv2": 0.1, "conv3": 0.1}
    pruner = compress(KINDS_OF_GRADIENTS, plugin_client, model, optimizer)
    sums: dict[str, dict[str, Any]] = {
        name: dict.fromkeys(KINDS_OF_GRADIENTS, 0) for name in SHAPES
    }
    for seed in range(3):
        gradients = trained(model, optimizer, seed)
        before = weights(model)
        optimizer.step()
        for name in SHAPES:
            w, g = before[name].double(), gradients[name].double()
            sums[name]["weight_gradient"] += rates[name] * w * g
            sums[name]["filter_taylor"] += ((w * g) ** 2).flatten(1).sum(1)
            sums[name]["squared_gradient"] += (g**2).mean().reshape(1)
    found = unsent(pruner)
    for name in SHAPES:
        for kind in KINDS_OF_GRADIENTS:
            part = found[name][kind]
            torch.testing.assert_close(
                part["values"].double(), sums[name][kind], rtol=1e-5, atol=1e-8
            )
            assert part["count"] == 3
    pruner.close()


def test_the_mask_is_made_of_all_steps_that_were_taken(plugin_client: nc.Client) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = NeedsStatistics(
        model,
        [{"kinds": ["weight_gradient"], "threshold": 0.0, "op_types": ["default"]}],
        optimizer,
        client=plugin_client,
    )
    pruner.compress()
    total = dict.fromkeys(SHAPES, torch.zeros(()))
    for seed in range(3):
        gradients = trained(model, optimizer, seed)
        for name, weight in weights(model).items():
            total[name] = total[name] + weight * gradients[name] * 0.1
        optimizer.step()
    assert pruner.metrics()["calls"] == 0  # since it was bound
    pruner.step()
    model(inputs(0))
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, total[name] >= 0), name
    assert unsent(pruner) == {}
    pruner.close()


class AsInLightning:
    """Takes a step whose closure computes the gradients."""

    def __init__(self, by_name: bool) -> None:
        self.by_name = by_name

    def __call__(self, optimizer: Any, closure: Callable[[], Any]) -> None:
        result = optimizer.step(closure=closure) if self.by_name else optimizer.step(closure)
        assert result == 7


@pytest.mark.parametrize("step", [AsInLightning(False), AsInLightning(True)])
def test_gradients_that_a_closure_computes_are_those_of_its_own_step(
    plugin_client: nc.Client, step: Any
) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = compress(["squared_gradient"], plugin_client, model, optimizer)
    total = 0.0
    for seed in range(2):

        def closure(seed: int = seed) -> int:
            nonlocal total
            total += float(trained(model, optimizer, seed)["fc"].square().mean())
            return 7

        step(optimizer, closure)
    part = unsent(pruner)["fc"]["squared_gradient"]
    assert part["count"] == 2
    assert float(part["values"]) == pytest.approx(total, rel=1e-6)
    pruner.close()


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="PyTorch 1.13 scales on CUDA only")
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_leaves_out_the_steps_that_it_skips(plugin_client: nc.Client, fused: bool) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler: Any = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[attr-defined]
    pruner = compress(KINDS_OF_GRADIENTS, plugin_client, model)
    expected = torch.zeros(3, 6)
    for seed in range(3):
        optimizer.zero_grad()
        scaler.scale(model(inputs(seed))).backward()
        scale = scaler.get_scale()
        weight = model.fc._parameters["weight"]
        if seed == 1:
            weight.grad[0, 0] = float("inf")
        else:
            expected += 0.1 * weight.detach() * weight.grad / scale
        scaler.step(optimizer)
        scaler.update()
    part = unsent(pruner)["fc"]["weight_gradient"]
    torch.testing.assert_close(part["values"], expected, rtol=1e-5, atol=1e-8)
    assert unsent(pruner)["fc"]["squared_gradient"]["values"].isfinite().all()
    pruner.close()


def test_gradients_of_several_batches_count_as_one_step(plugin_client: nc.Client) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = compress(["squared_gradient"], plugin_client, model, optimizer)
    for seed in range(3):
        model(inputs(seed)).backward()
    gradient = model.fc._parameters["weight"].grad
    optimizer.step()
    part = unsent(pruner)["fc"]["squared_gradient"]
    assert part["count"] == 1
    assert float(part["values"]) == pytest.approx(float(gradient.square().mean()), rel=1e-6)
    pruner.close()


def test_half_precision_is_added_up_in_single(plugin_client: nc.Client) -> None:
    model = Layers().to(torch.bfloat16)
    pruner = compress(["input_square_sum"], plugin_client, model)
    given = {name: torch.full((300, *shape), 3.0).bfloat16() for name, shape in SHAPES.items()}
    model({"fc": given["fc"]})
    assert unsent(pruner)["fc"]["input_square_sum"]["values"].tolist() == [9.0 * 300 * 5] * 6
    pruner.close()


def test_layers_may_be_called_by_keyword_and_without_a_batch(plugin_client: nc.Client) -> None:
    model = Layers()
    pruner = compress(["input_abs_sum"], plugin_client, model)
    model.conv2(input=torch.ones(4, 6, 5))
    model.fc(torch.ones(6))
    model.fc(torch.ones(0, 6))  # nothing to count
    found = unsent(pruner)
    assert found["conv2"]["input_abs_sum"]["values"].tolist() == [30.0] * 4
    assert found["conv2"]["input_abs_sum"]["count"] == 30
    assert found["fc"]["input_abs_sum"]["count"] == 1
    pruner.close()


def test_copies_and_plain_models_are_not_observed(plugin_client: nc.Client) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = compress(["input_abs_sum", "squared_gradient"], plugin_client, model, optimizer)
    copied = copy.deepcopy(model)
    copied(inputs(0)).backward()
    torch.optim.SGD(copied.parameters(), lr=0.1).step()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert unsent(pruner) == {}
    trained(model, optimizer, 0)
    pruner.close()
    found = unsent(pruner)
    optimizer.step()
    model(inputs(0))
    assert unsent(pruner).keys() == found.keys()
    assert unsent(pruner)["fc"]["input_abs_sum"]["count"] == found["fc"]["input_abs_sum"]["count"]
    assert "squared_gradient" not in found["fc"]


def test_forward_passes_ask_for_nothing_before_the_first_step_with_statistics(
    plugin_client: nc.Client,
) -> None:
    model = Layers()
    pruner = compress(["output_sum"], plugin_client, model)
    pruner.update_epoch(0)
    with pytest.warns(UserWarning, match="step 1 needs masks, but no forward pass was observed"):
        pruner.step()
    model(inputs(0))
    model(inputs(1))
    assert all(mask.all() for mask in pruner._masks().masks().values())
    other = compress(["output_sum"], plugin_client, Layers())
    with pytest.raises(
        nc.FailedPreconditionError, match="but no forward pass was observed for layers 'fc'"
    ):
        other.refresh()  # asks
    pruner.step()
    model(inputs(2))
    assert not all(mask.all() for mask in pruner.masks.values())
    pruner.close()


def test_sums_that_are_not_finite_are_refused_by_the_layer_and_dropped(
    plugin_client: nc.Client,
) -> None:
    model = Layers()
    pruner = compress([*KINDS_OF_INPUTS, *KINDS_OF_OUTPUTS], plugin_client, model)
    bad = inputs(0)
    bad["conv1"][0, 0, 0] = float("nan")
    model(bad)
    pruner.step()
    with pytest.raises(nc.InvalidArgumentError, match="conv1") as raised:
        model(inputs(0))
    assert list(raised.value.errors) == ["conv1"]
    model(inputs(1))  # collects again
    pruner.step()
    model(inputs(2))
    sent = {layer.name: layer.statistics for layer in pruner.session.info().layers}
    counts = {kind: statistic.count for kind, statistic in sent["conv1"].items()}
    assert counts == {  # of three samples
        **dict.fromkeys(KINDS_OF_INPUTS, 3 * 9),
        **dict.fromkeys(KINDS_OF_OUTPUTS, 3 * 4),
    }
    pruner.close()


def test_only_the_refused_parts_of_a_layer_are_dropped(
    plugin_client: nc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Layers()
    pruner = compress(["input_abs_sum", "output_sum"], plugin_client, model)
    model(inputs(0))
    before = unsent(pruner)
    pruner.step()

    def fail(parts: Any, source: int) -> None:
        codes = {"input_abs_sum": "INVALID_ARGUMENT", "output_sum": "RESOURCE_EXHAUSTED"}
        errors = {kind: make_error(nc.StatusCode(code), kind) for kind, code in codes.items()}
        raise combined({"fc": combined(errors, {}, "kinds")}, {}, "layers")

    with monkeypatch.context() as patched:
        patched.setattr(pruner.session, "add_statistics", fail)
        with pytest.raises(nc.InvalidArgumentError, match=r"input_abs_sum \(1 more kind"):
            model(inputs(0))
    left = pruner.state_dict()["statistics"]
    kept = left["fc"]["output_sum"]["counted"]  # it will be, once it is answered
    assert torch.equal(kept["values"], before["fc"]["output_sum"]["values"])
    del before["fc"]["input_abs_sum"]
    assert {name: list(kinds) for name, kinds in left.items()} == {
        name: list(kinds) for name, kinds in before.items()
    }
    pruner.close()


def as_the_server_adds_up(kind: str, one: Any, other: Any) -> np.ndarray[Any, Any]:
    """Two parts as one, in double."""
    a, b = (part.values.astype(np.float64) for part in (one, other))
    if kind.endswith("_max"):
        return np.maximum(a, b)
    if kind.endswith("_range"):
        return np.array([min(a[0], b[0]), max(a[1], b[1])])
    if not kind.endswith("_histogram"):
        total: np.ndarray[Any, Any] = a + b
        return total
    exponent = max(one.exponent, other.exponent)
    total = np.zeros_like(a)
    for part in (one, other):
        bins = np.arange(len(a)) - len(a) // 2 >> exponent - part.exponent
        np.add.at(total, bins + len(a) // 2, part.values.astype(np.float64))
    return total


def test_a_checkpoint_has_the_sums_of_the_session(
    plugin_client: nc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = [*KINDS_OF_INPUTS, *KINDS_OF_OUTPUTS, *KINDS_OF_GRADIENTS]
    pruner = compress(kinds, plugin_client, model, optimizer)
    sent: list[Any] = []
    add = pruner.session.add_statistics

    def recording(parts: Any, source: int) -> Any:
        sent.append({name: dict(by_kind) for name, by_kind in parts.items()})
        return add(parts, source=source)

    monkeypatch.setattr(pruner.session, "add_statistics", recording)
    statistics = pruner._masks().statistics
    assert statistics is not None
    for seed, scale in enumerate((1.0, 8.0)):
        optimizer.zero_grad()
        model(inputs(seed, scale)).backward()
        optimizer.step()
        statistics.send(SHAPES)
    first, second = sent
    state = pruner.state_dict()["statistics"]
    for name in SHAPES:
        for kind in kinds:
            one, other = first[name][kind], second[name][kind]
            counted = state[name][kind]["counted"]
            expected = as_the_server_adds_up(kind, one, other)
            assert counted["values"].dtype == torch.float64
            np.testing.assert_array_equal(counted["values"].numpy(), expected)
            assert counted["count"] == one.count + other.count
            assert counted["exponent"] == max(one.exponent, other.exponent)
    pruner.close()


def test_a_compiled_model_is_observed(plugin_client: nc.Client) -> None:
    if not hasattr(torch, "compile"):
        pytest.skip("torch has no compile")
    model = Layers()
    pruner = compress(["input_square_sum"], plugin_client, model)
    compiled = torch.compile(model, backend="eager")
    for seed in range(2):
        compiled(inputs(seed))
    total = sum(inputs(seed)["fc"].square().sum((0, 1)) for seed in range(2))
    part = unsent(pruner)["fc"]["input_square_sum"]
    torch.testing.assert_close(part["values"], total.double(), rtol=1e-5, atol=1e-6)
    pruner.close()


BIASES = {name: f"{name}.bias" for name in SHAPES}  # any parameter with a number per channel


def counted_parameters(pruner: Pruner) -> dict[str, tuple[int, int]]:
    """Layer -> source and number of the last part with its parameter."""
    found = {}
    for layer in pruner.session.info().layers:
        for source, part in layer.statistics["parameter"].sources.items():
            found[layer.name] = source, part.sequence
    return found


def test_a_parameter_is_sent_as_it_is_when_a_mask_is_asked_for(plugin_client: nc.Client) -> None:
    model = Layers().half()
    rule = {"kinds": ["parameter"], "threshold": 0.0, "op_types": ["default"]}
    pruner = NeedsStatistics(model, [rule], client=plugin_client, statistic_parameters=BIASES)
    pruner.compress()
    with torch.no_grad():
        for name in SHAPES:
            getattr(model, name).bias.copy_(torch.randn(len(getattr(model, name).bias)))
    pruner.step()
    for name, mask in pruner.masks.items():
        cycled = np.resize(getattr(model, name).bias.detach().numpy() >= 0, mask.shape)
        assert np.array_equal(mask.numpy(), cycled), name
    assert counted_parameters(pruner) == dict.fromkeys(SHAPES, (0, 1))
    statistics = pruner._masks().statistics
    assert statistics is not None
    statistics.send(SHAPES)
    assert counted_parameters(pruner) == dict.fromkeys(SHAPES, (0, 1)), "it has not changed"
    with torch.no_grad():
        model.fc.bias[1] += 1
    statistics.send(SHAPES)
    assert counted_parameters(pruner) == {**dict.fromkeys(SHAPES, (0, 1)), "fc": (0, 2)}
    pruner.close()


def test_a_parameter_that_is_not_finite_is_refused_until_it_is(plugin_client: nc.Client) -> None:
    model = Layers()
    pruner = compress(["parameter"], plugin_client, model, statistic_parameters=BIASES)
    with torch.no_grad():
        model.fc.bias[0] = float("inf")
    for _ in range(2):
        with pytest.raises(nc.InvalidArgumentError, match="parameter of layer .*fc.* has inf"):
            pruner.refresh()
    with torch.no_grad():
        model.fc.bias[0] = 1
    pruner.refresh()
    assert counted_parameters(pruner) == dict.fromkeys(SHAPES, (0, 1))
    pruner.close()


def test_a_parameter_waits_for_the_sums_that_go_with_it(plugin_client: nc.Client) -> None:
    model = Layers()
    kinds = ["parameter", "output_sum"]
    pruner = compress(kinds, plugin_client, model, statistic_parameters=BIASES)
    pruner.update_epoch(0)
    model(inputs(0))  # asks for nothing
    pruner.step()
    model(inputs(1))
    assert counted_parameters(pruner) == dict.fromkeys(SHAPES, (0, 1))
    pruner.close()


def test_another_session_gets_the_parameters_again(
    plugin_client: nc.Client, caplog: pytest.LogCaptureFixture
) -> None:
    model = Layers()
    pruner = compress(["parameter"], plugin_client, model, statistic_parameters=BIASES)
    pruner.refresh()
    assert "statistics" not in pruner.state_dict()
    pruner.rebind()
    statistics = pruner._masks().statistics
    assert statistics is not None
    statistics.send(SHAPES)
    assert counted_parameters(pruner) == dict.fromkeys(SHAPES, (0, 1))
    assert "starts without" not in caplog.text
    pruner.close()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, r"which has to be named, as in statistic_parameters={'fc': 'bn.weight'}"),
        ({"conv1": "fc.bias"}, "which has to be named"),
        (
            {"fc": "bn.weight"},
            r"which is 'bn.weight' by statistic_parameters; it must be the name of a parameter",
        ),
        (
            {"fc": "conv1.bias"},
            r"which is 'conv1.bias' .*; it must have the shape \[3\], and has \[8\]",
        ),
        ({"fc": "fc.weight"}, r"it must have the shape \[3\], and has \[3, 6\]"),
        ({"fc": "fc.bias", "fx": "fc.bias"}, "statistic_parameters names 'fx', which is no layer"),
    ],
)
def test_which_parameter_belongs_to_a_layer_has_to_be_told(
    plugin_client: nc.Client, given: Any, why: str
) -> None:
    rule = {"kinds": ["parameter"], "op_names": ["fc"]}
    pruner = NeedsStatistics(Layers(), [rule], client=plugin_client, statistic_parameters=given)
    with pytest.raises(nc.InvalidArgumentError, match=why):
        pruner.compress()
    assert not pruner.is_bound


def test_parameters_are_told_by_layer(plugin_client: nc.Client) -> None:
    with pytest.raises(nc.InvalidArgumentError, match="statistic_parameters is a list; .* dict"):
        compress(["parameter"], plugin_client, Layers(), statistic_parameters=["fc.bias"])


class Others(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.up = nn.ConvTranspose1d(2, 3, 2)
        weight_norm = getattr(nn.utils.parametrizations, "weight_norm", nn.utils.weight_norm)
        self.normed = weight_norm(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("layer", "kind", "why"),
    [
        ("table", "input_square_sum", "for Linear, Conv1d, Conv2d and Conv3d only"),
        ("up", "output_sum", "for Linear, Conv1d, Conv2d and Conv3d only"),
        ("normed", "weight_gradient", "computed from other parameters"),
        ("up", "parameter", "has to be named"),
    ],
)
def test_what_cannot_be_collected_is_refused_by_name_when_compressing(
    plugin_client: nc.Client, layer: str, kind: str, why: str
) -> None:
    model = Others()
    rule = {"kinds": [kind], "op_names": [layer]}
    pruner = NeedsStatistics(model, [rule], client=plugin_client, labels={"job": f"{layer} {kind}"})
    with pytest.raises(nc.InvalidArgumentError, match=f"the {kind} of layer '{layer}', .*{why}"):
        pruner.compress()
    assert not pruner.is_bound
    assert plugin_client.sessions({"job": f"{layer} {kind}"}) == []


@pytest.mark.skipif(torch.__version__ >= "2", reason="all optimizers are observed")
def test_pytorch_1_13_has_to_be_given_the_optimizer(plugin_client: nc.Client) -> None:
    with pytest.raises(nc.InvalidArgumentError, match="the filter_taylor of layer 'fc', .*optimi"):
        compress(["filter_taylor"], plugin_client, Layers())


def test_a_rank_that_joins_by_hand_is_refused(plugin_client: nc.Client) -> None:
    pruner = compress(["input_abs_max"], plugin_client, Layers())
    with pytest.raises(nc.UnimplementedError, match=r"layer 'fc'.*on_every_rank\(\)"):
        compress(["input_abs_max"], plugin_client, Layers(), session=pruner.session.id)
    assert pruner.session.info().state == "active"
    pruner.close()


def test_a_checkpoint_has_what_was_sent_and_what_was_not(
    plugin_client: nc.Client, caplog: pytest.LogCaptureFixture
) -> None:
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = [*KINDS_OF_INPUTS, *KINDS_OF_OUTPUTS, *KINDS_OF_GRADIENTS]
    pruner = compress(kinds, plugin_client, model, optimizer)

    def run(seed: int) -> None:
        trained(model, optimizer, seed)
        optimizer.step()

    run(0)
    buffer = io.BytesIO()
    torch.save(pruner.state_dict(), buffer)
    buffer.seek(0)
    other = NeedsStatistics(
        copy.deepcopy(model),
        [{"kinds": kinds, "op_types": ["default"]}],
        optimizer,
        client=plugin_client,
    )
    other.load_state_dict(torch.load(buffer))
    other.compress()
    assert "starts without" not in caplog.text
    found, same = unsent(pruner), unsent(other)
    assert found.keys() == same.keys() == SHAPES.keys()
    for name, parts in found.items():
        for kind, part in parts.items():
            assert torch.equal(part["values"], same[name][kind]["values"])
            assert part["count"] == same[name][kind]["count"]
            assert part["exponent"] == same[name][kind]["exponent"]
    other.close()

    def sources() -> dict[str, Any]:
        """What the session's accumulators are of, and how many samples they have."""
        layers = pruner.session.info().layers
        return {
            layer.name: {kind: report.count for kind, report in layer.statistics.items()}
            for layer in layers
        }

    for seed in (1, 2):
        pruner.step()
        model(inputs(0))  # sends them
        run(seed)
    kept, counted = pruner.state_dict()["statistics"], sources()
    pruner.rebind()
    pruner.step()
    statistics = pruner._masks().statistics
    assert statistics is not None
    statistics.send(SHAPES)
    again = pruner.state_dict()["statistics"]
    for name, parts in kept.items():
        assert parts.keys() == set(kinds)
        for kind, entry in parts.items():
            fresh, before = entry["fresh"], entry["counted"]
            assert before["count"] == counted[name][kind]
            assert again[name][kind].keys() == {"source", "counted"}
            assert again[name][kind]["counted"]["count"] == before["count"] + fresh["count"]
            assert sources()[name][kind] == before["count"] + fresh["count"]
    pruner.close()


RANK = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, meeting, address = int(sys.argv[1]), *sys.argv[2:]
import nni_compression as nc
from test_torch_statistics import BIASES, Layers, NeedsStatistics, inputs
from torch_helpers import process_group

KINDS = ["weight_gradient", "input_square_sum", "parameter"]

def begin(state=None):
    torch.set_num_threads(1)
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = {"kinds": KINDS, "threshold": 0.0, "op_types": ["default"]}
    pruner = NeedsStatistics(
        model, [rule], optimizer, server=address, statistic_parameters=BIASES
    )
    pruner.on_every_rank(model, state)
    return pruner, model, DistributedDataParallel(model), optimizer

def train(wrapped, optimizer, seed):
    optimizer.zero_grad()
    wrapped(inputs(seed)).backward()
    optimizer.step()

def masks_are_alike(pruner):
    masks = [None, None]
    dist.all_gather_object(masks, pruner.masks)
    return all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())

def main():
    pruner, model, wrapped, optimizer = begin()
    for step in range(2):
        train(wrapped, optimizer, 3 * step + rank)
    state = pruner.state_dict()
    pruner.step()
    if rank == 1:  # may ask first
        model(inputs(0))
    dist.barrier()
    model(inputs(0))
    assert masks_are_alike(pruner)
    assert not all(mask.all() for mask in pruner.masks.values())
    for layer in pruner.session.info().layers:
        sources = {kind: found.sources for kind, found in layer.statistics.items()}
        assert {k: list(s) for k, s in sources.items()} == {
            "weight_gradient": [0], "input_square_sum": [0, 1], "parameter": [0],
        }
        assert sources["weight_gradient"][0].count == 2
    dist.barrier()

    # Each rank continues with its own.
    again = begin(state)
    again[0].step()
    again[1](inputs(0))
    assert masks_are_alike(again[0])
    for layer in again[0].session.info().layers:
        assert list(layer.statistics["weight_gradient"].sources) == [0]
        assert list(layer.statistics["input_square_sum"].sources) == [0, 1]
    dist.barrier()

    # What one cannot send, nobody goes on without.
    pruner, model, wrapped, optimizer = begin()
    bad = inputs(rank)
    if rank == 1:
        bad["fc"][0] = float("inf")
    model(bad)
    try:
        pruner.step()
    except nc.InvalidArgumentError as error:
        print(list(error.errors))
    dist.barrier()

with process_group(rank, 2, meeting):
    main()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_ranks_send_theirs_before_any_of_them_asks(plugin: ServerProcess, tmp_path: Any) -> None:
    paths = [Path(__file__).parents[2] / "testing/python", Path(nc.__file__).parents[1]]
    found = [str(path) for path in (*paths, Path(__file__).parent)]
    printed = run_ranks(
        2, RANK, str(tmp_path / "meeting"), plugin.address, PYTHONPATH=os.pathsep.join(found)
    )
    assert printed == ["['fc']\n"] * 2
