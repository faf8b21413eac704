"""Tests with real NNI; `tests/run.sh nni` makes the environment that has it."""

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
