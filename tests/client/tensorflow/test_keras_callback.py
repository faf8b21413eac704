"""The callback of `nni_compression.integrations.keras`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.integrations.keras import CompressionCallback
from nni_compression.integrations.recorder import Recorder
from nni_compression.keras import AGPPruner, QATQuantizer
from servers import ServerProcess

keras = tf.keras
AGP = [{"final_sparsity": 0.8, "end_epoch": 3, "op_types": ["default"]}]
STEPS = 4


def made() -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((8,)),
            keras.layers.Dense(16, name="fc1"),
            keras.layers.Dense(2, name="fc2"),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model: Any, epochs: int, *callbacks: Any, initial_epoch: int = 0) -> None:
    data = np.random.default_rng(2).standard_normal((4 * STEPS, 8), dtype=np.float32)
    labels = (data.sum(1) > 0).astype(np.int32)
    options = {"batch_size": 4, "epochs": epochs, "shuffle": False, "verbose": 0}
    options["initial_epoch"] = initial_epoch
    model.fit(data, labels, callbacks=list(callbacks), **options)


def test_a_model_is_compressed_when_fitting_begins(client: nc.Client) -> None:
    pruner, quantizer = AGPPruner(AGP, client=client), QATQuantizer([{}], client=client)
    recorder, model = Recorder(), made()
    fit(model, 4, CompressionCallback(pruner, quantizer, recorder=recorder))
    assert (pruner.epoch, pruner.steps, quantizer.steps) == (3, 4 * STEPS, 4 * STEPS)
    sparsities = [row["agp/sparsity"] for row in recorder.rows]
    assert sparsities == sorted(sparsities)
    assert sparsities[0] == 0
    assert sparsities[-1] == pytest.approx(0.8, abs=0.02)
    assert recorder.rows[-1]["qat/bits/fc1"] == 8

    # As with the callback of the compressors, whose model is compressed before.
    other, pruner, quantizer = (
        made(),
        AGPPruner(AGP, client=client),
        QATQuantizer([{}], client=client),
    )
    quantizer(pruner(other))
    fit(other, 4, pruner.callback(), quantizer.callback())
    for mine, theirs in zip(model.get_weights(), other.get_weights()):
        assert np.array_equal(mine, theirs)


def test_steps_may_count_as_epochs(client: nc.Client) -> None:
    pruner = AGPPruner(AGP, client=client)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(pruner.epoch)

    pruner(made())
    recorder = Recorder()
    callback = CompressionCallback(pruner, steps_per_epoch=2, recorder=recorder)
    fit(pruner.bound_model, 2, callback, Watch())
    assert seen == [0, 1, 1, 2, 2, 3, 3, 4]
    fit(pruner.bound_model, 1, CompressionCallback(pruner, steps_per_epoch=7, recorder=recorder))
    recorded = [(row["agp/epoch"], row["agp/step"]) for row in recorder.rows]
    assert recorded == [(0, 2), (1, 4), (2, 6), (3, 8), (1, 12)]


def test_an_interrupted_training_continues_as_if_it_was_not(client: nc.Client) -> None:
    activations = ["weight", "input", "output"]
    rules = [{"op_types": ["default"], "quant_types": activations, "quant_start_step": 6}]

    def compressors() -> tuple[AGPPruner, QATQuantizer]:
        return AGPPruner(AGP, client=client), QATQuantizer(rules, client=client)

    model = made()
    fit(model, 4, CompressionCallback(*compressors()))
    interrupted, before = made(), compressors()
    fit(interrupted, 2, CompressionCallback(*before))
    resumed, after = made(), compressors()
    for old, new in zip(before, after):
        new.load_state_dict(old.state_dict())
    for variable, value in zip(resumed.weights, interrupted.weights):
        variable.assign(value)
    fit(resumed, 4, CompressionCallback(*after), initial_epoch=2)
    assert [(each.epoch, each.steps) for each in after] == [(3, 4 * STEPS)] * 2
    data = np.ones((3, 8), np.float32)
    assert np.array_equal(resumed.predict(data, verbose=0), model.predict(data, verbose=0))
    for mine, theirs in zip(resumed.weights, model.weights):
        assert np.array_equal(mine.numpy(), theirs.numpy())


def test_a_closed_session_is_continued_by_another(client: nc.Client) -> None:
    pruner, model = AGPPruner(AGP, client=client), made()
    fit(model, 2, CompressionCallback(pruner))
    sparsity = pruner.metrics()["sparsity"]
    pruner.close()
    fit(model, 4, CompressionCallback(pruner), initial_epoch=2)
    assert (pruner.epoch, pruner.steps) == (3, 4 * STEPS)
    assert sparsity < 0.7 < pruner.metrics()["sparsity"]


@pytest.mark.parametrize("own", [False, True])
def test_fitting_continues_with_another_server(own: bool) -> None:
    with ServerProcess() as first:
        pruner, quantizer = (
            AGPPruner(AGP, server=first.address),
            QATQuantizer([{}], server=first.address),
        )
        model = made()
        quantizer(pruner(model))
        calls = [pruner.callback(), quantizer.callback()]
        if not own:
            calls = [CompressionCallback(pruner, quantizer)]
        servers = contextlib.ExitStack()

        class Restart(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if pruner.steps == STEPS + 1:
                    first.kill()
                    servers.enter_context(ServerProcess(port=first.port))

        with servers:
            fit(model, 4, Restart(), *calls)
            assert (pruner.epoch, pruner.steps, quantizer.steps) == (3, 4 * STEPS, 4 * STEPS)
            assert pruner.metrics()["sparsity"] == pytest.approx(0.8, abs=0.02)
            pruner.close()
            quantizer.close()


def test_a_compressor_of_another_model_is_refused(client: nc.Client) -> None:
    pruner, model = AGPPruner(AGP, client=client), made()
    pruner(model)
    with pytest.raises(nc.InvalidArgumentError, match="has another model already, 'sequential"):
        fit(made(), 1, CompressionCallback(pruner))
    # One with some of its layers is none.
    larger = keras.Sequential([model, keras.layers.Dense(2)])
    larger.build((None, 8))
    larger.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(larger, 1, CompressionCallback(pruner))
    assert pruner.steps == STEPS


def test_tensorboard_needs_no_torch(
    client: nc.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nni_compression.integrations.tensorboard import TensorBoardSink

    monkeypatch.setitem(sys.modules, "torch", None)  # as if it was not installed
    recorder = Recorder(TensorBoardSink(tmp_path))
    fit(made(), 2, CompressionCallback(AGPPruner(AGP, client=client), recorder=recorder))
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    found = events.Tensors("compression/agp/sparsity/fc1")
    assert [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in found] == [
        (epoch, pytest.approx(row["agp/sparsity/fc1"])) for epoch, row in enumerate(recorder.rows)
    ]


def test_wrong_arguments_are_refused(client: nc.Client) -> None:
    with pytest.raises(TypeError, match="give a pruner or quantizer"):
        CompressionCallback()
    with pytest.raises(nc.InvalidArgumentError, match="steps_per_epoch is 0"):
        CompressionCallback(AGPPruner(AGP, client=client), steps_per_epoch=0)
