"""Lets NNI wait for its web server: it gives up after four seconds, and the machine may be busy.

Python imports this at its start where the folder is in PYTHONPATH.
"""

import importlib.abc
import importlib.machinery
import sys

SECONDS = 120


class _Patient(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "nni.experiment.launcher":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def run_patiently(module):
            run(module)
            assert module._check_rest_server.__defaults__ == (3, None)  # attempts, and no prefix
            module._check_rest_server.__defaults__ = (SECONDS, None)

        spec.loader.exec_module = run_patiently
        return spec


sys.meta_path.insert(0, _Patient())
