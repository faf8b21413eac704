"""Graphs of TensorFlow 1 bound to a session: finding weights, inserting masks, putting answers in.

The weight that an operation reads is replaced by what is left of it: the edge from the variable to
the operation is led through nodes that quantize and mask. The variable itself stays as it is. Masks
and quantized values are variables of their own, in no collection that a `Saver` or
`global_variables_initializer` looks at, so checkpoints are those of the plain graph.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from .. import binding
from ..adapter import Tracker
from ..masks import Mask
from ..plan import Layer
from ..quantization import QuantizedTensor
from . import kernels, rounding

_v1 = tf.compat.v1

_STATES = "nni_compression_states"  # a collection of the graph
_VARIABLES = "nni_compression_variables"
_LAYERS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul")
# Operations of gradients that read the weight as well, at the same place.
_READERS = (
    *_LAYERS,
    "Conv2DBackpropInput",
    "Conv3DBackpropInputV2",
    "DepthwiseConv2dNativeBackpropInput",
)
_WEIGHT_INPUT = 1
_BETWEEN = ("Identity", "Cast", "ReadVariableOp")
_VARIABLE_TYPES = ("VarHandleOp", "VariableV2", "Variable")
_DTYPES = ("float32", "float16", "bfloat16", "float64")


class GraphState(kernels.WeightState):
    """What stands between a variable and the operations that read it.

    Attributes:
        reads: the tensors that operations read the variable by, and these operations.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, variable: Any) -> None:
        super().__init__(shape, dtype)
        self.variable = variable
        self.reads: dict[str, tuple[Any, list[Any]]] = {}
        self._outputs: dict[str, Any] = {}

    def output(self, operation: Any) -> Any:
        """What the operation reads now."""
        return operation.inputs[_WEIGHT_INPUT]

    def insert(self) -> None:
        """Leads all reads through this state as it is now; straight where it does nothing."""
        active = self.mask is not None or self.values is not None
        with self.variable.graph.as_default(), tf.control_dependencies(None):
            for source, operations in self.reads.values():
                led = self._checked(source) if active else source
                for operation in operations:
                    operation._update_input(_WEIGHT_INPUT, led)

    def _checked(self, source: Any) -> Any:
        """The effective weight; an error in a session that has no answers yet."""
        first = self.mask if self.mask is not None else self.active
        known = _v1.Assert(
            _v1.is_variable_initialized(first),
            [
                "this session has no masks or quantized weights of "
                f"{self.variable.name} yet: call update_epoch(epoch, sess), step(sess) or "
                "refresh(sess) first"
            ],
        )
        with tf.control_dependencies([known]):
            return self.effective(tf.identity(source))

    def _variable(self, initial: Any) -> Any:
        with self.variable.graph.as_default(), tf.control_dependencies(None):
            return _v1.Variable(
                initial,
                trainable=False,
                use_resource=True,
                collections=[_VARIABLES],
                name=f"nni_compression/{self.variable.name}",
            )


class GraphWeight:
    """A variable that operations of the graph read as their weight."""

    def __init__(self, operation: Any, variable: Any, state: GraphState) -> None:
        self.name = operation.name
        self.operation = operation
        self.variable = variable  # the operation that makes it
        self.state = state
        self.aliases: list[str] = []
        self.generation = 0
        self._assignments: dict[str, tuple[Any, Any]] = {}

    @property
    def dtype(self) -> str:
        """The variable's, as the wire names it."""
        return str(tf.as_dtype(self.variable.get_attr("dtype")).base_dtype.name)

    def read(self) -> Any:
        """A tensor of the dense weight."""
        return self._once("read", self._make_read)

    def _make_read(self) -> Any:
        if self.variable.type == "VarHandleOp":
            dtype = tf.as_dtype(self.variable.get_attr("dtype"))
            return tf.raw_ops.ReadVariableOp(resource=self.variable.outputs[0], dtype=dtype)
        return tf.identity(self.variable.outputs[0])

    def assignment(self) -> tuple[Any, Any]:
        """A placeholder, and an operation that writes it into the variable."""
        made: tuple[Any, Any] = self._once("dense", self._make_assignment)
        return made

    def _make_assignment(self) -> tuple[Any, Any]:
        value = _v1.placeholder(tf.as_dtype(self.dtype))
        target = self.variable.outputs[0]
        if self.variable.type == "VarHandleOp":
            return value, tf.raw_ops.AssignVariableOp(resource=target, value=value)
        return value, _v1.assign(target, value, validate_shape=False).op

    def setter(self, variable: Any) -> tuple[Any, Any]:
        """A placeholder, and an operation that writes it into one of the state's variables."""

        def make() -> tuple[Any, Any]:
            value = _v1.placeholder(variable.dtype.base_dtype, variable.shape)
            return value, variable.assign(value).op

        made: tuple[Any, Any] = self._once(variable.name, make)
        return made

    def _once(self, key: str, make: Any) -> Any:
        if key not in self._assignments:
            with self.variable.graph.as_default(), tf.control_dependencies(None):
                self._assignments[key] = make()
        return self._assignments[key]

    def layer(self) -> Layer:
        """What BindModel is told: the channels are the last dimension, as TensorFlow has it."""
        shape = _shape(self.variable)
        return Layer(
            name=self.name,
            op_type=self.operation.type,
            shape=shape,
            dtype=self.dtype,
            channel_axis=len(shape) - 1,
            aliases=self.aliases,
        )

    def token(self) -> Any:
        """Nothing of a variable in a session tells that it has changed: the compressor counts."""
        return self.generation


def is_graph(value: Any) -> bool:
    """Whether this is a graph of TensorFlow."""
    return isinstance(value, tf.Graph)


def find_weights(graph: Any) -> list[GraphWeight]:
    """The variables that layers read as their weight, in the order of the operations.

    A layer has its operation's name; further operations on the same variable are its aliases. What
    is inside of control flow (while loops, functions) is left alone.
    """
    states = {state.variable.name: state for state in graph.get_collection(_STATES)}
    led = {
        state.output(operation).name: source
        for state in states.values()
        for source, operations in state.reads.values()
        for operation in operations
    }
    found: dict[str, GraphWeight] = {}
    layers: list[str] = []
    for operation in graph.get_operations():
        if operation.type not in _READERS or operation._control_flow_context is not None:
            continue
        tensor = operation.inputs[_WEIGHT_INPUT]
        source = led.get(tensor.name, tensor)
        variable = _variable_of(source)
        if variable is None:
            continue
        weight = found.get(variable.name)
        if weight is None:
            state = states.get(variable.name)
            if state is None:
                dtype = tf.as_dtype(variable.get_attr("dtype")).base_dtype.as_numpy_dtype
                state = GraphState(_shape(variable), dtype, variable)
            weight = found[variable.name] = GraphWeight(operation, variable, state)
            layers.append(operation.name)
        elif not any(f"{name}_grad/" in operation.name for name in layers):
            weight.aliases.append(operation.name)
            layers.append(operation.name)
        _, operations = weight.state.reads.setdefault(source.name, (source, []))
        if operation not in operations:
            operations.append(operation)
    return list(found.values())


def _variable_of(tensor: Any) -> Any:
    """The operation of the variable that a tensor reads, or None."""
    operation = tensor.op
    while operation.type in _BETWEEN:
        operation = operation.inputs[0].op
    if operation.type not in _VARIABLE_TYPES:
        return None
    dtype = tf.as_dtype(operation.get_attr("dtype")).base_dtype
    shape = tf.TensorShape(operation.get_attr("shape"))
    fits = dtype.name in _DTYPES and shape.is_fully_defined() and shape.num_elements() > 0
    return operation if fits else None


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(tf.TensorShape(variable.get_attr("shape")).as_list())


class GraphBinding(binding.Binding[GraphWeight]):
    """What both kinds of binding do with a graph. Calls need a session: see `using`."""

    role = ""  # which slot of WeightState is this binding's: "pruner" or "quantizer"

    def __init__(self, tracker: Tracker, weights: Sequence[GraphWeight], *args: Any) -> None:
        super().__init__(tracker, weights, *args)
        self._session: Any = None
        self._prepared: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self) -> None:
        for weight in self.weights.values():
            if getattr(weight.state, self.role) is not None:
                raise RuntimeError(
                    f"layer {weight.name!r} already has a {self.role}; unwrap() that one first"
                )
        for weight in self.weights.values():
            self._prepare(weight.state)
            setattr(weight.state, self.role, self.refresh)
            weight.state.insert()
            states = weight.variable.graph.get_collection_ref(_STATES)
            if weight.state not in states:
                states.append(weight.state)

    @contextlib.contextmanager
    def using(self, session: Optional[Any]) -> Iterator[None]:
        """Reads and writes variables in this session of TensorFlow, else in the default one.

        Raises ValueError without one, and RuntimeError for a session that does not see the masks.
        """
        session = session or _v1.get_default_session()
        if session is None:
            raise ValueError("there is no session: give one, or make it the default")
        self._session = session
        try:
            if session not in self._prepared:
                _check_rewired(session, list(self.weights.values()))
                self._put_all()
                self._prepared.add(session)
            yield
        finally:
            self._session = None

    def weights_changed(self) -> None:
        """Treats all weights as changed."""
        for weight in self.weights.values():
            weight.generation += 1

    def leave(self) -> None:
        for weight in self.weights.values():
            setattr(weight.state, self.role, None)

    def unwrap(self) -> None:
        dense = self._session.run({w.name: w.read() for w in self.weights.values()})
        feeds, operations = {}, []
        for weight in self.weights.values():
            value, operation = weight.assignment()
            feeds[value] = self._written(weight, dense[weight.name])
            operations.append(operation)
        self._session.run(operations, feeds)
        for weight in self.weights.values():
            self._drop(weight.state)
            setattr(weight.state, self.role, None)
            weight.state.insert()

    def _hosts(self, weights: Sequence[GraphWeight]) -> Mapping[str, Any]:
        arrays = self._dense(weights)
        return {w.name: rounding.host(arrays[w.name], w.dtype) for w in weights}

    def _dense(self, weights: Sequence[GraphWeight]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._session.run({w.name: w.read() for w in weights})
        return found

    def _put(self, values: Sequence[tuple[GraphWeight, Any, Any]]) -> None:
        """Writes values into variables of the states: (weight, variable, value)."""
        if self._session is None or not values:
            return  # the next session gets all of them
        setters = [(weight.setter(variable), value) for weight, variable, value in values]
        self._session.run(
            [operation for (_, operation), _ in setters],
            {placeholder: value for (placeholder, _), value in setters},
        )

    def _put_all(self) -> None:
        """Writes all that is in force into a session that has nothing yet."""
        raise NotImplementedError

    def _prepare(self, state: GraphState) -> None:
        """Makes the variables that this binding's answers go to."""
        raise NotImplementedError

    def _written(self, weight: GraphWeight, dense: Any) -> Any:
        """The dense weight with the answer in it."""
        raise NotImplementedError

    def _drop(self, state: GraphState) -> None:
        """Forgets what `_prepare` has made."""
        raise NotImplementedError


class PrunerBinding(GraphBinding, binding.PrunerBinding[GraphWeight]):
    """Masks of a graph's layers."""

    role = "pruner"

    def __init__(self, tracker: Tracker, weights: Sequence[GraphWeight]) -> None:
        super().__init__(tracker, weights)
        self._masks: dict[str, Any] = {}

    def _prepare(self, state: GraphState) -> None:
        if state.mask is None:
            state.add_mask()

    def set_masks(self, masks: Mapping[str, Mask]) -> None:
        super().set_masks(masks)
        changed = [self.weights[name] for name in masks if name in self.weights]
        self._put([(w, w.state.mask, self._masks[w.name]) for w in changed])

    def _set_mask(self, weight: GraphWeight, mask: Mask) -> None:
        self._masks[weight.name] = mask.to_numpy()

    def _put_all(self) -> None:
        masks = self.masks()
        self._put([(w, w.state.mask, masks[w.name]) for w in self.weights.values()])

    def packed_masks(self) -> dict[str, Mask]:
        return {name: Mask.from_numpy(mask) for name, mask in self._masks.items()}

    def masks(self) -> dict[str, Any]:
        """Layer name -> bool array of the weight's shape, True = kept."""
        everything = {
            name: np.ones(_shape(weight.variable), np.bool_)
            for name, weight in self.weights.items()
        }
        return {**everything, **self._masks}

    def _written(self, weight: GraphWeight, dense: Any) -> Any:
        return np.where(self.masks()[weight.name], dense, np.zeros((), dense.dtype))

    def _drop(self, state: GraphState) -> None:
        if state.values is None:  # otherwise a quantizer may give zeros another value
            state.mask = None


class QuantizerBinding(GraphBinding, binding.QuantizerBinding[GraphWeight]):
    """Quantized weights of a graph's layers."""

    role = "quantizer"

    def __init__(self, tracker: Tracker, weights: Sequence[GraphWeight], transfer: str) -> None:
        super().__init__(tracker, weights, transfer)
        self.answers: dict[str, QuantizedTensor] = {}
        self._values: dict[str, tuple[Any, Any]] = {}

    def _prepare(self, state: GraphState) -> None:
        if state.values is None:
            state.add_values()

    def _ranges(self, weights: Sequence[GraphWeight]) -> Mapping[str, Any]:
        plan = self.tracker.plan.layers
        dense = self._dense(weights)
        return {
            w.name: rounding.weight_range(dense[w.name], plan[w.name].range_per_channel)
            for w in weights
        }

    def _take(self, answers: Mapping[str, QuantizedTensor], tokens: Mapping[str, Any]) -> None:
        self._present = self._dense([self.weights[name] for name in answers]) if answers else {}
        super()._take(answers, tokens)
        self._put(self._puts([self.weights[name] for name in answers]))

    def _set_answer(self, weight: GraphWeight, answer: QuantizedTensor) -> None:
        self.answers[weight.name] = answer
        self._values.pop(weight.name, None)
        if not answer.unquantized:
            dense = self._present[weight.name]
            self._values[weight.name] = rounding.values_and_inside(dense, answer)

    def _lasts(self, answer: QuantizedTensor) -> bool:
        return answer.unquantized  # the values are computed when an answer comes

    def _put_all(self) -> None:
        self._put(self._puts(list(self.weights.values())))

    def _puts(self, weights: Sequence[GraphWeight]) -> list[tuple[GraphWeight, Any, Any]]:
        puts: list[tuple[GraphWeight, Any, Any]] = []
        for weight in weights:
            state = weight.state
            values, inside = self._values.get(weight.name, (None, None))
            if values is None:
                values = np.zeros(state.values.shape, state.values.dtype.as_numpy_dtype)
                inside = np.ones(values.shape, np.bool_)
            active = np.array(weight.name in self._values)
            puts += [(weight, state.values, values), (weight, state.inside, inside)]
            puts.append((weight, state.active, active))
        return puts

    def _written(self, weight: GraphWeight, dense: Any) -> Any:
        return self._values[weight.name][0] if weight.name in self._values else dense

    def _drop(self, state: GraphState) -> None:
        state.values = state.active = state.inside = None
        if state.pruner is None:
            state.mask = None


def _check_rewired(session: Any, weights: Sequence[GraphWeight]) -> None:
    """Raises RuntimeError when the session runs the graph as it was before it was compressed.

    A session that has run an operation goes on with the inputs that this had then, and says
    nothing. So each layer is run once with its weight fed as zeros and once as ones, where it would
    read the compressed weight.
    """
    probes = [(w, data) for w in weights for data in [_probe_data(w)] if data is not None]
    outputs = []
    for value in (0, 1):
        feeds = {}
        for weight, data in probes:
            operation = weight.operation
            led = operation.inputs[_WEIGHT_INPUT]
            feeds[operation.inputs[0]] = data
            feeds[led] = np.full(_shape(weight.variable), value, led.dtype.as_numpy_dtype)
        try:
            outputs.append(session.run([w.operation.outputs[0] for w, _ in probes], feeds))
        except tf.errors.FailedPreconditionError:  # it wanted the variable, not what was fed
            outputs.append([np.full(1, 1 - value)] * len(probes))
    for (weight, _), zeros, ones in zip(probes, *outputs):
        if np.any(zeros != 0) or not np.any(ones != 0):
            raise RuntimeError(
                f"this session ran layer {weight.name!r} before the graph was compressed, and goes "
                "on without masks: compress the graph first, or make a new session"
            )


def _probe_data(weight: GraphWeight) -> Optional[Any]:
    """Ones that the layer takes as its data; None where it cannot run on any processor."""
    operation = weight.operation
    kernel = _shape(weight.variable)
    dtype = operation.inputs[0].dtype.as_numpy_dtype
    if operation.type == "MatMul":
        inner = kernel[1] if operation.get_attr("transpose_b") else kernel[0]
        return np.ones((inner, 1) if operation.get_attr("transpose_a") else (1, inner), dtype)
    if operation.get_attr("data_format").decode().startswith("NC"):
        return None  # runs on GPUs only
    dilations = operation.get_attr("dilations")[1:-1]
    sizes = [(size - 1) * dilation + 1 for size, dilation in zip(kernel[:-2], dilations)]
    return np.ones((1, *sizes, kernel[-2]), dtype)
