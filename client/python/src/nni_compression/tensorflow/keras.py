"""Keras models bound to a session: finding weights, putting answers in force."""

from __future__ import annotations

import collections
import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ..adapters import binding
from ..adapters.tracker import Tracker
from ..values.dtypes import WEIGHT_DTYPES
from ..values.masks import Mask
from ..values.plan import Layer, Parameter
from ..values.quantization import QuantizedTensor
from . import counted, kernels, rounding
from .activations import NOTHING, Activation

_ATTRIBUTES = ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")
_CLASSES = (
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
    "Dense",
    "EinsumDense",
    "Embedding",
)


class TrackedWeight:
    """A kernel of a layer of the model.

    Args:
        targets: which of the layer's "input" and "output" belong to it; of the two kernels of a
            SeparableConv the first has the input, the second the output.
    """

    def __init__(self, name: str, layer: Any, attribute: str, targets: Sequence[str]) -> None:
        self.name = name
        self.targets = targets
        self.owner = layer
        self.attribute = attribute
        self.generation = 0

    @property
    def dense(self) -> Any:
        """The variable itself, never compressed."""
        return kernels.dense_weight(self.owner, self.attribute)

    @property
    def op(self) -> Any:
        """The layer that has it."""
        return self.owner

    @property
    def tensor(self) -> Any:
        """The dense weight, without gradient."""
        return tf.convert_to_tensor(self.dense)

    @property
    def dtype(self) -> str:
        """The variable's, as the wire names it."""
        return str(tf.as_dtype(self.dense.dtype).name)

    @property
    def state(self) -> kernels.WeightState:
        """What the forward pass reads the weight through."""
        state = kernels.state_of(self.owner, self.attribute)
        assert state is not None
        return state

    def numpy(self) -> Any:
        """The dense weight; bfloat16 as numpy has it from TensorFlow."""
        return to_numpy(self.dense)

    @property
    def channel_axis(self) -> int:
        """The dimension of the outputs: the last, or, where the layer is a transposed one, that
        before it.
        """
        return len(self.dense.shape) - (2 if isinstance(self.owner, _transposed()) else 1)

    def layer(self) -> Layer:
        """What BindModel is told."""
        shape = tuple(int(size) for size in self.dense.shape)
        return Layer(
            name=self.name,
            op_type=kernels.plain_class(self.owner).__name__,
            shape=shape,
            dtype=self.dtype,
            channel_axis=self.channel_axis,
        )

    def token(self) -> Any:
        """Nothing of a Keras variable tells cheaply that it has changed: the compressor counts."""
        return self.generation


def to_numpy(variable: Any) -> Any:
    """What a variable holds."""
    return np.asarray(tf.convert_to_tensor(variable))


def is_model(value: Any) -> bool:
    """Whether this is a Keras model, or a layer, of the Keras that TensorFlow has."""
    return isinstance(value, tf.keras.layers.Layer)


def find_weights(model: Any) -> list[TrackedWeight]:
    """The kernels that can be compressed, in the order of the layers.

    Layers have the names that Keras gives them; one that another layer of the model has too gets
    those of the models around it in front. Of the two kernels of a SeparableConv each has its
    attribute's name behind.

    Raises ValueError for a layer that is not built: its weight does not exist yet.
    """
    found: dict[int, TrackedWeight] = {}
    named = list(_walk(model, ""))
    short = [layer.name for _, layer in named]
    for path, layer in named:
        name = layer.name if short.count(layer.name) == 1 else path
        if not layer.built:
            raise ValueError(
                f"layer {name!r} is not built: it has no weight yet; call the model on data, or "
                "build() it, before compressing it"
            )
        attributes = [a for a in _ATTRIBUTES if _is_weight(kernels.dense_weight(layer, a))]
        for attribute in attributes:
            weight = kernels.dense_weight(layer, attribute)
            full = f"{name}/{attribute}" if len(attributes) > 1 else name
            targets = [
                target
                for target, owner in (("input", attributes[0]), ("output", attributes[-1]))
                if owner == attribute
            ]
            found.setdefault(id(weight), TrackedWeight(full, layer, attribute, targets))
    return list(found.values())


def _transposed() -> tuple[type, ...]:
    return _layer_classes([name for name in _CLASSES if name.endswith("Transpose")])


def _layer_classes(names: Sequence[str]) -> tuple[type, ...]:
    """Those that this Keras has."""
    layers = tf.keras.layers
    return tuple(getattr(layers, name) for name in names if hasattr(layers, name))


def _walk(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The compressible layers in a model, each once, with their paths."""
    seen: set[int] = set()
    waiting = [(path, layer)]
    classes = _layer_classes(_CLASSES)
    while waiting:
        path, each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, classes):
            yield path + each.name, each
        inside = f"{path}{each.name}/" if each is not layer else ""
        below = each._flatten_layers(recursive=False, include_self=False)
        waiting[:0] = [(inside, child) for child in below]


def _is_weight(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return (
        hasattr(value, "assign")
        and tf.as_dtype(dtype).name in WEIGHT_DTYPES
        and len(value.shape) > 0
        and 0 not in value.shape
    )


def parameters(model: Any) -> Iterator[Parameter]:
    """All weights of a model, and which of them are kernels that can be compressed."""
    owners: dict[int, Any] = {}
    for layer in (model, *model._flatten_layers(include_self=False)):  # the innermost comes last
        owners.update((id(variable), layer) for variable in layer.weights)
    layers = {id(weight.dense): weight.name for weight in find_weights(model)}
    for name, variable in variables(model).items():
        yield Parameter(
            name=name,
            op_type=kernels.plain_class(owners[id(variable)]).__name__,
            elements=int(np.prod(variable.shape, dtype=np.int64)),
            dimensions=len(variable.shape),
            layer=layers.get(id(variable)),
        )


def variables(model: Any) -> dict[str, Any]:
    """Name -> variable of each of the model's weights; a name that comes again gets a number."""
    found: dict[str, Any] = {}
    seen: collections.Counter[str] = collections.Counter()
    for variable in model.weights:
        name = getattr(variable, "path", None) or variable.name.partition(":")[0]
        found[f"{name}_{seen[name]}" if seen[name] else name] = variable
        seen[name] += 1
    return found


def compressed_weights(model: Any) -> list[TrackedWeight]:
    """Those of the model's weights that some pruner or quantizer has."""
    found = find_weights(model)
    return [w for w in found if kernels.state_of(w.owner, w.attribute) is not None]


@contextlib.contextmanager
def compressed(model: Any) -> Iterator[None]:
    """Inside, the variables of the model hold what its forward pass uses of them."""
    dense = [(w.dense, w.numpy(), w.state) for w in compressed_weights(model)]
    try:
        for variable, array, state in dense:
            variable.assign(state.compressed(array))
        yield
    finally:
        for variable, array, _ in dense:
            variable.assign(array)


class KerasBinding(counted.CountedBinding[TrackedWeight]):
    """What both kinds of binding do with the layers of a model."""

    def __init__(self, tracker: Tracker, weights: Sequence[TrackedWeight], *args: Any) -> None:
        super().__init__(tracker, weights, *args)
        self.model: Any = None

    def install(self, undo: contextlib.ExitStack) -> None:
        for weight in self.weights.values():
            state = kernels.state_of(weight.owner, weight.attribute)
            if state is not None and getattr(state, self.role) is not None:
                raise RuntimeError(
                    f"layer {weight.name!r} already has a {self.role}; unwrap() that one first"
                )
        for weight in self.weights.values():
            state = kernels.state_of(weight.owner, weight.attribute)
            if state is None:
                dtype = tf.as_dtype(weight.dense.dtype).as_numpy_dtype
                state = kernels.WeightState(tuple(weight.dense.shape), dtype)
                kernels.install(weight.owner, weight.attribute, state)
                undo.callback(kernels.uninstall, weight.owner, weight.attribute)
            undo.callback(state.snapshot())
            self._begin(weight, state)
            setattr(state, self.role, self._source(weight))

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        # Eager, and out of the sight of a gradient tape.
        scope: contextlib.AbstractContextManager[Any] = tf.init_scope()
        return scope

    def _source(self, weight: TrackedWeight) -> Any:
        return lambda: self.ensure_fresh(weight)

    def _begin(self, weight: TrackedWeight, state: kernels.WeightState) -> None:
        """Makes the variables that this binding's answers go to, and puts in force what it goes on
        with.
        """
        raise NotImplementedError

    def _write(self, state: kernels.WeightState, dense: Any) -> Any:
        """The dense weight with the answer in it; drops the answer's variables."""
        raise NotImplementedError

    def unwrap(self) -> None:
        for weight in self.weights.values():
            state = weight.state
            weight.dense.assign(self._write(state, weight.numpy()))
            setattr(state, self.role, None)
            if state.mask is None and state.values is None:
                kernels.uninstall(weight.owner, weight.attribute)

    def _hosts(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        return {weight.name: rounding.host(weight.numpy(), weight.dtype) for weight in weights}


class PrunerBinding(KerasBinding, binding.PrunerBinding[TrackedWeight]):
    """Masks of a model's layers."""

    role = "pruner"

    def _begin(self, weight: TrackedWeight, state: kernels.WeightState) -> None:
        if state.mask is None:
            state.add_mask()
        given = self.given.pop(weight.name, None)
        shape = tuple(weight.dense.shape)
        weight.state.mask.assign(np.ones(shape, np.bool_) if given is None else given.to_numpy())

    def _set_mask(self, weight: TrackedWeight, mask: Mask) -> None:
        weight.state.mask.assign(mask.to_numpy())

    def packed_masks(self) -> dict[str, Mask]:
        answered = self.tracker.status
        return {
            name: Mask.from_numpy(weight.state.mask.numpy())
            for name, weight in self.weights.items()
            if answered[name].answered
        }

    def masks(self) -> dict[str, Any]:
        """Layer name -> bool array of the weight's shape, True = kept."""
        return {name: weight.state.mask.numpy() for name, weight in self.weights.items()}

    def _write(self, state: kernels.WeightState, dense: Any) -> Any:
        mask = state.mask.numpy()
        if state.values is None:  # otherwise a quantizer may give zeros another value
            state.mask = None
        return np.where(mask, dense, np.zeros((), dense.dtype))


class QuantizerBinding(KerasBinding, binding.QuantizerBinding[TrackedWeight]):
    """Quantized weights of a model's layers."""

    role = "quantizer"

    def __init__(self, tracker: Tracker, weights: Sequence[TrackedWeight], transfer: str) -> None:
        super().__init__(tracker, weights, transfer)
        self.answers: dict[str, QuantizedTensor] = {}
        self._may_warn = bool(self.activations)

    def _begin(self, weight: TrackedWeight, state: kernels.WeightState) -> None:
        if state.values is None:
            state.add_values()
        state.active.assign(False)

    def install(self, undo: contextlib.ExitStack) -> None:
        super().install(undo)
        for name, target in self.activations:
            weight = self.weights[name]
            if target not in weight.targets:
                continue
            functions = kernels.activations_of(weight.owner)
            undo.callback(put_back, functions, target, functions.get(target))
            # Compiled functions know the one that is there already.
            activation = self.activation(name, target) or Activation()
            undo.callback(activation.snapshot())
            activation.set_answer(self.activation_answers.get((name, target)))
            activation.forget()
            functions[target] = activation

    def activation(self, name: str, target: str) -> Optional[Activation]:
        """The outputs or inputs that belong to a weight; None when they are not quantized."""
        weight = self.weights[name]
        if target not in weight.targets:
            return None
        found = kernels.activations_of(weight.owner).get(target)
        return found if isinstance(found, Activation) else None

    def _present(self) -> dict[tuple[str, str], Activation]:
        found = {key: self.activation(*key) for key in self.activations}
        return {key: activation for key, activation in found.items() if activation is not None}

    def _seen_activations(self) -> Mapping[tuple[str, str], Sequence[float]]:
        present = self._present()
        if not present:
            return {}
        numbers = tf.stack([activation.seen for activation in present.values()]).numpy().tolist()
        seen = {
            key: (-low, high)
            for key, (low, high) in zip(present, numbers)
            if (low, high) != NOTHING
        }
        if self._may_warn and not seen and not self.activation_answers:
            warnings.warn(
                "no layer has run in training since the last step, so that no range of outputs "
                "and inputs is known: call the model with training=True",
                UserWarning,
                stacklevel=6,
            )
        self._may_warn = False
        return seen

    def seen_here(self) -> Mapping[tuple[str, str], Sequence[float]]:
        seen = {
            key: activation.seen.numpy().tolist() for key, activation in self._present().items()
        }
        return {k: (-low, high) for k, (low, high) in seen.items() if (low, high) != NOTHING}

    def see(self, ranges: Mapping[tuple[str, str], Sequence[float]]) -> None:
        present = self._present()
        for key, range_ in ranges.items():
            if key in present:
                present[key].note(tf.constant(range_, tf.float32), True)

    def _forget_activations(self) -> None:
        for activation in self._present().values():
            activation.forget()

    def _set_activation(self, layer: str, target: str, answer: QuantizedTensor) -> None:
        activation = self.activation(layer, target)
        if activation is not None:
            activation.set_answer(answer)

    def unwrap(self) -> None:
        super().unwrap()
        for weight in self.weights.values():
            kernels.activations_of(weight.owner).clear()

    def _ranges(self, weights: Sequence[TrackedWeight]) -> Mapping[str, Any]:
        plan = self.tracker.plan.layers
        axes = {w.name: w.channel_axis if plan[w.name].range_per_channel else None for w in weights}
        return {w.name: rounding.weight_range(w.numpy(), axes[w.name]) for w in weights}

    def _set_answer(self, weight: TrackedWeight, answer: QuantizedTensor) -> None:
        self.answers[weight.name] = answer
        if answer.unquantized:
            weight.state.set_values(None, None)
            return
        weight.state.set_values(*rounding.values_and_inside(weight.numpy(), answer))

    def _lasts(self, answer: QuantizedTensor) -> bool:
        return answer.unquantized  # the values are computed when an answer comes

    def _write(self, state: kernels.WeightState, dense: Any) -> Any:
        active = bool(state.active.numpy())
        written = state.values.numpy() if active else dense
        state.values = state.active = state.inside = None
        if state.pruner is None and state.mask is not None:
            written = np.where(state.mask.numpy(), written, np.zeros((), dense.dtype))
            state.mask = None
        return written


def put_back(functions: dict[str, Any], target: str, function: Any) -> None:
    """Makes what quantizes the "output" or "input" of a layer what it was; None: nothing."""
    if function is None:
        functions.pop(target, None)
    else:
        functions[target] = function


def forget_compiled(model: Optional[Any]) -> None:
    """Makes `fit`, `evaluate` and `predict` trace anew, with the layers as they are now."""
    for name in ("train_function", "train_tf_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
