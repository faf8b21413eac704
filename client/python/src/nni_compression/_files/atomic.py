"""Files that appear complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, Union

F = TypeVar("F", bound="NewFiles")

# Maximum bytes of tensors in one ONNX file: a Protocol Buffers message is limited to 2 GiB, which
# has to hold the graph, too.
LARGEST_ONNX = 2**31 - 2**26


class NewFiles:
    """Writes files in a temporary folder next to their targets; `written` moves them into place.

    A full disk or an interruption leaves old files unchanged and no partial ones. Additional files
    that a writer puts next to its file, or into folders there, are moved as well, under the same
    names, so that references between such files stay valid.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}  # folder of the targets -> temporary folder
        self._token = secrets.token_hex(8)

    def temporary(self, path: Union[str, os.PathLike[str]]) -> Path:
        """The temporary path of the file that will be moved to `path`."""
        target = Path(path)
        folder = self._folders.get(target.parent)
        if folder is None:
            folder = target.parent / f".{self._token}.part"
            folder.mkdir()
            self._folders[target.parent] = folder
        return folder / target.name

    def _publish(self) -> None:
        moves = [
            (file, parent / file.relative_to(folder))
            for parent, folder in self._folders.items()
            for file in files_in(folder)
        ]
        for file, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
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
        """Moves the files into place at the end of the block; discards them when it raises."""
        files = cls()
        try:
            yield files
            files._publish()
        finally:
            files._discard()


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and in the folders there, in order."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())
