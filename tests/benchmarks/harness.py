"""Measuring side by side: contenders take turns, so that the machine's moods hit all of them."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable


@dataclass(frozen=True)
class Line:
    """A line of the table: a contender's median with its spread, and its ratio to the baseline.

    Attributes:
        values: one a round, in `unit`.
        ratio: median over the rounds of this value by the baseline's of the same round.
        ratios: one a round.
    """

    name: str
    unit: str
    values: Sequence[float]
    ratio: float | None = None
    ratios: Sequence[float] = ()


@dataclass(frozen=True)
class Goal:
    """A ratio that docs/performance.md promises.

    Attributes:
        name: "P1".
        what: the ratio in words.
        bound: what its median has to be, at least or at most.
        values: one a round.
    """

    name: str
    what: str
    bound: float
    values: Sequence[float]
    at_least: bool = True
    unit: str = "x"

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side of the bound."""
        median = statistics.median(self.values)
        return median >= self.bound if self.at_least else median <= self.bound


@dataclass(frozen=True)
class Benchmark:
    """A title and its lines; `note` says what one should know to read them."""

    title: str
    lines: Sequence[Line]
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    goals: Sequence[Goal] = ()


def run_program(name: str, python: str, *arguments: object, **environment: str) -> str:
    """What a program of this folder prints, run by the Python in the variable `python`."""
    program = Path(__file__).resolve().parent / name
    done = subprocess.run(
        [os.environ[python], str(program), *map(str, arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def figures_of(name: str, python: str) -> Any:
    """What a program of this folder writes as JSON into the file that is its argument.

    The file's folder is a new one, for all else that the program writes.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        run_program(name, python, file)
        return json.loads(file.read_text(encoding="utf-8"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(call: Callable[[], object]) -> float:
    """How long a call took; a call that returns a float has measured itself."""
    gc.collect()
    start = time.perf_counter()
    measured = call()
    elapsed = time.perf_counter() - start
    return measured if isinstance(measured, float) else elapsed


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after a round that does not count.

    A contender's turn is `repeat` calls in a row, of which the median counts: where a contender
    leaves the machine's memory in another state, the first call after it pays for that.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name, call in contenders.items():
            taken = statistics.median(seconds(call) for _ in range(repeat))
            if number >= 0:
                times[name].append(taken)
    return times


def quotients(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under)]


def lines(
    times: Mapping[str, Sequence[float]], baseline: str, *, scale: float = 1e3, unit: str = "ms"
) -> list[Line]:
    """Times as lines with ratios to the baseline: 0.1 is ten times as fast."""
    found = []
    for name, values in times.items():
        ratios = quotients(values, times[baseline])
        scaled = [value * scale for value in values]
        if name == baseline:
            found.append(Line(name, unit, scaled))
        else:
            found.append(Line(name, unit, scaled, statistics.median(ratios), ratios))
    return found


def rates(times: Mapping[str, Sequence[float]], baseline: str, size: int) -> list[Line]:
    """Times of moving `size` bytes as GB/s, with ratios of rates: 0.5 is half as fast."""
    per_second = {name: [size / t / 1e9 for t in values] for name, values in times.items()}
    return lines(per_second, baseline, scale=1, unit="GB/s")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`median (min to max)`."""
    shown = [_short(v, digits) for v in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def show(benchmark: Benchmark) -> str:
    """The benchmark as text."""
    out = [benchmark.title]
    width = max(len(line.name) for line in benchmark.lines)
    for line in benchmark.lines:
        text = f"  {line.name:<{width}}  {spread(line.values):>26} {line.unit:<7}"
        if line.ratio is not None:
            text += f"  x {spread(line.ratios)}"
        out.append(text.rstrip())
    if benchmark.note:
        out.append(f"  {benchmark.note}")
    return "\n".join(out)


def show_goals(goals: Sequence[Goal]) -> str:
    """A line for each: what was promised, what was measured, and whether it was reached."""
    width = max(len(goal.what) for goal in goals)
    out = ["Goals: medians with smallest and largest value"]
    for goal in goals:
        bound = f"at {'least' if goal.at_least else 'most'} {goal.bound:g} {goal.unit}"
        measured = f"{spread(goal.values)} {goal.unit}"
        verdict = "reached" if goal.reached else "NOT REACHED"
        out.append(f"  {goal.name} {goal.what:<{width}}  {bound:<17} {measured:<28} {verdict}")
    return "\n".join(out)


def as_json(benchmark: Benchmark) -> dict[str, Any]:
    """The benchmark for programs."""
    found = asdict(benchmark)
    for goal, content in zip(benchmark.goals, found["goals"]):
        content["reached"] = goal.reached
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import grpc
    import numpy
    import torch

    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo", encoding="utf-8") as file:
        kilobytes = int(file.readline().split()[1])
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(models),
        "memory_gib": round(kilobytes / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "numpy": numpy.__version__,
        "grpcio": grpc.__version__,
    }


def _short(value: float, digits: int) -> str:
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"
