"""Seconds of training steps of a Keras network whose outputs are quantized in several ways.

Run as a program by a Python that has TensorFlow: `keras_steps.py STEPS ROUNDS` prints a JSON object
from each way to a list, one value a round.
"""

import json
import sys
from typing import Any

import numpy as np
import tensorflow as tf

import nni_compression as nc
from harness import alternate
from nni_compression.tensorflow import QATQuantizer

keras = tf.keras

WAYS = {
    "not quantized": (),
    "output": ("output",),
    "output and input": ("output", "input"),
    "weight": ("weight",),
    "weight and output": ("weight", "output"),
}


def network() -> Any:
    """As training.network() of PyTorch: 1.5 million weights, for images of 32 x 32."""
    keras.utils.set_random_seed(0)
    convolution = {"strides": 2, "padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.Conv2D(32, 3, **convolution),
            keras.layers.Conv2D(64, 3, **convolution),
            keras.layers.Conv2D(128, 3, **convolution),
            keras.layers.Flatten(),
            keras.layers.Dense(700, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


class Trainer:
    """Trains a network of its own on random images, in a traced step."""

    def __init__(self, steps: int, client: nc.Client, types: tuple[str, ...]) -> None:
        self.steps = steps
        self.model = network()
        self.quantizer = None
        if types:
            rule = {"op_types": ["default"], "quant_bits": 8, "quant_types": list(types)}
            self.quantizer = QATQuantizer([rule], client=client, transfer="ranges")
            self.quantizer(self.model)
        random = np.random.default_rng(0)
        self.inputs = tf.constant(random.normal(size=(32, 32, 32, 3)), tf.float32)
        self.targets = tf.constant(random.integers(0, 10, 32))
        self.optimizer = keras.optimizers.SGD(0.01)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.step = tf.function(self._step)

    def _step(self) -> None:
        with tf.GradientTape() as tape:
            loss = self.loss(self.targets, self.model(self.inputs, training=True))
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    def train(self) -> None:
        for _ in range(self.steps):
            self.step()
            if self.quantizer is not None:
                self.quantizer.step()


def main() -> None:
    steps, rounds = map(int, sys.argv[1:])
    with nc.Client() as client:
        trainers = {name: Trainer(steps, client, types) for name, types in WAYS.items()}
        times = alternate({name: trainer.train for name, trainer in trainers.items()}, rounds)
    print(json.dumps({name: [t / steps for t in values] for name, values in times.items()}))


if __name__ == "__main__":
    main()
