"""`torch.export`, and what stands on it, of compressed models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import DoReFaQuantizer, LevelPruner, NaiveQuantizer, QATQuantizer
from torch_helpers import DOREFA, LEVEL, NAIVE, QAT, Net, dense, images, train_step

pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch, "compiler", None), "is_exporting"),
    reason="torch.export can be told from training since PyTorch 2.7",
)

EVERYTHING = [{"quant_types": ["weight", "input", "output"], "op_types": ["default"]}]
CHANNELS = [{"quant_scheme": "per_channel_symmetric", "op_types": ["default"]}]
GROUPS = [
    {"quant_bits": 4, "quant_scheme": "per_channel_affine", "group_size": 8, "op_types": ["Linear"]}
]
COMPRESSORS = [
    (LevelPruner, LEVEL),
    (QATQuantizer, QAT),
    (QATQuantizer, EVERYTHING),
    (QATQuantizer, CHANNELS),
    (QATQuantizer, GROUPS),
    (NaiveQuantizer, NAIVE),
    (DoReFaQuantizer, DOREFA),
]


def trained(make: Any, config_list: Any, client: nc.Client, **arguments: Any) -> tuple[Net, Any]:
    """A compressed model in evaluation mode that has an answer for its present weights."""
    model = Net()
    compressor = make(config_list, client=client, **arguments)
    compressor(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer)
    compressor.step()
    model.eval()
    with torch.no_grad():
        model(images())
    return model, compressor


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
def test_an_exported_model_computes_what_the_model_does(
    client: nc.Client, make: Any, config_list: Any, strict: bool
) -> None:
    model, compressor = trained(make, config_list, client)
    calls = compressor.stats.calls
    exported = torch.export.export(model, (images(),), strict=strict).module()
    assert compressor.stats.calls == calls
    for seed in range(3):
        with torch.no_grad():
            assert torch.allclose(exported(images(seed=seed)), model(images(seed=seed)), atol=1e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", ""])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
def test_a_model_is_exported_for_any_number_of_inputs(
    client: nc.Client, make: Any, config_list: Any, gradients: bool, strict: bool
) -> None:
    model, compressor = trained(make, config_list, client)
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(model, (images(),), dynamic_shapes=sizes, strict=strict)
    many = images(9, seed=8)
    # Beyond the range, and halves between two codes.
    many[0] *= 100
    many[1] = (many[1] * 8).round() / 16
    assert torch.equal(program.module()(many), model(many))
    compressor.close()


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_a_quantized_model_is_exported_in_training_and_without_gradients(
    client: nc.Client, transfer: str
) -> None:
    model, _ = trained(QATQuantizer, EVERYTHING, client, transfer=transfer)
    with torch.no_grad():
        exported = torch.export.export(model, (images(),)).module()
        assert torch.allclose(exported(images()), model(images()), atol=1e-5)
    model.train()
    model.bn.eval()
    torch.export.export(model, (images(),))


def test_a_copy_is_exported(client: nc.Client) -> None:
    model, _ = trained(QATQuantizer, QAT, client)
    twin = copy.deepcopy(model)
    exported = torch.export.export(twin, (images(),)).module()
    with torch.no_grad():
        assert torch.allclose(exported(images()), model(images()), atol=1e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS[:2])
def test_a_model_without_an_answer_is_not_exported_as_if_it_were_plain(
    client: nc.Client, make: Any, config_list: Any, strict: bool
) -> None:
    model = Net().eval()
    compressor = make(config_list, client=client)
    compressor(model)
    with pytest.raises(Exception, match="has no answer of the server for its present weight"):
        torch.export.export(model, (images(),), strict=strict)
    compressor.refresh()
    torch.export.export(model, (images(),), strict=strict)


def test_a_model_that_was_trained_since_is_not_exported_with_old_scales(client: nc.Client) -> None:
    model, compressor = trained(QATQuantizer, QAT, client)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    train_step(model, optimizer)
    model.eval()
    with pytest.raises(RuntimeError, match="has no answer of the server for its present weight"):
        torch.export.export(model, (images(),))
    compressor.refresh()
    with torch.no_grad():
        dense(model.fc1).data.mul_(2)
        model.fc1.weight.data.mul_(0.5)
    with pytest.raises(RuntimeError, match="layer 'fc1' has no answer"):
        torch.export.export(model, (images(),))


@pytest.mark.parametrize(("make", "config_list"), COMPRESSORS)
def test_the_exporter_of_onnx_writes_what_the_model_computes(
    client: nc.Client, make: Any, config_list: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, _ = trained(make, config_list, client)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (images(),), path, dynamo=True, external_data=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    with torch.no_grad():
        # A rounding of the runtime's may be to the next code.
        assert torch.allclose(torch.from_numpy(output), model(images()), atol=0.05)


def test_an_exported_layer_that_is_called_with_keywords_quantizes_its_input(
    client: nc.Client,
) -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.fc(input=value)

    model = Keywords()
    quantizer = QATQuantizer(EVERYTHING, client=client)
    quantizer(model)
    value = torch.randn(16, 8)
    model(value)
    quantizer.step()
    model.eval()
    model(value)
    exported = torch.export.export(model, (value,)).module()
    assert torch.allclose(exported(value), model(value), atol=1e-6)
