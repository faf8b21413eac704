"""Compression in transformers' Trainer.

>>> from nni_compression.integrations.transformers import CompressionCallback
>>> pruner = AGPPruner([{"op_types": ["Linear"], "final_sparsity": 0.8, "end_epoch": 3}])
>>> trainer = Trainer(model, args, train_dataset=data, callbacks=[CompressionCallback(pruner)])
>>> trainer.train(resume_from_checkpoint=last_checkpoint)
>>> pruner.save_pretrained("small")
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import TrainerControl
from transformers.training_args import TrainingArguments

from .._files import atomic
from ..torch import Compressor
from ._training import Copy, Training
from .recorder import Recorder

#: In each checkpoint of the Trainer.
STATE_FILE = "compression.pt"
_TRAINER_STATE = "trainer_state.json"


class CompressionCallback(TrainerCallback):  # type: ignore[misc]
    """Compresses the model of a Trainer while it trains.

    The model is compressed when the training begins, and has to be unwrapped or exported
    afterwards: `compressor.save_pretrained(folder)`. Epochs and optimizer steps are passed to the
    compressors, steps before the gradients are cleared. Each checkpoint of the Trainer has the
    state of the compressors, from which `train(resume_from_checkpoint=...)` continues, and to which
    `load_best_model_at_end` returns. With DDP, all ranks share a session.

    Args:
        compressors: pruners and quantizers, with a model or without. Without any,
            `model.compressor` of `prune` or `quantize`.
        copies: models that follow, such as averages of the weights, or functions that return them,
            or None until they are made.
        recorder: gets the numbers of each epoch of the schedules, on the first rank.
        steps_per_epoch: so many optimizer steps count as an epoch of the schedules: for trainings
            of one epoch, or of `max_steps`. By default the Trainer's epochs count.
        resume_from: the checkpoint that training continues from, if it is neither in the
            `output_dir` nor in the arguments' `resume_from_checkpoint`. False: that checkpoint is
            of a model that was not compressed.
    """

    def __init__(
        self,
        *compressors: Compressor,
        copies: Iterable[Copy] = (),
        recorder: Optional[Recorder] = None,
        steps_per_epoch: Optional[int] = None,
        resume_from: Union[str, os.PathLike[str], Literal[False], None] = None,
    ) -> None:
        self._training = Training(compressors, copies, recorder, steps_per_epoch)
        self._resume_from = resume_from
        self._epoch: Optional[int] = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        states = None
        if state.global_step > 0 and self._resume_from is not False:
            states = _load(self._checkpoint(args, state))
        self._epoch = None
        self._training.begin(model, states)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        begun = int((state.epoch or 0.0) + 1e-6)
        # An epoch that was stopped is over.
        self._epoch = begun if self._epoch is None else max(begun, self._epoch + 1)
        self._training.begin_epoch(self._epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training.begin_step(state.global_step, is_first_rank=state.is_world_process_zero)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training.end_step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training.end_epoch(is_first_rank=state.is_world_process_zero)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states = self._training.states()  # of a sharded model, all ranks gather them
        if state.is_world_process_zero:
            name = f"checkpoint-{state.global_step}"
            folder = Path(args.output_dir) / name
            if not folder.is_dir():  # of a search, which has a folder for each run
                runs = list(Path(args.output_dir).glob(f"run-*/{name}"))
                folder = max(runs, key=lambda run: run.stat().st_mtime, default=folder)
            with atomic.NewFiles.written() as files:
                torch.save(states, files.temporary(folder / STATE_FILE))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training.end(is_first_rank=state.is_world_process_zero)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            states = _load(Path(state.best_model_checkpoint))
            for compressor, best in zip(self._training.compressors, states):
                compressor.load_state_dict(best)

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The checkpoint that the Trainer has loaded: it does not say which."""
        tried = list(self._candidates(args, state))
        for folder in tried:
            if _is_of(folder, state):
                return folder
        raise FileNotFoundError(
            f"training resumes at step {state.global_step}, and the checkpoint was not found as "
            f"{', '.join(map(str, tried))}: name it in CompressionCallback(resume_from=...)"
        )

    def _candidates(self, args: TrainingArguments, state: TrainerState) -> Iterator[Path]:
        if self._resume_from:
            yield Path(self._resume_from)
            return
        if isinstance(args.resume_from_checkpoint, str):
            yield Path(args.resume_from_checkpoint)
        yield Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _is_of(folder: Path, state: TrainerState) -> bool:
    """Whether this is the checkpoint whose state the Trainer has loaded."""
    try:
        saved = TrainerState.load_from_json(str(folder / _TRAINER_STATE))
    except FileNotFoundError:
        return False
    keys = ("global_step", "epoch", "total_flos", "log_history", "best_metric")
    return all(getattr(saved, key) == getattr(state, key) for key in keys)


def _load(folder: Path) -> list[dict[str, Any]]:
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {STATE_FILE}: it was written without compression, or only in part. "
            "Use an earlier checkpoint, or CompressionCallback(resume_from=False) to begin to "
            "compress there"
        )
    try:
        states: list[dict[str, Any]] = torch.load(path, weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged, or was written in part only: {error}. Use an earlier checkpoint"
        ) from error
    return states
