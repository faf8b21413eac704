"""The public classes."""

from __future__ import annotations

import pytest

import classes
import nni_compression.torch as adapter


def test_each_algorithm_of_the_table_is_a_class() -> None:
    classes.check_algorithms(adapter)


def test_the_order_of_bases_does_not_matter() -> None:
    classes.check_bases(adapter)


def test_a_module_that_has_moved_keeps_its_name_for_a_release() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"torch\.binding is .*torch\.weights now"
    ) as warned:
        from nni_compression.torch.binding import layers
    assert layers is adapter.layers
    assert warned[0].filename == __file__
