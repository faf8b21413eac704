"""Turns gRPC's own handlers of fork() off; imported before gRPC, which reads the variable once:
1.51 when the process makes its first channel, 1.85 when it is imported.

They do harm where other threads are in calls: those of 1.51 wait for threads that may wait for the
end of the fork, and those of 1.85 give up, after which the child aborts on half of its poller's
state. Without them a child must not touch what it inherited.
"""

from __future__ import annotations

import os

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"

os.environ.setdefault(_VARIABLE, "0")


def fork_support() -> bool:
    """Whether somebody wants gRPC to support forks.

    Where gRPC had read the variable before, its handlers are in force although nobody wants them:
    what forks then may hang, but nothing that a child must not do is taken for allowed.
    """
    return os.environ.get(_VARIABLE, "").lower() in ("1", "true", "yes", "y", "t")
