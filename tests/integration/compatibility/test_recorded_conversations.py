"""Clients and servers of other versions: conversations that were recorded still go as they went.

Every version from the first release on leaves a recording in tests/proto/golden/conversations. Run
as a program, with client/python/src and tests/testing/python on PYTHONPATH, this records that of
the version that it is given:

    test_recorded_conversations.py 1.0.0
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb
from servers import ROOT, SERVICE, ScriptedServer, ServerProcess, fails, in_turn, replies

RECORDINGS = ROOT / "tests/proto/golden/conversations"
VERSIONS = sorted(path.stem for path in RECORDINGS.iterdir())

CONV = nc.Layer("conv", "Conv2d", (4, 2, 3, 3))
FC = nc.Layer("fc", "Linear", (6, 10))
WEIGHTS = {
    layer.name: np.arange(1, np.prod(layer.shape) + 1, dtype=np.float32).reshape(layer.shape)
    for layer in (CONV, FC)
}
# What differs from run to run, and what is for people.
PASSING = {
    *("create_time", "last_call_time", "lease", "compute_time", "state_bytes", "server_version"),
    *("summary", "reference", "description", "range", "message", "warnings"),
}


@dataclass(frozen=True)
class Call:
    """A call as it went: its messages, gRPC's status and what that says."""

    method: str
    requests: list[bytes]
    replies: list[bytes]
    code: str
    details: str

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Call:
        lists = {key: list(map(base64.b64decode, fields[key])) for key in ("requests", "replies")}
        return Call(**{**fields, **lists})

    def to_json(self) -> dict[str, Any]:
        lists = {
            key: [base64.b64encode(message).decode() for message in getattr(self, key)]
            for key in ("requests", "replies")
        }
        return {**vars(self), **lists}


def converse(client: nc.Client) -> None:
    """Every kind of call that a trainer makes, and what it has to find in the answers."""
    assert {"level", "agp", "qat"} <= {algorithm.name for algorithm in client.algorithms()}

    rules = [{"final_sparsity": 0.5, "end_epoch": 4}]
    pruner = client.bind_model("agp", rules, [CONV, FC], labels={"run": "recorded"})
    assert pruner.update_epoch(4) == {"conv", "fc"}
    masks = pruner.calc_mask(WEIGHTS)
    for name, weight in WEIGHTS.items():
        np.testing.assert_array_equal(masks[name].to_numpy().ravel(), _upper_half(weight.size))
    with tempfile.TemporaryDirectory() as folder:
        (file,) = pruner.export(folder, WEIGHTS)
        assert file.stat().st_size > sum(weight.nbytes for weight in WEIGHTS.values())
    assert pruner.keep_alive() > 0
    assert pruner.info().layers[1].achieved_sparsity == 0.5
    assert [session.labels for session in client.sessions()] == [{"run": "recorded"}]

    quantizer = client.bind_model("qat", [{"quant_types": ["weight", "output"]}], [FC])
    answer = quantizer.step(1, outputs={"fc": (-1.0, 3.0)})
    assert answer.outputs["fc"].range == (-1.0, 3.0)
    codes = quantizer.quantize_weight({"fc": WEIGHTS["fc"]})["fc"]
    assert codes.codes.shape == FC.shape

    pruner.close()
    quantizer.close()
    with pytest.raises(nc.NotFoundError):
        client.join("0" * 32)
    with pytest.raises(nc.InvalidArgumentError, match="sparsity"):
        client.bind_model("level", [{"sparsity": 2}], [FC])


def _upper_half(size: int) -> np.ndarray:
    return np.arange(size) >= size // 2


def _client(address: str) -> nc.Client:
    return nc.Client(address, keep_alive=False, timeout=60, shm_socket="")


def record() -> list[Call]:
    """Converses with a server and listens in between."""
    calls: list[Call] = []
    with (
        ServerProcess() as server,
        grpc.insecure_channel(server.address) as channel,
        ScriptedServer() as between,
    ):

        def listen(method: str) -> Any:
            def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
                sent: list[bytes] = []

                def forwarded() -> Iterator[bytes]:
                    for request in requests:
                        sent.append(request)
                        yield request

                answer = channel.stream_stream(f"/{SERVICE}/{method}")(forwarded(), timeout=60)
                received = []
                try:
                    for reply in answer:
                        received.append(reply)
                        yield reply
                except grpc.RpcError:
                    context.set_code(answer.code())
                    context.set_details(answer.details())
                calls.append(Call(method, sent, received, answer.code().name, answer.details()))

            return behave

        methods = pb.DESCRIPTOR.services_by_name["CompressionService"].methods_by_name
        between.behaviours = {method: listen(method) for method in methods}
        with _client(between.address) as client:
            converse(client)
    return calls


def recorded(version: str) -> list[Call]:
    text = (RECORDINGS / f"{version}.json").read_text()
    return [Call.from_json(fields) for fields in json.loads(text)]


def reply_of(method: str, messages: list[bytes]) -> Message:
    """The replies as one: how they are cut is left to the server."""
    service = pb.DESCRIPTOR.services_by_name["CompressionService"]
    kind = getattr(pb, service.methods_by_name[method].output_type.name)
    merged: Message = kind.FromString(b"".join(messages))
    return merged


def lost(golden: Any, now: Any, where: str = "") -> list[str]:
    """What `golden` says and `now` does not; that `now` says more is no loss."""
    if now is None:
        return [f"{where} is gone"]
    if isinstance(golden, Message):
        fields = [field for field, _ in golden.ListFields() if field.name not in PASSING]
        parts = [(f".{f.name}", getattr(golden, f.name), getattr(now, f.name)) for f in fields]
    elif hasattr(golden, "items"):
        parts = [(f"[{key}]", value, now.get(key)) for key, value in golden.items()]
    elif isinstance(golden, (str, bytes)) or not hasattr(golden, "__len__"):
        return [] if golden == now else [f"{where} was {golden!r}, now {now!r}"]
    elif len(golden) != len(now):
        return [f"{where} had {len(golden)} elements, now {len(now)}"]
    else:
        parts = [(f"[{i}]", was, is_now) for i, (was, is_now) in enumerate(zip(golden, now))]
    return [loss for name, was, is_now in parts for loss in lost(was, is_now, where + name)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_of_that_version_gets_its_answers(version: str) -> None:
    with ServerProcess() as server, grpc.insecure_channel(server.address) as channel:
        ids: dict[bytes, bytes] = {}  # of sessions: then, now

        def of_today(message: bytes) -> bytes:
            for then, now in ids.items():  # equally long
                message = message.replace(then, now)
            return message

        for call in recorded(version):
            rpc = channel.stream_stream(f"/{SERVICE}/{call.method}")
            answer = rpc(iter(map(of_today, call.requests)), timeout=60)
            received = []
            with contextlib.suppress(grpc.RpcError):
                received.extend(answer)
            assert answer.code().name == call.code, (call.method, answer.details())
            now = reply_of(call.method, received)
            if call.method == "BindModel" and received:
                then = pb.BindModelResponse.FromString(b"".join(call.replies)).session_id
                ids[then.encode()] = now.session_id.encode()
            golden = reply_of(call.method, list(map(of_today, call.replies)))
            if call.method != "ListAlgorithms":  # whose algorithms may become more, in any order
                assert lost(golden, now, call.method) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_of_that_version_is_understood(version: str) -> None:
    turns: dict[str, list[Any]] = {}
    for call in recorded(version):
        status = grpc.StatusCode[call.code]
        ok = status == grpc.StatusCode.OK
        answer = replies(*call.replies) if ok else fails(status, call.details)
        turns.setdefault(call.method, []).append(answer)
    behaviours = {method: in_turn(*answers) for method, answers in turns.items()}
    with ScriptedServer(**behaviours) as server, _client(server.address) as client:
        converse(client)


def test_an_answer_that_lacks_something_is_noticed() -> None:
    session = pb.Session(id="a", labels={"run": "x"}, layers=[{"name": "fc", "bits": 8}])
    more = pb.Session(id="a", labels={"run": "x", "b": "c"}, epoch=3, layers=session.layers)
    assert lost(session, more) == []
    other = pb.Session(id="b", labels={"run": "y"}, layers=[{"name": "fc", "bits": 4}])
    assert lost(session, other) == [
        ".id was 'a', now 'b'",
        ".labels[run] was 'x', now 'y'",
        ".layers[0].bits was 8, now 4",
    ]
    assert lost(session, pb.Session()) == [
        ".id was 'a', now ''",
        ".labels[run] is gone",
        ".layers had 1 elements, now 0",
    ]


if __name__ == "__main__":
    text = json.dumps([call.to_json() for call in record()], indent=1)
    (RECORDINGS / f"{sys.argv[1]}.json").write_text(text + "\n")
