"""A session as the formulas have it: what trainers that are interrupted are compared with.

It is plain on purpose. What a trainer knows at some time is a copy of it, and to continue from
there is to continue with the copy: whatever becomes of the server and its sessions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import oracles

Array = np.ndarray[Any, Any]
F32 = np.float32
DECAY, REST = F32(0.99), F32(0.01)


@dataclass
class Session:
    """One algorithm over some layers; everything that it remembers.

    Attributes:
        rule: of the config_list.
        transfer: what an adapter sends, "weights" or "ranges".
        epoch, step: where training is.
        applied: the highest step that was applied; None: none yet.
    """

    algorithm: str
    rule: Mapping[str, Any]
    transfer: str = "weights"
    epoch: int = 0
    step: int = 0
    applied: int | None = None
    masks: dict[str, Array] = field(default_factory=dict)
    scales: dict[str, np.float32] = field(default_factory=dict)
    ranges: dict[tuple[str, str], tuple[np.float32, np.float32]] = field(default_factory=dict)

    def fork(self) -> Session:
        """What a checkpoint has."""
        return copy.deepcopy(self)

    @property
    def prunes(self) -> bool:
        return self.algorithm in ("level", "agp")

    @property
    def quantizes_now(self) -> bool:
        return self.step >= int(self.rule.get("quant_start_step", 0))

    def targets(self) -> Sequence[str]:
        """What of "output" and "input" is quantized."""
        return [t for t in self.rule.get("quant_types", ()) if t != "weight"]

    def ask(self, name: str, weight: Array) -> Array:
        """The compressed weight, for a layer that is asked for now."""
        if self.prunes:
            return np.where(self.mask(name, weight), weight, F32(0))
        if self.algorithm == "naive":
            return self._naive(name, weight)
        if not self.quantizes_now:
            return weight
        if self.algorithm == "dorefa":
            return oracles.dorefa(weight, self.rule["quant_bits"]).values
        scheme = self.rule.get("quant_scheme", "per_tensor_affine")
        axis = 0 if scheme.startswith("per_channel") else None
        bits = self.rule.get("quant_bits", 8)
        return oracles.qat(weight, bits, scheme.endswith("symmetric"), axis).values

    def mask(self, name: str, weight: Array) -> Array:
        """The mask in force for a layer that is asked for now: the first weight decides."""
        if self.algorithm == "level":
            if name not in self.masks:
                self.masks[name] = oracles.level(weight, self.rule["sparsity"])
            return self.masks[name]
        pruned = ~self.masks[name] if name in self.masks else None
        schedule = oracles.Agp(
            final=self.rule["final_sparsity"],
            end=self.rule["end_epoch"],
            initial=self.rule.get("initial_sparsity", 0.0),
            start=self.rule.get("start_epoch", 0),
            frequency=self.rule.get("frequency", 1),
            pruned=pruned,
        )
        self.masks[name] = schedule.mask(weight, self.epoch)
        return self.masks[name]

    def take_step(
        self,
        step: int,
        weights: Mapping[str, Array],
        seen: Mapping[tuple[str, str], tuple[float, float]],
    ) -> None:
        """A step with the weights whose ranges it carries, and the activations seen since the last.

        Nothing happens for one that was taken.
        """
        if self.applied is not None and step <= self.applied:
            return
        self.step = self.applied = step
        if self.algorithm == "naive":
            for name, weight in weights.items():
                self._naive(name, weight)
        for key, (low, high) in seen.items():
            new = F32(low), F32(high)
            if key in self.ranges:
                old = self.ranges[key]
                new = tuple(DECAY * o + REST * n for o, n in zip(old, new))  # type: ignore
            self.ranges[key] = new

    def activation(self, key: tuple[str, str]) -> tuple[float, int, int, int] | None:
        """Scale, zero point, smallest and largest code; None: values pass unchanged."""
        if key not in self.ranges or not self.quantizes_now:
            return None
        bits = self.rule.get("quant_bits", 8)
        symmetric = str(self.rule.get("quant_scheme", "")).endswith("symmetric")
        codes = oracles.qat(np.array(self.ranges[key], F32), bits, symmetric)
        top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        return float(codes.scale), int(codes.zero_point), -top if symmetric else 0, top

    def _naive(self, name: str, weight: Array) -> Array:
        codes = oracles.naive(weight, self.scales.get(name, F32(0)))
        self.scales[name] = F32(codes.scale)
        return codes.values
