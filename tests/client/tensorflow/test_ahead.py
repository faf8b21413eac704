"""Trainers that continue from a checkpoint while their session is elsewhere; binding that fails."""

from __future__ import annotations

import copy
from typing import Any, Callable

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.adapters.lifecycle import Lifecycle
from nni_compression.keras.answers import KerasPruning
from nni_compression.tensorflow import AGPPruner, LevelPruner, NaiveQuantizer, QATQuantizer
from nni_compression.tf1.answers import GraphPruning

v1 = tf.compat.v1
keras = tf.keras
SHAPES = {"first": (6, 5), "second": (5, 4)}
EPOCHS = 8
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
AGP = [{"final_sparsity": 0.8, "end_epoch": 7, "op_types": ["default"]}]
QAT = [{"quant_types": ["weight"], "quant_bits": 4, "op_types": ["default"]}]
OUTPUTS = [{"quant_types": ["weight", "output", "input"], "op_types": ["default"]}]
NAIVE = [{"op_types": ["default"]}]


def numbers(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * (1 + seed % 3)


class KerasModel:
    """Two layers whose weights follow from where training is."""

    outputs = True

    def __init__(self) -> None:
        self.model = keras.Sequential(
            [
                keras.layers.Input((6,)),
                keras.layers.Dense(5, name="first", bias_initializer="ones"),
                keras.layers.Dense(4, name="second"),
            ]
        )
        self.arguments: tuple[Any, ...] = ()
        self.assign(0)

    def assign(self, time: int) -> None:
        for i, (name, shape) in enumerate(SHAPES.items()):
            self.model.get_layer(name).kernel.assign(numbers(shape, 2 * time + i))

    def run(self, time: int, training: bool) -> Any:
        return self.model(numbers((3, 6), time), training=training).numpy()


class GraphModel:
    """The same as a graph, with a session of its own."""

    outputs = False

    def __init__(self) -> None:
        self.model = tf.Graph()
        with self.model.as_default():
            self.x = v1.placeholder(tf.float32, [None, 6])
            self.variables = {
                name: v1.get_variable(f"{name}_w", shape) for name, shape in SHAPES.items()
            }
            self.new = {name: v1.placeholder(tf.float32, shape) for name, shape in SHAPES.items()}
            self.change = [self.variables[n].assign(self.new[n]) for n in SHAPES]
            hidden = tf.matmul(self.x, self.variables["first"], name="first") + 1.0
            self.y = tf.matmul(hidden, self.variables["second"], name="second")
            self.session = v1.Session(graph=self.model)
            initialize = v1.global_variables_initializer()
        self.initialize = initialize
        self.arguments = (self.session,)

    def assign(self, time: int) -> None:
        feeds = {
            self.new[n]: numbers(shape, 2 * time + i) for i, (n, shape) in enumerate(SHAPES.items())
        }
        self.session.run(self.change, feeds)

    def run(self, time: int, training: bool) -> Any:
        return self.session.run(self.y, {self.x: numbers((3, 6), time)})


class Training:
    def __init__(
        self, make_model: Any, compressor: Callable[[], Any], state: Any = None, time: int = 0
    ) -> None:
        self.model = make_model()
        self.compressor = compressor()
        if state is not None:
            self.compressor.load_state_dict(state)
        if make_model is KerasModel:
            self.model.assign(time)
            self.compressor(self.model.model)
        else:
            self.compressor(self.model.model)
            self.model.session.run(self.model.initialize)
            self.model.assign(time)
        self.seen: dict[int, Any] = {}

    def epoch(self, epoch: int) -> None:
        compressor, arguments = self.compressor, self.model.arguments
        compressor.update_epoch(epoch, *arguments)
        for time in (2 * epoch + 1, 2 * epoch + 2):
            self.model.run(time, training=True)
            self.model.assign(time)
            compressor.step(time, *arguments)
        self.seen[epoch] = self.model.run(99, training=False)

    def epochs(self, first: int, last: int) -> Training:
        for epoch in range(first, last):
            self.epoch(epoch)
        return self


KINDS = [
    pytest.param(AGPPruner, AGP, {}, id="agp"),
    pytest.param(NaiveQuantizer, NAIVE, {"transfer": "weights"}, id="naive-weights"),
    pytest.param(NaiveQuantizer, NAIVE, {"transfer": "ranges"}, id="naive-ranges"),
    pytest.param(QATQuantizer, QAT, {"transfer": "ranges"}, id="qat"),
    pytest.param(QATQuantizer, OUTPUTS, {"transfer": "weights"}, id="qat-outputs"),
]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize(("make", "rules", "settings"), KINDS)
@pytest.mark.parametrize("model", [KerasModel, GraphModel], ids=["keras", "graph"])
def test_a_resumed_trainer_goes_on_as_if_it_had_not_been_interrupted(
    client: nc.Client, model: Any, make: Any, rules: Any, settings: Any, ahead: int
) -> None:
    if rules is OUTPUTS and not model.outputs:
        pytest.skip("a graph quantizes weights only")

    def compressor() -> Any:
        return make(rules, client=client, **settings)

    whole = Training(model, compressor).epochs(0, EPOCHS)
    interrupted = Training(model, compressor).epochs(0, 2)
    state = copy.deepcopy(interrupted.compressor.state_dict())
    interrupted.epochs(2, 2 + ahead)
    resumed = Training(model, compressor, state, time=4).epochs(2, EPOCHS)
    assert resumed.compressor.session.id != state["session"]
    for epoch in range(2, EPOCHS):
        assert np.array_equal(resumed.seen[epoch], whole.seen[epoch]), epoch
    for training in (whole, interrupted, resumed):
        training.compressor.close()


@pytest.mark.parametrize("model", [KerasModel, GraphModel], ids=["keras", "graph"])
@pytest.mark.parametrize("place", ["_begin", "_watch"])
@pytest.mark.parametrize("calls_before", [0, 1])
def test_binding_is_all_or_nothing(
    client: nc.Client, model: Any, place: str, calls_before: int
) -> None:
    owner: Any = Lifecycle
    if place == "_begin":
        owner = KerasPruning if model is KerasModel else GraphPruning
    elif calls_before:
        pytest.skip("called once")

    def failing(patch: pytest.MonkeyPatch) -> None:
        original, made = getattr(owner, place), []

        def fail(*args: Any, **kwargs: Any) -> Any:
            made.append(1)
            if len(made) > calls_before:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        patch.setattr(owner, place, fail)

    fresh = model()
    pruner = LevelPruner(LEVEL, client=client, labels={"all": "or nothing"})
    before = {info.id for info in client.sessions({"all": "or nothing"})}
    with pytest.MonkeyPatch.context() as patch:
        failing(patch)
        with pytest.raises(KeyboardInterrupt):
            pruner(fresh.model)
    if model is GraphModel:
        fresh.session.run(fresh.initialize)
        fresh.assign(0)
    plain = numbers((3, 6), 1) @ numbers(SHAPES["first"], 0) + 1
    np.testing.assert_allclose(
        fresh.run(1, training=False), plain @ numbers(SHAPES["second"], 1), rtol=1e-4, atol=1e-4
    )
    assert {info.id for info in client.sessions({"all": "or nothing"})} == before

    training = Training(model, lambda: AGPPruner(AGP, client=client)).epochs(0, 3)
    compressor, session = training.compressor, training.compressor.session.id
    output, masks = training.model.run(7, training=False), compressor.masks
    with pytest.MonkeyPatch.context() as patch:
        failing(patch)
        with pytest.raises(KeyboardInterrupt):
            compressor.rebind()
    assert compressor.session.id == session
    assert np.array_equal(training.model.run(7, training=False), output)
    compressor.refresh(*training.model.arguments)  # makes up for it
    assert compressor.session.id != session
    assert np.array_equal(training.model.run(7, training=False), output)
    for name, mask in masks.items():
        assert np.array_equal(compressor.masks[name], mask)
    compressor.close()
