"""A trial that prunes a layer, and of which the first one is killed as it trains.

The first trial writes its session's id into $RESULTS and kills itself; the others leave their masks
there. The first two play through what a busy machine makes of NNI 3.0 by chance: they get each
other's parameters, and the second one's result comes when NNI has noticed that the first is dead.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Callable, Optional

import nni
import numpy as np

import nni_compression as nc
from nni_compression.nni import pruning_choice

LAYER = nc.Layer("fc", "Linear", (100, 100))
WEIGHT = np.random.default_rng(1).standard_normal((100, 100), dtype=np.float32)
EPOCHS = 4
TIMEOUT = 120.0


def masks_of(
    parameters: object,
    client: nc.Client,
    after_epoch: Optional[Callable[[nc.Session, np.ndarray], None]] = None,
) -> np.ndarray:
    """The masks of all epochs of a pruning, [epochs, 100, 100]."""
    options = {"agp": {"start_epoch": 0, "end_epoch": EPOCHS - 1}}
    choice = pruning_choice(parameters, options=options)
    masks = []
    with client.bind_model(*choice, [LAYER], lease=3.0) as session:
        for epoch in range(EPOCHS):
            stale = session.update_epoch(epoch)
            if stale or not masks:
                masks.append(session.calc_mask({"fc": WEIGHT})["fc"].to_numpy())
            else:
                masks.append(masks[-1])
            if after_epoch is not None:
                after_epoch(session, masks[-1])
    return np.stack(masks)


class Stage:
    """What the trials of an experiment have reached, as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reach(self, what: str, content: str = "") -> None:
        """Tells the other trials."""
        (self._folder / what).write_text(content)

    def wait_for(self, what: str) -> None:
        """Waits until another trial has reached it."""
        deadline = time.monotonic() + TIMEOUT
        while not (self._folder / what).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no trial reached {what!r} in {TIMEOUT} s")
            time.sleep(0.05)


def main() -> None:
    results = Path(os.environ["RESULTS"])
    stage = Stage(results)
    number = int(os.environ["NNI_TRIAL_SEQ_ID"])
    stage.reach(f"trial {number} has started")
    if number == 0:
        stage.wait_for("trial 1 has parameters")
    parameters = nni.get_next_parameter()
    stage.reach(f"trial {number} has parameters")

    def after_epoch(session: nc.Session, mask: np.ndarray) -> None:
        if number == 0:
            stage.reach("killed", session.id)
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()
        nni.report_intermediate_result(float(mask.mean()))

    with nc.Client() as client:
        masks = masks_of(parameters, client, after_epoch)
    np.save(results / f"{os.environ['NNI_TRIAL_JOB_ID']}.npy", masks)
    if number == 1:
        stage.wait_for("trial 2 has started")  # in the dead one's place
    nni.report_final_result(float(1 - masks[-1].mean()))


if __name__ == "__main__":
    main()
