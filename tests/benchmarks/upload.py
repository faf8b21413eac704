"""How fast a weight gets to the server, against the least that could receive it."""

from __future__ import annotations

import grpc
import numpy

import nni_compression as nc
import peers
from harness import Benchmark, Goal, alternate, quotients, rates

ELEMENTS = 45_000_000
SIZE = 4 * ELEMENTS
ROUNDS = 7
NOTE = "The service's figure holds the mask's way back (5.6 MB), the others answer a few bytes."


def run(client: nc.Client) -> list[Benchmark]:
    with peers.bare_grpc() as bare:
        return [from_python(client, bare), from_cpp(bare)]


def from_python(client: nc.Client, bare: str) -> Benchmark:
    array = numpy.random.default_rng(0).standard_normal(ELEMENTS, dtype=numpy.float32)
    data = memoryview(array).cast("B")
    copy = numpy.empty_like(array)
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    with (
        peers.running("discard") as tcp_port,
        grpc.insecure_channel(bare) as channel,
        client.bind_model(
            "level", [{"sparsity": 0.5}], layers=[layer], framework="pytorch"
        ) as session,
    ):
        # The mask is decided by the first weight; later ones are received and not looked at.
        session.calc_mask({"w": array})
        times = alternate(
            {
                "bare gRPC stream": lambda: peers.upload_grpc(channel, data),
                "bare TCP socket": lambda: peers.upload_tcp(tcp_port, data),
                "memcpy": lambda: numpy.copyto(copy, array),
                "service": lambda: session.calc_mask({"w": array}),
            },
            ROUNDS,
        )
    goal = Goal(
        "P3",
        "upload from Python, of the bare stream's rate",
        0.70,
        quotients(times["bare gRPC stream"], times["service"]),
    )
    title = "Upload of 180 MB from Python"
    return Benchmark(title, rates(times, "bare gRPC stream", SIZE), NOTE, goals=[goal])


def from_cpp(bare: str) -> Benchmark:
    times = peers.native("upload", bare, peers.SERVICE)
    times = {"bare gRPC stream": times["bare"], "service": times["service"]}
    goal = Goal(
        "P3",
        "upload from C++, of the bare stream's rate",
        0.85,
        quotients(times["bare gRPC stream"], times["service"]),
    )
    title = "Upload of 180 MB from C++"
    return Benchmark(title, rates(times, "bare gRPC stream", SIZE), NOTE, goals=[goal])
