"""What a `state_dict` says of layers, and the layers of the model that it is loaded into."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable, Optional

from ..values.plan import Layer

_SECTIONS = ("masks", "memory", "activations", "seen")  # each: layer name -> what is known of it


def fitted(
    state: Mapping[str, Any],
    layers: Sequence[Layer],
    key: Callable[[str], str],
    changed: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The state under the names that the layers have, without what fits none of them.

    Args:
        key: equal for the names that one layer has in a model and in that model within a wrapper.
        changed: layers whose weights are known to have another shape now.

    Returns: the state, and what was left out, each entry with the reason where it is not the name.
    """
    shapes = {layer.name: list(layer.shape) for layer in layers}
    find = _finder(layers, key)
    result, left_out = dict(state), []
    for section in _SECTIONS:
        if section not in state:
            continue
        kept: dict[str, Any] = {}
        # Those that have the layer's own name are the layer's, whatever else could be meant.
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
