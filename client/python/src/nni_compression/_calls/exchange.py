"""The streaming calls: send tensors, receive tensors or files, over any number of attempts."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Optional, TypeVar, Union

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from .._transport.shared_memory import MIN_BYTES, SPACING, Arena, SharedMemory
from .._wire import compression_pb2 as pb
from .._wire import frames
from .._wire.structs import text
from ..errors import (
    CompressionError,
    DataLossError,
    InternalError,
    InvalidArgumentError,
    StatusCode,
    code_from_number,
    make_error,
)
from ..values import dtypes, quantization
from ..values.magnitudes import Counter, Rounds, Threshold
from ..values.masks import Mask
from ..values.quantization import QuantizedTensor
from ..values.tensors import Tensor
from . import known_weights

R = TypeVar("R")


def mask_header(layer: str, mask: Mask, index: int) -> frames.Outgoing:
    """A mask, ready to be sent."""
    return _outgoing(layer, index, pb.TENSOR_ROLE_MASK, pb.DATA_TYPE_BIT, mask.shape, mask.bits)


def counts_header(layer: str, rounds: Rounds, index: int) -> frames.Outgoing:
    """The counts of a layer's weights, ready to be sent."""
    message = rounds.message()
    shape = (len(message),)
    return _outgoing(layer, index, pb.TENSOR_ROLE_COUNTS, pb.DATA_TYPE_UINT8, shape, message)


def tensor_header(
    layer: str, tensor: Tensor, index: int, role: int = pb.TENSOR_ROLE_WEIGHT
) -> frames.Outgoing:
    """A tensor, ready to be sent."""
    dtype = dtypes.wire_dtype(tensor.dtype)
    return _outgoing(layer, index, role, dtype, tensor.shape, tensor.data)


def range_header(
    layer: str, value: Any, index: int, role: int = pb.TENSOR_ROLE_RANGE
) -> frames.Outgoing:
    """A layer's smallest and largest weights, or activations, ready to be sent."""
    array = np.ascontiguousarray(np.asarray(value, dtype="<f4"))
    if array.ndim not in (1, 2) or array.shape[0] != 2:
        raise InvalidArgumentError(
            f"ranges[{layer!r}] has shape {array.shape}; it must be (2,), minimum and maximum, "
            "(2, channels) or (2, groups)"
        )
    return tensor_header(layer, Tensor(array, "float32", array.shape), index, role)


def _outgoing(
    layer: str, index: int, role: int, dtype: int, shape: tuple[int, ...], data: Any
) -> frames.Outgoing:
    view = memoryview(data)
    try:
        header = pb.TensorHeader(
            index=index,
            layer=text(layer, "a layer's name"),
            role=role,  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
            shape=shape,
            byte_length=len(view),
        )
    except ValueError as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"{layer!r}: {error}") from error
    return frames.Outgoing(header, view)


def decode(message_type: Any, content: memoryview) -> Any:
    """Parses a small message. Raises DataLossError when the bytes are not one."""
    try:
        return message_type.FromString(bytes(content))
    except DecodeError as error:
        name = message_type.DESCRIPTOR.name
        raise DataLossError(f"the server sent an invalid {name}: {error}") from error


@dataclass
class _Incoming:
    """A tensor that is being received."""

    header: Any
    data: npt.NDArray[np.uint8]
    received: int = 0

    def write(self, chunk: frames.ReceivedChunk) -> None:
        end = chunk.offset + len(chunk.payload)
        if chunk.offset != self.received or end > len(self.data):
            raise DataLossError(
                f"layer {self.header.layer!r} got a chunk at {chunk.offset} to {end} after "
                f"{self.received} of {len(self.data)} bytes"
            )
        self.data[chunk.offset : end] = np.frombuffer(chunk.payload, dtype=np.uint8)
        self.received = end

    def finish(self, commit: Any) -> None:
        if self.received != len(self.data) or commit.byte_length != len(self.data):
            raise DataLossError(
                f"layer {self.header.layer!r} got {self.received} bytes and a commit of "
                f"{commit.byte_length}; the header announced {len(self.data)}"
            )
        if commit.HasField("crc32") and zlib.crc32(self.data.data) != commit.crc32:
            raise DataLossError(f"the checksum of layer {self.header.layer!r} is wrong")


@dataclass
class _Answer:
    """The messages received so far for one tensor of the request."""

    result: Any
    expected: int
    parts: dict[int, _Incoming] = field(default_factory=dict)


class LayerExchange(ABC, Generic[R]):
    """A call in which the server answers each tensor with a result and the tensors of that result.

    Layers that were answered in one attempt are not sent again in the next. After the call,
    `results` and `errors` have the outcome of each layer, and `close` must be called. As long as
    `unfinished` is set, the call must be made once more.

    Large weights are sent through `shared`, if it is given and has room, or by their digest if the
    server has them.

    Attributes:
        changing: layers whose weights the server is not likely to receive again.
        joint: layer -> its rule, of the layers that the server decides about together. They are
            never sent by their digest: if the server had one no longer, all would fail.
    """

    changing: Container[str] = ()
    joint: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        open_content: bytes,
        requests: Mapping[int, frames.Outgoing],
        checksum: bool,
        shared: Optional[SharedMemory] = None,
    ) -> None:
        self.results: dict[str, R] = {}
        self.errors: dict[str, CompressionError] = {}
        self.payload_bytes = sum(len(request.data) for request in requests.values())
        self._open = open_content
        self._pending = dict(requests)
        self._checksum = checksum
        self._answers: dict[int, _Answer] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._shared = shared
        self._arena: Optional[Arena] = None
        self._found: dict[int, Optional[pb.SharedPlace]] = {}
        self._places: dict[int, tuple[bool, Optional[pb.SharedPlace]]] = {}
        self._refused: dict[int, str] = {}  # layers whose region the server may not know
        self._fingerprints: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}  # of weights that the server may have
        self._missed: set[int] = set()  # those of them that it did not have
        self._lost: set[int] = set()  # what this attempt leaves to the next, with fewer references

    @property
    def unfinished(self) -> bool:
        """Whether tensors are left that the server did not find by reference."""
        return bool(self._pending) and self._pending.keys() <= self._lost

    def close(self) -> None:
        """Releases the shared memory."""
        self._end_sharing(answered=not self._pending)
        found = [layer for layer in self._refused.values() if layer in self.results]
        if found and self._shared is not None:  # the region was unknown
            self._shared.disown()

    @property
    def layers(self) -> set[str]:
        """The layers without an answer."""
        return {request.header.layer for request in self._pending.values()}

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self._pending

    def question(self) -> list[bytes]:
        """Fingerprints of weights for FindWeights; empty when the call does not pay."""
        if self._lost or (self._shared is not None and self._shared.works()):
            return []
        stable = [
            request
            for request in self._pending.values()
            if request.header.layer not in self.changing and request.header.layer not in self.joint
        ]
        asked = known_weights.worth_asking(stable)
        self._fingerprints = {r.header.index: known_weights.fingerprint(r) for r in asked}
        return list(self._fingerprints.values())

    def learn(self, may_have: Sequence[bool]) -> None:
        """Applies the answer: weights that the server may have are sent by their digest."""
        known = [index for index, may in zip(self._fingerprints, may_have) if may]
        named = known_weights.digests([self._pending[index] for index in known])
        self._digests = dict(zip(known, named))

    def messages(self) -> Iterator[bytes]:
        self._answers = {}
        self._incoming = {}
        self._lost = set()
        self._end_sharing(answered=False)
        waiting = self._waiting()
        large = [request for request in waiting if self._may_share(request)]
        if self._shared is not None and large:
            self._found = {r.header.index: self._shared.find(r.data) for r in large}
            weights = sum(
                len(request.data) + SPACING
                for request in large
                if self._found[request.header.index] is None
            )
            results = sum(self.result_bytes(request.header) + SPACING for request in large)
            self._arena = self._shared.lease(weights, results)
        chunk_bytes = frames.best_chunk_bytes(sum(len(request.data) for request in waiting))
        sent = map(self._prepare, waiting)
        return frames.request_messages(
            self._open, sent, checksum=self._checksum, chunk_bytes=chunk_bytes
        )

    def receive(self, message: bytes) -> None:
        for number, content in frames.fields(message):
            if number == frames.RESULT:
                self._on_result(decode(self.result_type(), content))
            elif number == frames.HEADER:
                self._on_header(decode(pb.TensorHeader, content))
            elif number == frames.CHUNK:
                chunk = frames.decode_chunk(content)
                self._at(chunk.index).write(chunk)
            elif number == frames.COMMIT:
                self._on_commit(decode(pb.Commit, content))
            elif number == frames.ANSWER:
                answer = decode(pb.TensorAnswer, content)
                if answer.index in self._digests and answer.answer != pb.TensorAnswer.ANSWER_HAVE:
                    self._missed.add(answer.index)
                    self._lost.add(answer.index)

    def finish(self) -> None:
        if self._pending and not self.unfinished:
            missing = next(iter(self._pending.values())).header.layer
            raise InternalError(
                f"the server ended the call without an answer for {len(self._pending)} layers, "
                f"{missing!r} among them"
            )

    @abstractmethod
    def result_type(self) -> Any:
        """The class of the wire's result."""

    @abstractmethod
    def expected_tensors(self, result: Any) -> int:
        """How many tensors follow a result."""

    @abstractmethod
    def size_of(self, header: Any, request: Any) -> int:
        """Bytes that a tensor with this header must have; 0 when it is not allowed."""

    @abstractmethod
    def result_bytes(self, request: Any) -> int:
        """The maximum size of the large tensor in the answer for a weight."""

    @abstractmethod
    def build(self, result: Any, request: Any, parts: dict[int, _Incoming]) -> R:
        """The answer for a layer from its result and its tensors; `parts` by role."""

    def _on_result(self, result: Any) -> None:
        request = self._pending.get(result.answers)
        if request is None or result.answers in self._answers:
            raise DataLossError(f"the server answered tensor {result.answers} out of turn")
        if result.HasField("error"):
            if self._region_is_gone(result) or self._lacked_a_lost_one(result):
                self._lost.add(result.answers)
                return
            error = make_error(code_from_number(result.error.code), result.error.message)
            self._on_error(request.header, error)
            del self._pending[result.answers]
            return
        self._answers[result.answers] = _Answer(result, self.expected_tensors(result))
        self._complete(result.answers)

    def _on_error(self, request: Any, error: CompressionError) -> None:
        """Keeps the error of one tensor of the request."""
        self.errors[request.layer] = error

    def _on_header(self, header: Any) -> None:
        answer = self._answers.get(header.answers)
        if answer is None or header.index in self._incoming or header.role in answer.parts:
            raise DataLossError(f"the server sent tensor {header.index} out of turn")
        size = self.size_of(header, self._pending[header.answers].header)
        if size == 0 or size != header.byte_length:
            raise DataLossError(
                f"layer {header.layer!r} got a tensor of role {header.role}, dtype "
                f"{header.dtype}, shape {list(header.shape)} and {header.byte_length} bytes"
            )
        if header.HasField("shared_memory"):
            data = self._read_shared(header, size)
            self._incoming[header.index] = _Incoming(header, data, received=size)
        else:
            self._incoming[header.index] = _Incoming(header, np.empty(size, dtype=np.uint8))

    def _read_shared(self, header: Any, size: int) -> npt.NDArray[np.uint8]:
        _, place = self._places.get(header.answers, (False, None))
        told = header.shared_memory
        if (
            self._arena is None
            or place is None
            or (told.region, told.offset) != (place.region, place.offset)
            or size > place.capacity
        ):
            raise DataLossError(f"layer {header.layer!r} was answered at an unexpected place")
        return self._arena.result(place, size)

    def _waiting(self) -> list[frames.Outgoing]:
        """What to send in this attempt; it leaves what is `_lost` to the next."""
        return list(self._pending.values())

    def _may_share(self, request: frames.Outgoing) -> bool:
        return (
            len(request.data) >= MIN_BYTES
            and request.header.role == pb.TENSOR_ROLE_WEIGHT
            and request.header.index not in self._refused
        )

    def _prepare(self, request: frames.Outgoing) -> frames.Outgoing:
        """The request to send: by reference if possible."""
        index = request.header.index
        if index not in self._fingerprints:
            return self._share(request)
        header = pb.TensorHeader()
        header.CopyFrom(request.header)
        if self._by_digest(index):
            header.digest = self._digests[index]
        else:
            header.fingerprint = self._fingerprints[index]
        return frames.Outgoing(header, request.data)

    def _by_digest(self, index: int) -> bool:
        """Whether a tensor is sent by its digest: the server may have it."""
        return index in self._digests and index not in self._missed

    def _share(self, request: frames.Outgoing) -> frames.Outgoing:
        """The request to send: in shared memory, or unchanged if there is no room."""
        if self._shared is None or not self._may_share(request):
            return request
        weight, result = self._found.get(request.header.index), None
        if self._arena is not None:
            if weight is None:
                weight = self._arena.put(request.data)
            result = self._arena.place_result(self.result_bytes(request.header))
        if weight is None and result is None:
            return request
        header = pb.TensorHeader()
        header.CopyFrom(request.header)
        if weight is not None:
            header.shared_memory.CopyFrom(weight)
        if result is not None:
            header.result_place.CopyFrom(result)
        self._places[header.index] = (weight is not None, result)
        return frames.Outgoing(header, request.data)

    def _region_is_gone(self, result: Any) -> bool:
        """Whether the region, and not the layer, may have caused an error: the layer is resent."""
        gone = code_from_number(result.error.code) == StatusCode.NOT_FOUND
        if not gone or result.answers not in self._places or result.answers in self._refused:
            return False
        self._refused[result.answers] = self._pending[result.answers].header.layer
        return True

    def _lacked_a_lost_one(self, result: Any) -> bool:
        """Whether the layer failed because the server lost one that it has to decide about with it.

        Layers of a joint rule are answered last, so that what is lost is known by then.
        """
        rule = self.joint.get(self._pending[result.answers].header.layer)
        lost = (self._pending[index].header.layer for index in self._lost)
        return rule is not None and any(self.joint.get(layer) == rule for layer in lost)

    def _end_sharing(self, *, answered: bool) -> None:
        arena, self._arena = self._arena, None
        self._places = {}
        if arena is None or self._shared is None:
            return
        if answered:
            self._shared.release(arena)
        else:
            self._shared.discard(arena)

    def _on_commit(self, commit: Any) -> None:
        incoming = self._at(commit.index)
        incoming.finish(commit)
        del self._incoming[commit.index]
        answers = incoming.header.answers
        self._answers[answers].parts[incoming.header.role] = incoming
        self._complete(answers)

    def _complete(self, answers: int) -> None:
        answer = self._answers[answers]
        if len(answer.parts) < answer.expected:
            return
        request = self._pending[answers].header
        self.results[request.layer] = self.build(answer.result, request, answer.parts)
        del self._pending[answers], self._answers[answers]

    def _at(self, index: int) -> _Incoming:
        if index not in self._incoming:
            raise DataLossError(f"the server sent a piece of tensor {index}, which has no header")
        return self._incoming[index]


class MaskExchange(LayerExchange[Union[Mask, Threshold]]):
    """CalcMask.

    Attributes:
        counters: of the layers that are sent as counts, which have neither the shape nor the size
            of their weights.
    """

    counters: Mapping[str, Counter] = MappingProxyType({})

    def result_type(self) -> Any:
        return pb.MaskResult

    def expected_tensors(self, result: Any) -> int:
        return 0 if result.HasField("threshold") else 1

    def size_of(self, header: Any, request: Any) -> int:
        shape = self._shape(request)
        fits = header.role == pb.TENSOR_ROLE_MASK and header.dtype == pb.DATA_TYPE_BIT
        fits = fits and tuple(header.shape) == shape
        return (math.prod(shape) + 7) // 8 if fits else 0

    def result_bytes(self, request: Any) -> int:
        return (math.prod(map(int, request.shape)) + 7) // 8

    def build(
        self, result: Any, request: Any, parts: dict[int, _Incoming]
    ) -> Union[Mask, Threshold]:
        if not parts:
            if request.layer not in self.counters:
                raise DataLossError(f"layer {request.layer!r} got a threshold and sent no counts")
            return Threshold.from_wire(result, self.counters[request.layer].bits)
        try:
            return Mask(
                parts[pb.TENSOR_ROLE_MASK].data,
                self._shape(request),
                target_sparsity=result.target_sparsity,
                epoch=result.epoch,
            )
        except InvalidArgumentError as error:
            raise DataLossError(f"layer {request.layer!r}: {error.message}") from error

    def _shape(self, request: Any) -> tuple[int, ...]:
        counter = self.counters.get(request.layer)
        return tuple(map(int, request.shape if counter is None else counter.shape))


class QuantizeExchange(LayerExchange[QuantizedTensor]):
    """QuantizeWeight.

    Attributes:
        reply_bytes: maximum bytes of the reply per element; None: those of the weight.
    """

    reply_bytes: Optional[int] = 2

    def result_type(self) -> Any:
        return pb.QuantizeResult

    def expected_tensors(self, result: Any) -> int:
        return int(result.tensors)

    def size_of(self, header: Any, request: Any) -> int:
        dtype = dtypes.dtype_from_wire(header.dtype)
        if header.role in (pb.TENSOR_ROLE_SCALE, pb.TENSOR_ROLE_ZERO_POINT):
            wanted = "float32" if header.role == pb.TENSOR_ROLE_SCALE else "int32"
            fits = dtype == wanted and len(header.shape) == 1
            elements = math.prod(map(int, request.shape))
            fits = fits and header.shape[0] > 0 and elements % header.shape[0] == 0
        elif header.role == pb.TENSOR_ROLE_CODES:
            fits = dtype in ("int8", "uint8", "int16", "uint16")
            fits = fits and list(header.shape) == list(request.shape)
        else:
            fits = header.role == pb.TENSOR_ROLE_WEIGHT and header.dtype == request.dtype
            fits = fits and list(header.shape) == list(request.shape)
        if not fits:
            return 0
        return math.prod(map(int, header.shape)) * dtypes.numpy_dtype(dtype).itemsize

    def result_bytes(self, request: Any) -> int:
        if self.reply_bytes is None:
            return int(request.byte_length)
        return math.prod(map(int, request.shape)) * self.reply_bytes

    def build(self, result: Any, request: Any, parts: dict[int, _Incoming]) -> QuantizedTensor:
        is_range = request.role == pb.TENSOR_ROLE_RANGE
        return quantization.from_wire(
            result,
            shape=None if is_range else tuple(request.shape),
            scale=_array(parts.get(pb.TENSOR_ROLE_SCALE)),
            zero_point=_array(parts.get(pb.TENSOR_ROLE_ZERO_POINT)),
            codes=_array(parts.get(pb.TENSOR_ROLE_CODES)),
            values=_array(parts.get(pb.TENSOR_ROLE_WEIGHT)),
        )


def _array(incoming: Optional[_Incoming]) -> Any:
    if incoming is None:
        return None
    dtype = dtypes.numpy_dtype(dtypes.dtype_from_wire(incoming.header.dtype))
    return incoming.data.view(dtype).reshape(tuple(incoming.header.shape))


def raise_layer_errors(errors: Mapping[Any, CompressionError], results: Mapping[Any, Any]) -> None:
    """Raises one error for all layers that failed, if any did."""
    if errors:
        raise combined(errors, results, "layer")


def combined(
    errors: Mapping[Any, CompressionError], results: Mapping[Any, Any], what: str
) -> CompressionError:
    """One error for all of `errors`, which has them; `what` each is of: "layer"."""
    first = next(iter(errors.values()))
    message = first.message
    if len(errors) > 1:
        more = len(errors) - 1
        message += f" ({more} more {what}{'s' if more > 1 else ''} failed)"
    error = make_error(first.code, message)
    error.errors, error.results = errors, results
    return error
