"""The content of `state_dict`, and its mapping to the layers of the model that loads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable, Optional

from ..values.masks import Mask
from ..values.plan import Layer
from . import statistics
from .backend import Backend
from .binding import Binding
from .warn import warn

_VERSION = 1
_SECTIONS = (
    "masks",
    "memory",
    "activations",
    "seen",
    statistics.STATE,
)  # each: layer name -> its entry


def make_state(
    binding: Binding[Any], algorithm: str, *, vectors_need_filter: bool
) -> dict[str, Any]:
    """Epoch and step, the masks in force, and the session's memory of layers."""
    tracker, backend = binding.tracker, binding.backend
    return {
        "version": _VERSION,
        "algorithm": algorithm,
        "session": tracker.session.id,
        "route": tracker.session.route,
        "epoch": tracker.epoch,
        "step": tracker.step,
        "session_step": tracker.session_step,
        "step_applied": tracker.step_applied,
        "vectors_need_filter": vectors_need_filter,
        "masks": {
            name: {"bits": backend.from_numpy(mask.bits.copy()), "shape": list(mask.shape)}
            for name, mask in binding.packed_masks().items()
        },
        **binding.further_state(),
    }


def check(state: Mapping[str, Any], algorithm: str) -> None:
    """Raises ValueError for a state of another version, or of another algorithm."""
    if state.get("version") != _VERSION:
        raise ValueError(f"state['version'] is {state.get('version')!r}; it must be {_VERSION}")
    if state["algorithm"] != algorithm:
        raise ValueError(f"state['algorithm'] is {state['algorithm']!r}; it must be {algorithm!r}")


def unpacked(state: Mapping[str, Any], backend: Backend[Any]) -> dict[str, Mask]:
    """The masks of a state, by layer name."""
    return {
        name: Mask(backend.to_numpy(packed["bits"]), packed["shape"])
        for name, packed in state["masks"].items()
    }


def fit(
    state: Mapping[str, Any],
    layers: Sequence[Layer],
    key: Callable[[str], str],
    bound: Mapping[str, Sequence[int]],
    *,
    drop: bool,
) -> Mapping[str, Any]:
    """The state under the names of the layers, without other entries.

    Args:
        key: see `Backend.layer_key`.
        bound: layer name -> the shape that the state was saved for, if known.
        drop: whether what fits no layer is dropped, with a warning; otherwise it is a ValueError.
    """
    changed = {la.name for la in layers if tuple(bound.get(la.name, la.shape)) != tuple(la.shape)}
    result, left_out = _fitted(state, layers, key, changed)
    if not left_out:
        return result
    told = ", ".join(left_out[:10]) + (", ..." if len(left_out) > 10 else "")
    if not drop:
        names = [layer.name for layer in layers]
        raise ValueError(
            f"{len(left_out)} entries of the state fit no layer of the model: {told}; "
            f"its layers are {names[:10]}{' and so on' if len(names) > 10 else ''}"
        )
    warn(f"dropped, as no layer has it: {told}")
    return result


def _fitted(
    state: Mapping[str, Any],
    layers: Sequence[Layer],
    key: Callable[[str], str],
    changed: Collection[str],
) -> tuple[dict[str, Any], list[str]]:
    """The state under the names of the layers, without entries that fit none of them.

    Args:
        key: equal for the names that one layer has in a model and in that model within a wrapper.
        changed: layers whose weights are known to have another shape now.

    Returns: the state, and the entries left out, with the reason where it is not the name.
    """
    shapes = {layer.name: list(layer.shape) for layer in layers}
    find = _finder(layers, key)
    result, left_out = dict(state), []
    for section in _SECTIONS:
        if section not in state:
            continue
        kept: dict[str, Any] = {}
        # An entry under the layer's own name takes precedence.
        for name in sorted(state[section], key=lambda name: name not in shapes):
            entry, found = state[section][name], find(name)
            where = f"{section}[{name!r}]"
            if found is None or found in kept:
                left_out.append(where)
            elif section == "masks" and list(entry["shape"]) != shapes[found]:
                was, now = list(entry["shape"]), shapes[found]
                left_out.append(f"{where} (of shape {was}, and the weight has {now})")
            elif found in changed:
                left_out.append(f"{where} (of a weight of another shape)")
            else:
                kept[found] = entry
        result[section] = kept
    return result, left_out


def _finder(layers: Sequence[Layer], key: Callable[[str], str]) -> Callable[[str], Optional[str]]:
    """Any name of a layer -> the name that it is bound under; None for no layer's."""
    names = {alias: layer.name for layer in layers for alias in layer.aliases}
    names.update((layer.name, layer.name) for layer in layers)
    by_key: dict[str, set[str]] = {}
    for any_name, name in names.items():
        by_key.setdefault(key(any_name), set()).add(name)

    def find(name: str) -> Optional[str]:
        if name in names:
            return names[name]
        same = by_key.get(key(name), set())
        return next(iter(same)) if len(same) == 1 else None

    return find
