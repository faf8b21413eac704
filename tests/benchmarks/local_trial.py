"""The search's trial, with NNI's formulas in the trainer instead of the service."""

import trial

import local_pruners

if __name__ == "__main__":
    trial.COMPRESSORS = {"agp": local_pruners.AGPPruner, "level": local_pruners.LevelPruner}
    trial.main()
