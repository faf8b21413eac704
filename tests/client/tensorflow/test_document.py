"""The pages about TensorFlow say what is true, and the examples work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import documents
import nni_compression.tensorflow as adapter
from servers import ROOT, ServerProcess

PAGE = ROOT / "docs/tensorflow.md"


@pytest.mark.parametrize(
    ("page", "language"),
    [(PAGE, "python"), (documents.ROOT / "docs/custom-algorithms.md", "python tensorflow")],
    ids=["tensorflow", "custom-algorithms"],
)
def test_its_examples_run_from_top_to_bottom(
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: Path,
    language: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNI_COMPRESSION_SERVER", server.address)
    names: dict[str, Any] = {}
    blocks = documents.blocks(page, language)
    assert blocks
    for line, source in blocks:
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)


@pytest.mark.parametrize("example", ["digits_keras.py", "digits_graph.py"])
def test_the_example_trains_prunes_and_quantizes(server: ServerProcess, example: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "client/python/examples" / example), "--epochs=6"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "client/python/src"),
            "NNI_COMPRESSION_SERVER": server.address,
            "TF_CPP_MIN_LOG_LEVEL": "1",  # TensorFlow's warnings
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("was changed by|deprecated", done.stderr), done.stderr
    assert re.search(r"^agp .* 80\.. %", done.stdout, re.MULTILINE)


def test_it_mentions_every_public_name() -> None:
    text = PAGE.read_text()
    assert [name for name in adapter.__all__ if not re.search(rf"\b{name}\b", text)] == []
