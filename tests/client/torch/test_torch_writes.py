"""Writes to `module.weight` of a compressed module reach its parameter, or raise."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, Callable

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import LevelPruner, QATQuantizer
from nni_compression.torch.passing import CompressedWeight
from torch_helpers import LEVEL, QAT, Net, dense, images, train_step

COMPRESSORS = [(LevelPruner, LEVEL, {}), (QATQuantizer, QAT, {"transfer": "weights"})]
COMPRESSORS += [(QATQuantizer, QAT, {"transfer": "ranges"})]

IN_PLACE = [name for name in dir(torch.Tensor) if name[0] != "_" and name[-1] == "_"]


@pytest.fixture(params=COMPRESSORS, ids=["pruner", "values", "ranges"])
def model(request: Any, client: nc.Client) -> Net:
    """A compressed model that has run once; it keeps its compressor."""
    make, config_list, arguments = request.param
    net = Net()
    net.compressor = make(config_list, client=client, **arguments)
    net.compressor(net)
    net(images())
    return net


def _set_item(weight: Any) -> None:
    weight[0] = 3.0


def _set_data_item(weight: Any) -> None:
    weight.data[0, 1:3] = 3.0


def _add_to_data(weight: Any) -> None:
    weight.data += 1


def _assign_data(weight: Any) -> None:
    weight.data = torch.full_like(weight, 0.25)


WRITES: list[Callable[[Any], Any]] = [
    _set_item,
    _set_data_item,
    _add_to_data,
    _assign_data,
    lambda weight: weight.add_(1),
    lambda weight: weight.mul_(torch.tensor(2.0)),
    lambda weight: weight.data.copy_(torch.ones_like(weight)),
    lambda weight: weight.detach().zero_(),
    lambda weight: weight.data.mul_(2).add_(1),
    lambda weight: weight.clamp_(-0.01, 0.01),
    lambda weight: weight.masked_fill_(weight > 0, 0.5),
    lambda weight: weight.normal_(generator=torch.Generator().manual_seed(3)),
    nn.init.zeros_,
    lambda weight: nn.init.constant_(weight, 0.5),
    lambda weight: nn.init.trunc_normal_(weight),
    lambda weight: nn.init.xavier_uniform_(weight),
    lambda weight: nn.init.kaiming_normal_(weight),
]
#: Through a view, or by what is no method: the parameter's could be written so, too.
LOST: list[Callable[[Any], Any]] = [
    lambda weight: weight.data[0].zero_(),
    lambda weight: weight.view(-1).fill_(1),
    lambda weight: weight.detach().reshape(-1)[3:5].add_(1),
    lambda weight: weight.T.zero_(),
    lambda weight: torch.relu_(weight),
    lambda weight: torch.add(weight, 1, out=weight.data),
    lambda weight: torch.ones(weight.shape, out=weight.data),
    lambda weight: nn.init.orthogonal_(weight),
    lambda weight: torch._foreach_add_([weight], 1.0),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_does_to_the_parameter_what_it_does_to_a_plain_modules(
    model: Net, write: Callable[[Any], Any]
) -> None:
    parameter = dense(model.fc1)
    plain = nn.Linear(128, 32)
    plain.weight.data.copy_(parameter)
    seen = parameter.detach().clone()
    torch.manual_seed(5)
    with torch.no_grad():
        write(plain.weight)
    torch.manual_seed(5)
    with torch.no_grad():
        write(model.fc1.weight)
    assert dense(model.fc1) is parameter
    if write is not WRITES[10]:  # which looks at the weight, and that is the compressed one
        assert torch.equal(parameter, plain.weight)
    assert not torch.equal(parameter, seen)
    # The next forward pass computes with what is there now.
    model.compressor.refresh()
    before = model(images())
    model.compressor.step()
    assert torch.equal(model(images()), before)


@pytest.mark.parametrize("write", LOST)
def test_a_write_that_cannot_be_forwarded_raises_at_the_next_read(
    model: Net, write: Callable[[Any], Any]
) -> None:
    with torch.no_grad():
        write(model.fc1.weight)
    gc.collect()
    with pytest.raises(RuntimeError, match="layer 'fc1' was written to.*named_parameters"):
        model(images())
    model(images())  # it was said


@pytest.mark.parametrize("name", IN_PLACE)
def test_every_method_that_writes_is_the_parameters(name: str) -> None:
    assert getattr(CompressedWeight, name) is not getattr(torch.Tensor, name)


def test_operators_that_write_keep_the_parameter(model: Net) -> None:
    parameter, before = dense(model.fc2), dense(model.fc2).detach().clone()
    with torch.no_grad():
        model.fc2.weight += 1
        model.fc2.weight *= 2
        model.fc2.weight -= 0.5
        model.fc2.weight /= 4
    assert dense(model.fc2) is parameter
    assert torch.equal(parameter, ((before + 1) * 2 - 0.5) / 4)


def test_a_write_with_gradients_on_is_refused_as_for_a_parameter(model: Net) -> None:
    with pytest.raises(RuntimeError, match="leaf"):
        model.fc1.weight.add_(1)
    with pytest.raises(RuntimeError, match="leaf"):
        model.fc1.weight += 1


def test_what_was_read_shows_what_was_written(model: Net) -> None:
    with torch.no_grad():
        weight = model.fc1.weight
        weight.fill_(0.5)
        kept = getattr(model.fc1, "weight_mask", None)
        expected = torch.full_like(weight, 0.5)
        if kept is not None:
            expected = torch.where(kept, expected, torch.zeros(()))
            assert torch.equal(weight, expected)
        assert torch.equal(weight == 0, model.fc1.weight == 0)


def test_assigning_what_was_read_to_the_same_module_changes_nothing(model: Net) -> None:
    parameter, before = dense(model.fc1), model.fc1.weight.detach().clone()
    for read in (model.fc1.weight, model.fc1.weight.data):
        model.fc1.weight = read
        assert dense(model.fc1) is parameter
        assert torch.equal(model.fc1.weight, before)
    with pytest.raises(TypeError, match="cannot assign"):  # tying is for plain modules
        model.fc2.weight = model.fc1.weight


def test_gradients_are_the_parameters(model: Net) -> None:
    model(images()).sum().backward()
    parameter = dense(model.fc1)
    assert model.fc1.weight.grad is parameter.grad is not None
    model.fc1.weight.grad.mul_(2)
    model.fc1.weight.grad = torch.ones_like(parameter)
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    model.fc1.weight.grad.zero_()
    assert not parameter.grad.any()
    model.fc1.weight.grad = None
    assert parameter.grad is None
    with torch.no_grad():
        assert model.fc1.weight.requires_grad
        model.fc1.weight.requires_grad = False
    assert not parameter.requires_grad
    model.fc1.weight.requires_grad_()
    assert parameter.requires_grad


def test_a_hook_is_the_parameters(model: Net) -> None:
    seen: list[torch.Tensor] = []
    handle = model.fc1.weight.register_hook(seen.append)
    model(images()).sum().backward()
    assert len(seen) == 1
    handle.remove()


def test_arrays_are_read_only(model: Net) -> None:
    array = model.fc1.weight.detach().numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_reading_is_as_of_a_plain_tensor(model: Net) -> None:
    weight = model.fc1.weight
    plain = weight.as_subclass(torch.Tensor)
    assert type(weight + 1) is type(weight.view(-1)) is type(weight.clone()) is torch.Tensor
    assert not torch.overrides.has_torch_function((weight,))
    with torch.no_grad():
        assert type(copy.deepcopy(model.fc1.weight)) is torch.Tensor
        loaded = pickle.loads(pickle.dumps(model.fc1.weight))
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, plain)
    assert "CompressedWeight" in repr(weight)
    model(images())  # nothing of it was a write


def test_an_embedding_that_scales_what_it_reads_still_does(client: nc.Client) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(10, 6, max_norm=0.5)
    plain = copy.deepcopy(embedding)
    pruner = LevelPruner([{"op_types": ["Embedding"], "sparsity": 0.5}], client=client)
    pruner(embedding)
    rows = torch.arange(10)
    with torch.no_grad():
        plain.weight.mul_(pruner.masks["."])
    for _ in range(3):
        assert torch.allclose(embedding(rows), plain(rows))


class Lora(nn.Module):
    """What peft puts in the place of a layer: it merges by `base.weight.data +=`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(4, base.in_features) / 4)
        self.b = nn.Parameter(torch.randn(base.out_features, 4) / 4)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.base(value) + value @ self.a.T @ self.b.T

    def merge(self, safe: bool) -> nn.Linear:
        change = (self.b @ self.a).detach()
        if safe:
            merged = self.base.weight.data.clone()
            merged += change
            assert torch.isfinite(merged).all()
            self.base.weight.data = merged
        else:
            self.base.weight.data += change
        return self.base


@pytest.mark.parametrize("safe", [False, True])
def test_an_adapter_that_is_merged_is_in_the_parameter(model: Net, safe: bool) -> None:
    before = dense(model.fc1).detach().clone()
    base, kept = model.fc1.weight.detach().clone(), getattr(model.fc1, "weight_mask", None)
    model.fc1 = Lora(model.fc1)
    tuned = model(images()).detach()
    change = (model.fc1.b @ model.fc1.a).detach()
    model.fc1 = model.fc1.merge(safe)
    merged = dense(model.fc1)
    assert torch.allclose(merged, (base if safe else before) + change, atol=1e-6)
    if kept is not None:
        assert torch.equal(model.fc1.weight, torch.where(kept, merged, torch.zeros(())))
    else:
        assert torch.allclose(model(images()), tuned, atol=0.1)
    state = model.state_dict()["fc1.weight"]
    assert torch.equal(state, merged)


def test_a_model_that_keeps_what_it_computed_is_freed(client: nc.Client) -> None:
    class Remembering(Net):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            self.last = super().forward(value)  # with the graph of it, which has the weights
            return self.last

    model = Remembering()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    weight = model.fc1.weight
    model(images()).sum().backward(retain_graph=True)
    alive = weakref.ref(model.fc1)
    del model, pruner
    gc.collect()
    assert alive() is None
    with torch.no_grad():
        weight.zero_()  # nobody's any more, and its own
        weight.data.add_(1)
    assert bool((weight == 1).all())
    assert weight.grad is None


def test_training_reads_and_frees_weights_without_a_report(model: Net) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed in range(3):
        train_step(model, optimizer, seed)
        with torch.no_grad():
            model(images(seed=seed))
        with torch.inference_mode():
            model(images(seed=seed))
