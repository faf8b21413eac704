"""Receiving an artifact's files."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Optional

from .._wire import compression_pb2 as pb
from .._wire import frames
from ..errors import AlreadyExistsError, DataLossError
from .exchange import decode

_LONGEST_NAME = 255


def check_file_name(name: str) -> str:
    """`name` if it is a plain file name; DataLossError for one that could leave the directory."""
    plain = name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")
    if not plain or len(name.encode()) > _LONGEST_NAME:
        raise DataLossError(f"the server named a file {name!r}; it must be a plain file name")
    return name


def _is_exported_config(path: Path) -> bool:
    """Whether an export has written the file: it has only the quantization configuration."""
    try:
        config = json.loads(path.read_bytes())
        method = config["quantization_config"]["quant_method"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return len(config) == 1 and method == "compressed-tensors"


def _check_free(path: Path) -> None:
    """Raises AlreadyExistsError for another writer's file: models have a config.json, too."""
    if path.name == "config.json" and os.path.lexists(path) and not _is_exported_config(path):
        raise AlreadyExistsError(
            f"{path} already exists and was not written by an export; choose another directory"
        )


class _IncomingFile:
    """A file that is being received, under a temporary name next to its target."""

    def __init__(self, directory: Path, header: Any) -> None:
        self.target = directory / check_file_name(header.name)
        _check_free(self.target)
        self.warnings = list(header.warnings)
        self._length: int = header.byte_length
        self._temporary = directory / f".{secrets.token_hex(8)}.part"
        self._out: BinaryIO = self._temporary.open("xb")
        self._received = 0
        self._crc = 0
        self.complete = False

    def write(self, chunk: frames.ReceivedChunk) -> None:
        end = chunk.offset + len(chunk.payload)
        if self.complete or chunk.offset != self._received or end > self._length:
            raise DataLossError(
                f"file {self.target.name!r} got a chunk at {chunk.offset} to {end} after "
                f"{self._received} of {self._length} bytes"
            )
        self._out.write(chunk.payload)
        self._crc = zlib.crc32(chunk.payload, self._crc)
        self._received = end

    def finish(self, commit: Any) -> None:
        if self._received != self._length or commit.byte_length != self._length:
            raise DataLossError(
                f"file {self.target.name!r} got {self._received} bytes and a commit of "
                f"{commit.byte_length}; the header announced {self._length}"
            )
        if commit.HasField("crc32") and commit.crc32 != self._crc:
            raise DataLossError(f"the checksum of file {self.target.name!r} is wrong")
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        self.complete = True

    def publish(self) -> Path:
        os.replace(self._temporary, self.target)
        return self.target

    def discard(self) -> None:
        self._out.close()
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()


class ExportExchange:
    """Export. The files are renamed into place when all of them are complete, or not at all.

    A context manager that removes unfinished files.
    """

    def __init__(
        self,
        directory: Path,
        open_content: bytes,
        requests: Sequence[frames.Outgoing],
        checksum: bool,
    ) -> None:
        self.payload_bytes = sum(len(request.data) for request in requests)
        self.paths: list[Path] = []
        self.warnings: list[str] = []
        self._directory = directory
        self._open = open_content
        self._requests = requests
        self._checksum = checksum
        self._files: dict[int, _IncomingFile] = {}

    def __enter__(self) -> ExportExchange:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._discard()

    def messages(self) -> Iterator[bytes]:
        self._discard()
        return frames.request_messages(
            self._open, self._requests, headers_first=True, checksum=self._checksum
        )

    def receive(self, message: bytes) -> None:
        for number, content in frames.fields(message):
            if number == frames.FILE:
                self._begin(decode(pb.FileHeader, content))
            elif number == frames.CHUNK:
                chunk = frames.decode_chunk(content)
                self._at(chunk.index).write(chunk)
            elif number == frames.COMMIT:
                commit = decode(pb.Commit, content)
                self._at(commit.index).finish(commit)

    def finish(self) -> None:
        for file in self._files.values():
            if not file.complete:
                raise DataLossError(f"the server ended the call within file {file.target.name!r}")
        for file in self._files.values():
            _check_free(file.target)
        self.paths = [file.publish() for file in self._files.values()]
        self.warnings = [warning for file in self._files.values() for warning in file.warnings]
        self._files = {}

    def _begin(self, header: Any) -> None:
        names = [file.target.name for file in self._files.values()]
        if header.index in self._files or header.name in names:
            raise DataLossError(f"the server announced file {header.name!r} twice")
        self._files[header.index] = _IncomingFile(self._directory, header)

    def _at(self, index: int) -> _IncomingFile:
        if index not in self._files:
            raise DataLossError(f"the server sent a piece of file {index}, which has no header")
        return self._files[index]

    def _discard(self) -> None:
        for file in self._files.values():
            file.discard()
        self._files = {}
