"""Modules under the names of the first version."""

from __future__ import annotations

import importlib
import sys

import pytest

import nni_compression as nc

NAMES = [
    "adapter",
    "binding",
    "compressor",
    "custom",
    "masks",
    "plan",
    "quantization",
    "reports",
    "statistics",
    "tensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_old_names_work_and_say_the_new_one(name: str) -> None:
    full = f"nni_compression.{name}"
    sys.modules.pop(full, None)
    with pytest.warns(DeprecationWarning, match=f"{full} is ") as warned:
        module = importlib.import_module(full)
    assert module.__name__ in str(warned[0].message)
    assert module is sys.modules[module.__name__]
    assert "_" not in module.__name__.split(".")[1]


def test_what_is_imported_by_an_old_name_is_what_the_new_one_has() -> None:
    sys.modules.pop("nni_compression.plan", None)
    with pytest.warns(DeprecationWarning, match=r"nni_compression\.values\.plan now") as warned:
        from nni_compression.plan import Layer
    assert Layer is nc.Layer
    assert warned[0].filename == __file__


def test_attributes_of_the_package_too() -> None:
    vars(nc).pop("masks", None)
    with pytest.warns(DeprecationWarning, match=r"nni_compression\.values\.masks now") as warned:
        assert nc.masks.Mask is nc.Mask
    assert warned[0].filename == __file__
    with pytest.raises(AttributeError, match="'nni_compression' has no attribute 'mask'"):
        nc.mask  # noqa: B018
    assert not hasattr(nc, "_frames")
