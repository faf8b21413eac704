"""Prunes and quantizes a small Keras network that is really trained, on scikit-learn's digits.

    python3 digits_keras.py --server 127.0.0.1:50051

Needs TensorFlow, scikit-learn and a running compression server. A convolutional network learns to
read 1,797 images of handwritten digits; then it is fine-tuned from the same weights, once pruned
with AGP to 80 % and once quantized to 8 bits with QAT. A table shows the results. The exit status
is 0 only if both lose at most 2 points of accuracy.
"""

import argparse
import os
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no log line about oneDNN

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import nni_compression as nc
from nni_compression.tensorflow import AGPPruner, Pruner, QATQuantizer

SEED = 7
SPARSITY = 0.8
LARGEST_LOSS = 2.0  # points of accuracy
keras = tf.keras


def build() -> Any:
    """Reads an 8x8 image: [N, 8, 8, 1] -> [N, 10]."""
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv1"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu", name="fc1"),
            keras.layers.Dense(10, name="fc2"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def accuracy(model: Any, data: tuple[Any, Any]) -> float:
    """Percentage of images that are read correctly."""
    return 100 * float(model.evaluate(*data, verbose=0)[1])


def read_arguments(description: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("--server", help="HOST:PORT; default $NNI_COMPRESSION_SERVER")
    parser.add_argument("--epochs", type=int, default=10, help="of each compressed training")
    arguments = parser.parse_args()
    if arguments.epochs < 5:
        parser.error(f"--epochs is {arguments.epochs}; it must be at least 5")
    return arguments


def load_images() -> list[Any]:
    """Training images, test images, and their digits."""
    digits = load_digits()
    images = (digits.images / 16)[..., np.newaxis].astype(np.float32)
    parts = train_test_split(
        images, digits.target, test_size=0.25, random_state=SEED, stratify=digits.target
    )
    return list(parts)


def compressors(client: nc.Client, epochs: int) -> tuple[Any, Any]:
    """AGP to 80 %, and QAT to 8 bits."""
    agp = {"final_sparsity": SPARSITY, "end_epoch": epochs - 2, "op_types": ["default"]}
    qat = {"quant_types": ["weight"], "quant_bits": 8, "op_types": ["default"]}
    return AGPPruner([agp], client=client), QATQuantizer([qat], client=client)


class Report:
    """The table, a line for each compressor, and a list of failures."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.rows: list[Any] = []
        self.failures: list[str] = []

    def add(
        self, compressor: Any, after: float, plain: float, weights: list[Any], seconds: float
    ) -> None:
        """Records accuracy after training, that of the plain model, its weights, and the time."""
        stats, name = compressor.stats, compressor.algorithm
        zeros = float(np.mean([np.mean(w == 0) for w in weights if w.ndim > 1]))
        share = 100 * stats.seconds_waiting / seconds
        self.rows.append((compressor, self.before, after, zeros, stats, seconds, share))
        if self.before - after > LARGEST_LOSS:
            self.failures.append(f"{name}: lost {self.before - after:.1f} points")
        if plain != after:
            self.failures.append(f"{name}: the plain model computes otherwise")
        if isinstance(compressor, Pruner) and abs(zeros - SPARSITY) > 0.01:
            self.failures.append(f"{name}: {100 * zeros:.1f} % are zero")

    def end(self) -> int:
        """Prints the report; returns the exit status."""
        show(self.rows)
        for failure in self.failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if self.failures else 0


def main() -> int:
    arguments = read_arguments(__doc__ or "")
    keras.utils.set_random_seed(SEED)
    x, x_test, y, y_test = load_images()
    baseline = build()
    baseline.fit(x, y, batch_size=64, epochs=10, verbose=0)
    report = Report(accuracy(baseline, (x_test, y_test)))
    print(f"TensorFlow {tf.__version__}, Keras; baseline: {report.before:.1f} %")
    with nc.Client(arguments.server) as client:
        for compressor in compressors(client, arguments.epochs):
            model = build()
            model.set_weights(baseline.get_weights())
            compressor(model)
            begin = time.perf_counter()
            callbacks = [compressor.callback()]
            model.fit(x, y, batch_size=64, epochs=arguments.epochs, verbose=0, callbacks=callbacks)
            seconds = time.perf_counter() - begin
            after = accuracy(model, (x_test, y_test))
            plain = compressor.unwrap()
            unwrapped = accuracy(plain, (x_test, y_test))
            report.add(compressor, after, unwrapped, plain.get_weights(), seconds)
    return report.end()


def show(rows: list[Any]) -> None:
    """Prints the table."""
    head = (
        f"{'algorithm':<10}{'accuracy':>19}{'zeros':>9}{'calls':>7}{'on the wire':>13}"
        f"{'training':>10}{'waiting':>9}"
    )
    print(f"\n{head}\n{'-' * len(head)}")
    for compressor, before, after, zeros, stats, seconds, share in rows:
        wire = (stats.bytes_sent + stats.bytes_received) / 1e6
        print(
            f"{compressor.algorithm:<10}{f'{before:.1f} % -> {after:.1f} %':>19}"
            f"{100 * zeros:>7.1f} %{stats.calls:>7}{wire:>10.2f} MB{seconds:>8.1f} s"
            f"{share:>7.1f} %"
        )
    print("\nwaiting: time spent in calls to the server, as a share of the training time")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except nc.UnavailableError as error:
        sys.exit(f"no compression server: {error}")
