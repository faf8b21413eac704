"""Pruners of filters, with groups, compared with numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import nni_compression as nc

SCHEDULE = {"schedule": "linear", "end_epoch": 4}


def by_filter(layer: nc.Layer, weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, layer.channel_axis, 0).reshape(weight.shape[layer.channel_axis], -1)


def scores_of(algorithm: str, rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    if algorithm == "l1_filter":
        return np.abs(rows).sum(axis=1)
    if algorithm == "l2_filter":
        return np.sqrt((rows**2).sum(axis=1))
    differences = rows[:, None] - rows[None]
    return np.sqrt((differences**2).sum(axis=2)).sum(axis=1)


class Reference:
    """Which units each set of layers has lost."""

    def __init__(
        self,
        layers: list[nc.Layer],
        groups: list[nc.FilterGroup],
        rule: dict[str, Any],
        algorithm: str,
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.rule, self.algorithm = rule, algorithm
        self.sets: list[tuple[dict[str, list[int]], int]] = []
        grouped = {name: group for group in groups for name in group.members}
        seen: set[str] = set()
        for layer in layers:
            if layer.name in seen:
                continue
            filters = layer.shape[layer.channel_axis]
            members, runs = {layer.name: list(range(filters))}, 1
            if layer.name in grouped:
                group = grouped[layer.name]
                runs = group.runs
                members = {}
                for name in self.layers:
                    if name in group.members:
                        own = self.layers[name]
                        given = group.members[name]
                        size = own.shape[own.channel_axis]
                        members[name] = list(given) if given else list(range(size))
            seen |= members.keys()
            self.sets.append((members, runs))
        self.lost: list[set[int]] = [set() for _ in self.sets]

    def counts(self, number: int) -> list[int]:
        """What each run of a set may lose."""
        members, runs = self.sets[number]
        units = 1 + max(unit for own in members.values() for unit in own)
        sizes = [own.count(unit) for own in members.values() for unit in range(units)]
        step = self.rule.get("round_to", 1)
        together = math.gcd(*sizes) * runs
        length = units // runs
        parts = {frozenset(own) for own in members.values() if len(set(own)) < units}
        of_runs = [range(run * length, (run + 1) * length) for run in range(runs)]
        staying = max(sum(not part.isdisjoint(run) for part in parts) for run in of_runs)
        return [0] + [
            removed
            for removed in range(1, length - max(1, staying) + 1)
            if (length - removed) * together % step == 0
        ]

    def count_for(self, number: int, sparsity: float) -> int:
        members, runs = self.sets[number]
        units = 1 + max(unit for own in members.values() for unit in own)
        return max(n for n in self.counts(number) if n <= int(units // runs * sparsity))

    def step(self, weights: dict[str, np.ndarray], sparsity: float) -> None:
        scores, sizes, orders = [], [], []
        for number, (members, runs) in enumerate(self.sets):
            units = 1 + max(unit for own in members.values() for unit in own)
            score, size = np.zeros(units), np.zeros(units, dtype=int)
            for name, own in members.items():
                rows = by_filter(self.layers[name], weights[name])
                np.add.at(score, own, scores_of(self.algorithm, rows))
                np.add.at(size, own, rows.shape[1])
            lost = self.lost[number]
            rank = lambda unit, lost=lost, score=score: (unit not in lost, score[unit], unit)  # noqa: E731
            best = {max(set(own), key=rank) for own in members.values() if len(set(own)) < units}
            length = units // runs
            orders.append(
                [
                    sorted(
                        range(run * length, (run + 1) * length),
                        key=lambda unit, best=best, lost=lost, rank=rank: (
                            unit in best and unit not in lost,
                            *rank(unit),
                        ),
                    )
                    for run in range(runs)
                ]
            )
            scores.append(score)
            sizes.append(size)
        if self.rule.get("scope") == "global":
            wanted = self.globally(sparsity, scores, sizes, orders)
        else:
            wanted = [self.count_for(number, sparsity) for number in range(len(self.sets))]
        for number, count in enumerate(wanted):
            for order in orders[number]:
                self.lost[number] |= set(order[:count])

    def globally(self, sparsity: float, scores: Any, sizes: Any, orders: Any) -> list[int]:
        elements = sum(math.prod(layer.shape) for layer in self.layers.values())
        missing = int(elements * sparsity) - sum(
            size[list(lost)].sum() for size, lost in zip(sizes, self.lost)
        )
        found = [0] * len(self.sets)
        steps = []
        for number, order in enumerate(orders):
            kept = [u for u in range(len(scores[number])) if u not in self.lost[number]]
            divisor = {
                "none": lambda own: 1.0,
                "mean": lambda own: own.mean(),
                "l2": lambda own: np.sqrt((own**2).sum()),
            }[self.rule.get("normalize", "none")](scores[number][kept])
            most = self.count_for(number, self.rule.get("max_sparsity", 1))
            least = self.count_for(number, min(self.rule.get("min_sparsity", 0), sparsity))
            highest = -np.inf
            counts = self.counts(number)
            for before, count in zip(counts, counts[1:]):
                if count > most and count > least:
                    break
                new = [u for run in order for u in run[before:count] if u not in self.lost[number]]
                weights = sizes[number][new].sum()
                if count <= least:
                    found[number] = count
                    missing -= weights
                elif new:
                    highest = max(highest, scores[number][new].mean() / divisor)
                    steps.append((highest, number, count, weights))
        for _, number, count, weights in sorted(steps):
            if missing <= 0:
                break
            found[number] = count
            missing -= weights
        return found

    def masks(self) -> dict[str, np.ndarray]:
        found = {}
        for (members, _), lost in zip(self.sets, self.lost):
            for name, own in members.items():
                layer = self.layers[name]
                kept = np.array([unit not in lost for unit in own])
                shape = [1] * len(layer.shape)
                shape[layer.channel_axis] = -1
                found[name] = np.broadcast_to(kept.reshape(shape), layer.shape)
        return found


def a_layer(random: np.random.Generator, name: str, filters: int) -> nc.Layer:
    rest = [int(n) for n in random.integers(1, 5, random.integers(1, 4))]
    axis = int(random.integers(0, len(rest) + 1))
    return nc.Layer(
        name=name,
        op_type="Conv2d",
        shape=(*rest[:axis], filters, *rest[axis:]),
        channel_axis=axis,
        dtype=str(random.choice(["float32", "float64"])),
    )


def a_model(random: np.random.Generator) -> tuple[list[nc.Layer], list[nc.FilterGroup]]:
    """Single layers, additions, heads and concatenations, in any order."""
    layers: list[nc.Layer] = []
    groups = []
    for kind in random.choice(["single", "sum", "heads", "parts"], random.integers(1, 5)):
        names = [f"layer{len(layers) + i}" for i in range(3)]
        units = int(random.integers(1, 5)) * 4
        runs = int(random.choice([1, 2, 4]))
        if kind == "single":
            layers.append(a_layer(random, names[0], units))
        elif kind == "sum":
            layers += [a_layer(random, name, units) for name in names[:2]]
            groups.append(nc.FilterGroup(names[:2], runs=runs))
        elif kind == "heads":
            layers += [a_layer(random, name, size * units) for name, size in zip(names, (2, 2, 1))]
            heads = [unit for unit in range(units) for _ in range(2)]
            groups.append(nc.FilterGroup({names[0]: heads, names[1]: heads[::-1], names[2]: ()}))
        else:
            names.append(f"layer{len(layers) + 3}")
            sizes = (units, 2, units + 2, 2)
            layers += [a_layer(random, name, n) for name, n in zip(names, sizes)]
            last = [units, units + 1]
            own = {names[0]: range(units), names[1]: last, names[2]: (), names[3]: last[::-1]}
            groups.append(nc.FilterGroup({name: list(parts) for name, parts in own.items()}))
    order = random.permutation(len(layers))
    return [layers[i] for i in order], groups


def a_rule(random: np.random.Generator) -> dict[str, Any]:
    final = float(random.choice([0.3, 0.5, 0.8, 1.0]))
    rule: dict[str, Any] = {**SCHEDULE, "final_sparsity": final}
    if random.random() < 0.5:
        rule["round_to"] = int(random.choice([2, 3, 4]))
    if random.random() < 0.5:
        rule["scope"] = "global"
        rule["normalize"] = str(random.choice(["none", "mean", "l2"]))
        if random.random() < 0.3:
            rule["min_sparsity"] = final * 0.7
        if random.random() < 0.3:
            rule["max_sparsity"] = (1 + final) / 2
    return rule


@pytest.mark.parametrize("algorithm", ["l1_filter", "l2_filter", "fpgm"])
@pytest.mark.parametrize("seed", range(25))
def test_masks_are_those_of_numpy_at_each_epoch(
    client: nc.Client, algorithm: str, seed: int
) -> None:
    random = np.random.default_rng([seed, len(algorithm)])
    layers, groups = a_model(random)
    rule = a_rule(random)
    reference = Reference(layers, groups, rule, algorithm)
    with client.bind_model(algorithm, [rule], layers, filter_groups=groups) as session:
        for epoch in range(6):
            weights = {
                layer.name: random.standard_normal(layer.shape).astype(layer.dtype)
                for layer in layers
            }
            session.update_epoch(epoch)
            masks = session.calc_mask(weights)
            reference.step(weights, rule["final_sparsity"] * min(1, epoch / 4))
            expected = reference.masks()
            for name, mask in masks.items():
                np.testing.assert_array_equal(mask.to_numpy(), expected[name], err_msg=name)
            assert not session.stale, "nothing is left to remove"


def test_a_session_that_resumes_from_masks_goes_on_alike(client: nc.Client) -> None:
    random = np.random.default_rng(7)
    layers = [nc.Layer(name=name, op_type="Conv2d", shape=(16, 3, 3, 3)) for name in "abc"]
    groups = [nc.FilterGroup(["a", "b"])]
    rule = {**SCHEDULE, "final_sparsity": 0.75}
    weights = {name: random.standard_normal((16, 3, 3, 3), np.float32) for name in "abc"}

    def bind(**resumed: Any) -> nc.Session:
        return client.bind_model("l2_filter", [rule], layers, filter_groups=groups, **resumed)

    with bind() as session:
        session.update_epoch(2)
        masks = session.calc_mask(weights)
        with bind(masks=masks, epoch=2) as resumed:
            assert not resumed.stale
            for each in (session, resumed):
                each.update_epoch(4)
                assert each.stale == {"a", "b", "c"}
            final = [each.calc_mask(weights) for each in (session, resumed)]
    for name in "abc":
        np.testing.assert_array_equal(*(each[name].to_numpy() for each in final))
        assert (~final[0][name].to_numpy()).sum() == 12 * 27


def test_masks_of_exports_remove_whole_filters(client: nc.Client, tmp_path: Any) -> None:
    layer = nc.Layer(name="conv.weight", op_type="Conv2d", shape=(4, 2))
    weight = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    with client.bind_model("l1_filter", [{"sparsity": 0.5}], [layer]) as session:
        session.calc_mask({"conv.weight": weight})
        (path,) = session.export(tmp_path, {"conv.weight": weight})
    stored = path.read_bytes()
    assert stored.endswith(np.array([0, 0, 0, 0, 5, 6, 7, 8], dtype=np.float32).tobytes())
