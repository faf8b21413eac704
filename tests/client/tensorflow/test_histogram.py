"""Keras pruners that send histograms of magnitudes: the masks of those that send the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.tensorflow import AGPPruner, GlobalMagnitudePruner, LAMPPruner, LevelPruner

keras = tf.keras
v1 = tf.compat.v1
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
AGP = [{"final_sparsity": 0.8, "end_epoch": 5, "op_types": ["default"]}]
GLOBAL = [{"schedule": "linear", "min_sparsity": 0.2, **AGP[0]}]
SHAPES = {"first": (6, 50), "second": (50, 4)}


def numbers(shape: tuple[int, ...], seed: int) -> Any:
    """A weight with ties, and zeros of both signs."""
    random = np.random.default_rng(seed)
    array = random.normal(size=shape).astype(np.float32)
    array[: len(array) // 2] = random.choice([-0.5, -0.0, 0.0, 0.5], (len(array) // 2, shape[1]))
    return array


def assign(model: Any, seed: int) -> None:
    for i, (name, shape) in enumerate(SHAPES.items()):
        model.get_layer(name).kernel.assign(numbers(shape, 2 * seed + i))


def make_model(dtype: str = "float32") -> Any:
    layers = [keras.layers.Dense(s[1], name=name, dtype=dtype) for name, s in SHAPES.items()]
    model = keras.Sequential([keras.layers.Input((6,), dtype=dtype), *layers], name="model")
    assign(model, 0)
    return model


def both(make: Any, rules: Any, client: nc.Client) -> tuple[Any, Any]:
    one, other = (make(rules, client=client, transfer=t) for t in ("histogram", "weights"))
    return one, other


def assert_same(one: Any, other: Any) -> None:
    assert one.masks.keys() == other.masks.keys() == set(SHAPES)
    for name, mask in one.masks.items():
        np.testing.assert_array_equal(mask, other.masks[name])


def train(pruners: Any, epochs: range) -> None:
    for epoch in epochs:
        for pruner in pruners:
            assign(pruner.bound_model, epoch)
            pruner.update_epoch(epoch)
            pruner.step()


@pytest.mark.parametrize(
    ("make", "rules"), [(LevelPruner, LEVEL), (AGPPruner, AGP), (GlobalMagnitudePruner, GLOBAL)]
)
def test_training_is_that_of_weights(client: nc.Client, make: Any, rules: Any) -> None:
    one, other = both(make, rules, client)
    models = [one(make_model()), other(make_model())]
    inputs = numbers((3, 6), 9)
    for epoch in range(7):
        train((one, other), range(epoch, epoch + 1))
        assert_same(one, other)
        np.testing.assert_array_equal(models[0](inputs).numpy(), models[1](inputs).numpy())
    assert one.metrics()["sparsity"] == other.metrics()["sparsity"] > 0.4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_of_every_type(client: nc.Client, dtype: str) -> None:
    one, other = both(LevelPruner, LEVEL, client)
    one(make_model(dtype))
    other(make_model(dtype))
    assert_same(one, other)
    assert one.stats.calls == {"float32": 2, "float64": 4}.get(dtype, 1)


def test_little_is_sent(client: nc.Client) -> None:
    layer = keras.layers.Dense(1000, name="fc")
    pruner = LevelPruner(LEVEL, client=client, transfer="histogram")
    pruner(keras.Sequential([keras.layers.Input((1000,)), layer]))
    assert pruner.masks["fc"].mean() == 0.5
    assert pruner.stats.bytes_sent < 4_000_000 / 30


def test_weights_are_the_default(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(make_model())
    assert pruner.stats.calls == 1


def test_an_export_and_a_checkpoint_are_those_of_weights(client: nc.Client, tmp_path: Path) -> None:
    one, other = both(AGPPruner, AGP, client)
    one(make_model())
    other(make_model())
    train((one, other), range(3))
    state = copy.deepcopy(one.state_dict())
    for format in ("masks", "safetensors"):
        exported = [p.export(tmp_path / str(i), format) for i, p in enumerate((one, other))]
        for first, second in zip(*exported):
            assert first.read_bytes() == second.read_bytes()
    resumed = AGPPruner(AGP, client=client, transfer="histogram")
    resumed.load_state_dict(state)
    model = make_model()
    assign(model, 2)
    resumed(model)
    train((one, other, resumed), range(3, 6))
    assert_same(one, other)
    assert_same(resumed, other)
    for pruner in (one, other):
        pruner.unwrap()
    for first, second in zip(one.bound_model.get_weights(), other.bound_model.get_weights()):
        np.testing.assert_array_equal(first, second)


def test_another_rank_gets_the_same_masks(client: nc.Client) -> None:
    first = AGPPruner(AGP, client=client, transfer="histogram")
    first(make_model())
    second = AGPPruner(AGP, client=client, transfer="histogram", session=first.session.id)
    second(make_model())
    for epoch in range(5):
        train((first, second), range(epoch, epoch + 1))
        assert_same(first, second)
    assert first.metrics()["sparsity"] > 0.7


def test_a_bad_weight_is_named(client: nc.Client) -> None:
    pruner = AGPPruner(AGP, client=client, transfer="histogram")
    model = pruner(make_model())
    kernel = model.get_layer("second").kernel
    bad = kernel.numpy()
    bad[1, 2] = np.nan
    kernel.assign(bad)
    with pytest.raises(nc.InvalidArgumentError, match='layer "second": element 6 is nan'):
        pruner.update_epoch(2)


def test_algorithms_and_graphs_that_take_none_refuse_it(client: nc.Client) -> None:
    with pytest.raises(nc.InvalidArgumentError, match="level, agp, global_magnitude"):
        LAMPPruner(LEVEL, client=client, transfer="histogram")(make_model())
    graph = tf.Graph()
    with graph.as_default():
        variable = v1.get_variable("w", (6, 5))
        tf.matmul(v1.placeholder(tf.float32, [None, 6]), variable, name="fc")
    with pytest.raises(nc.InvalidArgumentError, match="graphs of TensorFlow 1 are not counted"):
        LevelPruner(LEVEL, client=client, transfer="histogram")(graph)
    with pytest.raises(ValueError, match='it must be "weights" or "histogram"'):
        LevelPruner(LEVEL, client=client, transfer="ranges")
