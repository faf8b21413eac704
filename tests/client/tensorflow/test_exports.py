"""The server's formats, of Keras models and of graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
