"""Compressed models under `torch.compile` and `torch.export`."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

if not hasattr(torch.library, "custom_op"):
    pytest.skip("operators of one's own came with PyTorch 2.4", allow_module_level=True)

import torch._dynamo.testing

from nni_compression.torch import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
    Quantizer,
)
from torch_helpers import Net, dense, images

DEFAULT = {"op_types": ["default"]}
OUTPUTS = {"quant_types": ["weight", "output", "input"], **DEFAULT}
COMPRESSORS: dict[str, Callable[[nc.Client], Any]] = {
    "level": lambda client: LevelPruner([{"sparsity": 0.5, **DEFAULT}], client=client),
    "agp": lambda client: AGPPruner(
        [{"final_sparsity": 0.8, "end_epoch": 4, **DEFAULT}], client=client
    ),
    "naive": lambda client: NaiveQuantizer([DEFAULT], client=client),
    "dorefa": lambda client: DoReFaQuantizer([{"quant_bits": 4, **DEFAULT}], client=client),
    "qat": lambda client: QATQuantizer([{"quant_bits": 4, **DEFAULT}], client=client),
    "qat by weights": lambda client: QATQuantizer([DEFAULT], client=client, transfer="weights"),
    "qat with outputs": lambda client: QATQuantizer([OUTPUTS], client=client),
    "qat with a delay": lambda client: QATQuantizer(
        [{"quant_start_step": 2, **OUTPUTS}], client=client
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def train(compressor: Any, model: nn.Module, call: Callable[..., torch.Tensor]) -> list[float]:
    """Losses of six steps, in which the masks and scales change."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        loss = call(images()).square().mean()
        loss.backward()
        optimizer.step()
        compressor.step()
        if step % 2:
            compressor.update_epoch(step)
        losses.append(loss.item())
    return losses


def check_training(client: nc.Client, name: str, backend: str, **settings: Any) -> None:
    eager = COMPRESSORS[name](client)
    model = eager(Net())
    expected = train(eager, model, model)
    compiled = COMPRESSORS[name](client)
    twin = compiled(Net())
    counted = torch._dynamo.testing.CompileCounterWithBackend(backend)
    losses = train(compiled, twin, torch.compile(twin, fullgraph=True, backend=counted))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert counted.frame_count == 1, "it was compiled again when answers changed"
    for (key, one), (_, other) in zip(model.named_parameters(), twin.named_parameters()):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), key
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), key
    # What the graph's memory was reused for has not been written into the answers.
    assert torch.allclose(twin(images()), model(images()), rtol=1e-3, atol=1e-4)
    for key, mask in getattr(eager, "masks", {}).items():
        assert (mask != compiled.masks[key]).float().mean() < 0.01


@pytest.mark.parametrize("name", COMPRESSORS)
def test_training_is_one_graph_and_computes_the_same(client: nc.Client, name: str) -> None:
    check_training(client, name, "aot_eager")


@pytest.mark.parametrize(
    "name",
    ["qat with outputs", *(pytest.param(n, marks=pytest.mark.long) for n in ("agp", "qat"))],
)
def test_generated_code_computes_the_same(client: nc.Client, name: str) -> None:
    check_training(client, name, "inductor")


def test_evaluation_is_one_graph_and_follows_the_epochs(client: nc.Client) -> None:
    pruner = COMPRESSORS["agp"](client)
    model = pruner(Net()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = []
    with torch.no_grad():
        for epoch in range(5):
            pruner.update_epoch(epoch)
            outputs.append(compiled(images()))
            assert torch.equal(outputs[-1], model(images()))
    assert (model.fc1.weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)
    assert not torch.equal(outputs[0], outputs[-1])


def test_blocks_that_are_compiled_by_themselves_share_their_graph(client: nc.Client) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12)))
    pruner = LevelPruner([{"sparsity": 0.5}], client=client)
    pruner(model)
    inputs = torch.randn(2, 8)
    expected = model(inputs)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for block in model:
        block.compile(fullgraph=True, backend=counted)
    assert torch.equal(model(inputs), expected)
    assert counted.frame_count < 4


def test_a_copy_follows_its_original(client: nc.Client) -> None:
    pruner = COMPRESSORS["agp"](client)
    model = pruner(Net()).eval()
    model(images())
    average = copy.deepcopy(model)
    compiled = torch.compile(average, fullgraph=True, backend="aot_eager")
    compiled(images())
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.5)
    pruner.update_epoch(4)
    model(images())
    assert torch.equal(compiled(images()), average(images()))
    assert torch.equal(average.fc1.weight_mask, pruner.masks["fc1"])
    assert (average.fc1.weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


def test_a_copy_with_quantized_inputs_follows_before_its_inputs_are(client: nc.Client) -> None:
    quantizer = COMPRESSORS["qat with outputs"](client)
    model = quantizer(Net())
    train(quantizer, model, model)
    average = Net().eval()
    quantizer.apply_to(average)
    compiled = torch.compile(average, backend="aot_eager")
    compiled(images())
    for scale in (3.0, 0.2):
        model.train()(scale * images())
        quantizer.step()
        model.eval()(images())
        assert torch.equal(compiled(images()), average(images()))


def test_answers_are_not_frozen(client: nc.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config, "freezing", True)
    pruner = COMPRESSORS["agp"](client)
    model = pruner(Net()).eval()
    compiled = torch.compile(model, backend="inductor")
    with torch.no_grad():
        for epoch in range(4):
            pruner.update_epoch(epoch)
            assert torch.allclose(compiled(images()), model(images()), atol=1e-5)


def test_a_channels_last_model_in_bfloat16(client: nc.Client) -> None:
    for name in ("agp", "qat with outputs"):
        compressor = COMPRESSORS[name](client)
        model = compressor(Net()).to(memory_format=torch.channels_last)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        inputs = images().to(memory_format=torch.channels_last)
        for call in (model, compiled):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = call(inputs)
            output.float().square().mean().backward()
            if call is model:
                expected, gradient = output, dense(model.conv2).grad
        assert torch.allclose(output.float(), expected.float(), atol=2e-2)
        assert torch.allclose(dense(model.conv2).grad, gradient, atol=2e-2)


def test_a_custom_quantizer_of_outputs(client: nc.Client) -> None:
    class Halves(Quantizer):
        def quantize_weight(self, weight: torch.Tensor, config: Any, **_: Any) -> torch.Tensor:
            return (weight * 2).round() / 2

    quantizer = Halves([DEFAULT], client=client)
    model = quantizer(Net()).eval()
    expected = model(images())
    assert torch.equal(
        torch.compile(model, fullgraph=True, backend="aot_eager")(images()), expected
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_an_exported_program_computes_the_same(client: nc.Client, name: str, strict: bool) -> None:
    compressor = COMPRESSORS[name](client)
    model = compressor(Net())
    train(compressor, model, model)
    model.eval()
    expected = model(images())
    program = torch.export.export(model, (images(),), strict=strict)
    assert torch.allclose(program.module()(images()), expected, atol=1e-5)
    called = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in called if "nni_compression" in name]
