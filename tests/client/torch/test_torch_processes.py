"""Several processes: ranks of a data-parallel job, forked workers, and the example."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nni_compression as nc
import servers

pytest.importorskip("torch")

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from nni_compression.torch import AGPPruner, LevelPruner, QATQuantizer
from torch_helpers import (
    AGP,
    COMPRESSED,
    LEVEL,
    QAT,
    Net,
    calls,
    dense,
    images,
    run_ranks,
    train_step,
)

TIMEOUT = 120  # seconds; generous, for a machine that is busy with a build
RANKS = 2

RANK_PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nni_compression.torch import AGPPruner
from torch_helpers import AGP, COMPRESSED, Net, dense, process_group, train_step

rank, ranks, meeting, address, join = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]

def main():
    model = Net(seed=rank)  # DDP makes the weights equal
    wrapped = DistributedDataParallel(model)
    session = [None]
    if join == "yes" and rank != 0:
        dist.broadcast_object_list(session, src=0)
    pruner = AGPPruner(AGP, server=address, session=session[0])
    pruner(model)
    if join == "yes" and rank == 0:
        dist.broadcast_object_list([pruner.session.id], src=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(4):
        pruner.update_epoch(epoch)
        train_step(wrapped, optimizer, seed=10 * epoch + rank)
        pruner.step()
    for name in COMPRESSED:
        for tensor in (pruner.masks[name].to(torch.uint8), dense(getattr(model, name)).detach()):
            everywhere = [torch.empty_like(tensor) for _ in range(ranks)]
            dist.all_gather(everywhere, tensor)
            assert all(torch.equal(tensor, other) for other in everywhere), name
    assert model.fc1.weight.eq(0).sum() == int(0.8 * (1 - (1 - 3 / 9) ** 3) * 4096)
    dist.barrier()
    print("session", pruner.session.id)

torch.set_num_threads(1)
with process_group(rank, ranks, meeting):
    main()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
@pytest.mark.parametrize("ranks", [1, RANKS])
@pytest.mark.parametrize("join", ["yes", "no"])
def test_all_ranks_of_a_distributed_job_get_the_same_masks_and_weights(
    server, tmp_path, ranks, join
):
    arguments = (str(ranks), str(tmp_path / "meeting"), server.address, join)
    printed = run_ranks(ranks, RANK_PROGRAM, *arguments)
    assert len(set(printed)) == (1 if join == "yes" else ranks)


class ModelData(Dataset):
    """Items that a model computes, in a worker."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.model(images(1, seed=index))[0]


@pytest.mark.parametrize(
    ("make", "config_list"), [(LevelPruner, LEVEL), (AGPPruner, AGP), (QATQuantizer, QAT)]
)
def test_a_forked_dataloader_worker_uses_the_answers_there_are_and_makes_no_call(
    client, make, config_list
):
    compressor = make(config_list, client=client)
    model = compressor(Net()).eval()
    compressor.update_epoch(4)
    model(images())
    torch.set_num_threads(1)  # OpenMP does not survive a fork
    expected = [ModelData(model)[index] for index in range(4)]
    made = calls(compressor)
    loader = DataLoader(
        ModelData(model), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(loader, expected))
    assert calls(compressor) == made
    compressor.update_epoch(8)
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    compressor.session.info()


def in_child(model, compressor, queue):
    """What a forked child may do with a compressor that it inherited."""
    torch.set_num_threads(1)
    with torch.no_grad():
        dense(model.fc1).mul_(2)
    output = model(images())
    compressor.step()
    compressor.update_epoch(7)
    made = calls(compressor)
    compressor.close()
    queue.put((bool(torch.isfinite(output).all()), made))


def test_a_forked_child_makes_no_call_whatever_it_does(client):
    quantizer = QATQuantizer(QAT, client=client)
    model = quantizer(Net())
    model(images())
    made = calls(quantizer)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=in_child, args=(model, quantizer, queue))
    process.start()
    assert queue.get(timeout=TIMEOUT) == (True, made)
    process.join(TIMEOUT)
    assert process.exitcode == 0
    assert quantizer.session.info().state == "active"
    with torch.no_grad():
        dense(model.fc1).mul_(2)
    model(images())
    assert calls(quantizer) > made


def test_a_session_ends_with_its_process(server, client):
    program = f"""
import torch
from nni_compression.torch import LevelPruner
from torch_helpers import LEVEL, Net
LevelPruner(LEVEL, server={server.address!r}, labels={{"test": "exit"}})(Net())
"""
    folders = [str(Path(__file__).parent), str(Path(nc.__file__).resolve().parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=TIMEOUT)
    assert client.sessions({"test": "exit"}) == []


def test_the_example_trains_prunes_and_quantizes(server):
    pytest.importorskip("sklearn")
    example = servers.ROOT / "client/python/examples/digits.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(nc.__file__).resolve().parents[1])}
    result = subprocess.run(
        [sys.executable, str(example), "--server", server.address, "--epochs", "6"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("agp", "level", "qat", "dorefa", *COMPRESSED):
        assert name in result.stdout


def test_the_examples_keep_to_one_thread():
    pytest.importorskip("sklearn")
    program = (
        "import digits, threadpoolctl; digits.use_one_thread(); "
        "print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})"
    )
    folders = [servers.ROOT / "client/python/examples", Path(nc.__file__).resolve().parents[1]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OPENBLAS_NUM_THREADS": "2",
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "{1}\n"


@pytest.mark.parametrize("epochs", [3, 4])
def test_a_trial_of_the_example_may_be_short(server, epochs):
    pytest.importorskip("sklearn")
    program = (
        "import sys, trial; trial.digits.use_one_thread(); "
        "drawn = {'prune_method': {'_name': 'agp', 'fc1': 0.8}}; "
        f"print(trial.run_trial(drawn, trial.digits.Net(), lambda result: None, {epochs})['saved'])"
    )
    folders = [
        servers.ROOT / "client/python/examples/auto_compression",
        Path(nc.__file__).resolve().parents[1],
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "NNI_COMPRESSION_SERVER": server.address,
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert 0.79 < float(result.stdout) <= 0.8  # all of it: pruning has come to its end


def test_the_example_says_when_there_is_no_server():
    pytest.importorskip("sklearn")
    example = servers.ROOT / "client/python/examples/digits.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(nc.__file__).resolve().parents[1])}
    result = subprocess.run(
        [sys.executable, str(example), "--server", "127.0.0.1:1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 1
    assert "no compression server" in result.stderr
