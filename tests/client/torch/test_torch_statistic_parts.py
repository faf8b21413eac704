"""Tensors of PyTorch as parts of statistics, without the adapter."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import nni_compression as nc


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_part_may_have_any_floating_point_type(dtype: torch.dtype, requires_grad: bool) -> None:
    values = torch.tensor([[1.5, -2], [0.25, 3]], dtype=dtype, requires_grad=requires_grad)
    tensor = nc.StatisticPart(values).tensor("values")
    assert tensor.dtype == ("float64" if dtype == torch.float64 else "float32")
    sent = np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
    assert sent.tolist() == values.tolist()


def test_a_part_that_is_a_view_is_sent_in_the_order_of_its_elements() -> None:
    values = torch.arange(6.0).reshape(2, 3).T
    tensor = nc.StatisticPart(values).tensor("values")
    assert tensor.shape == (3, 2)
    assert np.frombuffer(tensor.data, np.float32).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_part_of_integers_is_refused() -> None:
    with pytest.raises(nc.InvalidArgumentError, match="values has dtype int64; it must be one of"):
        nc.StatisticPart(torch.arange(3)).tensor("values")
