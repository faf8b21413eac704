"""A server's reports on its sessions and algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Optional

from .._wire import compression_pb2 as pb
from .._wire.structs import from_struct, from_value
from . import quantization
from .parts import kind_name
from .quantization import QuantizedTensor

_STATES = {
    pb.SESSION_STATE_ACTIVE: "active",
    pb.SESSION_STATE_CLOSED: "closed",
    pb.SESSION_STATE_EXPIRED: "expired",
}
_KINDS = {pb.ALGORITHM_KIND_PRUNER: "pruner", pb.ALGORITHM_KIND_QUANTIZER: "quantizer"}


@dataclass(frozen=True)
class StatisticSource:
    """What a source has added to a statistic.

    Attributes:
        sequence: the number of its last part.
        digest: SHA-256 of that part, as 32 bytes; docs/wire-protocol.md says over what.
        count: samples of all its parts.
    """

    sequence: int
    digest: bytes
    count: int


@dataclass(frozen=True)
class StatisticReport:
    """A statistic that a session has of a layer.

    Attributes:
        sources: source -> what it has added, in ascending order.
        bytes: memory that it takes.
    """

    sources: Mapping[int, StatisticSource]
    bytes: int

    @property
    def count(self) -> int:
        """Samples of all sources."""
        return sum(source.count for source in self.sources.values())


@dataclass(frozen=True)
class LayerReport:
    """The status of a layer.

    Attributes:
        elements: of the weight.
        target_sparsity, achieved_sparsity: pruners: shares removed, in [0, 1].
        bits: quantizers: of a weight's code; None when weights pass unchanged.
        output, input: quantizers of activations: their quantization parameters; None for others,
            and before the first range was sent.
        stale: whether its result was never returned or has changed since.
        rule: index in config_list of the rule that won; None when none matched.
        statistics: kind -> what `Session.add_statistics` has added; none without a part, and in a
            report that would be too large.
    """

    name: str
    op_type: str
    compressed: bool
    elements: int
    target_sparsity: Optional[float]
    achieved_sparsity: Optional[float]
    bits: Optional[int]
    stale: bool
    rule: Optional[int]
    output: Optional[QuantizedTensor] = None
    input: Optional[QuantizedTensor] = None
    statistics: Mapping[str, StatisticReport] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionInfo:
    """A session and its status.

    Attributes:
        state: "active", "closed" or "expired".
        create_time: UTC.
        last_call_time: UTC; of an ended session, its end.
        lease: seconds left; None for an ended session.
        achieved_sparsity: over all compressed layers, by weights; pruners only.
        state_bytes: memory that the session holds between calls.
        disk_bytes: storage accounted to a live session; 0 without storage.
        received_bytes, sent_bytes: tensor payload, from the server's point of view.
        compute_time: seconds that its calls computed.
        layers: in the order bound; empty in a listing.
        results: what `Session.report` has reported: name -> number.
        config_list: as bound; empty in a listing, and if the server does not keep it because it has
            more than 64 KiB.
        tenant: the owner; empty unless the caller is an operator. Others see only their own.
    """

    id: str
    algorithm: str
    framework: str
    labels: Mapping[str, str]
    state: str
    create_time: datetime
    last_call_time: datetime
    lease: Optional[float]
    epoch: int
    step: int
    layer_count: int
    compressed_layer_count: int
    achieved_sparsity: Optional[float]
    state_bytes: int
    received_bytes: int
    sent_bytes: int
    compute_time: float
    layers: tuple[LayerReport, ...] = ()
    tenant: str = ""
    disk_bytes: int = 0
    results: Mapping[str, float] = field(default_factory=dict)
    config_list: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_wire(cls, message: pb.Session) -> SessionInfo:
        """Reads the wire's session."""
        return cls(
            id=message.id,
            algorithm=message.algorithm,
            framework=message.framework,
            labels=dict(message.labels),
            state=_STATES.get(message.state, "unknown"),
            create_time=_time(message.create_time),
            last_call_time=_time(message.last_call_time),
            lease=seconds(message.lease) if message.HasField("lease") else None,
            epoch=message.epoch,
            step=message.step,
            layer_count=message.layer_count,
            compressed_layer_count=message.compressed_layer_count,
            achieved_sparsity=_optional(message, "achieved_sparsity"),
            state_bytes=message.state_bytes,
            received_bytes=message.received_bytes,
            sent_bytes=message.sent_bytes,
            compute_time=seconds(message.compute_time),
            layers=tuple(map(_layer_report, message.layers)),
            tenant=message.tenant,
            disk_bytes=message.disk_bytes,
            results=dict(message.results),
            config_list=tuple(map(from_struct, message.config_list)),
        )


@dataclass(frozen=True)
class AlgorithmOption:
    """An option that a rule of the config_list may have.

    Attributes:
        type: "number", "integer", "string", ...
        default: None for a required option.
        range: for people: "[0, 1]".
        aliases: older names that are accepted too.
        only_with: for people: the choices of other options that it goes with; empty: any. A
            required option is required only then.
    """

    name: str
    type: str
    required: bool
    default: Any
    range: str
    description: str
    aliases: tuple[str, ...]
    only_with: str = ""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm that the server offers.

    Attributes:
        kind: "pruner" or "quantizer".
        summary: one sentence.
        reference: the paper; may be empty.
        example: a rule that works, without op_types.
        source: the file of the plugin or script that it comes from; empty for a built-in one.
        refusal: why the server no longer serves it; empty if it does.
    """

    name: str
    kind: str
    summary: str
    reference: str
    options: tuple[AlgorithmOption, ...]
    example: Mapping[str, Any]
    source: str = ""
    refusal: str = ""

    @classmethod
    def from_wire(cls, message: pb.Algorithm) -> Algorithm:
        """Reads the wire's algorithm."""
        options = tuple(
            AlgorithmOption(
                name=option.name,
                type=option.type,
                required=option.required,
                default=from_value(option.default_value),
                range=option.range,
                description=option.description,
                aliases=tuple(option.aliases),
                only_with=option.only_with,
            )
            for option in message.options
        )
        return cls(
            name=message.name,
            kind=_KINDS.get(message.kind, "unknown"),
            summary=message.summary,
            reference=message.reference,
            options=options,
            example=from_struct(message.example),
            source=message.source,
            refusal=message.refusal,
        )


def seconds(duration: Any) -> float:
    """A google.protobuf.Duration in seconds."""
    return float(duration.seconds) + float(duration.nanos) / 1e9


def _time(timestamp: Any) -> datetime:
    return datetime.fromtimestamp(timestamp.seconds + timestamp.nanos / 1e9, tz=timezone.utc)


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _layer_report(message: pb.LayerReport) -> LayerReport:
    return LayerReport(
        name=message.name,
        op_type=message.op_type,
        compressed=message.compressed,
        elements=message.elements,
        target_sparsity=_optional(message, "target_sparsity"),
        achieved_sparsity=_optional(message, "achieved_sparsity"),
        bits=_optional(message, "bits"),
        stale=message.stale,
        rule=_optional(message, "rule"),
        output=_activation_report(message, "output"),
        input=_activation_report(message, "input"),
        statistics={kind_name(s.kind): _statistic_report(s) for s in message.statistics},
    )


def _statistic_report(message: pb.StatisticReport) -> StatisticReport:
    sources = {s.source: StatisticSource(s.sequence, s.digest, s.count) for s in message.sources}
    return StatisticReport(sources, message.bytes)


def _activation_report(report: pb.LayerReport, name: str) -> Optional[QuantizedTensor]:
    if not report.HasField(name):
        return None
    message = pb.LayerParameters(layer=report.name, parameters=getattr(report, name))
    return quantization.from_wire(message)
