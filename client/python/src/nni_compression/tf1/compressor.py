"""Pruners and quantizers of graphs of TensorFlow 1."""

from __future__ import annotations

import contextlib
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from .._tensorflow.files import TensorFlowFiles
from ..adapters import compressor, pruner, quantizer
from ..adapters.algorithms import listed
from ..adapters.backend import Backend
from .backend import GraphBackend


class Compressor(compressor.Compressor):
    """Base of pruners and quantizers of graphs; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)
    >>> pruner(tf.compat.v1.get_default_graph())
    >>> pruner.update_epoch(epoch, sess)

    A graph has to be compressed before a session runs it; answers are requested by the first call
    that has a session. Variables stay the same objects and are never overwritten: the forward pass
    sees the compressed weights, all other readers the dense ones. Errors are subclasses of
    `nni_compression.CompressionError`.

    `update_epoch`, `step` and `refresh` call the server, for all layers that need an answer in one
    stream. Weights count as changed when `step` or `refresh` is called. These methods and `unwrap`
    take the session, by default TensorFlow's default session.
    """

    _backends: ClassVar[tuple[type[Backend[Any]], ...]] = (GraphBackend,)

    def update_epoch(self, epoch: int, sess: Optional[Any] = None) -> None:
        """Sets the epoch, from 0 on, and requests the masks that it makes stale."""
        with self._using(sess):
            super().update_epoch(epoch)

    def step(self, step: Optional[Any] = None, sess: Optional[Any] = None) -> None:
        """Ends a minibatch: sets the next step, or the one given (absolute).

        A quantizer requests the quantized values of the changed weights. `step(sess)` sets the next
        step.
        """
        if not (step is None or hasattr(step, "__index__") or isinstance(step, numbers.Number)):
            step, sess = None, step
        with self._using(sess):
            super().step(step)

    def refresh(self, sess: Optional[Any] = None) -> None:
        """Requests answers for all weights now, for example after they were loaded."""
        with self._using(sess):
            super().refresh()

    def unwrap(self, sess: Optional[Any] = None) -> Any:
        """Restores the plain model, with zeros or quantized values written in; ends the session.

        In a graph they are written into the variables of `sess`.
        """
        with self._using(sess):
            return super().unwrap()

    def export(
        self,
        directory: Union[str, os.PathLike[str]],
        format: str = "safetensors",
        *,
        options: Optional[Mapping[str, Any]] = None,
        sess: Optional[Any] = None,
    ) -> list[Path]:
        """Writes the model in one of the server's formats, under the names of its variables.

        Args:
            sess: of a graph: its global variables in this session are written.

        The other arguments are those of `nni_compression.torch`. Returns: the files written.
        """
        with self._using(sess):
            return super().export(directory, format, options=options)

    def _using(self, sess: Optional[Any]) -> contextlib.AbstractContextManager[Any]:
        backend = self._bound().backend
        assert isinstance(backend, GraphBackend)
        return backend.graph.using(sess)

    def _write_model(
        self,
        files: TensorFlowFiles,
        model_path: str,
        onnx_path: Optional[str],
        input_shape: Optional[Sequence[Optional[int]]],
        outputs: Any,
    ) -> None:
        self.refresh()
        binding: Any = self._bound()
        binding.backend.write_model(files, binding, model_path, onnx_path, input_shape, outputs)


class Pruner(pruner.Pruner, Compressor):
    """Base of pruners of graphs.

    A custom algorithm overrides `calc_mask`, which runs in the trainer, or names an algorithm of
    the server: ``algorithm = "random"``. `calc_mask` gets a symbolic weight and may return a
    symbolic mask, which is kept and evaluated instead of calling the method again.
    """

    def export_model(
        self,
        model_path: str,
        mask_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[Optional[int]]] = None,
        sess: Optional[Any] = None,
        outputs: Any = None,
    ) -> None:
        """Writes the pruned model, and its masks. All files appear, or none.

        Args:
            model_path: of a graph: the prefix of a checkpoint with all global variables of `sess`,
                as a `Saver` restores it; of a Keras model: for its weights with zeros in them
                (`NAME.weights.h5`), or for the whole model (`NAME.keras`).
            mask_path: for the masks, as a file of `numpy.savez`: layer name -> bool array of the
                weight's shape, True = kept.
            onnx_path: for the plain model as the package tf2onnx converts it, in inference, with
                the same weights, zeros included, under their variables' names and in their layout.
            input_shape: of the model's input, with the batch, for `onnx_path`; None: the shape that
                the model or the placeholder has, in which sizes may be open. Needed for a Keras
                model without a known input shape: a subclassed one.
            sess: of a graph.
            outputs: of a graph, for `onnx_path`: the output tensors of the ONNX model, or their
                names, one or a list. Operations that they do not need are left out.
        """
        with self._using(sess), TensorFlowFiles.written() as files:
            self._write_model(files, model_path, onnx_path, input_shape, outputs)
            if mask_path is not None:
                files.save_masks(self.masks, mask_path)


class Quantizer(quantizer.Quantizer, Compressor):
    """Base of quantizers of graphs.

    A custom algorithm overrides `quantize_weight`, which runs in the trainer as for `Pruner`, or
    names an algorithm of the server: ``algorithm = "mine"``.
    """

    def export_model(
        self,
        model_path: str,
        calibration_path: Optional[str] = None,
        onnx_path: Optional[str] = None,
        input_shape: Optional[Sequence[Optional[int]]] = None,
        sess: Optional[Any] = None,
        outputs: Any = None,
    ) -> None:
        """Writes the quantized model, and how it was quantized. All files appear, or none.

        Args:
            model_path: as of `Pruner.export_model`, with quantized values in the weights.
            calibration_path: for `calibration`, as JSON.
            onnx_path: as of `Pruner.export_model`, with what `nni_compression.onnx.apply` puts into
                it: codes in place of the weights, quantized outputs and inputs. If that is not
                possible, because `unwrap` has ended the session or outputs have more than 8 bits,
                there is a warning, and the file has the same weights as plain numbers.
            input_shape, sess, outputs: as of `Pruner.export_model`.
        """
        with self._using(sess), TensorFlowFiles.written() as files:
            self._write_model(files, model_path, onnx_path, input_shape, outputs)
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
