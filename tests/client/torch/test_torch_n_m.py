"""N:M sparsity of PyTorch models, and what is packed by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
from nni_compression.torch import NMPruner, check_n_m

needs_sparse_cores = pytest.mark.skipif(
    not torch.cuda.is_available()
    or not hasattr(torch.sparse, "to_sparse_semi_structured")
    or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU with sparse tensor cores, and PyTorch 2.1",
)
EVERYTHING = [{"op_types": ["default"]}]


def packed(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A 2:4 sparse matrix as NVIDIA describes it: half of the numbers, and two bits for each."""
    groups = weight.reshape(len(weight), -1, 4)
    order = np.argsort(groups == 0, axis=2, kind="stable")[..., :2]
    places = np.sort(order, axis=2)
    values = np.take_along_axis(groups, places, axis=2).reshape(len(weight), -1)
    nibbles = places[..., 0] | places[..., 1] << 2
    return values, (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).astype(np.uint8)


def unpacked(values: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    nibbles = np.stack((metadata & 15, metadata >> 4), axis=2).reshape(len(values), -1)
    places = np.stack((nibbles & 3, nibbles >> 2), axis=2)
    groups = np.zeros((*nibbles.shape, 4), dtype=values.dtype)
    np.put_along_axis(groups, places, values.reshape(*places.shape), axis=2)
    return groups.reshape(len(values), -1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.ConvTranspose2d(16, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * 6 * 6, 16),
    )


def test_every_group_of_a_pruned_model_has_the_pattern(model: nn.Module, client: nc.Client) -> None:
    assert check_n_m(model) == {"1": 16 * 9, "2": 4 * 6 * 9, "4": 54 * 16}
    pruner = NMPruner(EVERYTHING, client=client)
    with pytest.warns(
        UserWarning, match='leaves 1 layer out, "0": its weight has 3 input channels'
    ):
        pruner(model)
    model(torch.zeros(1, 3, 8, 8))
    assert check_n_m(model) == {"1": 0, "2": 0, "4": 0}
    assert {float(mask.float().mean()) for mask in pruner.masks.values()} == {0.5}
    pruner.unwrap()
    assert check_n_m(model) == {"1": 0, "2": 0, "4": 0}
    assert check_n_m(model, 1, 4) == {"1": 16 * 9, "2": 4 * 6 * 9, "4": 54 * 16}


def test_the_largest_magnitudes_of_each_group_are_kept(model: nn.Module, client: nc.Client) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    NMPruner([{"n": 1, "m": 4, "op_names": ["1", "2", "4"]}], client=client)(model)
    for name, axis in (("1", 1), ("2", 0), ("4", 1)):
        groups = before[f"{name}.weight"].movedim(axis, -1).unflatten(-1, (-1, 4))
        expected = groups * (groups.abs() == groups.abs().amax(-1, keepdim=True))
        found = model.get_submodule(name).weight.movedim(axis, -1).unflatten(-1, (-1, 4))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_2_4_sparse_weight_is_packed_and_unpacked_without_loss(
    model: nn.Module, client: nc.Client
) -> None:
    pruner = NMPruner([{"op_names": ["4"]}], client=client)
    pruner(model)
    pruner.unwrap()
    weight = model.get_submodule("4").weight.detach().numpy()
    values, metadata = packed(weight)
    assert values.size == weight.size // 2
    assert metadata.size == weight.size // 8
    np.testing.assert_array_equal(unpacked(values, metadata), weight)
    dense = np.ones((1, 8), dtype=np.float32)
    assert not np.array_equal(unpacked(*packed(dense)), dense), "more does not fit"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 4), "n is 0"), ((5, 4), r"n is 5; it must be in \[1, 4\]"), ((1, 1), "m is 1")],
)
def test_counts_that_make_no_sense_are_refused(
    model: nn.Module, arguments: tuple[int, int], message: str
) -> None:
    with pytest.raises(nc.InvalidArgumentError, match=message):
        check_n_m(model, *arguments)


def test_what_is_no_model_is_refused() -> None:
    nothing: Any = torch.zeros(1)
    with pytest.raises(TypeError, match="model is a Tensor"):
        check_n_m(nothing)


@needs_sparse_cores
def test_sparse_tensor_cores_take_the_weight() -> None:
    torch.manual_seed(2)
    layer = nn.Linear(256, 128, bias=False).half().cuda()
    pruner = NMPruner(EVERYTHING)
    pruner(layer)
    pruner.unwrap()
    inputs = torch.randn(64, 256, dtype=torch.half, device="cuda")
    dense = layer(inputs)
    layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight.detach()))
    torch.testing.assert_close(layer(inputs), dense, rtol=1e-2, atol=1e-2)
