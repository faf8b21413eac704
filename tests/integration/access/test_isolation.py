"""A tenant is answered as if it were alone.

One workload runs for a tenant that has a server for itself, and for two tenants of another server,
step by step beside one another. Everything that a caller can read is compared: replies, status
codes and texts, and which trailers there are; only ids, times and the tokens of pages are the
server's to choose.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from nni_compression._wire import compression_pb2 as pb
from servers import SERVICE, ServerProcess, add_tenant, compressionctl

F32 = pb.DATA_TYPE_FLOAT32
REPORTS = 1001  # one more than the server keeps of a tenant
TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")
TOKEN = re.compile("[0-9a-f]{32}")

Record = list[Any]


def normal(message: Message, names: dict[str, str]) -> Message:
    """Without times, and with the workload's own names for ids and tokens."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.full_name in TIMES:
            message.ClearField(field.name)
        elif isinstance(value, Message):
            normal(value, names)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for element in value:
                normal(element, names)
        elif field.name in ("id", "session_id"):
            setattr(message, field.name, names[value])
        elif field.name == "next_page_token":
            assert TOKEN.fullmatch(value), f"{value} tells something"
            message.next_page_token = "token"
    return message


class Tenant:
    """Calls in one tenant's name, and what came of them."""

    def __init__(self, address: str, token: str) -> None:
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._metadata = [("authorization", f"Bearer {token}"), ("nni-route", "isolation")]
        self._names: dict[str, str] = {}
        self.record: Record = []

    def close(self) -> None:
        self._channel.close()

    def _note(self, name: str, outcome: Message | grpc.RpcError) -> None:
        if isinstance(outcome, Message):
            self.record.append((name, normal(outcome, self._names)))
            return
        text = outcome.details()
        for theirs, ours in self._names.items():
            text = text.replace(theirs, ours)
        trailers = sorted(item.key for item in outcome.trailing_metadata())
        self.record.append((name, outcome.code().name, text, trailers))

    def unary(self, name: str, request: Message, reply: type) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            answer = call(request, metadata=self._metadata, timeout=60)
        except grpc.RpcError as error:
            self._note(name, error)
            return None
        if isinstance(answer, pb.BindModelResponse):
            self._names.setdefault(answer.session_id, f"session {len(self._names)}")
        copied = reply()
        copied.CopyFrom(answer)
        self._note(name, copied)
        return answer

    def stream(self, name: str, request: Message, reply: type) -> None:
        """All of it as one message: how it was cut depends on who was faster."""
        make = self._channel.stream_unary if name == "Step" else self._channel.stream_stream
        call = make(
            f"/{SERVICE}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        whole = reply()
        try:
            answers = call(iter([request]), metadata=self._metadata, timeout=60)
            for answer in [answers] if name == "Step" else answers:
                whole.MergeFrom(answer)
        except grpc.RpcError as error:
            self._note(name, error)
        self._note(name, whole)


def tensor(request: Any, layer: str, values: tuple[float, ...], **more: Any) -> Any:
    index = len(request.headers)
    data = struct.pack(f"<{len(values)}f", *values)
    request.headers.add(
        index=index,
        layer=layer,
        dtype=F32,
        shape=[len(values)],
        byte_length=len(data),
        **{"role": pb.TENSOR_ROLE_WEIGHT, **more},
    )
    if not more.get("digest"):
        request.chunks.add(index=index, payload=data)
    request.commits.add(index=index, byte_length=len(data))
    return request


def bind(algorithm: str, rule: dict[str, Any], **more: Any) -> Message:
    request = pb.BindModelRequest(algorithm=algorithm, framework="pytorch", **more)
    request.config_list.add().update(rule)
    for name in ("a", "b"):
        request.layers.add(name=name, op_type="Linear", dtype=F32, shape=[4])
    return request


DIGEST = bytes.fromhex("c3" * 32)  # of nothing that anybody sent


def workload(tenant: Tenant) -> Iterator[None]:
    """Pauses after each step, so that another one's comes in between."""
    weight = (0.5, -2.0, 3.0, 0.25)
    tenant.unary("ListAlgorithms", pb.ListAlgorithmsRequest(), pb.ListAlgorithmsResponse)
    tenant.unary("ListTenants", pb.ListTenantsRequest(), pb.ListTenantsResponse)
    yield
    # The same request ids as any other tenant's.
    level = bind("agp", {"final_sparsity": 0.5, "end_epoch": 4, "frequency": 1}, request_id="one")
    pruner = tenant.unary("BindModel", level, pb.BindModelResponse).session_id
    yield
    tenant.unary("BindModel", level, pb.BindModelResponse)
    tenant.unary(
        "BindModel", bind("level", {"sparsity": 0.1}, request_id="one"), pb.BindModelResponse
    )
    yield
    qat = bind("qat", {"quant_types": ["weight", "output"]}, labels={"run": "7"})
    quantizer = tenant.unary("BindModel", qat, pb.BindModelResponse).session_id
    yield
    for prints in (b"fingerprint 1", b"fingerprint 2"):
        masks = pb.CalcMaskRequest()
        masks.open.session_id = pruner
        tensor(masks, "a", weight, fingerprint=prints)
        tensor(masks, "b", weight, digest=DIGEST)
        tensor(masks, "b", weight)
        tensor(masks, "c", weight)
        tenant.stream("CalcMask", masks, pb.CalcMaskResponse)
        yield
    find = pb.FindWeightsRequest(session_id=pruner, fingerprints=[b"fingerprint 1", b"other"])
    tenant.unary("FindWeights", find, pb.FindWeightsResponse)
    yield
    for epoch in (1, 2):
        request = pb.UpdateEpochRequest(session_id=pruner, epoch=epoch)
        tenant.unary("UpdateEpoch", request, pb.UpdateEpochResponse)
        yield
    for results in ({"accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.75}, {"": 1.0}):
        report = pb.ReportResultsRequest(session_id=pruner, results=results)
        tenant.unary("ReportResults", report, pb.ReportResultsResponse)
        yield
    codes = pb.QuantizeWeightRequest()
    codes.open.session_id = quantizer
    tenant.stream("QuantizeWeight", tensor(codes, "a", weight), pb.QuantizeWeightResponse)
    yield
    step = pb.StepRequest()
    step.open.session_id = quantizer
    step.open.step = 1
    tensor(step, "a", (-1.0, 2.0), role=pb.TENSOR_ROLE_OUTPUT_RANGE)
    tenant.stream("Step", step, pb.StepResponse)
    yield
    export = pb.ExportRequest()
    export.open.session_id = pruner
    export.open.format = "masks"
    tenant.stream("Export", export, pb.ExportResponse)
    yield
    # As many sessions as the quota lets it have, and one more.
    for _ in range(5):
        tenant.unary("BindModel", bind("naive", {}, labels={"run": "8"}), pb.BindModelResponse)
        yield
    token = ""
    for labels in ({}, {"run": "8"}):
        while True:
            request = pb.ListSessionsRequest(
                page_size=2, page_token=token, labels=labels, include_ended=not labels
            )
            page = tenant.unary("ListSessions", request, pb.ListSessionsResponse)
            yield
            token = page.next_page_token
            if not token:
                break
    for page_token in ("1", "0" * 32):
        request = pb.ListSessionsRequest(page_token=page_token)
        tenant.unary("ListSessions", request, pb.ListSessionsResponse)
    yield
    # The first report is dropped by the tenant's own doing alone.
    tenant.unary(
        "CloseSession", pb.CloseSessionRequest(session_id=quantizer), pb.CloseSessionResponse
    )
    closed = quantizer
    for i in range(REPORTS):
        if i == REPORTS - 1:
            tenant.unary(
                "GetSession", pb.GetSessionRequest(session_id=closed), pb.GetSessionResponse
            )
        one = tenant.unary("BindModel", bind("naive", {}), pb.BindModelResponse).session_id
        tenant.unary(
            "CloseSession", pb.CloseSessionRequest(session_id=one), pb.CloseSessionResponse
        )
        if i % 100 == 0:
            yield
    for session in (closed, one, pruner, "0" * 32):
        tenant.unary("GetSession", pb.GetSessionRequest(session_id=session), pb.GetSessionResponse)
        tenant.unary("KeepAlive", pb.KeepAliveRequest(session_id=session), pb.KeepAliveResponse)
        yield


def run(folder: Path, *names: str) -> dict[str, Record]:
    """What each tenant of a server of theirs was answered."""
    tokens = folder / "tenants"
    secrets = {name: add_tenant(tokens, name) for name in names}
    for name in names:
        compressionctl(
            f"--tokens={tokens}", "tenant", "quota", name, "sessions=6", "calls=8", "memory=64M"
        )
    barrier = threading.Barrier(len(names))

    def play(tenant: Tenant) -> None:
        try:
            for _ in workload(tenant):
                barrier.wait(120)
        except BaseException:
            barrier.abort()
            raise

    with ServerProcess(f"--token_file={tokens}") as server:
        tenants = {name: Tenant(server.address, secret) for name, secret in secrets.items()}
        with ThreadPoolExecutor(len(names)) as pool:
            for done in [pool.submit(play, tenant) for tenant in tenants.values()]:
                done.result()
        for tenant in tenants.values():
            tenant.close()
    return {name: tenant.record for name, tenant in tenants.items()}


def test_a_tenant_cannot_tell_that_there_is_another(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    alone = run(tmp_path_factory.mktemp("alone"), "first")["first"]
    both = run(tmp_path_factory.mktemp("both"), "first", "second")
    outcomes = {entry[1] for entry in alone if isinstance(entry[1], str)}
    assert outcomes == {"PERMISSION_DENIED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "NOT_FOUND"}
    for name, record in both.items():
        assert len(record) == len(alone)
        for mine, theirs in zip(alone, record):
            assert mine == theirs, name
