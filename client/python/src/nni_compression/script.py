"""Algorithms in TorchScript: written in Python, saved as a file, run by the server.

Needs PyTorch, and no server. See docs/scripts.md.
"""

# TorchScript cannot read annotations that are strings, so there is no `from __future__ import
# annotations` here, nor may there be one in a script.
import json
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

import torch

_DETAILS = "nni_compression.json"


class Layer(NamedTuple):
    """The layer argument of a script's methods."""

    name: str
    op_type: str


class Statistic(NamedTuple):
    """What trainers have sent of a statistic: a field of a script's own Layer, by its name."""

    values: torch.Tensor
    count: int  # type: ignore[assignment]  # hides that of tuples
    exponent: int


def save(
    module: torch.nn.Module,
    path: str,
    *,
    options: Optional[Mapping[str, Mapping[str, Any]]] = None,
    example: Optional[Mapping[str, Any]] = None,
    summary: str = "",
    reference: str = "",
    renewed: str = "never",
    signed: bool = False,
    per_channel: bool = False,
) -> None:
    """Compiles a module with `calc_mask`, `calc_masks` or `quantize_weight` and writes it.

    Args:
        path: NAME.pt; the algorithm is called NAME.
        options: more about the fields of the module's `Options`, by name: "minimum", "maximum",
            "choices", "description". Their defaults are those of the NamedTuple.
        example: a rule that works, without op_types; needed when an option has no default.
        summary: one sentence; by default the first line of the module's docstring.
        reference: the paper.
        renewed: when a pruner is called again: "never", "epoch" or "step".
        signed: a quantizer's codes are around 0.
        per_channel: a quantizer's scale and zero point have an element for each channel.
    """
    known = {name: dict(details) for name, details in (options or {}).items()}
    for name, default in _defaults(module).items():
        known.setdefault(name, {}).setdefault("default", default)
    details: dict[str, Any] = {
        "summary": summary or (type(module).__doc__ or "").strip().split("\n")[0],
        "reference": reference,
        "options": known,
        "example": dict(example or {}),
    }
    if hasattr(module, "calc_mask") or hasattr(module, "calc_masks"):
        details["renewed"] = renewed
    else:
        details |= {"signed": signed, "per_channel": per_channel}
    files: dict[str, Union[str, bytes]] = {_DETAILS: json.dumps(details)}
    compiled = torch.jit.script(module)  # type: ignore[attr-defined]
    torch.jit.save(compiled, path, _extra_files=files)  # type: ignore[attr-defined]


def _defaults(module: torch.nn.Module) -> dict[str, Any]:
    """The defaults of the NamedTuple that the method's argument `options` has as its type."""
    names = ("calc_mask", "calc_masks", "quantize_weight")
    method = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if method is None:
        raise TypeError(f"{type(module).__name__} has none of the methods {', '.join(names)}")
    kind = typing.get_type_hints(method).get("options")
    return dict(getattr(kind, "_field_defaults", {}))
