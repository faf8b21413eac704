"""Compression in `fit` of Keras models.

>>> from nni_compression.integrations.keras import CompressionCallback
>>> pruner = AGPPruner([{"op_types": ["default"], "final_sparsity": 0.8, "end_epoch": 10}])
>>> model.fit(x, y, epochs=12, callbacks=[CompressionCallback(pruner)])
>>> model = pruner.unwrap()
"""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from ..adapters.compressor import Compressor
from ..errors import InvalidArgumentError
from ._epochs import Epochs
from .recorder import Recorder


class CompressionCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Compresses a model while it is fitted.

    The model is compressed when fitting begins, if it is not yet. Epochs and steps are passed to
    the compressors. Where the session has been closed, another one continues.

    Args:
        compressors: pruners and quantizers of `nni_compression.keras`, with a model or without.
        recorder: gets the numbers of each epoch of the schedules.
        steps_per_epoch: so many steps count as an epoch of the schedules. By default those of `fit`
            count.
    """

    def __init__(
        self,
        *compressors: Compressor,
        recorder: Optional[Recorder] = None,
        steps_per_epoch: Optional[int] = None,
    ) -> None:
        super().__init__()
        if not compressors:
            raise TypeError("give a pruner or quantizer of nni_compression.keras")
        self._compressors = compressors
        self._epochs = Epochs(recorder, steps_per_epoch)
        self._steps_before = 0

    def on_train_begin(self, logs: Any = None) -> None:
        for compressor in self._compressors:
            if not compressor.is_bound:
                compressor(self.model)
            elif not compressor.is_unwrapped:
                _check_is_of(compressor, self.model)
                if compressor.session.closed:
                    compressor.load_state_dict(compressor.state_dict())  # for a new session
            compressor.refresh()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._steps_before = self._compressors[0].steps
        if self._epochs.steps_per_epoch is not None:
            epoch = self._steps_before // self._epochs.steps_per_epoch
        self._epochs.begin(self._compressors, epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Several minibatches may have been one call: `batch` is the number of the last.
        step = self._steps_before + batch + 1
        self._epochs.step(self._compressors, step)
        if self._epochs.steps_per_epoch is not None:
            epoch = step // self._epochs.steps_per_epoch
            if epoch != self._compressors[0].epoch:
                self._epochs.record(self._compressors)
                self._epochs.begin(self._compressors, epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._epochs.steps_per_epoch is None:
            self._epochs.record(self._compressors)

    def on_train_end(self, logs: Any = None) -> None:
        if self._epochs.unrecorded:
            self._epochs.record(self._compressors)


def _check_is_of(compressor: Compressor, model: Any) -> None:
    """Raises InvalidArgumentError for a compressor whose model shares no weight with this one."""
    if not model.built:  # its weights are not known yet
        return
    trained = {id(weight) for weight in model.weights}
    bound = compressor.bound_model
    if not any(id(weight) in trained for weight in bound.weights):
        raise InvalidArgumentError(
            f"the {type(compressor).__name__} has another model already, {bound.name!r}; each "
            "model needs a compressor of its own"
        )
