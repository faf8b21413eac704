"""The search's trial, with NNI's formulas in the trainer instead of the service."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "client/python/examples"
sys.path[:0] = [str(EXAMPLES / "auto_compression"), str(EXAMPLES)]

import trial  # noqa: E402

import local_pruners  # noqa: E402

if __name__ == "__main__":
    trial.COMPRESSORS = {"agp": local_pruners.AGPPruner, "level": local_pruners.LevelPruner}
    trial.main()
