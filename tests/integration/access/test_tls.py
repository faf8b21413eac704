"""Encrypted connections, and certificates of clients."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

import nni_compression as nc
from certificates import Authority, Certificate
from metered import eventually
from servers import ServerProcess, add_tenant, compressionctl

LAYER = nc.Layer("fc", "Linear", (512, 256))  # large enough for shared memory
CONFIG = [{"sparsity": 0.5}]
WEIGHT = np.random.default_rng(6).normal(size=LAYER.shape).astype(np.float32)
HERE = "DNS:localhost,IP:127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "theirs")


def flags(certificate: Certificate) -> tuple[str, str]:
    return f"--tls_certificate={certificate.certificate}", f"--tls_key={certificate.key}"


@pytest.fixture(scope="module")
def encrypted(authority: Authority) -> Iterator[ServerProcess]:
    with ServerProcess(*flags(authority.issue("server", names=HERE))) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that asks for certificates."""
    side = tmp_path_factory.mktemp("side") / "socket"
    asked = f"--tls_client_ca={authority.certificate}"
    certificate = authority.issue("server", names=HERE)
    with ServerProcess(*flags(certificate), asked, f"--shm_socket={side}") as server:
        yield server


def client_of(server: ServerProcess, tls: object, **options: object) -> nc.Client:
    return nc.Client(server.address, tls=tls, connect_timeout=2, **options)  # type: ignore[arg-type]


def with_certificate(authority: Authority, certificate: Certificate) -> nc.Tls:
    return nc.Tls(authority.certificate, certificate.certificate, certificate.key)


def test_calls_go_over_an_encrypted_connection(
    encrypted: ServerProcess, authority: Authority
) -> None:
    with client_of(encrypted, authority.certificate) as client:
        assert client.health() == "SERVING"
        with client.bind_model("level", CONFIG, [LAYER]) as session:
            assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == WEIGHT.size // 2
        assert pickle.loads(pickle.dumps(client)).health() == "SERVING"


def test_the_settings_come_from_the_environment(
    encrypted: ServerProcess, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_COMPRESSION_TLS_CA", str(authority.certificate))
    with client_of(encrypted, None) as client:
        assert client.health() == "SERVING"
    monkeypatch.setenv("NNI_COMPRESSION_TLS", "0")
    with client_of(encrypted, None) as client, pytest.raises(nc.UnavailableError):
        client.health()
    monkeypatch.setenv("NNI_COMPRESSION_TLS", "yes")
    with pytest.raises(nc.InvalidArgumentError, match="must be 0 or 1"):
        nc.Client()


def test_an_open_connection_to_a_server_with_tls_says_what_is_wrong(
    encrypted: ServerProcess,
) -> None:
    with (
        client_of(encrypted, False) as client,
        pytest.raises(nc.UnavailableError, match=r"NNI_COMPRESSION_TLS"),
    ):
        client.health()


def test_an_encrypted_connection_to_a_server_without_tls_says_what_may_be_wrong(
    server: ServerProcess, authority: Authority
) -> None:
    with (
        client_of(server, authority.certificate) as client,
        pytest.raises(nc.UnavailableError, match="not use TLS"),
    ):
        client.health()


def test_servers_of_another_authority_or_name_or_time_are_not_believed(
    encrypted: ServerProcess, authority: Authority, stranger: Authority
) -> None:
    with (
        client_of(encrypted, stranger.certificate) as client,
        pytest.raises(nc.UnavailableError, match="another authority"),
    ):
        client.health()
    for certificate in (
        authority.issue("server", names="DNS:elsewhere.example"),
        authority.issue("server", names=HERE, days=-1),
    ):
        with (
            ServerProcess(*flags(certificate)) as wrong,
            client_of(wrong, authority.certificate) as client,
            pytest.raises(nc.UnavailableError),
        ):
            client.health()


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with (
        nc.Client(tls=tmp_path / "none") as client,
        pytest.raises(nc.InvalidArgumentError, match=r"tls\.ca cannot be read"),
    ):
        client.health()
    with pytest.raises(nc.InvalidArgumentError, match="both or neither"):
        nc.Tls(certificate="c")
    with pytest.raises(nc.InvalidArgumentError, match="it must be True"):
        nc.Client(tls=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("us", ""),
        ("other", "DNS:us"),
        ("other", "DNS:other,URI:us"),
        ("other", "URI:spiffe://example/team,DNS:x"),
    ],
)
def test_the_certificates_name_is_the_tenant(
    mutual: ServerProcess, authority: Authority, name: str, names: str
) -> None:
    us = with_certificate(authority, authority.issue(name, names=names))
    them = with_certificate(authority, authority.issue("them"))
    with (
        client_of(mutual, us) as ours,
        client_of(mutual, them) as theirs,
        ours.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        tenant = "spiffe://example/team" if "spiffe" in names else "us"
        assert f"session={session.id} tenant={tenant} " in mutual.log()
        assert [info.id for info in ours.sessions()] == [session.id]
        assert theirs.sessions() == []
        with pytest.raises(nc.NotFoundError):
            theirs.join(session.id)


def test_clients_without_a_valid_certificate_do_not_get_in(
    mutual: ServerProcess, authority: Authority, stranger: Authority
) -> None:
    forged = stranger.issue("us")
    expired = authority.issue("us", days=-1)
    for tls in (
        nc.Tls(authority.certificate),
        with_certificate(authority, forged),
        with_certificate(authority, expired),
    ):
        with client_of(mutual, tls) as client, pytest.raises(nc.UnavailableError):
            client.health()


@pytest.mark.parametrize("names", ["DNS:us,DNS:them", "URI:us,URI:them", "DNS:*.us"])
def test_certificates_that_name_no_tenant_are_refused(
    mutual: ServerProcess, authority: Authority, names: str
) -> None:
    tls = with_certificate(authority, authority.issue("us", names=names))
    with client_of(mutual, tls) as client, pytest.raises(nc.UnauthenticatedError):
        client.health()


def test_where_only_certificates_count_no_token_does(
    mutual: ServerProcess, authority: Authority
) -> None:
    tls = with_certificate(authority, authority.issue("us"))
    with (
        client_of(mutual, tls, token="guess") as client,
        pytest.raises(nc.UnauthenticatedError, match="not valid"),
    ):
        client.health()


def install(certificate: Certificate, folder: Path) -> None:
    """Puts a certificate and its key in place as one: a link to their folder changes."""
    version = Path(tempfile.mkdtemp(dir=folder))
    shutil.copy(certificate.certificate, version / "certificate")
    shutil.copy(certificate.key, version / "key")
    (folder / "next").symlink_to(version.name)
    (folder / "next").replace(folder / "current")


def test_certificates_are_replaced_while_sessions_live(
    authority: Authority, tmp_path: Path
) -> None:
    successor = Authority(tmp_path, "successor")
    install(authority.issue("server", names=HERE), tmp_path)
    current = tmp_path / "current"
    places = Certificate(current / "certificate", current / "key")
    with (
        ServerProcess(*flags(places)) as server,
        client_of(server, authority.certificate) as before,
        before.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        install(successor.issue("server", names=HERE), tmp_path)
        deadline = time.monotonic() + 60
        while True:  # the server looks at its files once a second
            try:
                with client_of(server, successor.certificate) as after:
                    assert after.health() == "SERVING"
                    assert [info.id for info in after.sessions()] == [session.id]
                break
            except nc.UnavailableError:
                assert time.monotonic() < deadline, server.log()
        assert session.calc_mask({"fc": WEIGHT})["fc"].pruned == WEIGHT.size // 2
        assert before.stats.retries == 0


def copied(certificate: Certificate, folder: Path) -> Certificate:
    """Copies of the files, which a test can damage."""
    places = Certificate(folder / "certificate", folder / "key")
    shutil.copy(certificate.certificate, places.certificate)
    shutil.copy(certificate.key, places.key)
    return places


def errors(server: ServerProcess) -> list[str]:
    """What the log says about certificates that were not read."""
    return [line for line in server.log().splitlines() if "certificates_not_read" in line]


def remove(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()


def half(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2])


def huge(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, empty, half, huge, folder_instead, pipe])
def test_files_that_are_damaged_change_nothing(
    authority: Authority, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    places = copied(authority.issue("server", names=HERE), tmp_path)
    clients = tmp_path / "clients"
    shutil.copy(authority.certificate, clients)
    ours = with_certificate(authority, authority.issue("us"))
    with (
        ServerProcess(*flags(places), f"--tls_client_ca={clients}") as server,
        client_of(server, ours) as before,
    ):
        assert before.health() == "SERVING"
        for path in (places.certificate, places.key, clients):
            whole = path.read_bytes()
            seen = len(errors(server))
            damage(path)
            assert eventually(lambda seen=seen: len(errors(server)) > seen)  # type: ignore[misc]
            assert str(path) in errors(server)[-1]
            with client_of(server, ours) as during:
                assert during.health() == "SERVING"
            assert before.health() == "SERVING"
            if path.exists():
                remove(path)
            path.write_bytes(whole)
        # What is whole again counts.
        successor = Authority(tmp_path, "successor")
        copied(successor.issue("server", names=HERE), tmp_path)
        theirs = nc.Tls(successor.certificate, ours.certificate, ours.key)

        def replaced() -> bool:
            with client_of(server, theirs) as after, contextlib.suppress(nc.UnavailableError):
                return after.health() == "SERVING"
            return False

        assert eventually(replaced), server.log()
        assert before.stats.retries == 0
        assert server.stop() == 0


def test_a_certificate_waits_for_its_key(authority: Authority, tmp_path: Path) -> None:
    successor = Authority(tmp_path, "successor")
    places = copied(authority.issue("server", names=HERE), tmp_path)
    new = successor.issue("server", names=HERE)
    with ServerProcess(*flags(places)) as server:
        shutil.copy(new.certificate, places.certificate)
        assert eventually(lambda: errors(server))
        assert "is not the key of tls_certificate" in errors(server)[-1]
        with client_of(server, authority.certificate) as client:
            assert client.health() == "SERVING"
        shutil.copy(new.key, places.key)
        assert eventually(lambda: server.log().count("certificates_read") == 2)
        with client_of(server, successor.certificate) as client:
            assert client.health() == "SERVING"


def test_a_certificate_that_has_expired_and_an_open_key_are_logged(
    authority: Authority, tmp_path: Path
) -> None:
    places = copied(authority.issue("server", names=HERE, days=-1), tmp_path)
    places.key.chmod(0o644)
    with ServerProcess(*flags(places)) as server:
        assert f"level=error event=certificate_not_valid path={places.certificate}" in server.log()
        assert f"event=key_readable_for_everybody path={places.key}" in server.log()
    places = copied(authority.issue("server", names=HERE), tmp_path)
    places.key.chmod(0o640)
    with ServerProcess(*flags(places)) as server:
        assert "certificate_not_valid" not in server.log()
        assert "key_readable" not in server.log()


def test_tokens_and_shared_memory_work_over_tls(authority: Authority, tmp_path: Path) -> None:
    tokens, side = tmp_path / "tokens", tmp_path / "side"
    token = add_tenant(tokens, "us")
    certificate = authority.issue("server", names=HERE)
    options = (f"--token_file={tokens}", f"--shm_socket={side}")
    with (
        ServerProcess(*flags(certificate), *options) as server,
        client_of(server, authority.certificate, token=token, shm_socket=str(side)) as client,
        client.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        session.calc_mask({"fc": WEIGHT})
        assert client.stats.bytes_sent < WEIGHT.nbytes // 10


def test_no_shared_memory_is_offered_where_it_could_not_name_tenants(
    authority: Authority, tmp_path: Path
) -> None:
    certificate, us = authority.issue("server", names=HERE), authority.issue("us")
    asked = f"--tls_client_ca={authority.certificate}"
    for tokens, offered in (((), 0), ((f"--token_file={tmp_path / 'tokens'}",), 1)):
        add_tenant(tmp_path / "tokens", f"tenant-{offered}")
        with (
            ServerProcess(
                *flags(certificate),
                asked,
                "--shm_socket=auto",
                *tokens,
                environment={"XDG_RUNTIME_DIR": str(tmp_path)},
            ) as server,
            client_of(server, with_certificate(authority, us)) as client,
        ):
            assert client.health() == "SERVING"
            assert len(list(tmp_path.rglob("*.shm"))) == offered


def test_compressionctl_speaks_tls(
    mutual: ServerProcess,
    encrypted: ServerProcess,
    authority: Authority,
    stranger: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def health(server: ServerProcess, *flags: object) -> str:
        arguments = (f"--server={server.address}", "--connect_timeout=2s", *map(str, flags))
        return compressionctl(*arguments, "health")

    ours = f"--tls_ca={authority.certificate}"
    certificate = authority.issue("us")
    own = (f"--tls_certificate={certificate.certificate}", f"--tls_key={certificate.key}")
    assert "is serving" in health(encrypted, ours)
    assert "is serving" in health(mutual, ours, *own)
    for flags, why in (
        ((), "NNI_COMPRESSION_TLS"),
        ((f"--tls_ca={stranger.certificate}",), "another authority"),
        ((ours, own[0]), "both or neither"),
        (("--tls_ca=/none",), "tls.ca '/none' cannot be read"),
    ):
        with pytest.raises(AssertionError, match=why):
            health(encrypted, *flags)
    with pytest.raises(AssertionError, match="UNAVAILABLE"):
        health(mutual, ours)
    monkeypatch.setenv("NNI_COMPRESSION_TLS_CA", str(authority.certificate))
    assert "is serving" in health(encrypted)
    monkeypatch.setenv("NNI_COMPRESSION_TLS", "0")
    with pytest.raises(AssertionError):
        health(encrypted)
