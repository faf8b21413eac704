"""Files that appear complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, Union

F = TypeVar("F", bound="NewFiles")

# Bytes of tensors in one file of ONNX: it is a message of Protocol Buffers, which ends at 2 GiB,
# and the graph needs some of these.
LARGEST_ONNX = 2**31 - 2**26


class NewFiles:
    """Writes files in a folder of its own beside them; `written` gives all of them their places.

    So a full disk or an interruption leaves old files as they were, and nothing half written. What
    a writer puts beside its file, under whatever name, moves along: the names by which such files
    refer to one another stay right.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}  # of the targets -> where their files are written
        self._token = secrets.token_hex(8)

    def temporary(self, path: Union[str, os.PathLike[str]]) -> Path:
        """Where to write the file that will be `path`, and where it lies until it is there."""
        target = Path(path)
        folder = self._folders.get(target.parent)
        if folder is None:
            folder = target.parent / f".{self._token}.part"
            folder.mkdir()
            self._folders[target.parent] = folder
        return folder / target.name

    def _publish(self) -> None:
        moves = [
            (file, parent / file.name)
            for parent, folder in self._folders.items()
            for file in sorted(folder.iterdir())
        ]
        for file, _ in moves:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        for file, target in moves:
            os.replace(file, target)

    def _discard(self) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    @contextlib.contextmanager
    def written(cls: type[F]) -> Iterator[F]:
        """The files appear at the end of the block, or, when it raises, not at all."""
        files = cls()
        try:
            yield files
            files._publish()
        finally:
            files._discard()
