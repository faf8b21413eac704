"""compose.yaml, Dockerfile and the unit agree with each other, and with what they name.

They are not run here: that takes a container engine, or systemd. tests/deployment.sh builds and
runs the image.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from servers import ROOT, server_binary

COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
OF_THE_OPERATOR = {"./certificate.pem"}


def instruction(name: str) -> str:
    """What the last of these in the Dockerfile says."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]


def flags() -> list[str]:
    """Of the server, as compose.yaml starts it."""
    _, *image = json.loads(instruction("ENTRYPOINT"))
    return image + SERVICES["server"]["command"]


def mounts(service: str) -> list[list[str]]:
    return [volume.split(":") for volume in SERVICES[service].get("volumes", [])]


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_mounts_is_there(service: str) -> None:
    for source, *_ in mounts(service):
        if source.startswith("."):
            assert (ROOT / "deploy" / source).is_file() or source in OF_THE_OPERATOR, source
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_capabilities_and_networks_that_exist(service: str) -> None:
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert set(SERVICES[service]["networks"]) <= set(COMPOSE["networks"])
    assert set(SERVICES[service].get("depends_on", [])) <= set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_take_no_more_than_its_share_of_the_host(service: str) -> None:
    options = SERVICES[service]
    assert options["read_only"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert 0 < options["pids_limit"] <= 1024
    assert re.fullmatch(r"(\$\{[A-Z_]+:-)?\d+g\}?", options["mem_limit"])
    assert set(options["logging"]["options"]) == {"max-size", "max-file"}


def test_grafana_has_no_administrator_and_reaches_no_server() -> None:
    grafana = SERVICES["grafana"]
    assert grafana["environment"] == {
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_AUTH_BASIC_ENABLED": "false",
        "GF_AUTH_DISABLE_LOGIN_FORM": "true",
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
    }
    assert not set(grafana["networks"]) & set(SERVICES["server"]["networks"])
    assert set(grafana["networks"]) & set(SERVICES["prometheus"]["networks"])
    assert all(port.startswith("127.0.0.1:") for port in grafana["ports"])
    # What it writes is not on its read-only root, and what it reads is where it looks.
    assert set(grafana["tmpfs"]) == {"/var/lib/grafana", "/tmp"}
    dashboards = yaml.safe_load((ROOT / "deploy/grafana-dashboards.yml").read_text())
    folder = dashboards["providers"][0]["options"]["path"]
    assert f"{folder}/compression.json" in {target for _, target, *_ in mounts("grafana")}


def test_the_server_is_reached_through_the_proxy_only() -> None:
    assert "ports" not in SERVICES["server"]
    assert SERVICES["server"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_the_root_file_systems_are_read_only_and_the_servers_folders_are_volumes() -> None:
    assert SERVICES["server"]["read_only"]
    assert SERVICES["proxy"]["read_only"]
    volumes = {target for _, target, *_ in mounts("server")}
    assert f"--data_dir={instruction('VOLUME')}" in flags()
    assert instruction("VOLUME") in volumes
    tokens = next(flag for flag in flags() if flag.startswith("--token_file="))
    assert tokens.partition("=")[2].rpartition("/")[0] in volumes


def server_help() -> str:
    return subprocess.run(
        [server_binary(), "--help"], check=False, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout


def unit() -> dict[str, list[str]]:
    """The settings of the unit, in their order."""
    settings: dict[str, list[str]] = {}
    for line in (ROOT / "deploy/compression-server.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def test_the_server_knows_its_flags() -> None:
    shown = server_help()
    _, *of_the_unit = unit()["ExecStart"][0].split()
    for flag in flags() + of_the_unit:
        if not flag.startswith("--flagfile="):
            assert f"{flag.partition('=')[0]} (" in shown, flag


def test_the_unit_lets_the_server_take_no_more_than_a_share_of_the_host() -> None:
    settings = unit()
    assert settings["MemoryMax"] == ["80%"], "it is the last to be killed for memory"
    assert settings["OOMScoreAdjust"] == ["-100"]
    assert settings["TasksMax"] == ["2048"]
    assert settings["LimitCORE"] == ["0"]
    assert settings["UMask"] == ["0077"]
    assert settings["StateDirectoryMode"] == ["0700"]


def test_the_unit_says_what_shared_memory_for_other_users_takes() -> None:
    text = (ROOT / "deploy/compression-server.service").read_text()
    comment = re.search(r"((?:# .*\n)+)PrivateUsers=yes\n", text)
    assert comment is not None
    assert "drop this line for --shm_uids" in comment[1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_can_read_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "compression-server.service"
    text = (ROOT / "deploy/compression-server.service").read_text()
    copy.write_text(text.replace("/usr/local/bin/compression_server", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line for line in done.stderr.splitlines() if "compression-server" in line] == []


def test_the_proxy_waits_longer_than_the_server_for_clients_that_stall() -> None:
    haproxy = (ROOT / "deploy/haproxy.cfg").read_text()
    limit = re.search(r"\.else\n  timeout client (\d+)s\n", haproxy)
    stall = re.search(r"--stall_timeout [^;]*?; *default: (\d+)m;", server_help())
    assert limit is not None
    assert stall is not None
    assert int(limit[1]) > 60 * int(stall[1]), stall[0]


def test_whoever_calls_another_service_names_its_port() -> None:
    listens = [flag for flag in flags() if "listen=" in flag]
    grpc_port, metrics_port = (flag.rpartition(":")[2] for flag in listens)
    haproxy = (ROOT / "deploy/haproxy.cfg").read_text()
    assert f" server:{grpc_port} proto h2 check port {metrics_port} " in haproxy
    (scraped,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    assert scraped["dns_sd_configs"] == [
        {"names": ["server"], "type": "A", "port": int(metrics_port)}
    ]
    assert f"http://127.0.0.1:{metrics_port}/readyz" in instruction("HEALTHCHECK")
    assert set(instruction("EXPOSE").split()) == {grpc_port, metrics_port}
    proxy_port = re.search(r"bind :(\d+) ", haproxy)
    assert proxy_port is not None
    assert SERVICES["proxy"]["ports"] == [f"50051:{proxy_port[1]}"]
