"""Which folder may include what: arrows run from server and client to compression and proto.

The folders of server/ and compression/ are the libraries of their CMakeLists.txt, and may use what
they link. Those of server/ that a build without the server has, too, are shared with the clients.
"""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)


def libraries(top, until=None):
    """Folder of server or compression -> the others that it links; those before `until`."""
    listed = re.findall(
        rf"^nni_compression_{top}_folder\((\w+)\s*(?:FOLDERS ([a-z\s]+))?[^)]*\)$",
        (ROOT / top / "CMakeLists.txt").read_text().partition(until or "\0")[0],
        re.MULTILINE,
    )
    return {f"{top}/{name}": {f"{top}/{used}" for used in uses.split()} for name, uses in listed}


COMPRESSION = libraries("compression")
SERVER = libraries("server")
SHARED = libraries("server", until="if(NOT NNI_COMPRESSION_BUILD_SERVER)")
LIBRARIES = {**COMPRESSION, **SERVER}
BELOW_SERVER = {"proto", *COMPRESSION}
# Folder -> the own folders that it may include from, besides itself.
ALLOWED = {
    "proto": set(),
    # Its examples, and the headers that plugins include: nothing of the project includes these.
    "compression": set(COMPRESSION),
    **COMPRESSION,
    **{folder: uses | BELOW_SERVER for folder, uses in SERVER.items()},
    **SHARED,
    "server": {*SERVER, *BELOW_SERVER},
    "client/cpp": {"proto", *SHARED},
    "client/cli": {"client/cpp", "proto", *SHARED},
}
# They need only Abseil and a JSON library: the headers of the library that clients include.
FOR_ALL = {f"compression/types/{name}.h" for name in ("element_types", "safetensors_bytes")}
# Generated from the .proto, hence the wire's.
GENERATED = re.compile(r"^nni/compression/v1/|\.(grpc\.)?pb\.h$")
TRANSPORT = re.compile(r"^(grpc|grpcpp|grpc\+\+|google/protobuf|google/rpc|spdlog)(/|$)")
TORCH = re.compile(r"^(ATen|c10|torch)(/|$)")


def includes(folder):
    """(file, included path) for every include in a folder's sources."""
    sources = [
        p
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".cc", ".h") and owner(str(p.relative_to(ROOT))) in (folder, None)
    ]
    assert sources, f"no sources in {folder}"
    for source in sources:
        for include in INCLUDE.findall(source.read_text()):
            yield source.relative_to(ROOT), include


def owner(path):
    """The innermost of the project's folders that a path is in; None for other software's."""
    if path in FOR_ALL:
        return None
    if GENERATED.search(path):
        return "proto"
    if path.startswith("nni_compression/"):  # its public headers
        return "client/cpp"
    return max((f for f in ALLOWED if path.startswith(f + "/")), key=len, default=None)


def uses(folder):
    """The folders that a folder includes from."""
    return {owner(include) for _, include in includes(folder)} - {None, folder}


def reachable(graph, start):
    found, front = set(), [start]
    while front:
        new = graph[front.pop()] - found
        found |= new
        front += new
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_includes_only_from_the_folders_below_it(folder):
    wrong = [
        f"{source} includes {include}"
        for source, include in includes(folder)
        if owner(include) not in {None, folder, *ALLOWED[folder]}
    ]
    assert not wrong


@pytest.mark.parametrize("top", ["compression", "server"])
def test_the_folders_are_libraries_and_link_what_they_include(top):
    linked = libraries(top)
    folders = {f"{top}/{p.name}" for p in (ROOT / top).iterdir() if p.is_dir()}
    assert folders - {"compression/examples"} == set(linked)
    for folder in folders & set(linked):
        assert linked[folder] == uses(folder) & set(linked), folder


@pytest.mark.parametrize("folder", LIBRARIES)
def test_the_readme_of_a_folder_names_all_that_is_in_it(folder):
    readme = (ROOT / folder / "README.md").read_text()
    named = set(re.findall(r"`([\w-]+)`", readme))
    stems = {p.stem for p in (ROOT / folder).iterdir() if p.suffix in (".cc", ".h")}
    assert not stems - named


@pytest.mark.parametrize("folder", [folder for folder, linked in LIBRARIES.items() if linked])
def test_the_readme_of_a_folder_says_what_it_uses(folder):
    readme = (ROOT / folder / "README.md").read_text()
    uses = re.search(r"^Uses .*", readme, re.MULTILINE | re.DOTALL)[0]
    named = {f"{folder.split('/')[0]}/{name}" for name in re.findall(r"`(\w+)/`", uses)}
    assert uses.startswith("Uses all folders") or LIBRARIES[folder] <= named


def test_no_folder_includes_itself_by_way_of_others():
    graph = {folder: uses(folder) for folder in ALLOWED}
    assert not [folder for folder in graph if folder in reachable(graph, folder)]


def test_the_data_path_of_the_server_names_files_and_classes_that_there_are():
    readme = (ROOT / "server/README.md").read_text()
    rows = re.findall(
        r"^\|(?! step|---)(.*)\|$", readme.partition("The data path")[2], re.MULTILINE
    )
    files = {name for row in rows for name in re.findall(r"`(\w+/\w+)`", row)}
    assert len(rows) >= 5
    assert files
    assert [f for f in files if not (ROOT / "server" / f"{f}.h").exists()] == []


def test_the_picture_in_the_architecture_has_the_arrows_of_the_code():
    """Those that follow from others are not drawn."""
    text = (ROOT / "docs/architecture.md").read_text()
    picture = re.search(r"```mermaid\n(.*?)```", text, re.DOTALL).group(1)
    names = dict(re.findall(r'(\w+)\["([\w/]+)"\]', picture))
    arrows = re.findall(r"(\w+) --> (\w+)", re.sub(r"\[.*?\]", "", picture))
    drawn = {(names[source], names[target]) for source, target in arrows}
    graph = {folder: uses(folder) for folder in ALLOWED}
    needed = {
        (folder, used)
        for folder, direct in graph.items()
        for used in direct
        if not any(used in reachable(graph, other) for other in direct - {used})
    }
    assert drawn == needed


def test_the_compression_library_knows_no_transport_and_no_logging():
    wrong = [
        f"{source} includes {include}"
        for folder in ("compression", *COMPRESSION)
        for source, include in includes(folder)
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


@pytest.mark.parametrize("folder", ["client/cpp", "client/cli", "proto", *SHARED])
def test_clients_need_no_libtorch(folder):
    wrong = [
        f"{source} includes {include}"
        for source, include in includes(folder)
        if TORCH.search(include)
    ]
    assert not wrong


@pytest.mark.parametrize("header", sorted(FOR_ALL))
def test_a_header_for_all_needs_nothing_of_the_project(header):
    included = INCLUDE.findall((ROOT / header).read_text())
    assert included
    assert [p for p in included if "/" in p and not p.startswith(("absl/", "nlohmann/"))] == []


def test_no_header_of_the_project_includes_the_expensive_headers_of_libtorch():
    expensive = {"ATen/ATen.h", "torch/torch.h", "torch/extension.h"}
    wrong = [
        f"{source} includes {include}"
        for folder in ("compression", "server", *LIBRARIES, "tests")
        for source, include in includes(folder)
        if include in expensive
    ]
    assert not wrong


PYTHON = ROOT / "client/python/src/nni_compression"
# What lies on top of the package is its interface: a client, its sessions, and their companions.
PYTHON_ALLOWED = {
    "errors": set(),
    "_wire": {"errors"},
    "values": {"_wire", "errors"},
    "_files": {"errors", "values"},
    "_transport": {"_wire", "errors", "values"},
    "_calls": {"_transport", "_wire", "errors", "values"},
    "_lifetime": {"errors"},
    "top": {"_calls", "_files", "_lifetime", "_transport", "_wire", "errors", "values"},
    "adapters": {"errors", "top", "values"},
    "torch": {"_files", "adapters", "errors", "top", "values"},
    "_tensorflow": {"_files", "adapters", "errors", "values"},
    "keras": {"_tensorflow", "adapters", "errors", "top", "values"},
    "tf1": {"_tensorflow", "adapters", "errors", "values"},
    "tensorflow": {"adapters", "keras", "tf1", "top", "values"},
    "integrations": {"_files", "adapters", "errors", "top", "torch", "values"},
}


def python_folder(module):
    """That of nni_compression.MODULE."""
    first = module.split(".")[0]
    return first if first in PYTHON_ALLOWED else "top"


def python_uses(source):
    """Folders that a module imports from when it runs; annotations alone need none."""
    package = source.relative_to(PYTHON).parent.parts
    tree = ast.parse(source.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    used = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0 or node in for_types:
            continue
        base = package[: len(package) - node.level + 1]
        name = ".".join((*base, *([node.module] if node.module else [])))
        used |= {python_folder(name)} if name else {python_folder(n.name) for n in node.names}
    return used


@pytest.mark.parametrize("folder", PYTHON_ALLOWED)
def test_the_folders_of_the_python_client_use_those_that_they_may(folder):
    sources = [p for p in PYTHON.rglob("*.py") if p.name != "_renamed.py"]
    mine = [
        p
        for p in sources
        if p != PYTHON / "__init__.py"
        and python_folder(".".join(p.relative_to(PYTHON).with_suffix("").parts)) == folder
    ]
    assert mine
    wrong = {
        f"{p.relative_to(PYTHON)} uses {used}"
        for p in mine
        for used in python_uses(p) - PYTHON_ALLOWED[folder] - {folder}
    }
    assert not wrong


def test_the_folders_of_the_python_client_have_no_cycle():
    graph = {folder: set(used) for folder, used in PYTHON_ALLOWED.items()}
    assert not [folder for folder in graph if folder in reachable(graph, folder)]


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
