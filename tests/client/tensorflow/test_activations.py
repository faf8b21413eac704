"""Outputs and inputs of Keras layers are quantized in the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
import servers
from nni_compression.tensorflow import LevelPruner, QATQuantizer, Quantizer

keras = tf.keras
v1 = tf.compat.v1
OUTPUTS = [{"quant_types": ["output"], "op_types": ["default"]}]
ALL = [{"quant_types": ["weight", "output", "input"], "op_types": ["default"]}]
F = np.float32


def linear() -> Any:
    """A model of one layer, the same each time."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4, name="fc")])


def inputs(seed: int, scale: float = 1.0) -> Any:
    return F(scale) * np.random.default_rng(seed).standard_normal((16, 3), dtype=F)


def parameters(low: float, high: float, bits: int = 8) -> tuple[Any, Any]:
    """Scale and zero point of a range, as the formula has them."""
    low, high = min(F(0), F(low)), max(F(0), F(high))
    scale = (high - low) / F(2**bits - 1)
    return scale, F(np.clip(np.rint(-low / scale), 0, 2**bits - 1))


def fake_quantized(x: Any, low: float, high: float, bits: int = 8) -> Any:
    """As `torch.fake_quantize_per_tensor_affine` does it."""
    scale, zero_point = parameters(low, high, bits)
    codes = np.clip(np.rint(x * (F(1) / scale)) + zero_point, F(0), F(2**bits - 1))
    return (codes - zero_point) * scale


def trained(model: Any, x: Any) -> Any:
    """The output in training."""
    return model(x, training=True).numpy()


def test_outputs_pass_unchanged_until_the_first_step_then_they_are_fake_quantized(
    client: nc.Client,
) -> None:
    plain, model = linear(), linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    expected = plain(inputs(1)).numpy()
    assert np.array_equal(trained(model, inputs(1)), expected)
    quantizer.step()
    x = inputs(2, scale=3)
    wanted = fake_quantized(plain(x).numpy(), expected.min(), expected.max())
    assert np.array_equal(trained(model, x), wanted)
    assert np.array_equal(model(x).numpy(), wanted), "in inference too"
    assert not np.array_equal(plain(x).numpy(), wanted)


def test_inputs_are_quantized_before_the_layer_and_outputs_after_it(client: nc.Client) -> None:
    plain, model = linear(), linear()
    rule = [{"quant_types": ["output", "input"], "quant_bits": {"output": 8, "input": 4}}]
    quantizer = QATQuantizer(rule, client=client)
    quantizer(model)
    x = inputs(1)
    y = trained(model, x)
    quantizer.step()
    inner = fake_quantized(x, x.min(), x.max(), bits=4)
    wanted = fake_quantized(plain(inner).numpy(), y.min(), y.max())
    assert np.array_equal(model(x).numpy(), wanted)
    found = quantizer.calibration["fc"]
    assert (found["input_bits"], found["output_bits"]) == (4, 8)
    scale, zero_point = parameters(y.min(), y.max())
    assert (found["output_scale"], found["output_zero_point"]) == (scale, zero_point)
    assert "weight_bits" not in found


def test_gradients_pass_straight_through_and_are_zero_where_an_output_was_clamped(
    client: nc.Client,
) -> None:
    model = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    trained(model, np.array([[0.0], [1.0]], F))
    quantizer.step()
    x = tf.constant([[0.5], [7.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(model(x, training=True))
    assert tape.gradient(y, x).numpy().tolist() == [[1.0], [0.0]]


def test_the_running_range_moves_by_a_hundredth_and_is_frozen_in_inference(
    client: nc.Client,
) -> None:
    plain, model = linear(), linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    low, high = F(0), F(0)
    for step in range(4):
        y = plain(inputs(step, scale=step + 1)).numpy()
        trained(model, inputs(step, scale=step + 1))
        quantizer.step()
        if step == 0:
            low, high = y.min(), y.max()
        else:
            low, high = F(0.99) * low + F(0.01) * y.min(), F(0.99) * high + F(0.01) * y.max()
    assert quantizer.calibration["fc"]["output_range"] == (float(low), float(high))
    model(inputs(9, scale=1000))
    model.predict(inputs(9, scale=1000), verbose=0)
    quantizer.step()
    assert quantizer.calibration["fc"]["output_range"] == (float(low), float(high))


def test_a_layer_that_runs_several_times_in_a_step_gives_one_range(client: nc.Client) -> None:
    plain, model = linear(), linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    parts = [plain(inputs(seed)).numpy() for seed in range(3)]
    for seed in range(3):
        trained(model, inputs(seed))
    quantizer.step()
    low, high = quantizer.calibration["fc"]["output_range"]
    assert low == min(y.min() for y in parts)
    assert high == max(y.max() for y in parts)


def test_before_the_start_step_ranges_are_tracked_and_outputs_pass(client: nc.Client) -> None:
    plain, model = linear(), linear()
    quantizer = QATQuantizer([{**OUTPUTS[0], "quant_start_step": 2}], client=client)
    quantizer(model)
    trained(model, inputs(1))
    quantizer.step()
    assert np.array_equal(trained(model, inputs(2)), plain(inputs(2)).numpy())
    assert quantizer.calibration == {}
    quantizer.step()
    assert not np.array_equal(trained(model, inputs(2)), plain(inputs(2)).numpy())


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_fit_sends_all_ranges_of_a_minibatch_in_one_call_and_traces_once(
    client: nc.Client, transfer: str
) -> None:
    keras.utils.set_random_seed(1)
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, value: Any, training: Any = None) -> Any:
            if training and not tf.executing_eagerly():
                traces.append(1)
            return value

    model = keras.Sequential(
        [
            keras.layers.Input((3,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            Counting(),
            keras.layers.Dense(1, name="fc"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
    quantizer = QATQuantizer(ALL, client=client, transfer=transfer)
    quantizer(model)
    calls = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            calls.append(quantizer.stats.calls)

    x = inputs(1)
    y = x.sum(axis=1, keepdims=True)
    model.fit(x, y, batch_size=4, epochs=3, verbose=0, validation_data=(100 * x, y),
              callbacks=[quantizer.callback(), Watch()])  # fmt: skip
    a_step = {calls[i + 1] - calls[i] for i in (0, 1, 4, 5)}
    assert a_step == {2 if transfer == "weights" else 1}
    assert len(traces) <= 2, "Keras itself traces a model twice in some versions"
    found = quantizer.calibration
    assert set(found) == {"hidden", "fc"}
    keys = {"output_scale", "input_scale", "weight_scale"}
    assert all(keys <= set(of) for of in found.values())
    assert found["hidden"]["output_range"][0] == 0, "what the layer gives, after its activation"
    assert found["hidden"]["input_range"][1] < 10, "nothing is noted in validation"
    codes = model(x).numpy() / found["fc"]["output_scale"]
    assert np.allclose(codes, np.rint(codes), atol=1e-3)


def test_the_digits_are_read_as_well_with_weights_and_outputs_of_8_bits(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(servers.ROOT / "client/python/examples")
    import digits_keras

    keras.utils.set_random_seed(digits_keras.SEED)
    x, x_test, y, y_test = digits_keras.load_images()
    model = digits_keras.build()
    model.fit(x, y, batch_size=64, epochs=8, verbose=0)
    before = digits_keras.accuracy(model, (x_test, y_test))
    rule = {"quant_types": ["weight", "output"], "op_types": ["default"]}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    model.fit(x, y, batch_size=64, epochs=4, verbose=0, callbacks=[quantizer.callback()])
    logits = model.predict(x_test, verbose=0) / quantizer.calibration["fc2"]["output_scale"]
    assert np.allclose(logits, np.rint(logits), atol=1e-2)
    assert before > 90
    assert digits_keras.accuracy(model, (x_test, y_test)) >= before - 2


def test_a_call_without_training_is_told_of_once(client: nc.Client) -> None:
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    model(inputs(1))
    with pytest.warns(UserWarning, match="call the model with training=True"):
        quantizer.step()
    assert quantizer.calibration == {}


def test_integers_pass_and_half_types_keep_their_type(client: nc.Client) -> None:
    model = keras.Sequential(
        [
            keras.layers.Input((2,), dtype="int32"),
            keras.layers.Embedding(5, 3, name="words"),
            keras.layers.Dense(2, name="fc", dtype="mixed_bfloat16"),
        ]
    )
    quantizer = QATQuantizer(ALL, client=client)
    quantizer(model)
    tokens = np.array([[0, 4], [2, 1]], np.int32)
    model(tokens, training=True)
    quantizer.step()
    assert model(tokens).dtype == tf.bfloat16
    assert "input_scale" not in quantizer.calibration["words"]
    assert "input_scale" in quantizer.calibration["fc"]


def test_the_two_kernels_of_a_separable_layer_share_its_input_and_its_output(
    client: nc.Client,
) -> None:
    model = keras.Sequential(
        [keras.layers.Input((4, 4, 2)), keras.layers.SeparableConv2D(3, 3, name="s")]
    )
    quantizer = QATQuantizer(ALL, client=client)
    quantizer(model)
    model(np.ones((1, 4, 4, 2), F), training=True)
    quantizer.step()
    found = {name: set(of) for name, of in quantizer.calibration.items()}
    assert "input_scale" in found["s/depthwise_kernel"] - found["s/pointwise_kernel"]
    assert "output_scale" in found["s/pointwise_kernel"] - found["s/depthwise_kernel"]


def test_unwrap_gives_plain_outputs_and_keeps_the_calibration(client: nc.Client) -> None:
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    trained(model, inputs(1))
    quantizer.step()
    before = quantizer.calibration["fc"]["output_range"]
    plain = quantizer.unwrap()
    assert type(plain.get_layer("fc")) is keras.layers.Dense
    assert np.array_equal(plain(inputs(2)).numpy(), linear()(inputs(2)).numpy())
    assert quantizer.calibration["fc"]["output_range"] == before


def test_a_pruner_keeps_a_model_whose_outputs_are_no_longer_quantized(client: nc.Client) -> None:
    model = linear()
    pruner = LevelPruner([{"sparsity": 0.5}], client=client)
    quantizer = QATQuantizer(ALL, client=client)
    pruner(model)
    quantizer(model)
    trained(model, inputs(1))
    quantizer.step()
    assert quantizer.calibration["fc"]["output_bits"] == 8
    quantizer.unwrap()
    pruner.unwrap()
    plain = linear()
    plain.set_weights(model.get_weights())
    assert np.array_equal(model(inputs(2)).numpy(), plain(inputs(2)).numpy())


@pytest.mark.parametrize("session_lives", [True, False])
def test_a_resumed_quantizer_goes_on_with_the_running_range(
    client: nc.Client, session_lives: bool
) -> None:
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    for step in range(3):
        trained(model, inputs(step))
        quantizer.step()
    state, before = quantizer.state_dict(), quantizer.calibration["fc"]
    if not session_lives:
        quantizer.session.close()
    later = linear()
    resumed = QATQuantizer(OUTPUTS, client=client)
    resumed.load_state_dict(state)
    resumed(later)
    assert resumed.steps == 3
    assert resumed.calibration["fc"]["output_range"] == before["output_range"]
    assert np.array_equal(later(inputs(8)).numpy(), model(inputs(8)).numpy())
    trained(later, inputs(4, scale=10))
    resumed.step()
    y = linear()(inputs(4, scale=10)).numpy()
    wanted = F(0.99) * F(before["output_range"][1]) + F(0.01) * y.max()
    assert resumed.calibration["fc"]["output_range"][1] == float(wanted)


def test_a_lost_session_is_replaced_with_the_running_range() -> None:
    model = linear()
    with servers.ServerProcess() as first:
        client = nc.Client(first.address, timeout=30)
        quantizer = QATQuantizer(OUTPUTS, client=client)
        quantizer(model)
        trained(model, inputs(1))
        quantizer.step()
        before = quantizer.calibration["fc"]["output_range"]
        output = model(inputs(2)).numpy()
        port = first.port
    with servers.ServerProcess(port=port):
        quantizer.step()
        assert quantizer.calibration["fc"]["output_range"] == before
        assert np.array_equal(model(inputs(2)).numpy(), output)
        quantizer.close()
        client.close()


def test_an_output_that_is_not_finite_is_an_error_that_names_the_layer(client: nc.Client) -> None:
    model = linear()
    quantizer = QATQuantizer(OUTPUTS, client=client)
    quantizer(model)
    spoiled = inputs(1)
    spoiled[3, 1] = np.nan
    trained(model, spoiled)
    trained(model, inputs(1))
    with pytest.raises(nc.InvalidArgumentError, match=r"range of layer \"fc\".*epoch 0, step 1"):
        quantizer.step()
    trained(model, inputs(1))
    quantizer.step()
    assert quantizer.calibration["fc"]["output_bits"] == 8


def test_an_algorithm_of_ones_own_quantizes_outputs_with_straight_gradients(
    client: nc.Client,
) -> None:
    class Rounding(Quantizer):
        def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
            return weight

        def quantize_layer_output(self, output: Any, config: Any, **kwargs: Any) -> Any:
            assert kwargs["op_name"] == "fc"
            return tf.round(output / config["grid"]) * config["grid"]

    model = linear()
    quantizer = Rounding([{"grid": 0.5}], client=client)
    quantizer(model)
    x = tf.constant(inputs(1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x)
    expected = np.round(linear()(x).numpy() / F(0.5)) * F(0.5)
    assert np.array_equal(y.numpy(), expected)
    assert np.array_equal(model.predict(x, verbose=0), expected)
    gradient = tape.gradient(y, x).numpy()
    kernel = model.get_layer("fc").get_weights()[0]
    assert np.allclose(gradient, np.tile(kernel.sum(axis=1), (16, 1)), atol=1e-6)
    quantizer.unwrap()
    assert np.array_equal(model(x).numpy(), linear()(x).numpy())


def test_a_wrong_output_of_ones_own_is_an_error(client: nc.Client) -> None:
    class Wrong(Quantizer):
        def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
            return weight

        def quantize_layer_output(self, output: Any, config: Any, **kwargs: Any) -> Any:
            return config["give"](output)

    for give, error, message in (
        (lambda output: None, TypeError, "returned None"),
        (lambda output: output[:1], ValueError, r"returned shape \(1, 4\); it must be \(16, 4\)"),
        (lambda output: tf.cast(output, tf.float64), TypeError, "returned float64"),
    ):
        model = linear()
        Wrong([{"give": give}], client=client)(model)
        with pytest.raises(error, match=f"quantize_layer_output of layer 'fc' {message}"):
            model(inputs(1))


def test_a_graph_says_that_it_quantizes_weights_only(client: nc.Client) -> None:
    class Own(Quantizer):
        def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
            return weight

        def quantize_layer_output(self, output: Any, config: Any, **kwargs: Any) -> Any:
            return output

    with tf.Graph().as_default() as graph:
        tf.matmul(tf.ones([1, 3]), v1.get_variable("w", [3, 4]), name="fc")
        quantizer = QATQuantizer(ALL, client=client)
        with pytest.raises(nc.InvalidArgumentError, match="outputs of layer 'fc'; a graph does"):
            quantizer(graph)
        with pytest.raises(nc.UnimplementedError, match="quantize_layer_output.* a graph"):
            Own([{}], client=client)(graph)
