"""Compressed models in ONNX, run by ONNX Runtime, which Debian lacks and tests/run.sh installs."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
from nni_compression._files import atomic
from nni_compression.torch import (
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
)
from onnx_helpers import apply, dense_graph, exported, onnx, optimized, run_with

# What keeps an exporter from folding anything into the weights.
UNFOLDED: dict[str, Any] = (
    {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    if torch.__version__ < "2"
    else {"optimize": False}
)
INPUTS = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(3))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8))
    return nn.Sequential(*layers)


def graph_of(model: nn.Module) -> Any:
    """The dense model as an ONNX graph."""
    return dense_graph(model, INPUTS)


def run(model: Any, *outputs: str) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, as the graph says it."""
    return run_with({"x": INPUTS}, model, *outputs)


def weights_in(model: Any, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The weights that ONNX Runtime computes with, by name."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    found = {}
    for name in names:
        node = onnx.helper.make_node("Identity", [name], [f"{name}_seen"])
        shown.graph.node.append(node)
        info = onnx.helper.make_tensor_value_info(f"{name}_seen", onnx.TensorProto.FLOAT, None)
        shown.graph.output.append(info)
        (found[name],) = run(shown, f"{name}_seen")
    return found


def assert_same_bits(found: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    for name, array in found.items():
        want = expected[name].detach().numpy()
        assert array.dtype == want.dtype
        np.testing.assert_array_equal(array.view(np.uint32), want.view(np.uint32), err_msg=name)


def with_input_x(graph: Any) -> Any:
    """The graph, whose one input is called "x", whatever the exporter called it."""
    graph.graph.input[0].name, old = "x", graph.graph.input[0].name
    for node in graph.graph.node:
        node.input[:] = ["x" if name == old else name for name in node.input]
    return graph


WEIGHTS = ["0.weight", "3.weight", "4.weight"]


def test_a_pruned_model_has_masked_initializers(client: nc.Client, tmp_path: Path) -> None:
    model = net()
    graph = graph_of(model)
    pruner = LevelPruner([{"sparsity": 0.8, "op_types": ["default"]}], client=client)
    pruner(model)
    (bundle,) = pruner.export(tmp_path, "onnx")
    apply(graph, bundle, tmp_path / "pruned.onnx")
    saved = onnx.load(tmp_path / "pruned.onnx")
    assert_same_bits(weights_in(saved, WEIGHTS), pruner.compressed_state_dict())
    assert np.count_nonzero(weights_in(saved, WEIGHTS)["3.weight"]) == 103
    np.testing.assert_allclose(run(saved)[0], model(INPUTS).detach().numpy(), atol=1e-5)
    pruner.close()


@pytest.mark.parametrize(
    "scheme", ["per_tensor_affine", "per_channel_affine", "per_channel_symmetric"]
)
@pytest.mark.parametrize("bits", [2, 8, 11])
def test_qat_weights_are_codes_that_give_the_sessions_values(
    client: nc.Client, tmp_path: Path, scheme: str, bits: int
) -> None:
    model = net()
    graph = graph_of(model)
    rule = {"op_types": ["default"], "quant_bits": bits, "quant_scheme": scheme}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    assert_same_bits(weights_in(graph, WEIGHTS), quantizer.compressed_state_dict())
    kinds = {i.name: i.data_type for i in graph.graph.initializer}
    types = onnx.TensorProto
    wanted = types.INT32 if bits > 8 else types.INT8 if "symmetric" in scheme else types.UINT8
    assert kinds["3.weight_codes"] == wanted
    assert "3.weight" not in kinds
    np.testing.assert_allclose(run(graph)[0], model(INPUTS).detach().numpy(), atol=1e-4)
    quantizer.close()


def test_a_model_that_is_pruned_and_quantized_is_one_graph(
    client: nc.Client, tmp_path: Path
) -> None:
    model = net()
    quantizer = QATQuantizer([{"op_types": ["default"], "quant_bits": 4}], client=client)
    pruner = LevelPruner([{"sparsity": 0.8, "op_names": ["3"]}], client=client)
    quantizer(model)
    pruner(model)
    graph = graph_of(net())
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    found = weights_in(graph, WEIGHTS)
    assert_same_bits(found, quantizer.compressed_state_dict())
    assert (found["3.weight"] == 0).mean() > 0.79
    quantizer.close()
    pruner.close()


@pytest.mark.parametrize("pruned", [False, True])
def test_export_model_writes_codes_and_quantized_outputs(
    client: nc.Client, tmp_path: Path, pruned: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(2), nn.Linear(16, 8), nn.Linear(8, 8)
    )
    bits = {"weight": 4, "output": 8, "input": 8}
    rule = {"op_types": ["default"], "quant_types": list(bits)}
    quantizer = QATQuantizer([{**rule, "quant_bits": bits}], client=client)
    quantizer(model)
    if pruned:
        LevelPruner([{"sparsity": 0.5, "op_types": ["Linear"]}], client=client)(model)
    model(INPUTS)
    quantizer.step()
    model.eval()
    graph = with_input_x(exported(quantizer, tmp_path, input_shape=(8, 1, 6, 6)))
    assert_same_bits(weights_in(graph, WEIGHTS), quantizer.compressed_state_dict())
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("QuantizeLinear") == 6
    # A number between two codes may be rounded the other way: x / scale for x * (1 / scale).
    far = np.abs(run(graph)[0] - model(INPUTS).detach().numpy()) > 1e-4
    assert far.mean() < 0.05
    quantizer.close()


def test_export_model_warns_of_activations_that_were_never_observed(
    client: nc.Client, tmp_path: Path, recwarn: Any
) -> None:
    model = net().eval()  # in which nothing is observed
    quantizer = QATQuantizer([{"op_types": ["Linear"], "target": "openvino"}], client=client)
    quantizer(model)
    model(INPUTS)
    quantizer.step()
    with pytest.warns(UserWarning, match="no inputs and outputs, because none were observed"):
        graph = exported(quantizer, tmp_path, input_shape=(8, 1, 6, 6))
    assert "QuantizeLinear" not in [node.op_type for node in graph.graph.node]
    model.train()(INPUTS)
    quantizer.step()
    recwarn.clear()
    exported(quantizer, tmp_path, input_shape=(8, 1, 6, 6))
    assert not [w for w in recwarn if "observed" in str(w.message)]
    quantizer.close()


class Tied(nn.Module):
    """As a language model: the embedding's weight is also that of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(tokens))))


@pytest.mark.parametrize("targets", [("weight",), ("weight", "output"), ("weight", "input")])
def test_export_model_writes_the_codes_of_tied_weights(
    client: nc.Client, tmp_path: Path, targets: tuple[str, ...], recwarn: Any
) -> None:
    rules = [{"op_types": ["Embedding", "Linear"], "quant_types": list(targets)}]
    quantizer = QATQuantizer(rules, client=client)
    model = quantizer(Tied())
    tokens = torch.arange(6).reshape(2, 3)
    model(tokens)
    quantizer.step()
    graph = exported(quantizer, tmp_path, example_inputs=(tokens,))
    assert not [w for w in recwarn if "onnx_path" in str(w.message)]
    codes = [i.name for i in graph.graph.initializer if i.name.endswith("weight_codes")]
    assert len(codes) == 2  # of the hidden layer, and of the one that two modules have
    (found,) = run_with({graph.graph.input[0].name: tokens}, graph)
    expected = model.eval()(tokens).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 if targets == ("weight",) else 0.05)
    quantizer.close()


class Equal(nn.Module):
    """Three layers that begin alike, as copies or with zeros; their outputs differ in range."""

    def __init__(self, zeros: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8)
        if zeros:
            nn.init.zeros_(self.a.weight)
        self.b, self.c = copy.deepcopy(self.a), copy.deepcopy(self.a)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = 10 * torch.relu(self.a(x))
        hidden = 10 * torch.relu(self.b(hidden))
        result: torch.Tensor = self.head(torch.relu(self.c(hidden)))
        return result


@pytest.mark.parametrize("shape", [(16, 8), (4, 4, 8)], ids=["Gemm", "MatMul"])
@pytest.mark.parametrize("zeros", [False, True], ids=["copies", "zeros"])
@pytest.mark.parametrize("targets", [("weight",), ("weight", "output", "input")])
@pytest.mark.parametrize("excluded", [[], ["b"], ["a"]], ids=["all", "without-b", "without-a"])
def test_weights_that_are_equal_are_still_each_a_layers_own(
    client: nc.Client,
    tmp_path: Path,
    recwarn: Any,
    shape: tuple[int, ...],
    zeros: bool,
    targets: tuple[str, ...],
    excluded: list[str],
) -> None:
    rules: list[Any] = [{"op_types": ["Linear"], "quant_types": list(targets)}]
    rules += [{"exclude": True, "op_names": excluded}] if excluded else []
    quantizer = QATQuantizer(rules, client=client)
    model = quantizer(Equal(zeros))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 50
    for _ in range(3):
        model(x)
        quantizer.step()
    expected = model.eval()(x).detach().numpy()
    graph = exported(quantizer, tmp_path, example_inputs=(x,))
    assert not [w for w in recwarn if "onnx_path" in str(w.message)]
    codes = {i.name for i in graph.graph.initializer if i.name.endswith("weight_codes")}
    assert codes == {f"{name}.weight_codes" for name in {"a", "b", "c", "head"} - set(excluded)}
    operators = Counter(node.op_type for node in graph.graph.node)
    assert operators["QuantizeLinear"] == len(codes) * (len(targets) - 1)
    (found,) = run_with({graph.graph.input[0].name: x}, graph)
    # A number between two codes may be rounded the other way: x / scale for x * (1 / scale).
    far = np.abs(found - expected) > 1e-4 * np.abs(expected).max()
    assert far.mean() <= (0 if targets == ("weight",) else 0.05)
    quantizer.close()


@pytest.mark.parametrize("shape", [(8, 36), (8, 1, 36)], ids=["Gemm", "MatMul"])
def test_a_weight_that_was_equal_to_a_compressed_one_stays_as_it_is(
    client: nc.Client, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    first = nn.Linear(36, 36, bias=False)
    model = nn.Sequential(first, nn.ReLU(), copy.deepcopy(first), nn.ReLU(), nn.Linear(36, 2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(model.eval(), (x,), f"{folder}/model.onnx", **UNFOLDED)
        graph = onnx.load(f"{folder}/model.onnx")
    rule = {"op_names": ["0"], "quant_types": ["weight", "output"]}
    quantizer = QATQuantizer([{**rule, "quant_bits": {"weight": 2, "output": 8}}], client=client)
    quantizer(model)
    model.train()(x)
    quantizer.step()
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    assert [node.op_type for node in graph.graph.node].count("QuantizeLinear") == 1
    (found,) = run_with({graph.graph.input[0].name: x}, graph)
    np.testing.assert_allclose(found, model.eval()(x).detach().numpy(), atol=0.02)
    quantizer.close()


class Kernel(nn.Module):
    """A layer of somebody's own, whose weight is called otherwise, and began as another's copy."""

    def __init__(self, other: nn.Linear, kind: str) -> None:
        super().__init__()
        values = other.weight.detach().clone()
        if kind == "parameter":
            self.kernel = nn.Parameter(values)
        else:
            self.register_buffer("kernel", values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.kernel)


@pytest.mark.parametrize("shape", [(8, 16), (4, 4, 16)], ids=["Gemm", "MatMul"])
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_was_equal_to_a_compressed_weight_stays_as_it_is_whatever_its_name(
    client: nc.Client, tmp_path: Path, recwarn: Any, kind: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    first = nn.Linear(16, 16, bias=False)
    model = nn.Sequential(first, nn.ReLU(), Kernel(first, kind))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.onnx.export(model.eval(), (x,), tmp_path / "dense.onnx", **UNFOLDED)
    graph = onnx.load(tmp_path / "dense.onnx")
    other = {"2.kernel": model[2].kernel.detach().numpy().copy()}
    rule = {"op_types": ["Linear"], "quant_types": ["weight", "output"]}
    quantizer = QATQuantizer([{**rule, "quant_bits": {"weight": 2, "output": 8}}], client=client)
    quantizer(model)
    model.train()(x)
    quantizer.step()
    (bundle,) = quantizer.export(tmp_path, "onnx")
    merged = "2.kernel" not in {i.name for i in graph.graph.initializer}
    assert merged == (torch.__version__ < "2")
    if merged:
        with pytest.warns(UserWarning, match=r"several operators use .*\['0.weight'\]"):
            apply(copy.deepcopy(graph), bundle)
    apply(graph, bundle, others=other)
    assert [node.op_type for node in graph.graph.node].count("QuantizeLinear") == 1
    (found,) = run_with({graph.graph.input[0].name: x}, graph)
    np.testing.assert_allclose(found, model.eval()(x).detach().numpy(), atol=0.02)
    assert not [w for w in recwarn if "several operators" in str(w.message)]
    quantizer.close()


def test_a_weight_that_an_optimizer_has_merged_with_another_is_not_given_its_codes(
    client: nc.Client, tmp_path: Path, recwarn: Any
) -> None:
    torch.manual_seed(0)
    first = nn.Linear(36, 36)
    model = nn.Sequential(first, nn.ReLU(), copy.deepcopy(first))
    x = torch.randn(8, 36, generator=torch.Generator().manual_seed(1))
    other = {"2.weight": model[2].weight.detach().numpy().copy()}
    torch.onnx.export(model.eval(), (x,), tmp_path / "model.onnx", **UNFOLDED)
    graph = onnx.load(tmp_path / "model.onnx")
    for node in list(graph.graph.node):
        if "2.weight" in node.output:  # PyTorch 1 says that they are one
            graph.graph.node.remove(node)
        node.input[:] = ["0.weight" if name == "2.weight" else name for name in node.input]
    for unused in [i for i in graph.graph.initializer if i.name == "2.weight"]:
        graph.graph.initializer.remove(unused)
    quantizer = QATQuantizer([{"op_names": ["0"], "quant_types": ["weight"]}], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    before = graph.SerializeToString()
    with pytest.raises(nc.InvalidArgumentError, match="'2.weight'.* was merged into '0.weight'"):
        apply(graph, bundle, others=other)
    assert graph.SerializeToString() == before
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"several operators use .*\['0.weight'\]"):
        apply(graph, bundle)
    quantizer.close()


def test_a_weight_that_an_identity_passes_on_is_recognized(
    client: nc.Client, tmp_path: Path
) -> None:
    model = net()
    graph = graph_of(model)
    (gemm,) = (n for n in graph.graph.node if "3.weight" in n.input)
    passed_on = onnx.helper.make_node("Identity", ["3.weight"], ["val_0"])
    gemm.input[1] = "val_0"
    graph.graph.node.insert(0, passed_on)
    rule = {"op_types": ["Linear"], "quant_types": ["weight", "output"]}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    model.train()(INPUTS)
    quantizer.step()
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    assert [node.op_type for node in graph.graph.node].count("QuantizeLinear") == 2
    far = np.abs(run(graph)[0] - model.eval()(INPUTS).detach().numpy()) > 1e-4
    assert far.mean() < 0.05
    quantizer.close()


def test_export_model_writes_the_codes_of_layers_within_adapters(
    client: nc.Client, tmp_path: Path, recwarn: Any
) -> None:
    rule = {"op_types": ["default"], "quant_types": ["weight", "output"]}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(net())
    model(INPUTS)
    quantizer.step()
    model[3] = nn.Sequential(model[3], nn.Dropout(0.1))
    graph = with_input_x(exported(quantizer, tmp_path, input_shape=(8, 1, 6, 6)))
    assert not [w for w in recwarn if "onnx_path" in str(w.message)]
    operators = Counter(node.op_type for node in graph.graph.node)
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (3, 6)
    far = np.abs(run(graph)[0] - model.eval()(INPUTS).detach().numpy()) > 1e-4
    assert far.mean() < 0.05
    quantizer.close()


class Unused(nn.Module):
    """A model whose second layer no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(8, 6)
        self.pooler = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.used(x)
        self.pooler(hidden)
        return hidden


def test_export_model_leaves_out_what_no_output_depends_on(
    client: nc.Client, tmp_path: Path
) -> None:
    model = Unused()
    quantizer = NaiveQuantizer([{"op_types": ["default"]}], client=client)
    quantizer(model)
    x = torch.randn(3, 8)
    expected = model(x).detach()
    path = tmp_path / "model.onnx"
    with pytest.warns(UserWarning, match=r"no weights \['pooler'\]|no weights \['pooler.weight'\]"):
        quantizer.export_model(tmp_path / "model.pth", onnx_path=path, example_inputs=(x,))
    graph = with_input_x(onnx.load(path))
    assert "DequantizeLinear" in {node.op_type for node in graph.graph.node}
    (found,) = run_with({"x": x}, graph)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bits", [4, 11])
def test_weights_in_groups_give_the_sessions_values(
    client: nc.Client, tmp_path: Path, bits: int, turned: bool
) -> None:
    model = net()
    graph = graph_of(model)
    if turned:
        turn_gemms(graph)
    rule = {"quant_bits": bits, "quant_scheme": "per_channel_affine"}
    rules = [{**rule, "op_types": [t], "group_size": g} for t, g in (("Conv2d", 3), ("Linear", 4))]
    quantizer = QATQuantizer(rules, client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    found = weights_in(graph, WEIGHTS)
    if turned:
        found = {n: np.ascontiguousarray(a.T if a.ndim == 2 else a) for n, a in found.items()}
    assert_same_bits(found, quantizer.compressed_state_dict())
    np.testing.assert_allclose(run(graph)[0], model(INPUTS).detach().numpy(), atol=1e-4)
    quantizer.close()


@pytest.mark.parametrize("quantizer_class", [NaiveQuantizer, DoReFaQuantizer])
def test_other_quantizers_give_their_values_too(
    client: nc.Client, tmp_path: Path, quantizer_class: Any
) -> None:
    model = net()
    graph = graph_of(model)
    quantizer = quantizer_class([{"op_types": ["default"], "quant_bits": 8}], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    assert_same_bits(weights_in(graph, WEIGHTS), quantizer.compressed_state_dict())
    quantizer.close()


@pytest.mark.parametrize("scheme", ["per_tensor_affine", "per_channel_symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_and_inputs_are_quantized_where_the_layers_are(
    client: nc.Client, tmp_path: Path, bits: int, scheme: str
) -> None:
    model = net()
    graph = graph_of(model)
    kinds = ["weight", "output", "input"]
    rule = {"op_types": ["default"], "quant_types": kinds, "quant_bits": dict.fromkeys(kinds, bits)}
    quantizer = QATQuantizer([{**rule, "quant_scheme": scheme}], client=client)
    quantizer(model)
    model.train()
    for _ in range(3):
        model(INPUTS)
        quantizer.step()
    model.eval()
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("QuantizeLinear") == 6
    assert operators.count("DequantizeLinear") == 9
    assert operators.count("Clip") == (0 if (bits, scheme) == (8, "per_tensor_affine") else 6)
    # A number between two codes may be rounded the other way: x / scale for x * (1 / scale).
    expected = model(INPUTS).detach().numpy()
    far = np.abs(run(graph)[0] - expected) > 1e-4
    assert far.mean() < 0.02
    quantizer.close()


def turn_gemms(graph: Any) -> None:
    """Transposes the initializers of Linear layers."""
    by_name = {i.name: i for i in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type != "Gemm":
            continue
        weight = by_name[node.input[1]]
        turned = onnx.numpy_helper.to_array(weight).T.copy()
        weight.CopyFrom(onnx.numpy_helper.from_array(turned, weight.name))
        del node.attribute[:]


def test_a_transposed_initializer_is_recognized(client: nc.Client, tmp_path: Path) -> None:
    model = net()
    graph = graph_of(model)
    turn_gemms(graph)
    rule = {"op_types": ["Linear"], "quant_bits": 4, "quant_scheme": "per_channel_affine"}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    turned = {name: a.T for name, a in weights_in(graph, WEIGHTS[1:]).items()}
    contiguous = {name: np.ascontiguousarray(a) for name, a in turned.items()}
    assert_same_bits(contiguous, quantizer.compressed_state_dict())
    quantizer.close()


def as_constant_nodes(graph: Any) -> None:
    """Turns the initializers into nodes, as some exporters write them."""
    for tensor in list(graph.graph.initializer):
        node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        graph.graph.node.insert(0, node)
    del graph.graph.initializer[:]


def rename(graph: Any, names: dict[str, str]) -> None:
    for initializer in graph.graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


@pytest.mark.parametrize(
    "options",
    [
        {"quant_bits": 4, "quant_scheme": "per_channel_affine"},
        {"quant_bits": 4, "quant_scheme": "per_channel_symmetric", "group_size": 4},
        {"target": "onnxruntime"},
        {"sparsity": 0.8},
    ],
    ids=["per channel", "groups", "target", "pruned"],
)
def test_a_weight_that_was_renamed_and_transposed_is_found_by_its_content(
    client: nc.Client, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = net()
    graph = graph_of(model)
    turn_gemms(graph)
    renamed = {name: f"onnx::MatMul_{i}" for i, name in enumerate(WEIGHTS)}
    rename(graph, renamed)
    made = LevelPruner if "sparsity" in options else QATQuantizer
    compressor = made([{"op_types": ["Linear"], **options}], client=client)
    compressor(model)
    if "target" in options:
        model.train()(INPUTS)
        compressor.step()
    (bundle,) = compressor.export(tmp_path, "onnx")
    apply(graph, bundle)
    found = weights_in(graph, list(renamed.values())[1:])
    turned = {name: np.ascontiguousarray(found[renamed[name]].T) for name in WEIGHTS[1:]}
    assert_same_bits(turned, compressor.compressed_state_dict())
    encoded = [node.op_type for node in graph.graph.node].count("QuantizeLinear")
    assert encoded == (4 if "target" in options else 0)
    compressor.close()


@pytest.mark.parametrize("targets", [("weight",), ("weight", "output")])
def test_constants_of_one_content_are_told_apart_only_by_names(
    client: nc.Client, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    first = nn.Linear(36, 36)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), copy.deepcopy(first))
    torch.onnx.export(
        model.eval(), (INPUTS,), tmp_path / "model.onnx", input_names=["x"], **UNFOLDED
    )
    graph = onnx.load(tmp_path / "model.onnx")
    for node in list(graph.graph.node):  # PyTorch 1 says that they are one
        if node.op_type == "Identity" and node.output[0] == "3.weight":
            own = graph.graph.initializer.add()
            own.CopyFrom(next(i for i in graph.graph.initializer if i.name == node.input[0]))
            own.name = "3.weight"
            graph.graph.node.remove(node)
    rename(graph, {"1.weight": "a", "3.weight": "b"})
    quantizer = QATQuantizer([{"op_types": ["Linear"], "quant_types": targets}], client=client)
    quantizer(model)
    model.train()(INPUTS)
    quantizer.step()
    (bundle,) = quantizer.export(tmp_path, "onnx")
    if "output" in targets:  # whose encodings differ
        with pytest.raises(nc.InvalidArgumentError, match="its content fits a, b.*`names` says"):
            apply(graph, bundle)
        apply(graph, bundle, names={"1.weight": "a", "3.weight": "b"})
    else:
        apply(graph, bundle)
    assert [node.op_type for node in graph.graph.node].count("QuantizeLinear") == len(
        targets
    ) * 2 - 2
    want = quantizer.compressed_state_dict()
    found = weights_in(graph, ["a", "b"])
    assert_same_bits({"1.weight": found["a"], "3.weight": found["b"]}, want)
    quantizer.close()


@pytest.mark.parametrize("renamed", [False, True])
def test_weights_in_constant_nodes_are_found(
    client: nc.Client, tmp_path: Path, renamed: bool
) -> None:
    model = net()
    graph = graph_of(model)
    names = {name: f"constant_{name[0]}" if renamed else name for name in WEIGHTS[1:]}
    rename(graph, names)
    as_constant_nodes(graph)
    quantizer = QATQuantizer([{"op_types": ["Linear"]}], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    apply(graph, bundle)
    found = weights_in(graph, list(names.values()))
    want = quantizer.compressed_state_dict()
    assert_same_bits({name: found[names[name]] for name in names}, want)
    np.testing.assert_allclose(run(graph)[0], model(INPUTS).detach().numpy(), atol=1e-4)
    quantizer.close()


def test_a_constant_of_few_weights_is_not_taken_for_one_by_its_content(
    client: nc.Client, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    torch.onnx.export(model.eval(), (torch.zeros(1, 2),), tmp_path / "model.onnx", **UNFOLDED)
    graph = onnx.load(tmp_path / "model.onnx")
    rename(graph, {"0.weight": "a"})
    quantizer = QATQuantizer([{"op_types": ["Linear"]}], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    with pytest.raises(nc.InvalidArgumentError, match="no initializer '0.weight'"):
        apply(graph, bundle)
    quantizer.close()


@pytest.mark.skipif(torch.__version__ < "2", reason="has one exporter")
@pytest.mark.parametrize("dynamo", [False, True])
def test_either_exporter_may_have_written_the_graph(
    client: nc.Client, tmp_path: Path, dynamo: bool
) -> None:
    model = Words().eval()
    inputs = torch.arange(6).reshape(2, 3), torch.ones(2, 3)
    torch.onnx.export(
        model, inputs, tmp_path / "model.onnx", dynamo=dynamo, input_names=["ids", "mask"]
    )
    quantizer = QATQuantizer([{"op_types": ["Linear"], "target": "openvino"}], client=client)
    quantizer(model)
    model.train()(*inputs)
    quantizer.step()
    (bundle,) = quantizer.export(tmp_path, "onnx")
    graph = apply(tmp_path / "model.onnx", bundle)
    assert Counter(node.op_type for node in graph.graph.node)["QuantizeLinear"] == 2
    (found,) = run_with({"ids": inputs[0], "mask": inputs[1]}, graph)
    far = np.abs(found - model.eval()(*inputs).detach().numpy()) > 1e-4
    assert far.mean() < 0.05
    quantizer.close()


def test_names_say_which_initializer_is_meant(client: nc.Client, tmp_path: Path) -> None:
    model = net()
    graph = graph_of(nn.Sequential(model))  # 0.0.weight
    for name in ("0.0.weight", "0.3.weight", "0.4.weight"):  # of another step of the training
        (weight,) = (i for i in graph.graph.initializer if i.name == name)
        moved = onnx.numpy_helper.to_array(weight) + np.float32(0.001)
        weight.CopyFrom(onnx.numpy_helper.from_array(moved, name))
    pruner = LevelPruner([{"sparsity": 0.8, "op_types": ["default"]}], client=client)
    pruner(model)
    (bundle,) = pruner.export(tmp_path, "onnx")
    before = graph.SerializeToString()
    with pytest.raises(nc.InvalidArgumentError, match=r"no initializer '0.weight'.*did you mean"):
        apply(graph, bundle)
    with pytest.raises(nc.InvalidArgumentError, match="names has 'none'"):
        apply(graph, bundle, names={"none": "0.0.weight"})
    with pytest.raises(nc.InvalidArgumentError, match=r"shape \(8,\); it must be \(4, 1, 3, 3\)"):
        apply(graph, bundle, names={"0.weight": "0.4.bias"})
    assert graph.SerializeToString() == before
    apply(graph, bundle, names={name: f"0.{name}" for name in WEIGHTS})
    found = weights_in(graph, [f"0.{name}" for name in WEIGHTS])
    assert_same_bits({n[2:]: a for n, a in found.items()}, pruner.compressed_state_dict())
    pruner.close()


def test_an_opset_that_lacks_an_axis_is_refused(client: nc.Client, tmp_path: Path) -> None:
    model = net()
    graph = graph_of(model)
    graph.opset_import[0].version = 11
    rule = {"op_types": ["default"], "quant_scheme": "per_channel_affine"}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    with pytest.raises(
        nc.InvalidArgumentError, match="opset 11; weight '0.weight' needs at least 13"
    ):
        apply(graph, bundle)
    with pytest.raises(nc.DataLossError, match="not an export of format onnx"):
        apply(graph, quantizer.export(tmp_path, "safetensors")[0])
    quantizer.close()


@pytest.mark.parametrize("algorithm", [LevelPruner, QATQuantizer])
def test_export_model_folds_nothing_into_the_weights(
    client: nc.Client, tmp_path: Path, algorithm: Any
) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.copy_(torch.linspace(-1, 1, 4))  # type: ignore[union-attr, operator]
    norm.running_var.copy_(torch.linspace(0.1, 9, 4))  # type: ignore[union-attr, operator]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 2)).eval()
    options = {"sparsity": 0.5} if algorithm is LevelPruner else {"quant_bits": 8}
    compressor = algorithm([{"op_types": ["default"], **options}], client=client)
    compressor(model)
    for _ in range(2):  # the second time in place of the first files
        graph = with_input_x(exported(compressor, tmp_path, input_shape=(8, 1, 6, 6)))
        names = ["0.weight", "3.weight"]
        assert_same_bits(weights_in(graph, names), compressor.compressed_state_dict())
        np.testing.assert_allclose(run(graph)[0], model(INPUTS).detach().numpy(), atol=1e-4)
    compressor.close()


class Words(nn.Module):
    """What a language model has: whole numbers and a mask as inputs, and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc(self.embedding(ids)) * mask[..., None]
        result: torch.Tensor = self.head(hidden)
        return result


@pytest.mark.parametrize("named", [False, True])
def test_export_model_takes_any_inputs(client: nc.Client, tmp_path: Path, named: bool) -> None:
    model = Words().eval()
    scheme = {"quant_bits": 8, "quant_scheme": "per_channel_symmetric"}
    quantizer = QATQuantizer([{"op_types": ["Linear"], **scheme}], client=client)
    quantizer(model)
    inputs = {"ids": torch.arange(6).reshape(2, 3), "mask": torch.tensor([[1.0, 1, 0], [1, 1, 1]])}
    given = dict(reversed(inputs.items())) if named else tuple(inputs.values())
    graph = exported(quantizer, tmp_path, example_inputs=given)
    operators = Counter(node.op_type for node in graph.graph.node)
    assert operators["DequantizeLinear"] == 2
    names = [value.name for value in graph.graph.input]  # in the order of `forward`, or their own
    fed = inputs if set(names) == set(inputs) else dict(zip(names, inputs.values()))
    (found,) = run_with(fed, graph)
    np.testing.assert_allclose(found, model(**inputs).detach().numpy(), atol=1e-5)
    quantizer.close()


def test_inputs_that_a_model_does_not_take_are_said(client: nc.Client, tmp_path: Path) -> None:
    model = Words()
    pruner = LevelPruner([{"sparsity": 0.5, "op_types": ["Linear"]}], client=client)
    pruner(model)
    files = {"model_path": str(tmp_path / "m.pth"), "onnx_path": str(tmp_path / "m.onnx")}
    for inputs, message in (
        ({}, "neither is given"),
        ({"input_shape": (2, 3), "example_inputs": ()}, "both is given"),
        ({"input_shape": (2, 3)}, r"does not run with \(float32 \[2, 3\]\).*example_inputs"),
        ({"example_inputs": {"ids": 3}}, r"does not run with \(ids=int\)"),
        ({"example_inputs": {1: 3}}, r"example_inputs has the keys \[1\]"),
        ({"example_inputs": 7}, "example_inputs is of type int"),
    ):
        with pytest.raises(nc.InvalidArgumentError, match=message):
            pruner.export_model(**files, **inputs)
    assert list(tmp_path.iterdir()) == []
    pruner.close()


def test_weights_of_more_than_one_file_lie_beside_it(
    client: nc.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 8))
    path, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    graph = graph_of(model)
    rule = {"op_types": ["Linear"], "quant_bits": 8, "quant_scheme": "per_channel_symmetric"}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path / "bundle", "onnx")
    monkeypatch.setattr(atomic, "LARGEST_ONNX", 1000)
    dense = graph.SerializeToString()
    for _ in range(2):
        changed = apply(onnx.load_from_string(dense), bundle, path)
        assert 64 * 36 <= beside.stat().st_size < 64 * 36 * 2
        np.testing.assert_allclose(run(changed)[0], model(INPUTS).detach().numpy(), atol=1e-4)
        loaded = run(onnx.load(str(path)))
        np.testing.assert_array_equal(loaded[0], run(changed)[0])
    quantizer.close()


@pytest.mark.skipif(torch.__version__ < "2", reason="PyTorch 1 cannot be told where weights go")
@pytest.mark.parametrize("largest", [1000, 5000])
def test_export_model_puts_weights_beside_the_file_when_it_must(
    client: nc.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 8))
    quantizer = QATQuantizer([{"op_types": ["Linear"], "quant_bits": 8}], client=client)
    quantizer(model)
    monkeypatch.setattr(atomic, "LARGEST_ONNX", largest)
    path = tmp_path / "model.onnx"
    for _ in range(2):
        quantizer.export_model(
            str(tmp_path / "model.pth"), onnx_path=str(path), input_shape=(8, 1, 6, 6)
        )
        names = {"model.pth", "model.onnx"} | ({"model.onnx.data"} if largest == 1000 else set())
        assert {file.name for file in tmp_path.iterdir()} == names  # 5000: the codes fit
        graph = with_input_x(onnx.load(str(path)))
        assert_same_bits(weights_in(graph, ["1.weight"]), quantizer.compressed_state_dict())
    quantizer.close()


def test_a_graph_with_something_folded_into_its_weights_gets_a_warning(
    client: nc.Client, tmp_path: Path
) -> None:
    model = net()
    graph = graph_of(model)
    quantizer = QATQuantizer([{"op_types": ["default"], "quant_bits": 8}], client=client)
    quantizer(model)
    (bundle,) = quantizer.export(tmp_path, "onnx")
    (folded,) = (i for i in graph.graph.initializer if i.name == "0.weight")
    factors = np.array([1.0, 0.2, 3.0, 4.0], np.float32).reshape(4, 1, 1, 1)
    numbers = onnx.numpy_helper.to_array(folded) * factors
    folded.CopyFrom(onnx.numpy_helper.from_array(numbers, "0.weight"))
    with pytest.warns(UserWarning, match="'0.weight' is far from the session's weight") as told:
        apply(graph, bundle)
    assert len(told) == 1
    quantizer.close()


@pytest.mark.parametrize("scheme", ["per_tensor_affine", "per_channel_symmetric"])
def test_onnx_runtime_computes_quantized_layers_with_integers(
    client: nc.Client, tmp_path: Path, scheme: str
) -> None:
    torch.manual_seed(0)
    padded = nn.Conv2d(4, 4, 2, padding=1)  # PyTorch 2 asks for the shape of its weight
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), padded, nn.Conv2d(4, 2, 2))
    rule = {"op_types": ["default"], "quant_types": ["weight", "output", "input"]}
    quantizer = QATQuantizer([{**rule, "quant_scheme": scheme}], client=client)
    quantizer(model)
    model(INPUTS)
    quantizer.step()
    _, operators = optimized(INPUTS, exported(quantizer, tmp_path, input_shape=(8, 1, 6, 6)))
    assert operators["QLinearConv"] == 3, operators
    assert operators["Conv"] == 0
    quantizer.close()
