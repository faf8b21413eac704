"""Algorithms of one's own, computed in the trainer, on Keras models and in graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import nni_compression as nc
from nni_compression.tensorflow import Pruner, Quantizer

keras = tf.keras
v1 = tf.compat.v1
RULES = [{"strength": 1.5, "op_types": ["default"]}]


class YourPruner(Pruner):
    """The skeleton of NNI's overview with its placeholders filled in."""

    def __init__(self, config_list: Any, **options: Any) -> None:
        super().__init__(config_list, **options)
        self.asked: list[Any] = []
        self.told: list[Any] = []

    def bind_model(self, model: Any) -> None:
        self.model = model

    def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
        self.asked.append((kwargs["op_name"], kwargs["op_type"], kwargs["op"]))
        large = tf.abs(weight) > config["strength"] * tf.reduce_mean(tf.abs(weight))
        return tf.cast(large, weight.dtype)

    def update_epoch(self, epoch_num: int, sess: Any) -> None:
        self.told.append((epoch_num, sess))

    def step(self, sess: Any) -> None:
        self.told.append(sess)


class YourQuantizer(Quantizer):
    """NNI's other skeleton: rounds to multiples of `grid`."""

    def __init__(self, config_list: Any, **options: Any) -> None:
        super().__init__(config_list, **options)
        self.asked = 0

    def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return tf.round(weight / config["grid"]) * config["grid"]

    def update_epoch(self, epoch_num: int, sess: Any) -> None:
        pass

    def step(self, sess: Any) -> None:
        pass


def wanted(weight: Any, strength: float = 1.5) -> Any:
    return np.abs(weight) > np.float32(strength) * np.abs(weight).mean(dtype=np.float32)


def images(count: int = 4) -> Any:
    return np.random.default_rng(2).standard_normal((count, 6), dtype=np.float32)


def sequential() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.Dense(3, name="fc"),
        ]
    )


def kernel(model: Any, name: str = "fc") -> Any:
    """The dense weight."""
    return np.asarray(tf.convert_to_tensor(model.get_layer(name).kernel))


class Graph:
    """A layer "fc" in a graph of its own, which is the default one inside of `with`."""

    def __enter__(self) -> Graph:
        self.graph = tf.Graph()
        self._default = self.graph.as_default()
        self._default.__enter__()
        self.x = v1.placeholder(tf.float32, [None, 6])
        initial = np.random.default_rng(1).standard_normal((6, 3), dtype=np.float32)
        self.weight = v1.get_variable("w", initializer=initial)
        self.y = tf.matmul(self.x, self.weight, name="fc")
        return self

    def __exit__(self, *details: Any) -> None:
        self._default.__exit__(*details)

    def session(self) -> Any:
        session = v1.Session()
        session.run(v1.global_variables_initializer())
        return session

    def output(self, session: Any) -> Any:
        return session.run(self.y, {self.x: images()})


class TestKeras:
    def test_the_skeleton_of_a_pruner_prunes(self, client: nc.Client) -> None:
        model = sequential()
        pruner = YourPruner(RULES, client=client)
        assert pruner(model) is model
        assert pruner.model is model
        assert pruner.asked[1] == ("fc", "Dense", model.get_layer("fc"))
        mask = pruner.masks["fc"]
        assert np.array_equal(mask, wanted(kernel(model)))
        output = model(images()).numpy()
        session = pruner.session
        info = session.info()
        assert info.algorithm == "custom_pruner"
        assert info.layers[1].achieved_sparsity == pytest.approx(1 - mask.mean())
        assert pruner.plan.layers["fc"].options["implementation"] == "YourPruner"
        pruner.unwrap()
        assert np.array_equal(model(images()).numpy(), output)
        assert np.array_equal(kernel(model) != 0, mask)

    def test_calc_mask_runs_when_the_weight_the_epoch_or_the_step_may_have_changed(
        self, client: nc.Client
    ) -> None:
        model = sequential()
        pruner = YourPruner(RULES, client=client)
        pruner(model)
        counts = []
        for change in (
            lambda: model(images()),
            lambda: pruner.update_epoch(0),
            lambda: pruner.step(),
            lambda: pruner.refresh(),
        ):
            before = len(pruner.asked)
            change()
            counts.append(len(pruner.asked) - before)
        assert counts == [0, 2, 2, 2]
        assert (pruner.epoch, pruner.steps) == (0, 1)

    def test_the_callback_of_fit_tells_a_skeleton_of_epochs_and_steps(
        self, client: nc.Client
    ) -> None:
        model = sequential()
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        pruner = YourPruner(RULES, client=client)
        pruner(model)
        model.fit(images(8), np.ones((8, 3), np.float32), batch_size=4, epochs=2, verbose=0,
                  callbacks=[pruner.callback()])  # fmt: skip
        assert pruner.told == [(0, None), None, None, (1, None), None, None]
        assert (pruner.epoch, pruner.steps) == (1, 4)
        assert pruner.session.info().epoch == 1
        assert np.array_equal(pruner.masks["fc"], wanted(kernel(model)))

    def test_a_mask_may_be_an_array_and_a_subclass_may_call_the_base(
        self, client: nc.Client
    ) -> None:
        class Growing(Pruner):
            def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                mask = np.ones(weight.shape, np.int32)
                mask.flat[: self.epoch] = 0
                return mask

            def update_epoch(self, epoch_num: int) -> None:
                super().update_epoch(epoch_num)

        pruner = Growing([{}], client=client)
        pruner(sequential())
        for epoch in range(3):
            pruner.update_epoch(epoch)
            assert [int((~mask).sum()) for mask in pruner.masks.values()] == [epoch, epoch]

    def test_the_skeleton_of_a_quantizer_quantizes_with_straight_gradients(
        self, client: nc.Client
    ) -> None:
        model = sequential()
        quantizer = YourQuantizer([{"grid": 0.5, "op_names": ["fc"]}], client=client)
        quantizer(model)
        dense = kernel(model)
        values = np.round(dense / 0.5) * np.float32(0.5)
        x = tf.constant(images())
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(model.get_layer("fc")(x[:, :5]))
        gradient = tape.gradient(y, model.get_layer("fc").trainable_variables[0])
        assert np.allclose(gradient, np.repeat(images()[:, :5].sum(0)[:, None], 3, 1), atol=1e-5)
        assert quantizer.asked == 1, "not on every forward pass"
        assert quantizer.session.info().algorithm == "custom_quantizer"
        assert quantizer.calibration == {}, "the server has no parameters of it"
        quantizer.unwrap()
        assert np.array_equal(kernel(model), values)

    def test_it_resumes_with_its_masks(self, client: nc.Client) -> None:
        pruner = YourPruner(RULES, client=client)
        pruner(sequential())
        pruner.update_epoch(3)
        state, masks = pruner.state_dict(), pruner.masks
        pruner.close()
        resumed = YourPruner(RULES, client=client)
        resumed.load_state_dict(state)
        resumed(sequential())
        assert resumed.epoch == 3
        assert all(np.array_equal(mask, masks[name]) for name, mask in resumed.masks.items())

    @pytest.mark.parametrize(
        ("result", "error", "message"),
        [
            (None, TypeError, "calc_mask of layer 'hidden' returned None; it must be a tensor"),
            (np.ones(3), ValueError, r"returned shape \(3,\); it must be \(6, 5\)"),
            (tf.fill((6, 5), 0.5), ValueError, "a mask with 0.5; it must have 0 and 1 only"),
            (tf.fill((6, 5), "x"), TypeError, "returned dtype object; it must be bool"),
        ],
    )
    def test_a_wrong_mask_is_an_error_that_says_what_is_wrong(
        self, client: nc.Client, result: Any, error: Any, message: str
    ) -> None:
        class Wrong(Pruner):
            def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                return result

        with pytest.raises(error, match=message):
            Wrong([{}], client=client)(sequential())

    @pytest.mark.parametrize(
        ("result", "error", "message"),
        [
            (None, TypeError, "returned None"),
            (tf.ones((1,)), ValueError, r"returned shape \(1,\)"),
            (np.ones((6, 5)), TypeError, "returned dtype float64; it must be float32"),
        ],
    )
    def test_a_wrong_quantized_weight_is_an_error_and_changes_nothing(
        self, client: nc.Client, result: Any, error: Any, message: str
    ) -> None:
        class Wrong(Quantizer):
            def quantize_weight(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                return weight * 0 if kwargs["op_name"] == "fc" else result

        model = sequential()
        plain = model(images()).numpy()
        with pytest.raises(error, match=f"Wrong.quantize_weight of layer 'hidden' {message}"):
            Wrong([{}], client=client)(model)
        assert np.array_equal(sequential()(images()).numpy(), plain)

    def test_a_bfloat16_weight_has_a_bfloat16_mask_and_bfloat16_values(
        self, client: nc.Client
    ) -> None:
        model = keras.Sequential(
            [keras.layers.Input((6,)), keras.layers.Dense(5, name="fc", dtype="bfloat16")]
        )
        quantizer = YourQuantizer([{"grid": 0.5}], client=client)
        quantizer(model)
        pruner = YourPruner(RULES, client=client)
        pruner(model)
        assert 0 < pruner.masks["fc"].mean() < 1
        pruner.unwrap()
        quantizer.unwrap()
        assert model.get_layer("fc").kernel.dtype == "bfloat16"

    def test_a_class_that_declares_options_has_them_checked_and_filled_in(
        self, client: nc.Client
    ) -> None:
        class Declared(Pruner):
            options = {"keep": float, "seed": 7}  # noqa: RUF012
            default_op_types = ("Embedding", "Dense")

            def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                assert config["seed"] == 7
                return tf.ones_like(weight)

        pruner = Declared([{"keep": 1}], client=client)
        pruner(sequential())
        assert pruner.plan.compressed == ("hidden", "fc")
        with pytest.raises(nc.InvalidArgumentError, match="did you mean `keep`"):
            Declared([{"keeps": 1.0}], client=client)


class TestGraph:
    def test_the_skeleton_of_a_pruner_prunes_and_is_asked_once(self, client: nc.Client) -> None:
        with Graph() as network:
            pruner = YourPruner(RULES, client=client)
            pruner(network.graph)
            assert pruner.model is network.graph
            change = network.weight.assign(network.weight[::-1] * network.weight)
            with network.session() as session:
                for epoch in range(2):
                    pruner.update_epoch(epoch, session)
                    pruner.step(session)
                    dense = session.run(network.weight)
                    assert np.array_equal(pruner.masks["fc"], wanted(dense))
                    assert np.allclose(
                        network.output(session), images() @ (dense * pruner.masks["fc"]), atol=1e-5
                    )
                    session.run(change)
                operation = network.graph.get_operation_by_name("fc")
                assert pruner.asked == [("fc", "MatMul", operation)], "a symbolic mask is kept"
                assert pruner.told == [(0, session), session, (1, session), session]
                assert (pruner.epoch, pruner.steps) == (1, 2)
                assert pruner.session.info().algorithm == "custom_pruner"

    def test_a_symbolic_mask_works_in_a_monitored_session_whose_graph_is_finalized(
        self, client: nc.Client
    ) -> None:
        with Graph() as network:
            pruner = YourPruner(RULES, client=client)
            pruner(network.graph)
            with v1.train.MonitoredSession() as session:
                for epoch in range(2):
                    pruner.update_epoch(epoch, session)
                    dense = session.run(network.weight)
                    assert np.array_equal(pruner.masks["fc"], wanted(dense))
                    assert network.graph.finalized
        assert len(pruner.asked) == 1

    def test_a_mask_may_be_an_array_which_is_asked_for_each_time(self, client: nc.Client) -> None:
        class Growing(Pruner):
            def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                smallest = np.argsort(np.abs(weight.eval()), axis=None)
                mask = np.ones(weight.shape, np.bool_)
                mask.flat[smallest[: self.epoch]] = False
                return mask

        with Graph() as network:
            pruner = Growing([{}], client=client)
            pruner(network.graph)
            with v1.train.MonitoredSession() as session:
                size = len(network.graph.get_operations())
                for epoch in range(3):
                    pruner.update_epoch(epoch, session)
                    assert int((~pruner.masks["fc"]).sum()) == epoch
                assert len(network.graph.get_operations()) == size

    def test_the_skeleton_of_a_quantizer_quantizes_with_straight_gradients(
        self, client: nc.Client
    ) -> None:
        with Graph() as network:
            quantizer = YourQuantizer([{"grid": 0.5}], client=client)
            quantizer(network.graph)
            (gradient,) = tf.gradients(network.y, network.weight)
            change = network.weight.assign_add(tf.ones([6, 3]))
            with network.session() as session:
                for _ in range(2):
                    quantizer.step(session)
                    dense = session.run(network.weight)
                    values = np.round(dense / 0.5) * np.float32(0.5)
                    assert np.allclose(network.output(session), images() @ values, atol=1e-5)
                    session.run(change)
                found = session.run(gradient, {network.x: images()})
                assert np.allclose(found, np.repeat(images().sum(0)[:, None], 3, 1), atol=1e-5)
                assert quantizer.asked == 1
                assert quantizer.session.info().algorithm == "custom_quantizer"
                quantizer.unwrap(session)
                values = np.round((dense + 1) / 0.5) * np.float32(0.5)
                assert np.array_equal(session.run(network.weight), values)

    @pytest.mark.parametrize(
        ("result", "error", "message"),
        [
            (lambda: None, TypeError, "returned None; it must be a tensor"),
            (lambda: np.ones(3), ValueError, r"returned shape \(3,\); it must be \(6, 3\)"),
            (lambda: tf.ones([3]), ValueError, r"returned shape \(3,\); it must be \(6, 3\)"),
            (lambda: tf.fill([6, 3], 0.5), ValueError, "returned a mask with 0.5;"),
        ],
    )
    def test_a_wrong_mask_is_an_error_that_says_what_is_wrong(
        self, client: nc.Client, result: Any, error: Any, message: str
    ) -> None:
        class Wrong(Pruner):
            def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                return result()

        with Graph() as network:
            pruner = Wrong([{}], client=client)
            pruner(network.graph)
            with network.session(), pytest.raises(error, match=f"layer 'fc' {message}"):
                pruner.update_epoch(0)
