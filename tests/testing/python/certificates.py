"""Certificates for the tests, made by `openssl`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files in PEM."""

    certificate: Path
    key: Path


def _openssl(*arguments: object) -> None:
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class Authority:
    """A certificate authority that keeps its files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self.certificate = self._folder / "ca.pem"
        self._key = self._folder / "ca.key"
        self._made = 0
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        files = ("-keyout", self._key, "-out", self.certificate)
        _openssl("req", "-x509", *curve, "-subj", f"/CN={name}", "-days", 2, *files)

    def issue(self, name: str = "", *, names: str = "", days: int = 2) -> Certificate:
        """A certificate with this common name and alternative names ("DNS:a,URI:b").

        Valid for `days` from now; a negative number makes one that has expired.
        """
        self._made += 1
        stem = self._folder / f"{self._made}"
        request, extensions = stem.with_suffix(".csr"), stem.with_suffix(".ext")
        made = Certificate(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        subject = f"/CN={name}" if name else "/O=nobody"
        _openssl("req", *curve, "-subj", subject, "-keyout", made.key, "-out", request)
        extensions.write_text(
            f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n"
        )
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        files = ("-in", request, "-out", made.certificate, "-extfile", extensions)
        _openssl("x509", "-req", *signer, *files, "-days", days)
        return made
