"""The long runs; tests/soak.sh is how to start them."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

from kills import Killed, kill
from mixed import Plan, Soaked, soak
from servers import ROOT
from usage import median

PLUGINS = ROOT / "build/release/tests/compression/plugins"
LABELS = {
    "memory": "memory of its own, resident",
    "descriptors": "open descriptors",
    "threads": "threads",
    "shared": "files of shared memory",
    "files": "files in the data directory",
    "stored": "bytes in the data directory",
}


def machine() -> str:
    """What this runs on, in a few words."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    system = re.search(r'^PRETTY_NAME="(.*)"$', Path("/etc/os-release").read_text(), re.M)
    parts = (
        f"{len(os.sched_getaffinity(0))} cores {cpu[1] if cpu else platform.machine()}",
        f"{round(int(memory[1]) / (1 << 20))} GiB" if memory else "",
        system[1] if system else platform.system(),
    )
    return ", ".join(filter(None, parts))


def kills_report(killed: Killed) -> list[str]:
    """Paragraphs on the kills."""
    runs = ", ".join(f"{count} {name}" for name, count in killed.runs.items())
    return [
        f"**{len(killed.kills)} kills** (seed {killed.seed}, {killed.seconds:.0f} s): the server"
        f" was killed 0 to {max(killed.kills):.2f} s after it had answered something, while"
        f" {len(killed.runs)} trainers worked. {killed.answers:,} answers were compared with those"
        f" of runs that nobody disturbed, all equal; {killed.retries:,} attempts were cut off or"
        f" found no server, and {sum(killed.runs.values())} runs came to their end ({runs}).",
    ]


def soak_report(soaked: Soaked) -> list[str]:
    """Paragraphs and a table on the soak."""
    ran = ", ".join(f"{count:,} {name}" for name, count in sorted(soaked.jobs.items()))
    measured = soaked.measured
    before, after = soaked.ends
    lines = [
        f"**{soaked.seconds / 60:.0f} minutes** (seed {soaked.seed}): {soaked.plan.trainers}"
        f" trainers ran {sum(soaked.jobs.values()):,} jobs ({ran}), every answer as in a quiet run."
        f" {soaked.trainers_killed} trainers and {soaked.servers_killed} servers were killed,"
        f" {soaked.servers_drained} servers drained; the last server process was measured at"
        f" {len(measured)} rests from minute {measured[0].at / 60:.0f} to"
        f" {measured[-1].at / 60:.0f}.",
        "",
        f"| median of {soaked.plan.rests} rests | first | last | |",
        "|---|---|---|---|",
    ]
    for name, label in LABELS.items():
        lines.append(_row(label, median(before, name), median(after, name)))
    verdict = "; ".join(soaked.leaks) or "nothing leaks"
    return [*lines, "", f"Judgement: {verdict}."]


def _row(label: str, first: float, last: float) -> str:
    change = f"{100 * (last - first) / first:+.2f} %" if first else "0"
    return f"| {label} | {first:,.0f} | {last:,.0f} | {change} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often (%(default)s; 0: none)")
    parser.add_argument("--minutes", type=float, default=30, help="to soak (%(default)s; 0: none)")
    parser.add_argument("--seed", type=int, default=1, help="of all random moments (%(default)s)")
    parser.add_argument("--plugins", type=Path, default=PLUGINS / "good", help="folder of plugins")
    parser.add_argument("--report", type=Path, help="file to write the report to, in Markdown")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, flush=True)

    today = datetime.date.today().isoformat()
    report = [f"Run on {today} by `tests/soak.sh`, on {machine()}.", ""]
    status = 0
    if options.kills > 0:
        with tempfile.TemporaryDirectory(prefix="nni-kills-") as folder:
            killed = kill(Path(folder) / "data", options.kills, options.seed, say)
        report += [*kills_report(killed), ""]
    if options.minutes > 0:
        plan = Plan(seconds=60 * options.minutes)
        soaked = soak(plan, options.seed, [f"--plugin_dir={options.plugins}"], say)
        report += [*soak_report(soaked), ""]
        status = 1 if soaked.leaks else 0
    text = "\n".join(report)
    if options.report is not None:
        options.report.write_text(text)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
