"""Pruners of PyTorch models that remove whole filters."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Optional, TypeVar, Union

import torch

from ..adapters.algorithms import listed
from ..adapters.backend import Backend
from ..adapters.grouping import Grouping
from ..adapters.pruning import PrunerBinding
from ..adapters.tracker import Tracker
from ..errors import InvalidArgumentError
from ..values.counters import counter
from ..values.filter_groups import FilterGroup
from . import modules, naming
from ._files import ExampleInputs, example_inputs_of
from .backend import TorchBackend
from .pruners import Pruner
from .shrinking.dependencies import torch_pruning
from .shrinking.groups import Structure
from .weights import TorchWeight

_log = logging.getLogger("nni_compression")

C = TypeVar("C", bound=type[Pruner])

_NAMED = 10  # layers in a line of the log


def _shown(cls: C) -> C:
    """Sets the constructor's signature, for help(): its own arguments, and the base's."""
    made: Any = cls
    base, *_ = (each for each in made.__mro__[1:] if "__init__" in vars(each))
    theirs = inspect.signature(base.__init__).parameters
    mine = inspect.signature(made.__init__).parameters
    found = {name: each for name, each in mine.items() if each.kind is not each.VAR_KEYWORD}
    for name, each in theirs.items():
        found.setdefault(name, each.replace(kind=max(each.kind, each.KEYWORD_ONLY)))
    made.__init__.__signature__ = inspect.Signature(
        sorted(found.values(), key=lambda each: each.kind)
    )
    return cls


@_shown
class FilterPruner(Pruner):
    """Base of pruners of filters: output channels of convolutions, rows of Linear layers.

    Give it `example_inputs`, and it finds the layers that have to lose the same filters, so that
    `shrink` can take out all that the masks remove. Without them each layer loses its own.
    """

    _statistics_batch_num: Optional[int] = None

    def __init__(
        self,
        model: Any = None,
        config_list: Any = None,
        optimizer: Optional[Any] = None,
        dependency_aware: bool = False,
        dummy_input: Any = None,
        *,
        example_inputs: Union[torch.Tensor, ExampleInputs, None] = None,
        **kwargs: Any,
    ) -> None:
        """Makes a pruner.

        Args:
            dependency_aware, dummy_input: as in NNI: with True, `dummy_input` is needed; it is
                another name of `example_inputs`.
            example_inputs: what the model is called with: a tensor, a tuple of positional
                arguments, or a dict of keyword arguments. With it, `compress` traces the model, as
                `shrink` does, which needs PyTorch 2 and the package torch-pruning. Filters that are
                added to each other go together, heads of attention go as a whole, and grouped
                convolutions lose the same number of filters in each group. Layers whose filters
                cannot go are left out; `kept_layers` says why.

        The other arguments are those of `Pruner`.
        """
        super().__init__(model, config_list, optimizer, **kwargs)
        if not isinstance(dependency_aware, bool):
            raise InvalidArgumentError(
                f"dependency_aware is {dependency_aware!r}; it must be a bool"
            )
        if example_inputs is not None and dummy_input is not None:
            raise InvalidArgumentError(
                "example_inputs and dummy_input are both given; they are one"
            )
        given = dummy_input if example_inputs is None else example_inputs
        if dependency_aware and given is None:
            raise InvalidArgumentError(
                "dependency_aware is True, and dummy_input is None; it must be what the model is "
                "called with"
            )
        if given is not None:
            torch_pruning("example_inputs")
        self._example_inputs = None if given is None else example_inputs_of(given)
        self._structure: Optional[tuple[Hashable, Structure]] = None  # of a model like this
        self._names: Mapping[str, tuple[str, ...]] = {}  # of its layers

    @property
    def filter_groups(self) -> tuple[FilterGroup, ...]:
        """The layers whose filters go together, as they were found when the model was bound."""
        return self._lifecycle.grouping.groups

    @property
    def kept_layers(self) -> dict[str, str]:
        """Layer name -> why none of its filters can go, of the layers that are left out of pruning,
        whether a rule matches them or not. Empty without `example_inputs`.
        """
        return dict(self._lifecycle.grouping.kept)

    def compress(self) -> Any:
        """See `Compressor.compress`."""
        was_bound = self.is_bound
        model = super().compress()
        coverage = self.plan.coverage
        if not was_bound and coverage is not None:
            _log_kept({p.layer: self.kept_layers.get(p.layer or "") for p in coverage.excluded})
        return model

    def _grouping(
        self, weights: Sequence[TorchWeight], matched: Optional[Collection[str]]
    ) -> Grouping:
        backend = self._lifecycle.backend
        if self._example_inputs is None or self._is_custom or not isinstance(backend, TorchBackend):
            return Grouping()
        structure = self._structure_of(backend, weights)
        self._names = {weight.name: (weight.name, *weight.aliases) for weight in weights}
        found = structure.grouping(matched)
        if matched is None:
            backend.statistic_parameters = {**structure.scales, **self.statistic_parameters}
            backend.knows_norms = True
            return found
        return Grouping(found.groups, {**self._lifecycle.grouping.kept, **found.kept})

    def _make_binding(
        self, tracker: Tracker, weights: Sequence[Any], backend: Backend[Any]
    ) -> PrunerBinding[Any]:
        binding = super()._make_binding(tracker, weights, backend)
        if binding.statistics is not None:
            binding.statistics.ready_after = self._statistics_batch_num
        return binding

    def _structure_of(self, backend: TorchBackend, weights: Sequence[TorchWeight]) -> Structure:
        """The same for a model that is bound again, unless its modules have changed."""
        assert self._example_inputs is not None
        model = backend.model
        key = (
            tuple((n, modules.plain_class(m)) for n, m in naming.named_modules(model)),
            tuple((weight.name, tuple(weight.dense.shape)) for weight in weights),
        )
        if self._structure is None or self._structure[0] != key:
            self._structure = key, Structure(model, self._example_inputs, weights)
        return self._structure[1]

    def _wire_rules(self) -> Sequence[Mapping[str, Any]]:
        rules, kept = super()._wire_rules(), self._lifecycle.grouping.kept
        if not kept or not isinstance(rules, Sequence):
            return rules
        names = [name for layer in kept for name in self._names[layer]]
        return [*rules, {"exclude": True, "op_names": names}]


def _log_kept(reasons: Mapping[Optional[str], Optional[str]]) -> None:
    told = [f"{name} ({why})" for name, why in reasons.items() if why is not None]
    if told:
        _log.warning(
            "left out of pruning, as their filters cannot go: %s%s",
            ", ".join(told[:_NAMED]),
            f" and {len(told) - _NAMED} more" if len(told) > _NAMED else "",
        )


@listed
class L1FilterPruner(FilterPruner): ...


@listed
class L2FilterPruner(FilterPruner): ...


@listed
class FPGMPruner(FilterPruner): ...


@listed
class SlimPruner(FilterPruner): ...


@listed
@_shown
class TaylorFOWeightFilterPruner(FilterPruner):
    def __init__(
        self,
        model: Any = None,
        config_list: Any = None,
        optimizer: Optional[Any] = None,
        statistics_batch_num: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        """Makes a pruner.

        Args:
            statistics_batch_num: forward passes ask for masks after so many steps of the optimizer;
                by default once `step` or `update_epoch` is called.

        The other arguments are those of `FilterPruner`.
        """
        super().__init__(model, config_list, optimizer, **kwargs)
        self._statistics_batch_num = _checked_number(statistics_batch_num)


@_shown
class _ActivationPruner(FilterPruner):
    """Base of those that rank filters by their outputs."""

    def __init__(
        self,
        model: Any = None,
        config_list: Any = None,
        optimizer: Optional[Any] = None,
        activation: Optional[str] = None,
        statistics_batch_num: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        """Makes a pruner.

        Args:
            activation: the option of that name, "relu", "relu6" or "none", of all rules that have
                none.
            statistics_batch_num: forward passes ask for masks after so many of them; by default
                once `step` or `update_epoch` is called.

        The other arguments are those of `FilterPruner`.
        """
        super().__init__(model, config_list, optimizer, **kwargs)
        self._statistics_batch_num = _checked_number(statistics_batch_num)
        self._activation = activation

    def _wire_rules(self) -> Sequence[Mapping[str, Any]]:
        rules = super()._wire_rules()
        if self._activation is None or not isinstance(rules, Sequence):
            return rules
        return [
            {"activation": self._activation, **rule}
            if isinstance(rule, Mapping) and not rule.get("exclude")
            else rule
            for rule in rules
        ]


@listed
class ActivationAPoZRankFilterPruner(_ActivationPruner): ...


@listed
class ActivationMeanRankFilterPruner(_ActivationPruner): ...


@listed
class RandomPruner(FilterPruner): ...


def _checked_number(batches: Any) -> Optional[int]:
    if batches is None:
        return None
    number = counter(batches, "statistics_batch_num")
    if number < 1:
        raise InvalidArgumentError(f"statistics_batch_num is {number}; it must be at least 1")
    return number
