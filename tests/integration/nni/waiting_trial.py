"""A trial that binds a session and trains until somebody stops it."""

import os
import threading

import nni
from killed_trial import LAYER

import nni_compression as nc
from nni_compression.nni import end_with_parent, pruning_choice

if __name__ == "__main__":
    end_with_parent()
    options = {"agp": {"end_epoch": 10}}
    choice = pruning_choice(nni.get_next_parameter(), options=options)
    client = nc.Client()
    with client.bind_model(*choice, [LAYER], labels={"pid": str(os.getpid())}):
        nni.report_intermediate_result(0.0)
        threading.Event().wait()
