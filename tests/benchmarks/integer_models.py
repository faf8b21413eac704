"""Latency and agreement of 8-bit models in the runtimes that execute them; a program.

    integer_models.py FILE

writes the figures, as JSON, into FILE and the models beside it. The server is that of
$NNI_COMPRESSION_SERVER. It needs torchvision, transformers, onnxscript and onnxruntime, and uses
openvino and nncf if they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from harness import alternate
from nni_compression.torch import quantize

ROUNDS = 11
REPEAT = 3  # runs in a row, of which the median counts
CALIBRATION = 16  # inputs
COMPARED = 16  # other inputs

Inputs = Mapping[str, np.ndarray[Any, Any]]
Infer = Callable[[Inputs], np.ndarray[Any, Any]]


class Resnet(nn.Module):
    """ResNet-18 with its normalizations folded, which quantizers of runtimes do themselves."""

    name = "resnet18, 1 x 3 x 224 x 224"
    layers = ("Conv2d", "Linear")

    def __init__(self) -> None:
        super().__init__()
        import torchvision
        from torch.fx.experimental.optimization import fuse

        torch.manual_seed(0)
        model = torchvision.models.resnet18()
        for seed in range(4):  # statistics that are not those of a fresh normalization
            model(torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(seed)))
        self.model = fuse(model.eval())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels)

    @staticmethod
    def inputs(seed: int) -> Inputs:
        generator = np.random.default_rng(seed)
        return {"pixels": generator.standard_normal((1, 3, 224, 224), np.float32)}


class MiniLm(nn.Module):
    """A BERT of the size of MiniLM."""

    name = "MiniLM (6 layers of 384), 1 x 128"
    layers = ("Linear",)

    def __init__(self) -> None:
        super().__init__()
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(
            num_hidden_layers=6,
            hidden_size=384,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        self.model = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask).last_hidden_state

    @staticmethod
    def inputs(seed: int) -> Inputs:
        ids = np.random.default_rng(seed).integers(0, 30000, (1, 128))
        return {"input_ids": ids, "attention_mask": np.ones((1, 128), np.int64)}


def tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def write_dense(make: type, path: Path) -> None:
    program = torch.onnx.export(
        make().eval(), (), kwargs=tensors(make.inputs(0)), dynamo=True, verbose=False
    )
    program.save(path)


def write_ours(make: type, target: str, path: Path, **options: Any) -> None:
    """The weights are those of the dense model: no training has moved them."""
    model = make().train()
    quantize(model, "qat", op_types=list(make.layers), target=target, **options)
    with model.compressor as quantizer:
        for seed in range(CALIBRATION):
            with torch.no_grad():
                model(**tensors(make.inputs(seed)))
            quantizer.step()
        quantizer.export_model(
            str(path.with_suffix(".pth")),
            onnx_path=str(path),
            example_inputs=tensors(make.inputs(0)),
        )


def write_onnxruntimes(make: type, dense: Path, path: Path) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = map(make.inputs, range(CALIBRATION))

        def get_next(self) -> Inputs | None:
            return next(self.inputs, None)

    prepared = dense.with_suffix(".prepared.onnx")
    quant_pre_process(dense, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared, path, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


def in_onnxruntime(path: Path) -> Infer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))[0]


def in_openvino(model: Any) -> Infer:
    import openvino

    core = openvino.Core()
    found = core.read_model(model) if isinstance(model, Path) else model
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(found, "CPU", hints)
    return lambda inputs: np.asarray(compiled(dict(inputs))[0])


def of_nncf(make: type, dense: Path) -> Any:
    import nncf
    import openvino

    kind = nncf.ModelType.TRANSFORMER if make is MiniLm else None
    return nncf.quantize(
        openvino.Core().read_model(dense),
        nncf.Dataset(list(map(make.inputs, range(CALIBRATION)))),
        subset_size=CALIBRATION,
        model_type=kind,
    )


def sqnr(outputs: np.ndarray[Any, Any], dense: np.ndarray[Any, Any]) -> float:
    """Signal to quantization noise ratio in dB."""
    signal, noise = np.square(dense).sum(), np.square(outputs - dense).sum()
    return 10 * math.log10(signal / noise) if noise else math.inf


def compared(contenders: Mapping[str, Infer], make: type) -> dict[str, Any]:
    """Seconds a run by contender, and the SQNR of those after the first, the dense one."""
    others = [make.inputs(1000 + seed) for seed in range(COMPARED)]
    outputs = {n: np.concatenate([run(i) for i in others]) for n, run in contenders.items()}
    dense = next(iter(outputs.values()))
    one = others[0]
    calls = {name: (lambda run=run: run(one)) for name, run in contenders.items()}
    return {
        "seconds": alternate(calls, ROUNDS, REPEAT),
        "sqnr": {name: sqnr(found, dense) for name, found in outputs.items()},
    }


def main() -> None:
    file = Path(sys.argv[1])
    folder = file.parent
    logging.disable(logging.WARNING)
    has_openvino = all(map(importlib.util.find_spec, ("openvino", "nncf")))
    found: dict[str, Any] = {}
    for make in (Resnet, MiniLm):
        paths = {
            name: folder / f"{make.__name__}-{name}.onnx"
            for name in ("dense", "onnxruntime", "openvino", "static")
        }
        write_dense(make, paths["dense"])
        write_ours(make, "onnxruntime", paths["onnxruntime"])
        write_onnxruntimes(make, paths["dense"], paths["static"])
        title = f"{make.name} in ONNX Runtime {onnxruntime.__version__}"
        found[title] = compared(
            {
                "dense": in_onnxruntime(paths["dense"]),
                "its static quantizer": in_onnxruntime(paths["static"]),
                "qat, target": in_onnxruntime(paths["onnxruntime"]),
            },
            make,
        )
        if has_openvino:
            import openvino

            write_ours(make, "openvino", paths["openvino"])
            title = f"{make.name} in OpenVINO {openvino.__version__.partition('-')[0]}"
            found[title] = compared(
                {
                    "dense": in_openvino(paths["dense"]),
                    "NNCF": in_openvino(of_nncf(make, paths["dense"])),
                    "qat, target": in_openvino(paths["openvino"]),
                },
                make,
            )
    file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
