"""The column of PyTorch in docs/frameworks.md."""

from __future__ import annotations

import torch

import frameworks
import nni_compression as nc
import nni_compression.torch as adapter


def test_the_column_of_pytorch_runs(client: nc.Client) -> None:
    def build() -> torch.nn.Module:
        model = torch.nn.Sequential()
        model.add_module("fc", torch.nn.Linear(8, 6))
        return model

    names = {**vars(adapter), "client": client, "build": build, "model": build()}
    names["data"] = torch.ones(2, 8)
    frameworks.run_column("PyTorch", names)
