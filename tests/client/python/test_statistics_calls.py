"""How parts of statistics are sent: their fields, their numbers, what is refused before a call.

The server is scripted; test_statistics.py has a real one.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

import nni_compression as nc
from nni_compression._calls.statistics import Sequences, part_requests
from nni_compression._wire import compression_pb2 as pb
from servers import ScriptedServer, fails, in_turn, replies

LAYERS = [
    nc.Layer("a", "Linear", (2, 3), aliases=["tied", "again"]),
    nc.Layer("b", "Linear", (4,)),
]
PLAN = pb.Plan(
    layers=[
        pb.LayerPlan(
            name="a",
            compressed=True,
            statistics=[
                pb.PlannedStatistic(kind=pb.STATISTIC_KIND_WEIGHT_GRADIENT, shape=[2, 3]),
                pb.PlannedStatistic(kind=pb.STATISTIC_KIND_INPUT_HISTOGRAM),
            ],
        ),
        pb.LayerPlan(name="b", compressed=True),
    ]
)
BOUND = pb.BindModelResponse(session_id="s1", plan=PLAN, lease=Duration(seconds=60))
GRADIENT = np.arange(6, dtype=np.float32).reshape(2, 3)

# (layer, kind, source, sequence)
Part = tuple[str, str, int, int]


class Sent:
    """A behaviour of AddStatistics that counts parts, and keeps what it received.

    Args:
        stop: a header for which the call ends with UNAVAILABLE, once, before its answer.
        refuse: a header whose part is refused.
        known: a header whose part had been counted before.
    """

    def __init__(
        self,
        stop: Callable[[Any], bool] = lambda header: False,
        refuse: Callable[[Any], bool] = lambda header: False,
        known: Callable[[Any], bool] = lambda header: False,
    ) -> None:
        self.headers: list[Any] = []
        self.payloads: list[bytes] = []
        self._stop = stop
        self._refuse = refuse
        self._known = known
        self._stopped = False

    def __call__(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        messages = [pb.AddStatisticsRequest.FromString(raw) for raw in requests]
        payloads: dict[int, bytes] = {}
        for message in messages:
            for chunk in message.chunks:
                payloads[chunk.index] = payloads.get(chunk.index, b"") + chunk.payload
        for header in [header for message in messages for header in message.headers]:
            self.headers.append(header)
            self.payloads.append(payloads[header.index])
            if self._stop(header) and not self._stopped:
                self._stopped = True
                context.abort(grpc.StatusCode.INTERNAL, "broken")
            result = pb.StatisticResult(answers=header.index, layer=header.layer)
            if self._refuse(header):
                result.error.code, result.error.message = 3, f"{header.layer} is refused"
            else:
                result.known = self._known(header)
                result.count = 10 * header.part.count
            yield pb.AddStatisticsResponse(results=[result]).SerializeToString()

    @property
    def parts(self) -> list[Part]:
        kinds = pb.StatisticKind.Name
        return [
            (h.layer, kinds(h.part.kind)[len("STATISTIC_KIND_") :].lower(), h.part.source,
             h.part.sequence)
            for h in self.headers
        ]  # fmt: skip


def gradient_of(*layers: str) -> dict[str, dict[str, Any]]:
    return {layer: {"weight_gradient": GRADIENT} for layer in layers}


@contextlib.contextmanager
def joined(server: ScriptedServer, live: pb.Session) -> Iterator[nc.Session]:
    """A session that was joined by this report."""
    server.behaviours.update(
        GetSession=replies(pb.GetSessionResponse(session=live, plan=PLAN)),
        KeepAlive=replies(pb.KeepAliveResponse(lease=Duration(seconds=60))),
    )
    with nc.Client(server.address) as client:
        yield client.join("s1")


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer(BindModel=replies(BOUND), AddStatistics=Sent()) as server:
        yield server


@pytest.fixture
def session(scripted: ScriptedServer) -> Iterator[nc.Session]:
    with nc.Client(scripted.address, timeout=30) as client:
        yield client.bind_model("movement", [], LAYERS)


class TestParts:
    def test_the_plan_names_what_to_send(self, session: nc.Session) -> None:
        planned = session.plan.layers["a"].statistics
        assert planned == {"weight_gradient": (2, 3), "input_histogram": ()}
        assert session.plan.layers["b"].statistics == {}

    def test_a_part_is_a_tensor_with_its_place(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        sent = scripted.behaviours["AddStatistics"] = Sent()
        bins = nc.StatisticPart(np.ones(4), count=7, exponent=-3)
        parts = {"a": {"weight_gradient": GRADIENT, "input_histogram": bins}}
        assert session.add_statistics(parts, source=63) == {
            "a": {"weight_gradient": 10, "input_histogram": 70}
        }
        gradient, histogram = sent.headers
        assert gradient == pb.TensorHeader(
            index=0,
            layer="a",
            role=pb.TENSOR_ROLE_STATISTIC,
            dtype=pb.DATA_TYPE_FLOAT32,
            shape=[2, 3],
            byte_length=24,
            part=pb.StatisticPart(
                kind=pb.STATISTIC_KIND_WEIGHT_GRADIENT, source=63, sequence=1, count=1
            ),
        )
        assert histogram.part == pb.StatisticPart(
            kind=pb.STATISTIC_KIND_INPUT_HISTOGRAM, source=63, sequence=1, count=7, exponent=-3
        )
        assert histogram.dtype == pb.DATA_TYPE_FLOAT64
        assert sent.payloads == [GRADIENT.tobytes(), np.ones(4).tobytes()]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "longdouble"])
    def test_other_floating_point_types_are_sent_as_float32(
        self, scripted: ScriptedServer, session: nc.Session, dtype: str
    ) -> None:
        sent = scripted.behaviours["AddStatistics"] = Sent()
        type_ = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        session.add_statistics({"a": {"weight_gradient": GRADIENT.T.astype(type_)}})
        assert sent.headers[0].dtype == pb.DATA_TYPE_FLOAT32
        assert list(sent.headers[0].shape) == [3, 2]
        assert sent.payloads == [GRADIENT.T.tobytes()]

    def test_values_that_exist_for_a_moment_are_not_mixed_up(self) -> None:
        class Made(Mapping[str, Any]):
            """Makes new values each time, where those of another layer may just have been."""

            def __init__(self, number: int) -> None:
                self._number = number

            def __getitem__(self, kind: str) -> Any:
                return [[float(self._number)] * 8] * 8

            def __iter__(self) -> Iterator[str]:
                return iter(["weight_gradient"])

            def __len__(self) -> int:
                return 1

        made = {str(number): Made(number) for number in range(30)}
        requests = part_requests(made, 0, Sequences({}))
        values = [np.frombuffer(request.data, np.float64)[0] for request in requests.values()]
        assert values == list(range(30))

    def test_an_empty_call_is_none(self, scripted: ScriptedServer, session: nc.Session) -> None:
        assert session.add_statistics({}) == {}
        assert session.add_statistics({"a": {}}) == {}
        assert "AddStatistics" not in "".join(scripted.methods())

    @pytest.mark.parametrize(
        ("statistics", "source", "message"),
        [
            (gradient_of("a"), 64, r"source is 64; it must be an integer in \[0, 63\]"),
            (gradient_of("a"), -1, r"source is -1; .* \[0, 63\]"),
            (gradient_of("a"), 0.5, r"source is 0\.5; it must be an integer"),
            ({}, 64, "source is 64"),
            ({"a": GRADIENT}, 0, r"statistics\['a'\] is a ndarray; it must be a dict"),
            (
                {"tied": {"weight_gradient": GRADIENT}, **gradient_of("a")},
                0,
                r"statistics\['a'\]\['weight_gradient'\] and "
                r"statistics\['tied'\]\['weight_gradient'\] are of one layer, 'a'",
            ),
            ({7: {"weight_gradient": GRADIENT}}, 0, "a layer's name is 7; it must be a string"),
            (
                {"a": {"gradient": GRADIENT}},
                0,
                r"statistics\['a'\]\['gradient'\] is of no kind .* weight_gradient, filter_taylor",
            ),
            ({"a": {"unspecified": GRADIENT}}, 0, "is of no kind"),
            (
                {"a": {"weight_gradient": np.ones(3, np.int64)}},
                0,
                r"statistics\['a'\]\['weight_gradient'\] has dtype int64; .* float32, float64",
            ),
            (
                {"a": {"weight_gradient": nc.Tensor(b"\0\0", "bfloat16", (1,))}},
                0,
                r"statistics\['a'\]\['weight_gradient'\] is a Tensor of bfloat16; .* float32",
            ),
            *(
                (
                    {"a": {"weight_gradient": nc.StatisticPart(GRADIENT, count=count)}},
                    0,
                    rf"\['weight_gradient'\]\.count is {count}; .* \[1, 2\^53\]",
                )
                for count in (0, -1, 1.5, 2**53 + 1)
            ),
            *(
                (
                    {"a": {"input_histogram": nc.StatisticPart(GRADIENT, exponent=exponent)}},
                    0,
                    rf"\['input_histogram'\]\.exponent is {exponent}; .* \[-126, 127\]",
                )
                for exponent in (-127, 128)
            ),
        ],
    )
    def test_what_no_server_accepts_is_refused_before_the_call(
        self,
        scripted: ScriptedServer,
        session: nc.Session,
        statistics: Any,
        source: Any,
        message: str,
    ) -> None:
        sent = scripted.behaviours["AddStatistics"] = Sent()
        with pytest.raises(nc.InvalidArgumentError, match=message):
            session.add_statistics({**gradient_of("b"), **statistics}, source=source)
        assert sent.headers == []
        session.add_statistics(gradient_of("b"))
        assert sent.parts == [("b", "weight_gradient", 0, 1)]

    @pytest.mark.parametrize("statistics", [[1], None, "ab", GRADIENT])
    def test_only_a_dict_has_layers(self, session: nc.Session, statistics: Any) -> None:
        told = f"^statistics is a {type(statistics).__name__}; it must be a dict of layers$"
        with pytest.raises(nc.InvalidArgumentError, match=told):
            session.add_statistics(statistics)

    def test_the_report_has_every_source(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        report = pb.StatisticReport(kind=pb.STATISTIC_KIND_INPUT_RANGE, bytes=99)
        report.sources.add(source=0, sequence=4, digest=b"d" * 32, count=40)
        report.sources.add(source=9, sequence=1, digest=b"e" * 32, count=2)
        layers = [pb.LayerReport(name="a", statistics=[report]), pb.LayerReport(name="b")]
        reply = pb.GetSessionResponse(session=pb.Session(id="s1", layers=layers))
        scripted.behaviours["GetSession"] = replies(reply)
        a, b = session.info().layers
        assert b.statistics == {}
        found = a.statistics["input_range"]
        assert (found.count, found.bytes, list(found.sources)) == (42, 99, [0, 9])
        assert found.sources[9] == nc.StatisticSource(sequence=1, digest=b"e" * 32, count=2)


class TestSequences:
    def test_each_layer_kind_and_source_has_its_own(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        sent = scripted.behaviours["AddStatistics"] = Sent()
        session.add_statistics(gradient_of("a", "b"))
        session.add_statistics({"a": {"output_sum": GRADIENT, "weight_gradient": GRADIENT}})
        session.add_statistics(gradient_of("a"), source=1)
        session.add_statistics(gradient_of("b"))
        assert sent.parts == [
            ("a", "weight_gradient", 0, 1),
            ("b", "weight_gradient", 0, 1),
            ("a", "output_sum", 0, 1),
            ("a", "weight_gradient", 0, 2),
            ("a", "weight_gradient", 1, 1),
            ("b", "weight_gradient", 0, 2),
        ]

    def test_a_part_without_an_answer_keeps_its_number(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        sent = scripted.behaviours["AddStatistics"] = Sent(stop=lambda header: header.layer == "b")
        with pytest.raises(nc.InternalError) as raised:
            session.add_statistics(gradient_of("a", "b"))
        assert raised.value.results == {"a": {"weight_gradient": 10}}
        session.add_statistics(gradient_of("b", "a"))
        assert sent.parts[2:] == [("b", "weight_gradient", 0, 1), ("a", "weight_gradient", 0, 2)]

    def test_a_retry_leaves_out_what_was_answered(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        sent = Sent()
        first = pb.AddStatisticsResponse(results=[pb.StatisticResult(answers=0, count=5)])

        def cut(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            yield first.SerializeToString()
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

        scripted.behaviours["AddStatistics"] = in_turn(cut, sent)
        assert session.add_statistics(gradient_of("a", "b")) == {
            "a": {"weight_gradient": 5},
            "b": {"weight_gradient": 10},
        }
        assert sent.parts == [("b", "weight_gradient", 0, 1)]
        assert session.stats.retries == 1

    def test_a_refused_part_keeps_its_number_and_the_others_are_counted(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        kind = pb.STATISTIC_KIND_OUTPUT_SUM
        sent = Sent(refuse=lambda header: header.part.kind == kind and header.layer == "a")
        scripted.behaviours["AddStatistics"] = sent
        both = {"output_sum": GRADIENT, "weight_gradient": GRADIENT}
        with pytest.raises(nc.InvalidArgumentError, match="^a is refused$") as raised:
            session.add_statistics({"a": both, "b": both})
        assert list(raised.value.errors) == ["a"]
        assert list(raised.value.errors["a"].errors) == ["output_sum"]
        assert raised.value.results == {
            "a": {"weight_gradient": 10},
            "b": {"output_sum": 10, "weight_gradient": 10},
        }
        scripted.behaviours["AddStatistics"] = sent = Sent()
        session.add_statistics({"a": both})
        assert sent.parts == [("a", "output_sum", 0, 1), ("a", "weight_gradient", 0, 2)]

    def test_every_refused_kind_of_a_layer_has_its_error(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        kinds = {"output_sum": GRADIENT, "weight_gradient": GRADIENT, "filter_taylor": GRADIENT}
        kept = pb.STATISTIC_KIND_FILTER_TAYLOR
        sent = Sent(refuse=lambda header: header.layer == "a" and header.part.kind != kept)
        scripted.behaviours["AddStatistics"] = sent
        told = r"^a is refused \(1 more kind failed\)$"
        with pytest.raises(nc.InvalidArgumentError, match=told) as raised:
            session.add_statistics({"a": kinds, "b": kinds})
        errors = pickle.loads(pickle.dumps(raised.value)).errors
        assert list(errors) == ["a"]
        assert {kind: str(error) for kind, error in errors["a"].errors.items()} == {
            "output_sum": "a is refused",
            "weight_gradient": "a is refused",
        }
        assert raised.value.results == {
            "a": {"filter_taylor": 10},
            "b": dict.fromkeys(kinds, 10),
        }

    def test_the_names_of_a_tied_weight_share_one(
        self, scripted: ScriptedServer, session: nc.Session
    ) -> None:
        sent = scripted.behaviours["AddStatistics"] = Sent()
        for name in ("a", "tied", "again", "a"):
            assert session.add_statistics(gradient_of(name)) == {name: {"weight_gradient": 10}}
        assert sent.parts == [
            (name, "weight_gradient", 0, sequence)
            for sequence, name in enumerate(("a", "tied", "again", "a"), start=1)
        ]

    def test_one_who_joins_continues_after_what_the_session_has(
        self, scripted: ScriptedServer
    ) -> None:
        report = pb.StatisticReport(kind=pb.STATISTIC_KIND_WEIGHT_GRADIENT)
        report.sources.add(source=2, sequence=2**40, count=1)
        live = pb.Session(id="s1", lease=Duration(seconds=60), received_bytes=2**50)
        live.layers.add(name="a", statistics=[report])
        with joined(scripted, live) as session:
            sent = scripted.behaviours["AddStatistics"] = Sent()
            session.add_statistics(gradient_of("a", "b"), source=2)
            session.add_statistics(gradient_of("a"))
        assert sent.parts == [
            ("a", "weight_gradient", 2, 2**40 + 1),
            ("b", "weight_gradient", 2, 1),
            ("a", "weight_gradient", 0, 1),
        ]

    def test_one_who_joins_without_a_part_in_the_session_begins(
        self, scripted: ScriptedServer
    ) -> None:
        live = pb.Session(id="s1", lease=Duration(seconds=60), received_bytes=2**50)
        live.config_list.add()["final_sparsity"] = 0.5
        with joined(scripted, live) as session:
            sent = scripted.behaviours["AddStatistics"] = Sent()
            session.add_statistics(gradient_of("a"))
        assert sent.parts == [("a", "weight_gradient", 0, 1)]

    def test_one_who_joins_by_a_report_without_numbers_is_above_all(
        self, scripted: ScriptedServer
    ) -> None:
        live = pb.Session(id="s1", lease=Duration(seconds=60), received_bytes=2**50)
        with joined(scripted, live) as session:
            sent = scripted.behaviours["AddStatistics"] = Sent()
            session.add_statistics(gradient_of("a"))
            session.add_statistics(gradient_of("a", "b"))
        assert [sequence - 2**50 for *_, sequence in sent.parts] == [1, 2, 1]

    def test_one_who_joins_has_to_use_the_names_of_the_plan(self, scripted: ScriptedServer) -> None:
        with joined(scripted, pb.Session(id="s1", lease=Duration(seconds=60))) as session:
            sent = scripted.behaviours["AddStatistics"] = Sent()
            told = "^layer 'tied' is not in the plan of the session, which was joined: use the name"
            with pytest.raises(nc.NotFoundError, match=told) as raised:
                session.add_statistics(gradient_of("b", "tied"))
        assert list(raised.value.errors) == ["tied"]
        assert sent.parts == []

    def test_an_older_server_says_so(self, scripted: ScriptedServer, session: nc.Session) -> None:
        scripted.behaviours["AddStatistics"] = fails(grpc.StatusCode.UNIMPLEMENTED, "")
        with pytest.raises(nc.UnimplementedError, match="no AddStatistics; it is older"):
            session.add_statistics(gradient_of("a"))


class TestKnownParts:
    """Those that the server had counted before."""

    TOLD = (
        "^weight_gradient of layer 'a' has sequence 1 of source 7, as an equal part that another "
        "Session object has sent; it is not counted again. Let each send as a source of its own"
    )

    @staticmethod
    def known(header: Any) -> bool:
        return bool(header.layer == "a")

    @pytest.fixture
    def sent(self, scripted: ScriptedServer) -> Sent:
        sent = scripted.behaviours["AddStatistics"] = Sent(known=self.known)
        return sent

    def test_one_of_another_sender_is_refused_and_the_others_count(
        self, session: nc.Session, sent: Sent
    ) -> None:
        for numbers in ((1, 1), (1, 2)):  # it keeps its number
            with pytest.raises(nc.InvalidArgumentError, match=self.TOLD) as raised:
                session.add_statistics(gradient_of("a", "b"), source=7)
            assert list(raised.value.errors) == ["a"]
            assert raised.value.results == {"b": {"weight_gradient": 10}}
            assert tuple(sequence for *_, sequence in sent.parts[-2:]) == numbers

    def test_one_that_a_retry_repeats_is_counted(
        self, scripted: ScriptedServer, session: nc.Session, sent: Sent
    ) -> None:
        def cut(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            list(requests)
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            yield b""

        scripted.behaviours["AddStatistics"] = in_turn(cut, sent)
        assert session.add_statistics(gradient_of("a"), source=7) == {"a": {"weight_gradient": 10}}
        assert session.stats.retries == 1
        with pytest.raises(nc.InvalidArgumentError, match="has sequence 2 of source 7"):
            session.add_statistics(gradient_of("a"), source=7)

    def test_one_that_is_repeated_after_a_failed_call_is_counted(
        self, scripted: ScriptedServer, session: nc.Session, sent: Sent
    ) -> None:
        scripted.behaviours["AddStatistics"] = fails(grpc.StatusCode.INTERNAL, "broken")
        with pytest.raises(nc.InternalError):
            session.add_statistics(gradient_of("a"), source=7)
        # A refusal of another part in its place does not change that.
        scripted.behaviours["AddStatistics"] = in_turn(Sent(refuse=self.known), sent)
        with pytest.raises(nc.InvalidArgumentError, match="is refused"):
            session.add_statistics(gradient_of("a"), source=7)
        assert session.add_statistics(gradient_of("a"), source=7) == {"a": {"weight_gradient": 10}}
        with pytest.raises(nc.InvalidArgumentError, match="has sequence 2 of source 7"):
            session.add_statistics(gradient_of("a"), source=7)

    def test_one_in_the_place_of_a_refused_one_is_refused(
        self, scripted: ScriptedServer, session: nc.Session, sent: Sent
    ) -> None:
        scripted.behaviours["AddStatistics"] = in_turn(Sent(refuse=self.known), sent)
        with pytest.raises(nc.InvalidArgumentError, match="is refused"):
            session.add_statistics(gradient_of("a"), source=7)
        with pytest.raises(nc.InvalidArgumentError, match=self.TOLD):
            session.add_statistics(gradient_of("a"), source=7)
