"""Compressed models in ONNX, run by ONNX Runtime; tests/run.sh has both in python-newest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
from nni_compression.torch import (
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
)

onnx = pytest.importorskip("onnx", reason="not packaged by Debian; python-newest has it")
onnxruntime = pytest.importorskip("onnxruntime", reason="not packaged by Debian")

from nni_compression.onnx import apply  # noqa: E402

INPUTS = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(3))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8))
    return nn.Sequential(*layers)


def graph_of(model: nn.Module, opset: int = 13) -> Any:
    """The dense model as an ONNX graph."""
    written = io.BytesIO()
    torch.onnx.export(model, INPUTS, written, opset_version=opset, input_names=["x"])
    return onnx.load_from_string(written.getvalue())


def run(model: Any, *outputs: str) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, as the graph says it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray[Any, Any]] = session.run(list(outputs) or None, {"x": INPUTS.numpy()})
    return found


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
    path = tmp_path / "model.onnx"
    quantizer.export_model(str(tmp_path / "m.pth"), onnx_path=str(path), input_shape=(8, 1, 6, 6))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.pth", "model.onnx"]
    graph = onnx.load(str(path))
    graph.graph.input[0].name, old = "x", graph.graph.input[0].name
    for node in graph.graph.node:
        node.input[:] = ["x" if name == old else name for name in node.input]
    assert_same_bits(weights_in(graph, WEIGHTS), quantizer.compressed_state_dict())
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("QuantizeLinear") == 6
    # A number between two codes may be rounded the other way: x / scale for x * (1 / scale).
    far = np.abs(run(graph)[0] - model(INPUTS).detach().numpy()) > 1e-4
    assert far.mean() < 0.05
    quantizer.close()


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


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_and_inputs_are_quantized_where_the_layers_are(
    client: nc.Client, tmp_path: Path, bits: int
) -> None:
    model = net()
    graph = graph_of(model)
    kinds = ["weight", "output", "input"]
    rule = {"op_types": ["default"], "quant_types": kinds, "quant_bits": dict.fromkeys(kinds, bits)}
    quantizer = QATQuantizer([rule], client=client)
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
    assert operators.count("Clip") == (0 if bits == 8 else 6)
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


def test_names_say_which_initializer_is_meant(client: nc.Client, tmp_path: Path) -> None:
    model = net()
    graph = graph_of(nn.Sequential(model))  # 0.0.weight
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
    graph = graph_of(model, opset=11)
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
