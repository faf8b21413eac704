"""Which of the channels that masks remove can go, so that the model computes the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from . import channels
from .constants import Inputs
from .dependencies import Coupled

_NAMED = 3  # layers that a message names
_ENOUGH = 0.01  # of the largest constant, for one that carries the others
_HEAD_SIZES = ("head_dim", "attention_head_size")
_HEADS = ("num_heads", "num_attention_heads")
_WIDTHS = ("attn_dim", "all_head_size")


class Choice:
    """Decides, by setting `Coupled.kept`.

    Args:
        model: whose weights have the zeros.
        found: everything that may go, without duplicates; those that have `kept` stay.
        removed: layer -> its filters that the masks remove.
        observed: see `constants.observe`.
        fixed: module -> why none of its channels may go.
    """

    def __init__(
        self,
        model: nn.Module,
        found: Sequence[Coupled],
        removed: Mapping[str, Collection[int]],
        observed: Mapping[str, Inputs],
        fixed: Mapping[str, str],
    ) -> None:
        self.found = found
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._removed = {name: set(own) for name, own in removed.items()}
        self._fixed = fixed
        self._is_constant = {name: seen.is_constant.tolist() for name, seen in observed.items()}
        self._values = {name: seen.values.tolist() for name, seen in observed.items()}
        for each in found:
            each.kept = each.kept or self._obstacle(each)
        # Constant wherever they are used: they may go, or carry the constants of others.
        self._constant = [each for each in found if not each.kept]
        self._by_module: dict[tuple[str, str], list[tuple[int, Coupled]]] = {}
        for each in self._constant:
            for side in ("outputs", "channelwise", "inputs"):
                for name, own in getattr(each, side).items():
                    place = self._by_module.setdefault((side, name), [])
                    place.extend((index, each) for index in own)
        self._keep_carriers()
        before = -1
        while before != len(self.going):
            before = len(self.going)
            self._keep_parts_of_heads()
            self._keep_uneven()
            self._keep_last()

    @property
    def going(self) -> list[Coupled]:
        """Those that go."""
        return [each for each in self._constant if not each.kept]

    def gone(self) -> dict[tuple[str, str], list[int]]:
        """Attribute of `Coupled`, and module -> the indices that go, in order."""
        return {place: own for place in self._by_module if (own := sorted(self._gone(*place)))}

    def _gone(self, side: str, name: str) -> dict[int, Coupled]:
        return {i: each for i, each in self._by_module.get((side, name), ()) if not each.kept}

    def _obstacle(self, coupled: Coupled) -> str:
        """Why this cannot go, whatever else goes; empty: it can."""
        for name in sorted(coupled.names & self._fixed.keys()):
            return f"{name} {self._fixed[name]}"
        for name in coupled.outputs:
            module = self._modules[name]
            if isinstance(module, channels.TRANSPOSED) and channels.groups_of(module) > 1:
                return f"{name} is a transposed convolution with groups"
        for name, own in coupled.inputs.items():
            constant = self._is_constant.get(name)
            if constant is None:
                return f"{name}, which uses it, is not called as a module"
            if not all(constant[index] for index in own):
                return self._live(coupled, name)
        return ""

    def _live(self, coupled: Coupled, user: str) -> str:
        """Why a channel that a layer uses is not constant."""
        others = [
            name
            for name, own in (*coupled.outputs.items(), *coupled.channelwise.items())
            if channels.has_filters(self._modules[name])
            and not own <= self._removed.get(name, set())
        ]
        if not others:
            return f"it is not the same in all places of the input of {user}"
        more = ", ..." if len(others) > _NAMED else ""
        return f"coupled layers keep it: {', '.join(others[:_NAMED])}{more}"

    def _keep_carriers(self) -> None:
        """Keeps a channel for each sum of constants that no bias can take."""
        for side, name in sorted(self._by_module):
            if side != "inputs" or channels.adds_same_everywhere(self._modules[name]):
                continue
            holders = dict(self._by_module[side, name])
            for own in self.contributing(name):
                holder = holders[self.carrier(name, own[0])]
                if not holder.kept:
                    holder.carries = True
                    holder.kept = (
                        f"it carries the constants of removed channels into {name}, whose input is "
                        "padded"
                    )

    def contributing(self, name: str) -> list[list[int]]:
        """The input channels of a layer that go and add constants to its outputs, by group."""
        module, values = self._modules[name], self._values[name]
        local = channels.inputs_of(module) // channels.groups_of(module)
        found: dict[int, list[int]] = {}
        for channel in sorted(self._gone("inputs", name)):
            if values[channel] != 0 and bool(channels.column(module, channel).any()):
                found.setdefault(channel // local, []).append(channel)
        return list(found.values())

    def carrier(self, name: str, other: int) -> int:
        """The input channel of a layer that is best to carry the constant of another one.

        It is in the same group. One that stays anyway if its value is not much smaller than the
        largest, which is taken otherwise.
        """
        module, values = self._modules[name], self._values[name]
        local = channels.inputs_of(module) // channels.groups_of(module)
        own = [
            (abs(values[index]), index, bool(each.kept))
            for index, each in self._by_module["inputs", name]
            if index // local == other // local
        ]
        enough = _ENOUGH * max(own)[0]
        return max([each for each in own if each[2] and each[0] >= enough] or own)[1]

    def _keep_parts_of_heads(self) -> None:
        """Heads of attention go as a whole, as they all have the same size."""
        for name in [name for side, name in self._by_module if side == "outputs"]:
            size = head_size(self._modules, name)
            gone = self._gone("outputs", name)
            if size is None:
                continue
            for index, each in gone.items():
                first = index // size * size
                if not all(i in gone for i in range(first, first + size)):
                    each.kept = each.kept or f"only a part of its attention head in {name} could go"

    def _keep_uneven(self) -> None:
        """Of a grouped convolution the same number goes in each group, and not all."""
        for side, name in self._by_module:
            groups = channels.groups_of(self._modules[name])
            if groups == 1:
                continue
            local = self._count(side, name) // groups
            parts: list[list[Coupled]] = [[] for _ in range(groups)]
            carriers = [0] * groups
            for index, each in sorted(self._by_module[side, name], key=lambda one: one[0]):
                if not each.kept:
                    parts[index // local].append(each)
                carriers[index // local] += each.carries
            fewest = min(local - 1, *map(len, parts))
            # Without the channels that stay for constants, the sizes would be those of the masks.
            is_even = len({len(part) + more for part, more in zip(parts, carriers)}) == 1
            for each in (each for part in parts for each in part[fewest:]):
                each.carries = each.carries or (is_even and any(carriers) and not each.kept)
                each.kept = each.kept or f"the groups of {name} have to stay of one size"

    def _keep_last(self) -> None:
        """Something stays of every module."""
        for side, name in self._by_module:
            gone = self._gone(side, name)
            if len(gone) == self._count(side, name):
                gone[min(gone)].kept = f"{name} has no other"

    def _count(self, side: str, name: str) -> int:
        count = channels.inputs_of if side == "inputs" else channels.outputs_of
        return count(self._modules[name])


def head_size(modules: Mapping[str, Any], name: str) -> Optional[int]:
    """The filters of one head, of a layer in an attention; None in all others."""
    module, owner = modules[name], modules.get(name.rpartition(".")[0])
    for attribute in _HEAD_SIZES:
        size = getattr(owner, attribute, None)
        if isinstance(module, nn.Linear) and isinstance(size, int) and size > 0:
            return size if module.out_features % size == 0 else None
    return None


def take_out(model: nn.Module, choice: Choice, observed: Mapping[str, Inputs]) -> None:
    """Takes the chosen channels out of a copy of the model, and adds their constants elsewhere."""
    modules: dict[str, Any] = dict(model.named_modules())
    gone = choice.gone()
    _shrink_heads(modules, {name: own for (side, name), own in gone.items() if side == "outputs"})
    for side, name in gone:
        if side == "inputs":
            _move_constants(modules[name], name, choice, observed[name].values)
    for (side, name), own in gone.items():
        remove = channels.remove_inputs if side == "inputs" else channels.remove_outputs
        remove(modules[name], set(own))


def _move_constants(module: nn.Module, name: str, choice: Choice, values: torch.Tensor) -> None:
    values = values.to(torch.float64)
    for own in choice.contributing(name):
        columns = torch.stack([channels.column(module, index) for index in own], -1)
        total = columns.to(torch.float64) @ values[own]
        if channels.adds_same_everywhere(module):
            by_filter = total.flatten(1).sum(1) if total.dim() > 1 else total
            channels.add_to_bias(module, channels.filters_of_input(module, own[0]), by_filter)
            continue
        carrier = choice.carrier(name, own[0])
        column = channels.column(module, carrier)
        column.add_((total / values[carrier]).to(column.dtype))


def _shrink_heads(modules: Mapping[str, Any], gone: Mapping[str, Collection[int]]) -> None:
    """Sets what an attention knows of the number of its heads; called before layers change."""
    changed = {}
    for name, own in gone.items():
        size = head_size(modules, name)
        if size is None:
            continue
        count = modules[name].out_features
        owner = name.rpartition(".")[0]
        for attributes, unit in ((_HEADS, size), (_WIDTHS, 1)):
            for attribute in attributes:
                present = getattr(modules[owner], attribute, None)
                # Queries, keys and values may be filters of one layer.
                if isinstance(present, int) and count in (present * unit, 3 * present * unit):
                    parts = count // (present * unit)
                    changed[owner, attribute] = present - len(own) // parts // unit
    for (owner, attribute), value in changed.items():
        setattr(modules[owner], attribute, value)
