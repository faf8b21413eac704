"""A session: one algorithm bound to one model, on the server."""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Optional, TypeVar, Union

from ._calls.caller import Caller
from ._calls.exchange import (
    LayerExchange,
    MaskExchange,
    QuantizeExchange,
    mask_header,
    raise_layer_errors,
    range_header,
    tensor_header,
)
from ._calls.export import ExportExchange
from ._calls.steps import step_requests, step_result
from ._transport.channel import Transport
from ._transport.shared_memory import SharedMemory
from ._wire import compression_pb2 as pb
from ._wire import frames
from ._wire.structs import text, to_struct
from .errors import (
    CompressionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from .values.dtypes import DTYPES
from .values.masks import Mask
from .values.plan import Plan
from .values.quantization import QuantizedTensor
from .values.reports import SessionInfo, seconds
from .values.statistics import Stats
from .values.steps import AnswerKey, StepResult
from .values.tensors import Tensor, TensorLike

_CLOSE_TIMEOUT = 10.0  # seconds, where something has failed before

Reply = Literal["codes", "values", "parameters"]  # of `Session.quantize_weight`

__all__ = ["AnswerKey", "Session", "StepResult"]

_R = TypeVar("_R")

_REPLIES = {
    "codes": pb.QuantizeWeightRequest.REPLY_CODES,
    "values": pb.QuantizeWeightRequest.REPLY_VALUES,
    "parameters": pb.QuantizeWeightRequest.REPLY_PARAMETERS,
}

# The most that a reply takes for an element; None: as much as the weight.
_REPLY_BYTES: dict[int, Optional[int]] = {
    _REPLIES["codes"]: 2,
    _REPLIES["values"]: None,
    _REPLIES["parameters"]: 0,
}


class Session:
    """One compressor bound to one model; made by `Client.bind_model` and `Client.join`.

    Any thread may call; the server applies a session's calls one at a time. Every call may raise
    a `CompressionError`: `NotFoundError` when the session is gone (closed, expired, the server was
    restarted without storage), `UnavailableError` when the server cannot be reached within the
    timeout, `DeadlineExceededError`, and those named at the method. `timeout` is in seconds,
    retries included; None means the client's, which grows with the bytes carried.

    A session is a context manager that closes it.

    Attributes:
        id: minted by the server. Whoever has it (and the same tenant) can join.
        route: the routing key of its calls; pass it on to `Client.join`.
        plan: what is done with each layer.
        lease: seconds without a call after which the server ends the session.
        stats: what its calls cost.
    """

    def __init__(
        self,
        transport: Transport,
        client_stats: Stats,
        *,
        session_id: str,
        route: str,
        plan: Plan,
        lease: float,
        stale: frozenset[str],
        checksum: bool = False,
        shared_memory: Optional[SharedMemory] = None,
    ) -> None:
        self.id = session_id
        self.route = route
        self.plan = plan
        self.lease = lease
        self.stats = Stats()
        self._caller = Caller(
            transport,
            (self.stats, client_stats),
            session_id=session_id,
            route=route,
            lease=lease,
        )
        self._lock = threading.Lock()  # of the two sets, never held in a call
        self._stale = stale
        self._checksum = checksum
        self._shared_memory = shared_memory
        self._server_keeps_weights = True
        self._sent: set[str] = set()  # layers whose weights were

    @property
    def stale(self) -> frozenset[str]:
        """Layers to ask for, as far as the replies so far tell; no call is made."""
        return self._stale

    @property
    def closed(self) -> bool:
        """Whether `close` was called here."""
        return self._caller.closed

    def calc_mask(
        self,
        weights: Mapping[str, Union[TensorLike, Mask]],
        *,
        epoch: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> dict[str, Mask]:
        """Asks for the masks of any number of layers in one stream.

        Args:
            weights: layer name -> weight, of the dtype and shape that were bound: a numpy array
                (float16, float32, float64), or a `Tensor` (bfloat16). A `Mask` puts a mask that
                the trainer has in force instead. Contiguous arrays are not copied.
            epoch: the epoch that the caller believes in; checked by the server when given.

        Returns: layer name -> `Mask`.

        Raises:
            InvalidArgumentError: a wrong shape or dtype, a layer that is not compressed, a weight
                that is not finite (the first flat index is named).
            NotFoundError: also for a layer that was not bound.
            FailedPreconditionError: the session's epoch is another, or it quantizes.
            ResourceExhaustedError: the server has no room for the tensors.

        When single layers fail the others go on: the error has `.errors` and `.results`. Its class
        is that of the first layer's error.

        >>> layers = [nc.Layer(name="fc", op_type="Linear", shape=(2, 5))]
        >>> session = client.bind_model("level", [{"sparsity": 0.5}], layers)
        >>> weight = np.array([[1, -2, 3, -4, 5], [6, -7, 8, -9, 10]], dtype=np.float32)
        >>> session.calc_mask({"fc": weight})["fc"].to_numpy().astype(int).tolist()
        [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
        >>> session.close()
        """
        requests = {}
        for i, (name, value) in enumerate(weights.items()):
            if isinstance(value, Mask):
                requests[i] = mask_header(name, value, i)
            else:
                tensor = Tensor.of(value, f"weights[{name!r}]")
                requests[i] = tensor_header(name, tensor, i)
        opening = pb.CalcMaskRequest.Open(session_id=self.id)
        if epoch is not None:
            opening.epoch = _counter(epoch, "epoch")
        exchange = MaskExchange(
            opening.SerializeToString(), requests, self._checksum, self._shared_memory
        )
        return self._exchange_layers("CalcMask", exchange, timeout)

    def set_mask(
        self, masks: Mapping[str, Any], *, timeout: Optional[float] = None
    ) -> dict[str, Mask]:
        """Puts masks in force that the trainer computed or kept.

        Args:
            masks: layer name -> `Mask`, or boolean array of the weight's shape, True = kept.

        Returns: layer name -> the `Mask` now in force. Raises as `calc_mask` does.
        """
        packed = {
            name: mask if isinstance(mask, Mask) else Mask.from_numpy(mask)
            for name, mask in masks.items()
        }
        return self.calc_mask(packed, timeout=timeout)

    def quantize_weight(
        self,
        weights: Mapping[str, TensorLike],
        *,
        reply: Reply = "codes",
        step: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> dict[str, QuantizedTensor]:
        """Quantizes the weights of any number of layers in one stream.

        Args:
            weights: layer name -> weight, as for `calc_mask`.
            reply: "codes" (one or two bytes a weight; `QuantizedTensor.dequantize` gives the
                values), "values" (the dequantized weight in its own dtype) or "parameters".
            step: the step that the caller believes in; checked by the server when given.

        Returns: layer name -> `QuantizedTensor`. Raises as `calc_mask` does.

        >>> layers = [nc.Layer(name="fc", op_type="Linear", shape=(4,))]
        >>> session = client.bind_model("qat", [{"quant_bits": 8}], layers)
        >>> q = session.quantize_weight({"fc": np.array([-1, 2, 3, 5], dtype=np.float32)})["fc"]
        >>> q.zero_point, q.codes.tolist(), round(float(q.dequantize()[1]), 4)
        (42, [0, 127, 170, 254], 2.0)
        >>> session.close()
        """
        if reply not in _REPLIES:
            raise InvalidArgumentError(f"reply is {reply!r}; it must be one of {list(_REPLIES)}")
        requests = {}
        for i, (name, value) in enumerate(weights.items()):
            tensor = Tensor.of(value, f"weights[{name!r}]")
            requests[i] = tensor_header(name, tensor, i)
        return self._quantize(requests, _REPLIES[reply], step, timeout)

    def quantize_range(
        self,
        ranges: Mapping[str, Any],
        *,
        step: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> dict[str, QuantizedTensor]:
        """The quantization of weights with these ranges, for a trainer that rounds for itself.

        Args:
            ranges: layer name -> (minimum, maximum), or float32 [2, C] (all minima, then all
                maxima) where the plan says `range_per_channel`; with `range_group_size` one for
                each group.
            step: as for `quantize_weight`.

        Returns: layer name -> `QuantizedTensor` without codes. Raises as `quantize_weight` does;
        UnimplementedError from algorithms that need the whole weight.
        """
        requests = {
            i: range_header(name, value, i) for i, (name, value) in enumerate(ranges.items())
        }
        return self._quantize(requests, _REPLIES["parameters"], step, timeout)

    def update_epoch(self, epoch: int, *, timeout: Optional[float] = None) -> frozenset[str]:
        """Sets the epoch: absolute, not negative.

        Returns: the names of all layers that are now stale. A lower epoch than before is accepted
        and revives nothing.
        """
        request = pb.UpdateEpochRequest(session_id=self.id, epoch=_counter(epoch, "epoch"))
        reply = self._caller.unary("UpdateEpoch", request, pb.UpdateEpochResponse, timeout)
        stale = frozenset(reply.stale_layers)
        with self._lock:
            self._stale = stale
        return stale

    def step(
        self,
        step: int,
        ranges: Optional[Mapping[str, Any]] = None,
        *,
        outputs: Optional[Mapping[str, Any]] = None,
        inputs: Optional[Mapping[str, Any]] = None,
        gradients: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
    ) -> StepResult:
        """Sets the step: absolute, not negative.

        Args:
            ranges: of the layers whose plan has "range" in `step_inputs`; as for `quantize_range`.
                The server ignores them for a step that is not above the last one applied.
            outputs, inputs: layer name -> (smallest, largest) that the layer gave, or was given,
                since the last step; of the layers with "output_range" or "input_range" there.
            gradients: of the layers whose plan has "gradient" in `step_inputs`: the loss's gradient
                of the weight, given as weights are. Ignored as ranges are.

        Returns: a frozenset of the names of all layers that are now stale, which also has `.step`,
        `.parameters`, `.outputs` and `.inputs`.

        Raises InvalidArgumentError when a range or gradient does not fit (`.errors` has each one's,
        by the keys of `StepResult.answers`, or (name, "gradient")), ResourceExhaustedError when the
        answer would not fit into a message: send the ranges of weights with `quantize_range` then.
        """
        opening = pb.StepRequest.Open(session_id=self.id, step=_counter(step, "step"))
        requests = step_requests(ranges, outputs, inputs, gradients)

        def messages() -> Iterator[bytes]:
            content = opening.SerializeToString()
            return frames.request_messages(content, requests, checksum=self._checksum)

        reply = self._caller.upload(
            "Step",
            messages,
            pb.StepResponse,
            timeout,
            payload_bytes=sum(len(request.data) for request in requests),
        )
        result = step_result(reply, len(requests))
        with self._lock:
            self._stale = frozenset(result)
        return result

    def export(
        self,
        directory: Union[str, os.PathLike[str]],
        weights: Optional[Mapping[str, TensorLike]] = None,
        format: str = "safetensors",
        *,
        options: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
    ) -> list[Path]:
        """Writes an artifact's files into a directory, which is made if need be.

        The files appear, under the names that the server gives them, when all of them are
        complete; files of these names are replaced, but for a config.json that is not an earlier
        export's. What readers of the files have to know is a UserWarning.

        Args:
            weights: every compressed layer's weight, and any other tensors that belong into the
                file, of any dtype, scalars too. "masks": none.
            format: "safetensors" (the compressed weights), "pth" (the same for PyTorch, with NNI's
                mask file), "sparse" (kept weights only), "compressed-tensors", "onnx" (for
                `nni_compression.onnx.apply`), "masks" (packed and plain) or "report".
            options: of the format; docs/exports.md has them.

        Returns: the files written.

        Raises FailedPreconditionError when a layer has no result yet, AlreadyExistsError for the
        config.json of somebody else, OSError when the files cannot be written.
        """
        requests = []
        for i, (name, value) in enumerate((weights or {}).items()):
            tensor = Tensor.of(value, f"weights[{name!r}]", DTYPES)
            requests.append(tensor_header(name, tensor, i))
        opening = pb.ExportRequest.Open(session_id=self.id, format=text(format, "format"))
        if options is not None:
            opening.options.CopyFrom(to_struct(options, "options"))
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        content = opening.SerializeToString()
        with ExportExchange(target, content, requests, self._checksum) as exchange:
            self._caller.stream("Export", exchange, timeout)
        for warning in exchange.warnings:
            warnings.warn(warning, UserWarning, stacklevel=2)
        return exchange.paths

    def info(self, *, timeout: Optional[float] = None) -> SessionInfo:
        """What the server says about the session; also for a while after its end."""
        request = pb.GetSessionRequest(session_id=self.id)
        reply = self._caller.unary(
            "GetSession", request, pb.GetSessionResponse, timeout, open_only=False
        )
        return SessionInfo.from_wire(reply.session)

    def keep_alive(self, *, timeout: Optional[float] = None) -> float:
        """Renews the lease; every other call does so too.

        Returns: seconds until the session ends without a further call.
        """
        request = pb.KeepAliveRequest(session_id=self.id)
        reply = self._caller.unary("KeepAlive", request, pb.KeepAliveResponse, timeout)
        return seconds(reply.lease)

    def close(self, *, timeout: Optional[float] = None) -> None:
        """Ends the session on the server and frees its memory there.

        Closing again does nothing, nor does closing one that the server does not have any more,
        nor closing in a forked child one that the parent opened.
        """
        if self._caller.closed or self._caller.transport.forked:
            return
        request = pb.CloseSessionRequest(session_id=self.id)
        with contextlib.suppress(NotFoundError):
            self._caller.unary("CloseSession", request, pb.CloseSessionResponse, timeout)
        self._caller.closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        # After a failure the server may be gone, and the session ends with its lease anyway.
        limits = [self._caller.transport.timeout, None if error is None else _CLOSE_TIMEOUT]
        timeout = min((limit for limit in limits if limit is not None), default=None)
        try:
            self.close(timeout=timeout)
        except CompressionError:
            if error is None:  # else that one says more
                raise

    def __repr__(self) -> str:
        state = ", closed" if self._caller.closed else ""
        return f"Session(id={self.id!r}, server={self._caller.transport.address!r}{state})"

    def renew(self) -> None:
        """Renews the lease, once and without retries: for the background thread."""
        self._caller.renew()

    def next_renewal(self, *, failed: bool) -> float:
        """When the lease should be renewed, on the monotonic clock; sooner after a failure."""
        return self._caller.next_renewal(failed=failed)

    def _quantize(
        self,
        requests: Mapping[int, frames.Outgoing],
        reply: int,
        step: Optional[int],
        timeout: Optional[float],
    ) -> dict[str, QuantizedTensor]:
        opening = pb.QuantizeWeightRequest.Open(
            session_id=self.id,
            reply=reply,  # type: ignore[arg-type]
        )
        if step is not None:
            opening.step = _counter(step, "step")
        exchange = QuantizeExchange(
            opening.SerializeToString(), requests, self._checksum, self._shared_memory
        )
        exchange.reply_bytes = _REPLY_BYTES[reply]
        return self._exchange_layers("QuantizeWeight", exchange, timeout)

    def _exchange_layers(
        self, method: str, exchange: LayerExchange[_R], timeout: Optional[float]
    ) -> dict[str, _R]:
        if exchange.empty:
            return {}
        with self._lock:
            # A layer that is asked for again has trained since.
            exchange.changing = set(self._sent)
            self._sent |= exchange.layers
        try:
            self._find_weights(exchange, timeout)
            self._caller.stream(method, exchange, timeout)
            if exchange.unfinished:  # the server has other regions or weights, or none any more
                self._caller.stream(method, exchange, timeout)
        except CompressionError as error:
            error.results, error.errors = exchange.results, exchange.errors
            raise
        finally:
            exchange.close()
            with self._lock:
                self._stale = self._stale.difference(exchange.results)
        raise_layer_errors(exchange.errors, exchange.results)
        return exchange.results

    def _find_weights(self, exchange: LayerExchange[Any], timeout: Optional[float]) -> None:
        """Finds out which weights need not be sent."""
        fingerprints = exchange.question()
        if fingerprints and self._server_keeps_weights:
            request = pb.FindWeightsRequest(session_id=self.id, fingerprints=fingerprints)
            try:
                reply = self._caller.unary(
                    "FindWeights", request, pb.FindWeightsResponse, timeout, counted=False
                )
            except UnimplementedError:  # an older server
                self._server_keeps_weights = False
            else:
                exchange.learn(reply.may_have)


def _counter(value: Any, name: str) -> int:
    """An epoch or a step; what is wrong with a negative one is for the server to say."""
    number = operator.index(value)
    if abs(number) >= 2**63:
        raise InvalidArgumentError(f"{name} is {number}; it must be in [0, 2^63)")
    return number
