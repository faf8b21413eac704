"""Folders with compressed weights that `from_pretrained` loads."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from .._files import atomic
from ..errors import AlreadyExistsError, InvalidArgumentError
from . import modules

_CONFIG = "config.json"
# What from_pretrained looks for: an old file may be loaded in place of a new one.
_WEIGHTS = re.compile(
    r"(model\.safetensors|pytorch_model\.bin)(\.index\.json)?"
    r"|model-[0-9]{5}-of-[0-9]{5}\.safetensors|pytorch_model-[0-9]{5}-of-[0-9]{5}\.bin"
)


def check(
    model: Any, format: str, options: Optional[Mapping[str, Any]], computed: Sequence[str]
) -> None:
    """Raises an error for arguments of `Compressor.save_pretrained` that do not go together.

    Args:
        model: without wrappers.
        computed: the compressed layers whose weight is computed from other parameters.
    """
    kind = type(model).__name__
    if format not in ("safetensors", "compressed-tensors"):
        raise InvalidArgumentError(
            f'format is {format!r}; it must be "safetensors" or "compressed-tensors"'
        )
    if options and format == "safetensors":
        raise InvalidArgumentError(f"format safetensors has no options, and {options} are given")
    if getattr(model, "peft_config", None):
        raise InvalidArgumentError(
            f"the {kind} has an adapter, which its own save_pretrained would write alone: merge it "
            "after unwrap(), or use export()"
        )
    parts = (model, getattr(model, "config", None))
    if not all(callable(getattr(part, "save_pretrained", None)) for part in parts):
        raise TypeError(
            f"a {kind} has no save_pretrained and config, as models of transformers; use export()"
        )
    if computed and format != "safetensors":
        raise InvalidArgumentError(
            f"format {format} has no place for what the weights of {', '.join(computed[:5])} are "
            "computed from (weight_norm, a parametrization); exclude them, or use safetensors"
        )


def save(
    model: Any,
    folder: Path,
    *,
    state: Optional[Mapping[str, Any]],
    export: Callable[[Path, Mapping[str, Any]], Any],
    tokenizer: Any,
    max_shard_bytes: Optional[int],
    overwrite: bool,
    options: Optional[Mapping[str, Any]],
) -> list[Path]:
    """See `Compressor.save_pretrained`.

    Args:
        model: without wrappers.
        state: the state_dict with compressed weights, for the format "safetensors".
        export: otherwise writes files of the server's format, with options, into a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.NewFiles.written() as files:
        part = files.temporary(folder / _CONFIG).parent
        if state is not None:
            size = {} if max_shard_bytes is None else {"max_shard_size": max_shard_bytes}
            model.save_pretrained(part, state_dict=state, **size)
        else:
            size = {} if max_shard_bytes is None else {"max_shard_bytes": max_shard_bytes}
            export(part, {**size, **(options or {})})
            _add_config(model, part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        names = {str(file.relative_to(part)) for file in atomic.files_in(part)}
        present = {name for name in names if os.path.lexists(folder / name)}
        old = {file.name for file in folder.iterdir() if _WEIGHTS.fullmatch(file.name)}
        in_the_way = sorted(present | old)
        if in_the_way and not overwrite:
            raise AlreadyExistsError(
                f"{folder} has {', '.join(in_the_way[:5])}; choose another folder, or set "
                "overwrite=True"
            )
    for name in old - names:
        (folder / name).unlink()
    return [folder / name for name in sorted(names)]


def _add_config(model: Any, part: Path) -> None:
    """Merges the exported quantization into the model's own configuration."""
    exported = json.loads((part / _CONFIG).read_text())
    (part / _CONFIG).unlink()
    config = copy.deepcopy(model.config)
    config.architectures = [modules.plain_class(model).__name__]
    config.dtype = str(model.dtype).rpartition(".")[2]
    config.save_pretrained(part)
    merged = {**json.loads((part / _CONFIG).read_text()), **exported}
    (part / _CONFIG).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")
    if model.can_generate():
        model.generation_config.save_pretrained(part)
