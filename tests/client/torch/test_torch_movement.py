"""Movement pruning: what training moves towards zero goes, by the server's count."""

from __future__ import annotations

import copy
import importlib
import io
import warnings
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import nni_compression as nc
from nni_compression._transport import channel
from nni_compression._wire import compression_pb2 as pb
from servers import ServerProcess

pytest.importorskip("torch")

import torch

from nni_compression.torch import MovementPruner
from torch_helpers import COMPRESSED, Net, calls, dense, images, run_ranks, train_step

STEPS, FREQUENCY = 12, 3
RULE = {
    "final_sparsity": 0.8,
    "schedule_unit": "step",
    "end_step": 9,
    "frequency": FREQUENCY,
    "op_types": ["default"],
}


def sgd(model: Any, **options: Any) -> Any:
    """With two learning rates."""
    few = [model.fc1.weight, model.fc2.weight]
    others = [own for own in model.parameters() if all(own is not one for one in few)]
    groups = [{"params": others}, {"params": few, "lr": 0.3}]
    return torch.optim.SGD(groups, lr=0.1, **options)


RATES = {"conv1": 0.1, "conv2": 0.1, "fc1": 0.3, "fc2": 0.3}


def target(step: int) -> float:
    """Of agp."""
    time = min(step // FREQUENCY * FREQUENCY / RULE["end_step"], 1.0)  # type: ignore[operator]
    return 0.8 - 0.8 * (1 - time) ** 3


class Reference:
    """The scores in double, and the masks that follow from them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.scores = {name: np.zeros(dense(getattr(model, name)).shape) for name in COMPRESSED}
        self.before: dict[str, Any] = {}

    def add(self) -> None:
        """Of the step that the optimizer will take next."""
        for name in COMPRESSED:
            weight = dense(getattr(self.model, name))
            product = weight.detach().double() * weight.grad.double()
            self.scores[name] -= RATES[name] * product.numpy()

    def check(self, masks: Any, step: int) -> None:
        """Exactly as many are gone as agp wants, those with the lowest scores of what there was."""
        for name in COMPRESSED:
            mask, scores = masks[name].numpy(), self.scores[name]
            assert (~mask).sum() == int(mask.size * target(step)), (name, step)
            was = self.before.get(name, np.ones_like(mask))
            assert not (mask & ~was).any(), "a pruned weight came back"
            gone = scores[was & ~mask]
            if gone.size and mask.any():
                # Sums in single and in double may differ in the order of neighbors.
                assert gone.max() <= scores[mask].min() + 1e-6 * np.abs(scores).max()
            self.before[name] = mask


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "nesterov": True}]
)
def test_the_masks_are_those_of_the_formula(client: nc.Client, options: Any) -> None:
    model = Net()
    optimizer = sgd(model, **options)
    pruner = MovementPruner(model, [RULE], optimizer, client=client)
    pruner.compress()
    reference = Reference(model)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        for part in range(2):  # gradients of two batches are accumulated
            torch.nn.functional.cross_entropy(
                model(images(4, 10 * step + part)), torch.arange(4)
            ).backward()
        reference.add()
        optimizer.step()
        pruner.step()
        reference.check(pruner.masks, step)
    assert round(pruner.metrics()["sparsity"], 2) == 0.8
    report = pruner.session.info().layers[0].statistics["weight_gradient"]
    assert list(report.sources) == [0]
    assert report.count == 9  # nothing is asked for afterwards
    pruner.close()


def test_an_optimizer_that_maximizes_the_negated_loss_gives_the_same_masks(
    client: nc.Client,
) -> None:
    masks = []
    for maximize in (False, True):
        model = Net()
        optimizer = sgd(model, maximize=maximize)
        pruner = MovementPruner(model, [RULE], optimizer, client=client)
        pruner.compress()
        for step in range(2 * FREQUENCY):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images(4, step)), torch.arange(4))
            (-loss if maximize else loss).backward()
            optimizer.step()
            pruner.step()
        masks.append(pruner.masks)
        pruner.close()
    for name in COMPRESSED:
        assert not masks[0][name].all()
        assert torch.equal(masks[0][name], masks[1][name])


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_optimizers_are_observed(client: nc.Client, kind: Any) -> None:
    masks = []
    for several in (False, True):
        model = Net()
        optimizers = [sgd(model)]
        if several:
            groups = optimizers[0].param_groups
            optimizers = [torch.optim.SGD(own["params"], lr=own["lr"]) for own in groups]
        pruner = MovementPruner(model, [RULE], kind(optimizers), client=client)
        pruner.compress()
        for step in range(2 * FREQUENCY):
            for own in model.parameters():
                own.grad = None
            loss = torch.nn.functional.cross_entropy(model(images(4, step)), torch.arange(4))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            pruner.step()
        masks.append(pruner.masks)
        reports = [layer for layer in pruner.session.info().layers if layer.compressed]
        counts = [layer.statistics["weight_gradient"].count for layer in reports]
        assert counts == [2 * FREQUENCY] * len(COMPRESSED)
        pruner.close()
    for name in COMPRESSED:
        assert not masks[0][name].all()
        assert torch.equal(masks[0][name], masks[1][name])


def test_what_is_no_optimizer_is_refused(client: nc.Client) -> None:
    model = Net()
    for wrong, told in (
        ("sgd", "^optimizer is 'sgd', a str; it must be a torch.optim.Optimizer"),
        (model.parameters(), "^optimizer is <generator"),
        ([sgd(model), None], r"^optimizer\[1\] is None, a NoneType"),
    ):
        with pytest.raises(nc.InvalidArgumentError, match=told):
            MovementPruner(model, [RULE], wrong, client=client)


def train(pruner: Any, model: Any, optimizer: Any, steps: Any) -> None:
    for step in steps:
        train_step(model, optimizer, step)
        pruner.step()
        model(images())  # asks


def test_statistics_are_sent_only_when_masks_are_stale(client: nc.Client) -> None:
    model = Net()
    optimizer = sgd(model)
    pruner = MovementPruner(model, [RULE], optimizer, client=client)
    pruner.compress()
    train(pruner, model, optimizer, range(1))
    before = [calls(pruner)]
    for step in range(1, 6):
        train(pruner, model, optimizer, [step])
        before.append(calls(pruner))
    # Step, and with a new mask also AddStatistics and CalcMask.
    assert np.diff(before).tolist() == [1, 3, 1, 1, 3]
    pruner.close()


def by_hand(model: Any, optimizer: Any) -> None:
    """A step that no optimizer takes."""
    torch.nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
    with torch.no_grad():
        for own in model.parameters():
            own -= 0.1 * own.grad
            own.grad = None


def of_a_copy(model: Any, optimizer: Any) -> None:
    trained = copy.deepcopy(model)
    train_step(trained, torch.optim.SGD(trained.parameters(), lr=0.1))


def with_another_optimizer(model: Any, optimizer: Any) -> None:
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1))


NOT_OBSERVED = (
    "step 3 removes 56.3 %, but no optimizer step was observed for layers "
    "'conv1', 'conv2', 'fc1', 'fc2' so far: give the pruner the optimizer that trains them"
)


@pytest.mark.parametrize("take", [by_hand, of_a_copy, with_another_optimizer])
def test_masks_that_are_due_without_any_step_of_an_optimizer_are_an_error(
    client: nc.Client, tmp_path: Path, take: Callable[[Any, Any], None]
) -> None:
    if take is with_another_optimizer and observes_all_optimizers():
        pytest.skip("this PyTorch observes all optimizers")
    model = Net()
    optimizer = sgd(model)
    pruner = MovementPruner(model, [RULE], optimizer, client=client)
    pruner.compress()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.update_epoch(0)
        for _ in range(FREQUENCY - 1):
            take(model, optimizer)
            pruner.step()
        pruner.compressed_state_dict()  # nothing is to be removed yet
    take(model, optimizer)
    with pytest.warns(UserWarning, match=NOT_OBSERVED):
        pruner.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.step()  # warns once
    folder, told = tmp_path / "files", NOT_OBSERVED.replace("step 3", "step 4")
    for use in (
        pruner.refresh,
        pruner.unwrap,
        pruner.compressed_state_dict,
        lambda: pruner.export_model(str(folder)),
        lambda: pruner.export(folder),
        lambda: pruner.apply_to(Net()),
        lambda: pruner.masks,
    ):
        with pytest.raises(nc.FailedPreconditionError, match=told) as raised:
            use()
        assert list(raised.value.errors) == list(COMPRESSED)
    assert not folder.exists()
    for step in range(2):  # it is not too late
        train_step(model, optimizer, step)
        pruner.step()
    pruner.unwrap()
    assert pruner.metrics()["sparsity"] > 0.5


def observes_all_optimizers() -> bool:
    module = importlib.import_module("torch.optim.optimizer")
    return hasattr(module, "register_optimizer_step_pre_hook")


def test_a_layer_that_is_frozen_is_refused_when_compressing(client: nc.Client) -> None:
    model = Net()
    model.conv2.weight.requires_grad_(False)
    pruner = MovementPruner(model, [RULE], sgd(model), client=client)
    with pytest.raises(
        nc.InvalidArgumentError,
        match="weight_gradient of layer 'conv2', and requires_grad.*exclude it in config_list",
    ):
        pruner.compress()
    rules = [RULE, {"op_names": ["conv2"], "exclude": True}]
    pruner = MovementPruner(model, rules, sgd(model), client=client)
    pruner.compress()
    train(pruner, model, sgd(model), [])
    model.fc1.weight.requires_grad_(False)  # once trained, it may be
    pruner.rebind()
    pruner.close()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_without_gradients_is_an_error_of_the_step_that_needs_them(
    client: nc.Client, scope: str
) -> None:
    model = Net()
    trained = [own for name, own in model.named_parameters() if not name.startswith("fc2")]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    pruner = MovementPruner(model, [{**RULE, "scope": scope}], optimizer, client=client)
    pruner.compress()
    train(pruner, model, optimizer, range(FREQUENCY - 1))
    train_step(model, optimizer)
    told = "^layer 'fc2' got no gradient in 3 optimizer steps: .*exclude it in config_list"
    with pytest.raises(nc.FailedPreconditionError, match=told):
        pruner.step()
    with pytest.raises(nc.FailedPreconditionError, match=told):
        pruner.export_model("unused")
    optimizer.add_param_group({"params": model.fc2.parameters()})
    optimizer.step()
    train(pruner, model, optimizer, range(2))
    pruner.close()


@pytest.mark.parametrize("answered", [None, [], ["conv1", "fc2"]])
def test_a_part_whose_call_failed_counts_once(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch, answered: Any
) -> None:
    """Whether the server had received it or not; what was collected since is a part of its own.

    Args:
        answered: the layers whose answers arrive; None: the call does not reach the server.
    """
    model, plain = Net(), Net()
    optimizers = sgd(model), sgd(plain)
    pruner = MovementPruner(model, [RULE], optimizers[0], client=client)
    pruner.compress()
    twin = MovementPruner(plain, [RULE], optimizers[1], client=client)
    twin.compress()
    for each, own, optimizer in zip((pruner, twin), (model, plain), optimizers):
        for step in range(FREQUENCY):
            train_step(own, optimizer, step)
            each.step()
    stream, failed = channel.Transport.stream, []

    def failing(self: Any, method: str, exchange: Any, *args: Any, **kwargs: Any) -> Any:
        if not method.endswith("/AddStatistics"):
            return stream(self, method, exchange, *args, **kwargs)
        failed.append(method)
        if answered is not None:
            receive = exchange.receive

            def receive_some(message: bytes) -> None:
                results = pb.AddStatisticsResponse.FromString(message).results
                kept = [result for result in results if result.layer in answered]
                receive(pb.AddStatisticsResponse(results=kept).SerializeToString())

            exchange.receive = receive_some
            with pytest.raises(nc.InternalError, match="without an answer for"):
                stream(self, method, exchange, *args, **kwargs)
        raise nc.UnavailableError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(channel.Transport, "stream", failing)
        for _ in range(2):
            with pytest.raises(nc.UnavailableError):
                model(images())
    assert len(failed) == 2
    for optimizer in optimizers:
        optimizer.step()  # with the same gradients again
    for own in (model, plain):
        own(images())
    for name in COMPRESSED:
        assert torch.equal(pruner.masks[name], twin.masks[name])
    assert pruner.metrics()["sparsity"] > 0.4
    for each in (pruner, twin):
        report = each.session.info().layers[0].statistics["weight_gradient"]
        assert report.count == FREQUENCY + 1
        each.close()


@pytest.mark.parametrize("steps", [FREQUENCY - 1, FREQUENCY, FREQUENCY + 2, 2 * FREQUENCY])
def test_an_interrupted_training_continues_as_if_it_had_not_been(
    client: nc.Client, steps: int
) -> None:
    model = Net()
    optimizer = sgd(model)
    pruner = MovementPruner(model, [RULE], optimizer, client=client)
    pruner.compress()
    train(pruner, model, optimizer, range(steps))
    buffer = io.BytesIO()
    states = {"model": model, "pruner": pruner, "optimizer": optimizer}
    torch.save({name: own.state_dict() for name, own in states.items()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer)

    resumed = Net(seed=9)
    resumed.load_state_dict(saved["model"])
    other_optimizer = sgd(resumed)
    other_optimizer.load_state_dict(saved["optimizer"])
    other = MovementPruner(resumed, [RULE], other_optimizer, client=client)
    other.load_state_dict(saved["pruner"])
    other.compress()
    for step in range(steps, STEPS):
        train(pruner, model, optimizer, [step])
        train(other, resumed, other_optimizer, [step])
        for name in COMPRESSED:
            assert torch.equal(pruner.masks[name], other.masks[name]), (step, name)
    for each in (pruner, other):
        report = each.session.info().layers[0].statistics["weight_gradient"]
        assert report.count == 3 * FREQUENCY  # the last masks are of step 9
        each.close()


RANK = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, meeting, address = int(sys.argv[1]), *sys.argv[2:]
from nni_compression.torch import MovementPruner
from torch_helpers import Net, images, process_group, train_step

RULE = {"final_sparsity": 0.8, "schedule_unit": "step", "end_step": 9, "frequency": 3,
        "op_types": ["default"]}

def main():
    torch.set_num_threads(1)
    model = Net(seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = MovementPruner(model, [RULE], optimizer, server=address)
    pruner.on_every_rank(model)
    wrapped = DistributedDataParallel(model)
    for step in range(12):
        train_step(wrapped, optimizer, seed=10 * step + rank)
        pruner.step()
        masks = [None, None]
        if rank == step % 2:  # one asks while the other waits
            model(images())
        dist.barrier()
        dist.all_gather_object(masks, pruner.masks)
        assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items()), step
    report = pruner.session.info().layers[0].statistics["weight_gradient"]
    assert list(report.sources) == [0], report
    assert report.count == 9, report
    print(round(pruner.metrics()["sparsity"], 2))
    dist.barrier()

with process_group(rank, 2, meeting):
    main()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_ranks_have_the_masks_of_all_gradients(server: ServerProcess, tmp_path: Any) -> None:
    printed = run_ranks(2, RANK, str(tmp_path / "meeting"), server.address)
    assert printed == ["0.8\n"] * 2
