"""Keras models through a real server, with the Keras that TensorFlow has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.tensorflow import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
    layers,
)

keras = tf.keras
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
AGP = [{"initial_sparsity": 0.0, "final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}]
QAT = [{"quant_types": ["weight"], "quant_bits": 4, "op_types": ["default"]}]


@pytest.fixture(autouse=True)
def seeded() -> None:
    keras.utils.set_random_seed(1)


def sequential() -> Any:
    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="fc"),
        ]
    )


def functional() -> Any:
    inputs = keras.layers.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    outputs = keras.layers.Dense(10, name="fc")(keras.layers.Flatten()(x))
    return keras.Model(inputs, outputs)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.conv = keras.layers.Conv2D(4, 3, activation="relu", name="conv")
        self.flatten = keras.layers.Flatten()
        self.fc = keras.layers.Dense(10, name="fc")

    def call(self, inputs: Any) -> Any:
        return self.fc(self.flatten(self.conv(inputs)))


def subclassed() -> Any:
    model = Subclassed()
    model(images())
    return model


MODELS = [sequential, functional, subclassed]


def images(count: int = 4) -> Any:
    return np.random.default_rng(2).standard_normal((count, 8, 8, 1), dtype=np.float32)


def kernel(model: Any, name: str) -> Any:
    """The dense weight."""
    return np.asarray(tf.convert_to_tensor(model.get_layer(name).kernel))


def with_kernels(model: Any, change: Any) -> Any:
    """The output of the model with other weights in it, which are taken out again."""
    saved = {name: kernel(model, name) for name in ("conv", "fc")}
    for name, weight in saved.items():
        model.get_layer(name).kernel.assign(change(name, weight))
    output = model(images()).numpy()
    for name, weight in saved.items():
        model.get_layer(name).kernel.assign(weight)
    return output


def compiled(model: Any) -> Any:
    """A model that learns, in a compiled function, how often which was traced it counts."""
    model.compile(
        optimizer=keras.optimizers.SGD(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


LABELS = np.arange(32) % 10


def fit(model: Any, epochs: int, *callbacks: Any, **options: Any) -> Any:
    return model.fit(
        images(32),
        LABELS,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )


@pytest.mark.parametrize("build", MODELS)
def test_the_forward_pass_sees_zeros_and_everybody_else_the_dense_weight(
    client: nc.Client, build: Any
) -> None:
    model = build()
    dense = {name: kernel(model, name) for name in ("conv", "fc")}
    pruner = LevelPruner(LEVEL, client=client)
    assert pruner(model) is model
    masks = pruner.masks
    assert {name: mask.mean() for name, mask in masks.items()} == {"conv": 0.5, "fc": 0.5}
    eager = model(images()).numpy()
    predicted = model.predict(images(), verbose=0)
    for name, weight in dense.items():
        assert np.array_equal(kernel(model, name), weight)
    plain = build()
    plain.set_weights(model.get_weights())
    expected = with_kernels(plain, lambda name, weight: weight * masks[name])
    assert np.array_equal(eager, expected)
    assert np.allclose(predicted, expected, atol=1e-5)


def test_a_model_that_has_learned_before_is_pruned_when_it_learns_on(client: nc.Client) -> None:
    model = compiled(sequential())
    fit(model, 1)
    model.predict(images(), verbose=0)
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    mask = pruner.masks["fc"]
    before = kernel(model, "fc")
    fit(model, 1)
    moved = kernel(model, "fc") != before
    assert not moved[~mask].any(), "a pruned weight got a gradient"
    assert moved[mask].any()


def test_fit_with_the_callback_prunes_gradually_and_traces_once(client: nc.Client) -> None:
    model = compiled(sequential())
    traces = []
    call = type(model).call

    class Counting(type(model)):  # type: ignore[misc]
        def call(self, *args: Any, **kwargs: Any) -> Any:
            if not tf.executing_eagerly():
                traces.append(1)
            return call(self, *args, **kwargs)

    object.__setattr__(model, "__class__", Counting)
    pruner = AGPPruner(AGP, client=client)
    pruner(model)
    sparsities = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            sparsities.append(1 - pruner.masks["fc"].mean())

    fit(model, 1, pruner.callback(), Watch())
    once = len(traces)
    assert once > 0
    fit(model, 12, pruner.callback(), Watch(), initial_epoch=1)
    assert sparsities == sorted(sparsities)
    assert sparsities[0] == 0
    assert sparsities[-1] == pytest.approx(0.8, abs=0.01)
    assert len(traces) == once, "a mask that changes must not trace the model anew"
    assert (pruner.epoch, pruner.steps) == (11, 48)


def test_a_quantizers_forward_pass_has_the_services_values_bit_for_bit(client: nc.Client) -> None:
    model = compiled(sequential())
    quantizer = QATQuantizer(QAT, client=client, transfer="weights")
    quantizer(model)
    fit(model, 2, quantizer.callback())
    with client.bind_model("qat", QAT, layers(model), framework="keras") as session:
        weights = {name: kernel(model, name) for name in ("conv", "fc")}
        expected = {
            name: answer.dequantize() for name, answer in session.quantize_weight(weights).items()
        }
    output = model(images()).numpy()
    assert np.array_equal(output, with_kernels(strip(model), lambda name, _: expected[name]))
    quantizer.unwrap()
    for name, values in expected.items():
        assert np.array_equal(kernel(model, name), values)


def strip(model: Any) -> Any:
    """A plain model with the same weights."""
    plain = sequential()
    plain.set_weights(model.get_weights())
    return plain


@pytest.mark.parametrize("quantizer_class", [NaiveQuantizer, QATQuantizer, DoReFaQuantizer])
def test_ranges_give_what_weights_give(client: nc.Client, quantizer_class: Any) -> None:
    config = [{"op_types": ["default"]}]
    values = []
    for transfer in ("weights", "ranges"):
        keras.utils.set_random_seed(1)
        model = sequential()
        quantizer = quantizer_class(config, client=client, transfer=transfer)
        quantizer(model)
        quantizer.unwrap()
        values.append(kernel(model, "fc"))
    if quantizer_class is DoReFaQuantizer:
        assert np.abs(values[0] - values[1]).max() <= 2 / 255 + 1e-6
    else:
        assert np.array_equal(*values)
    assert not np.array_equal(values[0], kernel(strip_fresh(), "fc"))


def strip_fresh() -> Any:
    keras.utils.set_random_seed(1)
    return sequential()


@pytest.mark.parametrize("compressor_class", [LevelPruner, AGPPruner])
def test_masks_are_those_of_a_pytorch_trainer_bit_for_bit(
    client: nc.Client, compressor_class: Any
) -> None:
    config = LEVEL if compressor_class is LevelPruner else AGP
    model = sequential()
    pruner = compressor_class(config, client=client)
    pruner(model)
    torch_layers = [
        nc.Layer("conv", "Conv2d", tuple(kernel(model, "conv").shape)),
        nc.Layer("fc", "Linear", tuple(kernel(model, "fc").shape)),
    ]
    with client.bind_model(compressor_class.algorithm, config, torch_layers) as session:
        for epoch in (0, 4, 9):
            pruner.update_epoch(epoch)
            session.update_epoch(epoch)
            weights = {name: kernel(model, name) for name in session.stale}
            for name, mask in session.calc_mask(weights).items():
                assert np.array_equal(pruner.masks[name], mask.to_numpy())
            for name in ("conv", "fc"):
                variable = model.get_layer(name).kernel
                variable.assign(kernel(model, name)[..., ::-1])


@pytest.mark.parametrize("quantizer_class", [NaiveQuantizer, QATQuantizer, DoReFaQuantizer])
def test_quantized_weights_are_those_of_a_pytorch_trainer_bit_for_bit(
    client: nc.Client, quantizer_class: Any
) -> None:
    config = [{"op_types": ["default"]}]
    model = sequential()
    weight = kernel(model, "fc")
    quantizer = quantizer_class(config, client=client, transfer="weights")
    quantizer(model)
    layer = nc.Layer("fc", "Linear", weight.shape)
    with client.bind_model(quantizer_class.algorithm, config, [layer]) as session:
        expected = session.quantize_weight({"fc": weight})["fc"].dequantize()
    quantizer.unwrap()
    assert np.array_equal(kernel(model, "fc"), expected)


def test_per_channel_scales_are_those_of_the_last_dimension(client: nc.Client) -> None:
    config = [{**QAT[0], "quant_scheme": "per_channel_symmetric"}]
    model = sequential()
    weight = kernel(model, "conv")
    quantizer = QATQuantizer(config, client=client)
    quantizer(model)
    scale = quantizer.calibration["conv"]["weight_scale"]
    assert scale.shape == (4,)
    largest = np.abs(weight).max(axis=(0, 1, 2))
    assert np.argsort(scale).tolist() == np.argsort(largest).tolist()


def test_gradients_pass_straight_through_from_quant_start_step_on(client: nc.Client) -> None:
    model = sequential()
    quantizer = QATQuantizer([{**QAT[0], "quant_start_step": 1}], client=client)
    quantizer(model)
    plain = strip(model)
    assert np.array_equal(model(images()).numpy(), plain(images()).numpy())
    assert all(np.array_equal(a, b) for a, b in zip(gradients(model), gradients(plain)))

    quantizer.step()
    assert not np.array_equal(model(images()).numpy(), plain(images()).numpy())
    found = gradients(model)
    quantizer.unwrap()  # the gradients of a model that has the quantized values for weights
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, gradients(model)))


def gradients(model: Any) -> list[Any]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images()) ** 2)
    return [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_variables)]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(client: nc.Client, policy: str) -> None:
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = sequential()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    quantizer = QATQuantizer(QAT, client=client)
    quantizer(model)
    output = model(images())
    assert output.dtype.name == policy.removeprefix("mixed_")
    output = tf.cast(output, tf.float32)
    values = quantizer.calibration["fc"]
    assert values["weight_bits"] == 4
    masks = pruner.masks
    quantizer.unwrap()
    pruner.unwrap()
    assert model.get_layer("fc").kernel.dtype == "float32"
    assert not kernel(model, "fc")[~masks["fc"]].any()
    assert np.allclose(tf.cast(model(images()), tf.float32), output, atol=0.05)


def test_weights_are_saved_and_loaded_under_the_plain_models_names(
    client: nc.Client, tmp_path: Path
) -> None:
    model = sequential()
    plain_names = [variable.name for variable in model.variables]
    dense = model.get_weights()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    assert [variable.name for variable in model.variables] == plain_names
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    plain = sequential()
    plain.load_weights(path)
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), dense))
    model.set_weights([np.zeros_like(weight) for weight in dense])
    model.load_weights(path)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), dense))


@pytest.mark.parametrize("unwrapped", [True, False])
def test_a_saved_model_is_a_plain_one(client: nc.Client, tmp_path: Path, unwrapped: bool) -> None:
    """With the zeros in it once it was unwrapped, with the dense weights before."""
    model = sequential()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    masks = pruner.masks
    if unwrapped:
        model = pruner.unwrap()
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.get_layer("fc")) is keras.layers.Dense
    assert np.array_equal(kernel(loaded, "fc"), kernel(model, "fc"))
    assert (not kernel(loaded, "fc")[~masks["fc"]].any()) == unwrapped
    copy = keras.models.clone_model(model)
    assert type(copy.get_layer("conv")) is keras.layers.Conv2D
    copy(images())


def test_unwrapping_writes_zeros_and_gives_the_classes_back(client: nc.Client) -> None:
    model = compiled(sequential())
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    fit(model, 1, pruner.callback())
    output = model(images()).numpy()
    masks = pruner.masks
    session = pruner.session
    assert pruner.unwrap() is model
    assert type(model.get_layer("conv")) is keras.layers.Conv2D
    assert type(model.get_layer("fc")) is keras.layers.Dense
    assert np.array_equal(model(images()).numpy(), output)
    assert np.array_equal(pruner.masks["fc"], masks["fc"])
    assert client.session_info(session.id).state == "closed"
    fit(model, 1)
    assert kernel(model, "fc")[~masks["fc"]].any(), "a plain model learns all its weights"


def test_a_pruner_and_a_quantizer_share_a_model(client: nc.Client) -> None:
    model = compiled(sequential())
    pruner = AGPPruner(AGP, client=client)
    pruner(model)
    quantizer = QATQuantizer(QAT, client=client)
    quantizer(model)
    fit(model, 11, pruner.callback(), quantizer.callback())
    masks = pruner.masks
    output = model(images()).numpy()
    quantizer.unwrap()
    pruner.unwrap()
    assert np.array_equal(model(images()).numpy(), output)
    weight = kernel(model, "fc")
    assert not weight[~masks["fc"]].any()
    assert len(np.unique(weight)) <= 17


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_channels_of_a_transposed_convolution_are_those_of_its_outputs(
    client: nc.Client, transfer: str
) -> None:
    model = keras.Sequential(
        [keras.layers.Input((4, 4, 3)), keras.layers.Conv2DTranspose(5, 2, name="transposed")]
    )
    weight = kernel(model, "transposed")  # [2, 2, outputs, inputs]
    config = [{**QAT[0], "quant_scheme": "per_channel_symmetric"}]
    quantizer = QATQuantizer(config, client=client, transfer=transfer)
    quantizer(model)
    found = quantizer.calibration["transposed"]
    assert found["channel_axis"] == 2
    largest = np.abs(weight).max(axis=(0, 1, 3))
    assert np.allclose(found["weight_scale"], largest / 7, rtol=1e-6)
    scale = found["weight_scale"].reshape(1, 1, 5, 1)
    quantizer.unwrap()
    wanted = np.clip(np.rint(weight * (np.float32(1) / scale)), -7, 7) * scale
    assert np.array_equal(kernel(model, "transposed"), wanted)


def test_the_plan_says_what_is_not_covered(
    client: nc.Client, caplog: pytest.LogCaptureFixture
) -> None:
    model = keras.Sequential(
        [
            keras.layers.Input((6, 3)),
            keras.layers.LSTM(4, name="lstm", use_bias=False),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="fc", use_bias=False),
        ]
    )
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    coverage = pruner.plan.coverage
    assert coverage is not None
    assert (coverage.compressed, coverage.weights) == (1, 3)
    assert (coverage.compressed_parameters, coverage.parameters) == (12, 12 + 48 + 64 + 16)
    # Keras 3 counts the cell as a layer of its own.
    assert {p.op_type for p in coverage.left_out} <= {"LSTM", "LSTMCell"}
    assert len(coverage.left_out) == 2
    assert str(coverage) in caplog.messages


def test_a_rule_without_filters_leaves_vectors_out(client: nc.Client) -> None:
    model = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Embedding(9, 2), keras.layers.Flatten()]
    )
    model.add(keras.layers.Dense(3, name="fc"))
    pruner = LevelPruner([{"sparsity": 0.5}], client=client)
    pruner(model)
    assert len(pruner.masks) == 2


def test_every_layer_that_default_means_is_found_with_its_channels(client: nc.Client) -> None:
    image = keras.layers.Input((8, 8, 2))
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(image)
    x = keras.layers.SeparableConv2D(3, 3, name="separable")(x)
    x = keras.layers.Conv2DTranspose(3, 3, name="transposed")(x)
    words = keras.layers.Input((4,), dtype="int32")
    y = keras.layers.Embedding(20, 6, name="words")(words)
    y = keras.layers.Conv1D(3, 2, name="conv1d")(y)
    outputs = keras.layers.Concatenate()([keras.layers.Flatten()(x), keras.layers.Flatten()(y)])
    model = keras.Model([image, words], keras.layers.Dense(2, name="fc")(outputs))
    found = {layer.name: layer for layer in layers(model)}
    assert set(found) == {
        "depthwise",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "transposed",
        "words",
        "conv1d",
        "fc",
    }
    assert {name: layer.channel_axis for name, layer in found.items()} == {
        "depthwise": 3,
        "separable/depthwise_kernel": 3,
        "separable/pointwise_kernel": 3,
        "transposed": 2,
        "words": 1,
        "conv1d": 2,
        "fc": 1,
    }
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    assert set(pruner.masks) == set(found)
    inputs = [np.ones((2, 8, 8, 2), np.float32), np.ones((2, 4), np.int32)]
    output = model(inputs).numpy()
    pruner.unwrap()
    assert np.allclose(model(inputs).numpy(), output, atol=1e-6)


def test_layers_of_nested_models_with_one_name_are_told_apart(client: nc.Client) -> None:
    def inner(name: str) -> Any:
        return keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Dense(4, name="fc")], name=name
        )

    model = keras.Sequential([keras.layers.Input((4,)), inner("a"), inner("b")])
    assert [layer.name for layer in layers(model)] == ["a/fc", "b/fc"]


def test_the_state_goes_on_in_a_new_session(client: nc.Client) -> None:
    pruner = AGPPruner(AGP, client=client)
    model = pruner(sequential())
    pruner.update_epoch(5)
    state, masks, weights = pruner.state_dict(), pruner.masks, model.get_weights()
    pruner.close()
    other = AGPPruner(AGP, client=client)
    other.load_state_dict(state)
    resumed = sequential()
    resumed.set_weights(weights)
    other(resumed)
    assert other.epoch == 5
    assert np.array_equal(other.masks["fc"], masks["fc"])


def test_numbers_of_numpy_and_tensorflow_are_plain_ones_in_a_checkpoint(client: nc.Client) -> None:
    pruner = AGPPruner(AGP, client=client)
    pruner(sequential())
    pruner.update_epoch(np.int64(2))
    pruner.step(tf.constant(7))
    state = pruner.state_dict()
    assert [(type(state[key]), state[key]) for key in ("epoch", "step")] == [(int, 2), (int, 7)]


def test_a_model_that_is_not_built_is_refused(client: nc.Client) -> None:
    model = Subclassed()
    with pytest.raises(ValueError, match="layer 'conv' is not built"):
        LevelPruner(LEVEL, client=client)(model)


def test_what_is_no_keras_model_is_refused() -> None:
    expected = "model is a str; it must be a tf.Graph or a built Keras model"
    with pytest.raises(TypeError, match=expected):
        LevelPruner("a model", LEVEL)
