"""Metrics, probes and logs of a real server; dashboard and alerts against the real Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nni_compression as nc
from metered import Metered, eventually, get
from servers import ROOT, server_binary

LAYER = nc.Layer("fc", "Linear", (300, 1000))
CONFIG = [{"sparsity": 0.5}]
WEIGHT = np.random.default_rng(3).normal(size=LAYER.shape).astype(np.float32)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Metered]:
    with Metered(tmp_path) as metered:
        yield metered


def test_calls_are_counted_by_method_and_status(server: Metered) -> None:
    before = server.samples()
    assert before['nni_compression_calls_total{code="OK",method="CalcMask"}'] == 0
    with nc.Client(server.address) as client:
        session = client.bind_model("level", CONFIG, [LAYER])
        session.calc_mask({"fc": WEIGHT})
        with pytest.raises(nc.NotFoundError):
            client.join("none")
        with pytest.raises(nc.InvalidArgumentError):
            client.bind_model("level", [{"sparsity": 2}], [LAYER])
        after = server.samples()
        assert after['nni_compression_sessions{algorithm="level",state="active"}'] == 1
        session.close()
    assert after['nni_compression_calls_total{code="OK",method="BindModel"}'] == 1
    assert after['nni_compression_calls_total{code="INVALID_ARGUMENT",method="BindModel"}'] == 1
    assert after['nni_compression_calls_total{code="OK",method="CalcMask"}'] == 1
    assert after['nni_compression_call_seconds_count{method="CalcMask"}'] == 1
    received = after['nni_compression_tensor_received_bytes_total{method="CalcMask"}']
    assert received == WEIGHT.nbytes
    assert after['nni_compression_tensor_sent_bytes_total{method="CalcMask"}'] == WEIGHT.size / 8
    assert after['nni_compression_compute_seconds_total{algorithm="level"}'] > 0
    assert after["nni_compression_memory_reserved_bytes"] > 0
    assert after["nni_compression_memory_budget_bytes"] > 1 << 20
    closed = 'nni_compression_sessions{algorithm="level",state="closed"}'
    assert server.samples()[closed] == 1
    assert set(server.samples()) == set(before) | {closed}, "series came by calls"


def test_weights_that_are_found_by_their_digest_are_counted(server: Metered) -> None:
    layer = nc.Layer("fc", "Linear", (1200, 1000))  # more than one message, so clients ask for it
    weight = np.random.default_rng(3).normal(size=layer.shape).astype(np.float32)
    with nc.Client(server.address) as client:

        def hits() -> float:
            """Sends the weight once more; it is found once the server has hashed it."""
            with client.bind_model("level", CONFIG, [layer]) as session:
                session.calc_mask({"fc": weight})
            return server.samples()["nni_compression_weight_cache_hits_total"]

        assert eventually(hits) == 1
    samples = server.samples()
    # With what finding it takes.
    assert samples["nni_compression_weight_cache_bytes"] == weight.nbytes + 1024
    assert samples["nni_compression_weight_cache_weights"] == 1


def test_a_plugin_that_hangs_is_refused_in_the_metrics_and_in_the_log(tmp_path: Path) -> None:
    plugins = server_binary().parents[1] / "tests/compression/plugins/misbehaving"
    flags = [f"--plugin_dir={plugins}", "--algorithm_timeout=1s"]

    def refused(server: Metered) -> set[str]:
        """The algorithms whose metric is 1."""
        name = "nni_compression_algorithm_refused{"
        found = {n: value for n, value in server.samples().items() if n.startswith(name)}
        assert {f'{name}algorithm="{a}"}}' for a in ("hangs", "throws", "level")} <= set(found)
        assert set(found.values()) <= {0, 1}
        return {n.split('"')[1] for n, value in found.items() if value == 1}

    def logged(server: Metered) -> list[str]:
        return [line for line in server.log().splitlines() if "event=algorithm_refused" in line]

    with Metered(tmp_path, *flags) as server, nc.Client(server.address) as client:
        throwing = client.bind_model("throws", [{}], [LAYER])
        with pytest.raises(nc.InternalError):
            throwing.calc_mask({"fc": WEIGHT})
        assert refused(server) == set()
        assert logged(server) == []
        hanging = client.bind_model("hangs", [{}], [LAYER])
        with pytest.raises(nc.DeadlineExceededError, match="the algorithm is disabled"):
            hanging.calc_mask({"fc": WEIGHT})
        with pytest.raises(nc.FailedPreconditionError, match="until the server is restarted"):
            hanging.calc_mask({"fc": WEIGHT})
        assert refused(server) == {"hangs"}
        (line,) = logged(server)
        assert 'algorithm=hangs on="layer' in line


def test_names_that_callers_choose_are_no_labels(server: Metered) -> None:
    evil = 'x"} 1\nforged{a="'
    with nc.Client(server.address) as client:
        with pytest.raises(nc.InvalidArgumentError):
            client.bind_model(evil, CONFIG, [LAYER])
        client.bind_model("level", CONFIG, [LAYER], labels={"run": evil})
    text = server.get("/metrics")[1]
    assert "forged" not in text
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/nni.compression.v1.CompressionService/Forged")(b"")
    assert "Forged" not in server.get("/metrics")[1]


def test_probes_need_no_credentials_and_readiness_ends_with_the_drain(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# nobody\n")
    with Metered(tmp_path) as server:
        assert server.get("/livez") == (200, "ok\n")
        assert server.get("/readyz") == (200, "ok\n")
        assert server.get("/nothing")[0] == 404
        # A call that does not end keeps the server draining.
        channel = grpc.insecure_channel(server.address)
        call = channel.stream_stream("/nni.compression.v1.CompressionService/CalcMask")
        release = threading.Event()

        def requests() -> Iterator[bytes]:
            release.wait(60)
            yield from ()

        stream = call(requests())
        assert eventually(lambda: server.samples()["nni_compression_calls_running"] == 1)
        server.process.terminate()
        assert eventually(lambda: server.get("/readyz")[0] == 503)
        assert server.get("/livez")[0] == 200
        assert server.samples()["nni_compression_serving"] == 0
        with nc.Client(server.address) as client:
            assert client.health() == "NOT_SERVING"
        release.set()
        with contextlib.suppress(grpc.RpcError):
            list(stream)
        channel.close()
        assert server.process.wait(30) == 0
    with Metered(tmp_path, f"--token_file={tokens}") as server:
        assert server.get("/readyz")[0] == 200
        assert server.get("/metrics")[0] == 200


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Debian's Prometheus with the rules of deploy/, scraping `target`; its address."""
    config = (ROOT / "deploy/prometheus.yml").read_text()
    config = config.replace("15s", "200ms")
    config = re.sub(
        r"dns_sd_configs:.*", f"static_configs: [{{targets: ['{target}']}}]\n", config, flags=re.S
    )
    shutil.copy(ROOT / "deploy/alerts.yml", folder)
    (folder / "prometheus.yml").write_text(config)
    log_path = folder / "prometheus.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
        )

    def address() -> str | None:
        assert process.poll() is None, log_path.read_text()
        found = re.search(r'msg="Listening on" address=(\S+)', log_path.read_text())
        return found and found[1]

    try:
        found = eventually(address)
        assert eventually(lambda: get(f"http://{found}/-/ready")[0] == 200)
        yield found
    finally:
        process.terminate()
        process.wait()


def query(address: str, expression: str) -> list[Any]:
    """What Prometheus answers; fails where it calls the expression an error."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    status, body = get(url)
    assert status == 200, f"{expression}: {body}"
    result: list[Any] = json.loads(body)["data"]["result"]
    return result


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_query_of_dashboard_and_alerts_has_an_answer(server: Metered, tmp_path: Path) -> None:
    rules = ROOT / "deploy/alerts.yml"
    subprocess.run(["promtool", "check", "rules", rules], check=True, capture_output=True)
    dashboard = json.loads((ROOT / "deploy/dashboard.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    assert len(queries) > 20
    stop = threading.Event()

    def load() -> None:
        with nc.Client(server.address) as client:
            while not stop.is_set():
                session = client.bind_model("level", CONFIG, [LAYER])
                session.calc_mask({"fc": WEIGHT})
                session.update_epoch(1)
                session.close()
                with contextlib.suppress(nc.NotFoundError):
                    client.join("none")

    trainer = threading.Thread(target=load)
    trainer.start()
    try:
        with prometheus(tmp_path, server.metrics_address) as address:
            calls = 'sum(rate(nni_compression_calls_total{code="OK",method="CalcMask"}[1m])) > 0'
            assert eventually(lambda: query(address, calls)), "Prometheus does not see the load"
            for text in queries:
                expression = text.replace("$__rate_interval", "1m").replace("$instance", ".*")
                assert "$" not in expression
                assert query(address, expression), f"no series: {expression}"
            # In peace an alert's condition has no series, but the metrics that it is about do.
            groups = json.loads(get(f"http://{address}/api/v1/rules")[1])["data"]["groups"]
            alerts = [rule for group in groups for rule in group["rules"]]
            assert len(alerts) == rules.read_text().count("- alert:")
            for alert in alerts:
                query(address, alert["query"])
                names = re.findall(r"\b(?:nni_compression|process)_\w+|\bup\b", alert["query"])
                assert names
                for name in names:
                    assert query(address, name), f"{alert['name']}: there is no {name}"
            ready = 'ALERTS{alertstate="firing"}'
            assert query(address, ready) == []
    finally:
        stop.set()
        trainer.join()


def test_every_metric_is_documented(server: Metered) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    names = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics")[1], re.M))
    assert names
    assert {name for name in names if f"`{name}" not in page} == set()
    written = set(re.findall(r"`((?:nni_compression|process)_[a-z_]+)[{`]", page))
    assert written <= names
