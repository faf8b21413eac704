"""What a small call costs beside the least that a unary call costs on this server."""

from __future__ import annotations

import os

import grpc

import nni_compression as nc
from harness import Benchmark, alternate, lines

CALLS = 200
ROUNDS = 7


def run(client: nc.Client) -> list[Benchmark]:
    layers = [nc.Layer(name=f"fc{i}", op_type="Linear", shape=(100, 100)) for i in range(50)]
    rule = {"final_sparsity": 0.8, "end_epoch": 1_000_000}
    with (
        grpc.insecure_channel(os.environ["NNI_COMPRESSION_SERVER"]) as channel,
        client.bind_model("agp", [rule], layers=layers, framework="pytorch") as session,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")

        def health() -> None:
            for _ in range(CALLS):
                check(b"", metadata=[("nni-route", "benchmark")])

        def update_epoch() -> None:
            for epoch in range(CALLS):
                session.update_epoch(epoch)

        times = alternate({"health check, bare": health, "UpdateEpoch": update_epoch}, ROUNDS)
    scaled = lines(times, "health check, bare", scale=1e3 / CALLS)
    return [Benchmark("A small call, 50 layers stale in the answer", scaled)]
