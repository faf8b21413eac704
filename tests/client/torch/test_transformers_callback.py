"""The callback of transformers' Trainer."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc
from servers import ServerProcess

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("transformers")

import torch
import transformers

import trainings
from nni_compression.integrations.recorder import Recorder
from nni_compression.integrations.transformers import STATE_FILE, CompressionCallback
from nni_compression.torch import AGPPruner, LevelPruner, prune
from trainings import EPOCHS, STEPS, bert, trainer

LEVEL = [{"op_types": ["Linear"], "sparsity": 0.5}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def result(model: Any) -> dict[str, torch.Tensor]:
    """All parameters, and what the model computes."""
    tokens = torch.stack([row["input_ids"] for row in trainings.sentences()])
    with torch.no_grad():
        logits = model.eval()(tokens).logits
    return {**model.state_dict(), "logits": logits}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_training_that_was_killed_ends_as_one_that_was_not(
    server: ServerProcess, tmp_path: Path
) -> None:
    undisturbed = bert()
    pruner, quantizer = trainings.compressors(server.address)
    trainer(undisturbed, tmp_path / "a", [CompressionCallback(pruner, quantizer)]).train()
    expected = result(undisturbed)
    assert (pruner.epoch, pruner.steps) == (EPOCHS - 1, EPOCHS * STEPS)
    assert pruner.metrics()["sparsity"] > 0.79
    assert len(undisturbed.classifier.weight.unique()) <= 256

    killed_at = 2 * STEPS - 1  # within an epoch, with the masks of that, and after a checkpoint
    trainings.run_and_kill("transformers", server.address, tmp_path / "b", killed_at)
    assert (tmp_path / "b/checkpoint-6" / STATE_FILE).is_file()
    model = bert(seed=5)
    again = trainings.compressors(server.address)
    resumed = trainer(model, tmp_path / "b", [CompressionCallback(*again)])
    resumed.train(resume_from_checkpoint=True)
    assert same(result(model), expected)
    for name, mask in pruner.masks.items():
        assert torch.equal(again[0].masks[name], mask)


def test_a_checkpoint_elsewhere_has_to_be_named(client: nc.Client, tmp_path: Path) -> None:
    def callback(**arguments: Any) -> CompressionCallback:
        return CompressionCallback(AGPPruner(trainings.AGP, client=client), **arguments)

    first = bert()
    trainer(first, tmp_path / "a", [callback()], max_steps=6).train()
    elsewhere = tmp_path / "moved"
    shutil.copytree(tmp_path / "a/checkpoint-6", elsewhere)
    # Of another training, at the same step.
    arguments = {"max_steps": 6, "logging_strategy": "steps", "logging_steps": 1}
    trainer(bert(), tmp_path / "b", [callback()], **arguments).train()
    other = trainer(bert(), tmp_path / "b", [callback()], max_steps=6)
    with pytest.raises(FileNotFoundError, match=r"resumes at step 6.*resume_from=\.\.\."):
        other.train(resume_from_checkpoint=str(elsewhere))
    model = bert(seed=5)
    named = trainer(model, tmp_path / "b", [callback(resume_from=elsewhere)], max_steps=6)
    named.train(resume_from_checkpoint=str(elsewhere))
    assert same(result(model), result(first))


def test_a_checkpoint_without_compression_is_not_taken_for_one(
    client: nc.Client, tmp_path: Path
) -> None:
    trainer(bert(), tmp_path, [], max_steps=3).train()
    pruner = LevelPruner(LEVEL, client=client)
    begin = trainer(bert(), tmp_path, [CompressionCallback(pruner)], max_steps=6)
    with pytest.raises(FileNotFoundError, match=f"checkpoint-3 has no {STATE_FILE}"):
        begin.train(resume_from_checkpoint=True)
    callback = CompressionCallback(pruner, resume_from=False)
    trainer(bert(), tmp_path, [callback], max_steps=6).train(resume_from_checkpoint=True)
    assert pruner.steps == 3
    assert pruner.metrics()["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file_of_a_checkpoint_is_named(
    client: nc.Client, tmp_path: Path, size: int
) -> None:
    begin = trainer(
        bert(), tmp_path, [CompressionCallback(LevelPruner(LEVEL, client=client))], max_steps=3
    )
    begin.train()
    file = tmp_path / "checkpoint-3" / STATE_FILE
    os.truncate(file, size)
    callback = CompressionCallback(LevelPruner(LEVEL, client=client))
    go_on = trainer(bert(), tmp_path, [callback], max_steps=6)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        go_on.train(resume_from_checkpoint=True)


def test_the_best_model_has_its_own_masks(client: nc.Client, tmp_path: Path) -> None:
    pruner = AGPPruner(trainings.AGP, client=client)
    evaluations = iter([3.0, 1.0, 2.0, 4.0])
    made = trainer(
        bert(),
        tmp_path,
        [CompressionCallback(pruner)],
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
    )
    made.evaluate = lambda **kwargs: {"eval_loss": next(evaluations)}
    made.train()
    state = torch.load(tmp_path / f"checkpoint-{2 * STEPS}" / STATE_FILE, weights_only=True)
    assert pruner.epoch == 1
    assert 0 < pruner.metrics()["sparsity"] < 0.7
    assert pruner.state_dict()["masks"].keys() == state[0]["masks"].keys()
    for name, mask in pruner.state_dict()["masks"].items():
        assert torch.equal(mask["bits"], state[0]["masks"][name]["bits"])


def test_steps_come_with_gradients_and_may_count_as_epochs(
    client: nc.Client, tmp_path: Path
) -> None:
    class Watched(AGPPruner):
        seen: list[tuple[int, int, bool]] = []  # noqa: RUF012

        def step(self, step: Any = None) -> None:
            gradient = dict(self.bound_model.named_parameters())["classifier.weight"].grad
            self.seen.append((self.epoch, self.steps, gradient is not None))
            super().step(step)

    pruner = Watched(trainings.AGP, client=client)
    recorder = Recorder()
    callback = CompressionCallback(pruner, steps_per_epoch=2, recorder=recorder)
    arguments = {"max_steps": 5, "gradient_accumulation_steps": 2}
    trainer(bert(), tmp_path, [callback], **arguments).train()
    assert pruner.seen == [(step // 2, step, True) for step in range(5)]
    recorded = [(row["agp/epoch"], row["agp/step"]) for row in recorder.rows]
    assert recorded == [(0, 2), (1, 4), (2, 5)]


def test_copies_and_records_follow(client: nc.Client, tmp_path: Path) -> None:
    model, rows = bert(), []
    average = torch.optim.swa_utils.AveragedModel(model)
    later: list[Any] = []
    recorder = Recorder(lambda epoch, row: rows.append((epoch, row["level/sparsity"])))
    prune(model, sparsity=0.5, op_names=["bert.pooler.dense"], client=client)
    callback = CompressionCallback(
        copies=[average, lambda: later[0] if later else None], recorder=recorder
    )

    class MakesACopy(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            average.update_parameters(model)
            if not later:
                later.append(copy.deepcopy(model))

    trainer(model, tmp_path, [callback, MakesACopy()], num_train_epochs=2).train()
    mask = model.compressor.masks["bert.pooler.dense"]
    assert not mask.all()
    for each in (average.module, later[0]):
        assert torch.equal(each.bert.pooler.dense.weight == 0, ~mask)
    assert [epoch for epoch, _ in rows] == [0, 1]
    assert rows[1][1] == recorder.rows[1]["level/sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("own_client", [False, True])
def test_another_training_of_a_closed_compressor_opens_a_session(
    server: ServerProcess, client: nc.Client, tmp_path: Path, own_client: bool
) -> None:
    given: Any = {"server": server.address} if own_client else {"client": client}
    model, pruner = bert(), AGPPruner(trainings.AGP, **given)
    made = trainer(model, tmp_path, [CompressionCallback(pruner)], num_train_epochs=1)
    made.train()
    pruner.close()
    made.args.num_train_epochs = 4
    made.train()
    assert not pruner.session.closed
    assert pruner.metrics()["sparsity"] > 0.79


def test_wrong_arguments_are_refused(client: nc.Client, tmp_path: Path) -> None:
    with pytest.raises(nc.InvalidArgumentError, match="the model has no compressor"):
        trainer(bert(), tmp_path, [CompressionCallback()], max_steps=1).train()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(bert())
    with pytest.raises(nc.InvalidArgumentError, match="the LevelPruner has another model already"):
        trainer(bert(), tmp_path, [CompressionCallback(pruner)], max_steps=1).train()
    with pytest.raises(TypeError, match="got a list; a pruner or quantizer"):
        CompressionCallback(LEVEL)  # type: ignore[arg-type]
    with pytest.raises(nc.InvalidArgumentError, match="steps_per_epoch is 0"):
        CompressionCallback(steps_per_epoch=0)


RANK = """
import sys
from pathlib import Path
import torch
import trainings
from nni_compression.integrations.transformers import CompressionCallback
torch.set_num_threads(1)
_, address, folder = sys.argv[1:]
compressors = trainings.compressors(address, labels={"folder": folder[-20:]})
model = trainings.bert()
made = trainings.trainer(
    model, Path(folder), [CompressionCallback(*compressors)], max_steps=4, ddp_backend="gloo"
)
made.train()
torch.distributed.barrier()
numbers = [float(tensor.double().sum()) for tensor in model.state_dict().values()]
masks = [int(mask.sum()) for mask in compressors[0].masks.values()]
ranges = compressors[1].calibration["classifier"]["output_range"]
print(numbers, masks, ranges, [c.session.id for c in compressors])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_ranks_share_their_sessions(server: ServerProcess, tmp_path: Path) -> None:
    first, second = trainings.run_under_torchrun(RANK, server.address, str(tmp_path))
    assert first.splitlines()[-1] == second.splitlines()[-1]  # before it, the Trainer's
    assert (tmp_path / "checkpoint-3" / STATE_FILE).is_file()
