"""Prunes and quantizes a small network in a graph of TensorFlow 1, on scikit-learn's digits.

    python3 digits_graph.py --server 127.0.0.1:50051

The network, the data, the settings and the table are those of digits_keras.py. The trained weights
are written to a checkpoint, which a plain graph then loads.
"""

import os
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no log line about oneDNN

import numpy as np
import tensorflow as tf
from digits_keras import SEED, Report, compressors, load_images, read_arguments

import nni_compression as nc

v1 = tf.compat.v1
BATCH = 64


class Network:
    """Reads an 8x8 image: [N, 8, 8, 1] -> [N, 10]; in a graph of its own."""

    def __init__(self, compressor: Any = None) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            v1.set_random_seed(SEED)
            self.images = v1.placeholder(tf.float32, [None, 8, 8, 1])
            self.labels = v1.placeholder(tf.int64, [None])
            x = self.images
            for name, shape in (("conv1", [3, 3, 1, 32]), ("conv2", [3, 3, 32, 64])):
                x = tf.nn.conv2d(x, _weight(name, shape), 1, "SAME", name=name)
                x = tf.nn.relu(x + _bias(name, shape[-1]))
            x = tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), [-1, 1024])
            x = tf.matmul(x, _weight("fc1", [1024, 128]), name="fc1")
            x = tf.nn.relu(x + _bias("fc1", 128))
            x = tf.matmul(x, _weight("fc2", [128, 10]), name="fc2") + _bias("fc2", 10)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self.labels, x)
            self.accuracy = tf.reduce_mean(
                tf.cast(tf.equal(tf.argmax(x, 1), self.labels), tf.float32)
            )
            if compressor is not None:
                compressor(v1.get_default_graph())
            variables = v1.trainable_variables()
            self.train = v1.train.AdamOptimizer(1e-3).minimize(tf.reduce_mean(losses))
            self.weights = variables
            self.initialize = v1.global_variables_initializer()
            self.saver = v1.train.Saver(variables)

    def epoch(self, sess: Any, x: Any, y: Any, compressor: Any = None) -> None:
        """Takes a step for each minibatch, in an order of its own."""
        order = np.random.permutation(len(x))
        for first in range(0, len(x), BATCH):
            batch = order[first : first + BATCH]
            sess.run(self.train, {self.images: x[batch], self.labels: y[batch]})
            if compressor is not None:
                compressor.step(sess)

    def score(self, sess: Any, x: Any, y: Any) -> float:
        """Percentage of images that are read correctly."""
        return 100 * float(sess.run(self.accuracy, {self.images: x, self.labels: y}))


def _weight(name: str, shape: list[int]) -> Any:
    return v1.get_variable(f"{name}_weight", shape)


def _bias(name: str, size: int) -> Any:
    return v1.get_variable(f"{name}_bias", [size], initializer=v1.zeros_initializer())


def main() -> int:
    arguments = read_arguments(__doc__ or "")
    np.random.seed(SEED)
    x, x_test, y, y_test = load_images()
    with nc.Client(arguments.server) as client, tempfile.TemporaryDirectory() as folder:
        start, end = f"{folder}/start", f"{folder}/end"
        baseline = Network()
        with v1.Session(graph=baseline.graph) as sess:
            sess.run(baseline.initialize)
            for _ in range(10):
                baseline.epoch(sess, x, y)
            report = Report(baseline.score(sess, x_test, y_test))
            baseline.saver.save(sess, start)
        print(f"TensorFlow {tf.__version__}, graph; baseline: {report.before:.1f} %")
        for compressor in compressors(client, arguments.epochs):
            network = Network(compressor)
            with v1.Session(graph=network.graph) as sess:
                sess.run(network.initialize)
                network.saver.restore(sess, start)
                begin = time.perf_counter()
                for epoch in range(arguments.epochs):
                    compressor.update_epoch(epoch, sess)
                    network.epoch(sess, x, y, compressor)
                seconds = time.perf_counter() - begin
                after = network.score(sess, x_test, y_test)
                compressor.export_model(end, sess=sess)
            compressor.close()
            plain = Network()
            with v1.Session(graph=plain.graph) as sess:
                plain.saver.restore(sess, end)
                restored = plain.score(sess, x_test, y_test)
                report.add(compressor, after, restored, sess.run(plain.weights), seconds)
    return report.end()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except nc.UnavailableError as error:
        sys.exit(f"no compression server: {error}")
