"""Servers that ask for a token: who is let in, and what belongs to whom."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

import nni_compression as nc
from metered import eventually
from servers import ROOT, ServerProcess, add_tenant, compressionctl

LAYER = nc.Layer("fc", "Linear", (512, 256))  # large enough for shared memory
CONFIG = [{"sparsity": 0.5}]
WEIGHT = np.random.default_rng(5).normal(size=LAYER.shape).astype(np.float32)


@dataclass(frozen=True)
class Tokens:
    """The tokens of two tenants; `ours` and `more` are one's."""

    ours: str
    more: str
    theirs: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tokens:
    return Tokens(*(add_tenant(folder / "tokens", name) for name in ("us", "us", "them")))


@pytest.fixture(scope="module")
def guarded(folder: Path, tokens: Tokens) -> Iterator[ServerProcess]:
    """A server that knows these tokens."""
    flags = (f"--token_file={folder}/tokens", f"--shm_socket={folder}/side")
    with ServerProcess(*flags) as server:
        yield server


@pytest.mark.parametrize("token", [None, "", "guess", "0" * 64])
def test_nobody_is_let_in_without_a_valid_token(guarded: ServerProcess, token: str | None) -> None:
    with nc.Client(guarded.address, token=token) as client:
        for call in (client.health, client.sessions, client.algorithms):
            with pytest.raises(
                nc.UnauthenticatedError, match="NNI_COMPRESSION_TOKEN_FILE"
            ) as raised:
                call()
            assert not token or token not in str(raised.value)
        with pytest.raises(nc.UnauthenticatedError):
            client.bind_model("level", CONFIG, [LAYER])


class TestOverOpenNetworks:
    """Without TLS, everybody between a client and a server on another host can read its token."""

    ALLOW = "NNI_COMPRESSION_ALLOW_INSECURE_TOKEN"

    @pytest.mark.parametrize(
        "server",
        [
            "server.invalid:50051",
            "127.example.com:50051",
            "localhost.example.com:1",
            "10.0.0.7:50051",
            "[fd00::1]:50051",
            "ipv4:127.0.0.1:1,10.0.0.7:1",
            "dns://10.0.0.7/localhost:1",
        ],
    )
    def test_no_token_is_sent_to_another_host(
        self, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=self.ALLOW) as raised:
            nc.Client(server, token="secret")
        assert server in str(raised.value)
        assert "secret" not in str(raised.value)
        nc.Client(server).close()
        nc.Client(server, token="secret", tls=True).close()
        nc.Client(server, token="secret", allow_insecure_token=True).close()
        monkeypatch.setenv(self.ALLOW, "1")
        nc.Client(server, token="secret").close()
        with pytest.raises(nc.InvalidArgumentError):
            nc.Client(server, token="secret", allow_insecure_token=False)

    @pytest.mark.parametrize(
        "server",
        [
            "localhost:1",
            "127.0.0.1:1",
            "127.3.2.1:1",
            "[::1]:1",
            "unix:/run/x",
            "unix-abstract:x",
            "dns:///localhost:1",
            "ipv4:127.0.0.1:1,127.0.0.2:1",
        ],
    )
    def test_on_this_host_nothing_need_be_said(self, server: str) -> None:
        nc.Client(server, token="secret").close()

    def test_a_copy_is_allowed_the_same(self) -> None:
        client = nc.Client("server.invalid:1", token="secret", allow_insecure_token=True)
        pickle.loads(pickle.dumps(client)).close()
        client.close()

    def test_the_environment_says_yes_or_no(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(self.ALLOW, "yes")
        with pytest.raises(nc.InvalidArgumentError, match="must be 0 or 1"):
            nc.Client("server.invalid:1", token="secret")


def test_what_is_a_tenants_no_other_can_see(guarded: ServerProcess, tokens: Tokens) -> None:
    with (
        nc.Client(guarded.address, token=tokens.ours) as ours,
        nc.Client(guarded.address, token=tokens.more) as also_ours,
        nc.Client(guarded.address, token=tokens.theirs) as theirs,
        ours.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        assert [s.id for s in also_ours.sessions()] == [session.id]
        assert theirs.sessions() == []
        mask = also_ours.join(session.id).calc_mask({"fc": WEIGHT})["fc"]
        assert mask.pruned == WEIGHT.size // 2
        messages = []
        for name in (session.id, "0" * len(session.id)):
            with pytest.raises(nc.NotFoundError) as raised:
                theirs.join(name)
            messages.append(str(raised.value).replace(name, "ID"))
        assert messages[0] == messages[1]  # as if it did not exist


def test_the_token_comes_from_the_environment(
    guarded: ServerProcess, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_COMPRESSION_TOKEN", tokens.ours)
    with nc.Client(guarded.address) as client:
        assert client.health() == "SERVING"
    with nc.Client(guarded.address, token="") as nobody, pytest.raises(nc.UnauthenticatedError):
        nobody.health()
    monkeypatch.delenv("NNI_COMPRESSION_TOKEN")
    (tmp_path / "token").write_text(tokens.theirs + "\n")
    monkeypatch.setenv("NNI_COMPRESSION_TOKEN_FILE", str(tmp_path / "token"))
    with nc.Client(guarded.address) as client:
        assert client.health() == "SERVING"


def test_a_token_file_may_change_under_a_client(
    guarded: ServerProcess, tokens: Tokens, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    with nc.Client(guarded.address, token_file=file) as client:
        with pytest.raises(nc.InvalidArgumentError, match="token_file"):
            client.health()
        file.write_text("stale")
        with pytest.raises(nc.UnauthenticatedError):
            client.health()
        file.write_text(tokens.ours + "\n")
        assert client.health() == "SERVING"
        assert pickle.loads(pickle.dumps(client)).health() == "SERVING"


@pytest.mark.parametrize("token", ["two words", "line\n", "t\u00f6ken"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(nc.InvalidArgumentError, match="token") as raised:
        nc.Client(token=token)
    assert token not in str(raised.value)
    with pytest.raises(nc.InvalidArgumentError, match="both"):
        nc.Client(token="a", token_file="b")


def refused_in_the_end(client: nc.Client) -> bool:
    """Whether the server comes to refuse the client: it looks at its file once a second."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            client.health()
        except nc.UnauthenticatedError:
            return True
    return False


def test_a_revoked_token_ends(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = add_tenant(file, "us")
    with ServerProcess(f"--token_file={file}") as server:
        with nc.Client(server.address, token=token) as client:
            assert client.health() == "SERVING"
            compressionctl(f"--tokens={file}", "tenant", "revoke", "us")
            assert refused_in_the_end(client)
        assert token not in server.log()


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_text("")


def half(path: Path) -> None:
    path.write_text(path.read_text()[:90])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("damage", [remove, empty, half, folder_instead, pipe, huge])
def test_a_file_that_is_damaged_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = tmp_path / "tokens"
    token, other = add_tenant(file, "us"), add_tenant(file, "them")
    whole = file.read_text()
    with ServerProcess(f"--token_file={file}") as server:
        with (
            nc.Client(server.address, token=token) as ours,
            nc.Client(server.address, token=other) as theirs,
        ):
            assert ours.health() == theirs.health() == "SERVING"
            damage(file)
            assert eventually(lambda: "event=tokens_not_read" in server.log())
            assert ours.health() == theirs.health() == "SERVING"
            if file.is_dir():
                file.rmdir()
            elif file.exists():
                file.unlink()
            file.write_text(whole.splitlines(keepends=True)[0])
            assert refused_in_the_end(theirs)
            assert ours.health() == "SERVING"
        assert server.stop() == 0


def test_shared_memory_asks_for_the_token_too(
    guarded: ServerProcess, tokens: Tokens, folder: Path
) -> None:
    with (
        nc.Client(guarded.address, token=tokens.ours, shm_socket=f"{folder}/side") as client,
        client.bind_model("level", CONFIG, [LAYER]) as session,
    ):
        session.calc_mask({"fc": WEIGHT})
        assert client.stats.bytes_sent < WEIGHT.nbytes // 10


def test_compressionctl_sends_a_token(
    guarded: ServerProcess, tokens: Tokens, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(tokens.ours + "\n")
    binary = os.environ.get(
        "COMPRESSIONCTL_BINARY", ROOT / "build/release/client/cli/compressionctl"
    )

    def health(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binary), f"--server={guarded.address}", *flags, "health"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert health(f"--token_file={tmp_path}/token").returncode == 0
    assert health(NNI_COMPRESSION_TOKEN_FILE=f"{tmp_path}/token").returncode == 0
    assert health(NNI_COMPRESSION_TOKEN=tokens.theirs).returncode == 0
    refused = health(NNI_COMPRESSION_TOKEN="guess")
    assert refused.returncode == 1
    assert "the call's token is not valid" in refused.stderr
    missing = health(f"--token_file={tmp_path}/none")
    assert missing.returncode == 1
    assert f"token_file '{tmp_path}/none' cannot be read" in missing.stderr


def test_a_token_that_is_no_text_is_refused() -> None:
    with pytest.raises(nc.InvalidArgumentError, match="token is bytes; it must be str"):
        nc.Client("127.0.0.1:1", token=b"secret")  # type: ignore[arg-type]
