"""Compressed models in ONNX, and what ONNX Runtime computes with them."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx", reason="not packaged by Debian; the part torch has it")
onnxruntime = pytest.importorskip("onnxruntime", reason="not packaged by Debian")

from nni_compression.onnx import apply as apply  # noqa: E402


def dense_graph(
    model: nn.Module, x: torch.Tensor, opset: int = 13 if torch.__version__ < "2" else 20
) -> Any:
    """The dense model as an ONNX graph with the input "x"."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(model.eval(), (x,), path, opset_version=opset, input_names=["x"])
        return onnx.load(path)


def exported(compressor: Any, folder: Path, **inputs: Any) -> Any:
    """What `export_model` writes, which is a file that needs no other."""
    names = sorted(path.name for path in folder.iterdir())
    compressor.export_model(
        str(folder / "model.pth"), onnx_path=str(folder / "model.onnx"), **inputs
    )
    now = sorted(path.name for path in folder.iterdir())
    assert now == sorted({*names, "model.onnx", "model.pth"})
    with tempfile.TemporaryDirectory() as elsewhere:
        return onnx.load(shutil.copy(folder / "model.onnx", elsewhere))


def run_with(inputs: Any, model: Any, *outputs: str) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, as the graph says it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = {name: tensor.numpy() for name, tensor in inputs.items()}
    found: list[np.ndarray[Any, Any]] = session.run(list(outputs) or None, values)
    return found


def optimized(x: torch.Tensor, model: Any) -> tuple[np.ndarray[Any, Any], Counter[str]]:
    """What ONNX Runtime computes for its one input with its kernels, and the operators of these."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        # Else sums saturate on processors without VNNI.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        graph = onnx.load(options.optimized_model_filepath).graph
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return found, Counter(node.op_type for node in graph.node)
