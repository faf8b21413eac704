"""The weights of a Keras model and their names."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ..values.dtypes import WEIGHT_DTYPES
from ..values.plan import Layer, Parameter
from . import kernels

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


class KerasWeight:
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
    def state(self) -> kernels.KernelVariables:
        """What the forward pass reads the weight through."""
        state = kernels.variables_of(self.owner, self.attribute)
        assert state is not None
        return state

    #: Variables keep their dtype.
    fits = True

    def is_taken(self, role: str) -> bool:
        """Whether there is a "pruner", or a "quantizer", already."""
        state = kernels.variables_of(self.owner, self.attribute)
        return state is not None and getattr(state, role) is not None

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
        """The layer as sent to BindModel."""
        shape = tuple(int(size) for size in self.dense.shape)
        return Layer(
            name=self.name,
            op_type=kernels.plain_layer_class(self.owner).__name__,
            shape=shape,
            dtype=self.dtype,
            channel_axis=self.channel_axis,
        )

    def token(self) -> Any:
        """A Keras variable has no cheap indicator of changes: the compressor counts steps."""
        return self.generation


def to_numpy(variable: Any) -> Any:
    """The value of a variable."""
    return np.asarray(tf.convert_to_tensor(variable))


def is_model(value: Any) -> bool:
    """Whether this is a Keras model, or a layer, of the Keras that TensorFlow has."""
    return isinstance(value, tf.keras.layers.Layer)


def find_kernels(model: Any) -> list[KerasWeight]:
    """The kernels that can be compressed, in the order of the layers.

    Layers have their Keras names; a duplicate name is prefixed with the names of the enclosing
    models. The names of a SeparableConv's two kernels end with the attribute's name.

    Raises ValueError for a layer that is not built: its weight does not exist yet.
    """
    found: dict[int, KerasWeight] = {}
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
            found.setdefault(id(weight), KerasWeight(full, layer, attribute, targets))
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


def model_parameters(model: Any) -> Iterator[Parameter]:
    """All weights of a model, and which of them are kernels that can be compressed."""
    owners: dict[int, Any] = {}
    for layer in (model, *model._flatten_layers(include_self=False)):  # the innermost is last
        owners.update((id(variable), layer) for variable in layer.weights)
    layers = {id(weight.dense): weight.name for weight in find_kernels(model)}
    for name, variable in variables(model).items():
        yield Parameter(
            name=name,
            op_type=kernels.plain_layer_class(owners[id(variable)]).__name__,
            elements=int(np.prod(variable.shape, dtype=np.int64)),
            dimensions=len(variable.shape),
            layer=layers.get(id(variable)),
        )


def variables(model: Any) -> dict[str, Any]:
    """Name -> variable of each of the model's weights; a duplicate name gets a number."""
    found: dict[str, Any] = {}
    seen: collections.Counter[str] = collections.Counter()
    for variable in model.weights:
        name = getattr(variable, "path", None) or variable.name.partition(":")[0]
        found[f"{name}_{seen[name]}" if seen[name] else name] = variable
        seen[name] += 1
    return found


def compressed_weights(model: Any) -> list[KerasWeight]:
    """The model's weights that a pruner or quantizer compresses."""
    found = find_kernels(model)
    return [w for w in found if kernels.variables_of(w.owner, w.attribute) is not None]


@contextlib.contextmanager
def compressed(model: Any) -> Iterator[None]:
    """Inside, the variables of the model hold the effective weights."""
    dense = [(w.dense, w.numpy(), w.state) for w in compressed_weights(model)]
    try:
        for variable, array, state in dense:
            variable.assign(state.compressed(array))
        yield
    finally:
        for variable, array, _ in dense:
            variable.assign(array)


def forget_compiled(model: Optional[Any]) -> None:
    """Makes `fit`, `evaluate` and `predict` trace the model again."""
    for name in ("test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    if model is not None and getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)  # `fit`, in which this may be, does not make it again


def layers(model: Any) -> list[Layer]:
    """The model's layers as a session is told of them: for search spaces, or to see their names."""
    return [weight.layer() for weight in find_kernels(model)]
