"""The messages of AddStatistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from .._wire import compression_pb2 as pb
from .._wire import frames
from ..errors import CompressionError, InvalidArgumentError, NotFoundError
from ..values.parts import StatisticPart, check_source, kind_name
from ..values.plan import Layer
from ..values.tensors import Tensor
from .exchange import LayerExchange, combined, raise_layer_errors, tensor_header
from .known_weights import fingerprint, worth_asking

_Place = tuple[str, int, int]  # the layer's name as bound, kind on the wire, source


class Sequences:
    """The numbers of a session's parts: by the layer as bound, which may have several names.

    Args:
        names: name that a call may give -> the layer's name as bound.
        highest: the numbers of the parts that the session has.
        before: a number that no part is above whose place `highest` lacks.
        has_all_names: whether `names` has every alias.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        highest: Optional[Mapping[_Place, int]] = None,
        *,
        before: int = 0,
        has_all_names: bool = True,
    ) -> None:
        self._names = names
        self._highest = dict(highest or {})
        self._before = before
        self._has_all_names = has_all_names
        #: Where the next part was sent and not answered: it may have been counted.
        self.unanswered: set[_Place] = set()

    @classmethod
    def of_bound(cls, layers: Iterable[Layer]) -> Sequences:
        """Of a new session."""
        return cls({name: layer.name for layer in layers for name in (layer.name, *layer.aliases)})

    @classmethod
    def of_joined(cls, reply: pb.GetSessionResponse) -> Sequences:
        """Of a session that may have parts."""
        session = reply.session
        highest = {
            (layer.name, statistic.kind, source.source): source.sequence
            for layer in session.layers
            for statistic in layer.statistics
            for source in statistic.sources
        }
        # A report that would be too large lacks its statistics, and its config_list, too. Then the
        # bytes received take the numbers' place: each part has some, so that they are never below,
        # also where another one has continued from them.
        is_cut = not highest and not session.config_list
        return cls(
            {layer.name: layer.name for layer in reply.plan.layers},
            highest,
            before=session.received_bytes if is_cut else 0,
            has_all_names=False,
        )

    def layer(self, name: str) -> str:
        """The name as bound. Raises NotFoundError where that is unknown here."""
        if name not in self._names and not self._has_all_names:
            error = NotFoundError(
                f"layer {name!r} is not in the plan of the session, which was joined: use the name "
                "that the layer was bound with, not an alias"
            )
            raise_layer_errors({name: error}, {})
        return self._names.get(name, name)  # the server refuses one that was not bound

    def place(self, header: Any) -> _Place:
        """Where a part belongs."""
        return self.layer(header.layer), header.part.kind, header.part.source

    def next(self, place: _Place) -> int:
        """The number of the next part."""
        return self._highest.get(place, self._before) + 1

    def answered(self, place: _Place, sequence: int) -> None:
        """A part was counted."""
        self._highest[place] = sequence
        self.unanswered.discard(place)


def part_requests(
    statistics: Mapping[str, Mapping[str, Any]], source: int, sequences: Sequences
) -> dict[int, frames.Outgoing]:
    """The parts, with the next numbers, ready to be sent; see `Session.add_statistics`."""
    source = check_source(source)
    if not isinstance(statistics, Mapping):
        raise InvalidArgumentError(
            f"statistics is a {type(statistics).__name__}; it must be a dict of layers"
        )
    # By the identity of the values, which are held so that it stays theirs: each is converted once.
    tensors: dict[int, tuple[Any, Tensor]] = {}
    requests: dict[int, frames.Outgoing] = {}
    paths: dict[_Place, str] = {}
    for layer, parts in statistics.items():
        if not isinstance(parts, Mapping):
            raise InvalidArgumentError(
                f"statistics[{layer!r}] is a {type(parts).__name__}; it must be a dict of kinds"
            )
        for kind, value in parts.items():
            path = f"statistics[{layer!r}][{kind!r}]"
            part = value if isinstance(value, StatisticPart) else StatisticPart(value)
            message = part.to_wire(kind, source, path)
            if id(part.values) not in tensors:
                tensors[id(part.values)] = part.values, part.tensor(path)
            _, tensor = tensors[id(part.values)]
            request = tensor_header(layer, tensor, len(requests), pb.TENSOR_ROLE_STATISTIC)
            request.header.part.CopyFrom(message)
            place = sequences.place(request.header)
            # A second one could be counted before the first is repeated, which has a lower number.
            if place in paths:
                raise InvalidArgumentError(
                    f"{path} and {paths[place]} are of one layer, {place[0]!r}; a call takes one "
                    "part of each kind"
                )
            paths[place] = path
            request.header.part.sequence = sequences.next(place)
            requests[request.header.index] = request
    return requests


class StatisticExchange(LayerExchange[dict[str, int]]):
    """AddStatistics: results are kind -> samples so far; a layer's error has `.errors` by kind.

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
        self._repeated: set[int] = set()  # what an earlier attempt may have had counted
        self._errors_by_kind: dict[str, dict[str, CompressionError]] = {}
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
        self._sequences.answered(self._sequences.place(request), part.sequence)
        return {**self.results.get(request.layer, {}), kind_name(part.kind): int(result.count)}

    def _on_result(self, result: Any) -> None:
        request = self._pending.get(result.answers)
        if request is not None and result.known and result.answers not in self._repeated:
            part = request.header.part
            error = InvalidArgumentError(
                f"{kind_name(part.kind)} of layer {request.header.layer!r} has sequence "
                f"{part.sequence} of source {part.source}, as an equal part that another Session "
                "object has sent; it is not counted again. Let each send as a source of its own, "
                "or only one send what all have alike"
            )
            self._on_error(request.header, error)
            del self._pending[result.answers]
            return
        super()._on_result(result)

    def _on_error(self, request: Any, error: CompressionError) -> None:
        kinds = self._errors_by_kind.setdefault(request.layer, {})
        kinds[kind_name(request.part.kind)] = error
        super()._on_error(request, combined(kinds, {}, "kind"))
        if request.index not in self._repeated:
            self._sequences.unanswered.discard(self._sequences.place(request))

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
        unanswered = self._sequences.unanswered
        places = {r.header.index: self._sequences.place(r.header) for r in now}
        self._repeated = {index for index, place in places.items() if place in unanswered}
        unanswered.update(places.values())
        return now
