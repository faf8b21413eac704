"""The columns of TensorFlow in docs/frameworks.md."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

import frameworks
import nni_compression as nc
import nni_compression.tensorflow as adapter

v1 = tf.compat.v1


def test_the_column_of_keras_runs(client: nc.Client) -> None:
    def build() -> Any:
        keras = tf.keras
        return keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(6, name="fc")])

    names = {**vars(adapter), "client": client, "build": build, "model": build()}
    names["data"] = tf.ones([2, 8])
    frameworks.run_column("Keras", names)


def test_the_column_of_graphs_runs(client: nc.Client) -> None:
    names = {**vars(adapter), "client": client}

    def new_session() -> Any:
        with names["graph"].as_default():
            session = v1.Session()
            session.run(v1.global_variables_initializer())
        return session

    def build() -> Any:
        with tf.Graph().as_default() as graph:
            tf.matmul(tf.ones([2, 8]), v1.get_variable("w", [8, 6]), name="fc")
        return graph, None

    names.update(build=build, new_session=new_session, graph=build()[0])
    frameworks.run_column("TensorFlow graph", names)
