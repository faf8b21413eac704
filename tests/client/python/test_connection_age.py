"""Connections that are replaced while trainers work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import nni_compression as nc
from metered import eventually
from nni_compression._wire import compression_pb2 as pb
from nni_compression._wire import frames
from servers import SERVICE, ServerProcess
from usage import Peers

LAYER = nc.Layer("fc", "Linear", (64, 64))
CONFIG = [{"sparsity": 0.5}]
WEIGHT = np.random.default_rng(9).normal(size=LAYER.shape).astype(np.float32)


def test_clients_do_not_notice_that_connections_have_an_age() -> None:
    with (
        ServerProcess("--max_connection_age=300ms") as server,
        nc.Client(server.address) as client,
        client.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        mask = session.calc_mask({"fc": WEIGHT})["fc"].bits.tobytes()
        peers = Peers(server.port)
        epoch = 0
        while peers.look() < 6:
            epoch += 1
            session.update_epoch(epoch)
            assert session.calc_mask({"fc": WEIGHT})["fc"].bits.tobytes() == mask


def upload(session: nc.Session, over: threading.Event) -> Iterator[bytes]:
    yield pb.CalcMaskRequest(open={"session_id": session.id}).SerializeToString()
    over.wait(60)


def test_a_call_that_runs_when_its_connection_is_old_may_finish() -> None:
    over = threading.Event()
    with (
        ServerProcess("--max_connection_age=300ms") as server,
        nc.Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
        client.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        call = channel.stream_stream(f"/{SERVICE}/CalcMask")(upload(session, over))
        peers = Peers(server.port)

        def replaced() -> bool:
            client.health()
            return peers.look() >= 6

        assert eventually(replaced)
        over.set()
        assert list(call) == []
        assert call.code() == grpc.StatusCode.OK


def test_a_client_does_not_repeat_a_call_that_its_connection_outlives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that are being uploaded when connections are replaced are sent once."""
    layers = [nc.Layer(name, "Linear", (1024, 1024)) for name in ("first", "second")]
    weights = {layer.name: np.linspace(-1, 2, 1 << 20, dtype=np.float32) for layer in layers}
    weights = {name: weight.reshape(1024, 1024) for name, weight in weights.items()}
    over, uploads = threading.Event(), []
    request_messages = frames.request_messages

    def held_back(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        """All but the last message, and that when the time has come."""
        *messages, last = request_messages(*args, **kwargs)
        uploads.append(len(messages))
        yield from messages
        over.wait(60)
        yield last

    monkeypatch.setattr(frames, "request_messages", held_back)
    with (
        ServerProcess("--max_connection_age=300ms") as server,
        nc.Client(server.address) as client,
        client.bind_model("level", CONFIG, layers) as session,
        ThreadPoolExecutor() as pool,
    ):
        masks = pool.submit(session.calc_mask, weights)
        try:
            # What the server has begun to answer it has taken: before, a call may be repeated.
            assert eventually(lambda: session.info().layers[0].achieved_sparsity == 0.5)
            begun = len(uploads)
            peers = Peers(server.port)

            def replaced() -> bool:
                client.health()
                return peers.look() >= 6

            assert eventually(replaced)
            assert not masks.done()
        finally:
            over.set()
        assert [mask.pruned for mask in masks.result().values()] == [1 << 19, 1 << 19]
        assert len(uploads) == begun


def test_a_call_that_does_not_finish_in_the_grace_is_cut_off() -> None:
    over = threading.Event()
    flags = ("--max_connection_age=300ms", "--max_connection_grace=300ms")
    with (
        ServerProcess(*flags) as server,
        nc.Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
        client.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        call = channel.stream_stream(f"/{SERVICE}/CalcMask")(upload(session, over))
        assert call.code() == grpc.StatusCode.UNAVAILABLE
        over.set()
        assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == WEIGHT.size // 2
