"""Runs clang-tidy, with its thread-safety analysis, over the project's C++ files but the tests.

tidy.py [--each] CLANG_TIDY BUILD_FOLDER   the program; a built folder with compile_commands.json

Files that the build compiles together are checked together, since most of the time goes into the
headers that they share. With --each every file is checked by itself, so it also has to include what
it uses.

A unit that passed is remembered by a digest of all that clang-tidy saw of the project (files,
headers, flags, checks, version), so that an unchanged one costs nothing next time.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("proto/", "server/", "client/", "compression/")
CACHE = (
    pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    / "nni-compression-tidy"
)
EXTRA = [
    # g++ 12 needs no flag for it, so the compile commands have none.
    "--extra-arg-before=-std=c++17",
    "--extra-arg=-Wthread-safety",
    # The compile commands name flags of g++ that clang does not know.
    "--extra-arg=-Wno-unknown-warning-option",
    "--extra-arg=-Qunused-arguments",
    # g++ tells of those in our code; clang sees some inside g++'s own headers.
    "--extra-arg=-Wno-deprecated-declarations",
]


def sources(unit):
    """The files that a translation unit consists of."""
    if "/Unity/" not in unit:
        return [unit]
    return re.findall(r'^#include "(.+)"$', pathlib.Path(unit).read_text(), re.MULTILINE)


def units(entry, each):
    """The entries to check for one of the build's: itself, or one for each of its files.

    The compiler's launcher is left out.
    """
    unit = entry["file"]
    words = entry["command"].split(" ")
    words = words[next(i for i, word in enumerate(words) if word.endswith("c++")) :]
    for file in sources(unit) if each else [unit]:
        command = " ".join(file if word == unit else word for word in words)
        yield {**entry, "file": file, "command": command}


def is_own(path):
    path = pathlib.Path(path).resolve()
    return path.is_relative_to(ROOT) and str(path.relative_to(ROOT)).startswith(FOLDERS)


def own_units(commands):
    """(file, command, object) of every translation unit of the project's sources."""
    for entry in commands:
        if any(is_own(file) for file in sources(entry["file"])):
            output = re.search(r" -o (\S+)", entry["command"]).group(1)
            yield pathlib.Path(entry["file"]), entry["command"], output


def dependencies(build):
    """For every object, the files inside the checkout that it was compiled from."""
    listing = subprocess.run(
        ["ninja", "-C", build, "-t", "deps"], check=True, capture_output=True, text=True
    ).stdout
    found, current = {}, None
    for line in listing.splitlines():
        if line.startswith("    "):
            path = (build / line.strip()).resolve()
            if path.is_relative_to(ROOT):
                current.append(path)
        elif ":" in line:
            current = found.setdefault(line.split(":")[0], [])
    return found


def digest(version, command, paths):
    sha = hashlib.sha256(f"{version}{EXTRA}{command}".encode())
    for path in [ROOT / ".clang-tidy", *sorted(set(paths))]:
        sha.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def check(tidy, database, path, stamp):
    if stamp.exists():
        stamp.touch()
        return None
    run = subprocess.run(
        [tidy, "-p", database, "--quiet", *EXTRA, path], capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        stamp.touch()
        return None
    return run.stdout + run.stderr


def main():
    each = sys.argv[1] == "--each"
    tidy, build = sys.argv[-2], pathlib.Path(sys.argv[-1]).resolve()
    commands = json.loads((build / "compile_commands.json").read_text())
    commands = [unit for entry in commands for unit in units(entry, each)]
    database = build / "clang-tidy"
    database.mkdir(exist_ok=True)
    (database / "compile_commands.json").write_text(json.dumps(commands))
    CACHE.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([tidy, "--version"], check=True, capture_output=True, text=True).stdout
    inputs = dependencies(build)
    jobs = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, command, output in own_units(commands):
            # Without the build folder's place, so that another checkout shares what was found.
            command = command.replace(str(ROOT), "")
            stamp = CACHE / digest(
                version, command, [*map(pathlib.Path, sources(str(path))), *inputs.get(output, [])]
            )
            jobs.append(pool.submit(check, tidy, database, path, stamp))
    problems = [job.result() for job in jobs if job.result()]
    print(*problems, sep="\n", end="")
    print(f"clang-tidy: {len(jobs)} translation units, {len(problems)} with findings")
    sys.exit(1 if problems or not jobs else 0)


if __name__ == "__main__":
    main()
