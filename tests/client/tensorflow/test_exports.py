"""The server's formats, of Keras models and of graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.tensorflow import LevelPruner, QATQuantizer, Quantizer

keras = tf.keras
v1 = tf.compat.v1
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
QAT = [{"quant_bits": 4, "op_types": ["default"]}]


def images() -> Any:
    return np.random.default_rng(2).standard_normal((4, 6), dtype=np.float32)


def inner(name: str) -> Any:
    return keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(6, name="fc")], name=name)


def nested() -> Any:
    """A model in which two layers have one name, and one has a half type."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.layers.Input((6,)),
            inner("a"),
            keras.layers.BatchNormalization(name="norm"),
            inner("b"),
            keras.layers.Dense(2, name="half", dtype="bfloat16"),
        ]
    )


def values(model: Any) -> list[Any]:
    return [np.asarray(tf.convert_to_tensor(variable)) for variable in model.weights]


def load(path: Path) -> dict[str, bytes]:
    """What a safetensors file holds: name -> bytes, in the order of these."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:begin])
    entries.pop("__metadata__", None)
    spans = {name: [begin + at for at in entry["data_offsets"]] for name, entry in entries.items()}
    ordered = sorted(spans.items(), key=lambda item: item[1])
    return {name: content[first:last] for name, (first, last) in ordered}


def test_a_pruned_and_quantized_model_is_written_as_one_under_its_variables_names(
    client: nc.Client, tmp_path: Path
) -> None:
    model = nested()
    quantizer = QATQuantizer(QAT, client=client)
    pruner = LevelPruner([*LEVEL, {"op_names": ["a/fc"], "exclude": True}], client=client)
    quantizer(model)
    pruner(model)
    (path,) = pruner.export(tmp_path)
    loaded = load(path)
    quantizer.unwrap()
    pruner.unwrap()
    assert list(loaded.values()) == [array.tobytes() for array in values(model)]
    kernels = [name for name in loaded if "fc" in name and "kernel" in name]
    assert len(kernels) == len(set(kernels)) == 2


def test_a_quantizer_sends_the_dense_weights(client: nc.Client, tmp_path: Path) -> None:
    model = nested()
    quantizer = QATQuantizer(QAT, client=client)
    quantizer(model)
    (path,) = quantizer.export(tmp_path)
    report, _ = quantizer.export(tmp_path, "report")
    layer = json.loads(report.read_text())["layers"][0]
    assert layer["mse"] > 0, "compared with the dense weight"
    plain = nested()
    other = QATQuantizer(QAT, client=client)
    other(plain)
    other.unwrap()
    assert list(load(path).values()) == [array.tobytes() for array in values(plain)]


def test_a_quantizer_exports_what_the_pruner_beside_it_removed(
    client: nc.Client, tmp_path: Path
) -> None:
    model = nested()
    quantizer = QATQuantizer(QAT, client=client)
    pruner = LevelPruner(LEVEL, client=client)
    quantizer(model)
    pruner(model)
    (path,) = quantizer.export(tmp_path)
    quantizer.unwrap()
    pruner.unwrap()
    found = load(path)
    assert list(found.values()) == [array.tobytes() for array in values(model)]
    kernel = next(array for name, array in found.items() if "kernel" in name)
    assert (np.frombuffer(kernel, "float32") == 0).mean() >= 0.5


def test_an_algorithm_of_ones_own_exports_its_values(client: nc.Client, tmp_path: Path) -> None:
    class Rounding(Quantizer):
        def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
            return tf.round(weight * 2) / 2

    model = nested()
    quantizer = Rounding([{}], client=client)
    quantizer(model)
    (path,) = quantizer.export(tmp_path)
    quantizer.unwrap()
    assert list(load(path).values()) == [array.tobytes() for array in values(model)]


def test_masks_need_no_weights(client: nc.Client, tmp_path: Path) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(nested())
    names = [path.name for path in pruner.export(tmp_path, "masks")]
    assert names == ["masks.safetensors", "masks.packed.safetensors"]


def test_the_variables_of_a_graph_are_written_from_a_session(
    client: nc.Client, tmp_path: Path
) -> None:
    with tf.Graph().as_default() as graph:
        weight = v1.get_variable("w", [6, 3])
        v1.get_variable("bias", [3])
        tf.matmul(images(), weight, name="layers/fc")
        pruner, quantizer = LevelPruner(LEVEL, client=client), QATQuantizer(QAT, client=client)
        pruner(graph)
        quantizer(graph)
        with v1.train.MonitoredSession() as session:
            quantizer.step(session)
            (path,) = pruner.export(tmp_path, sess=session)
            quantizer.unwrap(session)
            pruner.unwrap(session)
            expected = session.run({"w": weight, "bias": "bias/Read/ReadVariableOp:0"})
    assert load(path) == {name: array.tobytes() for name, array in expected.items()}
    assert (expected["w"] == 0).sum() >= 9


class PrunedAndQuantized:
    """A graph with a quantizer in four bits and a pruner of the half on its two layers."""

    def __init__(self, client: nc.Client) -> None:
        with tf.Graph().as_default() as self.graph:
            hidden = tf.matmul(images(), v1.get_variable("w", [6, 4]), name="layers/fc")
            tf.matmul(hidden, v1.get_variable("w2", [4, 3]), name="layers/out")
            v1.get_variable("bias", [3])
            self.pruner = LevelPruner(LEVEL, client=client)
            self.quantizer = QATQuantizer(QAT, client=client)
            self.pruner(self.graph)
            self.quantizer(self.graph)
            initialize = v1.global_variables_initializer()
            self.session = v1.Session()
        self.session.run(initialize)
        self.pruner.refresh(self.session)
        self.quantizer.step(self.session)

    def unwrapped(self) -> dict[str, Any]:
        """The variables with zeros and quantized values in them."""
        with self.graph.as_default():
            self.quantizer.unwrap(self.session)
            self.pruner.unwrap(self.session)
            variables = {v.op.name: v for v in v1.global_variables()}
        found: dict[str, Any] = self.session.run(variables)
        return found


def test_a_graph_with_a_pruner_and_a_quantizer_is_exported_as_one_by_either(
    client: nc.Client, tmp_path: Path
) -> None:
    both = PrunedAndQuantized(client)
    files = [
        load(compressor.export(tmp_path / name, sess=both.session)[0])
        for name, compressor in (("p", both.pruner), ("q", both.quantizer))
    ]
    expected = both.unwrapped()
    assert set(expected) == {"w", "w2", "bias"}
    assert (expected["w"] == 0).mean() >= 0.5
    assert len(np.unique(expected["w"])) > 3
    for found in files:
        assert set(found) == set(expected)
        for name, array in expected.items():
            values = np.frombuffer(found[name], np.float32).reshape(array.shape)
            np.testing.assert_array_equal(values, array, err_msg=name)


def test_masks_reports_and_onnx_of_such_a_graph(client: nc.Client, tmp_path: Path) -> None:
    both = PrunedAndQuantized(client)
    masks = {name: mask.copy() for name, mask in both.pruner.masks.items()}
    assert set(masks) == {"layers/fc", "layers/out"}
    path, _ = both.pruner.export(tmp_path, "masks", sess=both.session)
    for name, content in load(path).items():
        np.testing.assert_array_equal(
            np.frombuffer(content, np.uint8) != 0, masks[name].reshape(-1), err_msg=name
        )
    reports = {}
    for name, compressor in (("pruner", both.pruner), ("quantizer", both.quantizer)):
        data, _ = compressor.export(tmp_path / name, "report", sess=both.session)
        reports[name] = json.loads(data.read_text())["layers"]
    assert [layer["achieved_sparsity"] for layer in reports["pruner"]] == [0.5, 0.5]
    assert [layer["bits"] for layer in reports["quantizer"]] == [4, 4]
    assert all(layer["mse"] > 0 for layer in reports["quantizer"])
    (bundle,) = both.quantizer.export(tmp_path, "onnx", sess=both.session)
    parts = load(bundle)
    values = both.unwrapped()
    for name, layer in (("w", "layers/fc"), ("w2", "layers/out")):
        codes = np.frombuffer(parts[f"{name}.codes"], np.uint8).astype(np.int32)
        zero_point = np.frombuffer(parts[f"{name}.zero_point"], np.uint8)
        assert (codes[~masks[layer].reshape(-1)] == zero_point).all()
        scale = np.frombuffer(parts[f"{name}.scale"], np.float32)
        decoded = (codes - zero_point.astype(np.int32)).astype(np.float32) * scale
        np.testing.assert_array_equal(decoded, values[name].reshape(-1))


@pytest.mark.parametrize("format", ["sparse", "masks"])
def test_formats_of_masks_are_left_to_such_a_graphs_pruner(
    client: nc.Client, tmp_path: Path, format: str
) -> None:
    both = PrunedAndQuantized(client)
    with pytest.raises(
        nc.FailedPreconditionError, match="export the session of the model's pruner"
    ):
        both.quantizer.export(tmp_path, format, sess=both.session)
    assert both.pruner.export(tmp_path, format, sess=both.session)
