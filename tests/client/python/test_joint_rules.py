"""Rules whose layers are decided about together: what clients see, and what fails all of them."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

import nni_compression as nc
from metered import Metered, eventually
from nni_compression._calls import known_weights
from nni_compression._calls.exchange import LayerExchange
from nni_compression._wire import compression_pb2 as pb
from servers import ScriptedServer, ServerProcess, replies

Array = np.ndarray[Any, np.dtype[Any]]
HALF = {"sparsity": 0.5}
LARGE = 300_000  # elements: what goes through shared memory


def weights_of(seed: int = 0, elements: int = 400) -> dict[str, Array]:
    """Three weights, on scales of their own."""
    random = np.random.default_rng(seed)
    return {
        name: (scale * random.normal(size=elements + i)).astype(np.float32)
        for i, (name, scale) in enumerate((("a", 1.0), ("b", 0.1), ("c", 10.0)))
    }


def bind(
    client: nc.Client, weights: Mapping[str, Array], *rules: Any, algorithm: str = ""
) -> nc.Session:
    layers = [nc.Layer(name, "Linear", weight.shape) for name, weight in weights.items()]
    return client.bind_model(algorithm or "global_magnitude", rules or [HALF], layers)


def kept(weights: Mapping[str, Array], sparsity: float) -> dict[str, list[bool]]:
    """The masks of one threshold; no two weights have the same magnitude."""
    magnitudes = np.sort(np.abs(np.concatenate(list(weights.values()))))
    threshold = magnitudes[int(magnitudes.size * sparsity)]
    return {name: (np.abs(weight) >= threshold).tolist() for name, weight in weights.items()}


def bits(masks: Mapping[str, nc.Mask]) -> dict[str, bytes]:
    return {name: mask.bits.tobytes() for name, mask in masks.items()}


def as_lists(masks: Mapping[str, nc.Mask]) -> dict[str, list[bool]]:
    return {name: mask.to_numpy().tolist() for name, mask in masks.items()}


def test_the_plan_tells_which_layers_are_decided_about_together(client: nc.Client) -> None:
    weights = weights_of()
    rules = [HALF, {"sparsity": 0.2, "scope": "layer", "op_names": ["c"]}]
    with bind(client, weights, *rules, algorithm="random") as session:
        assert session.plan.joint == {}
    rules[0] = {"sparsity": 0.5, "scope": "global"}
    with bind(client, weights, *rules, algorithm="random") as session:
        assert [session.plan.layers[name].joint for name in "abc"] == [True, True, False]
        assert session.plan.joint == {"a": 0, "b": 0}


def test_options_tell_what_they_go_with(client: nc.Client) -> None:
    (random,) = [a for a in client.algorithms() if a.name == "random"]
    options = {option.name: option for option in random.options}
    assert options["seed"].only_with == ""
    assert options["sparsity"].only_with == "only with schedule once, iterative"
    assert options["min_sparsity"].only_with == "only with scope global"


def test_one_threshold_decides_in_any_order_of_arrival(client: nc.Client) -> None:
    weights = weights_of()
    for order in itertools.permutations(weights):
        with bind(client, weights) as session:
            masks = session.calc_mask({name: weights[name] for name in order})
            assert as_lists(masks) == kept(weights, 0.5)
            assert session.stale == frozenset()


def test_a_call_without_one_of_the_layers_changes_nothing(client: nc.Client) -> None:
    weights = weights_of()
    with bind(client, weights) as session:
        with pytest.raises(nc.InvalidArgumentError) as raised:
            session.calc_mask({"a": weights["a"], "c": weights["c"]})
        assert set(raised.value.errors) == {"a", "c"}
        told = (
            'layer "b" is missing: the 3 layers of config_list[0] are decided about together and '
            "have to be sent in the same call"
        )
        assert {str(error.message) for error in raised.value.errors.values()} == {told}
        assert raised.value.results == {}
        assert session.stale == {"a", "b", "c"}
        assert not any(layer.achieved_sparsity for layer in session.info().layers)
        assert as_lists(session.calc_mask(weights)) == kept(weights, 0.5)


def test_another_rule_is_answered_where_one_lacks_a_layer(client: nc.Client) -> None:
    weights = weights_of()
    rules = [HALF, {"sparsity": 0.25, "op_names": ["b"]}]
    with bind(client, weights, *rules) as session:
        with pytest.raises(nc.InvalidArgumentError, match='"c" is missing') as raised:
            session.calc_mask({name: weights[name] for name in "ab"})
        assert as_lists(raised.value.results) == kept({"b": weights["b"]}, 0.25)
        assert session.stale == {"a", "c"}


def test_a_weight_that_is_not_finite_is_named_and_nothing_changes(client: nc.Client) -> None:
    good, bad = weights_of(), weights_of()
    bad["b"][17] = np.nan
    with bind(client, good) as session:
        with pytest.raises(nc.InvalidArgumentError, match='layer "b": element 17 is nan') as raised:
            session.calc_mask(bad)
        assert set(raised.value.errors) == set(bad)
        assert session.stale == set(bad)
        assert as_lists(session.calc_mask(good)) == kept(good, 0.5)


def test_masks_in_force_are_not_decided_about_again_before_they_are_stale(
    client: nc.Client,
) -> None:
    first, later = weights_of(1), weights_of(2)
    with bind(client, first) as session:
        masks = session.calc_mask(first)
        one = session.calc_mask({"b": later["b"]})
        assert one["b"].bits.tobytes() == masks["b"].bits.tobytes()


def test_two_ranks_with_other_weights_get_the_same_masks(client: nc.Client) -> None:
    ranks = [weights_of(seed) for seed in range(4)]
    rule = {"final_sparsity": 0.8, "end_epoch": 4, "scope": "global"}
    with bind(client, ranks[0], rule, algorithm="agp") as session:
        for epoch in range(5):
            session.update_epoch(epoch)
            found: list[dict[str, bytes]] = [{} for _ in ranks]
            ready = threading.Barrier(len(ranks))

            def rank(i: int, found: Any = found, ready: Any = ready, epoch: int = epoch) -> None:
                joined = client.join(session.id, route=session.route)
                ready.wait(60)
                found[i] = bits(joined.calc_mask(ranks[i], epoch=epoch))

            threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(ranks))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [found[0]] * len(ranks)
            assert set(found[0]) == {"a", "b", "c"}


def test_a_killed_server_comes_back_with_all_masks_or_none(tmp_path: Path) -> None:
    weights, others = weights_of(1), weights_of(2)
    flag = f"--data_dir={tmp_path}"
    server = ServerProcess(flag)
    with nc.Client(server.address, timeout=60) as client:
        decided, undecided = bind(client, weights), bind(client, weights)
        masks = bits(decided.calc_mask(weights))
        with pytest.raises(nc.InvalidArgumentError):
            undecided.calc_mask({"a": weights["a"]})
        server.kill()
        with ServerProcess(flag, port=server.port):
            assert bits(decided.calc_mask({"c": others["c"]})) == {"c": masks["c"]}
            assert bits(decided.calc_mask(others)) == masks
            with pytest.raises(nc.InvalidArgumentError, match="is missing"):
                undecided.calc_mask({"a": weights["a"]})
            assert as_lists(undecided.calc_mask(others)) == kept(others, 0.5)


def test_a_server_that_is_killed_before_it_decides_gets_all_layers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is retried: of the weights that the killed server had, none is left out."""
    weights = weights_of(3)
    flag = f"--data_dir={tmp_path}"
    servers = [ServerProcess(flag)]
    messages = LayerExchange.messages

    sent = sum(weight.nbytes for weight in weights.values())
    bound: list[str] = []

    def cut(exchange: Any) -> Iterator[bytes]:
        yield from messages(exchange)
        if len(servers) == 1:  # not half-closed
            yield b""  # two messages are made before the first is sent
            with nc.Client(servers[0].address, timeout=60) as other:
                eventually(lambda: other.session_info(bound[0]).received_bytes == sent)
            servers[0].kill()
            servers.append(ServerProcess(flag, port=servers[0].port))

    monkeypatch.setattr(LayerExchange, "messages", cut)
    with nc.Client(servers[0].address, timeout=60) as client:
        session = bind(client, weights)
        bound.append(session.id)
        assert as_lists(session.calc_mask(weights)) == kept(weights, 0.5)
        assert len(servers) == 2
        assert session.stats.retries > 0
    servers[1].stop()


def test_a_connection_that_is_lost_among_the_answers_leaves_out_what_was_answered(
    client: nc.Client, server: ServerProcess
) -> None:
    """A proxy that breaks off after the first answer; the server has decided by then."""
    weights = weights_of(4)
    with bind(client, weights) as bound:
        sent: list[list[str]] = []

        def forward(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            received = list(requests)
            layers = [h.layer for r in received for h in pb.CalcMaskRequest.FromString(r).headers]
            sent.append(layers)
            with grpc.insecure_channel(server.address) as channel:
                call = channel.stream_stream("/nni.compression.v1.CompressionService/CalcMask")
                for reply in call(iter(received)):
                    message = pb.CalcMaskResponse.FromString(reply)
                    if len(sent) > 1:
                        yield reply
                        continue
                    yield from only_first(message)
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut off")

        def only_first(message: pb.CalcMaskResponse) -> Iterator[bytes]:
            first = message.headers[0].index
            yield pb.CalcMaskResponse(
                results=message.results[:1],
                headers=message.headers[:1],
                chunks=[chunk for chunk in message.chunks if chunk.index == first],
                commits=[commit for commit in message.commits if commit.index == first],
            ).SerializeToString()

        live = pb.GetSessionResponse(
            session=pb.Session(id=bound.id, lease=Duration(seconds=60)),
            plan=pb.Plan(
                rules=[pb.PlannedRule(rule=0, joint=True)],
                layers=[pb.LayerPlan(name=name, compressed=True, rule=0) for name in weights],
            ),
        )
        renewed = pb.KeepAliveResponse(lease=Duration(seconds=60))
        answers = {"GetSession": replies(live), "KeepAlive": replies(renewed)}
        with (
            ScriptedServer(**answers, CalcMask=forward) as proxy,
            nc.Client(proxy.address, timeout=60) as cut_off,
        ):
            session = cut_off.join(bound.id)
            assert as_lists(session.calc_mask(weights)) == kept(weights, 0.5)
        assert sent == [["a", "b", "c"], ["b", "c"]]


class TestSharedMemory:
    @pytest.fixture(scope="class")
    def folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="nni-shm-") as name:
            yield Path(name)

    @pytest.fixture(scope="class")
    def local(self, folder: Path) -> Iterator[ServerProcess]:
        with ServerProcess(f"--shm_socket={folder / 'side'}") as process:
            yield process

    @pytest.fixture
    def shared(self, local: ServerProcess, folder: Path) -> Iterator[nc.Client]:
        with nc.Client(local.address, shm_socket=str(folder / "side"), timeout=60) as client:
            yield client

    @pytest.mark.parametrize("algorithm", ["global_magnitude", "lamp"])
    def test_masks_are_those_of_the_network(
        self, shared: nc.Client, local: ServerProcess, algorithm: str
    ) -> None:
        weights = {**weights_of(5, LARGE), "small": weights_of(6)["a"]}
        found = []
        with nc.Client(local.address, shm_socket="", timeout=60) as network:
            for client in (shared, network):
                with bind(client, weights, algorithm=algorithm) as session:
                    found.append(bits(session.calc_mask(weights)))
        assert found[0] == found[1]
        assert shared.stats.bytes_sent < 100_000 < network.stats.bytes_sent

    @pytest.mark.parametrize("gone", ["a", "c"])
    def test_a_region_that_is_gone_sends_all_layers_of_its_rule_again(
        self, shared: nc.Client, monkeypatch: pytest.MonkeyPatch, gone: str
    ) -> None:
        share = LayerExchange._share
        sent: list[tuple[str, bool]] = []  # layer, and whether its weight was in shared memory

        def lose(exchange: Any, request: Any) -> Any:
            prepared = share(exchange, request)
            header = prepared.header
            if header.layer == gone and header.HasField("shared_memory"):
                header.shared_memory.region = bytes(len(header.shared_memory.region))
            sent.append((header.layer, header.HasField("shared_memory")))
            return prepared

        monkeypatch.setattr(LayerExchange, "_share", lose)
        weights = weights_of(7, LARGE)
        with bind(shared, weights) as session:
            assert as_lists(session.calc_mask(weights)) == kept(weights, 0.5)
            assert session.stale == frozenset()
        first, second = sent[:3], sent[3:]
        assert first == [(name, True) for name in weights]
        assert second == [(name, name != gone) for name in weights]

    def test_an_error_of_the_rule_after_a_region_is_gone_is_reported(
        self, shared: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share = LayerExchange._share

        def lose(exchange: Any, request: Any) -> Any:
            prepared = share(exchange, request)
            if prepared.header.HasField("shared_memory"):
                prepared.header.shared_memory.region = b"\1" * 16
            return prepared

        monkeypatch.setattr(LayerExchange, "_share", lose)
        weights = weights_of(8, LARGE)
        weights["b"][5] = np.inf
        told = 'layer "b": element 5 is inf'
        with bind(shared, weights) as session:
            with pytest.raises(nc.InvalidArgumentError, match=told) as raised:
                session.calc_mask(weights)
            assert set(raised.value.errors) == {"a", "b", "c"}
            assert session.stale == {"a", "b", "c"}


def test_weights_are_never_sent_by_their_digest(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(9, 1_000_000)
    assert sum(weight.nbytes for weight in weights.values()) > known_weights.LONE_BYTES
    asked: list[int] = []
    question = LayerExchange.question

    def spy(exchange: Any) -> list[bytes]:
        asked.append(len(question(exchange)))
        return question(exchange)

    monkeypatch.setattr(LayerExchange, "question", spy)
    for algorithm in ("level", "global_magnitude"):
        with bind(client, weights, algorithm=algorithm) as session:
            session.calc_mask(weights)
    assert asked == [3, 0]


def test_memory_goes_back_whether_the_layers_are_decided_about_or_not(tmp_path: Path) -> None:
    weights = weights_of(10, 2_000_000)
    bad = {**weights, "c": np.full_like(weights["c"], np.nan)}
    with Metered(tmp_path) as server, nc.Client(server.address, timeout=60) as client:

        def held() -> float:
            return server.samples()["nni_compression_memory_reserved_bytes"]

        with bind(client, weights) as session:
            before, idle = session.info().state_bytes, held()
            with pytest.raises(nc.InvalidArgumentError):
                session.calc_mask({name: weights[name] for name in "ab"})
            assert eventually(lambda: held() == idle) is True
            with pytest.raises(nc.InvalidArgumentError):
                session.calc_mask(bad)
            assert eventually(lambda: held() == idle) is True
            assert session.info().state_bytes == before
            masks = session.calc_mask(weights)
            in_masks = sum(mask.bits.nbytes for mask in masks.values())
            assert eventually(lambda: held() < idle + 2 * in_masks) is True
            assert in_masks <= session.info().state_bytes - before < 2 * in_masks
