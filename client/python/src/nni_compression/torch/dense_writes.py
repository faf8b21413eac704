"""A warning when a library writes the dense weights of a compressed model.

Checkpoints need them, and a folder for deployment should not have them; only the caller can tell.
"""

from __future__ import annotations

import logging
import sys
import weakref
from types import FrameType
from typing import Any, Callable, Optional

from torch import nn

from .passing import is_compressed

_log = logging.getLogger("nni_compression")

_LIBRARIES = ("transformers", "diffusers", "huggingface_hub", "sentence_transformers")
_WRITERS = ("save_pretrained", "_save_pretrained", "_save", "save_model")
_OWN = __name__.partition(".")[0]

_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_of_dense_weights(module: nn.Module, *unused: Any) -> None:
    """A hook of `state_dict`. A function of a module, as models are copied and pickled with it."""
    if module in _warned or not _is_saving():
        return
    if any(map(is_compressed, module.modules())):
        _warned.add(module)
        _log.warning(
            "the dense weights of the compressed %s are written, as checkpoints need them; "
            "save_pretrained(folder) of its pruner or quantizer writes the compressed ones",
            type(module).__name__,
        )


def _is_saving() -> bool:
    """Whether a library is writing the whole model."""
    frame: Optional[FrameType] = sys._getframe(2)
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package in (_OWN, "peft"):  # the latter writes adapters
            return False
        if package in _LIBRARIES and frame.f_code.co_name in _WRITERS:
            return True
        frame = frame.f_back
    return False


def watch(model: nn.Module) -> Callable[[], None]:
    """Adds the hook, once; returns what removes it."""
    if any(hook is warn_of_dense_weights for hook in model._state_dict_hooks.values()):
        return lambda: None
    register: Any = model._register_state_dict_hook
    remove: Callable[[], None] = register(warn_of_dense_weights).remove
    return remove


def unwatch(model: nn.Module) -> None:
    """Removes the hook, once the model is no longer compressed."""
    hooks = model._state_dict_hooks
    if not any(map(is_compressed, model.modules())):
        for key in [key for key, hook in hooks.items() if hook is warn_of_dense_weights]:
            del hooks[key]
