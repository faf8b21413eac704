"""The adapters of PyTorch, of graphs and of Keras give the same bits for the same weights."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
import nni_compression.tensorflow as adapter
from nni_compression._tensorflow import rounding
from servers import ServerProcess

SOURCES = Path(nc.__file__).parents[1]
SHAPE = (37, 10)
CONFIGS = {
    "LevelPruner": [{"sparsity": 0.5, "op_types": ["default"]}],
    "AGPPruner": [
        {"initial_sparsity": 0.2, "final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}
    ],
    "NaiveQuantizer": [{"op_types": ["default"]}],
    "QATQuantizer": [{"quant_types": ["weight"], "quant_bits": 5, "op_types": ["default"]}],
    "DoReFaQuantizer": [{"quant_bits": 3, "op_types": ["default"]}],
}

# Debian's Python, whose PyTorch has another numpy than TensorFlow.
PYTORCH = """
import ast, sys
import numpy as np, torch
import nni_compression.torch as adapter

configs, weight_file, answers_file = ast.literal_eval(sys.argv[1]), *sys.argv[2:]
weight, answers = np.load(weight_file), {}
for name, config in configs.items():
    model = torch.nn.Module()
    model.fc = torch.nn.Linear(weight.shape[1], weight.shape[0])
    model.fc.weight.data = torch.from_numpy(weight.copy())
    options = {"transfer": "weights"} if name.endswith("Quantizer") else {}
    compressor = getattr(adapter, name)(config, **options)
    compressor(model)
    compressor.update_epoch(4)
    compressor.unwrap()
    answers[name] = model.fc.weight.detach().numpy()
np.savez(answers_file, **answers)
"""


@pytest.fixture(scope="module")
def weight() -> Any:
    return np.random.default_rng(5).standard_normal(SHAPE, dtype=np.float32)


@pytest.fixture(scope="module")
def pytorch(weight: Any, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Algorithm's class -> what a trainer with PyTorch ends with."""
    folder = tmp_path_factory.mktemp("pytorch")
    files = [str(folder / "weight.npy"), str(folder / "answers.npz")]
    np.save(files[0], weight)
    subprocess.run(
        ["/usr/bin/python3", "-c", PYTORCH, repr(CONFIGS), *files],
        env={
            **{k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONHOME")},
            "PYTHONPATH": str(SOURCES),
            "NNI_COMPRESSION_SERVER": server.address,
        },
        check=True,
        timeout=300,
    )
    return np.load(files[1])


def in_graph(compressor: Any, weight: Any) -> Any:
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        variable = v1.get_variable("w", SHAPE, initializer=v1.zeros_initializer())
        tf.matmul(tf.ones([1, SHAPE[0]]), variable, name="fc")
        compressor(graph)
        with v1.Session() as session:
            variable.load(weight, session)
            compressor.update_epoch(4)
            compressor.unwrap()
            return session.run(variable)


def in_keras(compressor: Any, weight: Any) -> Any:
    keras = tf.keras
    model = keras.Sequential(
        [keras.layers.Input((SHAPE[0],)), keras.layers.Dense(SHAPE[1], name="fc")]
    )
    model.get_layer("fc").kernel.assign(weight)
    compressor(model)
    compressor.update_epoch(4)
    compressor.unwrap()
    return model.get_layer("fc").get_weights()[0]


@pytest.mark.parametrize("algorithm", CONFIGS)
@pytest.mark.parametrize("train", [in_graph, in_keras])
def test_the_same_weights_give_the_same_bits(
    client: nc.Client, pytorch: Any, weight: Any, algorithm: str, train: Any
) -> None:
    options = {"transfer": "weights"} if algorithm.endswith("Quantizer") else {}
    compressor = getattr(adapter, algorithm)(CONFIGS[algorithm], client=client, **options)
    found = train(compressor, weight)
    assert found.tobytes() == pytorch[algorithm].tobytes()
    assert found.tobytes() != weight.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_beyond_their_type_are_its_largest_number(client: nc.Client, dtype: str) -> None:
    top = min(float(tf.as_dtype(dtype).max), float(np.finfo(np.float32).max))
    dense = np.array([[-0.61 * top, top], [0.5 * top, 0]]).astype(tf.as_dtype(dtype).as_numpy_dtype)
    layers = [nc.Layer("w", "Dense", dense.shape, dtype)]
    with client.bind_model("qat", [{"quant_bits": 2}], layers) as session:
        by_server = session.quantize_weight({"w": rounding.host(dense, dtype)}, reply="values")["w"]
        by_range = session.quantize_range({"w": rounding.array_range(dense, None)})["w"]
    values, _ = rounding.values_and_inside(dense, by_range)
    assert values.tobytes() == rounding.values_and_inside(dense, by_server)[0].tobytes()
    assert values.astype(np.float64).max() == top
