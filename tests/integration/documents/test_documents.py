"""The documents say what is true: their code runs, their tables agree with the server."""

import json
import re

import pytest

import documents
import nni_compression as nc
import nni_compression.torch as adapter
from nni_compression import nni

# Packages that Debian does not have.
NEEDS = {
    "docs/tutorials/bert.md": ("transformers", "accelerate", "compressed_tensors"),
    "docs/tutorials/search.md": ("optuna",),
    "docs/tutorials/shrink.md": ("torch_pruning", "onnx", "onnxruntime", "onnxscript"),
    "docs/tutorials/cnn.md": ("onnx", "onnxruntime", "onnxscript"),
    "docs/shrink.md": ("torch_pruning",),
}
PRUNERS = documents.ROOT / "docs/pruners.md"
# That of TensorFlow runs with TensorFlow's tests.
PAGES_WITH_CODE = [
    page
    for page in documents.PAGES
    if documents.blocks(page, "python") and page.name != "tensorflow.md"
]


@pytest.fixture(scope="module")
def algorithms(server_address):
    with nc.Client(server_address) as client:
        return {algorithm.name: algorithm for algorithm in client.algorithms()}


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_from_top_to_bottom(page, server_address, tmp_path, monkeypatch):
    for package in NEEDS.get(page.relative_to(documents.ROOT).as_posix(), ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for line, source in documents.blocks(page, "python"):
        # Empty lines in front, so that a traceback has the page's numbers.
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)


def test_the_example_of_the_readme_writes_a_pruned_model(server_address, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    (_, source), *_ = documents.blocks(documents.ROOT / "README.md", "python")
    exec(compile(source, "README.md", "exec"), {})

    weights = torch.load("model.pth")
    for name, size in (("0.weight", 64 * 128), ("2.weight", 128 * 10)):
        assert int((weights[name] == 0).sum()) >= int(size * 0.8)


def test_the_readme_names_every_algorithm_with_its_options(algorithms, server_address):
    """Those that exist with the defaults of choices, as in each algorithm's example."""
    rows = documents.table((documents.ROOT / "README.md").read_text(), "algorithm")
    kinds = {"masks": "pruner", "quantized weights": "quantizer"}
    said = {
        name.strip("`"): (kinds[gives], sorted(re.findall(r"`(\w+)`", options)))
        for name, gives, options in rows
    }
    true = {}
    layer = nc.Layer(name="layer", op_type="Linear", shape=(4, 4))
    with nc.Client(server_address) as client:
        for name, algorithm in algorithms.items():
            with client.bind_model(name, [algorithm.example], [layer]) as session:
                true[name] = (algorithm.kind, sorted(session.plan.layers["layer"].options))
    assert said == true


def option_row(option):
    default = "required" if option.required else json.dumps(option.default)
    return (option.name, option.type, default, option.range)


def test_the_pages_of_algorithms_have_every_option_with_type_default_and_range(algorithms):
    pages = {"pruner": "pruners.md", "quantizer": "quantizers.md"}
    presets = {row[0].strip("`") for row in documents.table(PRUNERS.read_text(), "preset")}
    for name, algorithm in algorithms.items():
        text = (documents.ROOT / "docs" / pages[algorithm.kind]).read_text()
        if name in presets:  # test_presets.py
            assert documents.section(text, name)
            continue
        rows = documents.table(documents.section(text, name), "option")
        said = [(row[0].strip("`"), *row[1:4]) for row in rows]
        assert sorted(said) == sorted(map(option_row, algorithm.options)), name
        for row in rows:
            option = next(o for o in algorithm.options if o.name == row[0].strip("`"))
            for alias in option.aliases:
                assert f"`{alias}`" in row[4], f"{name}.{option.name} is also called {alias}"


def test_the_pages_of_algorithms_have_no_algorithm_that_the_server_lacks(algorithms):
    for page in ("pruners.md", "quantizers.md"):
        text = (documents.ROOT / "docs" / page).read_text()
        for heading in re.findall(r"^## (.*)$", text, re.MULTILINE):
            if "| option |" in documents.section(text, heading):
                assert heading in algorithms


@pytest.mark.parametrize(
    ("module", "page"),
    [(nc, "python.md"), (adapter, "python.md"), (nni, "nni.md")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_python_reference_mentions_every_public_name(module, page):
    text = (documents.ROOT / "docs" / page).read_text()
    missing = [name for name in module.__all__ if not re.search(rf"\b{name}\b", text)]
    assert not missing


@pytest.mark.parametrize(
    "name", ["Client", "Session", "Mask", "Plan", "LayerPlan", "Layer"], ids=lambda name: name
)
def test_the_python_reference_mentions_every_public_method(name):
    text = (documents.ROOT / "docs/python.md").read_text()
    members = [member for member in vars(getattr(nc, name)) if not member.startswith("_")]
    internal = {"from_wire", "to_wire"}
    missing = [m for m in members if m not in internal and not re.search(rf"\b{m}\b", text)]
    assert not missing


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_the_page_of_attacks_names_tests_that_exist():
    tests = documents.ROOT / "tests"
    known = {
        f"{suite}.{name}"
        for source in tests.rglob("*.cc")
        for suite, name in re.findall(r"^TEST\w*\((\w+),\s*(\w+)\)", source.read_text(), re.M)
    }
    known |= {
        f"{source.name}::{name}"
        for source in tests.rglob("*.py")
        for name in re.findall(r"^ *def (test_\w+)\(", source.read_text(), re.M)
    }
    rows = documents.table((documents.ROOT / "docs/reliability.md").read_text(), "attack")
    named = {name for row in rows for name in re.findall(r"`([\w.:]+)`", row[-1])}
    assert len(named) > 50
    assert named - known == set()
