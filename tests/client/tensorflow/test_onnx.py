"""Keras models and graphs in ONNX: converted, run by ONNX Runtime, with our weights bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.tensorflow import (
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
    Quantizer,
)

keras = tf.keras
v1 = tf.compat.v1
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
IMAGES = np.random.default_rng(3).standard_normal((4, 8, 8, 3)).astype(np.float32)
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


def network() -> Any:
    """Kernels of all layouts, one of them behind a normalization that a converter folds into it."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 3), name="images"),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.SeparableConv2D(6, 2, name="separable"),
            keras.layers.Conv2DTranspose(5, 2, name="transposed"),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="relu", name="square_in"),
            keras.layers.Dense(12, name="square"),
        ]
    )


def run(model: Any, feeds: dict[str, Any], *outputs: str) -> list[Any]:
    """What ONNX Runtime computes, as the graph says it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Any] = session.run(list(outputs) or None, feeds)
    return found


def weights_in(model: Any, feeds: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The weights that ONNX Runtime computes with, by name."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in names:
        shown.graph.node.append(onnx.helper.make_node("Identity", [name], [f"{name}_seen"]))
        info = onnx.helper.make_tensor_value_info(f"{name}_seen", onnx.TensorProto.FLOAT, None)
        shown.graph.output.append(info)
    return dict(zip(names, run(shown, feeds, *[f"{name}_seen" for name in names])))


def kernels_of(model: Any) -> dict[str, Any]:
    """The kernels of a plain model, by the names of their variables."""
    found = {}
    for variable in model.weights:
        name = getattr(variable, "path", None) or variable.name.partition(":")[0]
        if name.rpartition("/")[2] in KERNELS:
            found[name] = np.asarray(tf.convert_to_tensor(variable))
    return found


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        np.testing.assert_array_equal(
            array.view(np.uint32), expected[name].view(np.uint32), err_msg=name
        )


def exported(compressor: Any, folder: Path, **arguments: Any) -> Any:
    path = folder / "model.onnx"
    file = "model.weights.h5" if isinstance(compressor.bound_model, keras.Model) else "model"
    compressor.export_model(str(folder / file), onnx_path=str(path), **arguments)
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    return model


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_pruned_keras_model_has_its_zeros_and_computes_the_same(
    client: nc.Client, tmp_path: Path
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(network())
    expected = model(IMAGES).numpy()
    graph = exported(pruner, tmp_path)
    assert [value.name for value in graph.graph.input] == ["images"]
    assert [value.name for value in graph.graph.output] == ["output"]
    pruner.unwrap()
    kernels = kernels_of(model)
    assert len(kernels) == 7
    assert all((kernel == 0).mean() >= 0.49 for kernel in kernels.values())
    feeds = {"images": IMAGES}
    assert_same_bits(weights_in(graph, feeds, list(kernels)), kernels)
    np.testing.assert_allclose(run(graph, feeds)[0], expected, atol=1e-5)
    one = {"images": IMAGES[:1]}
    np.testing.assert_allclose(run(graph, one)[0], expected[:1], atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8, 11])
@pytest.mark.parametrize("scheme", ["per_tensor_affine", "per_channel_symmetric"])
def test_a_quantized_keras_model_has_codes_that_give_its_values(
    client: nc.Client, tmp_path: Path, scheme: str, bits: int
) -> None:
    rule = {"op_types": ["default"], "quant_bits": bits, "quant_scheme": scheme}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(network())
    expected = model(IMAGES).numpy()
    graph = exported(quantizer, tmp_path)
    quantizer.unwrap()
    kernels = kernels_of(model)
    kinds = {i.name: i.data_type for i in graph.graph.initializer}
    types = onnx.TensorProto
    wanted = types.INT32 if bits > 8 else types.INT8 if "symmetric" in scheme else types.UINT8
    assert {kinds[f"{name}_codes"] for name in kernels} == {wanted}
    assert not set(kernels) & set(kinds)
    feeds = {"images": IMAGES}
    assert_same_bits(weights_in(graph, feeds, list(kernels)), kernels)
    np.testing.assert_allclose(run(graph, feeds)[0], expected, atol=1e-4)


@pytest.mark.parametrize("pruned", [False, True])
def test_outputs_and_inputs_are_quantized_where_the_layers_are(
    client: nc.Client, tmp_path: Path, pruned: bool
) -> None:
    rule = {"op_types": ["default"], "quant_types": ["weight", "output", "input"]}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(network())
    if pruned:
        LevelPruner(LEVEL, client=client)(model)
    for _ in range(2):
        model(IMAGES, training=True)
        quantizer.step()
    expected = model(IMAGES).numpy()
    graph = exported(quantizer, tmp_path)
    # Six layers have outputs and inputs, and seven kernels codes.
    assert operators(graph).count("QuantizeLinear") == 12
    assert operators(graph).count("DequantizeLinear") == 12 + 7
    found = quantizer.calibration["square"]
    feeds = {"images": IMAGES}
    (output,) = run(graph, feeds)
    codes = output / np.float32(found["output_scale"])
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    # A number between two codes may be rounded the other way, and so on from layer to layer.
    assert np.abs(output - expected).max() < 4 * found["output_scale"]
    # Behind its relu the output of a layer has no negative numbers, and a range that begins at 0.
    assert quantizer.calibration["conv"]["output_range"][0] == 0
    kernel = next(name for name in kernels_of(model) if "square/" in name)
    (weight,) = weights_in(graph, feeds, [kernel]).values()
    assert (weight == 0).mean() > 0.49 if pruned else (weight == 0).mean() < 0.1


def test_outputs_with_more_bits_than_onnx_has_are_left_to_a_warning(
    client: nc.Client, tmp_path: Path
) -> None:
    bits = {"weight": 8, "output": 12}
    rule = {"op_types": ["default"], "quant_types": list(bits), "quant_bits": bits}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(network())
    model(IMAGES, training=True)
    quantizer.step()
    with pytest.warns(UserWarning, match="as plain numbers: .* QuantizeLinear takes 8 bits"):
        graph = exported(quantizer, tmp_path)
    quantizer.unwrap()
    kernels = kernels_of(model)
    assert_same_bits(weights_in(graph, {"images": IMAGES}, list(kernels)), kernels)
    assert "QuantizeLinear" not in operators(graph)


@pytest.mark.parametrize("kind", [NaiveQuantizer, DoReFaQuantizer])
def test_other_quantizers_give_their_values_too(
    client: nc.Client, tmp_path: Path, kind: Any
) -> None:
    quantizer = kind([{"op_types": ["default"]}], client=client)
    model = quantizer(network())
    graph = exported(quantizer, tmp_path)
    quantizer.unwrap()
    kernels = kernels_of(model)
    assert_same_bits(weights_in(graph, {"images": IMAGES}, list(kernels)), kernels)


def test_an_algorithm_of_ones_own_gives_its_values_and_leaves_outputs_as_they_are(
    client: nc.Client, tmp_path: Path
) -> None:
    class Rounding(Quantizer):
        def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
            return tf.round(weight * 4) / 4

        def quantize_layer_output(self, output: Any, config: Any, **kwargs: Any) -> Any:
            return tf.round(output)

    quantizer = Rounding([{}], client=client)
    model = quantizer(network())
    graph = exported(quantizer, tmp_path)
    quantizer.unwrap()
    kernels = kernels_of(model)
    feeds = {"images": IMAGES}
    assert_same_bits(weights_in(graph, feeds, list(kernels)), kernels)
    np.testing.assert_allclose(run(graph, feeds)[0], model(IMAGES).numpy(), atol=1e-5)


def test_layers_that_no_rule_takes_and_unwrapped_models_keep_their_weights_too(
    client: nc.Client, tmp_path: Path
) -> None:
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["conv"]}], client=client)
    model = pruner(network())
    first = exported(pruner, tmp_path)
    assert type(model.get_layer("square")) is keras.layers.Dense
    pruner.unwrap()
    kernels = kernels_of(model)
    feeds = {"images": IMAGES}
    for graph in (first, exported(pruner, tmp_path)):
        assert_same_bits(weights_in(graph, feeds, list(kernels)), kernels)
    quantizer = QATQuantizer([{"op_types": ["default"]}], client=client)
    quantizer(model)
    quantizer.unwrap()
    kernels = kernels_of(model)
    with pytest.warns(UserWarning, match=r"unwrap\(\) has ended the session"):
        graph = exported(quantizer, tmp_path)
    assert_same_bits(weights_in(graph, feeds, list(kernels)), kernels)


def test_a_model_with_several_inputs_and_outputs_and_a_layer_that_runs_twice(
    client: nc.Client, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(1)
    left, right = keras.layers.Input((6,), name="left"), keras.layers.Input((6,), name="right")
    shared = keras.layers.Dense(6, name="shared")
    both = keras.layers.Concatenate()([shared(left), shared(right)])
    model = keras.Model([left, right], [keras.layers.Dense(2, name="fc")(both), both])
    rule = {"op_types": ["default"], "quant_types": ["weight", "output"]}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    feeds = {name: IMAGES.reshape(-1, 6)[i : i + 4] for i, name in enumerate(("left", "right"))}
    model(list(feeds.values()), training=True)
    quantizer.step()
    graph = exported(quantizer, tmp_path)
    assert operators(graph).count("QuantizeLinear") == 3
    scale = quantizer.calibration["shared"]["output_scale"]
    first, second = run(graph, feeds, "output_0", "output_1")
    assert first.shape == (4, 2)
    np.testing.assert_allclose(second / scale, np.rint(second / scale), atol=1e-3)
    with pytest.raises(nc.InvalidArgumentError, match=r"input_shape is \(4, 6\); with 2 inputs"):
        exported(quantizer, tmp_path, input_shape=(4, 6))


def sequential(shape: tuple[int, ...], *layers: Any, dtype: Any = None) -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.layers.Input(shape, dtype=dtype), *layers])


def sequences() -> Any:
    return sequential(
        (8, 3),
        keras.layers.Conv1D(4, 3, name="conv"),
        keras.layers.TimeDistributed(keras.layers.Dense(4, name="inner")),
        keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), name="einsum"),
        keras.layers.LSTM(6),
        keras.layers.Dense(3, name="fc"),
    )


def volumes() -> Any:
    return sequential(
        (8, 8, 3),
        keras.layers.Reshape((4, 4, 4, 3)),
        keras.layers.Conv3D(2, 2, name="conv"),
        keras.layers.Conv3DTranspose(2, 2, name="transposed"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="fc"),
    )


def mixed() -> Any:
    return sequential(
        (6,),
        keras.layers.Dense(5, name="half", dtype="mixed_float16"),
        keras.layers.Dense(3, name="fc"),
    )


@pytest.mark.parametrize(("make", "count"), [(sequences, 4), (volumes, 3), (mixed, 2)])
def test_layers_of_all_shapes_and_types_are_quantized_with_their_outputs(
    client: nc.Client, tmp_path: Path, make: Any, count: int
) -> None:
    rule = {"op_types": ["default", "EinsumDense"], "quant_types": ["weight", "output"]}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(make())
    values = IMAGES.reshape(-1, *model.input_shape[1:])
    model(values, training=True)
    quantizer.step()
    expected = model(values).numpy()
    graph = exported(quantizer, tmp_path)
    feeds = {graph.graph.input[0].name: values}
    scale = quantizer.calibration["fc"]["output_scale"]
    assert np.abs(run(graph, feeds)[0] - expected).max() < 3 * scale
    quantizer.unwrap()
    ours = {n: k for n, k in kernels_of(model).items() if "lstm" not in n}
    assert len(ours) == count
    assert_same_bits(weights_in(graph, feeds, list(ours)), ours)
    initializers = {i.name for i in graph.graph.initializer}
    assert {f"{name}_output_scale" for name in ours} <= initializers


class Looping(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.fc = keras.layers.Dense(6, name="fc")

    def call(self, values: Any, training: Any = None) -> Any:
        def body(i: Any, seen: Any) -> Any:
            return i + 1, self.fc(seen, training=training)

        return tf.while_loop(lambda i, seen: i < 3, body, [0, values])[1]


class Unknown(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.fc = keras.layers.Dense(6, name="fc")

    def call(self, values: Any) -> Any:
        return tf.math.betainc(tf.ones_like(values), 2.0, tf.sigmoid(self.fc(values)))


def test_what_onnx_has_no_place_for_is_an_error(client: nc.Client, tmp_path: Path) -> None:
    values = IMAGES.reshape(-1, 6)
    model = Looping()
    model(values)
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    graph = exported(pruner, tmp_path, input_shape=(None, 6))
    feeds = {graph.graph.input[0].name: values}
    np.testing.assert_allclose(run(graph, feeds)[0], model(values).numpy(), atol=1e-5)
    rule = {"op_types": ["default"], "quant_types": ["output"]}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(model)
    model(values, training=True)
    quantizer.step()
    with pytest.raises(nc.UnimplementedError, match="output of .* inside a loop or a condition"):
        exported(quantizer, tmp_path, input_shape=(None, 6))
    model = Unknown()
    model(values)
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    with pytest.raises(nc.UnimplementedError, match="tf2onnx made no valid model.*Betainc"):
        exported(pruner, tmp_path, input_shape=(None, 6))


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.fc = keras.layers.Dense(3, name="fc")

    def call(self, values: Any) -> Any:
        return tf.nn.relu(self.fc(values))


def test_input_shape_is_that_of_the_one_input(client: nc.Client, tmp_path: Path) -> None:
    def shape(graph: Any) -> list[int]:
        (value,) = graph.graph.input
        return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]

    pruner = LevelPruner(LEVEL, client=client)
    pruner(network())
    assert shape(exported(pruner, tmp_path, input_shape=(2, 8, 8, 3))) == [2, 8, 8, 3]
    with pytest.raises(
        nc.InvalidArgumentError, match=r"input_shape is \(2, 9, 8, 3\); the model's"
    ):
        exported(pruner, tmp_path, input_shape=(2, 9, 8, 3))
    model = Subclassed()
    values = IMAGES.reshape(-1, 6)
    model(values)
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    graph = exported(pruner, tmp_path, input_shape=(None, 6))
    np.testing.assert_allclose(
        run(graph, {graph.graph.input[0].name: values})[0], model(values).numpy(), atol=1e-5
    )


def test_what_cannot_be_converted_is_an_error_and_no_file(
    client: nc.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Subclassed()
    model(IMAGES.reshape(-1, 6))
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    if not getattr(model, "inputs", None):
        with pytest.raises(nc.InvalidArgumentError, match="onnx_path needs input_shape"):
            exported(pruner, tmp_path)
    with pytest.raises(TypeError, match="outputs is 'fc'; it must be None"):
        exported(pruner, tmp_path, outputs="fc")
    import nni_compression.keras as adapter

    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.delitem(sys.modules, "nni_compression.keras.onnx", raising=False)
    monkeypatch.delattr(adapter, "onnx", raising=False)
    with pytest.raises(ImportError, match=r"onnx_path is '.*', which needs the package tf2onnx"):
        exported(pruner, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Graph:
    """A network in a graph of its own, with an input that has a default."""

    def __init__(self, *, resource: bool = True) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            v1.set_random_seed(1)
            self.images = v1.placeholder(tf.float32, [None, 8, 8, 3], name="images")
            factor = v1.placeholder_with_default(1.0, [], name="factor")

            def weight(name: str, *shape: int) -> Any:
                return v1.get_variable(name, shape, use_resource=resource)

            x = tf.nn.conv2d(self.images, weight("conv_w", 3, 3, 3, 4), 1, "SAME", name="conv")
            x = tf.nn.relu(x * weight("gain", 4) + weight("bias", 4))
            x = tf.nn.depthwise_conv2d(
                x, weight("deep_w", 3, 3, 4, 2), [1] * 4, "VALID", name="deep"
            )
            x = tf.reshape(x, [-1, 288]) * factor
            self.logits = tf.matmul(x, weight("fc_w", 288, 10), name="fc")
            self.classes = tf.nn.softmax(self.logits, name="classes")
            self.weights = {w.op.name: w for w in v1.trainable_variables() if "_w" in w.op.name}

    def session(self) -> Any:
        with self.graph.as_default():
            initialize = v1.global_variables_initializer()
            session = v1.Session()
            session.run(initialize)
            return session


@pytest.mark.parametrize("resource", [True, False], ids=["resource", "reference"])
def test_a_pruned_graph_has_its_zeros_and_computes_the_same(
    client: nc.Client, tmp_path: Path, resource: bool
) -> None:
    network = Graph(resource=resource)
    pruner = LevelPruner(LEVEL, client=client)
    pruner(network.graph)
    with network.session() as session:
        pruner.refresh(session)
        feeds = {"images": IMAGES}
        expected = session.run(network.classes, {network.images: IMAGES})
        graph = exported(pruner, tmp_path, sess=session, outputs=[network.classes, "fc"])
        assert [value.name for value in graph.graph.input] == ["images"]
        assert [value.name for value in graph.graph.output] == ["classes", "fc"]
        np.testing.assert_allclose(run(graph, feeds)[0], expected, atol=1e-5)
        single = exported(
            pruner, tmp_path, sess=session, outputs="classes:0", input_shape=(4, 8, 8, 3)
        )
        np.testing.assert_allclose(run(single, feeds)[0], expected, atol=1e-5)
        pruner.unwrap(session)
        kernels = session.run(network.weights)
        again = exported(pruner, tmp_path, sess=session, outputs=network.classes)
    assert all((kernel == 0).mean() >= 0.5 for kernel in kernels.values())
    for model in (graph, single, again):
        assert_same_bits(weights_in(model, feeds, list(kernels)), kernels)


def test_a_graphs_weights_behind_a_cast(client: nc.Client, tmp_path: Path) -> None:
    with tf.Graph().as_default() as whole:
        values = v1.placeholder(tf.float16, [None, 6], name="values")
        weight = v1.get_variable("w", [6, 3])
        output = tf.matmul(values, tf.cast(weight, tf.float16), name="fc")
        pruner = LevelPruner(LEVEL, client=client)
        pruner(whole)
        with v1.train.MonitoredSession() as session:
            pruner.refresh(session)
            feeds = {"values": IMAGES.reshape(-1, 6).astype(np.float16)}
            expected = session.run(output, {values: feeds["values"]})
            graph = exported(pruner, tmp_path, sess=session, outputs=output)
            pruner.unwrap(session)
            kernels = {"w": session.run(weight)}
    assert_same_bits(weights_in(graph, feeds, ["w"]), kernels)
    np.testing.assert_allclose(run(graph, feeds)[0], expected, atol=0.02)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_quantized_graph_has_codes_that_give_its_values(
    client: nc.Client, tmp_path: Path, pruned: bool
) -> None:
    network = Graph()
    rule = {"op_types": ["default"], "quant_bits": 4, "quant_scheme": "per_channel_affine"}
    quantizer = QATQuantizer([rule], client=client)
    quantizer(network.graph)
    pruner = LevelPruner(LEVEL, client=client)
    if pruned:
        pruner(network.graph)
    with network.graph.as_default(), v1.train.MonitoredSession() as session:
        if pruned:
            pruner.refresh(session)
        quantizer.step(session)
        expected = session.run(network.classes, {network.images: IMAGES})
        graph = exported(quantizer, tmp_path, sess=session, outputs="classes")
        quantizer.unwrap(session)
        if pruned:
            pruner.unwrap(session)
        kernels = session.run(network.weights)
    assert operators(graph).count("DequantizeLinear") == 3
    feeds = {"images": IMAGES}
    found = weights_in(graph, feeds, list(kernels))
    assert_same_bits(found, {name: kernel + np.float32(0) for name, kernel in kernels.items()})
    assert all((kernel == 0).mean() >= 0.5 for kernel in found.values()) or not pruned
    np.testing.assert_allclose(run(graph, feeds)[0], expected, atol=1e-4)


def test_a_graphs_outputs_have_to_be_said(client: nc.Client, tmp_path: Path) -> None:
    network = Graph()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(network.graph)
    with network.session() as session:
        for outputs, message in ((None, "onnx_path needs outputs"), ("nobody", "outputs has 'nob")):
            with pytest.raises(nc.InvalidArgumentError, match=message):
                exported(pruner, tmp_path, sess=session, outputs=outputs)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
import numpy as np
import onnx
import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()
from nni_compression.tensorflow import QATQuantizer

images = tf.placeholder(tf.float32, [None, 6], name="images")
weight = tf.get_variable("weight", [6, 3])
logits = tf.matmul(images, weight, name="fc")
quantizer = QATQuantizer([{"op_types": ["default"]}])
quantizer(tf.get_default_graph())
with tf.Session() as sess:
    sess.run(tf.global_variables_initializer())
    quantizer.step(sess)
    quantizer.export_model("model", onnx_path="model.onnx", sess=sess, outputs=logits)
assert [n.op_type for n in onnx.load("model.onnx").graph.node][0] == "DequantizeLinear"
"""


def test_a_script_for_tensorflow_1_writes_onnx(server: Any, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(root / "client/python/src"),
            "NNI_COMPRESSION_SERVER": server.address,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
