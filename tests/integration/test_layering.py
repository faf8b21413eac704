"""Which folder may include what: arrows run from server and client to compression and proto."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)

# Folder -> the own folders that it may include from.
ALLOWED = {
    "access": {"access"},
    "proto": {"proto"},
    "compression": {"compression"},
    "server": {"server", "access", "compression", "proto"},
    "client/cpp": {"client/cpp", "proto"},
    "client/cli": {"client/cli", "client/cpp", "access", "proto"},
}
# Generated from the .proto, hence the wire's.
GENERATED = re.compile(r"^nni/compression/v1/|\.(grpc\.)?pb\.h$")
TRANSPORT = re.compile(r"^(grpc|grpcpp|grpc\+\+|google/protobuf|google/rpc|spdlog)(/|$)")
TORCH = re.compile(r"^(ATen|c10|torch)(/|$)")


def includes(folder):
    """(file, included path) for every include in a folder's sources."""
    sources = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".cc", ".h")]
    assert sources, f"no sources in {folder}"
    for source in sources:
        for include in INCLUDE.findall(source.read_text()):
            yield source.relative_to(ROOT), include


def own_folder(include):
    """Which of the project's folders an include is from; None for other software's."""
    for folder in ALLOWED:
        if include.startswith(folder + "/"):
            return folder
    return None


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_includes_only_from_the_folders_below_it(folder):
    wrong = [
        f"{source} includes {include}"
        for source, include in includes(folder)
        if own_folder(include) not in {None, *ALLOWED[folder]}
    ]
    assert not wrong


def test_the_compression_library_knows_no_transport_and_no_logging():
    wrong = [
        f"{source} includes {include}"
        for source, include in includes("compression")
        if TRANSPORT.search(include) or GENERATED.search(include)
    ]
    assert not wrong


def test_exporters_call_no_algorithm():
    """They ask a LayerSnapshot, which checks what an algorithm answers."""
    algorithm = re.compile(r"\b(Compressor|Pruner|Quantizer|compressor)\b")
    sources = sorted((ROOT / "compression/exporters").glob("*"))
    assert sources
    wrong = [
        f"{source.name}: {line.strip()}"
        for source in sources
        for line in source.read_text().splitlines()
        if algorithm.search(line.split("//")[0])
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["client/cpp", "client/cli", "proto"])
def test_clients_need_no_libtorch(folder):
    wrong = [
        f"{source} includes {include}"
        for source, include in includes(folder)
        if TORCH.search(include)
    ]
    assert not wrong


def test_no_header_of_the_project_includes_the_expensive_headers_of_libtorch():
    expensive = {"ATen/ATen.h", "torch/torch.h", "torch/extension.h"}
    wrong = [
        f"{source} includes {include}"
        for folder in ("compression", "server", "tests")
        for source, include in includes(folder)
        if include in expensive
    ]
    assert not wrong


def test_the_python_client_imports_no_framework_unless_asked():
    program = (
        "import sys, nni_compression; "
        "print(sorted({'torch', 'tensorflow', 'keras', 'nni'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client/python/src")}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout == "[]\n"
