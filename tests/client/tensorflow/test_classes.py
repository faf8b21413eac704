"""The public classes of Keras, of graphs, and those that cover both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import classes
import nni_compression as nc
import nni_compression.keras as keras
import nni_compression.tensorflow as both
import nni_compression.tf1 as tf1

PACKAGES = [keras, tf1, both]
LEVEL = [{"sparsity": 0.5}]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_algorithm_of_the_table_is_a_class(package: Any) -> None:
    classes.check_algorithms(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_order_of_bases_does_not_matter(package: Any) -> None:
    classes.check_bases(package)


def test_only_graphs_have_sessions() -> None:
    assert classes.methods_with(keras, "sess") == set()
    assert {"Pruner.update_epoch", "Quantizer.export_model"} <= classes.methods_with(tf1, "sess")
    assert classes.methods_with(both, "sess") == classes.methods_with(tf1, "sess")


def test_a_model_of_the_other_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"it must be a built Keras model of TensorFlow's Keras"):
        keras.LevelPruner(tf.Graph(), LEVEL)
    with pytest.raises(TypeError, match=r"it must be a tf\.Graph$"):
        tf1.LevelPruner(tf.keras.layers.Dense(2), LEVEL)


def test_a_keras_model_and_a_graph_are_pruned_by_classes_of_their_own(client: nc.Client) -> None:
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(6, name="fc")])
    pruner = keras.LevelPruner(LEVEL, client=client)
    assert pruner(model) is model
    plain = pruner.unwrap()
    assert np.count_nonzero(plain.get_layer("fc").get_weights()[0]) == 12
    assert [layer.name for layer in keras.layers(model)] == ["fc"]

    with tf.Graph().as_default() as graph:
        weight = tf.compat.v1.get_variable("weight", [4, 6])
        tf.matmul(tf.ones([1, 4]), weight, name="fc")
        graph_pruner = tf1.LevelPruner(LEVEL, client=client)
        assert graph_pruner(graph) is graph
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            graph_pruner.unwrap(session)
            assert np.count_nonzero(session.run(weight)) == 12
        assert [layer.name for layer in tf1.layers(graph)] == ["fc"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tensorflow.graph", "tf1.graph"),
        ("tensorflow.keras", "keras.weights"),
        ("tensorflow.kernels", "keras.kernels"),
        ("tensorflow.activations", "keras.activations"),
    ],
)
def test_modules_that_have_moved_keep_their_names_for_a_release(old: str, new: str) -> None:
    package, _, name = old.rpartition(".")
    vars(getattr(nc, package)).pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"nni_compression.{old} is .*{new} now") as warned:
        module = getattr(getattr(nc, package), name)
    assert module.__name__ == f"nni_compression.{new}"
    assert warned[0].filename == __file__


def test_layers_are_decided_about_together(client: nc.Client) -> None:
    """In Keras and in a graph: one threshold for weights of two scales."""
    random = np.random.default_rng(0)
    first = random.normal(size=(4, 6)).astype(np.float32)
    second = 3 * random.normal(size=(6, 2)).astype(np.float32)
    threshold = np.sort(np.abs(np.concatenate([first.ravel(), second.ravel()])))[18]
    expected = [np.abs(first) >= threshold, np.abs(second) >= threshold]

    dense = [tf.keras.layers.Dense(6, name="a"), tf.keras.layers.Dense(2, name="b")]
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), *dense])
    for layer, weight in zip(dense, (first, second)):
        layer.set_weights([weight, layer.get_weights()[1]])
    pruner = keras.GlobalMagnitudePruner(LEVEL, client=client)
    pruner(model)
    assert all(np.array_equal(pruner.masks[n], kept) for n, kept in zip("ab", expected))
    pruner.unwrap()
    assert [np.count_nonzero(layer.get_weights()[0]) for layer in dense] == [
        kept.sum() for kept in expected
    ]

    with tf.Graph().as_default() as graph:
        hidden = tf.matmul(tf.ones([1, 4]), tf.compat.v1.get_variable("w1", initializer=first))
        tf.matmul(hidden, tf.compat.v1.get_variable("w2", initializer=second))
        graph_pruner = tf1.GlobalMagnitudePruner(LEVEL, client=client)
        graph_pruner(graph)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            graph_pruner.refresh(session)
            found = list(graph_pruner.masks.values())
    assert all(np.array_equal(mask, kept) for mask, kept in zip(found, expected))


MOVEMENT = [{"final_sparsity": 0.5, "end_epoch": 2}]
WHY = "the weight_gradient of layer 'fc', which this adapter does not collect"


def test_statistics_are_refused_by_the_layer(client: nc.Client) -> None:
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(6, name="fc")])
    pruner = both.MovementPruner(MOVEMENT, client=client, labels={"job": "movement"})
    with pytest.raises(nc.InvalidArgumentError, match=WHY):
        pruner(model)
    assert not pruner.is_bound
    graph = tf.Graph()
    with graph.as_default():
        weight = tf.compat.v1.get_variable("fc/kernel", (4, 6))
        tf.matmul(tf.compat.v1.placeholder(tf.float32, (None, 4)), weight, name="fc/MatMul")
    with pytest.raises(nc.InvalidArgumentError, match=r"the weight_gradient of layer .*collect"):
        both.MovementPruner(MOVEMENT, client=client, labels={"job": "movement"})(graph)
    assert client.sessions({"job": "movement"}) == []
