"""Files that appear complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, Union

F = TypeVar("F", bound="NewFiles")


class NewFiles:
    """Writes files under temporary names beside their own; `written` gives all of them theirs.

    So a full disk or an interruption leaves old files as they were, and nothing half written.
    """

    def __init__(self) -> None:
        self._files: list[tuple[Path, Path]] = []
        self._token = secrets.token_hex(8)

    def temporary(self, path: Union[str, os.PathLike[str]]) -> Path:
        """Where to write the file that will be `path`: with the same ending, the same prefix."""
        target = Path(path)
        temporary = target.with_name(f".{self._token}.{target.name}")
        self._files.append((temporary, target))
        return temporary

    def written_as(self, path: Union[str, os.PathLike[str]]) -> Path:
        """Where the file that will be `path` lies until then."""
        return next(temporary for temporary, target in self._files if target == Path(path))

    def _publish(self) -> None:
        for temporary, target in self._files:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)

    def _discard(self) -> None:
        for temporary, _ in self._files:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

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
