"""Pruners and quantizers of Keras models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Optional

import tensorflow as tf

from .._tensorflow.files import TensorFlowFiles
from ..adapters import compressor, pruner, quantizer
from ..adapters.algorithms import listed
from ..adapters.backend import Backend
from .backend import KerasBackend


class Compressor(compressor.Compressor):
    """Base of pruners and quantizers of Keras models; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)
    >>> model = pruner(model)
    >>> model.fit(x, y, callbacks=[pruner.callback()])

    A model is changed in place and returned; it has to be built, and is compressed at once.
    Variables stay the same objects and are never overwritten: the forward pass sees the compressed
    weights, all other readers the dense ones. Errors are subclasses of
    `nni_compression.CompressionError`.

    `update_epoch`, `step` and `refresh` call the server, for all layers that need an answer in one
    stream. Weights count as changed when `step` or `refresh` is called.

    A `tf.function` of your own that was traced before the model was compressed keeps using the
    plain layers: make it again. Those of `fit`, `evaluate` and `predict` are made again.
    """

    _backends: ClassVar[tuple[type[Backend[Any]], ...]] = (KerasBackend,)

    def callback(self) -> Any:
        """A callback for `model.fit` that calls `update_epoch` and `step`."""
        return make_callback(self)

    def _write_model(
        self,
        files: TensorFlowFiles,
        model_path: str,
        onnx_path: Optional[str],
        input_shape: Optional[Sequence[Optional[int]]],
    ) -> None:
        self.refresh()
        binding = self._bound()
        assert isinstance(binding.backend, KerasBackend)
        binding.backend.write_model(files, binding, model_path, onnx_path, input_shape)


class Pruner(pruner.Pruner, Compressor):
    """Base of pruners of Keras models.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``.
    """

    def export_model(
        self,
        model_path: str,
        mask_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[Optional[int]]] = None,
    ) -> None:
        """Writes the pruned model, and its masks. All files appear, or none.

        Args:
            model_path: for the model's weights with zeros in them (`NAME.weights.h5`), or for the
                whole model (`NAME.keras`).
            mask_path: for the masks, as a file of `numpy.savez`: layer name -> bool array of the
                weight's shape, True = kept.
            onnx_path: for the plain model as the package tf2onnx converts it, in inference, with
                the same weights, zeros included, under their variables' names and in their layout.
            input_shape: of the model's input, with the batch, for `onnx_path`; None: the shape that
                the model has, in which sizes may be open. Needed for a model without a known input
                shape: a subclassed one.
        """
        with TensorFlowFiles.written() as files:
            self._write_model(files, model_path, onnx_path, input_shape)
            if mask_path is not None:
                files.save_masks(self.masks, mask_path)


class Quantizer(quantizer.Quantizer, Compressor):
    """Base of quantizers of Keras models.

    A custom algorithm overrides `quantize_weight`, which runs in the trainer, or names an algorithm
    of the server: ``algorithm = "mine"``.
    """

    def export_model(
        self,
        model_path: str,
        calibration_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[Optional[int]]] = None,
    ) -> None:
        """Writes the quantized model, and how it was quantized. All files appear, or none.

        Args:
            model_path: as of `Pruner.export_model`, with quantized values in the weights.
            calibration_path: for `calibration`, as JSON.
            onnx_path: as of `Pruner.export_model`, with what `nni_compression.onnx.apply` puts into
                it for the rules' target: codes in place of the weights, quantized outputs and
                inputs. If that is not possible, because `unwrap` has ended the session or outputs
                have more than 8 bits, there is a warning, and the file has the same weights as
                plain numbers.
            input_shape: as of `Pruner.export_model`.
        """
        with TensorFlowFiles.written() as files:
            self._write_model(files, model_path, onnx_path, input_shape)
            if onnx_path is not None:
                self._put_codes(files.temporary(onnx_path))
            if calibration_path is not None:
                files.save_calibration(self.calibration, calibration_path)


@listed
class LevelPruner(Pruner): ...


@listed
class AGPPruner(Pruner): ...


@listed
class GlobalMagnitudePruner(Pruner): ...


@listed
class LAMPPruner(Pruner): ...


@listed
class MovementPruner(Pruner): ...


@listed
class LotteryTicketPruner(Pruner): ...


@listed
class NMPruner(Pruner): ...


@listed
class RandomPruner(Pruner): ...


@listed
class L1FilterPruner(Pruner): ...


@listed
class L2FilterPruner(Pruner): ...


@listed
class FPGMPruner(Pruner): ...


@listed
class SlimPruner(Pruner): ...


@listed
class TaylorFOWeightFilterPruner(Pruner): ...


@listed
class ActivationAPoZRankFilterPruner(Pruner): ...


@listed
class ActivationMeanRankFilterPruner(Pruner): ...


@listed
class NaiveQuantizer(Quantizer): ...


@listed
class QATQuantizer(Quantizer): ...


@listed
class DoReFaQuantizer(Quantizer): ...


def make_callback(owner: compressor.Compressor) -> Any:
    """See `Compressor.callback`."""

    class CompressionCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
        """Calls `update_epoch` when an epoch begins, and `step` after a minibatch."""

        _steps_before = 0

        def on_train_begin(self, logs: Any = None) -> None:
            owner.refresh()

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            owner.update_epoch(epoch)
            self._steps_before = owner.steps

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # Several minibatches may have been one call: `batch` is the number of the last.
            owner.step(self._steps_before + batch + 1)

    return CompressionCallback()
