"""Runs a framework's column of the table in docs/frameworks.md."""

from __future__ import annotations

import tempfile
from typing import Any

import documents

PAGE = documents.ROOT / "docs/frameworks.md"
COLUMNS = ("PyTorch", "TensorFlow graph", "Keras")


def run_column(column: str, names: dict[str, Any]) -> None:
    """Runs its cells from top to bottom; `names` has what they need that none of them makes."""
    names.update(
        __name__="__main__",  # classes made here are not the adapter's own
        level=[{"sparsity": 0.5, "op_types": ["default"]}],
        agp=[{"final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}],
        qat=[{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["default"]}],
        outputs=[{"quant_types": ["output"], "op_types": ["default"]}],
    )
    with tempfile.TemporaryDirectory() as folder:
        names["folder"] = folder
        for row in documents.table(PAGE.read_text(), "What"):
            cell = row[1 + COLUMNS.index(column)].strip().strip("`")
            try:
                exec(compile(cell, f"{PAGE} ({row[0]})", "exec"), names)
            except Exception as error:
                raise AssertionError(f"{row[0]}: {cell}: {error}") from error
    assert names["p"].steps == 5
