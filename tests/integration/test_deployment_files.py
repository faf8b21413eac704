"""deploy/compose.yaml and deploy/Dockerfile agree with each other, and with what they name.

They are not run here: that takes a container engine. tests/deployment.sh builds and runs the image.
"""

from __future__ import annotations

import json
import re
import subprocess

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


def test_the_server_knows_its_flags() -> None:
    shown = subprocess.run(
        [server_binary(), "--help"], check=False, stdout=subprocess.PIPE, text=True, timeout=60
    )
    for flag in flags():
        assert f"{flag.partition('=')[0]} (" in shown.stdout, flag


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
