"""What `export_model` writes is opened by what it is meant for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.tensorflow import LevelPruner, QATQuantizer

keras = tf.keras
v1 = tf.compat.v1
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
QAT = [{"quant_bits": 4, "op_types": ["default"]}]


def images() -> Any:
    return np.random.default_rng(2).standard_normal((4, 6), dtype=np.float32)


def model_of(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, name="file"),
        ]
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("file", ["model.weights.h5", "model.keras"])
def test_a_plain_keras_model_loads_what_is_left_of_a_pruned_and_quantized_one(
    client: nc.Client, tmp_path: Path, file: str
) -> None:
    model = model_of(1)
    pruner, quantizer = LevelPruner(LEVEL, client=client), QATQuantizer(QAT, client=client)
    quantizer(model)
    pruner(model)
    output, dense = model(images()).numpy(), model.get_weights()
    path, masks = str(tmp_path / file), str(tmp_path / "masks.npz")
    pruner.export_model(path, masks)
    assert names(tmp_path) == ["masks.npz", file]
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), dense))
    if file.endswith(".keras"):
        plain = keras.models.load_model(path)
        assert type(plain.layers[0]) is keras.layers.Dense
    else:
        plain = model_of(2)
        plain.load_weights(path)
    assert np.array_equal(plain(images()).numpy(), output)
    loaded = np.load(masks)
    assert set(loaded) == set(pruner.masks)
    for name, mask in pruner.masks.items():
        assert loaded[name].dtype == np.bool_
        assert np.array_equal(loaded[name], mask)
    kernel = plain.get_layer("hidden").get_weights()[0]
    assert not kernel[~loaded["hidden"]].any()
    assert len(np.unique(kernel)) <= 16


def test_the_quantizer_of_a_pruned_model_exports_its_zeros(
    client: nc.Client, tmp_path: Path
) -> None:
    model = model_of(1)
    quantizer = QATQuantizer([{"quant_bits": 4, "op_types": ["default"]}], client=client)
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["hidden"]}], client=client)
    quantizer(model)
    pruner(model)
    (path,) = quantizer.export(tmp_path, "safetensors")
    (expected,) = pruner.export(tmp_path / "pruner", "safetensors")

    def tensors(file: Path) -> bytes:
        content = file.read_bytes()
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert tensors(path) == tensors(expected)


def test_groups_are_refused(client: nc.Client) -> None:
    rule = {"quant_scheme": "per_channel_affine", "group_size": 2, "op_types": ["default"]}
    with pytest.raises(nc.InvalidArgumentError, match="its channels are dimension 1"):
        QATQuantizer([rule], client=client)(model_of(1))


def test_a_quantizers_calibration_comes_back_bit_for_bit(client: nc.Client, tmp_path: Path) -> None:
    rule = {"quant_bits": 4, "quant_scheme": "per_channel_symmetric", "op_types": ["default"]}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(model_of(1))
    paths = [str(tmp_path / "m.weights.h5"), str(tmp_path / "calibration.json")]
    quantizer.export_model(*paths, None, (1, 6))
    found = json.loads(Path(paths[1]).read_text())
    assert set(found) == set(quantizer.calibration)
    expected = quantizer.calibration["hidden"]
    assert found["hidden"]["weight_bits"] == 4
    assert found["hidden"]["channel_axis"] == 1
    assert np.array_equal(np.float32(found["hidden"]["weight_scale"]), expected["weight_scale"])
    plain = model_of(2)
    plain.load_weights(paths[0])
    assert np.array_equal(plain(images()).numpy(), model(images()).numpy())


def test_a_model_whose_outputs_are_quantized_is_written_as_a_plain_one(
    client: nc.Client, tmp_path: Path
) -> None:
    rule = {"quant_types": ["weight", "output"], "op_types": ["default"]}
    quantizer = QATQuantizer([rule], client=client)
    model = quantizer(model_of(1))
    model(images(), training=True)
    quantizer.step()
    paths = [str(tmp_path / "m.keras"), str(tmp_path / "calibration.json")]
    quantizer.export_model(*paths)
    found = json.loads(Path(paths[1]).read_text())["hidden"]
    assert tuple(found["output_range"]) == quantizer.calibration["hidden"]["output_range"]
    assert found["output_scale"] == quantizer.calibration["hidden"]["output_scale"]
    loaded = keras.models.load_model(paths[0])
    quantizer.unwrap()
    assert np.array_equal(loaded(images()).numpy(), model(images()).numpy())


def test_a_model_that_was_unwrapped_is_exported_with_its_masks(
    client: nc.Client, tmp_path: Path
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model_of(1))
    model = pruner.unwrap()
    pruner.export_model(str(tmp_path / "m.weights.h5"), str(tmp_path / "masks.npz"))
    plain = model_of(2)
    plain.load_weights(str(tmp_path / "m.weights.h5"))
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), model.get_weights()))
    assert np.load(tmp_path / "masks.npz")["hidden"].mean() == 0.5


def test_a_saver_restores_what_a_graph_was_exported_to(client: nc.Client, tmp_path: Path) -> None:
    def build() -> Any:
        w = v1.get_variable("w", [6, 3])
        v1.get_variable("reference", initializer=np.arange(3), use_resource=False)
        return w, tf.matmul(images(), w, name="layers/fc")

    prefix = str(tmp_path / "model")
    with tf.Graph().as_default() as graph:
        w, output = build()
        pruner, quantizer = LevelPruner(LEVEL, client=client), QATQuantizer(QAT, client=client)
        pruner(graph)
        quantizer(graph)
        with v1.train.MonitoredSession() as session:
            quantizer.step(session)
            pruner.export_model(prefix, str(tmp_path / "masks.npz"), sess=session)
            expected = session.run(output)
            weight = session.run(w)
    assert names(tmp_path) == ["masks.npz", "model.data-00000-of-00001", "model.index"]
    assert np.all(weight != 0), "the session's variables stay dense"
    assert np.array_equal(np.load(tmp_path / "masks.npz")["layers/fc"], pruner.masks["layers/fc"])
    with tf.Graph().as_default():
        _, output = build()
        with v1.Session() as session:
            v1.train.Saver().restore(session, prefix)
            assert np.array_equal(session.run(output), expected)
            assert session.run("reference:0").tolist() == [0, 1, 2]


def test_what_cannot_be_written_is_refused_and_leaves_the_old_files_and_the_weights(
    client: nc.Client, tmp_path: Path
) -> None:
    model = model_of(1)
    dense = model.get_weights()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(model)
    path = tmp_path / "m.weights.h5"
    path.write_text("old")
    with pytest.raises(
        nc.InvalidArgumentError, match=r"input_shape is \(1, 7\); the model's input"
    ):
        pruner.export_model(str(path), onnx_path=str(tmp_path / "m.onnx"), input_shape=(1, 7))
    with pytest.raises(OSError, match="no-such"):
        pruner.export_model(str(path), onnx_path=str(tmp_path / "no-such" / "m.onnx"))
    with pytest.raises(nc.InvalidArgumentError, match="model_path is 'm.pth'; it must end with"):
        pruner.export_model("m.pth")
    with pytest.raises(OSError, match="no-such"):
        pruner.export_model(str(path), str(tmp_path / "no-such" / "masks.npz"))
    assert names(tmp_path) == ["m.weights.h5"]
    assert path.read_text() == "old"
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), dense))
