"""Graphs of TensorFlow 1 through a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
import servers
from nni_compression.tensorflow import AGPPruner, LevelPruner, QATQuantizer, layers

v1 = tf.compat.v1
LEVEL = [{"sparsity": 0.5, "op_types": ["default"]}]
AGP = [{"initial_sparsity": 0.0, "final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}]
QAT = [{"quant_types": ["weight"], "quant_bits": 4, "op_types": ["default"]}]


@pytest.fixture(autouse=True)
def graph() -> Iterator[Any]:
    """A new graph, which is the default one."""
    with tf.Graph().as_default() as fresh:
        v1.set_random_seed(1)
        yield fresh


class Network:
    """A small network in the default graph."""

    def __init__(self, *, resource: bool = True) -> None:
        self.x = v1.placeholder(tf.float32, [None, 8, 8, 1])
        self.y = v1.placeholder(tf.int64, [None])
        self.conv = v1.get_variable("conv_w", [3, 3, 1, 4], use_resource=resource)
        self.fc = v1.get_variable("fc_w", [144, 10], use_resource=resource)
        hidden = tf.nn.relu(tf.nn.conv2d(self.x, self.conv, 1, "VALID", name="conv"))
        self.logits = tf.matmul(tf.reshape(hidden, [-1, 144]), self.fc, name="fc")
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self.y, self.logits)
        self.loss = tf.reduce_mean(losses)
        self.feeds = {
            self.x: np.random.default_rng(2).random((16, 8, 8, 1), np.float32),
            self.y: np.arange(16) % 10,
        }

    def training(self) -> Any:
        """An operation that takes a step."""
        return v1.train.GradientDescentOptimizer(0.1).minimize(self.loss)

    def output(self, session: Any, **weights: Any) -> Any:
        """With these values for what the layers read, past all compression."""
        feeds = {self.x: self.feeds[self.x]}
        for name, value in weights.items():
            feeds[v1.get_default_graph().get_operation_by_name(name).inputs[1]] = value
        return session.run(self.logits, feeds)


def started() -> Any:
    """A session with initialized variables, the default one inside of `with`."""
    initialize = v1.global_variables_initializer()
    session = v1.Session()
    session.run(initialize)
    return session


@pytest.mark.parametrize("resource", [True, False], ids=["resource", "reference"])
@pytest.mark.parametrize("gradients", ["before", "after"])
def test_layers_see_zeros_and_the_variables_stay_dense(
    client: nc.Client, graph: Any, resource: bool, gradients: str
) -> None:
    network = Network(resource=resource)
    pruner = LevelPruner(LEVEL, client=client)
    train = network.training() if gradients == "before" else None
    assert pruner(graph) is graph
    train = network.training() if train is None else train
    assert [layer.name for layer in layers(graph)] == ["conv", "fc"]
    assert not any(layer.aliases for layer in layers(graph))
    with started() as session:
        dense = session.run({"conv": network.conv, "fc": network.fc})
        pruner.update_epoch(0, session)
        masks = pruner.masks
        assert masks["fc"].mean() == 0.5
        expected = network.output(session, **{n: w * masks[n] for n, w in dense.items()})
        assert np.array_equal(network.output(session), expected)
        session.run(train, network.feeds)
        moved = session.run(network.fc) != dense["fc"]
        assert moved[masks["fc"]].any()
        if gradients == "after":
            assert not moved[~masks["fc"]].any(), "a pruned weight got a gradient"
        pruner.step()  # in the default session


def test_a_session_without_masks_is_an_error_that_says_what_to_call(
    client: nc.Client, graph: Any
) -> None:
    network = Network()
    LevelPruner(LEVEL, client=client)(graph)
    with started() as session, pytest.raises(tf.errors.InvalidArgumentError, match="update_epoch"):
        network.output(session)


def test_a_session_that_ran_the_graph_before_is_refused(client: nc.Client, graph: Any) -> None:
    network = Network()
    with started() as session:
        pruner = LevelPruner(LEVEL, client=client)
        pruner(graph)
        with pytest.raises(RuntimeError, match="ran the graph before layer 'conv' was compressed"):
            pruner.update_epoch(0, session)
    with started() as session:
        pruner.update_epoch(0, session)
        network.output(session)
        assert pruner.masks["fc"].mean() == 0.5


def test_calls_need_a_session_of_the_graph(client: nc.Client, graph: Any) -> None:
    Network()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(graph)
    with pytest.raises(ValueError, match="there is no session"):
        pruner.update_epoch(0)
    with pytest.raises(ValueError, match="another graph"):
        pruner.update_epoch(0, v1.Session(graph=tf.Graph()))


def test_quantized_values_are_the_services_and_unwrapping_writes_them(
    client: nc.Client, graph: Any
) -> None:
    network = Network()
    pruner, quantizer = LevelPruner(LEVEL, client=client), QATQuantizer(QAT, client=client)
    pruner(graph)
    quantizer(graph)
    train = network.training()
    with started() as session:
        pruner.update_epoch(0)
        quantizer.step(session)
        session.run(train, network.feeds)
        quantizer.step(session)
        dense = session.run({"conv": network.conv, "fc": network.fc})
        with client.bind_model("qat", QAT, layers(graph), framework="tensorflow") as own:
            values = {n: a.dequantize() for n, a in own.quantize_weight(dense).items()}
        masks = pruner.masks
        expected = {n: v * masks[n] for n, v in values.items()}
        output = network.output(session)
        assert np.array_equal(output, network.output(session, **expected))
        quantizer.unwrap()
        pruner.unwrap(session)
        assert np.array_equal(session.run(network.fc), expected["fc"])
        assert np.array_equal(network.output(session), output)
        session.run(train, network.feeds)
        moved = session.run(network.fc) != expected["fc"]
        assert moved[~masks["fc"]].any(), "a plain graph learns all its weights"


@pytest.mark.parametrize("kind", [tf.float16, tf.bfloat16])
def test_weights_behind_a_cast_and_an_identity_and_all_kinds_of_layers(
    client: nc.Client, graph: Any, kind: Any
) -> None:
    image = tf.ones([1, 4, 4, 2])
    depthwise = v1.get_variable("a", [2, 2, 2, 3])
    tf.nn.depthwise_conv2d(image, tf.identity(depthwise), [1, 1, 1, 1], "SAME", name="depthwise")
    tf.nn.conv3d(tf.ones([1, 3, 3, 3, 1]), v1.get_variable("b", [2, 2, 2, 1, 2]), [1] * 5, "VALID")
    product = tf.matmul(tf.ones([1, 6], kind), tf.cast(v1.get_variable("c", [6, 2]), kind))
    pruner = LevelPruner(LEVEL, client=client)
    pruner(graph)
    assert {layer.op_type for layer in layers(graph)} == {
        "DepthwiseConv2dNative",
        "Conv3D",
        "MatMul",
    }
    with started() as session:
        pruner.refresh(session)
        assert all(mask.mean() == 0.5 for mask in pruner.masks.values())
        before = session.run(product)
        pruner.unwrap(session)
        assert np.array_equal(session.run(product), before)


def test_a_saver_has_the_plain_graphs_keys_and_refresh_takes_what_it_restores(
    client: nc.Client, graph: Any, tmp_path: Path
) -> None:
    network = Network()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(graph)
    saver = v1.train.Saver()
    with started() as session:
        pruner.refresh(session)
        path = saver.save(session, str(tmp_path / "model"))
        dense = session.run(network.fc)
    assert sorted(dict(tf.train.list_variables(path))) == ["conv_w", "fc_w"]
    with v1.Session() as session:
        saver.restore(session, path)
        pruner.refresh(session)
        assert np.array_equal(session.run(network.fc), dense)
        network.output(session)


def test_a_monitored_session_with_its_finalized_graph(client: nc.Client, graph: Any) -> None:
    network = Network()
    pruner = AGPPruner(AGP, client=client)
    pruner(graph)
    train = network.training()
    with v1.train.MonitoredSession() as session:
        for epoch in range(11):
            pruner.update_epoch(epoch, session)
            session.run(train, network.feeds)
            pruner.step(session)
        assert 1 - pruner.masks["fc"].mean() == pytest.approx(0.8, abs=0.01)
        pruner.unwrap(session)


def test_masks_are_those_of_a_pytorch_trainer_bit_for_bit(client: nc.Client, graph: Any) -> None:
    network = Network()
    pruner = AGPPruner(AGP, client=client)
    pruner(graph)
    layer = nc.Layer("fc", "Linear", (144, 10))
    with started() as session, client.bind_model("agp", AGP, [layer]) as other:
        weight = session.run(network.fc)
        for epoch in (0, 4, 9):
            pruner.update_epoch(epoch)
            other.update_epoch(epoch)
            mask = other.calc_mask({"fc": weight})["fc"]
            assert np.array_equal(pruner.masks["fc"], mask.to_numpy())


def test_the_state_goes_on_in_a_new_session(client: nc.Client, graph: Any) -> None:
    Network()
    pruner = AGPPruner(AGP, client=client)
    pruner(graph)
    with started():
        pruner.update_epoch(5)
    state, masks = pruner.state_dict(), pruner.masks
    pruner.close()
    with tf.Graph().as_default() as again:
        Network()
        other = AGPPruner(AGP, client=client)
        other.load_state_dict(state)
        other(again)
        assert other.epoch == 5
        assert np.array_equal(other.masks["fc"], masks["fc"])


def test_a_weight_that_is_nan_is_an_error_with_the_layers_name(
    client: nc.Client, graph: Any
) -> None:
    network = Network()
    pruner = LevelPruner(LEVEL, client=client)
    pruner(graph)
    spoil = network.fc.assign(np.full((144, 10), np.nan, np.float32))
    with started() as session:
        session.run(spoil)
        with pytest.raises(nc.InvalidArgumentError, match=r"fc.*at epoch 0, step 0"):
            pruner.refresh(session)


def test_a_session_that_a_restarted_server_lost_is_replaced_with_the_masks(graph: Any) -> None:
    network = Network()
    first = servers.ServerProcess()
    pruner = AGPPruner(AGP, server=first.address)
    pruner(graph)
    with started() as session:
        pruner.update_epoch(5, session)
        masks, output, lost = pruner.masks, network.output(session), pruner.session.id
        first.kill()
        with servers.ServerProcess(port=first.port):
            pruner.update_epoch(5, session)
            assert pruner.session.id != lost
            assert np.array_equal(pruner.masks["fc"], masks["fc"])
            assert np.array_equal(network.output(session), output)
            pruner.update_epoch(9, session)
            assert 1 - pruner.masks["fc"].mean() > 1 - masks["fc"].mean()
            pruner.close()


@pytest.mark.parametrize("transfer", ["weights", "ranges"])
def test_channels_of_a_transposed_matrix_are_its_rows(
    client: nc.Client, graph: Any, transfer: str
) -> None:
    weight = v1.get_variable("w", [5, 8])
    tf.matmul(v1.placeholder(tf.float32, [None, 8]), weight, transpose_b=True, name="fc")
    config = [{**QAT[0], "quant_scheme": "per_channel_symmetric"}]
    quantizer = QATQuantizer(config, client=client, transfer=transfer)
    quantizer(graph)
    with started() as session:
        dense = session.run(weight)
        quantizer.refresh()
        found = quantizer.calibration["fc"]
        assert found["channel_axis"] == 0
        assert np.allclose(found["weight_scale"], np.abs(dense).max(axis=1) / 7, rtol=1e-6)
        quantizer.unwrap()
        scale = found["weight_scale"].reshape(5, 1)
        wanted = np.clip(np.rint(dense * (np.float32(1) / scale)), -7, 7) * scale
        assert np.array_equal(session.run(weight), wanted)


def test_the_plan_says_what_is_not_covered(client: nc.Client, graph: Any) -> None:
    Network()
    v1.get_variable("table", [100, 3])
    v1.get_variable("gamma", [7])
    pruner = LevelPruner(LEVEL, client=client)
    pruner(graph)
    coverage = pruner.plan.coverage
    assert coverage is not None
    assert (coverage.compressed, coverage.weights) == (2, 3)
    assert (coverage.compressed_parameters, coverage.parameters) == (36 + 1440, 1476 + 307)
    assert [(p.name, p.op_type) for p in coverage.left_out] == [("table", "Variable")]
