"""A trial that prunes a layer, and of which one in each experiment is killed as it trains.

The trial that makes the file $KILLED first is the one. It says so there, with its session, and
waits for its end; the others leave their masks in $MASKS.
"""

import os
import signal
import threading
from pathlib import Path

import numpy as np

import nni
import nni_compression as nc
from nni_compression.nni import pruning_choice

LAYER = nc.Layer("fc", "Linear", (100, 100))
WEIGHT = np.random.default_rng(1).standard_normal((100, 100), dtype=np.float32)
EPOCHS = 4


def masks_of(parameters: object, client: nc.Client, after_epoch: object = None) -> np.ndarray:
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


def die_if_first(session: nc.Session) -> None:
    try:
        with Path(os.environ["KILLED"]).open("x") as file:
            file.write(session.id)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def main() -> None:
    parameters = nni.get_next_parameter()

    def after_epoch(session: nc.Session, mask: np.ndarray) -> None:
        die_if_first(session)
        nni.report_intermediate_result(float(mask.mean()))

    with nc.Client() as client:
        masks = masks_of(parameters, client, after_epoch)
    trial = os.environ["NNI_TRIAL_JOB_ID"]
    np.save(Path(os.environ["MASKS"]) / f"{trial}.npy", masks)
    nni.report_final_result(float(1 - masks[-1].mean()))


if __name__ == "__main__":
    main()
