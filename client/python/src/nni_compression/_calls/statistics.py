"""The messages of AddStatistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .._wire import compression_pb2 as pb
from .._wire import frames
from ..errors import InvalidArgumentError
from ..values.parts import StatisticPart, check_source, kind_name
from ..values.tensors import Tensor
from .exchange import LayerExchange, tensor_header
from .known_weights import fingerprint, worth_asking

# (layer, kind on the wire, source) -> the highest number of a part that the session has.
Sequences = dict[tuple[str, int, int], int]


def sequences_of(session: pb.Session) -> Sequences:
    """The numbers of the parts that a session has."""
    return {
        (layer.name, statistic.kind, source.source): source.sequence
        for layer in session.layers
        for statistic in layer.statistics
        for source in statistic.sources
    }


def part_requests(
    statistics: Mapping[str, Mapping[str, Any]], source: int, sequences: Sequences
) -> dict[int, frames.Outgoing]:
    """The parts, with the next numbers, ready to be sent; see `Session.add_statistics`."""
    source = check_source(source)
    # By the identity of the values, which are held so that it stays theirs: each is converted once.
    tensors: dict[int, tuple[Any, Tensor]] = {}
    requests: dict[int, frames.Outgoing] = {}
    for layer, parts in statistics.items():
        if not isinstance(parts, Mapping):
            raise InvalidArgumentError(
                f"statistics[{layer!r}] is a {type(parts).__name__}; it must be a dict of kinds"
            )
        for kind, value in parts.items():
            path = f"statistics[{layer!r}][{kind!r}]"
            part = value if isinstance(value, StatisticPart) else StatisticPart(value)
            message = part.to_wire(kind, source, path)
            message.sequence = sequences.get((layer, message.kind, source), 0) + 1
            if id(part.values) not in tensors:
                tensors[id(part.values)] = part.values, part.tensor(path)
            _, tensor = tensors[id(part.values)]
            request = tensor_header(layer, tensor, len(requests), pb.TENSOR_ROLE_STATISTIC)
            request.header.part.CopyFrom(message)
            requests[request.header.index] = request
    return requests


class StatisticExchange(LayerExchange[dict[str, int]]):
    """AddStatistics: results are kind -> samples so far.

    Large values that several layers share are sent for one of them, and by their digest for the
    others, once the server has answered that one.

    Args:
        sequences: gets the numbers of the parts that are answered.
    """

    def __init__(
        self,
        open_content: bytes,
        requests: Mapping[int, frames.Outgoing],
        checksum: bool,
        sequences: Sequences,
    ) -> None:
        super().__init__(open_content, requests, checksum)
        self._sequences = sequences
        prints = {r.header.index: fingerprint(r) for r in worth_asking(list(requests.values()))}
        uses = Counter(prints.values())
        self._fingerprints = {index: value for index, value in prints.items() if uses[value] > 1}

    def question(self) -> list[bytes]:
        known = self._fingerprints
        self._fingerprints = {index: known[index] for index in known if index in self._pending}
        return list(self._fingerprints.values())

    def result_type(self) -> Any:
        return pb.StatisticResult

    def expected_tensors(self, result: Any) -> int:
        return 0

    def size_of(self, header: Any, request: Any) -> int:
        return 0

    def result_bytes(self, request: Any) -> int:
        return 0

    def build(self, result: Any, request: Any, parts: Any) -> dict[str, int]:
        part = request.part
        self._sequences[request.layer, part.kind, part.source] = part.sequence
        return {**self.results.get(request.layer, {}), kind_name(part.kind): int(result.count)}

    def _waiting(self) -> list[frames.Outgoing]:
        now = []
        sent: set[bytes] = set()
        for index, request in self._pending.items():
            value = self._fingerprints.get(index)
            if value in sent and not self._by_digest(index):
                self._lost.add(index)
                continue
            now.append(request)
            if value is not None:
                sent.add(value)
        return now
