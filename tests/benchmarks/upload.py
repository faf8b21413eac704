"""How fast a weight gets to the server, against the least that could receive it."""

from __future__ import annotations

import grpc
import numpy

import nni_compression as nc
import peers
from harness import Benchmark, alternate, rates

ELEMENTS = 45_000_000
ROUNDS = 7


def run(client: nc.Client) -> list[Benchmark]:
    array = numpy.random.default_rng(0).standard_normal(ELEMENTS, dtype=numpy.float32)
    data = memoryview(array).cast("B")
    copy = numpy.empty_like(array)
    layer = nc.Layer(name="w", op_type="Linear", shape=array.shape)
    with (
        peers.running("grpc") as grpc_port,
        peers.running("tcp") as tcp_port,
        grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
        client.bind_model(
            "level", [{"sparsity": 0.5}], layers=[layer], framework="pytorch"
        ) as session,
    ):
        # The mask is decided by the first weight; later ones are received and not looked at.
        session.calc_mask({"w": array})
        times = alternate(
            {
                "bare gRPC stream, Python to Python": lambda: peers.upload_grpc(channel, data),
                "bare TCP socket": lambda: peers.upload_tcp(tcp_port, data),
                "memcpy": lambda: numpy.copyto(copy, array),
                "service": lambda: session.calc_mask({"w": array}),
            },
            ROUNDS,
        )
    baseline = "bare gRPC stream, Python to Python"
    note = "The service's figure holds the mask's way back (5.6 MB), the others answer a few bytes."
    return [Benchmark("Upload of 180 MB", rates(times, baseline, len(data)), note)]
