"""Models within torch.compile and data-parallel wrappers: names are the plain model's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import AGPPruner, LevelPruner, QATQuantizer, layers
from torch_helpers import AGP, COMPRESSED, LEVEL, Net, images, train_step

OUTPUTS = [{"quant_types": ["weight", "output"], "op_types": ["default"]}]
compiles = pytest.mark.skipif(not hasattr(torch, "compile"), reason="came with PyTorch 2.0")


def plain(model: nn.Module) -> nn.Module:
    return model


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def compiled_within(model: nn.Module) -> nn.Module:
    model.fc1 = compiled(model.fc1)
    return model


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def both(model: nn.Module) -> Any:
    return compiled(nn.DataParallel(compiled_within(model)))


WRAPPERS = [
    plain,
    nn.DataParallel,
    distributed,
    *[pytest.param(wrap, marks=compiles) for wrap in (compiled, compiled_within, both)],
]


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """Of this process alone: what DistributedDataParallel wants."""
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def inner(model: nn.Module) -> Net:
    """The network; `eager` on layers changes no numbers, so wrappers within it may stay."""
    while not isinstance(model, Net):
        model = model._modules.get("module") or model._modules["_orig_mod"]
    return model


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_layers_exports_and_rules_have_the_plain_models_names(
    client: nc.Client, tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = wrap(Net())
    assert tuple(layer.name for layer in layers(model)) == (*COMPRESSED[:2], "bn", *COMPRESSED[2:])
    pruner = LevelPruner([*LEVEL, {"op_names": ["fc1"], "sparsity": 0.25}], client=client)
    pruner(model)
    inner(model).eval()(images())
    assert tuple(pruner.masks) == COMPRESSED
    assert int((~pruner.masks["fc1"]).sum()) == 128 * 32 // 4
    assert pruner.plan.coverage is not None
    assert not pruner.plan.warnings
    assert list(pruner.compressed_state_dict()) == list(Net().state_dict())
    path, *_ = pruner.export(tmp_path, "pth")
    Net().load_state_dict(torch.load(path))
    pruner.export_model(str(tmp_path / "model.pth"))
    Net().load_state_dict(torch.load(tmp_path / "model.pth"))


@pytest.mark.parametrize("wrap", WRAPPERS[1:])
def test_a_rule_may_name_a_layer_as_the_wrapper_does(
    client: nc.Client, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = wrap(Net())
    name = next(name for name, m in model.named_modules() if isinstance(m, nn.Linear))
    for names in ([name], name):
        pruner = LevelPruner([{"op_names": names, "sparsity": 0.5}], client=client)
        pruner(model)
        assert list(pruner.masks) == ["fc1"]
        pruner.unwrap()


@pytest.mark.parametrize("wrap", [nn.DataParallel, pytest.param(compiled, marks=compiles)])
def test_a_model_that_is_a_layer_is_so_within_a_wrapper(
    client: nc.Client, recwarn, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(wrap(nn.Linear(8, 4)))
    assert list(pruner.masks) == ["."]
    assert list(pruner.compressed_state_dict()) == ["weight", "bias"]
    assert not [w for w in recwarn if "computed" in str(w.message)]


def test_a_models_own_module_of_that_name_is_no_wrapper() -> None:
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    model.add_module("_orig_mod", nn.Linear(2, 2))
    assert [layer.name for layer in layers(model)] == ["module", "_orig_mod"]


def under(name: Callable[[str], str], state: dict[str, Any]) -> dict[str, Any]:
    """A state as it was written when layers had the wrappers' names."""
    named = {
        section: {name(layer): entry for layer, entry in state[section].items()}
        for section in ("masks", "memory", "activations", "seen")
        if section in state
    }
    return {**state, **named}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize(("make", "config_list"), [(AGPPruner, AGP), (QATQuantizer, OUTPUTS)])
def test_a_checkpoint_goes_on_whatever_wrapped_the_model(
    client: nc.Client, make, config_list, wrap: Callable[[nn.Module], nn.Module], prefix: str
) -> None:
    first = make(config_list, client=client)
    model = first(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        first.update_epoch(epoch)
        train_step(model, optimizer, epoch)
        first.step()
    state = under(lambda name: prefix + name, first.state_dict())
    resumed = Net(seed=9)
    resumed.load_state_dict(model.state_dict())
    second = make(config_list, client=client)
    second.load_state_dict(state)
    second(wrap(resumed))
    assert torch.equal(inner(resumed).eval()(images()), model.eval()(images()))
    first.update_epoch(2)
    second.update_epoch(2)
    assert torch.equal(resumed(images()), model(images()))


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    ("make", "config_list", "section"),
    [(AGPPruner, AGP, "masks"), (QATQuantizer, OUTPUTS, "memory")],
)
def test_what_is_of_no_layer_of_the_model_is_refused(
    client: nc.Client, make, config_list, section: str, bound: bool
) -> None:
    first = make(config_list, client=client)
    model = first(Net())
    model(images())
    first.step()
    state = under(lambda name: "other" if name == "fc2" else name, first.state_dict())
    second = make(config_list, client=client)
    resumed = Net()
    if bound:
        second(resumed)
    session = second.session.id if bound else None
    refused = pytest.raises(ValueError, match=rf"{section}\['other'\]")
    if bound:
        with refused:
            second.load_state_dict(state)
    else:
        second.load_state_dict(state)
        with refused:
            second(resumed)
    if bound:
        assert second.session.id == session
        resumed(images())
