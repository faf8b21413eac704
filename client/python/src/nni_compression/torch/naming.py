"""Names of modules and parameters in the plain model, without wrappers.

`torch.compile`, DataParallel and DistributedDataParallel put a model into a module of their own,
which is a part of all its names: "module.fc1", "_orig_mod.fc1". Checkpoints and exports outlive
such wrappers, so layers have the names of the plain model.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, Callable, Optional

from torch import nn

_PARTS = ("_orig_mod", "module")


def wrapped_part(module: nn.Module) -> Optional[str]:
    """The attribute of a wrapper that has the model; None for any other module."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    # Only a program that has imported this can have such a wrapper; the import is slow.
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return "_orig_mod" if compiled is not None and isinstance(module, compiled) else None


def without_wrappers(model: nn.Module) -> nn.Module:
    """The model without outer wrappers; nested ones stay."""
    part = wrapped_part(model)
    while part is not None:
        inner = model._modules[part]
        assert inner is not None
        model = inner
        part = wrapped_part(model)
    return model


def remove_wrappers(model: nn.Module) -> nn.Module:
    """The same with all wrappers removed, in place."""
    model = without_wrappers(model)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = without_wrappers(child)
    return model


def both_names(model: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """(name in `named_modules()`, name in the plain model, module), without wrappers.

    Modules that occur several times have several names.
    """
    plain: dict[str, str] = {}
    parts: dict[str, str] = {}
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        parent, _, last = name.rpartition(".")
        if not name:
            plain[name] = ""
        elif parts.get(parent) == last:
            plain[name] = plain[parent]
        else:
            plain[name] = f"{plain[parent]}.{last}".lstrip(".")
        part = wrapped_part(module)
        if part is None:
            found.append((name, plain[name], module))
        else:
            parts[name] = part
    return found


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules under the names of the plain model."""
    return [(plain, module) for _, plain, module in both_names(model)]


def names_by_module(named: Iterable[tuple[str, nn.Module]]) -> dict[int, list[str]]:
    """id of a module -> all its names."""
    names: dict[int, list[str]] = {}
    for name, module in named:
        names.setdefault(id(module), []).append(name)
    return names


def plain_key(model: nn.Module) -> Callable[[str], str]:
    """A key of the model's `state_dict()` -> that of the plain model's."""
    modules = model.named_modules(remove_duplicate=False)
    prefixes = [
        (f"{name}." if name else "", f"{part}.")
        for name, module in modules
        for part in [wrapped_part(module)]
        if part is not None
    ]
    prefixes.sort(key=lambda prefix: len(prefix[0]), reverse=True)  # the innermost first

    def plain(key: str) -> str:
        for outer, part in prefixes:
            if key.startswith(outer + part):
                key = outer + key[len(outer + part) :]
        return key

    return plain


class BoundNames:
    """The names of a model's modules when it was bound, before adapters are put around them."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, tuple[weakref.ref[nn.Module], list[str]]] = {}
        for name, module in named_modules(model):
            self._names.setdefault(id(module), (weakref.ref(module), []))[1].append(name)

    def renamed(self, model: nn.Module, keys: Collection[str]) -> dict[str, str]:
        """Keys of the plain model's `state_dict()` -> keys with the modules' names when bound.

        Modules that were added since keep their names; so do those whose keys would be duplicate
        otherwise.
        """
        now: dict[str, nn.Module] = dict(named_modules(model))
        moved = self._moved(now)
        owners = {key: _owner(key, now) for key in keys}
        while True:
            found = {
                key: f"{moved[owner]}{key[len(owner) :]}" if owner in moved else key
                for key, owner in owners.items()
            }
            times = Counter(found.values())
            clashing = {owners[key] for key, name in found.items() if times[name] > 1}
            if clashing.isdisjoint(moved):
                return found
            for owner in clashing:
                moved.pop(owner, None)

    def _moved(self, now: dict[str, nn.Module]) -> dict[str, str]:
        """Present name of a module -> its former name, if that has changed."""
        names_now = names_by_module(now.items())
        moved: dict[str, str] = {}
        for number, (reference, before) in self._names.items():
            present = names_now.get(number, []) if reference() is not None else []
            new = [name for name in present if name not in before]
            moved.update(zip(new, (name for name in before if name not in present)))
        return moved


def _owner(key: str, modules: Collection[str]) -> str:
    """The name of the innermost module that a key of a `state_dict()` belongs to."""
    owner = key.rpartition(".")[0]
    while owner not in modules:
        owner = owner.rpartition(".")[0]
    return owner


def key_of(module: str, part: str) -> str:
    """The key of a part of a module in a `state_dict()`."""
    return f"{module}.{part}" if module else part


def layer_key(name: str) -> str:
    """Equal for the names that a layer has in a model and in wrappers of that model.

    >>> layer_key("module._orig_mod.fc1") == layer_key("fc1")
    True
    """
    return ".".join(part for part in name.split(".") if part and part not in _PARTS)


def module_at(model: nn.Module, name: str) -> Optional[nn.Module]:
    """The module that has this name in the plain model; None: there is none."""
    module: Any = without_wrappers(model)
    for part in name.split(".") if name else ():
        module = module._modules.get(part)
        if module is None:
            return None
        module = without_wrappers(module)
    return module  # type: ignore[no-any-return]
