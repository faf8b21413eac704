"""What small calls cost beside the least that gRPC needs for as many bytes."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Iterator

import grpc
import numpy

import nni_compression as nc
import peers
from harness import Benchmark, Goal, alternate, lines, quotients, seconds
from small_models import LENET

CALLS = 50
ROUNDS = 9
TURNS = 3  # of whole runs of the program


def run(client: nc.Client) -> list[Benchmark]:
    with peers.bare_grpc() as bare:
        return [from_python(client, bare), *from_cpp(bare), with_metrics(bare)]


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


def with_metrics(bare: str) -> Benchmark:
    """A unary call to servers that are alike, but one is asked for its metrics all the time."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        port_file = f"{folder}/port"
        flags = ("--metrics_listen=127.0.0.1:0", f"--metrics_port_file={port_file}")
        addresses = {
            "not asked for metrics": stack.enter_context(peers.server())[0],
            "asked ten times a second": stack.enter_context(peers.server(*flags))[0],
        }
        with open(port_file, encoding="utf-8") as file:
            stack.enter_context(scraping(f"http://127.0.0.1:{int(file.read())}/metrics"))
        times: dict[str, list[float]] = {name: [] for name in addresses}
        for _ in range(TURNS):
            for name, address in addresses.items():
                times[name] += peers.native("small", bare, address)["UpdateEpoch"]
    return Benchmark("A unary call from C++, beside Prometheus", lines(times, next(iter(times))))


@contextlib.contextmanager
def scraping(url: str) -> Iterator[None]:
    """Reads the page ten times a second."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.1):
            with urllib.request.urlopen(url, timeout=10) as page:
                page.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def median(call):
    """A call that measures `call` several times and returns the median."""
    return lambda: statistics.median(seconds(call) for _ in range(CALLS))
