"""What bad input gets: a clear error; the session as it was; other sessions notice nothing.

Frames that no client of ours would send are written by hand.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import grpc
import numpy as np
import pytest

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from nni_compression._wire import frames
from servers import SERVICE, ServerProcess

SOURCES = Path(nc.__file__).parents[1]
WEIGHT = np.random.default_rng(5).normal(size=(10, 20)).astype(np.float32)
LAYER = nc.Layer("fc", "Linear", (10, 20))


def bind(client: nc.Client, algorithm: str, *rules: dict[str, Any], **rest: Any) -> nc.Session:
    return client.bind_model(algorithm, rules, rest.pop("layers", [LAYER]), **rest)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("algorithm", "rule", "words"),
        [
            ("levle", {"sparsity": 0.5}, ["levle", "level"]),
            (
                "level",
                {"sparsitty": 0.5},
                ["config_list[0]", "sparsitty", "did you mean `sparsity`"],
            ),
            (
                "level",
                {"sparsity": 0.5, "op_name": ["fc"]},
                ["config_list[0]", "op_name", "did you mean `op_names`"],
            ),
            ("level", {"sparsity": 1.3}, ["config_list[0].sparsity is 1.3", "[0, 1]"]),
            ("level", {"sparsity": -0.1}, ["config_list[0].sparsity is -0.1", "[0, 1]"]),
            ("level", {"sparsity": float("nan")}, ["config_list[0].sparsity", "nan", "[0, 1]"]),
            ("level", {"sparsity": float("inf")}, ["config_list[0].sparsity", "inf", "[0, 1]"]),
            ("level", {"sparsity": "0.5"}, ["config_list[0].sparsity", "0.5", "number"]),
            ("level", {"sparsity": None}, ["config_list[0].sparsity"]),
            ("level", {}, ["config_list[0]", "sparsity"]),
            ("level", {"sparsity": 0.5, "op_types": 3}, ["config_list[0].op_types", "3"]),
            ("level", {"sparsity": 0.5, "exclude": "yes"}, ["config_list[0].exclude", "yes"]),
            ("qat", {"quant_bits": 0}, ["config_list[0].quant_bits", "0", "[2, 16]"]),
            ("qat", {"quant_bits": 33}, ["config_list[0].quant_bits", "33", "[2, 16]"]),
            ("qat", {"quant_bits": 7.5}, ["config_list[0].quant_bits", "7.5"]),
            ("qat", {"quant_scheme": "per_row"}, ["config_list[0].quant_scheme", "per_row"]),
            ("dorefa", {"quant_bits": 0}, ["config_list[0].quant_bits", "0", "[1, 16]"]),
            ("dorefa", {"quant_bits": 33}, ["config_list[0].quant_bits", "33", "[1, 16]"]),
            (
                "agp",
                {"final_sparsity": 0.8, "start_epoch": 5, "end_epoch": 5},
                ["config_list[0].end_epoch is 5", "start_epoch"],
            ),
            (
                "agp",
                {"final_sparsity": 0.8, "start_epoch": 5, "end_epoch": 4},
                ["config_list[0].end_epoch is 4", "start_epoch"],
            ),
            (
                "agp",
                {"initial_sparsity": 0.9, "final_sparsity": 0.8, "end_epoch": 4},
                ["config_list[0].initial_sparsity is 0.9", "0.8"],
            ),
            (
                "agp",
                {"final_sparsity": 0.8, "end_epoch": 4, "frequency": 0},
                ["config_list[0].frequency", "0"],
            ),
        ],
    )
    def test_names_the_field_the_value_and_the_range(
        self, client: nc.Client, algorithm: str, rule: dict[str, Any], words: list[str]
    ) -> None:
        with pytest.raises(nc.InvalidArgumentError) as raised:
            bind(client, algorithm, rule)
        for word in words:
            assert word.lower() in raised.value.message.lower()

    def test_a_losing_rule_is_judged_too(self, client: nc.Client) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"config_list\[0\].sparsity is 2"):
            bind(client, "level", {"sparsity": 2}, {"sparsity": 0.5})

    @pytest.mark.parametrize("config_list", ["level", {"sparsity": 0.5}, 3, [0.5], [None]])
    def test_a_config_list_that_is_no_list_of_dicts(
        self, client: nc.Client, config_list: Any
    ) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="config_list"):
            client.bind_model("level", config_list, [LAYER])

    def test_an_unknown_framework(self, client: nc.Client) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="torchy"):
            bind(client, "level", {"sparsity": 0.5}, framework="torchy")


class TestLayers:
    @pytest.mark.parametrize(
        ("layers", "words"),
        [
            ([], ["layers"]),
            ([LAYER, LAYER], ["layers[1]", "fc"]),
            ([nc.Layer("a", "Linear", (3, -2))], ["layers[0].shape[1] is -2"]),
            ([nc.Layer("a", "Linear", (0,))], ["layers[0].shape[0] is 0"]),
            ([nc.Layer("a", "Linear", ())], ["layers[0].shape"]),
            ([nc.Layer("a", "Linear", (1,) * 65)], ["layers[0].shape", "65", "64"]),
            (
                [nc.Layer("a", "Linear", (2**32, 2**32))],
                ["layers[0].shape", "4294967296", "2^48"],
            ),
            ([nc.Layer("a", "Linear", (2**62, 2**62, 4))], ["layers[0].shape"]),
            ([nc.Layer("", "Linear", (2,))], ["layers[0].name"]),
            ([nc.Layer("a", "", (2,))], ["layers[0].op_type"]),
            ([nc.Layer("a\0b", "Linear", (2,))], ["layers[0].name"]),
            ([nc.Layer("a\nb", "Linear", (2,))], ["layers[0].name"]),
            ([nc.Layer("x" * 102_400, "Linear", (2,))], ["layers[0].name", "102400", "1024"]),
            ([nc.Layer("a", "Linear", (2,), "int32")], ["layers[0].dtype", "int32"]),
            ([nc.Layer("a", "Linear", (2,), channel_axis=1)], ["layers[0].channel_axis", "1"]),
        ],
    )
    def test_names_the_layer_and_what_is_wrong(
        self, client: nc.Client, layers: list[nc.Layer], words: list[str]
    ) -> None:
        with pytest.raises(nc.InvalidArgumentError) as raised:
            bind(client, "level", {"sparsity": 0.5}, layers=layers)
        for word in words:
            assert word in raised.value.message
        assert len(raised.value.message) < 2000  # a long name is not repeated in full

    def test_tied_names_with_differing_rules(self, client: nc.Client) -> None:
        tied = nc.Layer("encoder", "Linear", (4, 4), aliases=["decoder"])
        with pytest.raises(nc.InvalidArgumentError, match="encoder"):
            bind(
                client,
                "level",
                {"sparsity": 0.5, "op_names": ["encoder"]},
                {"sparsity": 0.6, "op_names": ["decoder"]},
                layers=[tied],
            )

    @pytest.mark.parametrize(
        "labels",
        [{str(i): "" for i in range(33)}, {"k" * 65: ""}, {"k": "v" * 257}],
        ids=["many", "key", "value"],
    )
    def test_labels_beyond_their_bounds(self, client: nc.Client, labels: dict[str, str]) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="label"):
            bind(client, "level", {"sparsity": 0.5}, labels=labels)

    @pytest.mark.parametrize("lease", [0, -1, float("nan"), float("inf")])
    def test_a_lease_that_is_no_time(self, client: nc.Client, lease: float) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="lease is"):
            bind(client, "level", {"sparsity": 0.5}, lease=lease)

    def test_masks_that_do_not_fit(self, client: nc.Client) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="nowhere"):
            bind(client, "level", {"sparsity": 0.5}, masks={"nowhere": np.ones(4, bool)})
        with pytest.raises(nc.InvalidArgumentError, match=r"masks\[0\].* 25 "):
            bind(client, "level", {"sparsity": 0.5}, masks={"fc": np.ones(4, bool)})
        with pytest.raises(nc.InvalidArgumentError, match=r"masks\[0\].* 25 "):
            bind(client, "naive", {}, masks={"fc": np.ones(4, bool)})


@pytest.fixture
def session(client: nc.Client) -> Iterator[nc.Session]:
    """A session that must work, and be unchanged, after whatever the test did to it.

    Another session must not have noticed.
    """
    other = bind(client, "level", {"sparsity": 0.3})
    with bind(
        client, "level", {"sparsity": 0.5}, layers=[LAYER, nc.Layer("b", "Linear", (8,))]
    ) as s:
        yield s
        assert s.info().epoch == 0
        assert s.update_epoch(0) == {"fc", "b"}, "a failed call changed the session"
        assert s.calc_mask({"fc": WEIGHT})["fc"].pruned == 100
    assert other.calc_mask({"fc": WEIGHT})["fc"].pruned == 60
    other.close()


class TestWeights:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("index", [0, 123, 199])
    def test_a_weight_that_is_not_finite_is_named_with_its_first_index(
        self, session: nc.Session, bad: float, index: int
    ) -> None:
        weight = WEIGHT.copy()
        weight.ravel()[[index, -1]] = bad
        with pytest.raises(nc.InvalidArgumentError) as raised:
            session.calc_mask({"fc": weight})
        assert "fc" in raised.value.message
        assert str(index) in raised.value.message

    @pytest.mark.parametrize("algorithm", ["naive", "qat", "dorefa"])
    def test_quantizers_refuse_it_too(self, client: nc.Client, algorithm: str) -> None:
        weight = WEIGHT.copy()
        weight[3, 5] = np.nan
        with bind(client, algorithm, {}) as session:
            with pytest.raises(nc.InvalidArgumentError, match=r"fc.*65"):
                session.quantize_weight({"fc": weight})
            assert session.stale == {"fc"}
            assert session.quantize_weight({"fc": WEIGHT})["fc"].codes is not None

    def test_the_other_layers_of_the_call_go_on(self, client: nc.Client) -> None:
        layers = [LAYER, nc.Layer("b", "Linear", (8,)), nc.Layer("c", "ReLU", (8,))]
        rule = {"sparsity": 0.5, "op_types": ["default"]}
        with bind(client, "level", rule, layers=layers) as session:
            with pytest.raises(nc.CompressionError) as raised:
                session.calc_mask(
                    {
                        "nowhere": WEIGHT,
                        "fc": WEIGHT,
                        "b": np.full(8, np.nan, np.float32),
                        "c": np.ones(8, np.float32),
                    }
                )
            assert raised.value.results["fc"].pruned == 100
            codes = {name: error.code for name, error in raised.value.errors.items()}
            assert codes == {
                "nowhere": "NOT_FOUND",
                "b": "INVALID_ARGUMENT",
                "c": "INVALID_ARGUMENT",
            }
            assert session.stale == {"b"} == session.update_epoch(0)

    def test_a_layer_that_was_not_bound(self, session: nc.Session) -> None:
        with pytest.raises(nc.NotFoundError, match="fd"):
            session.calc_mask({"fd": WEIGHT})

    @pytest.mark.parametrize("name", ["a\0b", "a\nb", "x" * 102_400, ""])
    def test_a_layers_name_of_nonsense(self, session: nc.Session, name: str) -> None:
        with pytest.raises((nc.NotFoundError, nc.InvalidArgumentError)) as raised:
            session.calc_mask({name: WEIGHT})
        assert len(raised.value.message) < 2000
        assert "\0" not in raised.value.message

    @pytest.mark.parametrize("shape", [(20, 10), (200,), (10, 20, 1), (10, 10)])
    def test_another_shape_than_the_bound_one(
        self, session: nc.Session, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"shape.*fc.*\[10, 20\]"):
            session.calc_mask({"fc": np.ones(shape, np.float32)})

    def test_another_dtype_than_the_bound_one(self, session: nc.Session) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=r"fc.*float64.*float32"):
            session.calc_mask({"fc": WEIGHT.astype(np.float64)})

    def test_an_empty_array(self, session: nc.Session) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="fc"):
            session.calc_mask({"fc": np.zeros((0, 20), np.float32)})

    def test_ranges_that_are_none(self, client: nc.Client) -> None:
        with bind(client, "qat", {}) as session:
            for step, bad in enumerate([(1, 0), (float("nan"), 1), (0, float("inf"))], 1):
                with pytest.raises(nc.InvalidArgumentError, match="fc"):
                    session.quantize_range({"fc": bad})
                with pytest.raises(nc.InvalidArgumentError, match="fc"):
                    session.step(step, {"fc": bad})
            with pytest.raises(nc.InvalidArgumentError, match="shape"):
                session.quantize_range({"fc": [1, 2, 3]})
            with pytest.raises(nc.InvalidArgumentError, match="fc"):
                session.quantize_range({"fc": np.zeros((2, 10))})


class TestSessionIds:
    @pytest.mark.parametrize("session_id", ["", "0" * 32, "x" * 102_400, "a\nb", "../etc"])
    def test_an_unknown_id_is_not_found(self, client: nc.Client, session_id: str) -> None:
        with pytest.raises(nc.NotFoundError) as raised:
            client.join(session_id)
        assert len(raised.value.message) < 2000

    def test_an_expired_session_is_gone_and_its_report_stays(self, server: ServerProcess) -> None:
        with nc.Client(server.address, keep_alive=False) as client:
            session = bind(client, "level", {"sparsity": 0.5}, lease=1)
            assert session.lease == 1
            wait_until(lambda: session.id not in ids(client))
            assert session.info().state == "expired"
            with pytest.raises(nc.NotFoundError, match=session.id):
                session.calc_mask({"fc": WEIGHT})
            with pytest.raises(nc.NotFoundError):
                client.join(session.id)

    def test_a_session_that_is_kept_alive_outlives_its_lease(self, server: ServerProcess) -> None:
        careful = nc.Client(server.address)
        careless = nc.Client(server.address, keep_alive=False)
        with careful, careless:
            kept = bind(careful, "level", {"sparsity": 0.5}, lease=2)
            lost = bind(careless, "level", {"sparsity": 0.5}, lease=2)
            wait_until(lambda: lost.id not in ids(careless))
            assert kept.id in ids(careful)
            assert kept.calc_mask({"fc": WEIGHT})["fc"].pruned == 100


def ids(client: nc.Client) -> list[str]:
    """Of the live sessions; listing them renews none."""
    return [info.id for info in client.sessions()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def header(**changes: Any) -> pb.TensorHeader:
    fields: dict[str, Any] = {
        "index": 0,
        "layer": "fc",
        "role": pb.TENSOR_ROLE_WEIGHT,
        "dtype": pb.DATA_TYPE_FLOAT32,
        "shape": [10, 20],
        "byte_length": 800,
    }
    fields.update(changes)
    return pb.TensorHeader(**fields)


def chunk(offset: int, size: int, index: int = 0) -> pb.Chunk:
    return pb.Chunk(index=index, offset=offset, payload=WEIGHT.tobytes()[offset : offset + size])


WHOLE = [chunk(0, 800)]
COMMIT = pb.Commit(index=0, byte_length=800)


class RawCall:
    """CalcMask with messages of one's own."""

    def __init__(self, server: ServerProcess, session: nc.Session) -> None:
        self._channel = grpc.insecure_channel(server.address)
        self._call = self._channel.stream_stream(f"/{SERVICE}/CalcMask")
        self.opening = pb.CalcMaskRequest.Open(session_id=session.id)

    def start(self, messages: Iterator[bytes], timeout: float = 30) -> Any:
        return self._call(messages, timeout=timeout)

    def __call__(self, *messages: Any) -> list[pb.CalcMaskResponse]:
        raw = (m if isinstance(m, bytes) else m.SerializeToString() for m in messages)
        return [pb.CalcMaskResponse.FromString(reply) for reply in self.start(raw)]

    def send(self, headers: Any = (), chunks: Any = (), commits: Any = ()) -> Any:
        """One opening message, the rest in three more."""
        return self(
            pb.CalcMaskRequest(open=self.opening, headers=headers),
            *[pb.CalcMaskRequest(chunks=[each]) for each in chunks],
            pb.CalcMaskRequest(commits=commits),
        )


@pytest.fixture
def raw(server: ServerProcess, session: nc.Session) -> RawCall:
    return RawCall(server, session)


class TestFrames:
    def test_such_frames_work_when_they_are_right(
        self, server: ServerProcess, client: nc.Client
    ) -> None:
        with bind(client, "level", {"sparsity": 0.5}) as session:
            replies = RawCall(server, session).send(
                [header()], [chunk(0, 300), chunk(300, 500)], [COMMIT]
            )
        assert [result.layer for reply in replies for result in reply.results] == ["fc"]

    @pytest.mark.parametrize(
        ("headers", "chunks", "commits", "code"),
        [
            pytest.param([], WHOLE, [COMMIT], "INVALID_ARGUMENT", id="a chunk before the header"),
            pytest.param(
                [header()],
                [chunk(0, 400), chunk(300, 500)],
                [COMMIT],
                "INVALID_ARGUMENT",
                id="an overlap",
            ),
            pytest.param(
                [header()],
                [chunk(0, 400), chunk(500, 300)],
                [COMMIT],
                "INVALID_ARGUMENT",
                id="a gap",
            ),
            pytest.param(
                [header()],
                [chunk(0, 800), pb.Chunk(offset=800, payload=b"x")],
                [COMMIT],
                "INVALID_ARGUMENT",
                id="past the end",
            ),
            pytest.param(
                [header()],
                [pb.Chunk(offset=2**64 - 1, payload=b"xy")],
                [COMMIT],
                "INVALID_ARGUMENT",
                id="an offset that overflows",
            ),
            pytest.param(
                [header()],
                [pb.Chunk(offset=0)],
                [COMMIT],
                "INVALID_ARGUMENT",
                id="an empty chunk",
            ),
            pytest.param([header()], WHOLE, [], "INVALID_ARGUMENT", id="no commit"),
            pytest.param([header()], [], [], "INVALID_ARGUMENT", id="a header alone"),
            pytest.param(
                [header()], [chunk(0, 799)], [COMMIT], "INVALID_ARGUMENT", id="a byte too few"
            ),
            pytest.param(
                [header()],
                WHOLE,
                [pb.Commit(index=0, byte_length=799)],
                "INVALID_ARGUMENT",
                id="a wrong total",
            ),
            pytest.param(
                [header()],
                WHOLE,
                [pb.Commit(index=0, byte_length=800, crc32=1)],
                "DATA_LOSS",
                id="a wrong checksum",
            ),
            pytest.param(
                [header()],
                WHOLE,
                [pb.Commit(index=3, byte_length=800)],
                "INVALID_ARGUMENT",
                id="a commit of no tensor",
            ),
            pytest.param(
                [header(), header()], WHOLE, [COMMIT], "INVALID_ARGUMENT", id="one index twice"
            ),
            pytest.param(
                [header(index=2**20)], [], [], "INVALID_ARGUMENT", id="an index too large"
            ),
            pytest.param(
                [header(digest=b"123")], WHOLE, [COMMIT], "INVALID_ARGUMENT", id="a short digest"
            ),
        ],
    )
    def test_frames_out_of_order_end_the_call(
        self, raw: RawCall, headers: Any, chunks: Any, commits: Any, code: str
    ) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            raw.send(headers, chunks, commits)
        assert raised.value.code().name == code
        assert raised.value.details()

    def test_a_byte_length_that_disagrees_with_the_shape(self, raw: RawCall) -> None:
        replies = raw.send(
            [header(byte_length=400)], [chunk(0, 400)], [pb.Commit(index=0, byte_length=400)]
        )
        (result,) = [result for reply in replies for result in reply.results]
        assert result.error.code == 3
        assert "400" in result.error.message
        assert "800" in result.error.message

    @pytest.mark.parametrize(
        "changes",
        [
            {"role": 0},
            {"role": 77},
            {"dtype": 0},
            {"dtype": 99},
            {"shape": []},
            {"shape": [10, -20]},
            {"shape": [0, 20]},
            {"shape": [1] * 65},
            {"shape": [2**62, 2**62]},
            {"role": pb.TENSOR_ROLE_MASK},
            {"role": pb.TENSOR_ROLE_GRADIENT},
        ],
    )
    def test_a_header_of_nonsense_is_refused(self, raw: RawCall, changes: Any) -> None:
        code, message = refusal_of(lambda: raw.send([header(**changes)], WHOLE, [COMMIT]))
        assert code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert message

    def test_names_that_are_no_utf_8_leave_no_line_of_a_library_in_the_log(self) -> None:
        request = frames.encode_field(1, b"\xff")  # request_id
        with ServerProcess("--log_level=debug") as server:
            with grpc.insecure_channel(server.address) as channel:
                bind = channel.unary_unary(f"/{SERVICE}/BindModel")
                with pytest.raises(grpc.RpcError):
                    bind(request)
            log = server.log()
        assert "event=protobuf" in log
        assert all(line.startswith("time=") for line in log.splitlines()), log

    def test_a_call_without_an_opening(self, raw: RawCall) -> None:
        for messages in ([], [b""], [pb.CalcMaskRequest(headers=[header()])], [b"\xff\xff\xff"]):
            with pytest.raises(grpc.RpcError) as raised:
                raw(*messages)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    def test_a_second_opening(self, raw: RawCall) -> None:
        opening = pb.CalcMaskRequest(open=raw.opening)
        with pytest.raises(grpc.RpcError) as raised:
            raw(opening, opening)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    def test_a_million_empty_chunks_end_the_call_at_the_first(self, raw: RawCall) -> None:
        empty = frames.encode_field(frames.CHUNK, b"") * 50_000
        opening = pb.CalcMaskRequest(open=raw.opening, headers=[header()]).SerializeToString()
        with pytest.raises(grpc.RpcError) as raised:
            raw(opening, *[empty] * 20)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    def test_a_declared_terabyte_allocates_nothing(
        self, server: ServerProcess, client: nc.Client
    ) -> None:
        layers = [nc.Layer("huge", "Linear", (2**38,)), LAYER]
        try:
            session = bind(client, "naive", {}, layers=layers)
        except nc.ResourceExhaustedError:
            return  # refused even earlier
        with session:
            before = memory_of(server)
            huge = header(layer="huge", shape=[2**38], byte_length=2**40)
            call = grpc.insecure_channel(server.address).stream_stream(f"/{SERVICE}/QuantizeWeight")
            opening = pb.QuantizeWeightRequest.Open(session_id=session.id)
            message = pb.QuantizeWeightRequest(open=opening, headers=[huge])
            with pytest.raises(grpc.RpcError) as raised:
                list(call(iter([message.SerializeToString()]), timeout=30))
            assert raised.value.code() in (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.INVALID_ARGUMENT,
            )
            assert memory_of(server) - before < 64 << 20
            assert session.quantize_weight({"fc": WEIGHT})["fc"].codes is not None


def refusal_of(call: Callable[[], list[pb.CalcMaskResponse]]) -> tuple[int, str]:
    """Code and message of a refusal, be it the call's or the layer's."""
    try:
        replies = call()
    except grpc.RpcError as error:
        return error.code().value[0], error.details()
    (result,) = [result for reply in replies for result in reply.results]
    return result.error.code, result.error.message


def memory_of(server: ServerProcess) -> int:
    """Resident bytes of the server."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


class TestInterruptions:
    STAGES = ("the opening", "the header", "half of the payload", "all but the commit")

    def messages(self, raw: RawCall, stage: str) -> list[bytes]:
        count = self.STAGES.index(stage) + 1
        parts = [
            pb.CalcMaskRequest(open=raw.opening),
            pb.CalcMaskRequest(headers=[header()]),
            pb.CalcMaskRequest(chunks=[chunk(0, 400)]),
            pb.CalcMaskRequest(chunks=[chunk(400, 400)]),
        ]
        return [part.SerializeToString() for part in parts[:count]]

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_deadline_that_passes_leaves_the_session_as_it_was(
        self, raw: RawCall, stage: str
    ) -> None:
        gate = Stall(self.messages(raw, stage))
        with pytest.raises(grpc.RpcError) as raised:
            list(raw.start(gate, timeout=0.3))
        gate.end()
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_cancelled_call_leaves_the_session_as_it_was(self, raw: RawCall, stage: str) -> None:
        gate = Stall(self.messages(raw, stage))
        call = raw.start(gate)
        gate.reached.wait(10)
        call.cancel()
        with pytest.raises(grpc.RpcError):
            list(call)
        gate.end()

    def test_a_killed_client_leaves_the_session_as_it_was(
        self, server: ServerProcess, session: nc.Session
    ) -> None:
        script = textwrap.dedent(
            f"""
            import sys, threading
            import numpy as np
            import nni_compression as nc
            from nni_compression._wire import frames
            session = nc.Client({server.address!r}).join({session.id!r})
            real = frames.MessageBuilder.commit
            def stall(*unused):
                print("stalled", flush=True)
                threading.Event().wait()
            frames.MessageBuilder.commit = stall
            session.calc_mask({{"fc": np.ones((10, 20), np.float32)}})
            """
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin"},
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"stalled\n"
            process.send_signal(signal.SIGKILL)
            process.wait()

    def test_a_stalled_stream_does_not_hold_the_session(
        self, client: nc.Client, server: ServerProcess
    ) -> None:
        with bind(client, "level", {"sparsity": 0.5}) as session:
            raw = RawCall(server, session)
            gate = Stall(self.messages(raw, "half of the payload"))
            call = raw.start(gate)
            assert gate.reached.wait(10)
            assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == 100
            call.cancel()
            gate.end()


class Stall:
    """An iterator that gives its messages and then nothing, until it is ended."""

    def __init__(self, messages: list[bytes]) -> None:
        import threading

        self._messages = iter(messages)
        self.reached = threading.Event()
        self._end = threading.Event()

    def __iter__(self) -> Stall:
        return self

    def __next__(self) -> bytes:
        for message in self._messages:
            return message
        self.reached.set()
        self._end.wait(60)
        raise StopIteration

    def end(self) -> None:
        self._end.set()
