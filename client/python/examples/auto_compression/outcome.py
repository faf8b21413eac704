"""What a search has found: a table, and a picture of accuracy against size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A finished trial: what was drawn for it, and its result."""

    name: str
    parameters: Mapping[str, Any]
    result: Mapping[str, float]

    @property
    def method(self) -> Mapping[str, Any]:
        """The algorithm, as "_name", and a value for each layer."""
        return next(iter(self.parameters.values()))  # type: ignore[no-any-return]

    @property
    def point(self) -> tuple[float, float]:
        """Share saved, and accuracy in percent."""
        return self.result["saved"], self.result["accuracy"]

    def line(self) -> str:
        """The trial in a table."""
        values = " ".join(
            f"{name}={value:.2f}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.method.items()
            if name != "_name"
        )
        saved, accuracy = self.point
        return (
            f"{self.name:<8}{self.method['_name']:<8}{accuracy:>8.1f} %{100 * saved:>8.1f} %"
            f"{self.result['default']:>9.2f}  {values}"
        )


HEAD = f"{'trial':<8}{'method':<8}{'accuracy':>10}{'saved':>10}{'score':>9}  drawn"


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in accuracy and in size; by size."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: trial.point, reverse=True):
        if not front or trial.point[1] > front[-1].point[1]:
            front.append(trial)
    return front[::-1]


def show(trials: Sequence[Trial], picture: Path) -> None:
    """Prints all trials, best first, and the best one's configuration; draws the picture."""
    ranked = sorted(trials, key=lambda trial: -trial.result["default"])
    front = pareto_front(trials)
    print(f"\n  {HEAD}")
    for trial in ranked:
        print("* " if trial in front else "  ", trial.line(), sep="")
    print("* no other trial is both smaller and more accurate")
    draw(trials, front, picture)
    print(f"\nbest: {dict(ranked[0].parameters)}")
    print(f"picture: {picture}")


def draw(trials: Sequence[Trial], front: Sequence[Trial], picture: Path) -> None:
    """Draws accuracy against the share saved, with the Pareto front, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for method in sorted({trial.method["_name"] for trial in trials}):
        points = [trial.point for trial in trials if trial.method["_name"] == method]
        axes.scatter([100 * x for x, _ in points], [y for _, y in points], label=method)
    line = [trial.point for trial in front]
    axes.plot([100 * x for x, _ in line], [y for _, y in line], "k--", label="Pareto front")
    axes.set_xlabel("saved of the weights' size, %")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
