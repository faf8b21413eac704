"""Numbers that are right: the server's answers against oracles written from the formulas.

Shapes, dtypes and parameters are random (from fixed seeds); edge cases are listed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
import oracles

Array = np.ndarray[Any, np.dtype[Any]]

PRUNER_DTYPES = ["float32", "float16", "bfloat16", "float64"]


def random_shape(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(size) for size in random.integers(1, 12, random.integers(1, 5)))


def in_dtype(values: Array, dtype: str) -> tuple[Any, Array]:
    """What is sent for these values in this dtype, and what the receiver reads."""
    if dtype != "bfloat16":
        array = values.astype(dtype)
        return array, array
    bits = oracles.to_bfloat16(values)
    return nc.Tensor(bits, "bfloat16", values.shape), oracles.from_bfloat16(bits)


def weights_of_every_kind(random: np.random.Generator, dtype: str) -> dict[str, tuple[Any, Array]]:
    """Random weights, and those at the edges of the dtype and of the definitions."""
    smallest = {"float16": 6e-8, "float64": 5e-324}.get(dtype, 1e-45)
    largest = {"float16": 6e4, "float64": 1.7e308}.get(dtype, 3e38)
    kinds = {f"normal{i}": random.normal(size=random_shape(random)) for i in range(12)}
    kinds.update(
        ties=np.ones(10),
        few_values=random.integers(-2, 3, (50, 7)).astype(float),
        zeros=np.zeros((4, 5)),
        signed_zeros=np.array([0.0, -0.0] * 9),
        single=np.array([-3.0]),
        subnormal=random.integers(-5, 6, 300) * smallest,
        extremes=random.choice([-largest, largest, smallest, 0.0, 1.0], 301),
        descending=np.arange(1000, 0, -1.0),
        odd_length=random.normal(size=4099),
        larger=random.normal(size=(300, 333)),
    )
    return {name: in_dtype(values, dtype) for name, values in kinds.items()}


def layers_for(weights: dict[str, tuple[Any, Array]], dtype: str) -> list[nc.Layer]:
    return [nc.Layer(n, "Linear", seen.shape, dtype) for n, (_, seen) in weights.items()]


class TestLevel:
    @pytest.mark.parametrize("dtype", PRUNER_DTYPES)
    @pytest.mark.parametrize(
        "sparsity", [0, 1, 0.5, 0.8, 0.1, 1 / 3, 0.999, 1e-9, math.nextafter(1, 0)]
    )
    def test_masks_are_the_formulas(self, client: nc.Client, dtype: str, sparsity: float) -> None:
        weights = weights_of_every_kind(np.random.default_rng(11), dtype)
        layers = layers_for(weights, dtype)
        with client.bind_model("level", [{"sparsity": sparsity}], layers) as session:
            masks = session.calc_mask({name: sent for name, (sent, _) in weights.items()})
        for name, (_, seen) in weights.items():
            expected = oracles.level(seen, sparsity)
            np.testing.assert_array_equal(masks[name].to_numpy(), expected, err_msg=name)
            assert masks[name].pruned == int(seen.size * sparsity)

    def test_a_random_sparsity_for_every_layer(self, client: nc.Client) -> None:
        random = np.random.default_rng(12)
        weights = {f"l{i}": random.normal(size=random_shape(random)) for i in range(200)}
        sparsities = {name: float(random.random()) for name in weights}
        rules = [{"sparsity": s, "op_names": [name]} for name, s in sparsities.items()]
        layers = [nc.Layer(name, "Conv2d", w.shape, "float64") for name, w in weights.items()]
        with client.bind_model("level", rules, layers) as session:
            masks = session.calc_mask(weights)
        for name, weight in weights.items():
            np.testing.assert_array_equal(
                masks[name].to_numpy(), oracles.level(weight, sparsities[name])
            )

    def test_equal_magnitudes_go_by_index(self, client: nc.Client) -> None:
        layers = [nc.Layer("w", "Linear", (10,))]
        with client.bind_model("level", [{"sparsity": 0.3}], layers) as session:
            mask = session.calc_mask({"w": np.array([1, -1] * 5, np.float32)})["w"]
        assert mask.to_numpy().tolist() == [False] * 3 + [True] * 7


class TestAgp:
    def test_the_table(self, client: nc.Client) -> None:
        rule = {"initial_sparsity": 0, "final_sparsity": 0.8, "start_epoch": 0, "end_epoch": 10}
        weight = np.arange(1, 101, dtype=np.float32)
        seen = []
        with client.bind_model("agp", [rule], [nc.Layer("w", "Linear", (100,))]) as session:
            for epoch in range(11):
                session.update_epoch(epoch)
                seen.append(session.calc_mask({"w": weight})["w"].pruned)
        assert seen == [0, 23, 42, 56, 66, 72, 77, 79, 79, 80, 80]

    @pytest.mark.parametrize("seed", range(12))
    def test_other_schedules_with_weights_that_change(self, client: nc.Client, seed: int) -> None:
        random = np.random.default_rng(seed)
        dtype = PRUNER_DTYPES[seed % len(PRUNER_DTYPES)]
        initial, final = sorted(random.random(2).tolist())
        start = int(random.integers(0, 4))
        frequency = int(random.integers(1, 4))
        end = start + frequency + 1 + int(random.integers(0, 12))
        rule = {
            "initial_sparsity": initial,
            "final_sparsity": final,
            "start_epoch": start,
            "end_epoch": end,
            "frequency": frequency,
        }
        shapes = {f"l{i}": random_shape(random) for i in range(5)}
        agp = {name: oracles.Agp(final, end, initial, start, frequency) for name in shapes}
        layers = [nc.Layer(name, "Linear", shape, dtype) for name, shape in shapes.items()]
        epochs = [e for e in range(end + 3 * frequency) if random.random() < 0.8]
        with client.bind_model("agp", [rule], layers) as session:
            for epoch in epochs:
                session.update_epoch(epoch)
                sent, expected = {}, {}
                for name, shape in shapes.items():
                    sent[name], seen = in_dtype(random.normal(size=shape), dtype)
                    expected[name] = agp[name].mask(seen, epoch)
                masks = session.calc_mask(sent)
                for name, mask in masks.items():
                    np.testing.assert_array_equal(mask.to_numpy(), expected[name])


JOINT = [
    ("global_magnitude", "none"),
    ("global_magnitude", "mean"),
    ("global_magnitude", "l2"),
    ("lamp", "lamp"),
]


class TestJoint:
    """Layers that are decided about together: the counts of each, and which weights they are."""

    @pytest.mark.parametrize("dtype", PRUNER_DTYPES)
    @pytest.mark.parametrize(("algorithm", "normalize"), JOINT)
    @pytest.mark.parametrize("sparsity", [0, 0.02, 1 / 3, 0.8, 0.99, 1])
    def test_masks_are_the_formulas(
        self, client: nc.Client, dtype: str, algorithm: str, normalize: str, sparsity: float
    ) -> None:
        weights = weights_of_every_kind(np.random.default_rng(21), dtype)
        if dtype == "float64" and normalize != "none":  # whose sums drop their lowest bits
            del weights["subnormal"], weights["extremes"]
        rule: dict[str, Any] = {"sparsity": sparsity}
        if algorithm == "global_magnitude":
            rule["normalize"] = normalize
        with client.bind_model(algorithm, [rule], layers_for(weights, dtype)) as session:
            masks = session.calc_mask({name: sent for name, (sent, _) in weights.items()})
        values = {name: seen for name, (_, seen) in weights.items()}
        counts = oracles.joint_counts(values, sparsity, normalize)
        assert {name: mask.pruned for name, mask in masks.items()} == counts
        for name, weight in values.items():
            expected = oracles.prune_smallest(weight, counts[name])
            np.testing.assert_array_equal(masks[name].to_numpy(), expected, err_msg=name)

    @pytest.mark.parametrize("seed", range(40))
    def test_schedules_and_limits_with_weights_that_change(
        self, client: nc.Client, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        dtype = PRUNER_DTYPES[seed % len(PRUNER_DTYPES)]
        normalize = ("none", "mean", "l2", "lamp")[seed // 4 % 4]
        ties = bool(random.random() < 0.5)
        initial, final = sorted(random.random(2).tolist())
        end = 2 + int(random.integers(0, 6))
        shapes = {f"l{i}": random_shape(random) for i in range(int(random.integers(1, 7)))}
        sizes = [math.prod(shape) for shape in shapes.values()]
        limits = {
            "min_sparsity": float(random.random() * final),
            "max_sparsity": float(final + random.random() * (1 - final)),
        }
        most = sum(int(size * limits["max_sparsity"]) for size in sizes)
        if most < int(sum(sizes) * final):
            limits["max_sparsity"] = 1.0
        rule = {
            "initial_sparsity": initial,
            "final_sparsity": final,
            "end_epoch": end,
            "scope": "global",
            "normalize": normalize,
            **limits,
        }
        target = oracles.Agp(final, end, initial).target
        gone = {name: np.zeros(shape, bool) for name, shape in shapes.items()}
        layers = [nc.Layer(name, "Linear", shape, dtype) for name, shape in shapes.items()]
        with client.bind_model("agp", [rule], layers) as session:
            for epoch in range(end + 2):
                session.update_epoch(epoch)
                sent, seen = {}, {}
                for name, shape in shapes.items():
                    values = random.normal(size=shape) * (1 + 3 * random.random())
                    values = np.round(values) if ties else values
                    sent[name], seen[name] = in_dtype(values, dtype)
                if int(sum(sizes) * target(epoch)) > sum(int(g.sum()) for g in gone.values()):
                    counts = oracles.joint_counts(
                        seen, target(epoch), normalize, already=gone, **limits
                    )
                    gone = {
                        name: ~oracles.prune_smallest(seen[name], counts[name], gone[name])
                        for name in shapes
                    }
                masks = session.calc_mask(sent)
                for name, mask in masks.items():
                    expected = ~gone[name]
                    np.testing.assert_array_equal(mask.to_numpy(), expected, err_msg=f"{epoch}")

    def test_limits_that_cannot_be_met_are_refused(self, client: nc.Client) -> None:
        layers = [nc.Layer("a", "Linear", (3,)), nc.Layer("b", "Linear", (3,))]
        for rule, told in (
            (
                {"sparsity": 0.5, "min_sparsity": 0.6},
                r"min_sparsity is 0\.6; it must be in \[0, 0\.5\]",
            ),
            (
                {"sparsity": 0.5, "max_sparsity": 0.4},
                r"max_sparsity is 0\.4; it must be in \[0\.5, 1\]",
            ),
            ({"sparsity": 0.5, "max_sparsity": 0.5}, r"lose at most 2 weights .* 3 of 6"),
        ):
            with pytest.raises(nc.InvalidArgumentError, match=told):
                client.bind_model("global_magnitude", [rule], layers)

    def test_equal_scores_go_by_layer_and_index(self, client: nc.Client) -> None:
        layers = [nc.Layer(name, "Linear", (4,)) for name in "ba"]
        weights = {name: np.array([1, -1, 1, -1], np.float32) for name in "ab"}
        with client.bind_model("global_magnitude", [{"sparsity": 0.75}], layers) as session:
            masks = session.calc_mask(weights)
        assert masks["b"].pruned == 4
        assert masks["a"].to_numpy().tolist() == [False, False, True, True]


def quantized(client: nc.Client, algorithm: str, rule: dict[str, Any], **weights: Array) -> Any:
    """The answers for weights whose layers are called after them."""
    layers = [nc.Layer(name, "Linear", w.shape, w.dtype) for name, w in weights.items()]
    with client.bind_model(algorithm, [rule], layers) as session:
        return session.quantize_weight(weights)


def quantizer_weights(seed: int, dtype: str = "float32") -> dict[str, Array]:
    random = np.random.default_rng(seed)
    kinds = {f"normal{i}": random.normal(size=random_shape(random)) for i in range(8)}
    kinds.update(
        positive=random.random((30, 7)) + 0.5,
        negative=-random.random(100) - 0.5,
        uneven=random.normal(size=(40, 30)) * np.exp(random.normal(size=(40, 1)) * 3),
        halves=(np.arange(-256, 256) + 0.5) / 16,  # codes exactly between two
        single=np.array([0.7]),
        larger=random.normal(size=(100, 100)),
    )
    return {name: values.astype(dtype) for name, values in kinds.items()}


class TestNaive:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_codes_and_scales_are_the_formulas(self, client: nc.Client, dtype: str) -> None:
        weights = quantizer_weights(21, dtype)
        for name, q in quantized(client, "naive", {}, **weights).items():
            expected = oracles.naive(weights[name])
            assert q.scale == expected.scale, name
            assert (q.bits, q.zero_point, q.codes.dtype) == (8, 0, np.int8)
            np.testing.assert_array_equal(q.codes, expected.codes, err_msg=name)
            np.testing.assert_array_equal(q.dequantize(), expected.values, err_msg=name)

    def test_the_scale_only_grows(self, client: nc.Client) -> None:
        random = np.random.default_rng(22)
        scale = 0.0
        with client.bind_model("naive", [{}], [nc.Layer("w", "Linear", (50,))]) as session:
            for _ in range(10):
                weight = (random.normal(size=50) * np.exp(random.normal())).astype(np.float32)
                q = session.quantize_weight({"w": weight})["w"]
                expected = oracles.naive(weight, scale)
                assert q.scale == expected.scale >= scale
                np.testing.assert_array_equal(q.codes, expected.codes)
                scale = q.scale

    def test_zeros_are_codes_zero(self, client: nc.Client) -> None:
        q = quantized(client, "naive", {}, w=np.zeros(9, np.float32))["w"]
        assert not q.codes.any()
        assert not q.dequantize().any()


SCHEMES = {
    "per_tensor_affine": (False, None),
    "per_tensor_symmetric": (True, None),
    "per_channel_affine": (False, 0),
    "per_channel_symmetric": (True, 0),
}


class TestQat:
    @pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 9, 12, 16])
    @pytest.mark.parametrize("scheme", list(SCHEMES))
    def test_codes_parameters_and_values_are_the_formulas(
        self, client: nc.Client, scheme: str, bits: int
    ) -> None:
        symmetric, axis = SCHEMES[scheme]
        weights = quantizer_weights(31)
        rule = {"quant_bits": bits, "quant_scheme": scheme}
        for name, q in quantized(client, "qat", rule, **weights).items():
            expected = oracles.qat(weights[name], bits, symmetric, axis)
            np.testing.assert_array_equal(q.scale, expected.scale, err_msg=name)
            np.testing.assert_array_equal(q.zero_point, expected.zero_point, err_msg=name)
            np.testing.assert_array_equal(q.codes, expected.codes, err_msg=name)
            np.testing.assert_array_equal(q.dequantize(), expected.values, err_msg=name)
            assert (q.bits, q.channel_axis) == (bits, axis)

    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("bits", [2, 4, 8, 12])
    @pytest.mark.parametrize(("shape", "group_size"), [((6, 24), 8), ((3, 4, 5, 2), 10)])
    def test_groups_are_rounded_on_their_own(
        self,
        client: nc.Client,
        symmetric: bool,
        bits: int,
        shape: tuple[int, ...],
        group_size: int,
    ) -> None:
        weight = np.random.default_rng(34).normal(size=shape).astype(np.float32)
        scheme = "per_channel_symmetric" if symmetric else "per_channel_affine"
        rule = {"quant_bits": bits, "quant_scheme": scheme, "group_size": group_size}
        layers = [nc.Layer("w", "Linear", shape)]
        groups = weight.reshape(-1, group_size)
        with client.bind_model("qat", [rule], layers) as session:
            plan = session.plan.layers["w"]
            assert (plan.range_per_channel, plan.range_group_size) == (True, group_size)
            by_weight = session.quantize_weight({"w": weight})["w"]
            values = session.quantize_weight({"w": weight}, reply="values")["w"].values
            ranges = {"w": np.stack([groups.min(axis=1), groups.max(axis=1)])}
            by_range = session.quantize_range(ranges)["w"]
            by_step = session.step(1, ranges=ranges).parameters["w"]
        expected = oracles.qat_in_groups(weight, bits, symmetric, group_size)
        for q in (by_weight, by_range, by_step):
            np.testing.assert_array_equal(q.scale, expected.scale)
            np.testing.assert_array_equal(q.zero_point, expected.zero_point)
            assert (q.channel_axis, q.group_size) == (0, group_size)
        np.testing.assert_array_equal(by_weight.codes, expected.codes)
        np.testing.assert_array_equal(by_weight.dequantize(), expected.values)
        np.testing.assert_array_equal(values, expected.values)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_floats_are_widened_first(self, client: nc.Client, dtype: str) -> None:
        values = np.random.default_rng(32).normal(size=(20, 30))
        sent, seen = in_dtype(values, dtype)
        layers = [nc.Layer("w", "Linear", (20, 30), dtype)]
        with client.bind_model("qat", [{}], layers) as session:
            q = session.quantize_weight({"w": sent})["w"]
            rounded = session.quantize_weight({"w": sent}, reply="values")["w"].values
        expected = oracles.qat(seen, 8)
        np.testing.assert_array_equal(q.codes, expected.codes)
        assert rounded is not None
        if dtype == "bfloat16":
            assert rounded.dtype == np.uint16
            error = np.abs(oracles.from_bfloat16(rounded) - expected.values)
            assert (error <= np.abs(expected.values) * 2.0**-8).all()
        else:
            np.testing.assert_array_equal(rounded, expected.values.astype(np.float16))

    @pytest.mark.parametrize(
        ("weight", "scale", "zero_point"),
        [([1, 2, 3, 5], 5 / 255, 0), ([-1, 2, 3, 5], 6 / 255, 42), ([0, 0, 0], 1, 0)],
    )
    def test_the_examples(
        self, client: nc.Client, weight: list[float], scale: float, zero_point: int
    ) -> None:
        q = quantized(client, "qat", {}, w=np.array(weight, np.float32))["w"]
        assert (q.scale, q.zero_point) == (np.float32(scale), zero_point)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_a_channel_of_zeros_beside_others(self, client: nc.Client, symmetric: bool) -> None:
        weight = np.random.default_rng(33).normal(size=(4, 9)).astype(np.float32)
        weight[2] = 0
        scheme = "per_channel_symmetric" if symmetric else "per_channel_affine"
        q = quantized(client, "qat", {"quant_scheme": scheme}, w=weight)["w"]
        expected = oracles.qat(weight, 8, symmetric, 0)
        assert q.scale[2] == 1
        np.testing.assert_array_equal(q.dequantize(), expected.values)
        assert not q.dequantize()[2].any()

    def test_tiny_weights_are_not_flattened(self, client: nc.Client) -> None:
        weight = (np.linspace(-1, 1, 101) * 1e-9).astype(np.float32)
        q = quantized(client, "qat", {}, w=weight)["w"]
        assert len(np.unique(q.codes)) > 100
        np.testing.assert_array_equal(q.codes, oracles.qat(weight, 8).codes)

    def test_the_scale_stays_a_normal_number(self, client: nc.Client) -> None:
        weight = np.array([1e-45, -1e-44, 0], np.float32)
        q = quantized(client, "qat", {}, w=weight)["w"]
        assert q.scale == np.finfo(np.float32).tiny
        assert np.isfinite(q.dequantize()).all()

    def test_a_range_that_overflows_float32(self, client: nc.Client) -> None:
        weight = np.array([-3e38, 3e38, 1e38], np.float32)
        q = quantized(client, "qat", {}, w=weight)["w"]
        assert q.scale == np.float32((3e38 + 3e38) / 255)
        assert np.abs(q.dequantize().astype(float) - weight).max() <= q.scale


EXTREME_RULES: list[tuple[str, dict[str, Any]]] = [("naive", {})]
EXTREME_RULES += [
    ("qat", {"quant_bits": bits, "quant_scheme": scheme})
    for bits in (2, 3, 8, 16)
    for scheme in SCHEMES
]


class TestExtremes:
    """What every finite number of every type becomes."""

    @pytest.mark.parametrize("dtype", PRUNER_DTYPES)
    @pytest.mark.parametrize(("algorithm", "rule"), EXTREME_RULES)
    def test_values_are_the_formulas_and_finite(
        self, client: nc.Client, algorithm: str, rule: dict[str, Any], dtype: str
    ) -> None:
        random = np.random.default_rng(51)
        top = {"float16": 65504.0, "bfloat16": 255 * 2.0**120}.get(dtype, 3.4028234663852886e38)
        numbers = np.array(
            [0.0, -0.0, 1.0, 1e-45, 6e-8, top, -top, top / 3, -0.61 * top, -0.5 * top]
        )
        kinds = {f"r{i}": random.choice(numbers, random.integers(1, 9)) for i in range(60)}
        kinds["rounds_up"] = np.array([-0.61 * top, top])
        weights = {name: in_dtype(values, dtype) for name, values in kinds.items()}
        with client.bind_model(algorithm, [rule], layers_for(weights, dtype)) as session:
            sent = {name: weight for name, (weight, _) in weights.items()}
            answers = session.quantize_weight(sent)
            values = session.quantize_weight(sent, reply="values")
        for name, (_, seen) in weights.items():
            if algorithm == "naive":
                expected = oracles.naive(seen)
            else:
                symmetric, axis = SCHEMES[rule["quant_scheme"]]
                expected = oracles.qat(seen, rule["quant_bits"], symmetric, axis)
            q = answers[name]
            np.testing.assert_array_equal(q.codes, expected.codes, err_msg=name)
            if not (algorithm == "naive" and expected.scale == 0):  # answered as 1
                np.testing.assert_array_equal(q.scale, expected.scale, err_msg=name)
            np.testing.assert_array_equal(q.dequantize(), expected.values, err_msg=name)
            assert np.isfinite(q.dequantize()).all()
            got = values[name].values
            rounded = oracles.saturated(expected.values, dtype)
            if dtype == "bfloat16":
                np.testing.assert_array_equal(got, oracles.round_to_bfloat16(rounded), err_msg=name)
            else:
                np.testing.assert_array_equal(got, rounded.astype(dtype), err_msg=name)
                assert np.isfinite(got).all()

    def test_a_half_that_rounds_up_beyond_its_type(self, client: nc.Client) -> None:
        weight = np.array([-40000, 65504], np.float16)
        layers = [nc.Layer("w", "Linear", (2,), "float16")]
        with client.bind_model("qat", [{"quant_bits": 2}], layers) as session:
            values = session.quantize_weight({"w": weight}, reply="values")["w"].values
        assert values.tolist() == [-35168, 65504]


class TestDoReFa:
    def test_the_example(self, client: nc.Client) -> None:
        q = quantized(client, "dorefa", {}, w=np.array([-1, -0.5, 0, 0.5, 1], np.float32))["w"]
        expected = np.array([-1, -0.60784316, 0.00392163, 0.60784316, 1], np.float32)
        np.testing.assert_allclose(q.dequantize(), expected, atol=1e-7)

    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 13, 16])
    def test_codes_are_the_formulas_to_one(self, client: nc.Client, bits: int) -> None:
        weights = quantizer_weights(41)
        for name, q in quantized(client, "dorefa", {"quant_bits": bits}, **weights).items():
            expected = oracles.dorefa(weights[name], bits)
            off = np.abs(q.codes.astype(np.int64) - expected.codes)
            assert off.max() <= 1, name
            assert (off > 0).mean() < 0.01 or off.size < 100, name
            assert (q.bits, q.formula) == (bits, "dorefa")
            np.testing.assert_allclose(
                q.dequantize(), expected.values, atol=2.1 / (2**bits - 1), err_msg=name
            )

    def test_zeros_stay_zeros(self, client: nc.Client) -> None:
        q = quantized(client, "dorefa", {}, w=np.zeros((3, 4), np.float32))["w"]
        assert not q.dequantize().any()
