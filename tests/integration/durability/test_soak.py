"""What tests/soak.sh does, in small."""

from __future__ import annotations

import sys
from pathlib import Path

from servers import ROOT

sys.path.append(str(ROOT / "tests/soak"))

import pytest  # noqa: E402

import jobs  # noqa: E402
from kills import kill  # noqa: E402
from mixed import Plan, Soaked, soak  # noqa: E402

PLUGINS = ROOT / "build/release/tests/compression/plugins"
SMALL = Plan(
    seconds=0,
    round_seconds=0,
    restart_rounds=1,
    warm_rounds=2,
    restarts=1,
    trainers=2,
    kill_trainers=False,
    lease=5,
    forget=False,
    rests=3,  # of which one may fall into a moment of work
    memory=0.03,  # two threads more, and what is made at the first call of its kind
)


def soaked(plugins: str) -> Soaked:
    return soak(SMALL, seed=7, flags=[f"--plugin_dir={PLUGINS / plugins}"], say=print)


def test_nothing_is_lost_by_kills(tmp_path: Path) -> None:
    killed = kill(tmp_path / "data", count=8, seed=7, say=print)
    assert len(killed.kills) == 8
    assert set(killed.runs) == {job.__name__ for job in jobs.REMEMBERING}
    assert min(killed.runs.values()) >= 1
    assert killed.retries > 0, "no kill hit a call"


@pytest.mark.long
def test_nothing_leaks() -> None:
    found = soaked("good")
    assert found.leaks == []
    assert found.servers_killed + found.servers_drained == 1


@pytest.mark.long
def test_a_leak_is_noticed() -> None:
    found = soaked("leaking")
    assert any(leak.startswith("memory grew") for leak in found.leaks)
    assert any(leak.startswith("descriptors grew") for leak in found.leaks)


def test_an_answer_that_is_not_that_of_a_quiet_run_is_noticed() -> None:
    def job(client: object, seed: int) -> list[bytes]:
        return [b"a", b"b"]

    expected = {("job", 0): [b"a", b"b"], ("job", 1): [b"a", b"c"], ("job", 2): [b"a"]}
    assert len(list(jobs.check(job, 0, None, expected))) == 2
    for seed in (1, 2):
        with pytest.raises(jobs.Wrong):
            list(jobs.check(job, seed, None, expected))
