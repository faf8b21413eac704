"""The callback of Lightning, under both names of the package."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc
from servers import ServerProcess

pytest.importorskip("torch")
pytest.importorskip("lightning")

import lightning.pytorch
import torch

import trainings
from nni_compression.integrations.lightning import CompressionCallback
from nni_compression.integrations.recorder import Recorder
from nni_compression.torch import AGPPruner, LevelPruner, unwrap
from trainings import EPOCHS, STEPS, fit

LEVEL = [{"op_types": ["Linear"], "sparsity": 0.5}]
PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def result(module: Any) -> dict[str, torch.Tensor]:
    """All parameters, and what the module computes."""
    inputs = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return {**module.state_dict(), "output": module.eval()(inputs)}


def test_a_training_that_was_killed_ends_as_one_that_was_not(
    server: ServerProcess, tmp_path: Path
) -> None:
    pruner, quantizer = trainings.compressors(server.address)
    undisturbed = fit(lightning.pytorch, tmp_path / "a", [CompressionCallback(pruner, quantizer)])
    expected = result(undisturbed)
    assert (pruner.epoch, pruner.steps) == (EPOCHS - 1, EPOCHS * STEPS)
    assert pruner.metrics()["sparsity"] > 0.79

    killed_at = 2 * STEPS - 1  # within an epoch, with the masks of that, which the file lacks
    trainings.run_and_kill("lightning", server.address, tmp_path / "b", killed_at)
    again = trainings.compressors(server.address)
    resumed = fit(
        lightning.pytorch,
        tmp_path / "b",
        [CompressionCallback(*again)],
        ckpt_path=str(tmp_path / "b/epoch=0.ckpt"),
    )
    found = result(resumed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for name, mask in pruner.masks.items():
        assert torch.equal(again[0].masks[name], mask)


def test_a_checkpoint_of_the_last_minibatch_of_an_epoch_continues_in_the_next(
    server: ServerProcess, tmp_path: Path
) -> None:
    every = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=STEPS, save_top_k=-1
    )

    def run(**arguments: Any) -> tuple[list[int], dict[str, Any]]:
        made = trainings.compressors(server.address)
        epochs: list[int] = []

        class Watches(lightning.pytorch.Callback):
            def on_train_batch_end(self, *unused: Any) -> None:
                epochs.append(made[0].epoch)

        module = fit(
            lightning.pytorch, tmp_path, [CompressionCallback(*made), Watches(), every], **arguments
        )
        assert made[0].steps == made[1].steps == EPOCHS * STEPS
        return epochs, {**result(module), **made[0].masks}

    epochs, expected = run()
    for done in range(1, EPOCHS):
        resumed, found = run(ckpt_path=str(tmp_path / f"step={done * STEPS}.ckpt"))
        assert resumed == epochs[done * STEPS :]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@pytest.fixture(params=[True, False])
def restores_callbacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether Lightning restores callbacks to evaluate, too: some versions only do so to fit."""
    if not request.param:
        for package in ("lightning.pytorch", "pytorch_lightning"):
            if importlib.util.find_spec(package.partition(".")[0]) is None:
                continue
            path = f"{package}.trainer.connectors.checkpoint_connector"
            connector = importlib.import_module(path)._CheckpointConnector
            restore = connector.restore_callbacks

            def to_fit(self: Any, restore: Any = restore) -> None:
                if self.trainer.state.fn == "fit":
                    restore(self)

            monkeypatch.setattr(connector, "restore_callbacks", to_fit)
    return bool(request.param)


def evaluator(package: str, *callbacks: Any) -> Any:
    return importlib.import_module(package).Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )


def measured(made: Any, module: Any, what: str = "test", **arguments: Any) -> Any:
    """The mean loss, or all predictions."""
    given = getattr(made, what)(module, trainings.batches(), **arguments)
    return torch.cat(given) if what == "predict" else given[0]["loss"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_checkpoint_is_evaluated_with_its_own_masks(
    server: ServerProcess, tmp_path: Path, package: str, restores_callbacks: bool
) -> None:
    pytest.importorskip(package)
    made = importlib.import_module(package)
    losses: list[Any] = []
    compressors = trainings.compressors(server.address)
    callback = CompressionCallback(*compressors)

    class Measures(made.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.eval()
            with torch.no_grad():
                outputs = torch.cat([pl_module(batch) for batch, _ in trainings.batches()])
            losses.append((outputs, compressors[0].metrics()["sparsity"]))
            pl_module.train()

    module = fit(made, tmp_path, [callback, Measures()])
    tester = evaluator(package, callback)
    for epoch in (0, 1, EPOCHS - 1, 1):
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        outputs, sparsity = losses[epoch]
        assert torch.equal(measured(tester, module, "predict", ckpt_path=path), outputs)
        assert compressors[0].metrics()["sparsity"] == sparsity
        assert (compressors[0].epoch, compressors[1].steps) == (epoch, (epoch + 1) * STEPS)
        for what in ("test", "validate"):
            expected = measured(tester, module, what)  # as the module is now
            assert measured(tester, module, what, ckpt_path=path) == expected
    # In another process, nothing is compressed yet.
    again = trainings.compressors(server.address)
    fresh = type(module)()
    path = str(tmp_path / "epoch=1.ckpt")
    found = measured(evaluator(package, CompressionCallback(*again)), fresh, ckpt_path=path)
    assert found == measured(tester, module, ckpt_path=path)
    assert again[0].metrics()["sparsity"] == losses[1][1]


def test_a_training_after_an_evaluation_continues_from_what_is_in_the_module(
    server: ServerProcess, tmp_path: Path
) -> None:
    made = trainings.compressors(server.address)
    callback = CompressionCallback(*made)
    module = fit(lightning.pytorch, tmp_path, [callback])
    expected = {name: value.clone() for name, value in result(module).items()}
    expected.update(made[0].masks)
    tester = evaluator("lightning.pytorch", callback)
    path = str(tmp_path / "epoch=1.ckpt")
    measured(tester, module, ckpt_path=path)
    masks, epoch = made[0].masks, made[0].epoch
    measured(tester, module)
    assert (epoch, made[0].epoch) == (1, 1)
    assert all(torch.equal(made[0].masks[name], mask) for name, mask in masks.items())
    module.train()
    fit(lightning.pytorch, tmp_path, [callback], module=module, ckpt_path=path)
    found = {**result(module), **made[0].masks}
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_what_cannot_be_evaluated_with_its_masks_is_said(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    callback = CompressionCallback(pruner)
    module = fit(lightning.pytorch, tmp_path / "a", [callback], max_epochs=1)
    plain = fit(lightning.pytorch, tmp_path / "b", [], max_epochs=1)
    tester = evaluator("lightning.pytorch", callback)
    with pytest.warns(UserWarning, match="has no state of the compressors"):
        measured(tester, module, ckpt_path=str(tmp_path / "b/epoch=0.ckpt"))
    path = str(tmp_path / "a/epoch=0.ckpt")
    with pytest.warns(UserWarning, match="LevelPruner has another model"):
        measured(tester, plain, ckpt_path=path)
    pruner.unwrap()
    with pytest.warns(UserWarning, match="LevelPruner was unwrapped"):
        measured(tester, module, ckpt_path=path)
    with pytest.raises(RuntimeError, match="make another compressor"):
        fit(lightning.pytorch, tmp_path / "a", [callback], module=module, ckpt_path=path)


@pytest.mark.parametrize("package", PACKAGES)
def test_both_packages_run_it(client: nc.Client, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    made = importlib.import_module(package)
    pruner = AGPPruner(trainings.AGP, client=client)
    recorder = Recorder()
    callback = CompressionCallback(pruner, recorder=recorder)
    module = fit(made, tmp_path, [callback], accumulate_grad_batches=2)
    assert pruner.steps == EPOCHS * 3  # the last minibatch of an epoch is a step by itself
    sparsities = [row["agp/sparsity"] for row in recorder.rows]
    assert sparsities == sorted(sparsities)
    assert (len(sparsities), sparsities[0]) == (EPOCHS, 0)
    assert sparsities[-1] > 0.79
    assert pruner.unwrap() is module
    assert int((module.fc1.weight == 0).sum()) >= 0.79 * module.fc1.weight.numel()


def test_steps_come_with_gradients_and_may_count_as_epochs(
    client: nc.Client, tmp_path: Path
) -> None:
    seen = []

    class Watched(AGPPruner):
        def step(self, step: Any = None) -> None:
            gradient = dict(self.bound_model.named_parameters())["fc1.weight"].grad
            seen.append((self.epoch, self.steps, gradient is not None))
            super().step(step)

    pruner = Watched(trainings.AGP, client=client)
    recorder = Recorder()
    callback = CompressionCallback(pruner, steps_per_epoch=2, recorder=recorder)
    fit(lightning.pytorch, tmp_path, [callback], max_epochs=1)
    assert seen == [(step // 2, step, True) for step in range(STEPS)]
    recorded = [(row["agp/epoch"], row["agp/step"]) for row in recorder.rows]
    assert recorded == [(0, 2), (1, 4), (2, STEPS)]


def test_a_part_of_the_module_and_its_averages(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner([{"op_names": ["."], "sparsity": 0.5}], client=client)
    averages: list[Any] = []

    class Average(lightning.pytorch.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
            if not averages:
                averages.append(torch.optim.swa_utils.AveragedModel(pl_module.fc1))
            averages[0].update_parameters(pl_module.fc1)

    callback = CompressionCallback(
        pruner,
        model=lambda module: module.fc1,
        copies=[lambda: averages[0] if averages else None],
    )
    module = fit(lightning.pytorch, tmp_path, [callback, Average()], max_epochs=2)
    (mask,) = pruner.masks.values()
    assert torch.equal(module.fc1.weight == 0, ~mask)
    assert torch.equal(averages[0].module.weight == 0, ~mask)
    assert int((unwrap(averages[0].module).weight == 0).sum()) == int((~mask).sum())


def test_lightnings_own_average_is_pruned(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    average = lightning.pytorch.callbacks.WeightAveraging()
    module = fit(lightning.pytorch, tmp_path, [average, CompressionCallback(pruner)])
    plain = pruner.unwrap()
    assert plain is module
    assert int((plain.fc1.weight == 0).sum()) == plain.fc1.weight.numel() // 2


def test_an_exception_ends_the_session(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)

    class Fails(lightning.pytorch.Callback):
        def on_train_batch_end(self, *unused: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(lightning.pytorch, tmp_path, [CompressionCallback(pruner), Fails()])
    assert client.session_info(pruner.session.id).state == "closed"


def test_a_compressor_fits_again_after_an_exception(server: ServerProcess, tmp_path: Path) -> None:
    pruner = AGPPruner(trainings.AGP, server=server.address)  # with a client of its own
    callback = CompressionCallback(pruner)

    class Fails(lightning.pytorch.Callback):
        def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
            if trainer.global_step == 2 * STEPS:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(lightning.pytorch, tmp_path, [callback, Fails()])
    module, masks = pruner.bound_model, pruner.masks
    with pytest.raises(nc.FailedPreconditionError, match=r"is closed; rebind\(\) opens another"):
        pruner.export(tmp_path / "a")
    pruner.rebind()
    pruner.export(tmp_path / "a")
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in masks.items())
    pruner.close()
    path = str(tmp_path / "epoch=0.ckpt")
    fit(lightning.pytorch, tmp_path, [callback], module=module, ckpt_path=path)
    assert pruner.steps == EPOCHS * STEPS
    assert pruner.metrics()["sparsity"] > 0.79
    pruner.unwrap()
    with pytest.raises(nc.FailedPreconditionError, match=r"is closed; export before unwrap\(\)"):
        pruner.export(tmp_path / "b")


def test_a_checkpoint_without_compression_begins_it(client: nc.Client, tmp_path: Path) -> None:
    fit(lightning.pytorch, tmp_path, [], max_epochs=1)
    pruner = LevelPruner(LEVEL, client=client)
    path = str(tmp_path / "epoch=0.ckpt")
    fit(lightning.pytorch, tmp_path, [CompressionCallback(pruner)], ckpt_path=path, max_epochs=2)
    assert pruner.steps == STEPS


RANK = """
import sys
from pathlib import Path
import lightning.pytorch
import torch
import trainings
from nni_compression.integrations.lightning import CompressionCallback
torch.set_num_threads(1)
_, address, folder = sys.argv[1:]
compressors = trainings.compressors(address)
module = trainings.fit(
    lightning.pytorch, Path(folder), [CompressionCallback(*compressors)], max_epochs=2, devices=2,
    strategy=lightning.pytorch.strategies.DDPStrategy(process_group_backend="gloo"),
)
numbers = [float(tensor.double().sum()) for tensor in module.state_dict().values()]
masks = [int(mask.sum()) for mask in compressors[0].masks.values()]
ranges = compressors[1].calibration["fc1"]["output_range"]
print(numbers, masks, ranges, [c.session.id for c in compressors])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_ranks_share_their_sessions(server: ServerProcess, tmp_path: Path) -> None:
    first, second = trainings.run_under_torchrun(RANK, server.address, str(tmp_path))
    assert first.splitlines()[-1] == second.splitlines()[-1]
