"""A framework of a hundred lines: what `adapters.backend` has is all that a compressor needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
from nni_compression.adapters import pruner
from nni_compression.adapters.algorithms import listed
from nni_compression.adapters.backend import Backend, Pruning
from nni_compression.adapters.pruning import PrunerBinding
from nni_compression.values.plan import Parameter

LEVEL = [{"sparsity": 0.5, "op_types": ["Matrix"]}]


class State:
    """What stands between a matrix and its readers."""

    def __init__(self) -> None:
        self.pruner: Any = None
        self.quantizer: Any = None
        self.mask: Any = None


class Model:
    """Matrices that are multiplied, one after the other."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.matrices = {n: random.normal(size=(4, 4)).astype(np.float32) for n in ("a", "b")}
        self.states = {name: State() for name in self.matrices}

    def read(self, name: str) -> np.ndarray[Any, Any]:
        state = self.states[name]
        if state.pruner is not None:
            state.pruner()
        return self.matrices[name] if state.mask is None else self.matrices[name] * state.mask

    def __call__(self, x: Any) -> Any:
        for name in self.matrices:
            x = x @ self.read(name)
        return x


class Matrix:
    fits = True

    def __init__(self, model: Model, name: str) -> None:
        self.name = name
        self.model = model
        self.state = model.states[name]

    @property
    def op(self) -> Model:
        return self.model

    @property
    def tensor(self) -> np.ndarray[Any, Any]:
        return self.model.matrices[self.name]

    def layer(self) -> nc.Layer:
        return nc.Layer(name=self.name, op_type="Matrix", shape=self.tensor.shape)

    def token(self) -> Any:
        return self.tensor.tobytes()

    def is_taken(self, role: str) -> bool:
        return getattr(self.state, role) is not None


class NumpyPruning(Pruning[Matrix]):
    def install(
        self,
        binding: PrunerBinding[Matrix],
        given: Mapping[str, nc.Mask],
        undo: contextlib.ExitStack,
    ) -> None:
        for weight in binding.weights.values():
            weight.state.mask = given[weight.name].to_numpy() if weight.name in given else None
            weight.state.pruner = lambda weight=weight: binding.ensure_fresh(weight)

    def put(self, masks: Mapping[Matrix, nc.Mask]) -> None:
        for weight, mask in masks.items():
            weight.state.mask = mask.to_numpy()

    def mask(self, weight: Matrix) -> Any:
        return weight.state.mask

    def unwrap(self, binding: Any) -> None:
        for weight in binding.weights.values():
            weight.tensor[:] = weight.tensor * weight.state.mask
            weight.state.pruner = weight.state.mask = None


class NumpyBackend(Backend[Matrix]):
    framework = "pytorch"  # the server knows the names of layers of no other
    model_type = "a Model"
    asks_ahead = False

    def __init__(self, model: Model) -> None:
        self.model = model

    @staticmethod
    def accepts(value: Any) -> bool:
        return isinstance(value, Model)

    def find_weights(self, rules: Sequence[Mapping[str, Any]] = ()) -> Sequence[Matrix]:
        return [Matrix(self.model, name) for name in self.model.matrices]

    def parameters(self) -> Iterable[Parameter]:
        return [Parameter(w.name, "Matrix", 16, 2, w.name) for w in self.find_weights()]

    def read(self, weights: Sequence[Matrix]) -> Mapping[str, Any]:
        return {weight.name: weight.tensor for weight in weights}

    def pruning(self, own: Any) -> NumpyPruning:
        return NumpyPruning()

    def quantizing(self, own: Any) -> Any:
        raise NotImplementedError

    def has(self, binding: Any) -> bool:
        return all(weight.is_taken(binding.role) for weight in binding.weights.values())

    def exported(self, binding: Any) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        return dict(self.model.matrices), {name: f"{name}.weight" for name in self.model.matrices}


class Pruner(pruner.Pruner):
    _backends = (NumpyBackend,)


@listed
class LevelPruner(Pruner): ...


def kept(model: Model) -> list[int]:
    return [int(np.count_nonzero(model.read(name))) for name in model.matrices]


def test_a_model_is_pruned_resumed_and_exported(client: nc.Client, tmp_path: Path) -> None:
    model, x = Model(), np.eye(4, dtype=np.float32)
    pruner = LevelPruner(LEVEL, client=client)
    assert pruner(model) is model
    output = model(x)
    assert kept(model) == [8, 8]
    assert pruner.plan.coverage is not None
    assert pruner.plan.coverage.share == 1

    other = Model()
    resumed = LevelPruner(LEVEL, client=client)
    resumed.load_state_dict(pruner.state_dict())
    resumed(other)
    assert np.array_equal(other(x), output)

    (path,) = pruner.export(tmp_path)
    assert path.name == "model.safetensors"
    pruner.rebind()
    assert np.array_equal(model(x), output)
    assert pruner.unwrap() is model
    assert [int(np.count_nonzero(m)) for m in model.matrices.values()] == [8, 8]
    assert set(pruner.masks) == {"a", "b"}
    resumed.close()


def test_a_custom_algorithm_computes_with_its_tensors(client: nc.Client) -> None:
    class Diagonal(Pruner):
        def calc_mask(self, weight: Any, config: Mapping[str, Any], **kwargs: Any) -> Any:
            assert isinstance(weight, np.ndarray)
            return np.eye(4)

    model = Model()
    pruner = Diagonal([{}], client=client)
    pruner(model)
    assert kept(model) == [4, 4]
    pruner.close()


def test_what_is_not_its_model_is_refused(client: nc.Client) -> None:
    message = "model is a dict; it must be a Model"
    with pytest.raises(TypeError, match=message):
        LevelPruner({}, LEVEL, client=client)
    pruner = LevelPruner(LEVEL, client=client)
    with pytest.raises(TypeError, match=message):
        pruner({})
    pruner(Model())
    pruner.close()
