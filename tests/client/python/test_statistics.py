"""Statistics of layers on a real server: what counts, once, and what it is good for."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nni_compression as nc
from nni_compression._calls.statistics import StatisticExchange
from servers import ServerProcess, server_binary

Array = np.ndarray[Any, np.dtype[Any]]
PLUGINS = server_binary().parents[1] / "tests/compression/plugins/statistics"
MOVEMENT = {"final_sparsity": 0.5, "schedule_unit": "step", "end_step": 10, "frequency": 10}
LAYERS = [nc.Layer("a", "Linear", (4, 6), aliases=["tied"]), nc.Layer("b", "Linear", (3,))]
INPUTS = 1100  # of layers whose second moment, 4.8 MB, is worth sending once


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server with an algorithm that asks for any kinds of statistics."""
    with ServerProcess(f"--plugin_dir={PLUGINS}") as process:
        yield process


@pytest.fixture
def session(client: nc.Client) -> Iterator[nc.Session]:
    with client.bind_model("movement", [MOVEMENT], LAYERS) as bound:
        yield bound


def values(seed: int = 0, shape: tuple[int, ...] = (4, 6)) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def gradient(part: Any) -> dict[str, dict[str, Any]]:
    return {"a": {"weight_gradient": part}}


def report_of(session: nc.Session, kind: str = "weight_gradient", layer: int = 0) -> Any:
    return session.info().layers[layer].statistics[kind]


def total_of(session: nc.Session) -> int:
    """Samples that the session has of layer "a"."""
    return int(report_of(session).count)


def part(count: int, seed: int = 0) -> nc.StatisticPart:
    return nc.StatisticPart(values(seed), count=count)


def part_of_ones(shape: tuple[int, ...]) -> nc.StatisticPart:
    return nc.StatisticPart(np.ones(shape))


class TestParts:
    def test_what_moves_towards_zero_is_pruned(self, session: nc.Session) -> None:
        assert session.plan.layers["a"].statistics == {"weight_gradient": (4, 6)}
        assert session.plan.layers["b"].statistics == {"weight_gradient": (3,)}
        sent = [values(seed) for seed in range(5)]
        for i, one in enumerate(sent):
            source = (3, 0, 63)[i % 3]
            count = session.add_statistics(gradient(one), source=source)
            assert count == {"a": {"weight_gradient": i + 1}}
        session.step(10)
        mask = session.calc_mask({"a": np.ones((4, 6), np.float32)})["a"]
        movement = -(sent[1] + sent[4] + (sent[0] + sent[3]) + sent[2]).astype(np.float32)
        assert np.array_equal(mask.to_numpy(), movement > np.sort(movement, axis=None)[11])

    def test_a_call_that_needs_one_says_what_to_send(self, session: nc.Session) -> None:
        session.step(10)
        with pytest.raises(
            nc.FailedPreconditionError, match='"a" has no weight_gradient.*AddStatistics'
        ):
            session.calc_mask({"a": np.ones((4, 6), np.float32)})
        session.add_statistics(gradient(values()))
        assert session.calc_mask({"a": np.ones((4, 6), np.float32)})["a"].sparsity == 0.5

    def test_every_kind_has_its_name(self, client: nc.Client) -> None:
        shapes = {
            "weight_gradient": (4, 6),
            "filter_taylor": (4,),
            "parameter": (4,),
            "squared_gradient": (1,),
            "input_square_sum": (6,),
            "input_second_moment": (6, 6),
            "input_abs_max": (6,),
            "input_abs_sum": (6,),
            "input_histogram": (),
            "output_histogram": (),
            "output_zero_count": (4,),
            "output_sum": (4,),
            "input_range": (2,),
            "output_range": (2,),
        }
        rule = {"kinds": list(shapes)}
        with client.bind_model("needs_statistics", [rule], LAYERS[:1]) as session:
            assert session.plan.layers["a"].statistics == shapes
            parts = {
                kind: nc.StatisticPart(np.ones(shape or 8), count=5, exponent=0 if shape else -2)
                for kind, shape in shapes.items()
            }
            assert session.add_statistics({"a": parts}) == {"a": dict.fromkeys(shapes, 5)}
            assert list(session.info().layers[0].statistics) == list(shapes)

    @pytest.mark.parametrize(
        ("statistics", "message"),
        [
            (gradient(np.full((4, 6), np.nan)), "weight_gradient .*nan at flat index 0"),
            (gradient(np.ones((6, 4))), r"weight_gradient .* \[6, 4\]; it must be \[4, 6\]"),
            ({"a": {"output_sum": np.ones(4)}}, "output_sum.*weight_gradient"),
            (gradient(nc.StatisticPart(np.ones((4, 6)), exponent=1)), "has exponent 1; .*0"),
        ],
    )
    def test_a_refused_part_changes_nothing_and_the_others_count(
        self, session: nc.Session, statistics: Any, message: str
    ) -> None:
        session.add_statistics(gradient(part(5)))
        before = report_of(session)
        with pytest.raises(nc.InvalidArgumentError, match=message) as raised:
            session.add_statistics({**statistics, "b": {"weight_gradient": np.ones(3)}})
        assert list(raised.value.errors) == ["a"]
        assert raised.value.results == {"b": {"weight_gradient": 1}}
        assert report_of(session) == before
        assert session.add_statistics(gradient(part(2))) == {"a": {"weight_gradient": 7}}

    def test_every_refused_kind_is_named(self, client: nc.Client) -> None:
        shapes = {"output_sum": 3, "input_abs_sum": 6, "parameter": 4}
        rule = {"kinds": list(shapes)}
        with client.bind_model("needs_statistics", [rule], LAYERS[:1]) as session:
            parts = {kind: -np.ones(size) for kind, size in shapes.items()}
            with pytest.raises(nc.InvalidArgumentError, match="output_sum .*1 more") as raised:
                session.add_statistics({"a": parts})
            errors = raised.value.errors["a"].errors
            assert raised.value.results == {"a": {"parameter": 1}}
        assert list(errors) == ["output_sum", "input_abs_sum"]
        assert "[3]; it must be [4]" in str(errors["output_sum"])
        assert "must be at least 0" in str(errors["input_abs_sum"])

    def test_the_names_of_a_tied_weight_have_one_statistic(self, session: nc.Session) -> None:
        for count, name in enumerate(("a", "tied", "tied", "a"), start=1):
            added = session.add_statistics({name: {"weight_gradient": part(1)}})
            assert added == {name: {"weight_gradient": count}}
        assert report_of(session).sources[0].sequence == 4

    def test_a_layer_that_was_not_bound_is_named(self, session: nc.Session) -> None:
        with pytest.raises(nc.NotFoundError, match="elsewhere"):
            session.add_statistics({"elsewhere": {"weight_gradient": np.ones(3)}})

    def test_the_report_has_the_digest_of_the_last_part(self, session: nc.Session) -> None:
        session.add_statistics(gradient(part(5)), source=7)
        last = values(1).astype(np.float32)
        session.add_statistics(gradient(last), source=7)
        report = report_of(session)
        digest = hashlib.sha256(struct.pack("<BIqq", 1, 2, 4, 6) + last.tobytes()).digest()
        assert report.sources == {7: nc.StatisticSource(sequence=2, digest=digest, count=6)}
        assert report.bytes >= 4 * 6 * 8
        assert session.info().layers[1].statistics == {}

    def test_a_closed_session_takes_none(self, session: nc.Session) -> None:
        session.close()
        with pytest.raises(nc.FailedPreconditionError, match="is closed"):
            session.add_statistics(gradient(part(1)))


class TestOnce:
    @pytest.fixture
    def cut(self, session: nc.Session, monkeypatch: pytest.MonkeyPatch) -> nc.Session:
        """A session with a part of 5 samples, and one of 10 that was counted without an answer."""

        def fail(exchange: Any, message: bytes) -> None:
            raise nc.InternalError("the answer is lost")

        session.add_statistics(gradient(part(5)))
        with monkeypatch.context() as patched:
            patched.setattr(StatisticExchange, "receive", fail)
            with pytest.raises(nc.InternalError, match="is lost"):
                session.add_statistics(gradient(part(10, seed=1)))
        assert total_of(session) == 15
        return session

    def test_a_part_whose_answer_was_lost_counts_once(self, cut: nc.Session) -> None:
        assert cut.add_statistics(gradient(part(10, seed=1))) == {"a": {"weight_gradient": 15}}
        assert cut.add_statistics(gradient(part(10, seed=1))) == {"a": {"weight_gradient": 25}}

    def test_new_numbers_in_its_place_are_refused(self, cut: nc.Session) -> None:
        for other in (part(10, seed=2), part(11, seed=1)):
            with pytest.raises(nc.InvalidArgumentError, match=r"sequence 2 of source 0.*another"):
                cut.add_statistics(gradient(other))
        assert total_of(cut) == 15
        cut.add_statistics(gradient(part(10, seed=1)))
        assert cut.add_statistics(gradient(part(11, seed=1))) == {"a": {"weight_gradient": 26}}

    def test_one_who_has_lost_it_joins(self, client: nc.Client, cut: nc.Session) -> None:
        joined = client.join(cut.id, route=cut.route)
        assert joined.add_statistics(gradient(part(20))) == {"a": {"weight_gradient": 35}}

    def test_one_who_joins_continues_where_the_report_has_no_numbers(
        self, client: nc.Client
    ) -> None:
        """Long names fill the report, so that there is no room for statistics."""
        others = [nc.Layer(f"{i:01000}", "Conv2d", (1,)) for i in range(1920)]
        kinds = ["weight_gradient", "output_sum", "output_zero_count", "input_abs_sum"]
        shapes = [(4, 6), (4,), (4,), (6,)]
        parts = {kind: part_of_ones(shape) for kind, shape in zip(kinds, shapes)}
        layers = [nc.Layer(str(i), "Linear", (4, 6)) for i in range(40)]
        rule = {"kinds": kinds, "op_types": ["Linear"]}
        with client.bind_model("needs_statistics", [rule], [*layers, *others]) as session:
            for source in range(64):
                session.add_statistics({layer.name: parts for layer in layers}, source=source)
            assert not any(layer.statistics for layer in session.info().layers)
            for count in (65, 66):
                joined = client.join(session.id, route=session.route)
                added = joined.add_statistics({"7": parts}, source=30)
                assert added == {"7": dict.fromkeys(kinds, count)}

    def test_threads_of_one_session_share_its_numbers(self, session: nc.Session) -> None:
        def add(i: int) -> None:
            session.add_statistics(gradient(part(2**i, seed=i)))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(40)))
        assert total_of(session) == 2**40 - 1
        assert report_of(session).sources[0].sequence == 40

    def test_two_objects_of_a_session_need_sources_of_their_own(
        self, client: nc.Client, session: nc.Session
    ) -> None:
        other = client.join(session.id, route=session.route)
        session.add_statistics(gradient(part(1)))
        with pytest.raises(nc.InvalidArgumentError, match=r"sequence 1 of source 0.*another part"):
            other.add_statistics(gradient(part(2, seed=1)))
        with pytest.raises(nc.InvalidArgumentError, match="of source 0, as an equal part that ano"):
            other.add_statistics(gradient(part(1)))
        session.add_statistics(gradient(part(4)))
        with pytest.raises(nc.InvalidArgumentError, match=r"sequence 1 after 2 of source 0"):
            other.add_statistics(gradient(part(8)))
        assert total_of(session) == 5
        other.add_statistics(gradient(part(16)), source=1)
        assert total_of(session) == 21


class Lost(grpc.RpcError):
    """A connection that broke off."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "lost"

    def trailing_metadata(self) -> None:
        return None


class TestRestarts:
    def test_a_stored_session_has_its_statistics_and_numbers(self, tmp_path: Path) -> None:
        flag = f"--data_dir={tmp_path}"
        first = ServerProcess(flag)
        with nc.Client(first.address, timeout=60) as client:
            session = client.bind_model("movement", [MOVEMENT], LAYERS)
            session.add_statistics(gradient(part(1)))
            session.add_statistics(gradient(part(2, seed=1)), source=5)
            before = report_of(session)
            first.kill()
            with ServerProcess(flag, port=first.port):
                assert report_of(session) == before
                joined = client.join(session.id, route=session.route)
                assert joined.add_statistics(gradient(part(4)))["a"]["weight_gradient"] == 7
                session.add_statistics(gradient(part(8, seed=2)), source=5)
                assert report_of(session).sources[5].sequence == 2
                session.step(10)
                mask = session.calc_mask({"a": np.ones((4, 6), np.float32)})["a"].to_numpy()
                movement = -(2 * values(0) + (values(1) + values(2))).astype(np.float32)
                assert np.array_equal(mask, movement > np.sort(movement, axis=None)[11])

    def test_a_part_that_a_killed_server_had_counted_counts_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its answer is lost with the server; the call is retried with the next one."""
        flag = f"--data_dir={tmp_path}"
        servers = [ServerProcess(flag)]
        receive = StatisticExchange.receive

        def cut(exchange: Any, message: bytes) -> None:
            if len(servers) == 1:
                servers[0].kill()
                servers.append(ServerProcess(flag, port=servers[0].port))
                raise Lost
            receive(exchange, message)

        with nc.Client(servers[0].address, timeout=60) as client:
            session = client.bind_model("movement", [MOVEMENT], LAYERS)
            with monkeypatch.context() as patched:
                patched.setattr(StatisticExchange, "receive", cut)
                added = session.add_statistics(gradient(part(3)))
            assert added == {"a": {"weight_gradient": 3}}
            assert report_of(session).sources[0].sequence == 1
            assert session.stats.retries > 0
        servers[1].stop()

    def test_a_session_without_storage_is_gone(self) -> None:
        first = ServerProcess()
        with nc.Client(first.address, timeout=60) as client:
            session = client.bind_model("movement", [MOVEMENT], LAYERS)
            session.add_statistics(gradient(part(1)))
            first.kill()
            with ServerProcess(port=first.port), pytest.raises(nc.NotFoundError):
                session.add_statistics(gradient(part(1)))


class TestSharedValues:
    """Second moments of inputs that layers share."""

    @pytest.fixture
    def moment(self) -> Array:
        inputs = values(3, (8, INPUTS)).astype(np.float32)
        return inputs.T @ inputs

    @pytest.fixture
    def shared(self, client: nc.Client) -> Iterator[nc.Session]:
        layers = [nc.Layer(name, "Linear", (2, INPUTS)) for name in "qkv"]
        rule = {"kinds": ["input_second_moment"]}
        with client.bind_model("needs_statistics", [rule], layers) as session:
            yield session

    @staticmethod
    def add(session: nc.Session, *moments: Array) -> int:
        """Adds one for each layer, and returns the bytes sent."""
        before = session.stats.bytes_sent
        added = session.add_statistics(
            {name: {"input_second_moment": moment} for name, moment in zip("qkv", moments)}
        )
        assert list(added) == list("qkv")
        return session.stats.bytes_sent - before

    @staticmethod
    def digests(session: nc.Session) -> list[bytes]:
        reports = [report_of(session, "input_second_moment", layer) for layer in range(3)]
        return [report.sources[0].digest for report in reports]

    def test_they_are_sent_once(self, shared: nc.Session, moment: Array) -> None:
        assert self.add(shared, moment, moment, moment.copy()) < moment.nbytes + 4000
        assert len(set(self.digests(shared))) == 1
        assert self.add(shared, moment, moment, moment) < 4000, "the server has them still"
        assert report_of(shared, "input_second_moment", 2).count == 2

    def test_one_that_only_looks_the_same_is_sent(self, shared: nc.Session, moment: Array) -> None:
        other = moment + 1
        similar = other.copy()
        column = 2 * 147 + 2  # right after a sampled word; the other place is not sampled, either
        similar[0, column] = similar[column, 0] = 100
        assert self.add(shared, other, other, similar) > 2 * moment.nbytes
        first, second, third = self.digests(shared)
        assert first == second != third

    def test_those_that_the_server_let_go_of_are_sent(
        self, shared: nc.Session, moment: Array, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            shared,
            "_find_weights",
            lambda exchange, timeout: exchange.learn([True] * len(exchange.question())),
        )
        assert self.add(shared, moment + 2, moment + 2, moment + 2) > 3 * moment.nbytes
        assert len(set(self.digests(shared))) == 1

    def test_a_refused_one_is_refused_for_every_layer(
        self, shared: nc.Session, moment: Array
    ) -> None:
        infinite = np.full_like(moment, np.inf)
        with pytest.raises(nc.InvalidArgumentError, match="inf at flat index 0") as raised:
            self.add(shared, infinite, infinite, infinite)
        assert set(raised.value.errors) == set("qkv")
        assert self.add(shared, moment + 3, moment + 3, moment + 3) < moment.nbytes + 4000
