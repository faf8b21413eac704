"""Turns gRPC's own fork handlers off.

Imported before gRPC, which reads the variable once: 1.51 when the process makes its first channel,
1.85 when it is imported.

The handlers fail when other threads are in calls: those of 1.51 may deadlock with such threads, and
those of 1.85 time out, after which the child aborts on an inconsistent poller. Without handlers a
child must not touch the channels that it inherited.
"""

from __future__ import annotations

import os

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"

os.environ.setdefault(_VARIABLE, "0")


def fork_support() -> bool:
    """Whether the user has enabled gRPC's fork support.

    If gRPC had read the variable before this module was imported, its handlers may be active
    although this returns False: a fork may then hang, but a child still does nothing unsafe.
    """
    return os.environ.get(_VARIABLE, "").lower() in ("1", "true", "yes", "y", "t")
