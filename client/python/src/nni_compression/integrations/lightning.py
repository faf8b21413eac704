"""Compression in Lightning, with the package `lightning` or `pytorch_lightning`.

>>> from nni_compression.integrations.lightning import CompressionCallback
>>> pruner = AGPPruner([{"op_types": ["default"], "final_sparsity": 0.8, "end_epoch": 10}])
>>> trainer = Trainer(max_epochs=12, callbacks=[CompressionCallback(pruner)])
>>> trainer.fit(module, data, ckpt_path=last_checkpoint)
>>> module = pruner.unwrap()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

from ..torch import Compressor
from ._training import Copy, Training
from .recorder import Recorder


class CompressionCallback(Callback):  # type: ignore[misc]
    """Compresses the module of a Trainer while it is fitted.

    The module is compressed when fitting begins, and keeps its compressors afterwards: `unwrap()`
    or `export()` gives the result. Epochs and optimizer steps are passed to the compressors.
    Checkpoints have the state of the compressors, from which `fit(ckpt_path=...)` continues. With
    DDP, all ranks share a session. An exception ends the session; another `fit` opens a new one.

    `validate`, `test` and `predict` with a `ckpt_path` evaluate that checkpoint's weights with its
    own masks and quantization, which stay in force, as its weights stay in the module.

    Args:
        compressors: pruners and quantizers, with a model or without. Without any,
            `model.compressor` of `prune` or `quantize`.
        copies: models that follow, such as averages of the weights, or functions that return them,
            or None until they are made. Lightning's `WeightAveraging` needs nothing.
        recorder: gets the numbers of each epoch of the schedules, on the first rank.
        steps_per_epoch: so many optimizer steps count as an epoch of the schedules. By default the
            Trainer's epochs count.
        model: LightningModule -> the part of it that is compressed; by default all of it.
    """

    def __init__(
        self,
        *compressors: Compressor,
        copies: Iterable[Copy] = (),
        recorder: Optional[Recorder] = None,
        steps_per_epoch: Optional[int] = None,
        model: Callable[[Any], Any] = lambda module: module,
    ) -> None:
        super().__init__()
        self._training = Training(compressors, copies, recorder, steps_per_epoch)
        self._model = model
        self._loaded: Optional[Sequence[Mapping[str, Any]]] = None
        self._begun = False
        self._steps = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._training.begin(self._model(pl_module), self._loaded)
        self._loaded, self._begun = None, True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin_evaluation(trainer, pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin_evaluation(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._training.begin_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        # There is no on_train_epoch_start after a restart from the last minibatch of an epoch.
        self._training.continue_epoch(trainer.current_epoch)
        self._training.begin_step(trainer.global_step, is_first_rank=trainer.is_global_zero)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients are cleared before the next backward pass. There is no step while they are
        # accumulated.
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._training.end_step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.end_epoch(is_first_rank=trainer.is_global_zero)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.end(is_first_rank=trainer.is_global_zero)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._training.close()

    def state_dict(self) -> dict[str, Any]:
        return {"compressors": self._training.states()} if self._begun else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict.get("compressors")

    def _begin_evaluation(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" or not trainer.ckpt_path:
            return
        states, self._loaded = self._loaded, None
        if states is None:  # some versions of Lightning restore callbacks only to fit
            saved = trainer.strategy.load_checkpoint(trainer.ckpt_path).get("callbacks", {})
            states = saved.get(self.state_key, {}).get("compressors")
        self._training.begin_evaluation(self._model(pl_module), states, trainer.ckpt_path)
        self._begun = self._begun or states is not None
