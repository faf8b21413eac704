"""compressionctl experiment: trials of a real server, and the page that compares them."""

from __future__ import annotations

import html.parser
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_compressionctl import ctl, run_json

import nni_compression as nc

CHROMIUM = shutil.which("chromium")
NASTY = "</script><script>alert(1)</script><!--"
# (size, accuracy): whether no other trial is as small and as accurate, and better in one.
TRIALS = {
    (10.0, 0.90): True,
    (12.0, 0.89): False,
    (20.0, 0.97): True,
    (20.0, 0.96): False,
    (40.0, 0.98): True,
    (50.0, 0.98): False,
}


class Page(html.parser.HTMLParser):
    """The elements of a page, and the JSON in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: dict[str, str] = {}  # by the id of the element that they follow
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts.append(data)
        elif self.elements and (name := self.elements[-1][1].get("id")):
            self.texts.setdefault(name, data)

    def data(self) -> Any:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def trials(server_address: str) -> Iterator[dict[tuple[float, float], str]]:
    """(size, accuracy) -> id of a session that reported it; one lives, the others have ended."""
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(10, 10))]
    labels = {"experiment": NASTY}
    ids = {}
    with nc.Client(server_address) as client:
        live = client.bind_model("level", [{"sparsity": 0.5}], layers, labels=labels)
        for i, (size, accuracy) in enumerate(TRIALS):
            rules = [{"sparsity": i / 10, "op_names": ["fc"]}]
            with client.bind_model(
                "level", rules, layers, labels={**labels, "trial": f"{NASTY}{i}"}
            ) as session:
                session.report({"size": size, NASTY: 1.0}, accuracy=accuracy)
                ids[size, accuracy] = session.id
        yield ids
        live.close()


LABEL = f"--label=experiment={NASTY}"


def test_the_page_has_all_trials_and_the_front_with_its_configurations(
    trials: dict[tuple[float, float], str], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    arguments = ("experiment", LABEL, "--x=size", "--minimize=x", "-o", path)
    done = ctl(*arguments)
    assert done.returncode == 0, done.stderr
    assert "7 trials, 3 on the Pareto front" in done.stdout
    chosen = trials[20.0, 0.97]  # nearly the best in both
    (line,) = (line for line in done.stdout.splitlines() if " * " in line)
    assert line.startswith(chosen)

    text = path.read_text()
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 2
    for tag, attributes in page.elements:  # nothing comes from elsewhere, and nothing runs early
        assert not {"src", "href", "onload", "onerror"} & attributes.keys(), tag
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text
    data = page.data()
    assert data["labels"] == {"experiment": NASTY}
    assert data["chosen"] == chosen
    assert data["x"] == {"name": "size", "minimize": True}
    assert data["y"] == {"name": "accuracy", "minimize": False}
    shown = {trial["session"]: trial for trial in data["trials"]}
    assert len(shown) == 7
    for i, (numbers, on_front) in enumerate(TRIALS.items()):
        trial = shown[trials[numbers]]
        assert (trial["x"], trial["y"]) == numbers
        assert trial["on_front"] is on_front, numbers
        assert trial["results"] == {"size": numbers[0], "accuracy": numbers[1], NASTY: 1.0}
        assert trial["labels"]["trial"] == f"{NASTY}{i}"
        assert trial["state"] == "closed"
        rules = [{"sparsity": i / 10, "op_names": ["fc"]}]
        assert trial["config_list"] == (rules if on_front else None)
    (live,) = (trial for trial in data["trials"] if trial["state"] == "active")
    assert live["x"] is live["y"] is None
    assert not live["on_front"]

    again = ctl(*arguments)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    printed = run_json(*arguments, "--overwrite")
    assert printed["file"] == str(path)
    assert printed["chosen"] == chosen


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_it(trials: dict[tuple[float, float], str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run_json("experiment", LABEL, "--x=size", "--minimize=x", "-o", path)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    drawn = subprocess.run(
        [*command, profile, "--dump-dom", path.as_uri()],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    page = Page(drawn)
    assert [tag for tag, _ in page.elements].count("script") == 2
    circles = [str(attributes["class"]) for tag, attributes in page.elements if tag == "circle"]
    assert len(circles) == len(TRIALS)
    assert sum("front" in each for each in circles) == sum(TRIALS.values())
    assert sum("chosen" in each for each in circles) == 1
    rows = [str(attributes.get("class")) for tag, attributes in page.elements if tag == "tr"]
    assert len(rows) == 1 + 7
    assert page.texts["config_list"] == json.dumps(
        [{"op_names": ["fc"], "sparsity": 0.2}], indent=2
    )
    assert trials[20.0, 0.97] in page.texts["which"]


def test_the_sparsity_that_was_achieved_needs_no_report(
    trials: dict[tuple[float, float], str], tmp_path: Path
) -> None:
    printed = run_json("experiment", LABEL, "-o", tmp_path / "report.html")
    assert printed["x"]["name"] == "sparsity"
    assert {trial["x"] for trial in printed["trials"]} == {0.0}  # no weight was sent
    best = [trial["session"] for trial in printed["trials"] if trial["on_front"]]
    assert best == [trials[40.0, 0.98], trials[50.0, 0.98]]


def test_what_cannot_be_compared_is_an_error(
    trials: dict[tuple[float, float], str], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    unknown = ctl("experiment", LABEL, "--y=top1", "-o", path)
    assert unknown.returncode == 1
    assert "'top1'" in unknown.stderr
    assert "accuracy" in unknown.stderr
    none = ctl("experiment", "--label=experiment=none", "-o", path)
    assert none.returncode == 1
    assert "--report_retention" in none.stderr
    assert ctl("experiment", "-o", path).returncode == 2
    assert not path.exists()
