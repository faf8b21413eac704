"""Smaller models by latency: `shrink` with `target_latency`."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import logging
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import nni_compression as nc

pytest.importorskip("torch_pruning")
pytest.importorskip("scipy")
from nni_compression.torch import shrink
from nni_compression.torch.latency import runtimes, table, target, widths
from nni_compression.torch.latency.calls import LayerCall, calls_of
from nni_compression.torch.latency.table import Table
from torch_helpers import vit

NAME = "counted"


def cost(model, *positional, **named):
    """Seconds on a machine that takes a nanosecond for a multiplication in a layer."""
    total = 0

    def count(module, _, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    model = copy.deepcopy(model).eval()
    for _, module in layers(model):
        module.register_forward_hook(count)
    with torch.no_grad():
        model(*positional, **named)
    return total * 1e-9


@functools.cache
def cost_of_call(call):
    return cost(nn.Sequential(call.layer(torch.float32)), torch.zeros(call.shape))


class Counted(runtimes.Runtime):
    """Takes as long as there is to compute, by a clock of its own.

    Attributes:
        layers: calls that were timed.
        overhead: seconds of a model beside its layers.
    """

    name = NAME
    version = "1"
    now = 0.0
    overhead = 0.0
    layers: list[str] = []  # noqa: RUF012

    def _run(self, seconds):
        def run():
            Counted.now += seconds

        return run

    def layer(self, call, dtype):
        Counted.layers.append(str(call))
        return self._run(cost_of_call(call))

    def model(self, model, positional, named):
        return self._run(Counted.overhead + cost(model, *positional, **named))


@pytest.fixture(autouse=True)
def counted(monkeypatch, tmp_path):
    """The runtime "counted", and an empty folder for latencies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(runtimes.RUNTIMES, NAME, Counted)
    monkeypatch.setattr(runtimes, "time", types.SimpleNamespace(perf_counter=lambda: Counted.now))
    monkeypatch.setattr(Counted, "now", 0.0)
    monkeypatch.setattr(Counted, "layers", [])
    torch.manual_seed(0)


class Net(nn.Module):
    """A residual block, a depthwise and a grouped convolution, a concatenation and a Linear."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.branch = nn.Conv2d(32, 24, 1)
        self.joined = nn.Conv2d(56, 40, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(40 * 4, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        x = F.relu(x + self.conv3(F.relu(self.conv2(x))))
        x = F.relu(self.grouped(self.depthwise(x)))
        x = F.relu(self.joined(torch.cat([x, F.relu(self.branch(x))], 1)))
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 2).flatten(1))))


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def layers(model):
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]


# A model.


@pytest.mark.parametrize("share", [0.8, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("overhead", [0.0, 5e-4])
def test_the_latency_is_reached(share, overhead, monkeypatch):
    monkeypatch.setattr(Counted, "overhead", overhead)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    small = shrink(model, IMAGES, target_latency=share, runtime=NAME)
    latency = small.shrink_report.latency
    computed = [overhead + cost(each, IMAGES) for each in (model, small)]
    assert [latency.before, latency.after] == pytest.approx(computed, rel=1e-6)
    assert latency.ratio == pytest.approx(share, rel=0.05)
    assert not latency.is_missed
    assert (latency.target, latency.runtime) == (share, "counted 1")
    assert latency.threads == torch.get_num_threads()
    assert latency.gap == 0
    assert f"target {share:.1%}) in counted 1 on" in str(small.shrink_report)
    assert not small.shrink_report.kept
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small(IMAGES).sum().backward()
    assert small.training


def test_a_transformer():
    model, images = vit(depth=3, embed_dim=96, num_heads=6), torch.randn(1, 3, 32, 32)
    small = shrink(model, images, target_latency=0.6, runtime=NAME)
    assert small.shrink_report.latency.ratio == pytest.approx(0.6, rel=0.05)
    assert small(images).shape == (1, 1000)
    assert any(block.attn.num_heads < 6 for block in small.blocks)
    assert any(block.mlp.fc1.out_features < 384 for block in small.blocks)


def test_what_stays_is_the_model_without_the_lightest_filters():
    """Where one layer is all that counts: the smallest squared norms go."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 3)).eval()
    small = shrink(model, IMAGES, target_latency=0.5, runtime=NAME)
    squares = model[0].weight.detach().square().sum((1, 2, 3))
    gone = small.shrink_report.removed["0"]
    assert list(gone) == sorted(squares.argsort()[: len(gone)].tolist())
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked[0].weight[list(gone)] = 0
        masked[0].bias[list(gone)] = 0
    with torch.no_grad():
        assert torch.allclose(small(IMAGES), masked(IMAGES), atol=1e-6)


def test_the_loss_is_the_smallest_one_within_the_latency():
    """By trying all widths of two layers that a third one uses."""
    torch.manual_seed(1)
    first, second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(32, 4, 3)).eval()
    with torch.no_grad():
        first.weight *= torch.linspace(0.1, 1, 32)[:, None, None, None]
    small = shrink(model, IMAGES, target_latency=0.4, runtime=NAME)
    report = small.shrink_report

    def loss(layer, kept):
        energy = layer.weight.detach().double().square().sum((1, 2, 3)).sort().values
        share = float(energy[: 32 - kept].sum() / energy.sum())
        return ((1 - share) ** -0.5 - 1) / 0.5

    def macs(a, b):
        return a * 3 * 9 * 256 + b * a * 9 * 256 + 4 * b * 9 * 196

    budget = report.latency.ratio * macs(32, 32) * (1 + 1e-9)
    best = min(
        loss(first, a) + loss(second, b)
        for a, b in itertools.product(range(2, 33, 2), repeat=2)
        if macs(a, b) <= budget
    )
    found = loss(first, small[0].out_channels) + loss(second, small[2].out_channels)
    assert found == pytest.approx(best, rel=1e-6)


def test_filters_that_masks_remove_go_in_any_case(client):
    from nni_compression.torch import L1FilterPruner

    model = Net()
    rules = [{"sparsity": 0.5, "op_names": ["conv2", "fc1"]}]
    with L1FilterPruner(model, rules, client=client, example_inputs=IMAGES) as pruner:
        pruner.compress()
        masks = pruner.masks
        small = shrink(model, IMAGES, target_latency=0.4, runtime=NAME)
    for name in ("conv2", "fc1"):
        gone = (masks[name].flatten(1) == 0).all(1).nonzero().flatten().tolist()
        assert gone
        assert set(gone) <= set(small.shrink_report.removed[name])
    latency = small.shrink_report.latency
    assert latency.ratio == pytest.approx(0.4, rel=0.05)
    assert latency.before == pytest.approx(cost(Net(), IMAGES), rel=1e-6)


def test_masks_that_remove_more_than_the_target_are_kept_and_it_is_said(caplog):
    model = Net()
    with torch.no_grad():
        for name in ("conv2", "joined", "fc1"):
            getattr(model, name).weight[1:] = 0
    with caplog.at_level(logging.WARNING, logger="nni_compression"):
        small = shrink(model, IMAGES, target_latency=0.9, runtime=NAME)
    assert small.conv2.out_channels == 1
    assert small.conv1.out_channels == 32
    assert small.shrink_report.latency.is_missed
    assert small.shrink_report.latency.ratio < 0.9
    assert "target 90.0%" in caplog.text


def test_float64():
    model = Net().double()
    small = shrink(model, IMAGES.double(), target_latency=0.5, runtime=NAME)
    assert small.conv1.weight.dtype == torch.float64
    assert small.shrink_report.latency.ratio == pytest.approx(0.5, rel=0.05)


# The runtimes that are there.


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_real_runtimes(runtime, monkeypatch):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    monkeypatch.undo()  # the clock
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    small = shrink(model, IMAGES, target_latency=0.9, runtime=runtime)
    latency = small.shrink_report.latency
    assert latency.runtime.startswith(f"{runtime} ")
    assert min(latency.before, latency.after) > 0
    assert small.shrink_report.parameters_after < small.shrink_report.parameters_before


CALLS = [
    (nn.Linear(6, 4), (5, 6)),
    (nn.Linear(6, 4, bias=False), (2, 5, 6)),
    (nn.Linear(6, 4), (2, 5, 6)),
    (nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 9)),
    (nn.Conv2d(6, 4, (3, 5), padding=(0, 2), dilation=(2, 1), bias=False), (2, 6, 9, 7)),
    (nn.Conv2d(6, 4, (2, 4), padding="same"), (2, 6, 9, 7)),
    (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 9, 7)),
    (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 9, 7)),
    (nn.Conv3d(6, 4, 3, padding=1), (1, 6, 4, 5, 6)),
    (nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1), (2, 6, 9)),
    (nn.ConvTranspose2d(6, 4, (3, 2), stride=2, padding=(1, 0), groups=2), (2, 6, 9, 7)),
    (nn.ConvTranspose3d(6, 4, 2), (1, 6, 4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), CALLS, ids=lambda each: str(each)[:40])
def test_a_layer_alone_in_onnx_runtime_is_that_of_pytorch(layer, shape, monkeypatch):
    """Its graph is made by hand, so it is compared."""
    pytest.importorskip("onnxruntime")
    value = torch.randn(shape)
    call = LayerCall.of(layer, value)
    made = call.layer(torch.float32)
    made.load_state_dict(layer.state_dict())
    monkeypatch.setattr(LayerCall, "layer", lambda *_: made)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: value)
    found = runtimes.OnnxRuntime().layer(call, torch.float32)()
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found[0]), layer(value), atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), CALLS, ids=lambda each: str(each)[:40])
def test_calls_have_all_that_a_latency_depends_on(layer, shape):
    value = torch.randn(shape)
    model = nn.Sequential(layer)
    [call] = calls_of(model, lambda: model(value))["0"]
    assert call == LayerCall.of(layer, value)
    assert call.inputs == (layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
    wider = call.resized(call.inputs * 2, call.outputs * 2)
    made = wider.layer(torch.float32)
    assert made.weight.dim() == layer.weight.dim()
    assert made(torch.zeros(wider.shape)).shape[wider.channel] == call.outputs * 2
    assert len({str(call), str(wider), str(call.resized(call.inputs, call.outputs))}) == 2


def test_a_layer_that_is_called_twice_counts_twice():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(calls_of(model, lambda: model(torch.zeros(2, 4)))["0"]) == 2


# The solver.


def random_problem(numbers, count, pairs):
    each = [np.sort(numbers.random(numbers.integers(2, 5)))[::-1] for _ in range(count)]
    problem = widths.Problem(each)
    for _ in range(pairs):
        first, second = (
            None if part == count else int(part) for part in numbers.integers(0, count + 1, 2)
        )
        shape = [1 if part is None else len(each[part]) for part in (first, second)]
        seconds = numbers.random(shape).cumsum(0).cumsum(1)
        problem.add(first, second, lambda a, b, seconds=seconds: float(seconds[a, b]))
    return problem


def all_widths(problem):
    return itertools.product(*(range(len(each)) for each in problem.losses))


def loss_of(problem, chosen):
    return sum(own[each] for own, each in zip(problem.losses, chosen))


@pytest.mark.parametrize("seed", range(30))
def test_the_solver_finds_what_trying_all_widths_finds(seed):
    numbers = np.random.default_rng(seed)
    problem = random_problem(numbers, count=5, pairs=int(numbers.integers(1, 12)))
    seconds = sorted(problem.seconds(each) for each in all_widths(problem))
    budget = seconds[len(seconds) * int(numbers.integers(1, 10)) // 10] * (1 + 1e-9)
    best = min(
        loss_of(problem, each) for each in all_widths(problem) if problem.seconds(each) <= budget
    )
    found = widths.solve(problem, budget, 30)
    assert problem.seconds(found.chosen) <= budget * (1 + 1e-6)
    assert loss_of(problem, found.chosen) == pytest.approx(best, abs=1e-5)
    assert found.gap <= 1e-5


def test_the_solver_finds_nothing_below_the_smallest_latency():
    problem = random_problem(np.random.default_rng(0), count=4, pairs=6)
    least = min(problem.seconds(each) for each in all_widths(problem))
    assert widths.solve(problem, least * 0.99, 30) is None
    assert widths.solve(problem, -1.0, 30) is None


# The table.


def call(outputs=4):
    return LayerCall.of(nn.Linear(8, 4), torch.zeros(2, 8)).resized(8, outputs)


def test_a_latency_is_measured_once():
    for _ in range(2):
        known = Table(Counted(), torch.float32)
        assert known.seconds(call()) == known.seconds(call()) > 0
        known.save()
    assert Counted.layers == [str(call())]
    shrink(Net(), IMAGES, target_latency=0.5, runtime=NAME)
    count = len(Counted.layers)
    assert count == len(set(Counted.layers))
    shrink(Net(), IMAGES, target_latency=0.3, runtime=NAME)
    assert len(Counted.layers) == count


def test_other_circumstances_have_other_files(monkeypatch):
    def path(dtype=torch.float32, **changed):
        runtime = Counted()
        for name, value in changed.items():
            setattr(runtime, name, value)
        return Table(runtime, dtype).path

    paths = [path(), path(torch.float64), path(threads=99), path(version="2"), path(name="other")]
    monkeypatch.setattr(table, "_processor", lambda: "another")
    paths.append(path())
    assert len(set(paths)) == len(paths)


def test_what_others_have_measured_meanwhile_stays():
    first, second = Table(Counted(), torch.float32), Table(Counted(), torch.float32)
    first.seconds(call(4))
    second.seconds(call(8))
    first.save()
    second.save()
    third = Table(Counted(), torch.float32)
    third.seconds(call(4))
    third.seconds(call(8))
    assert len(Counted.layers) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"seconds": 3}', '{"seconds": {"KEY": "x"}}', '{"seconds": {"KEY": -1.0}}'],
)
def test_a_damaged_file_is_written_anew(text):
    known = Table(Counted(), torch.float32)
    known.path.parent.mkdir(parents=True)
    known.path.write_text(text.replace("KEY", str(call())))
    known = Table(Counted(), torch.float32)
    assert known.seconds(call()) > 0
    assert Counted.layers
    known.save()
    assert json.loads(known.path.read_text())["seconds"].keys() == {str(call())}


def test_a_file_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(table, "_LARGEST", 3)
    for outputs in range(1, 6):
        known = Table(Counted(), torch.float32)
        known.seconds(call(outputs))
        known.save()
    kept = json.loads(known.path.read_text())["seconds"]
    assert list(kept) == [str(call(outputs)) for outputs in (3, 4, 5)]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, caplog):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    small = shrink(Net(), IMAGES, target_latency=0.5, runtime=NAME)
    assert small.shrink_report.latency.ratio == pytest.approx(0.5, rel=0.05)
    assert "the latencies of layers are not kept" in caplog.text


# Bad input.


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan"), True, "0.5", [0.5]])
def test_a_target_that_is_none_is_refused(share):
    with pytest.raises(
        nc.InvalidArgumentError, match=r"target_latency is .*; it must be a number above 0 and"
    ):
        shrink(Net(), IMAGES, target_latency=share, runtime=NAME)


def test_an_unknown_runtime_is_refused():
    with pytest.raises(nc.InvalidArgumentError, match="runtime is 'tensorrt'; it must be one of"):
        shrink(Net(), IMAGES, target_latency=0.5, runtime="tensorrt")


def test_a_runtime_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(nc.UnimplementedError, match="pip install onnx onnxscript onnxruntime"):
        shrink(Net(), IMAGES, target_latency=0.5, runtime="onnxruntime")


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(nc.UnimplementedError, match=r"scipy .* 'nni-compression\[shrink\]'"):
        shrink(Net(), IMAGES, target_latency=0.5, runtime=NAME)
    assert not Counted.layers


def test_a_target_that_cannot_be_reached_names_the_smallest(monkeypatch):
    model = Net()
    monkeypatch.setattr(Counted, "overhead", cost(model, IMAGES))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        nc.InvalidArgumentError,
        match=r"target_latency 0.4 cannot be reached in counted 1: the smallest .* is 0\.5\d\d of",
    ):
        shrink(model, IMAGES, target_latency=0.4, runtime=NAME)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_of_which_nothing_can_go_is_refused():
    with pytest.raises(
        nc.InvalidArgumentError, match="no filter of the Linear can go: it is in the output"
    ):
        shrink(nn.Linear(4, 4), torch.zeros(1, 4), target_latency=0.5, runtime=NAME)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    model = Net()
    with torch.no_grad():
        model.conv2.weight[3, 1] = value
    with pytest.raises(nc.InvalidArgumentError, match="the weight of 'conv2' has values that are"):
        shrink(model, IMAGES, target_latency=0.5, runtime=NAME)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(nc.InvalidArgumentError, match=f"these are {dtype}"):
        shrink(Net().to(dtype), IMAGES.to(dtype), target_latency=0.5, runtime=NAME)


def test_other_devices_are_refused():
    with pytest.raises(nc.InvalidArgumentError, match="measured on the CPU; the model is on meta"):
        target.Target(0.5, Counted()).check(Net().to("meta"))
