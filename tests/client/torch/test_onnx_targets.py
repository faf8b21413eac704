"""Graphs for the integer kernels of runtimes: where they round, and what they compute."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import nni_compression as nc
from nni_compression.torch import QATQuantizer
from onnx_helpers import apply, dense_graph, exported, onnx, optimized, run_with

TARGET = {"op_types": ["Conv2d", "Linear"], "target": "onnxruntime"}
TYPES = ["weight", "input", "output"]
IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module, rules: list[Any], x: torch.Tensor, client: nc.Client) -> QATQuantizer:
    """A quantizer that has observed the ranges of `x`, and its model in evaluation mode."""
    quantizer = QATQuantizer(rules, client=client)
    quantizer(model).train()
    with torch.no_grad():
        for _ in range(3):
            model(x)
            quantizer.step()
    model.eval()
    return quantizer


def graphs(
    model: nn.Module,
    rules: list[Any],
    x: torch.Tensor,
    client: nc.Client,
    folder: Path,
    target: str = "onnxruntime",
) -> tuple[Any, Any]:
    """The graph that rounds where training does, and that for a runtime."""
    dense = dense_graph(copy.deepcopy(model), x)
    quantizer = trained(model, rules, x, client)
    (bundle,) = quantizer.export(folder, "onnx")
    quantizer.close()
    return apply(copy.deepcopy(dense), bundle), apply(dense, bundle, target=target)


def operators(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def clamps(graph: Any) -> list[str]:
    """The operators that clamp numbers, and not codes."""
    codes = {node.output[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    found = (node for node in graph.graph.node if node.op_type in ("Clip", "Relu"))
    return sorted(node.op_type for node in found if node.input[0] not in codes)


class Block(nn.Module):
    """A residual block; with `stride` its shortcut is a convolution, too."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv2(F.relu(self.conv1(x))) + self.shortcut(x)
        return F.relu(result)


def residual_net() -> nn.Sequential:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    return nn.Sequential(*stem, Block(8, 8), Block(8, 12, stride=2), Block(12, 12), *head)


def test_a_residual_net_is_computed_with_integers(client: nc.Client, tmp_path: Path) -> None:
    model = residual_net()
    quantizer = trained(model, [TARGET], IMAGES, client)
    graph = exported(quantizer, tmp_path, example_inputs=(IMAGES,))
    found, kernels = optimized(IMAGES, graph)
    assert kernels["QLinearConv"] == 8, kernels
    assert kernels["Conv"] == 0
    assert kernels["QLinearAdd"] == 2  # the last one's result is averaged, which is not rounded
    assert (kernels["Add"], kernels["Relu"]) == (1, 1)
    assert kernels["QuantizeLinear"] == 2  # of the images, and of the average
    # The shortcuts are rounded here but not in training, and the outputs before a ReLU the reverse.
    far = np.abs(found - model(IMAGES).detach().numpy())
    assert far.max() <= 3 * quantizer.calibration["8"]["output_scale"]
    (plain,) = run_with({graph.graph.input[0].name: IMAGES}, graph)
    assert (np.abs(found - plain) > 1e-4).mean() < 0.1
    quantizer.close()


def test_openvino_reads_rounded_shortcuts_and_rounds_their_sums_once(
    client: nc.Client, tmp_path: Path
) -> None:
    rule = {**TARGET, "target": "openvino"}
    plain, graph = graphs(residual_net(), [rule], IMAGES, client, tmp_path, "openvino")
    assert operators(plain)["QuantizeLinear"] == 9
    assert (operators(plain)["Relu"], operators(graph)["Relu"]) == (7, 1)
    # The two layers that read the second sum share its rounding; pooling has one on either side.
    assert operators(graph)["QuantizeLinear"] == 9
    makers = {name: node for node in graph.graph.node for name in node.output}
    added = [
        sorted(makers[name].op_type for name in node.input)
        for node in graph.graph.node
        if node.op_type == "Add"
    ]
    assert added == [["Conv", "DequantizeLinear"], ["Conv", "Conv"], ["Conv", "DequantizeLinear"]]
    found, expected = (run_with({"x": IMAGES}, each)[0] for each in (graph, plain))
    assert 0 < np.abs(found - expected).max() < 0.05


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_sum_of_floats_is_not_rounded(client: nc.Client, tmp_path: Path, target: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, _ = convolutions()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = torch.sigmoid(self.first(x))
            result: torch.Tensor = self.second(value + value.square()) + value.mean()
            return result

    rule = {**TARGET, "target": "openvino"}
    plain, graph = graphs(Sum(), [rule], IMAGES, client, tmp_path, target)
    assert operators(plain)["QuantizeLinear"] == 2
    assert graph == plain


def clamped_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2), nn.ReLU6()),
        *(nn.Conv2d(8, 4, 2), nn.Flatten(), nn.Linear(36, 10)),
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_before_a_clamp_or_pooling_gives_the_same_bits(
    client: nc.Client, tmp_path: Path, bits: int
) -> None:
    rule = {**TARGET, "quant_types": ["weight", "input"]}
    rule["quant_bits"] = {"weight": 8, "input": bits}
    x = 20 * IMAGES  # so that the ReLU6 clamps
    plain, graph = graphs(clamped_net(), [rule], x, client, tmp_path)
    assert (clamps(plain), clamps(graph)) == (["Clip", "Relu"], [])
    np.testing.assert_array_equal(run_with({"x": x}, graph)[0], run_with({"x": x}, plain)[0])
    _, kernels = optimized(x, graph)
    assert (kernels["QLinearConv"], kernels["Conv"]) == (3, 0)


def test_outputs_are_rounded_once(client: nc.Client, tmp_path: Path) -> None:
    model = clamped_net()
    plain, graph = graphs(model, [TARGET], IMAGES, client, tmp_path)
    assert operators(plain)["QuantizeLinear"] == 8
    # The input, the last output, three results, and two of these after pooling or flattening.
    assert operators(graph)["QuantizeLinear"] == 7
    assert clamps(graph) == []
    left = {name for node in graph.graph.node for name in node.input}
    assert {i.name for i in graph.graph.initializer} <= left
    onnx.checker.check_model(graph, full_check=True)


@pytest.mark.parametrize("shape", [(8, 16), (4, 4, 16)], ids=["Gemm", "MatMul"])
def test_linear_layers_are_rounded_once(
    client: nc.Client, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain, graph = graphs(model, [TARGET], x, client, tmp_path)
    assert (operators(plain)["QuantizeLinear"], operators(graph)["QuantizeLinear"]) == (4, 3)
    assert operators(graph)["Relu"] == 0
    found, expected = (run_with({"x": x}, each)[0] for each in (graph, plain))
    assert 0 < np.abs(found - expected).max() < 0.05
    found, kernels = optimized(x, graph)
    assert kernels["MatMul"] + kernels["Gemm"] == 0, kernels
    assert np.abs(found - expected).max() < 0.05


class Readers(nn.Module):
    """A first layer whose rectified result has two readers: a second layer and another one."""

    def __init__(self, first: nn.Module, second: nn.Module, third: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = first, second, third

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = F.relu(self.first(x))
        other: torch.Tensor = self.third(hidden)
        return self.second(hidden), other


def convolutions() -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)


SYMMETRIC = {"weight": "per_channel_symmetric", **dict.fromkeys(TYPES[1:], "per_tensor_symmetric")}
FEW_BITS = {"weight": 8, "input": 4, "output": 8}


@pytest.mark.parametrize(
    ("layers", "rules"),
    [
        (convolutions(), [{**TARGET, "quant_scheme": SYMMETRIC}]),
        (convolutions(), [TARGET, {**TARGET, "op_names": ["third"], "quant_bits": FEW_BITS}]),
        ((*convolutions()[:2], nn.Identity()), [TARGET]),
        ((nn.Linear(12, 12), nn.Linear(12, 4), nn.Softmax(-1)), [TARGET]),
        ((*convolutions()[:2], nn.Sigmoid()), [{**TARGET, "quant_types": ["output", "weight"]}]),
    ],
    ids=["symmetric", "other codes", "an output", "float results", "no inputs"],
)
def test_a_graph_that_would_lose_by_it_stays_as_it_is(
    client: nc.Client, tmp_path: Path, layers: Any, rules: list[Any]
) -> None:
    plain, graph = graphs(Readers(*layers), rules, IMAGES, client, tmp_path)
    assert operators(plain)["QuantizeLinear"] >= 2
    assert graph == plain


def test_what_a_branch_of_the_graph_reads_stays(client: nc.Client, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    dense = dense_graph(model, IMAGES)
    (relu,) = (node for node in dense.graph.node if node.op_type == "Relu")
    make = onnx.helper
    value = make.make_tensor_value_info("branch", onnx.TensorProto.FLOAT, [4, 4, 10, 10])
    branch = make.make_graph(
        [make.make_node("Neg", [relu.output[0]], ["branch"])], "branch", [], [value]
    )
    condition = onnx.numpy_helper.from_array(np.array(True), "condition")
    dense.graph.initializer.append(condition)
    node = make.make_node("If", ["condition"], ["chosen"], then_branch=branch, else_branch=branch)
    dense.graph.node.append(node)
    dense.graph.output.add().CopyFrom(value)
    dense.graph.output[-1].name = "chosen"
    quantizer = trained(model, [TARGET], IMAGES, client)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    quantizer.close()
    plain = apply(copy.deepcopy(dense), bundle)
    assert apply(dense, bundle, target="onnxruntime") == plain


def pooled_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))


class PooledReaders(nn.Module):
    """A pooled result with two readers, of which the second layer is the first or the last."""

    def __init__(self, is_last: bool) -> None:
        super().__init__()
        self.first, _, _, self.second = pooled_net()
        self.is_last = is_last

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = F.max_pool2d(F.relu(self.first(x)), 2)
        other = torch.sigmoid(pooled) if self.is_last else pooled
        found = self.second(pooled)
        return found, other if self.is_last else torch.sigmoid(other)


@pytest.mark.parametrize("is_last", [True, False])
def test_what_else_reads_a_pooled_result_reads_the_rounded_one(
    client: nc.Client, tmp_path: Path, is_last: bool
) -> None:
    plain, graph = graphs(PooledReaders(is_last), [TARGET], IMAGES, client, tmp_path)
    onnx.checker.check_model(graph, full_check=True)
    assert operators(graph)["Relu"] == 0
    for found, expected in zip(run_with({"x": IMAGES}, graph), run_with({"x": IMAGES}, plain)):
        assert np.abs(found - expected).max() < 0.05
    _, other = run_with({"x": IMAGES}, graph)
    assert len(np.unique(other)) <= 256
    _, kernels = optimized(IMAGES, graph)
    assert (kernels["QLinearConv"], kernels["Conv"]) == (2, 0)


def with_codes(graph: Any, place: str) -> Any:
    """The graph with another rounding of the first convolution's result, or of what it pools."""
    make, numbers = onnx.helper, onnx.numpy_helper
    (node,) = [node for node in graph.graph.node if node.op_type == place][:1]
    at = list(graph.graph.node).index(node) + 1
    result, node.output[0] = node.output[0], "before"
    constants = [("s", np.float32(0.25)), ("z", np.uint8(100))]
    graph.graph.initializer.extend(numbers.from_array(value, name) for name, value in constants)
    graph.graph.node.insert(at, make.make_node("DequantizeLinear", ["coded", "s", "z"], [result]))
    graph.graph.node.insert(at, make.make_node("QuantizeLinear", ["before", "s", "z"], ["coded"]))
    return graph


@pytest.mark.parametrize("place", ["Conv", "Relu", "MaxPool"])
@pytest.mark.parametrize("types", [["weight", "input"], TYPES])
def test_a_rounding_that_the_graph_has_already_stays(
    client: nc.Client, tmp_path: Path, place: str, types: list[str]
) -> None:
    quantizer = trained(model := pooled_net(), [{**TARGET, "quant_types": types}], IMAGES, client)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    quantizer.unwrap()
    dense = with_codes(dense_graph(model, IMAGES), place)
    graph = apply(dense, bundle, target="onnxruntime")
    (codes,) = (node for node in graph.graph.node if "coded" in node.output)
    (value,) = (node for node in graph.graph.node if "coded" in node.input)
    assert (codes.op_type, value.op_type) == ("QuantizeLinear", "DequantizeLinear")
    assert any(value.output[0] in node.input for node in graph.graph.node)
    quantizer.close()


def test_places_of_maxima_are_those_before_rounding(client: nc.Client, tmp_path: Path) -> None:
    model = pooled_net()
    dense = dense_graph(model, IMAGES)
    (pool,) = (node for node in dense.graph.node if node.op_type == "MaxPool")
    pool.output.append("places")
    dense.graph.output.add().CopyFrom(
        onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, [4, 4, 5, 5])
    )
    quantizer = trained(model, [{**TARGET, "quant_types": TYPES[:2]}], IMAGES, client)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    quantizer.close()
    plain = apply(copy.deepcopy(dense), bundle)
    assert apply(dense, bundle, target="onnxruntime") == plain


@pytest.mark.parametrize(
    ("targets", "clamped"),
    [
        (("any", "any"), True),
        (("openvino", "onnxruntime"), True),
        (("openvino", "openvino"), False),
        (("onnxruntime", "any"), False),
    ],
)
def test_the_graph_is_for_the_one_target_that_rules_name(
    client: nc.Client, tmp_path: Path, targets: tuple[str, str], clamped: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    rules = [
        {"op_names": [name], "quant_types": TYPES, "target": target}
        for name, target in zip("02", targets)
    ]
    quantizer = trained(model, rules, IMAGES, client)
    graph = exported(quantizer, tmp_path, example_inputs=(IMAGES,))
    assert operators(graph)["Relu"] == clamped
    quantizer.close()


def test_a_target_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(nc.InvalidArgumentError, match="target is 'tensorrt'; it must be one"):
        apply(onnx.ModelProto(), tmp_path / "none", target="tensorrt")
