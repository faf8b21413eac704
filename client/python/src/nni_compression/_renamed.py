"""Modules under their names of earlier versions, deprecated, for one release."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Callable, Optional

_PACKAGE = __name__.rpartition(".")[0]
_NOW = {
    "adapter": "adapters.tracker",
    "adapters.checkpoints": "adapters.checkpoint",
    "binding": "adapters.binding",
    "compressor": "adapters.compressor",
    "custom": "adapters.custom",
    "masks": "values.masks",
    "plan": "values.plan",
    "quantization": "values.quantization",
    "reports": "values.reports",
    "statistics": "values.statistics",
    "tensors": "values.tensors",
    "tensorflow.activations": "keras.activations",
    "tensorflow.graph": "tf1.graph",
    "tensorflow.keras": "keras.weights",
    "tensorflow.kernels": "keras.kernels",
    "tensorflow.onnx": "keras.onnx",
    "tensorflow.rounding": "_tensorflow.rounding",
    "torch.binding": "torch.weights",
}


def renamed(name: str, stacklevel: int = 2) -> ModuleType:
    """The module that once was `nni_compression.NAME`. Raises AttributeError if none was."""
    if name not in _NOW:
        module, _, attribute = f"{_PACKAGE}.{name}".rpartition(".")
        raise AttributeError(f"module {module!r} has no attribute {attribute!r}")
    now = f"{_PACKAGE}.{_NOW[name]}"
    message = f"{_PACKAGE}.{name} is {now} now; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
    return importlib.import_module(now)


def attributes_of(folder: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of `nni_compression.FOLDER`."""

    def get(name: str) -> ModuleType:
        return renamed(f"{folder}.{name}", 3)

    return get


class _Finder(MetaPathFinder, Loader):
    """For `import nni_compression.NAME` and `from nni_compression.NAME import ...`."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        inside = fullname.startswith(f"{_PACKAGE}.") and fullname[len(_PACKAGE) + 1 :] in _NOW
        return ModuleSpec(fullname, self) if inside else None

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The module itself, so that its classes and variables are the same under both names.
        sys.modules[module.__name__] = renamed(module.__name__[len(_PACKAGE) + 1 :], 3)


sys.meta_path.append(_Finder())
