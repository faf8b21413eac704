"""What the public classes of every framework have to be."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

from nni_compression.adapters import compressor, pruner, quantizer
from nni_compression.adapters.algorithms import ALGORITHMS


def check_algorithms(package: Any) -> None:
    """Each line of the table is a class: imported, pickled, subclassed, read about."""
    for algorithm in ALGORITHMS:
        made = getattr(package, algorithm.class_name)
        assert made.algorithm == algorithm.name
        assert issubclass(made, getattr(package, algorithm.kind))
        assert issubclass(made, package.Compressor)
        assert made.__name__ == algorithm.class_name
        assert made.__module__.startswith(package.__name__ + ".")
        assert pickle.loads(pickle.dumps(made)) is made
        assert inspect.getdoc(made) == inspect.cleandoc(algorithm.doc)
        assert "config_list" in algorithm.doc
        arguments = inspect.signature(made).parameters
        assert list(arguments)[:3] == ["model", "config_list", "optimizer"]
        assert "transfer" in arguments
        assert type("Mine", (made,), {}).algorithm == algorithm.name
        assert algorithm.class_name in package.__all__
        if algorithm.nni_name is not None:
            assert getattr(package, algorithm.nni_name) is made
            assert algorithm.nni_name in package.__all__


def check_bases(package: Any) -> None:
    """A framework's base and those of all frameworks override nothing of each other."""
    framework = [cls for cls in package.Compressor.__mro__ if cls.__module__ != compressor.__name__]
    mine = {name for cls in framework for name in vars(cls)} - set(vars(object))
    for shared in (pruner.Pruner, quantizer.Quantizer):
        common = {name for name in mine & set(vars(shared)) if not name.startswith("__")}
        assert common == set()


def methods_with(package: Any, argument: str) -> set[str]:
    """The public methods that have an argument of this name."""
    return {
        f"{cls.__name__}.{name}"
        for cls in (package.Compressor, package.Pruner, package.Quantizer)
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and argument in inspect.signature(method).parameters
    }
