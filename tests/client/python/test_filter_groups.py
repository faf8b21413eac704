"""Groups of layers whose filters go together: how they are sent, and what the server makes of them.

What a group decides is tested on the server; here is what reaches it, and what it refuses by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from servers import ScriptedServer

LAYERS = [
    nc.Layer("a", "Conv2d", (4, 2, 3, 3)),
    nc.Layer("b", "Conv2d", (4, 5, 1, 1)),
    nc.Layer("c", "Linear", (8, 3)),
]
RULE = {"sparsity": 0.5, "op_types": ["default"]}


class TestFilterGroup:
    def test_names_and_a_dict_without_units_are_the_same(self) -> None:
        group = nc.FilterGroup(["a", "b"])
        assert group == nc.FilterGroup({"a": None, "b": []}) == nc.FilterGroup(("a", "b"))
        assert group.members == {"a": (), "b": ()}
        assert group.runs == 1
        assert group.to_wire() == pb.FilterGroup(
            members=[pb.FilterGroup.Member(layer="a"), pb.FilterGroup.Member(layer="b")], runs=1
        )

    def test_units_may_be_numpys(self) -> None:
        group = nc.FilterGroup({"a": np.arange(4) // 2, "c": [0, 0, 1, 1]}, runs=np.int64(2))
        assert group.members == {"a": (0, 0, 1, 1), "c": (0, 0, 1, 1)}
        assert group.to_wire().members[0].units == [0, 0, 1, 1]
        assert group.to_wire().runs == 2

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"members": "conv"}, "members is 'conv'; it must be a sequence of layer names, or"),
            ({"members": 3}, "members is 3; it must be a sequence"),
            ({"members": ["a", 3]}, r"members\[1\] is 3; it must be a string"),
            ({"members": ["a", "a"]}, r"members is \['a', 'a'\]; it must not repeat a name"),
            ({"members": {3: None}}, "a key of members is 3"),
            ({"members": {"a": 3}}, r"members\['a'\] is 3; it must be a sequence of integers"),
            ({"members": {"a": [0, 1.0]}}, r"members\['a'\]\[1\] is 1.0; it must be an integer"),
            ({"members": {"a": [True]}}, r"members\['a'\]\[0\] is True; it must be an integer"),
            ({"members": {"a": [-1]}}, r"members\['a'\]\[0\] is -1; .* in \[0, 4294967295\]"),
            ({"members": {"a": [2**32]}}, "is 4294967296; it must"),
            ({"members": ["a"], "runs": 0}, r"runs is 0; it must be an integer in \[1, 42949"),
            ({"members": ["a"], "runs": "2"}, "runs is '2'; it must be an integer"),
        ],
    )
    def test_other_types_are_refused(self, given: dict[str, Any], told: str) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=told):
            nc.FilterGroup(**given)


def test_groups_are_sent_with_bind_model_and_activations_received() -> None:
    plan = pb.Plan(
        layers=[
            pb.LayerPlan(
                name="a",
                compressed=True,
                statistics=[
                    pb.PlannedStatistic(
                        kind=pb.STATISTIC_KIND_OUTPUT_SUM,
                        shape=[4],
                        activation=pb.ACTIVATION_RELU6,
                    )
                ],
            ),
            pb.LayerPlan(
                name="b",
                compressed=True,
                statistics=[pb.PlannedStatistic(kind=pb.STATISTIC_KIND_OUTPUT_SUM, shape=[4])],
            ),
        ]
    )
    bound = pb.BindModelResponse(session_id="s1", plan=plan, lease=Duration(seconds=60))
    requests = []

    def bind(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        requests.append(pb.BindModelRequest.FromString(next(messages)))
        yield bound.SerializeToString()

    groups = [nc.FilterGroup(["a", "b"]), nc.FilterGroup({"c": [0, 1] * 4}, runs=2)]
    with ScriptedServer(BindModel=bind) as server, nc.Client(server.address) as client:
        session = client.bind_model("l1_filter", [RULE], LAYERS, filter_groups=groups)
        client.bind_model("level", [RULE], LAYERS)
    assert list(requests[0].filter_groups) == [group.to_wire() for group in groups]
    assert not requests[1].filter_groups
    assert session.plan.layers["a"].activation == "relu6"
    assert session.plan.layers["b"].activation == ""


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (nc.FilterGroup(["a"]), "filter_groups is FilterGroup.*; it must be a sequence of Filter"),
        ("a", "filter_groups is 'a'"),
        ({"a": []}, "filter_groups is {'a': .*}"),
        ([["a", "b"]], r"filter_groups\[0\] is \['a', 'b'\]; it must be a FilterGroup"),
    ],
)
def test_what_is_no_sequence_of_groups_is_refused(
    client: nc.Client, groups: Any, told: str
) -> None:
    with pytest.raises(nc.InvalidArgumentError, match=told):
        client.bind_model("l1_filter", [RULE], LAYERS, filter_groups=groups)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([nc.FilterGroup([])], r"filter_groups\[0\]"),
        ([nc.FilterGroup(["a"]), nc.FilterGroup(["x"])], r"filter_groups\[1\].*x"),
        ([nc.FilterGroup(["a", "b"]), nc.FilterGroup(["b"])], r"filter_groups\[1\].*b"),
        ([nc.FilterGroup(["a", "c"])], r"filter_groups\[0\].*c"),
        ([nc.FilterGroup({"a": [0, 1]})], r"filter_groups\[0\].*a"),
        ([nc.FilterGroup({"a": [0, 1, 2, 4]})], r"filter_groups\[0\]"),
        ([nc.FilterGroup(["a"], runs=3)], r"filter_groups\[0\].*runs"),
    ],
)
def test_groups_that_fit_no_layers_are_refused_by_name(
    client: nc.Client, groups: list[nc.FilterGroup], told: str
) -> None:
    before = len(client.sessions())
    with pytest.raises(nc.InvalidArgumentError, match=told):
        client.bind_model("l1_filter", [RULE], LAYERS, filter_groups=groups)
    assert len(client.sessions()) == before


def test_only_pruners_of_filters_take_groups(client: nc.Client) -> None:
    for algorithm in ("level", "naive"):
        rule = RULE if algorithm == "level" else {"op_types": ["default"]}
        groups = [nc.FilterGroup(["a", "b"])]
        with pytest.raises(nc.InvalidArgumentError, match="filter_groups"):
            client.bind_model(algorithm, [rule], LAYERS, filter_groups=groups)


def test_the_layers_of_a_group_lose_the_same_filters(client: nc.Client) -> None:
    weights = {
        layer.name: np.random.default_rng(i).standard_normal(layer.shape, dtype=np.float32)
        for i, layer in enumerate(LAYERS)
    }
    groups = [nc.FilterGroup({"a": None, "b": None, "c": [0, 0, 1, 1, 2, 2, 3, 3]})]
    with client.bind_model("l1_filter", [RULE], LAYERS, filter_groups=groups) as session:
        assert session.plan.joint == {"a": 0, "b": 0, "c": 0}
        masks = {name: mask.to_numpy() for name, mask in session.calc_mask(weights).items()}
    sums = {name: np.abs(w.reshape(len(w), -1)).sum(1) for name, w in weights.items()}
    scores = sums["a"] + sums["b"] + sums["c"].reshape(4, 2).sum(1)
    kept = np.ones(4, bool)
    kept[np.argsort(scores)[:2]] = False
    for name, filters in {"a": kept, "b": kept, "c": np.repeat(kept, 2)}.items():
        expected = np.broadcast_to(
            filters.reshape(-1, *[1] * (masks[name].ndim - 1)), masks[name].shape
        )
        assert np.array_equal(masks[name], expected), name


def test_a_group_with_a_layer_that_is_not_compressed_keeps_its_filters(client: nc.Client) -> None:
    rule = {"sparsity": 0.5, "op_names": ["a", "c"]}
    groups = [nc.FilterGroup(["a", "b"])]
    with client.bind_model("l1_filter", [rule], LAYERS, filter_groups=groups) as session:
        assert session.plan.compressed == ("c",)
        assert any("b" in warning for warning in session.plan.warnings)
