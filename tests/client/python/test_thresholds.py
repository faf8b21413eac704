"""Masks of thresholds: the server gets histograms in place of weights, and decides the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_compression as nc

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
HALF = {"sparsity": 0.5}
AGP = {"final_sparsity": 0.9, "end_epoch": 6}


def weight_of(dtype: str, shape: tuple[int, ...], kind: str, seed: int = 0) -> Any:
    """A weight, as a client takes it."""
    random = np.random.default_rng(seed)
    numbers = {
        "normal": random.normal(size=shape),
        "ties": random.integers(-3, 4, shape) / 4,
        "zeros": random.choice([0.0, -0.0, 0.0, 1.5], shape),
        "equal": np.full(shape, -0.75),
        "wide": random.choice([1, -1], shape) * np.exp2(random.uniform(-14, 14, shape)),
    }
    if kind == "tiny":  # subnormal numbers, whatever the type
        bits = DTYPES[dtype]
        sign = random.integers(0, 2, shape).astype(np.uint64) << np.uint64(bits - 1)
        words = (random.integers(0, 50, shape).astype(np.uint64) | sign).astype(f"u{bits // 8}")
    elif dtype == "bfloat16":
        words = (numbers[kind].astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        return numbers[kind].astype(dtype)
    return nc.Tensor(words, dtype, shape) if dtype == "bfloat16" else words.view(dtype)


def bind(
    client: nc.Client, weights: Mapping[str, Any], *rules: Any, algorithm: str = "level"
) -> nc.Session:
    layers = [
        nc.Layer(name, "Linear", weight.shape, getattr(weight, "dtype", None))
        for name, weight in weights.items()
    ]
    return client.bind_model(algorithm, rules or [HALF], layers)


def counted(
    session: nc.Session, weights: Mapping[str, Any], masks: Mapping[str, nc.Mask] | None = None
) -> dict[str, nc.Mask]:
    """The masks of these weights, by thresholds; `masks`: those in force."""
    kept = {name: mask.to_numpy() for name, mask in (masks or {}).items()}
    counters = {name: nc.ArrayCounter(weight, kept.get(name)) for name, weight in weights.items()}
    found = {}
    for name, answer in session.calc_thresholds(counters).items():
        assert isinstance(answer, nc.Threshold)
        found[name] = nc.mask_from_threshold(weights[name], answer, kept.get(name))
    return found


def cases() -> Iterator[Any]:
    kinds = ("normal", "ties", "zeros", "equal", "wide", "tiny")
    for dtype, kind in itertools.product(DTYPES, kinds):
        yield pytest.param(dtype, kind, id=f"{dtype}-{kind}")


@pytest.mark.parametrize(("dtype", "kind"), cases())
def test_the_masks_are_those_of_weights(client: nc.Client, dtype: str, kind: str) -> None:
    shapes = [(1,), (7,), (3, 5), (4, 3, 2, 2), (50, 41)]
    weights = {str(i): weight_of(dtype, shape, kind, i) for i, shape in enumerate(shapes)}
    for sparsity in (0, 0.1, 1 / 3, 0.5, 0.99, 1):
        rule = {"sparsity": sparsity}
        with bind(client, weights, rule) as one, bind(client, weights, rule) as other:
            assert counted(one, weights) == other.calc_mask(weights), sparsity
            assert one.stats.calls == DTYPES[dtype] // 16
            assert one.stale == frozenset()
            assert [layer.achieved_sparsity for layer in one.info().layers] == [
                layer.achieved_sparsity for layer in other.info().layers
            ]


RULES = [
    pytest.param("agp", AGP, id="agp"),
    pytest.param("agp", {**AGP, "scope": "global"}, id="agp-global"),
    pytest.param("level", {"schedule": "linear", **AGP}, id="linear"),
    pytest.param("level", {"schedule": "exponential", **AGP}, id="exponential"),
    pytest.param("lottery_ticket", {"sparsity": 0.9, "rounds": 3, "frequency": 2}, id="iterative"),
    pytest.param(
        "global_magnitude",
        {"schedule": "linear", **AGP, "min_sparsity": 0.3, "max_sparsity": 0.95},
        id="global-limits",
    ),
]


@pytest.mark.parametrize(("algorithm", "rule"), RULES)
@pytest.mark.parametrize("sent_at", [(), (0, 3), (2,)])
def test_they_follow_a_schedule_as_those_of_weights_do(
    client: nc.Client, algorithm: str, rule: Any, sent_at: tuple[int, ...]
) -> None:
    """Args: sent_at: epochs at which the weights are sent after all, and the masks before them."""
    shapes: dict[str, tuple[int, ...]] = {"a": (40, 9), "b": (17,), "c": (8, 3, 3, 3)}

    is_global = algorithm == "global_magnitude" or "scope" in rule
    dtypes = ["float32"] * 3 if is_global else ["float32", "bfloat16", "float64"]

    def weights(epoch: int) -> dict[str, Any]:
        return {
            name: weight_of(dtype, shape, "ties" if epoch % 2 else "normal", epoch)
            for (name, shape), dtype in zip(shapes.items(), dtypes)
        }

    one = bind(client, weights(0), rule, algorithm=algorithm)
    other = bind(client, weights(0), rule, algorithm=algorithm)
    masks: dict[str, nc.Mask] = {}
    with one, other:
        for epoch in range(8):
            now = weights(epoch)
            stale = one.update_epoch(epoch)
            assert stale == other.update_epoch(epoch)
            asked = {name: now[name] for name in shapes if name in stale}
            if epoch in sent_at:
                one.set_mask(masks)
                masks.update(one.calc_mask(asked))
            else:
                masks.update(counted(one, asked, masks))
            other.calc_mask(asked)
            assert masks == other.calc_mask(now), epoch
    assert sum(mask.pruned for mask in masks.values()) > 300


def test_the_plan_tells_which_layers_take_counts(client: nc.Client) -> None:
    weights = {"a": weight_of("float32", (4, 5), "normal")}

    def takes(algorithm: str, rule: Any) -> bool:
        with bind(client, weights, rule, algorithm=algorithm) as session:
            return session.plan.layers["a"].takes_counts

    assert takes("level", HALF)
    assert takes("agp", {**AGP, "scope": "global"})
    assert takes("lottery_ticket", {"sparsity": 0.5, "rounds": 2})
    assert not takes("random", HALF)
    assert not takes("lamp", HALF)
    assert not takes("global_magnitude", {**HALF, "normalize": "l2"})
    assert not takes("naive", {})
    weights["b"] = weight_of("float16", (4, 5), "normal")
    assert takes("level", HALF)
    assert not takes("global_magnitude", HALF)  # layers of several types


def test_little_is_sent(client: nc.Client) -> None:
    weights = {"a": weight_of("float32", (1000, 1000), "normal")}
    with bind(client, weights) as session:
        mask = counted(session, weights)["a"]
        assert mask.sparsity == 0.5
        assert session.stats.bytes_sent < 4_000_000 / 50
        assert session.stats.bytes_received < 10_000


def test_a_mask_that_the_server_has_is_the_answer(client: nc.Client) -> None:
    weights = {"a": weight_of("float32", (6, 7), "normal"), "b": weight_of("float16", (9,), "ties")}
    with bind(client, weights) as session:
        masks = session.calc_mask(weights)
        found = session.calc_thresholds({n: nc.ArrayCounter(w) for n, w in weights.items()})
        assert found == masks


def test_another_rank_gets_the_same_threshold(client: nc.Client) -> None:
    weights = {"a": weight_of("float32", (6, 7), "normal")}
    others = {"a": weight_of("float32", (6, 7), "normal", seed=1)}
    with bind(client, weights) as session:
        masks = counted(session, weights)
        joined = client.join(session.id)
        assert counted(joined, weights) == masks
        with pytest.raises(nc.FailedPreconditionError) as raised:
            counted(joined, others)
        assert set(raised.value.errors) == {"a"}


def test_replies_have_checksums_of_the_masks_in_force(client: nc.Client) -> None:
    weights = {"a": weight_of("float32", (6, 7), "normal"), "b": weight_of("float16", (9,), "ties")}
    with bind(client, weights, AGP, algorithm="agp") as session:
        assert session.update_epoch(3).masks == {"a": 0, "b": 0}
        (threshold,) = session.calc_thresholds({"a": nc.ArrayCounter(weights["a"])}).values()
        mask = session.calc_mask({"b": weights["b"]})["b"]
        masks = {"a": threshold.checksum, "b": mask.checksum}
        assert session.update_epoch(3).masks == masks
        assert session.step(1).masks == masks
        assert isinstance(threshold, nc.Threshold)
        own = nc.mask_from_threshold(weights["a"], threshold)
        session.set_mask({"a": own})
        assert session.update_epoch(3).masks == {"a": own.checksum, "b": mask.checksum}
    with bind(client, weights, {"quant_bits": 8}, algorithm="qat") as session:
        assert session.update_epoch(1).masks == session.step(1).masks == {}


def test_an_export_needs_the_masks_to_be_sent(client: nc.Client, tmp_path: Path) -> None:
    weights = {"a": weight_of("float32", (6, 7), "normal")}
    with bind(client, weights) as session, bind(client, weights) as other:
        masks = counted(session, weights)
        with pytest.raises(nc.FailedPreconditionError):
            session.export(tmp_path / "one", weights)
        session.set_mask(masks)
        other.calc_mask(weights)
        (one,) = session.export(tmp_path / "one", weights)
        (two,) = other.export(tmp_path / "two", weights)
        assert one.read_bytes() == two.read_bytes()


class TestErrors:
    def test_a_weight_that_is_not_finite(self, client: nc.Client) -> None:
        weights = {n: weight_of("float32", (3, 4), "normal", i) for i, n in enumerate("ab")}
        bad = {**weights, "b": weights["b"].copy()}
        bad["b"][1, 2] = np.inf
        told = 'weight of layer "b": element 6 is inf; it must be finite'
        with bind(client, weights) as session:
            with pytest.raises(nc.InvalidArgumentError, match=told) as raised:
                counted(session, bad)
            assert set(raised.value.errors) == {"b"}
            assert set(raised.value.results) == {"a"}
            assert session.stale == {"b"}
            counted(session, {"b": weights["b"]})

    def test_of_one_layer_of_a_joint_rule_are_all_layers(self, client: nc.Client) -> None:
        weights = {n: weight_of("float32", (3, 4), "normal", i) for i, n in enumerate("abc")}
        bad = {**weights, "b": weights["b"].copy()}
        bad["b"][1, 2] = np.nan
        with bind(client, weights, algorithm="global_magnitude") as session:
            for sent in (bad, {name: weights[name] for name in "ac"}):
                with pytest.raises(nc.InvalidArgumentError, match='"b"') as raised:
                    counted(session, sent)
                assert set(raised.value.errors) == set(sent)
                assert session.stale == set("abc")
            with bind(client, weights, algorithm="global_magnitude") as other:
                assert counted(session, weights) == other.calc_mask(weights)

    def test_a_layer_that_takes_none(self, client: nc.Client) -> None:
        weights = {"a": weight_of("float32", (3, 4), "normal")}
        with bind(client, weights, algorithm="lamp") as session:
            with pytest.raises(nc.InvalidArgumentError, match="a"):
                counted(session, weights)
            assert session.calc_mask(weights)["a"].sparsity == 0.5

    def test_a_layer_that_was_not_bound(self, client: nc.Client) -> None:
        weights = {"a": weight_of("float32", (3, 4), "normal")}
        session = bind(client, weights)
        with session, pytest.raises(nc.NotFoundError, match="other"):
            counted(session, {"other": weights["a"]})

    def test_another_epoch(self, client: nc.Client) -> None:
        weights = {"a": weight_of("float32", (3, 4), "normal")}
        with bind(client, weights, AGP, algorithm="agp") as session:
            session.update_epoch(2)
            counter = {"a": nc.ArrayCounter(weights["a"])}
            with pytest.raises(nc.FailedPreconditionError, match="epoch"):
                session.calc_thresholds(counter, epoch=3)
            assert session.calc_thresholds(counter, epoch=2)["a"].epoch == 2

    def test_a_weight_of_a_layer_that_was_decided_by_counts(self, client: nc.Client) -> None:
        weights = {"a": weight_of("float32", (3, 4), "normal")}
        with bind(client, weights, AGP, algorithm="agp") as session:
            session.update_epoch(2)
            masks = counted(session, weights)
            session.update_epoch(3)
            with pytest.raises(nc.FailedPreconditionError):
                session.calc_mask(weights)
            session.set_mask(masks)
            assert session.calc_mask(weights)["a"].pruned > masks["a"].pruned

    def test_counts_of_another_number_of_weights(self, client: nc.Client) -> None:
        weights = {"a": weight_of("float32", (3, 4), "normal")}
        with bind(client, weights) as session:
            with pytest.raises(nc.InvalidArgumentError, match="a"):
                session.calc_thresholds({"a": nc.ArrayCounter(np.ones(13, np.float32))})
            assert session.stale == {"a"}


def test_arrays_are_not_counters(client: nc.Client) -> None:
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(2, 2))]
    weight = np.ones((2, 2), np.float32)
    with client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
        for wrong, kind in ((weight, "ndarray"), (weight.tolist(), "list")):
            with pytest.raises(
                nc.InvalidArgumentError,
                match=rf"^counters\['fc'\] is a {kind}.*nni_compression.ArrayCounter\(array\)",
            ):
                session.calc_thresholds({"fc": wrong})


def test_what_was_decided_before_a_call_failed_is_told(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type of 16 bits takes one call."""
    weights = {
        n: weight_of(dtype, (6, 7), "normal") for n, dtype in (("a", "float16"), ("b", "float32"))
    }
    stream, made = nc.Session._stream, []

    def fail_second(*args: Any) -> None:
        made.append(args)
        if len(made) == 2:
            raise nc.UnavailableError("gone")
        stream(*args)

    with bind(client, weights) as session:
        with monkeypatch.context() as patch:
            patch.setattr(nc.Session, "_stream", fail_second)
            with pytest.raises(nc.UnavailableError) as raised:
                counted(session, weights)
        assert set(raised.value.results) == {"a"}
        assert session.stale == {"b"}
        assert counted(session, weights).keys() == {"a", "b"}


def test_without_layers_no_call_is_made(client: nc.Client) -> None:
    with bind(client, {"a": weight_of("float32", (3,), "normal")}) as session:
        assert session.calc_thresholds({}) == {}
        assert session.stats.calls == 0
