"""nni-compression doctor: each thing that can be wrong is named, with what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import nni_compression as nc
from certificates import Authority, Certificate
from nni_compression.__main__ import main
from nni_compression.doctor import Finding, diagnose
from servers import ScriptedServer, ServerProcess, add_tenant

SOURCES = Path(nc.__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("NNI_COMPRESSION_") and not name.endswith("_BINARY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nni-doctor-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "test authority")


@pytest.fixture(scope="module")
def tls_server(authority: Authority) -> Iterator[ServerProcess]:
    certificate = authority.issue("server", names="DNS:localhost,IP:127.0.0.1")
    with ServerProcess(*tls_flags(certificate)) as process:
        yield process


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_COMPRESSION_TLS_CA", str(authority.certificate))


def tls_flags(certificate: Certificate) -> list[str]:
    return [f"--tls_certificate={certificate.certificate}", f"--tls_key={certificate.key}"]


def findings(server: str) -> dict[str, Finding]:
    return {finding.item: finding for finding in diagnose(server)}


def the_error(server: str) -> Finding:
    """The one error, which ends the diagnosis and comes with a remedy."""
    *others, last = diagnose(server)
    assert [finding.state for finding in others].count("error") == 0
    assert last.state == "error"
    return last


class TestWhereEverythingIsFine:
    ITEMS = ("packages", "address", "TLS", "token", "version", "shared memory", "round trip")

    def test_all_is_ok(self) -> None:
        with nc.local_server() as address:
            found = list(diagnose(address))
        assert [finding.item for finding in found] == list(self.ITEMS)
        assert {finding.state for finding in found} == {"ok"}
        assert not any(finding.remedy for finding in found)

    def test_a_local_server_is_started(self) -> None:
        assert {finding.state for finding in findings("local").values()} == {"ok"}

    def test_with_tls_and_a_token(
        self,
        authority: Authority,
        folder: Path,
        trusted: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tokens = folder / "tokens"
        monkeypatch.setenv("NNI_COMPRESSION_TOKEN", add_tenant(tokens, "team"))
        certificate = authority.issue("server", names="DNS:localhost")
        socket = folder / "side"
        flags = [f"--token_file={tokens}", f"--shm_socket={socket}", *tls_flags(certificate)]
        monkeypatch.setenv("NNI_COMPRESSION_SHM_SOCKET", str(socket))
        with ServerProcess(*flags) as process:
            found = findings(f"localhost:{process.port}")
        assert {finding.state for finding in found.values()} == {"ok"}
        assert "encrypted" in found["TLS"].message
        assert found["token"].message.startswith("sent")
        assert str(socket) in found["shared memory"].message

    def test_versions_are_named(self, server: ServerProcess) -> None:
        found = findings(server.address)
        assert nc.__version__ in found["version"].message
        for package in ("grpcio", "protobuf", "torch"):
            assert f"{package} " in found["packages"].message


class TestAddresses:
    def test_no_server(self) -> None:
        with ScriptedServer() as stopped:
            address = stopped.address
        error = the_error(address)
        assert error.item == "address"
        assert "refused" in error.message
        assert f"compression_server --listen={address}" in error.remedy

    def test_no_socket(self, tmp_path: Path) -> None:
        error = the_error(f"unix:{tmp_path}/absent")
        assert error.item == "address"
        assert "there is no such socket" in error.remedy

    def test_a_name_that_does_not_resolve(self) -> None:
        error = the_error("server.invalid:50051")
        assert error.item == "address"
        assert "'server.invalid'" in error.message
        assert "resolve" in error.message

    def test_no_address(self) -> None:
        error = the_error("localhost")
        assert error.item == "address"
        assert "HOST:PORT" in error.message

    def test_another_service(self) -> None:
        with ScriptedServer() as other:
            error = the_error(other.address)
        assert error.item == "address"
        assert "no compression server" in error.message

    def test_no_program_for_a_local_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SERVER_BINARY", "/nonexistent")
        monkeypatch.setattr("nni_compression._lifetime.local_server._shared", None)
        assert "NNI_COMPRESSION_SERVER_BINARY" in the_error("local").message


class TestTls:
    def test_a_client_without_it(self, tls_server: ServerProcess) -> None:
        error = the_error(tls_server.address)
        assert error.item == "TLS"
        assert "the server uses TLS, and this client does not" in error.message
        assert "NNI_COMPRESSION_TLS_CA" in error.remedy

    def test_a_server_without_it(self, server: ServerProcess, trusted: None) -> None:
        error = the_error(server.address)
        assert error.item == "TLS"
        assert "this client uses TLS, and the server does not" in error.message

    def test_an_authority_that_is_not_trusted(
        self, tls_server: ServerProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_TLS", "1")
        error = the_error(tls_server.address)
        assert error.item == "TLS"
        assert "not accepted" in error.message
        assert "NNI_COMPRESSION_TLS_CA" in error.remedy

    def test_another_name(
        self, authority: Authority, folder: Path, trusted: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certificate = authority.issue("server", names="DNS:server.example")
        with ServerProcess(*tls_flags(certificate)) as process:
            error = the_error(f"localhost:{process.port}")
        assert error.item == "TLS"
        assert "localhost" in error.message
        assert "issue one for localhost" in error.remedy

    def test_an_expired_certificate(self, authority: Authority, trusted: None) -> None:
        certificate = authority.issue("server", names="DNS:localhost", days=-1)
        with ServerProcess(*tls_flags(certificate)) as process:
            error = the_error(f"localhost:{process.port}")
        assert error.item == "TLS"
        assert "expired" in error.message
        assert "renew" in error.remedy

    def test_no_client_certificate(self, authority: Authority, trusted: None) -> None:
        certificate = authority.issue("server", names="DNS:localhost")
        flags = [*tls_flags(certificate), f"--tls_client_ca={authority.certificate}"]
        with ServerProcess(*flags) as process:
            error = the_error(f"localhost:{process.port}")
        assert error.item == "TLS"
        assert "NNI_COMPRESSION_TLS_CERTIFICATE" in error.remedy

    def test_a_file_that_is_not_there(
        self, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_TLS_CA", "/nonexistent")
        error = the_error(server.address)
        assert error.item == "TLS"
        assert "/nonexistent" in error.message

    def test_a_file_that_has_no_certificate(
        self, tls_server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("not a certificate\n")
        monkeypatch.setenv("NNI_COMPRESSION_TLS_CA", str(file))
        error = the_error(tls_server.address)
        assert error.item == "TLS"
        assert "settings" in error.message
        assert "NNI_COMPRESSION_TLS_CA" in error.remedy

    def test_a_peer_that_says_nothing(self, trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nni_compression.doctor._TIMEOUT", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            error = the_error(f"127.0.0.1:{silent.getsockname()[1]}")
        assert error.item == "address"
        assert "server does not" not in error.message


class TestTokens:
    @pytest.fixture(scope="class")
    def guarded(self, folder: Path) -> Iterator[ServerProcess]:
        tokens = folder / "guarded"
        add_tenant(tokens, "team")
        with ServerProcess(f"--token_file={tokens}") as process:
            yield process

    def test_none(self, guarded: ServerProcess) -> None:
        error = the_error(guarded.address)
        assert error.item == "token"
        assert "compressionctl tenant add" in error.remedy
        assert "NNI_COMPRESSION_TOKEN_FILE" in error.remedy

    def test_an_unknown_one(self, guarded: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_TOKEN", "secret-but-wrong")
        found = findings(guarded.address)
        assert found["address"].state == "ok"
        error = found["token"]
        assert error.state == "error"
        assert "valid token" in error.remedy
        assert not any("secret" in finding.message + finding.remedy for finding in found.values())

    def test_one_that_would_be_sent_in_plain_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_TOKEN", "secret")
        error = the_error("server.invalid:50051")
        assert error.item == "token"
        assert "without encryption" in error.message


class TestSharedMemory:
    def test_no_socket_is_known(self, server: ServerProcess) -> None:
        found = findings(server.address)
        assert found["shared memory"].state == "warning"
        assert "--shm_socket" in found["shared memory"].remedy
        assert found["round trip"].state == "ok"

    @pytest.mark.parametrize(("variable", "address"), [("", "{}"), (None, "ipv4:{0},{0}")])
    def test_none_is_looked_for(
        self,
        server: ServerProcess,
        monkeypatch: pytest.MonkeyPatch,
        variable: str | None,
        address: str,
    ) -> None:
        if variable is not None:
            monkeypatch.setenv("NNI_COMPRESSION_SHM_SOCKET", variable)
        found = findings(address.format(server.address))["shared memory"]
        assert (found.state, found.remedy) == ("ok", "")
        assert found.message.startswith("not used; ")

    def test_no_such_socket(
        self, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SHM_SOCKET", str(tmp_path / "absent"))
        found = findings(server.address)["shared memory"]
        assert found.state == "warning"
        assert "does not exist" in found.message

    def test_the_socket_of_another_server(
        self, server: ServerProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SHM_SOCKET", str(folder / "other"))
        with ServerProcess(f"--shm_socket={folder / 'other'}"):
            found = findings(server.address)["shared memory"]
        assert found.state == "warning"
        assert "is not the socket of" in found.message


class TestTheProgram:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nni_compression", "doctor", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )

    def test_prints_a_line_for_each_item(self, server: ServerProcess) -> None:
        done = self.run("--server", server.address)
        assert done.returncode == 0, done.stderr
        lines = [line.split()[0] for line in done.stdout.splitlines()]
        assert lines == ["ok", "ok", "ok", "ok", "ok", "warning", "->", "ok"]

    def test_fails_when_something_is_an_error(self) -> None:
        done = self.run("--server=localhost")
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1].startswith("error    address")

    def test_uses_the_address_of_the_environment(
        self, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NNI_COMPRESSION_SERVER", server.address)
        assert f"{server.address} answers" in self.run().stdout

    def test_prints_json(self, server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", f"--server={server.address}", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["ok"] is True
        assert report["server"] == server.address
        assert report["findings"][1] == {
            "item": "address",
            "state": "ok",
            "message": f"{server.address} answers",
            "remedy": "",
        }
        assert main(["doctor", "--server=localhost", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["ok"] is False
