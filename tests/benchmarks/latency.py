"""What small calls cost beside the least that gRPC needs for as many bytes."""

from __future__ import annotations

import statistics

import grpc
import numpy

import nni_compression as nc
import peers
from harness import Benchmark, Goal, alternate, lines, quotients, seconds
from small_models import LENET

CALLS = 50
ROUNDS = 9


def run(client: nc.Client) -> list[Benchmark]:
    with peers.bare_grpc() as bare:
        return [from_python(client, bare), *from_cpp(bare)]


def from_python(client: nc.Client, bare: str) -> Benchmark:
    random = numpy.random.default_rng(0)
    arrays = {n: random.standard_normal(s, dtype=numpy.float32) for n, s in LENET.items()}
    layers = [nc.Layer(name=n, op_type="Linear", shape=s) for n, s in LENET.items()]
    data = memoryview(bytes(sum(array.nbytes for array in arrays.values())))

    def masks() -> float:
        rule = {"sparsity": 0.8}
        with client.bind_model("level", [rule], layers=layers, framework="pytorch") as session:
            return seconds(lambda: session.calc_mask(arrays))

    with grpc.insecure_channel(bare) as channel:
        times = alternate(
            {
                "bare stream": median(lambda: peers.upload_grpc(channel, data)),
                "CalcMask": median(masks),
            },
            ROUNDS,
        )
    ratio = quotients(times["CalcMask"], times["bare stream"])
    goal = Goal("P5", "LeNet's masks from Python, of a bare stream", 1.5, ratio, at_least=False)
    title = "All masks of LeNet (1.7 MB) in one call from Python"
    return Benchmark(title, lines(times, "bare stream"), goals=[goal])


def from_cpp(bare: str) -> list[Benchmark]:
    times = peers.native("small", bare, peers.SERVICE)
    streams = {name: times[name] for name in ("bare stream", "CalcMask")}
    unaries = {name: times[name] for name in ("bare unary", "UpdateEpoch")}
    masks = Goal(
        "P5",
        "LeNet's masks from C++, of a bare stream",
        1.5,
        quotients(times["CalcMask"], times["bare stream"]),
        at_least=False,
    )
    epochs = Goal(
        "P5",
        "UpdateEpoch, of a bare unary call",
        1.5,
        quotients(times["UpdateEpoch"], times["bare unary"]),
        at_least=False,
    )
    title = "All masks of LeNet (1.7 MB) in one call from C++"
    return [
        Benchmark(title, lines(streams, "bare stream"), goals=[masks]),
        Benchmark("A unary call from C++", lines(unaries, "bare unary"), goals=[epochs]),
    ]


def median(call):
    """A call that measures `call` several times and returns the median."""
    return lambda: statistics.median(seconds(call) for _ in range(CALLS))
