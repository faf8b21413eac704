"""The connection to a compression server."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Optional, TypeVar, Union

import numpy as np
import numpy.typing as npt

from ._calls import exchange
from ._lifetime.keep_alive import KeepAlive
from ._lifetime.trial import trial_labels, watch
from ._transport.address import check_address
from ._transport.channel import HEALTH, SERVICE, Transport, make_route
from ._transport.credentials import check_privacy, make_credentials
from ._transport.shared_memory import SharedMemory, socket_path
from ._transport.tls import Tls, make_tls
from ._wire import compression_pb2 as pb
from ._wire import frames
from ._wire.structs import text, to_struct
from .errors import CompressionError, InvalidArgumentError, NotFoundError
from .session import Session
from .values.dtypes import dtype_name, numpy_dtype
from .values.masks import Mask
from .values.plan import Layer, Plan
from .values.quantization import Memory
from .values.reports import Algorithm, SessionInfo, seconds
from .values.statistics import Stats

_M = TypeVar("_M")

DEFAULT_SERVER = "127.0.0.1:50051"
SERVER_VARIABLE = "NNI_COMPRESSION_SERVER"

_HEALTH_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
# Masks beyond this go by CalcMask, so that BindModel stays well below 4 MiB.
_INLINE_MASK_BYTES = 1 << 20
_HEALTH_TIMEOUT = 10.0


def server_address(server: Optional[str] = None) -> str:
    """The server's address: `server`, else $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051."""
    return server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER


class Client:
    """A connection to a compression server, opened by the first call.

    Any thread may call. Calls are retried, with growing and jittered waits, while the server cannot
    be reached (it restarts, say) and when it asks to wait, until `timeout`; all of them may safely
    be sent twice.

    A forked child (a DataLoader worker) may hold a client and end as it likes: the parent's
    connection is not touched. Calling the server there raises FailedPreconditionError once the
    parent had connected, because gRPC does not survive a fork; processes started by "spawn" or
    "forkserver" are fine, and pickling a client takes its settings along, not its connection.

    A client is a context manager that closes it.

    Args:
        server: "host:port"; by default $NNI_COMPRESSION_SERVER, else 127.0.0.1:50051.
        timeout: seconds that a call may take, retries included, plus one for every 16 MiB that it
            sends; None for no limit.
        connect_timeout: seconds after which a server that has never answered counts as not there.
        keep_alive: whether a background thread renews the leases of this client's sessions when
            they make no call for a third of the lease.
        checksum: whether tensors are sent with a CRC-32 that the server checks.
        shm_socket: path of the side socket of a server on this host (its `--shm_socket`), through
            which large weights are handed over in shared memory; by default
            $NNI_COMPRESSION_SHM_SOCKET, "" for none. Without the socket, or where the server
            refuses, tensors go over the network.
        route: `nni-route` of calls that belong to no session; minted by default.
        token: the bearer token that the server asks for; by default $NNI_COMPRESSION_TOKEN. It
            travels as it is: without `tls` it is sent to a server on this host only.
        token_file: a file with the token instead, read again when it has changed; by default
            $NNI_COMPRESSION_TOKEN_FILE.
        allow_insecure_token: whether the token may be sent to another host without `tls`, for a
            network where nobody reads along; by default $NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1.
        tls: True, or the path of a PEM file of authorities that sign the server's certificate, or a
            `Tls` with a certificate of the client's own; False for an open connection. By default
            the environment's: $NNI_COMPRESSION_TLS=1, and the paths in $NNI_COMPRESSION_TLS_CA,
            $NNI_COMPRESSION_TLS_CERTIFICATE and $NNI_COMPRESSION_TLS_KEY.

    Attributes:
        server: the address.
        stats: what the calls cost, those of all its sessions included.

    >>> client.health()
    'SERVING'
    """

    def __init__(
        self,
        server: Optional[str] = None,
        *,
        timeout: Optional[float] = 300.0,
        connect_timeout: float = 10.0,
        keep_alive: bool = True,
        checksum: bool = False,
        shm_socket: Optional[str] = None,
        route: Optional[str] = None,
        token: Optional[str] = None,
        token_file: Union[str, os.PathLike[str], None] = None,
        allow_insecure_token: Optional[bool] = None,
        tls: Union[bool, str, os.PathLike[str], Tls, None] = None,
    ) -> None:
        self.server = server_address(server)
        check_address(self.server, "server" if server else f"${SERVER_VARIABLE}")
        self.stats = Stats()
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._checksum = checksum
        self._shm_socket = shm_socket
        self._token = token
        self._token_file = token_file
        self._tls = make_tls(tls)
        self._allow_insecure_token = allow_insecure_token
        credentials = make_credentials(token, token_file)
        encrypted = self._tls is not None
        check_privacy(credentials, self.server, encrypted, allow_insecure_token)
        self._shared_memory = SharedMemory(socket_path(shm_socket), credentials)
        self._route = _check_route(route) or make_route()
        self._keep_alive = KeepAlive() if keep_alive else None
        self._transport = Transport(self.server, timeout, connect_timeout, credentials, self._tls)

    def bind_model(
        self,
        algorithm: str,
        config_list: Sequence[Mapping[str, Any]],
        layers: Sequence[Layer],
        *,
        framework: str = "pytorch",
        labels: Optional[Mapping[str, str]] = None,
        masks: Optional[Mapping[str, Any]] = None,
        memory: Optional[Mapping[str, Memory]] = None,
        lease: Optional[float] = None,
        epoch: int = 0,
        step: int = 0,
        step_applied: bool = False,
        vectors_need_filter: bool = False,
        route: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> Session:
        """Opens a session.

        With `masks`, `memory`, `epoch`, `step` and `step_applied` as they were at some time the
        session answers as that of the time did: so a trainer goes on from a checkpoint.

        Args:
            algorithm: "level", "agp", "naive", "qat", "dorefa": see `algorithms`.
            config_list: NNI's list of rules; the last rule that matches a layer wins.
            layers: the model's, compressible or not.
            framework: "pytorch", "tensorflow", "keras" or "generic": what "default" means in
                op_types.
            labels: for listing, logs and metrics; never for access. Inside an NNI trial those of
                `nni_compression.nni.trial_labels` are there without being given.
            masks: layer name -> `Mask` or boolean array (True = kept) to start with, as a pruned
                checkpoint that is trained on.
            memory: layer name -> `QuantizedTensor.memory` of the last answer of another session.
            lease: seconds without a call after which the server may end the session; the server
                decides, and `Session.lease` says what it gave.
            epoch, step: where training resumes.
            step_applied: whether `step` was taken: what comes with it again counts no more.
            vectors_need_filter: whether a rule without op_types and op_names leaves layers of one
                dimension out, as it does in the adapters: for `layers` that are all weights of a
                model, the scales of norms among them.
            route: the session's `nni-route`; minted by default.

        Raises InvalidArgumentError that names what is wrong in the configuration.

        >>> layers = [nc.Layer(name="conv1", op_type="Conv2d", shape=(20, 1, 5, 5)),
        ...           nc.Layer(name="relu1", op_type="PReLU", shape=(20,))]
        >>> rules = [{"sparsity": 0.8, "op_types": ["Conv2d"]}]
        >>> with client.bind_model("level", rules, layers, labels={"run": "7"}) as session:
        ...     [(p.name, p.compressed, p.options) for p in session.plan.layers.values()]
        [('conv1', True, {'sparsity': 0.8}), ('relu1', False, {})]
        """
        inline, uploaded = _split_masks(masks or {})
        labels = {**trial_labels(), **(labels or {})}
        request = _bind_request(algorithm, config_list, layers, framework, labels, lease, inline)
        for name, remembered in (memory or {}).items():
            numbers = [pb.Memory(name=key, values=remembered[key]) for key in remembered]
            request.memory.add(layer=text(name, "a key of memory"), memory=numbers)
        request.step_applied = step_applied
        try:
            request.epoch, request.step = epoch, step
            request.vectors_need_filter = vectors_need_filter
        except ValueError as error:
            raise InvalidArgumentError(f"epoch is {epoch}, step is {step}: {error}") from error
        route = _check_route(route) or make_route()
        reply = self._unary("BindModel", request, pb.BindModelResponse, route, timeout)
        session = self._session(
            reply.session_id, route, reply.plan, seconds(reply.lease), reply.stale_layers
        )
        watch.add(session)
        if uploaded:
            try:
                session.set_mask(uploaded, timeout=timeout)
                if session.plan.needs_update_epoch:  # which of them the epoch makes stale
                    session.update_epoch(epoch, timeout=timeout)
            except BaseException:
                _close_quietly(session)
                raise
        return session

    def join(
        self,
        session_id: str,
        *,
        route: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> Session:
        """A session that another rank, or this trainer before it was interrupted, has opened.

        Args:
            route: that session's `Session.route`. Without it a proxy between may send the calls to
                a server that does not have the session; without a proxy it does not matter.

        Raises NotFoundError when there is no such live session.

        >>> layers = [nc.Layer(name="fc", op_type="Linear", shape=(2, 5))]
        >>> session = client.bind_model("level", [{"sparsity": 0.5}], layers)
        >>> client.join(session.id, route=session.route).plan == session.plan
        True
        >>> session.close()
        """
        route = _check_route(route) or make_route()
        reply = self._get_session(session_id, route, timeout)
        info = SessionInfo.from_wire(reply.session)
        if not reply.HasField("plan"):
            raise NotFoundError(f"session {session_id} is {info.state}")
        stale = [layer.name for layer in info.layers if layer.stale]
        request = pb.KeepAliveRequest(session_id=info.id)
        renewed = self._unary("KeepAlive", request, pb.KeepAliveResponse, route, timeout)
        return self._session(info.id, route, reply.plan, seconds(renewed.lease), stale)

    def session_info(self, session_id: str, *, timeout: Optional[float] = None) -> SessionInfo:
        """What the server says about a session; also for a while after its end.

        Raises NotFoundError when it does not know of it.
        """
        return SessionInfo.from_wire(self._get_session(session_id, self._route, timeout).session)

    def sessions(
        self, labels: Optional[Mapping[str, str]] = None, *, timeout: Optional[float] = None
    ) -> list[SessionInfo]:
        """The live sessions, oldest first, that have all of these labels."""
        found: list[SessionInfo] = []
        request = pb.ListSessionsRequest(labels=_text_map(labels), page_size=1000)
        while True:
            reply = self._unary("ListSessions", request, pb.ListSessionsResponse, None, timeout)
            found += map(SessionInfo.from_wire, reply.sessions)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    def algorithms(self, *, timeout: Optional[float] = None) -> list[Algorithm]:
        """The server's algorithms with their options, by name.

        >>> [algorithm.name for algorithm in client.algorithms() if algorithm.kind == "pruner"]
        ['agp', 'custom_pruner', 'level']
        """
        request = pb.ListAlgorithmsRequest()
        reply = self._unary("ListAlgorithms", request, pb.ListAlgorithmsResponse, None, timeout)
        return [Algorithm.from_wire(algorithm) for algorithm in reply.algorithms]

    def health(self, *, timeout: float = _HEALTH_TIMEOUT) -> str:
        """Asks once, without retries: "SERVING", or "NOT_SERVING" while the server drains.

        Raises UnavailableError when nobody answers.
        """
        reply = self._transport.unary(
            f"{HEALTH}/Check", b"", route=self._route, timeout=timeout, retry=False
        )
        status = dict(frames.walk(memoryview(reply))).get(1, 0)
        return _HEALTH_STATES.get(status, "UNKNOWN") if isinstance(status, int) else "UNKNOWN"

    def shared_array(self, shape: Sequence[int], dtype: Any = "float32") -> npt.NDArray[Any]:
        """A new array, of undefined content, that the server reads where it is.

        A weight that lies in it is not copied when it goes to a call; it must then stay as it is
        until the call is over. For bfloat16 the array is of uint16, as in `Tensor`. Without shared
        memory this is an ordinary array. The memory is free when the array and all views of it
        are, torch.from_numpy's included.

        >>> client.shared_array((2, 5)).shape
        (2, 5)
        """
        kind = numpy_dtype(dtype_name(dtype))
        size = math.prod(shape) * kind.itemsize
        shared = self._shared_memory.array(size) if size > 0 else None
        if shared is None:
            return np.empty(shape, kind)
        return shared.view(kind).reshape(shape)

    def close(self) -> None:
        """Closes the connection and ends the background thread.

        The sessions stay on the server until they are closed or their leases run out.
        """
        if self._keep_alive is not None:
            self._keep_alive.stop()
        self._transport.close()
        self._shared_memory.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.server!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {
            "timeout": self._timeout,
            "connect_timeout": self._connect_timeout,
            "keep_alive": self._keep_alive is not None,
            "checksum": self._checksum,
            "shm_socket": self._shm_socket,
            "route": self._route,
            "token": self._token,
            "token_file": self._token_file,
            "allow_insecure_token": self._allow_insecure_token,
            "tls": self._tls if self._tls is not None else False,
        }
        return _make_client, (self.server, settings)

    def _session(
        self, session_id: str, route: str, plan: pb.Plan, lease: float, stale: Sequence[str]
    ) -> Session:
        session = Session(
            self._transport,
            self.stats,
            session_id=session_id,
            route=route,
            plan=Plan.from_wire(plan),
            lease=lease,
            stale=frozenset(stale),
            checksum=self._checksum,
            shared_memory=self._shared_memory,
        )
        if self._keep_alive is not None and lease > 0:
            self._keep_alive.watch(session)
        return session

    def _get_session(
        self, session_id: str, route: str, timeout: Optional[float]
    ) -> pb.GetSessionResponse:
        request = pb.GetSessionRequest(session_id=text(session_id, "session_id"))
        return self._unary("GetSession", request, pb.GetSessionResponse, route, timeout)

    def _unary(
        self,
        method: str,
        request: Any,
        reply_type: type[_M],
        route: Optional[str],
        timeout: Optional[float],
    ) -> _M:
        raw = self._transport.unary(
            f"{SERVICE}/{method}",
            request.SerializeToString(),
            route=route or self._route,
            stats=(self.stats,),
            timeout=timeout,
        )
        reply: _M = exchange.decode(reply_type, memoryview(raw))
        return reply


def _make_client(server: str, settings: Mapping[str, Any]) -> Client:
    return Client(server, **settings)


def _close_quietly(session: Session) -> None:
    # The error that led here says more, and the lease ends the session anyway.
    with contextlib.suppress(CompressionError):
        session.close(timeout=_HEALTH_TIMEOUT)


def _check_route(route: Optional[str]) -> Optional[str]:
    if route is not None and not (0 < len(route) <= 64 and route.isascii() and route.isprintable()):
        raise InvalidArgumentError(f"route is {route!r}; it must be 1 to 64 printable characters")
    return route


def _text_map(values: Optional[Mapping[str, str]]) -> dict[str, str]:
    return {
        text(key, "a label's name"): text(value, f"labels[{key!r}]")
        for key, value in (values or {}).items()
    }


def _split_masks(masks: Mapping[str, Any]) -> tuple[dict[str, Mask], dict[str, Mask]]:
    """The masks that fit into BindModel, and those to be sent after it."""
    inline: dict[str, Mask] = {}
    uploaded: dict[str, Mask] = {}
    room = _INLINE_MASK_BYTES
    for name, value in masks.items():
        mask = value if isinstance(value, Mask) else Mask.from_numpy(value)
        size = len(mask.bits) + len(name)
        if size <= room:
            room -= size
            inline[name] = mask
        else:
            uploaded[name] = mask
    return inline, uploaded


def _bind_request(
    algorithm: str,
    config_list: Sequence[Mapping[str, Any]],
    layers: Sequence[Layer],
    framework: str,
    labels: Optional[Mapping[str, str]],
    lease: Optional[float],
    masks: Mapping[str, Mask],
) -> pb.BindModelRequest:
    if isinstance(config_list, (str, Mapping)) or not isinstance(config_list, Sequence):
        raise InvalidArgumentError(f"config_list is {config_list!r}; it must be a list of dicts")
    request = pb.BindModelRequest(
        request_id=secrets.token_hex(16),
        algorithm=text(algorithm, "algorithm"),
        config_list=[to_struct(rule, f"config_list[{i}]") for i, rule in enumerate(config_list)],
        layers=[layer.to_wire(f"layers[{i}]") for i, layer in enumerate(layers)],
        framework=text(framework, "framework"),
        labels=_text_map(labels),
        masks=[
            pb.LayerMask(layer=text(name, "a key of masks"), bits=mask.bits.tobytes())
            for name, mask in masks.items()
        ],
    )
    if lease is not None:
        _fill_duration(request.lease, lease)
    return request


def _fill_duration(out: Any, lease: Union[int, float]) -> None:
    if not 0 < lease < 10**9:
        raise InvalidArgumentError(f"lease is {lease}; it must be in (0, 10^9) seconds")
    out.seconds = int(lease)
    out.nanos = int((lease - int(lease)) * 1e9)
