"""Tests with real NNI; `tests/run.sh nni` makes the environment that has it."""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "client/python/examples/auto_compression"
sys.path[:0] = [
    str(folder)
    for folder in (
        ROOT / "client/python/src",
        ROOT / "tests/testing/python",
        ROOT / "client/python/examples",
        EXAMPLES,
    )
]

_PATIENCE = Path(__file__).parent / "patience"
#: Of programs that start experiments.
PYTHON_PATH = os.pathsep.join(map(str, (ROOT / "client/python/src", _PATIENCE)))
runpy.run_path(str(_PATIENCE / "sitecustomize.py"))
#: Of NNI's manager, which every experiment has.
os.environ["NODE_OPTIONS"] = f'--require "{_PATIENCE / "patience.js"}"'
