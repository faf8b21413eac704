"""Servers that the kernel gives less memory than a tensor takes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import nni_compression as nc
from metered import eventually
from servers import ServerProcess
from usage import FRUGAL_HEAP, status

pytestmark = pytest.mark.skipif(shutil.which("prlimit") is None, reason="there is no prlimit")

MEGABYTE = 1 << 20
ROOM = 96 * MEGABYTE  # beyond what an idle server maps
SMALL = nc.Layer("small", "Linear", (64, 64))
LARGE = nc.Layer("large", "Linear", (1024, 1024, 32))  # 128 MiB
WEIGHTS = {
    layer.name: np.random.default_rng(5).normal(size=layer.shape).astype(np.float32)
    for layer in (SMALL, LARGE)
}


def memory(server: ServerProcess, name: str) -> int:
    """Bytes."""
    return status(server.process.pid, name) << 10


@pytest.fixture(scope="module")
def limit() -> list[str]:
    """The command that lets what follows it map ROOM more than an idle server."""
    with ServerProcess(environment=FRUGAL_HEAP) as idle:
        return ["prlimit", f"--as={memory(idle, 'VmSize') + ROOM}", "--"]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        pytest.param("64M", "memory budget", id="a budget that the tensor is above"),
        pytest.param("4G", "out of memory", id="a budget that the kernel does not have"),
    ],
)
def test_a_tensor_that_is_too_large_costs_only_its_call(
    limit: list[str], budget: str, message: str
) -> None:
    with (
        ServerProcess(
            f"--memory_budget={budget}", wrapper=limit, environment=FRUGAL_HEAP
        ) as server,
        nc.Client(server.address, timeout=1) as client,
    ):
        beside = client.bind_model("level", [{"sparsity": 0.5}], [SMALL])
        session = client.bind_model("level", [{"sparsity": 0.5}], [SMALL, LARGE])
        expected = beside.calc_mask({"small": WEIGHTS["small"]})["small"]
        before = memory(server, "RssAnon")
        with pytest.raises(nc.ResourceExhaustedError, match=message):  # until it stops trying
            session.calc_mask({"large": WEIGHTS["large"]})
        for each in (session, beside):
            mask = each.calc_mask({"small": WEIGHTS["small"]})["small"]
            assert mask.bits.tobytes() == expected.bits.tobytes()
        assert eventually(lambda: memory(server, "RssAnon") < before + 16 * MEGABYTE)
        assert session.stale == {"large"}
        assert server.stop() == 0


def test_the_memory_of_weights_does_not_stay_with_the_reports_of_their_sessions() -> None:
    """The heap is as it is in production, where small blocks that live on come between weights."""
    layers = [nc.Layer("a", "Linear", (1024, 1024)), nc.Layer("b", "Linear", (1024, 350))]
    random = np.random.default_rng(5)
    model = {each.name: random.normal(size=each.shape).astype(np.float32) for each in layers}
    with ServerProcess("--cache_budget=0") as server, nc.Client(server.address) as client:

        def sessions(count: int) -> int:
            """Binds so many, one after the other; what is resident then."""
            for _ in range(count):
                with client.bind_model("level", [{"sparsity": 0.5}], layers) as session:
                    session.calc_mask(model)
            return memory(server, "RssAnon")

        before = sessions(10)
        assert sessions(100) < before + 100 * MEGABYTE  # of 540 that came
