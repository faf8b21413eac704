"""Graphs of TensorFlow 1 bound to a session: finding weights, inserting masks, putting answers in.

The weight that an operation reads is replaced by the effective one: the edge from the variable to
the operation is redirected through nodes that quantize and mask. The variable itself is unchanged.
Masks and quantized values are separate variables, in no collection that a `Saver` or
`global_variables_initializer` uses, so checkpoints are those of the plain graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .._tensorflow.variables import WeightVariables
from ..values.dtypes import WEIGHT_DTYPES
from ..values.plan import Layer, Parameter

_v1 = tf.compat.v1

_COMPRESSED = "_nni_compression"  # attribute of a graph
_LAYERS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul")
# Operations of gradients that read the weight as well, at the same place.
_READERS = (
    *_LAYERS,
    "Conv2DBackpropInput",
    "Conv3DBackpropInputV2",
    "DepthwiseConv2dNativeBackpropInput",
)
WEIGHT_INPUT = 1
_BETWEEN = ("Identity", "Cast", "ReadVariableOp")
_VARIABLE_TYPES = ("VarHandleOp", "VariableV2", "Variable")


class CompressedGraph:
    """The weights of one graph, and the session of TensorFlow that calls read and write them in.

    Pruners and quantizers of the graph share it. One thread at a time may call it.

    Attributes:
        weights: name of the variable's operation -> weight.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.weights: dict[str, GraphWeight] = {}
        self._session: Any = None
        # The session with all present values, and the sessions known to run the present graph.
        self._up_to_date: weakref.WeakSet[Any] = weakref.WeakSet()
        self._checked: weakref.WeakSet[Any] = weakref.WeakSet()

    @staticmethod
    def of(graph: Any) -> CompressedGraph:
        """The CompressedGraph of a graph."""
        found: Optional[CompressedGraph] = getattr(graph, _COMPRESSED, None)
        if found is None:
            found = CompressedGraph(graph)
            setattr(graph, _COMPRESSED, found)
        return found

    @contextlib.contextmanager
    def using(self, session: Optional[Any]) -> Iterator[None]:
        """Calls inside run in this session, else in the enclosing one, else in the default one.

        The session gets all values in force.

        Raises ValueError without a session of this graph, and RuntimeError for one that runs the
        graph as it was before it was compressed.
        """
        outer = self._session
        if session is None:
            session = _v1.get_default_session() if outer is None else outer
        if session is None:
            raise ValueError("there is no session: give one, or make it the default")
        if session.graph is not self.graph:
            raise ValueError("the session has another graph than the one that is compressed")
        self._session = session
        try:
            if session not in self._checked:
                for weight in self.weights.values():
                    self._check_rewired(weight)
                self._checked.add(session)
            if session not in self._up_to_date:
                self._assign([item for w in self.weights.values() for item in w.state.in_force()])
                self._up_to_date.add(session)
            yield
        finally:
            self._session = outer

    def run(self, fetches: Any, feeds: Optional[Mapping[Any, Any]] = None) -> Any:
        """Runs the session of `using`, past the hooks of a MonitoredSession."""
        return self.within(lambda session: session.run(fetches, feeds))

    def within(self, function: Callable[[Any], Any]) -> Any:
        """Calls a function with the session of `using`; of a MonitoredSession, the one inside."""
        if hasattr(self._session, "run_step_fn"):
            return self._session.run_step_fn(lambda step_context: function(step_context.session))
        return function(self._session)

    def put(self, values: Sequence[tuple[Slot, Any]]) -> None:
        """Puts values in force: in the session now, in others when they are used next."""
        for slot, value in values:
            slot.value = value
        self._up_to_date.clear()
        if self._session is not None:
            self._assign(values)
            self._up_to_date.add(self._session)

    def variables(self) -> dict[str, Any]:
        """Name -> array of each global variable in the session."""
        variables = self.graph.get_collection(_v1.GraphKeys.GLOBAL_VARIABLES)
        found: dict[str, Any] = self.run({variable.op.name: variable for variable in variables})
        return found

    def compressed(self) -> dict[str, Any]:
        """As `variables`, with weights as their layers read them."""
        return {
            name: self.weights[name].state.compressed(array) if name in self.weights else array
            for name, array in self.variables().items()
        }

    def outdated(self) -> None:
        """Values in force have changed: sessions get them when they are used next."""
        self._up_to_date.clear()

    def rewired(self) -> None:
        """Edges of the graph have changed: sessions have to be checked again."""
        self._checked.clear()

    def _assign(self, values: Sequence[tuple[Slot, Any]]) -> None:
        if values:
            self.run(
                [slot.assign for slot, _ in values],
                {slot.placeholder: value for slot, value in values},
            )

    def _check_rewired(self, weight: GraphWeight) -> None:
        """Raises RuntimeError when the session runs the layer as it was before.

        A session that has run anything silently continues with the edges that the graph had then.
        So the layer is run with zeros and with ones in place of the compressed weight.
        """
        led = weight.state.led
        if led is None:
            return
        operation = weight.operation
        feeds = {operation.inputs[0]: _probe_data(weight)}
        outputs = []
        for value in (0, 1):
            feeds[led] = np.full(weight.shape, value, led.dtype.as_numpy_dtype)
            try:
                outputs.append(self.run(operation.outputs[0], feeds))
            except tf.errors.FailedPreconditionError:  # it reads the variable, which has no value
                outputs.append(np.array(1 - value))
            except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
                return  # no kernel for this layout on this machine: it cannot be trained either
        if np.any(outputs[0] != 0) or not np.any(outputs[1] != 0):
            raise RuntimeError(
                f"this session ran the graph before layer {weight.name!r} was compressed and still "
                "runs it without masks or quantization: compress the graph first, or make a new "
                "session"
            )


class Slot:
    """A variable for answers, and the value that sessions should have.

    Attributes:
        variable: in no collection, and initialized only by assignment.
        value: the value in force.
        placeholder, assign: assign a value.
    """

    def __init__(self, name: str, value: Any) -> None:
        self.value = value
        shape, dtype = value.shape, tf.as_dtype(value.dtype)
        self.variable = _v1.Variable(
            lambda: tf.zeros(shape, dtype),
            trainable=False,
            use_resource=True,
            collections=[],
            name=name,
            dtype=dtype,
            shape=shape,
        )
        self.placeholder = _v1.placeholder(dtype, shape)
        self.assign = self.variable.assign(self.placeholder, read_value=False)


@dataclasses.dataclass
class Read:
    """A tensor of a variable's value, and the operations that read, or would read, it.

    `led` is the tensor that they read instead, if any, and `slots` are its variables.
    """

    source: Any
    operations: list[Any]
    led: Any = None
    slots: tuple[Any, ...] = ()


class GraphState(WeightVariables):
    """The mask and quantized values between a variable and the operations that read it.

    Attributes:
        reads: name of a tensor of the variable's value -> its readers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, variable: Any) -> None:
        super().__init__(shape, dtype)
        self.reads: dict[str, Read] = {}
        self.slots: dict[str, Slot] = {}
        self._operation = variable

    @property
    def led(self) -> Any:
        """The tensor that the first operation reads instead of the variable; None: the variable."""
        return next(iter(self.reads.values())).led

    def slot(self, variable: Any) -> Slot:
        """The slot of `mask`, `values`, `inside` or `active`."""
        return self.slots[variable.name]

    def value(self, variable: Any) -> Any:
        """The value in force of `mask`, `values`, `inside` or `active`."""
        return self.slot(variable).value

    def in_force(self) -> list[tuple[Slot, Any]]:
        """All slots with their values."""
        return [(slot, slot.value) for slot in self.slots.values()]

    def snapshot(self) -> Callable[[], None]:
        undo = super().snapshot()
        slots = dict(self.slots)

        def restore() -> None:
            undo()
            self.slots = slots
            if not slots:
                self.remove()
            self.lead()
            CompressedGraph.of(self._operation.graph).outdated()

        return restore

    def _put(self, variable: Any, value: Any) -> None:
        self.slot(variable).value = value

    def lead(self) -> None:
        """Redirects all reads through the present variables."""
        slots = tuple(self.slots)
        with self._inside_graph():
            for read in self.reads.values():
                if read.slots != slots:
                    read.led, read.slots = self._checked(read.source), slots
                    for operation in read.operations:
                        operation._update_input(WEIGHT_INPUT, read.led)
                    CompressedGraph.of(self._operation.graph).rewired()

    def remove(self) -> None:
        """Makes all operations read the variable itself again, and drops the answers."""
        self.mask = self.values = self.inside = self.active = None
        self.slots = {}
        for read in self.reads.values():
            read.led, read.slots = None, ()
            for operation in read.operations:
                operation._update_input(WEIGHT_INPUT, read.source)

    def _checked(self, source: Any) -> Any:
        """The effective weight; an error in a session that has no answers yet."""
        initialized = [_v1.is_variable_initialized(s.variable) for s in self.slots.values()]
        known = _v1.Assert(
            tf.reduce_all(initialized),
            [
                "this session has no masks or quantized weights of "
                f"{self._operation.name} yet: call update_epoch(epoch, sess), step(sess) or "
                "refresh(sess) first"
            ],
        )
        with tf.control_dependencies([known]):
            return self.effective(tf.identity(source))

    def _variable(self, initial: Any) -> Any:
        with self._inside_graph():
            slot = Slot(f"nni_compression/{self._operation.name}", initial)
        self.slots[slot.variable.name] = slot
        return slot.variable

    @contextlib.contextmanager
    def _inside_graph(self) -> Iterator[None]:
        with self._operation.graph.as_default(), tf.control_dependencies(None):
            yield


class GraphWeight:
    """A variable that operations of the graph read as their weight.

    Attributes:
        operation: the first of them; the layer has its name.
        read: a tensor of the dense weight.
    """

    def __init__(self, operation: Any, variable: Any) -> None:
        self.name = operation.name
        self.operation = operation
        self.shape = tuple(tf.TensorShape(variable.get_attr("shape")).as_list())
        dtype = tf.as_dtype(variable.get_attr("dtype")).base_dtype
        self.dtype: str = dtype.name  # as the wire names it
        self.state = GraphState(self.shape, dtype.as_numpy_dtype, variable)
        self.aliases: list[str] = []
        self.generation = 0
        self.read: Any = None
        self._placeholder: Any = None
        self._assign: Any = None
        self._variable = variable

    @property
    def variable(self) -> str:
        """The name of the variable's operation."""
        return str(self._variable.name)

    @property
    def op(self) -> Any:
        """The operation that reads it; the first of several."""
        return self.operation

    @property
    def tensor(self) -> Any:
        """The dense weight; symbolic."""
        return self.read

    @property
    def graph(self) -> CompressedGraph:
        """The graph that it belongs to."""
        return CompressedGraph.of(self._variable.graph)

    #: Variables keep their dtype.
    fits = True

    def is_taken(self, role: str) -> bool:
        """Whether there is a "pruner", or a "quantizer", already."""
        return getattr(self.state, role) is not None

    def prepare(self) -> None:
        """Makes the operations that read and write the variable, before the graph is finalized."""
        if self.read is not None:
            return
        target, dtype = self._variable.outputs[0], tf.as_dtype(self.dtype)
        with self._variable.graph.as_default(), tf.control_dependencies(None):
            self._placeholder = _v1.placeholder(dtype, self.shape)
            if self._variable.type == "VarHandleOp":
                self.read = tf.raw_ops.ReadVariableOp(resource=target, dtype=dtype)
                self._assign = tf.raw_ops.AssignVariableOp(resource=target, value=self._placeholder)
            else:
                self.read = tf.identity(target)
                self._assign = _v1.assign(target, self._placeholder).op

    def write(self, value: Any) -> None:
        """Writes the dense weight."""
        self.graph.run(self._assign, {self._placeholder: value})

    @property
    def channel_axis(self) -> int:
        """The dimension of the outputs: the last, or the first where a matrix is transposed."""
        transposed = self.operation.type == "MatMul" and self.operation.get_attr("transpose_b")
        return 0 if transposed else len(self.shape) - 1

    def layer(self) -> Layer:
        """The layer as sent to BindModel."""
        return Layer(
            name=self.name,
            op_type=self.operation.type,
            shape=self.shape,
            dtype=self.dtype,
            channel_axis=self.channel_axis,
            aliases=self.aliases,
        )

    def token(self) -> Any:
        """A variable in a session has no indicator of changes: the compressor counts steps."""
        return self.generation


def is_graph(value: Any) -> bool:
    """Whether this is a graph of TensorFlow."""
    return isinstance(value, tf.Graph)


def find_graph_weights(graph: Any) -> list[GraphWeight]:
    """The variables that layers read as their weight, in the order of the operations.

    A layer has its operation's name; further operations on the same variable are its aliases. What
    is inside of control flow (loops, conditions, functions) is left alone.
    """
    weights = CompressedGraph.of(graph).weights
    sources = {
        read.led.name: read.source
        for weight in weights.values()
        for read in weight.state.reads.values()
        if read.led is not None
    }
    found: dict[str, GraphWeight] = {}
    layers: list[str] = []
    for operation in graph.get_operations():
        if operation.type not in _READERS:
            continue
        tensor = operation.inputs[WEIGHT_INPUT]
        source = sources.get(tensor.name, tensor)
        variable = _variable_of(source)
        if variable is None:
            continue
        is_gradient = any(f"/{name}_grad/" in f"/{operation.name}" for name in layers)
        is_layer = operation.type in _LAYERS and not is_gradient
        if variable.name not in found:
            if not is_layer:
                continue
            if variable.name not in weights:
                weights[variable.name] = GraphWeight(operation, variable)
            found[variable.name] = weights[variable.name]
            found[variable.name].aliases = []
        elif is_layer:
            found[variable.name].aliases.append(operation.name)
        if is_layer:
            layers.append(operation.name)
        read = found[variable.name].state.reads.setdefault(source.name, Read(source, []))
        if operation not in read.operations:
            read.operations.append(operation)
    return list(found.values())


def graph_parameters(graph: Any) -> Iterator[Parameter]:
    """All trainable variables of a graph, and which of them layers read as their weight."""
    layers = {weight.variable: weight for weight in find_graph_weights(graph)}
    for variable in graph.get_collection(_v1.GraphKeys.TRAINABLE_VARIABLES):
        shape = tf.TensorShape(variable.shape)
        weight = layers.get(variable.op.name)
        yield Parameter(
            name=variable.op.name,
            op_type="Variable" if weight is None else weight.operation.type,
            elements=shape.num_elements() or 0,
            dimensions=shape.rank or 0,
            layer=None if weight is None else weight.name,
        )


def _variable_of(tensor: Any) -> Any:
    """The operation of the variable that a tensor reads, or None."""
    operation = tensor.op
    while operation.type in _BETWEEN:
        operation = operation.inputs[0].op
    if operation.type not in _VARIABLE_TYPES:
        return None
    dtype = tf.as_dtype(operation.get_attr("dtype")).base_dtype
    shape = tf.TensorShape(operation.get_attr("shape"))
    fits = dtype.name in WEIGHT_DTYPES and shape.is_fully_defined() and shape.num_elements() > 0
    return operation if fits else None


def _probe_data(weight: GraphWeight) -> Any:
    """Ones as input data of the layer."""
    operation, kernel = weight.operation, weight.shape
    if operation.type == "MatMul":
        inner = kernel[1] if operation.get_attr("transpose_b") else kernel[0]
        smallest = [inner, 1] if operation.get_attr("transpose_a") else [1, inner]
        return _ones(operation.inputs[0], smallest)
    spatial = len(kernel) - 2
    channels_first = operation.get_attr("data_format").decode().startswith("NC")
    dilations = operation.get_attr("dilations")
    dilations = dilations[2:] if channels_first else dilations[1:-1]
    sizes = [(kernel[i] - 1) * dilations[i] + 1 for i in range(spatial)]
    smallest = [1, kernel[spatial], *sizes] if channels_first else [1, *sizes, kernel[spatial]]
    return _ones(operation.inputs[0], smallest)


def _ones(tensor: Any, smallest: Sequence[int]) -> Any:
    """For a tensor: of its shape, as far as that is known, else of the smallest one."""
    known = tensor.shape.as_list() if tensor.shape.rank else smallest
    shape = [size or least for size, least in zip(known, smallest)]
    return np.ones(shape, tensor.dtype.as_numpy_dtype)


def layers(graph: Any) -> list[Layer]:
    """The graph's layers as a session is told of them: for search spaces, or to see their names."""
    return [weight.layer() for weight in find_graph_weights(graph)]
