"""Which channels of a model's layers have to go together, by the graph of torch-pruning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import nn

from ...errors import InvalidArgumentError, UnimplementedError
from . import channels

_INSTALL = "pip install 'nni-compression[shrink]'"
# Kinds of nodes whose channels cannot go, by the names in torch_pruning.ops.OPTYPE.
_FIXED = {
    "LN": "{} normalizes over all channels",
    "GN": "{} normalizes over groups of channels",
    "EMBED": "{} has it as a dimension of its vectors",
    "PARAMETER": "the parameter {}, of no convolution, Linear or norm, has it",
    "MHA": "{} is an attention whose projections are one module",
    "LSTM": "{} is recurrent",
    "CUSTOMIZED": "{} is not known",
    "OUTPUT": "it is in the output of the model",
}
_NOT_FOLLOWED = "it is coupled to others in a way that cannot be followed"
_CHANNELWISE = ("BN", "IN", "DEPTHWISE_CONV", "PRELU")


@dataclass(eq=False)
class Coupled:
    """The channels that go with a filter: name of a module -> indices.

    Attributes:
        outputs: filters of convolutions and Linear layers.
        channelwise: of what keeps the number of channels: norms, PReLU, depthwise convolutions.
        inputs: input channels of the layers that use them.
        kept: why they cannot go; empty: they can.
        carries: whether they only stay for the constants of others.
    """

    outputs: dict[str, set[int]] = field(default_factory=dict)
    channelwise: dict[str, set[int]] = field(default_factory=dict)
    inputs: dict[str, set[int]] = field(default_factory=dict)
    kept: str = ""
    carries: bool = False

    @property
    def names(self) -> set[str]:
        """All modules."""
        return {*self.outputs, *self.channelwise, *self.inputs}

    @property
    def filters(self) -> frozenset[tuple[str, int]]:
        """Equal for filters that are coupled to each other."""
        both = (*self.outputs.items(), *self.channelwise.items())
        return frozenset((name, index) for name, own in both for index in own)


class _Index(NamedTuple):
    """An index, as torch-pruning maps it from layer to layer, and the filter that it is of."""

    idx: int
    root_idx: Any  # None: unknown


class Dependencies:
    """Of one model, which must not be changed."""

    def __init__(self, model: nn.Module, graph: Any) -> None:
        self._names: dict[int, str] = {}
        for name, owned in (*model.named_modules(), *model.named_parameters()):
            self._names.setdefault(id(owned), name)
        self._modules = dict(model.named_modules())
        self._graph = graph
        counted = [module for module in model.modules() if has_channels(module)]
        self._widest = max(_count(each, side) for each in counted for side in (False, True))

    @staticmethod
    def of(model: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Dependencies:
        """Traces a model, which is in evaluation mode and all of whose parameters have gradients.

        Raises UnimplementedError without torch-pruning, and InvalidArgumentError for a model that
        cannot be traced.
        """
        pruning = torch_pruning()

        def run(_: Any, __: Any) -> list[torch.Tensor]:
            outputs = tensors_in(model(*positional, **named))
            return [output for output in outputs if output.grad_fn is not None]

        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = pruning.DependencyGraph().build_dependency(
                    model, None, forward_fn=run, verbose=False
                )
        except Exception as error:  # whatever the model and the package raise
            raise InvalidArgumentError(
                f"the {type(model).__name__} cannot be traced: {type(error).__name__}: {error}"
            ) from error
        if not graph.module2node:
            raise InvalidArgumentError(
                f"no output of the {type(model).__name__} has a gradient, by which it is traced"
            )
        return Dependencies(model, graph)

    def coupled(self, name: str, filters: Collection[int]) -> dict[int, Coupled]:
        """For filters of a layer, or channels of a norm, what goes with each."""
        module = self._modules[name]
        found = {each: Coupled() for each in filters}
        for index, own in found.items():
            keeps_number = channels.is_depthwise(module) or not channels.has_filters(module)
            side = own.channelwise if keeps_number else own.outputs
            side[name] = {index}
        node = self._graph.module2node.get(module)
        if node is None:
            for each in found.values():
                each.kept = f"{name} does not take part in the model's output as a module"
            return found
        begin = self._graph.get_pruner_of_module(module).prune_out_channels
        pending = [(node, begin, {_Index(each, each) for each in filters})]
        seen: dict[Any, set[_Index]] = {}
        while pending:
            node, function, indices = pending.pop()
            before = seen.setdefault((node, function), set())
            indices = indices - before
            if not indices:
                continue
            before |= indices
            self._add(found, node, function, indices)
            for dependency in node.dependencies:
                if dependency.is_triggered_by(function):
                    mapped: Any = list(indices)
                    for mapping in dependency.index_mapping:
                        mapped = mapped if mapping is None else mapping(mapped)
                    told = {_Index(one.idx, one.root_idx) for one in mapped}
                    told = self._followed(found, told)
                    pending.append((dependency.target, dependency.handler, told))
        return found

    def scale_behind(self, name: str) -> Optional[str]:
        """The name of a parameter with a number for each output channel of a layer: the weight of
        the one norm that its outputs reach before anything is added to them. None: there is none.
        """
        found = []
        for node in self._reached(name, lambda node: len(node.inputs) == 1):
            norm = node.module
            is_norm = isinstance(norm, channels.NORMS) and norm.weight is not None
            if is_norm and _count(norm, False) == _count(self._modules[name], False):
                found.append(self._names[id(norm)])
        return f"{found[0]}.weight" if len(found) == 1 else None

    def norms_behind(self, name: str) -> Optional[set[str]]:
        """The norms that a layer's outputs pass before any other layer has them, and before they
        are the model's; None where they do not.
        """
        found = set()
        for node in self._reached(name, lambda node: True):
            if not isinstance(node.module, channels.NORMS):
                return None
            found.add(self._names[id(node.module)])
        return found

    def _reached(self, name: str, passes: Callable[[Any], bool]) -> list[Any]:
        """The nodes of norms, layers and outputs that are the first on all ways from a layer.

        Args:
            passes: whether to continue behind a node that is none of these.
        """
        node = self._graph.module2node.get(self._modules[name])
        pending = [] if node is None else list(node.outputs)
        found: dict[int, Any] = {}
        seen: set[int] = set()
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            follows = not has_channels(node.module) or channels.is_depthwise(node.module)
            if follows and node.outputs and node.type.name not in _FIXED:
                if passes(node):
                    pending += node.outputs
            else:
                found[id(node)] = node
        return list(found.values())

    def _followed(self, found: dict[int, Coupled], indices: set[_Index]) -> set[_Index]:
        """Those of filters that may still go.

        Where slices and concatenations form a loop, as in rotary embeddings, torch-pruning's
        indices can grow without end.
        """
        unknown = any(index.root_idx not in found for index in indices)
        for index in indices:
            if unknown or index.idx >= self._widest:
                for root in found if unknown else (index.root_idx,):
                    found[root].kept = found[root].kept or _NOT_FOLLOWED
        return {index for index in indices if not unknown and not found[index.root_idx].kept}

    def _add(
        self, found: dict[int, Coupled], node: Any, function: Any, indices: set[_Index]
    ) -> None:
        """Adds what one step has reached."""
        kind, module = node.type.name, node.module
        name = self._names.get(id(module), "")
        pruner = self._graph.get_pruner_of_module(module)
        inwards = function == pruner.prune_in_channels != pruner.prune_out_channels
        # What is in no norm or layer passes all channels on, and ends in the output.
        fixed = _FIXED.get(kind, "" if node.outputs or inwards else _FIXED["OUTPUT"])
        if kind == "DEPTHWISE_CONV" and not channels.is_depthwise(module):
            fixed = "{} has a group for each of its filters, with several inputs each"
        if kind in _CHANNELWISE and not node.inputs:
            fixed = "{} has it from the input of the model"
        for index, root in indices:
            coupled = found[root]
            if fixed:
                coupled.kept = coupled.kept or fixed.format(name)
            elif inwards:
                coupled.inputs.setdefault(name, set()).add(index)
            elif kind in _CHANNELWISE and _parameters_of_prelu(module) != 1:
                coupled.channelwise.setdefault(name, set()).add(index)
            elif kind in ("CONV", "LINEAR"):
                coupled.outputs.setdefault(name, set()).add(index)
            if not fixed and name and has_channels(module) and index >= _count(module, inwards):
                coupled.kept = coupled.kept or f"its place in {name} cannot be followed"


def _parameters_of_prelu(module: Any) -> int:
    """0 for anything else; with 1 it has none for each channel."""
    return int(module.num_parameters) if isinstance(module, nn.PReLU) else 0


def has_channels(module: Any) -> bool:
    """Whether this has channels that can be taken out."""
    return channels.has_filters(module) or isinstance(module, channels.NORMS)


def _count(module: Any, inwards: bool) -> int:
    inwards = inwards and channels.has_filters(module)
    return channels.inputs_of(module) if inwards else channels.outputs_of(module)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The floating-point tensors in what a model returns."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [tensor for each in value.values() for tensor in tensors_in(each)]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def torch_pruning(user: str = "shrink") -> Any:
    """The package; UnimplementedError without it, and with PyTorch 1."""
    if int(torch.__version__.split(".")[0]) < 2:
        raise UnimplementedError(f"{user} needs PyTorch 2 or newer; this is {torch.__version__}")
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise UnimplementedError(
            f"{user} needs the package torch-pruning ({error}): {_INSTALL}"
        ) from error
