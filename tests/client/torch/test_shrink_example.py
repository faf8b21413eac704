"""The example of smaller networks: what it prints, and what it says when something is missing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nni_compression as nc
import servers

pytest.importorskip("torch_pruning")
pytest.importorskip("sklearn")

EXAMPLE = servers.ROOT / "client/python/examples/shrink.py"
TIMEOUT = 300


def run(*arguments, server=None):
    """The finished example."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(nc.__file__).resolve().parents[1]),
            **({"NNI_COMPRESSION_SERVER": server.address} if server else {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.fixture
def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("shrink_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_half_of_the_filters_go_and_the_network_still_reads(server):
    done = run("--epochs=3", "--pruner=taylor", server=server)

    assert done.returncode == 0, done.stdout + done.stderr
    ratios = dict(re.findall(r"^(\w+).* ([\d.]+) x$", done.stdout, re.MULTILINE))
    assert ratios["parameters"] == ratios["MACs"] == "4.0"
    assert "PyTorch" in ratios
    assert re.search(r"^pruned by taylor: [\d.]+ %$", done.stdout, re.MULTILINE)


def test_it_does_the_same_again_and_draws_a_plot(server, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "shrink.png"
    arguments = ["--epochs=1", "--seed=3", "--pruner=fpgm"]
    first = run(*arguments, server=server)
    second = run(*arguments, f"--plot={path}", server=server)
    pattern = re.compile(r"^.*: [\d.]+ %|^(?:parameters|MACs) .*", re.MULTILINE)
    assert len(pattern.findall(first.stdout)) == 5
    assert pattern.findall(first.stdout) == pattern.findall(second.stdout)
    assert f"plot: {path}" in second.stdout, second.stdout + second.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


def test_it_says_that_there_is_no_onnx_runtime(example, monkeypatch, capsys):
    monkeypatch.setattr(example, "RUNTIME", ("onnxruntime_that_nobody_has",))
    monkeypatch.setattr(example, "ROUNDS", 1)
    images = example.torch.zeros(1, 1, 8, 8)
    rows = example.compare(example.Net(), example.Net(), images)
    assert list(rows) == ["parameters", "MACs", "PyTorch, ms"]
    assert "onnxruntime_that_nobody_has not installed" in capsys.readouterr().out


def test_it_says_what_the_plot_needs(example, monkeypatch, capsys):
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["shrink.py", "--plot=x.png"])
    with pytest.raises(SystemExit) as caught:
        example.main()
    assert caught.value.code == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_it_fails_where_too_much_is_lost(server, example, monkeypatch, capsys):
    monkeypatch.setattr(example, "LARGEST_LOSS", -100.0)
    monkeypatch.setattr(example, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["shrink.py", f"--server={server.address}", "--epochs=1"])
    assert example.main() == 1
    assert "failed: the smaller model lost" in capsys.readouterr().err


def test_it_says_when_there_is_no_server():
    done = run("--server=127.0.0.1:1", "--epochs=1")
    assert done.returncode == 1
    assert "no compression server" in done.stderr
