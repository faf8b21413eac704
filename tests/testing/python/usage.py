"""What a server holds, and whether it came to hold more."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# For a server's environment: glibc's heap gives back what is free at its end. By itself it keeps
# much of what was needed once, in as many arenas as there are threads.
FRUGAL_HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
# Another heap, which gives back every page that is free, so that what is resident is in use.
# glibc's keeps those below a block that lives on: most of what an attack needed for a moment.
EXACT_HEAP = {
    "LD_PRELOAD": "libjemalloc.so.2",
    "MALLOC_CONF": "narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0",
}
SHARED_FILE = "memfd:"
TCP_LISTEN = "0A"  # the state in /proc/net/tcp
TCP_ESTABLISHED = "01"
UNIX_LISTEN = "00010000"  # the flags in /proc/net/unix


def status(process_id: int, name: str) -> int:
    """A number of /proc/PID/status; sizes are in KiB there."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@dataclass(frozen=True)
class Usage:
    """What a server holds at one moment, of which a server that rests needs no more than before.

    Attributes:
        memory: bytes that are resident and its own (RssAnon).
        descriptors, threads: how many are open, how many run.
        shared: files of trainers' shared memory that are mapped or open.
        files, stored: number and bytes of what lies in the data directory, of the catalogue without
            its log, which is used again once it has its size.
    """

    memory: int
    descriptors: int
    threads: int
    shared: int
    files: int
    stored: int

    @classmethod
    def of(cls, process_id: int, data_dir: Path | None = None) -> Usage:
        """Reads it; the process has to live."""
        process = Path(f"/proc/{process_id}")
        files = [] if data_dir is None else [f for f in data_dir.rglob("*") if f.is_file()]
        descriptors = _targets(process / "fd")
        return cls(
            memory=status(process_id, "RssAnon") << 10,
            descriptors=len(descriptors),
            threads=status(process_id, "Threads"),
            shared=(process / "maps").read_text().count(SHARED_FILE)
            + sum(SHARED_FILE in target for target in descriptors),
            files=len(files),
            stored=sum(file.stat().st_size for file in files if not file.name.endswith("-wal")),
        )


def growth(before: Sequence[Usage], after: Sequence[Usage], memory: float) -> list[str]:
    """What became more between two times of rest, in words; empty where nothing leaks.

    Medians are compared. `memory` is the share by which memory may grow all the same; pools may
    have a few threads more, the catalogue some pages, and nothing else anything.
    """
    found = []
    for name, allowed, slack in (
        ("memory", memory, 0),
        ("descriptors", 0, 0),
        ("threads", 0, 4),
        ("shared", 0, 0),
        ("files", 0, 0),
        ("stored", 0, 256 << 10),
    ):
        first, last = (median(usages, name) for usages in (before, after))
        if last > first * (1 + allowed) + slack:
            found.append(f"{name} grew from {first:,.0f} to {last:,.0f}")
    return found


def median(usages: Sequence[Usage], name: str) -> float:
    """That of one attribute."""
    return float(statistics.median(getattr(usage, name) for usage in usages))


def connections(process_id: int) -> int:
    """How many sockets it has that do not listen, those that are about to be closed among them."""
    process = Path(f"/proc/{process_id}")
    listening = set()
    for table, inode, listens in (
        ("net/tcp", 9, TCP_LISTEN),
        ("net/tcp6", 9, TCP_LISTEN),
        ("net/unix", 6, UNIX_LISTEN),
    ):
        for line in (process / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == listens:
                listening.add(f"socket:[{fields[inode]}]")
    sockets = (target for target in _targets(process / "fd") if target.startswith("socket:"))
    return sum(socket not in listening for socket in sockets)


class Peers:
    """The ports from which others have been connected to a port of this host, as far as seen: every
    connection has one of its own.
    """

    def __init__(self, port: int) -> None:
        self._local = f":{port:04X}"
        self._seen: set[str] = set()

    def look(self) -> int:
        """How many have been seen so far, now included."""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, state = line.split()[:4]
            if local.endswith(self._local) and state == TCP_ESTABLISHED:
                self._seen.add(remote)
        return len(self._seen)


def _targets(folder: Path) -> list[str]:
    """What the descriptors of a process refer to."""
    found = []
    for link in folder.iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found
