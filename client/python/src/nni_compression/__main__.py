"""The program ``nni-compression``, also ``python -m nni_compression``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Optional

from .client import server_address
from .doctor import ERROR, Finding, diagnose


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="nni-compression", description="Tools of the NNI compression service's Python client."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="check the connection to a server, and say what is wrong",
        description="Checks address, TLS, token, versions and shared memory as a trainer with this "
        "environment would use them, and compresses a small layer. The exit status is 0 if nothing "
        "is an error.",
    )
    doctor.add_argument(
        "--server",
        metavar="ADDRESS",
        help="HOST:PORT, unix:PATH, or local; by default $NNI_COMPRESSION_SERVER, else "
        "127.0.0.1:50051",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    return _doctor(options.server, options.json)


def _doctor(server: Optional[str], as_json: bool) -> int:
    findings = []
    for finding in diagnose(server):
        findings.append(finding)
        if not as_json:
            print(_lines(finding), flush=True)
    healthy = all(finding.state != ERROR for finding in findings)
    if as_json:
        report = {
            "server": server_address(server),
            "ok": healthy,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(report, indent=2))
    return 0 if healthy else 1


def _lines(finding: Finding) -> str:
    line = f"{finding.state:8} {finding.item:14} {finding.message}"
    return line + (f"\n{'':8} {'':14} -> {finding.remedy}" if finding.remedy else "")


if __name__ == "__main__":
    sys.exit(main())
