"""Compressors with a server of this process's own."""

from __future__ import annotations

import torch

import nni_compression as nc
from nni_compression.torch import LevelPruner, QATQuantizer


def test_compressors_share_a_local_server_that_data_loader_workers_leave_running() -> None:
    first, second = torch.nn.Linear(300, 300), torch.nn.Linear(300, 300)
    pruner = LevelPruner([{"op_types": ["default"], "sparsity": 0.5}], server="local")
    pruner(first)
    rules = [{"op_types": ["default"], "quant_bits": 4, "quant_types": ["weight"]}]
    quantizer = QATQuantizer(rules, server="local")
    quantizer(second)
    assert pruner.session.info().state == "active"
    data = torch.utils.data.TensorDataset(torch.randn(8, 300))
    for _ in range(2):  # the workers of each are forked and end
        for (inputs,) in torch.utils.data.DataLoader(
            data, batch_size=4, num_workers=2, multiprocessing_context="fork"
        ):
            second(first(inputs)).sum().backward()
    assert int((first.weight == 0).sum()) == 300 * 300 // 2
    assert len(second.weight.unique()) <= 16
    with nc.Client("local") as client:
        ids = {info.id for info in client.sessions()}
    assert {pruner.session.id, quantizer.session.id} <= ids, "they have two servers"
