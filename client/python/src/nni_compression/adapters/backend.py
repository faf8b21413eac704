"""The interface between a framework and a compressor.

A framework implements `Weight`, `Backend`, `Pruning` and `Quantizing`, and derives its public
classes from `compressor.Compressor`, `pruner.Pruner` and `quantizer.Quantizer` with the backend as
`_backends`. When to ask, batching, errors of single layers, lost sessions and checkpoints are not
its concern.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Optional, Protocol, TypeVar

import numpy as np

from ..client import Client
from ..values.magnitudes import Counter, Threshold
from ..values.masks import Mask
from ..values.plan import Layer, LayerPlan, Parameter
from ..values.quantization import QuantizedTensor

if TYPE_CHECKING:
    from .binding import Binding
    from .custom import OwnAlgorithm
    from .pruning import PrunerBinding
    from .quantizing import QuantizerBinding
    from .statistics import Collector

Range = Sequence[float]  # smallest, largest
ActivationKey = tuple[str, str]  # layer, "output" or "input"


class Weight(Protocol):
    """A weight of a model, under all its names."""

    name: str

    @property
    def op(self) -> Any:
        """The module, layer or operation that has it."""

    @property
    def tensor(self) -> Any:
        """The dense weight as custom algorithms get it, without gradient."""

    @property
    def state(self) -> Any:
        """The mask and quantization that are applied when the weight is read, once bound.

        Its attributes `pruner` and `quantizer` are None where there is none.
        """

    @property
    def fits(self) -> bool:
        """Whether the bound dtype holds every value of the present one."""

    def layer(self) -> Layer:
        """The layer as sent to BindModel."""

    def token(self) -> Any:
        """A value that compares equal as long as the weight is unchanged."""

    def is_taken(self, role: str) -> bool:
        """Whether there is a "pruner", or a "quantizer", already."""


W = TypeVar("W", bound=Weight)


class Backend(Protocol[W]):
    """One model of a framework: finds and reads its weights, and writes its files."""

    #: The framework's name for BindModel.
    framework: ClassVar[str]
    #: The type of models, for messages.
    model_type: ClassVar[str]
    #: Whether answers are asked for by `update_epoch`, `step` and `refresh`, when all weights count
    #: as changed; otherwise by the forward pass that needs them.
    asks_ahead: ClassVar[bool]

    def __init__(self, model: Any) -> None: ...

    @staticmethod
    def accepts(value: Any) -> bool:
        """Whether this is a model of the framework."""

    def client(self, client: Client) -> Any:
        """What the calls about the model are made with: the client, or a stand-in for it."""
        return client

    # The model.

    def find_weights(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[W]:
        """The weights that can be compressed, tied ones once.

        Args:
            rules: the config_list. What has to be named in order to be compressed is left out
                unless a rule does.
        """

    def parameters(self) -> Iterable[Parameter]:
        """All parameters, those that cannot be compressed too, each once."""

    def layer_key(self, name: str) -> str:
        """Equal for the names that one layer has in a model and in a wrapper of that model."""
        return name

    def wire_rules(self, rules: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The config_list with the names that layers are bound under."""
        return rules

    def replaced(self, weights: Collection[W]) -> list[str]:
        """The layers whose module, in the model, is no longer the one that was bound."""
        return []

    # Weights.

    def read(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """Layer name -> array, or `Tensor`, of the bound dtype."""

    def why_no_statistic(self, weight: W, kind: str) -> str:
        """Why a statistic of a layer cannot be collected, or, of kind "gradient", the gradient of
        its weight cannot be sent with a step; empty where it can.
        """
        return "which this adapter does not collect"

    def collector(self, weights: Sequence[W], plan: Mapping[str, LayerPlan]) -> Collector:
        """Of the statistics that the plan declares for these weights, which can be collected.
        `watch` starts it.
        """
        raise NotImplementedError

    def gradients(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """As `read`, of the weights' gradients; those without one are left out."""
        return {}

    def tokens(self, weights: Sequence[W]) -> Mapping[str, Any]:
        """The tokens of weights that are about to be asked for."""
        return {weight.name: weight.token() for weight in weights}

    def weights_changed(self, binding: Binding[W]) -> None:
        """Treats all weights as changed, but for those that can be shown not to be."""
        return

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """What asking runs in: outside of gradients, where the framework has such a thing."""
        return contextlib.nullcontext()

    # A binding in the model.

    def pruning(self, own: Optional[OwnAlgorithm[W]]) -> Pruning[W]:
        """For a new binding. `own`: of a custom algorithm."""

    def quantizing(self, own: Optional[OwnAlgorithm[W]]) -> Quantizing[W]:
        """The same for a quantizer."""

    def has(self, binding: Binding[W]) -> bool:
        """Whether the model still reads its weights through the binding."""

    def installed(self, binding: Binding[W], undo: contextlib.ExitStack) -> None:
        """Finishes the installation of a binding; `undo` reverts it."""
        return

    def watch(self, binding: Binding[W], optimizer: Optional[Any]) -> Sequence[Callable[[], None]]:
        """Observes changes of weights that leave no trace; returns functions that stop that."""
        return ()

    def unwrapped(self) -> None:
        """Called once the plain model is restored."""
        return

    def call_own(
        self, method: Callable[..., Any], owner: Any, args: Sequence[Any], kwargs: Any
    ) -> Any:
        """Calls an `update_epoch` or `step` of a custom algorithm."""
        return method(owner, *args, **kwargs)

    # Files.

    def exported(self, binding: Binding[W]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """The model's tensors for the server, and layer name -> name of its weight in the model.

        For compressed weights: the tensors from which the server computes them.
        """

    def tied_names(self, binding: Binding[W]) -> Mapping[str, Sequence[str]]:
        """Name of a weight in exports -> its names in the model, several if it is tied."""
        return {}

    def other_weights(self, binding: Binding[W]) -> Mapping[str, np.ndarray[Any, Any]]:
        """Name -> tensor, of those that are not compressed and have the shape of one that is.

        An exporter may have merged them with compressed weights.
        """
        return {}

    def sqnr(self, binding: Binding[W]) -> Mapping[str, float]:
        """Layer name -> signal to quantization noise of its weight, in dB, where it is known."""
        return {}

    def from_numpy(self, array: Any) -> Any:
        """An array in the form for `state_dict`, which the framework's files can hold."""
        return array

    def to_numpy(self, array: Any) -> Any:
        """The inverse of `from_numpy`; also for results of `Pruning.mask`."""
        return np.asarray(array)


class _Answers(Protocol[W]):
    """The common part of `Pruning` and `Quantizing`, for the weights of one binding."""

    def unwrap(self, binding: Any) -> None:
        """Writes the answers into the dense weights and takes the binding out of the model."""

    def results(self, compute: Callable[[W], Any], weights: Sequence[W]) -> Mapping[str, Any]:
        """Layer name -> what a custom algorithm returned, once nothing of it is symbolic."""
        return {weight.name: compute(weight) for weight in weights}


class Pruning(_Answers[W], Protocol[W]):
    """Masks in a model."""

    #: Why weights cannot be counted, so that they are sent; empty where they can.
    why_weights_only: ClassVar[str]
    #: Why weights cannot be sent, so that they are counted; empty where they can.
    why_counts_only: ClassVar[str] = ""

    def install(
        self, binding: PrunerBinding[W], given: Mapping[str, Mask], undo: contextlib.ExitStack
    ) -> None:
        """Makes the model read its weights through the binding, with the given masks.

        `undo` reverts all changes.
        """

    def put(self, masks: Mapping[W, Mask]) -> None:
        """Puts masks in force."""

    def counters(self, weights: Sequence[W]) -> Mapping[str, Counter]:
        """Layer name -> counter of what its mask in force keeps."""
        return {}

    def counts_by_default(self, weight: W) -> bool:
        """Whether the weight is where counting it costs less than sending it."""
        return False

    def put_thresholds(self, thresholds: Mapping[W, Threshold]) -> None:
        """Puts the masks in force that decided thresholds make of those in force: all, or none
        when one cannot be made.
        """
        return

    def mask(self, weight: W) -> Any:
        """The mask in force, as a tensor of the framework: bool, True = kept."""

    def sparsities(self, weights: Sequence[W]) -> Mapping[str, float]:
        """Layer name -> the share of its weight that the mask in force removes."""
        return {weight.name: 1 - float(np.mean(self.mask(weight))) for weight in weights}

    def to_array(self, result: Any) -> Any:
        """A tensor that a custom algorithm returned as an array with a dtype of numpy's; all else
        unchanged.
        """
        return result


class Quantizing(_Answers[W], Protocol[W]):
    """Quantized weights, outputs and inputs in a model."""

    #: Whether weights are rounded when they are read, so that parameters apply to any weight.
    rounds_when_read: ClassVar[bool]
    #: Why outputs and inputs cannot be quantized; empty where they can.
    why_weights_only: ClassVar[str]

    def install(self, binding: QuantizerBinding[W], undo: contextlib.ExitStack) -> None:
        """As `Pruning.install`."""

    def put(self, answers: Mapping[W, QuantizedTensor]) -> None:
        """Puts quantization parameters in force; without numbers the weight passes unchanged."""

    def put_values(self, results: Mapping[str, Any], own: OwnAlgorithm[W], weights: Any) -> None:
        """Puts the results of a custom algorithm in force, by layer name.

        Raises TypeError or ValueError, before anything is changed, for results that are not valid
        values of a weight.
        """

    def ranges(self, weights: Sequence[W], plan: Mapping[str, LayerPlan]) -> Mapping[str, Any]:
        """Layer name -> float32 [2], or [2, C] where the plan wants a range per channel."""

    def calibration(self, binding: QuantizerBinding[W]) -> dict[str, dict[str, Any]]:
        """The content of `Quantizer.calibration`."""

    def kept(self, weight: W) -> Optional[np.ndarray[Any, Any]]:
        """The mask of the weight's pruner, a boolean array; None without a pruner."""

    def detached(self, binding: QuantizerBinding[W]) -> None:
        """Called when no further answer will be received."""
        return

    # Of frameworks that quantize outputs and inputs.

    def seen(self, binding: QuantizerBinding[W]) -> Mapping[ActivationKey, Range]:
        """Minimum and maximum since the last step, of activations that were observed."""
        return {}

    def seen_here(self, binding: QuantizerBinding[W]) -> Mapping[ActivationKey, Range]:
        """The same for this process alone, for a checkpoint between two steps."""
        return {}

    def see(self, binding: QuantizerBinding[W], ranges: Mapping[ActivationKey, Range]) -> None:
        """Restores the result of `seen_here`. The binding is installed."""
        return

    def forget_seen(self, binding: QuantizerBinding[W]) -> None:
        """Resets the observed ranges after a step."""
        return

    def put_activation(
        self, binding: QuantizerBinding[W], key: ActivationKey, answer: QuantizedTensor
    ) -> None:
        """Puts the quantization of outputs or inputs in force."""
        return


def is_model_of(backends: Sequence[type[Backend[Any]]], value: Any) -> bool:
    """Whether this is a model of one of them."""
    return any(backend.accepts(value) for backend in backends)


def backend_of(backends: Sequence[type[Backend[Any]]], model: Any) -> Backend[Any]:
    """A backend of the first type that accepts the model; TypeError if there is none."""
    for backend in backends:
        if backend.accepts(model):
            return backend(model)
    raise not_a_model(backends, model)


def not_a_model(backends: Sequence[type[Backend[Any]]], value: Any) -> TypeError:
    """An error that names the accepted types."""
    wanted = " or ".join(dict.fromkeys(backend.model_type for backend in backends))
    return TypeError(f"model is a {type(value).__name__}; it must be {wanted}")
