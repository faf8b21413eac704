"""Files of the server's formats, and the session's results in a model's ONNX file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional, Union

from ..errors import InvalidArgumentError
from .binding import Binding
from .warn import warn


def export(
    binding: Binding[Any],
    directory: Union[str, os.PathLike[str]],
    format: str,
    options: Optional[Mapping[str, Any]],
) -> list[Path]:
    """Writes the model in one of the server's formats; see `Compressor.export`."""
    binding.give_masks()
    session = binding.tracker.session
    if format == "masks":
        return session.export(directory, format=format, options=options)
    tensors, names = binding.backend.exported(binding)
    given = {"names": names, **(options or {})}
    return session.export(directory, tensors, format, options=given)


def put_codes(binding: Binding[Any], path: Path, export: Callable[..., list[Path]]) -> None:
    """Puts the session's codes and encodings into the ONNX file of a quantized model.

    Warns if that is not possible.

    Args:
        path: of the file of the plain model.
        export: `Compressor.export`.
    """
    try:
        from .. import onnx

        if binding.final is not None:
            raise InvalidArgumentError("unwrap() has ended the session")
        with tempfile.TemporaryDirectory() as folder:
            (bundle,) = export(folder, "onnx")
            model = onnx.load(path)
            names, absent = onnx.match(model, bundle, binding.backend.tied_names(binding))
            others = binding.backend.other_weights(binding)
            target = _target(binding)
            onnx.apply(model, bundle, names=names, left_out=absent, others=others, target=target)
            if absent:
                warn(f"onnx_path has no weights {absent[:10]}: no output depends on them")
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of the plain weights
        onnx.save(model, path)
    except (ImportError, InvalidArgumentError) as error:
        warn(f"onnx_path gets the quantized weights as plain numbers: {error}")


def _target(binding: Binding[Any]) -> str:
    """The runtime that the rules name; "any" where they name none, or several."""
    layers = binding.tracker.session.plan.layers.values()
    named = {layer.options.get("target", "any") for layer in layers} - {"any"}
    return str(named.pop()) if len(named) == 1 else "any"
