"""Servers that are short of memory or have other numbers of threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
from servers import ServerProcess

MEGABYTE = 1 << 20


def answers(client: nc.Client, weights: dict[str, np.ndarray[Any, Any]]) -> list[bytes]:
    """The bytes of what every algorithm answers for these weights."""
    found = []
    layers = [nc.Layer(name, "Linear", w.shape, w.dtype) for name, w in weights.items()]
    for algorithm in client.algorithms():
        with client.bind_model(algorithm.name, [algorithm.example], layers, epoch=3) as session:
            if algorithm.kind == "pruner":
                statistics = {
                    name: {
                        kind: nc.StatisticPart(
                            np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
                        )
                        for kind, shape in layer.statistics.items()
                    }
                    for name, layer in session.plan.layers.items()
                }
                if any(statistics.values()):
                    session.add_statistics(statistics)
                found += [mask.bits.tobytes() for mask in session.calc_mask(weights).values()]
            else:
                for q in session.quantize_weight(weights).values():
                    if q.unquantized:  # it is the trainer that quantizes
                        assert algorithm.name == "custom_quantizer"
                        continue
                    assert q.codes is not None
                    found += [q.codes.tobytes(), q.dequantize().tobytes()]
    return found


def test_the_same_bits_on_1_2_and_8_threads() -> None:
    random = np.random.default_rng(51)
    weights = {
        "large": random.normal(size=(101, 9901)).astype(np.float32),
        "ties": random.integers(-3, 4, (3, 100_001)).astype(np.float32),
        "half": random.normal(size=(13, 23_077)).astype(np.float16),
        "double": random.normal(size=(1000, 513)),
    }
    seen = []
    for threads in (1, 2, 8):
        server = ServerProcess(f"--compute_threads={threads}")
        try:
            with nc.Client(server.address) as client:
                seen.append(answers(client, weights))
        finally:
            server.kill()
    assert seen[0] == seen[1] == seen[2]


def available_memory() -> int:
    """Bytes that the machine could give."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024


@pytest.mark.long
@pytest.mark.skipif(available_memory() < 10 << 30, reason="needs 10 GiB of free memory")
def test_a_tensor_of_six_gigabytes_arrives_with_every_element_in_its_place() -> None:
    # More bytes than 32 bits count, more elements than 31 bits do; zeros take no memory here.
    weight = np.zeros(3_200_000_000, np.float16)
    weight[10] = weight[-1] = 1
    pruned = weight.size // 4 * 3
    server = ServerProcess("--memory_budget=8G")
    try:
        with nc.Client(server.address) as client:
            layers = [nc.Layer("w", "Linear", weight.shape, weight.dtype)]
            with client.bind_model("level", [{"sparsity": 0.75}], layers) as session:
                mask = session.calc_mask({"w": weight})["w"]
                assert session.stats.bytes_sent > weight.nbytes
    finally:
        server.kill()
    # Of equal magnitudes the first go, and so all up to this index but the one that is larger.
    assert mask.pruned == pruned
    whole = (pruned + 1) // 8
    assert mask.bits[:2].tolist() == [0, 1 << 2]
    assert not mask.bits[2:whole].any()
    assert mask.bits[whole] == 0xFF & ~((1 << (pruned + 1) % 8) - 1)
    assert (mask.bits[whole + 1 :] == 0xFF).all()


class TestLittleMemory:
    BUDGET = 32 * MEGABYTE

    @pytest.fixture(scope="class")
    def small(self) -> Any:
        server = ServerProcess(f"--memory_budget={self.BUDGET}")
        yield server
        server.kill()

    def test_a_tensor_that_can_never_fit_is_refused_at_once(self, small: ServerProcess) -> None:
        weight = np.ones(self.BUDGET // 4 + 1, np.float32)
        with nc.Client(small.address) as client:
            layers = [nc.Layer("big", "Linear", weight.shape), nc.Layer("fc", "Linear", (4,))]
            with client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
                start = time.monotonic()
                with pytest.raises(nc.ResourceExhaustedError):
                    session.calc_mask({"big": weight})
                assert time.monotonic() - start < 10
                assert session.stats.retries == 0
                assert session.stats.bytes_sent < weight.nbytes
                assert session.calc_mask({"fc": weight[:4]})["fc"].pruned == 2

    def test_calls_that_fit_one_after_another_wait_for_their_turn(
        self, small: ServerProcess
    ) -> None:
        weights = [np.full(3 * MEGABYTE, i + 1, np.float32) for i in range(6)]  # 12 MiB each

        def prune(weight: np.ndarray[Any, Any]) -> int:
            layers = [nc.Layer(name, "Linear", weight.shape) for name in "ab"]
            client = nc.Client(small.address, timeout=120)
            with client, client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
                masks = session.calc_mask({"a": weight, "b": weight})
            return masks["a"].pruned + masks["b"].pruned

        with ThreadPoolExecutor(len(weights)) as pool:
            assert list(pool.map(prune, weights)) == [3 * MEGABYTE] * len(weights)

    def test_memory_goes_back_after_calls_that_fail(self, small: ServerProcess) -> None:
        weight = np.ones(5 * MEGABYTE, np.float32)  # 20 MiB
        weight[-1] = np.nan
        with nc.Client(small.address, timeout=60) as client:
            layers = [nc.Layer("w", "Linear", weight.shape)]
            with client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
                for _ in range(5):  # would not fit twice
                    with pytest.raises(nc.InvalidArgumentError, match=str(weight.size - 1)):
                        session.calc_mask({"w": weight})
                weight[-1] = 1
                assert session.calc_mask({"w": weight})["w"].pruned == weight.size // 2


@pytest.mark.skipif(available_memory() < 6 << 30, reason="needs 6 GiB of free memory")
@pytest.mark.parametrize("connections", [1, 2])
def test_small_calls_are_answered_while_a_gigabyte_is_on_its_way(connections: int) -> None:
    # One that had to wait for an upload's end would see as many uploads as there are small calls.
    weight = np.zeros(1 << 28, np.float32)  # zeros take no memory here
    small = {"fc": np.arange(400_000, dtype=np.float32), "conv": np.ones(500, np.float32)}
    layers = [nc.Layer(name, "Linear", w.shape) for name, w in small.items()]
    rule = [{"sparsity": 0.5}]
    calls = uploads = 0
    over = threading.Event()

    def upload(session: nc.Session) -> None:
        nonlocal uploads
        while not over.is_set():
            session.calc_mask({"w": weight})
            uploads += 1

    server = ServerProcess("--memory_budget=4G")
    try:
        with nc.Client(server.address) as client, nc.Client(server.address) as other:
            large = client.bind_model("level", rule, [nc.Layer("w", "Linear", weight.shape)])
            with ThreadPoolExecutor(1) as pool:
                uploading = pool.submit(upload, large)
                try:
                    while calls < 30 or large.stats.bytes_sent < 200 * MEGABYTE:
                        near = client if connections == 1 else other
                        with near.bind_model("level", rule, layers) as session:
                            masks = session.calc_mask(small)
                        assert [mask.pruned for mask in masks.values()] == [200_000, 250]
                        calls += 1
                        assert calls < 10_000, "the upload does not go on"
                    finished = uploads
                finally:
                    over.set()
                uploading.result()
    finally:
        server.kill()
    assert 4 * finished < calls
