"""Pruners and quantizers of TensorFlow's graphs and Keras models."""

from __future__ import annotations

import contextlib
import inspect
import numbers
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional, Union

import tensorflow as tf

from ..adapters import compressor
from ..adapters.binding import Binding
from ..adapters.tracker import Tracker
from ..errors import UnimplementedError
from ..values.masks import Mask
from ..values.plan import Parameter
from . import custom, graph, keras, rounding
from ._files import ModelFiles
from .counted import CountedBinding


class Compressor(compressor.Compressor):
    """Base of pruners and quantizers; both of NNI's call forms make one.

    >>> pruner = LevelPruner(config_list)
    >>> model = pruner(model)
    >>> model.fit(x, y, callbacks=[pruner.callback()])

    >>> pruner = LevelPruner(config_list)
    >>> pruner(tf.compat.v1.get_default_graph())
    >>> pruner.update_epoch(epoch, sess)

    A Keras model is changed in place and returned; it has to be built, and is compressed at once. A
    graph has to be compressed before a session runs it; answers come with the first call that has a
    session. Variables stay the same objects and are never overwritten: the forward pass sees the
    compressed weights, everybody else the dense ones. Errors are subclasses of
    `nni_compression.CompressionError`.

    The service is asked by `update_epoch`, `step` and `refresh`, for all layers that need it in one
    stream. Weights count as changed when `step` or `refresh` is called. With a graph these and
    `unwrap` take the session, by default TensorFlow's default session.

    A `tf.function` of one's own that has run before the model was compressed goes on with the
    layers as they were: make it anew. Those of `fit`, `evaluate` and `predict` are.

    Arguments are those of `nni_compression.torch`; `optimizer` is not needed.
    """

    _model_type: ClassVar[str] = "tf.Graph or a built Keras model of TensorFlow's Keras"

    def update_epoch(self, epoch: int, sess: Optional[Any] = None) -> None:
        """Tells the epoch, from 0 on, and asks for the masks that it makes stale."""
        with self._using(sess):
            super().update_epoch(epoch)
            self._bound().refresh()

    def step(self, step: Optional[Any] = None, sess: Optional[Any] = None) -> None:
        """Tells that a minibatch is done: the next step, or the one given (absolute).

        A quantizer gets what the changed weights are quantized to. `step(sess)` is the next step.
        """
        if not (step is None or hasattr(step, "__index__") or isinstance(step, numbers.Number)):
            step, sess = None, step
        with self._using(sess):
            self._weights_changed()
            super().step(step)
            self._bound().refresh()

    def refresh(self, sess: Optional[Any] = None) -> None:
        """Asks now, as if all weights had changed: after they were loaded, say."""
        with self._using(sess):
            self._weights_changed()
            super().refresh()

    def unwrap(self, sess: Optional[Any] = None) -> Any:
        """Gives the plain model back, zeros or quantized values written in; ends the session.

        In a graph they are written into the variables of `sess`.
        """
        with self._using(sess):
            self._weights_changed()
            self._keep_final()
            model = super().unwrap()
        if not graph.is_graph(model):
            keras.forget_compiled(model)
        return model

    def _run_own(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """NNI's skeletons take a session, which a Keras model has not, and `callback` gives a step,
        which they do not take.
        """
        if graph.is_graph(self._model):
            return method(self, *args, **kwargs)
        parameters = [name for name in inspect.signature(method).parameters if name != "self"]
        session = {"sess": None} if "sess" in parameters else {}
        return method(self, *args[: len(parameters) - len(session)], **{**session, **kwargs})

    def _export_model(
        self,
        files: ModelFiles,
        model_path: str,
        onnx_path: Optional[str],
        input_shape: Optional[Sequence[Optional[int]]],
        outputs: Any,
    ) -> None:
        self.refresh()
        if onnx_path is not None:
            files.save_onnx(self._as_onnx(onnx_path, input_shape, outputs), onnx_path)
        self._save_model(files, model_path)

    def _as_onnx(
        self, path: str, input_shape: Optional[Sequence[Optional[int]]], outputs: Any
    ) -> Any:
        try:
            from . import onnx
        except ImportError as error:
            raise ImportError(
                f"onnx_path is {path!r}, which takes the package tf2onnx (pip install tf2onnx): "
                f"{error}"
            ) from error
        if graph.is_graph(self._model):
            return onnx.from_graph(graph.CompressedGraph.of(self._model), input_shape, outputs)
        if outputs is not None:
            raise TypeError(f"outputs is {outputs!r}; it must be None: a Keras model knows its own")
        return onnx.from_keras(self._model, input_shape, self._encoded())

    def _encoded(self) -> Collection[tuple[str, str]]:
        """The "output" and "input" of layers that are quantized: (name of the weight, which)."""
        return ()

    def _save_model(self, files: ModelFiles, path: str) -> None:
        if graph.is_graph(self._model):
            files.save_checkpoint(graph.CompressedGraph.of(self._model).compressed(), path)
            return
        with keras.compressed(self._model):
            files.save_keras(self._model, path)

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

    def _exported(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        weights: dict[str, Any]
        if graph.is_graph(self._model):
            whole = graph.CompressedGraph.of(self._model)
            arrays, weights = whole.variables(), whole.weights
        else:
            variables = keras.variables(self._model)
            arrays = {name: keras.to_numpy(variable) for name, variable in variables.items()}
            found = {id(w.dense): w for w in keras.compressed_weights(self._model)}
            weights = {n: found[id(v)] for n, v in variables.items() if id(v) in found}
        tensors, names = {}, {}
        for name, array in arrays.items():
            sent = name
            if name in weights and weights[name].name in self._bound().weights:
                sent = weights[name].name
                names[sent] = name
                array = self._exported_weight(weights[name], array)
            elif name in weights:
                array = weights[name].state.compressed(array)
            tensors[sent] = rounding.host(array, tf.as_dtype(array.dtype).name)
        return tensors, names

    def _exported_weight(self, weight: Any, dense: Any) -> Any:
        """What the server makes the compressed weight of."""
        raise NotImplementedError

    def callback(self) -> Any:
        """A callback for `model.fit` that calls `update_epoch` and `step`."""
        return _make_callback(self)

    def _using(self, sess: Optional[Any]) -> contextlib.AbstractContextManager[Any]:
        self._bound()
        if graph.is_graph(self._model):
            return graph.CompressedGraph.of(self._model).using(sess)
        if sess is not None:
            raise TypeError(f"a Keras model has no session, and this is a {type(sess).__name__}")
        return contextlib.nullcontext()

    def _keep_final(self) -> None:
        """Keeps what can be asked for after `unwrap`."""

    def _weights_changed(self) -> None:
        binding = self._bound()
        assert isinstance(binding, CountedBinding)
        binding.weights_changed()

    def _installed(self, state: Optional[Mapping[str, Any]], undo: contextlib.ExitStack) -> None:
        super()._installed(state, undo)
        if not graph.is_graph(self._model):  # in a graph the next call that has a session does it
            undo.callback(keras.forget_compiled, self._model)
            keras.forget_compiled(self._model)
            self._bound().refresh()

    def _framework(self) -> str:
        return "tensorflow" if graph.is_graph(self._model) else "keras"

    def _is_model(self, value: Any) -> bool:
        return graph.is_graph(value) or keras.is_model(value)

    def _find_weights(self) -> Sequence[Any]:
        return find_weights(self._model)

    def _parameters(self) -> Iterable[Parameter]:
        if graph.is_graph(self._model):
            return graph.parameters(self._model)
        return keras.parameters(self._model)

    def _is_installed(self, binding: Binding[Any]) -> bool:
        assert isinstance(binding, CountedBinding)
        weights = binding.weights.values()
        return all(getattr(w.state, binding.role) is not None for w in weights)


def find_weights(model: Any) -> Sequence[Any]:
    """The weights of a graph or a Keras model that can be compressed."""
    if graph.is_graph(model):
        return graph.find_weights(model)
    return keras.find_weights(model)


class Pruner(Compressor, compressor.PrunerPart):
    """Base of pruners.

    One of your own overrides `calc_mask`, and is computed here; or it names an algorithm that the
    server has: ``algorithm = "random"``. In a graph `calc_mask` gets a symbolic weight and may
    return a symbolic mask, which is kept and evaluated whenever another one would be asked for.
    """

    _final_masks: Optional[dict[str, Any]] = None

    @property
    def masks(self) -> dict[str, Any]:
        """Layer name -> bool array of the weight's shape, True = kept: those in force."""
        if self._final_masks is not None:
            return dict(self._final_masks)
        binding = self._bound()
        assert isinstance(binding, (graph.PrunerBinding, keras.PrunerBinding))
        return binding.masks()

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
            model_path: of a Keras model: for its weights with zeros in them (`NAME.weights.h5`), or
                for the whole model (`NAME.keras`); of a graph: the prefix of a checkpoint with all
                global variables of `sess`, as a `Saver` restores it.
            mask_path: for the masks, as a file of `numpy.savez`: layer name -> bool array of the
                weight's shape, True = kept.
            onnx_path: for the plain model as the package tf2onnx converts it, in inference, with
                the same weights, zeros included, under their variables' names and in their layout.
            input_shape: of the model's input, with the batch, for `onnx_path`; None: the shape that
                the model or the placeholder has, in which sizes may be open. Needed for a Keras
                model that does not say it: a subclassed one.
            sess: of a graph.
            outputs: of a graph, for `onnx_path`: the tensors that the ONNX model gives, or their
                names, one or a list. What they do not need is left out.
        """
        with self._using(sess), ModelFiles.written() as files:
            self._export_model(files, model_path, onnx_path, input_shape, outputs)
            if mask_path is not None:
                files.save_masks(self.masks, mask_path)

    def _keep_final(self) -> None:
        self._bound().refresh()
        self._final_masks = self.masks

    def _exported_weight(self, weight: Any, dense: Any) -> Any:
        return weight.state.quantized(dense)

    def _packed_masks(self) -> dict[str, Mask]:
        if self._final_masks is None:
            return super()._packed_masks()
        return {name: Mask.from_numpy(mask) for name, mask in self._final_masks.items()}

    def _make_binding(self, tracker: Tracker, weights: Sequence[Any]) -> Binding[Any]:
        kinds: dict[tuple[bool, bool], Callable[..., Binding[Any]]] = {
            (True, False): graph.PrunerBinding,
            (True, True): custom.GraphPrunerBinding,
            (False, False): keras.PrunerBinding,
            (False, True): custom.KerasPrunerBinding,
        }
        return kinds[graph.is_graph(self._model), self._is_custom](tracker, weights)


class Quantizer(compressor.QuantizerPart, Compressor):
    """Base of quantizers.

    One of your own overrides `quantize_weight`, and is computed here, in a graph as `Pruner` says;
    or it names an algorithm that the server has: ``algorithm = "mine"``.
    """

    @property
    def calibration(self) -> dict[str, dict[str, Any]]:
        """Layer name -> "weight_bits", "weight_scale", "weight_zero_point", "channel_axis".

        Scales and zero points are numbers, or arrays with one per channel; None for DoReFa. Where
        outputs or inputs are quantized: "output_bits", "output_scale", "output_zero_point",
        "output_range" (minimum, maximum), and so for "input". Layers that are not quantized yet
        are left out.
        """
        if self._final_calibration is not None:
            return dict(self._final_calibration)
        binding = self._bound()
        assert isinstance(binding, (graph.QuantizerBinding, keras.QuantizerBinding))
        found: dict[str, dict[str, Any]] = {
            name: {
                "weight_bits": answer.bits,
                "weight_scale": answer.scale,
                "weight_zero_point": answer.zero_point,
                "channel_axis": answer.channel_axis,
            }
            for name, answer in binding.answers.items()
            if not answer.unquantized
        }
        for (name, target), answer in binding.activation_answers.items():
            if not answer.unquantized:
                found.setdefault(name, {}).update(
                    {
                        f"{target}_bits": answer.bits,
                        f"{target}_scale": answer.scale,
                        f"{target}_zero_point": answer.zero_point,
                        f"{target}_range": answer.range,
                    }
                )
        return found

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
                it: codes in place of the weights, quantized outputs and inputs. Where that cannot
                be done, because `unwrap` has ended the session or there are more than 8 bits for
                outputs, a warning says so, and the file has the same weights as plain numbers.
            input_shape, sess, outputs: as of `Pruner.export_model`.
        """
        with self._using(sess), ModelFiles.written() as files:
            self._export_model(files, model_path, onnx_path, input_shape, outputs)
            if onnx_path is not None and not self._is_custom:
                self._put_codes(files.temporary(onnx_path))
            if calibration_path is not None:
                files.save_calibration(self.calibration, calibration_path)

    def _encoded(self) -> Collection[tuple[str, str]]:
        answers = self._quantization().activation_answers
        return [key for key, answer in answers.items() if not answer.unquantized]

    def _exported_weight(self, weight: Any, dense: Any) -> Any:
        # Of an algorithm of one's own the server has no way to the values.
        return weight.state.compressed(dense) if self._is_custom else dense

    def _kept(self, weight: Any) -> Any:
        state = weight.state
        return None if state.mask is None else state.value(state.mask)

    def _keep_final(self) -> None:
        self._bound().refresh()
        self._final_calibration = self.calibration

    def _make_binding(self, tracker: Tracker, weights: Sequence[Any]) -> Binding[Any]:
        kinds: dict[tuple[bool, bool], Callable[..., Binding[Any]]] = {
            (True, False): graph.QuantizerBinding,
            (True, True): custom.GraphQuantizerBinding,
            (False, False): keras.QuantizerBinding,
            (False, True): custom.KerasQuantizerBinding,
        }
        made = kinds[graph.is_graph(self._model), self._is_custom](tracker, weights, self.transfer)
        if self._quantizes_outputs:
            if not isinstance(made, custom.KerasQuantizerBinding):
                raise UnimplementedError(
                    f"{type(self).__name__} overrides quantize_layer_output, which does nothing in "
                    "a graph; Keras models quantize outputs"
                )
            made.outputs = self._quantize_output
        return made

    def _quantize_output(self, weight: keras.TrackedWeight, output: Any) -> Any:
        where = f"{type(self).__name__}.quantize_layer_output of layer {weight.name!r}"
        return custom.quantized_output(self._compute_output(weight, output), output, where)


class LevelPruner(Pruner):
    """Removes the share `sparsity` of each layer's weights, the smallest ones, once.

    ``config_list = [{"sparsity": 0.8, "op_types": ["default"]}]``
    """

    algorithm = "level"


class AGPPruner(Pruner):
    """Removes more and more weights over the epochs (Zhu and Gupta, "To prune, or not to prune:
    exploring the efficacy of pruning for model compression", 2017).

    ``config_list = [{"initial_sparsity": 0, "final_sparsity": 0.8, "start_epoch": 0,
    "end_epoch": 10, "frequency": 1, "op_types": ["default"]}]``; needs `update_epoch`.
    """

    algorithm = "agp"


class NaiveQuantizer(Quantizer):
    """Eight bits with a scale that only grows.

    ``config_list = [{"op_types": ["default"]}]``
    """

    algorithm = "naive"


class QATQuantizer(Quantizer):
    """Quantization-aware training (Jacob et al., "Quantization and training of neural networks for
    efficient integer-arithmetic-only inference", 2018).

    ``config_list = [{"quant_types": ["weight"], "quant_bits": 8, "quant_start_step": 0,
    "op_types": ["default"]}]``; needs `step`.
    """

    algorithm = "qat"


class DoReFaQuantizer(Quantizer):
    """Low bit widths (Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural networks
    with low bitwidth gradients", 2016).

    ``config_list = [{"quant_bits": 4, "op_types": ["default"]}]``; needs `step`.
    """

    algorithm = "dorefa"


def _make_callback(owner: Compressor) -> Any:
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
