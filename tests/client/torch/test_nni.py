"""Search spaces, choices, and what a process inside an NNI trial does by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import nni_compression as nc
from nni_compression.nni import (
    pruning_choice,
    pruning_space,
    quantization_choice,
    quantization_space,
    report_final_result,
    trial_labels,
)
from nni_compression.torch import layers
from servers import ServerProcess

SOURCES = Path(nc.__file__).parents[1]
TIMEOUT = 60.0
LAYERS = [
    nc.Layer("conv", "Conv2d", (8, 1, 3, 3)),
    nc.Layer("norm", "BatchNorm2d", (8,)),
    nc.Layer("fc", "Linear", (10, 8)),
]
TRIAL = {"NNI_EXP_ID": "exp1", "NNI_TRIAL_JOB_ID": "trial1", "NNI_TRIAL_SEQ_ID": "3"}


def drawn(space: dict[str, Any], algorithm: int, pick: Any) -> dict[str, Any]:
    """What a tuner gives for a nested choice: `pick` of each entry of the chosen algorithm."""
    ((key, choice),) = space.items()
    assert choice["_type"] == "choice"
    method = choice["_value"][algorithm]
    values = {k: pick(v["_value"]) for k, v in method.items() if k != "_name"}
    return {key: {"_name": method["_name"], **values}}


class TestSearchSpaces:
    def test_a_sparsity_for_each_layer_with_a_matrix_under_each_algorithm(self) -> None:
        space = pruning_space(LAYERS, sparsity=(0.2, 0.8), bounds={"conv": (0.0, 0.5)})
        entry = {
            "conv": {"_type": "uniform", "_value": [0.0, 0.5]},
            "fc": {"_type": "uniform", "_value": [0.2, 0.8]},
        }
        assert space == {
            "prune_method": {
                "_type": "choice",
                "_value": [{"_name": "agp", **entry}, {"_name": "level", **entry}],
            }
        }

    def test_a_number_of_bits_for_each_layer(self) -> None:
        space = quantization_space(LAYERS, algorithms=["qat"], choices={"conv": [8]})
        (method,) = space["quantize_method"]["_value"]
        assert method["_name"] == "qat"
        assert method["conv"] == {"_type": "choice", "_value": [8]}
        assert method["fc"] == {"_type": "choice", "_value": [2, 4, 8]}

    def test_a_models_layers_need_not_be_typed(self) -> None:
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        (method, _) = pruning_space(layers(model))["prune_method"]["_value"]
        assert set(method) == {"_name", "0"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"bounds": {"fv": (0, 1)}}, r"\['fv'\] are not among .*'conv', 'fc'"),
            ({"sparsity": (0.5, 1.5)}, r"layer 'conv' is 1.5; it must be in \[0, 1\]"),
            ({"sparsity": (0.5, 0.4)}, r"bounds of layer 'conv' are 0.5 > 0.4"),
            ({"algorithms": "agp"}, "algorithms is 'agp'"),
            ({"algorithms": []}, r"algorithms is \[\]"),
        ],
    )
    def test_bad_bounds_are_named(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=message):
            pruning_space(LAYERS, **arguments)

    def test_a_model_without_matrices_has_no_space(self) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="two or more dimensions"):
            quantization_space(LAYERS[1:2])


class TestChoices:
    @pytest.mark.parametrize("algorithm", [0, 1])
    def test_what_is_drawn_from_a_pruning_space_binds(
        self, client: nc.Client, algorithm: int
    ) -> None:
        parameters = drawn(pruning_space(LAYERS), algorithm, lambda bounds: sum(bounds) / 2)
        choice = pruning_choice(
            {"rate": 0.1, **parameters},
            options={"agp": {"start_epoch": 0, "end_epoch": 4}},
            layers=LAYERS,
        )
        with client.bind_model(*choice, LAYERS) as session:
            plan = session.plan
            assert plan.compressed == ("conv", "fc")
            assert plan.warnings == ()
            option = {"agp": "final_sparsity", "level": "sparsity"}[choice.algorithm]
            assert [plan.layers[n].options[option] for n in plan.compressed] == [0.5, 0.5]

    @pytest.mark.parametrize("algorithm", [0, 1])
    def test_what_is_drawn_from_a_quantization_space_binds(
        self, client: nc.Client, algorithm: int
    ) -> None:
        parameters = drawn(quantization_space(LAYERS), algorithm, lambda values: values[1])
        with client.bind_model(*quantization_choice(parameters), LAYERS) as session:
            plan = session.plan
            assert [plan.layers[name].options["quant_bits"] for name in ("conv", "fc")] == [4, 4]

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({}, "must have 'prune_method' with an algorithm's '_name'"),
            (None, "must have 'prune_method'"),
            ({"prune_method": {"conv": 0.5}}, "'_name'"),
            ({"prune_method": {"_name": "agp"}}, "a value for each layer"),
            ({"prune_method": {"_name": "agp", "conv": 1.5}}, r"'conv' is 1.5; it must be in \[0"),
            ({"prune_method": {"_name": "agp", "conv": "0.5"}}, "'conv' is '0.5'"),
            ({"prune_method": {"_name": "agp", "conv": float("nan")}}, "'conv' is nan"),
            ({"prune_method": {"_name": "agp", "cnov": 0.5}}, r"\['cnov'\] are not among"),
        ],
    )
    def test_what_no_space_gives_is_refused(self, parameters: Any, message: str) -> None:
        with pytest.raises(nc.InvalidArgumentError, match=message):
            pruning_choice(parameters, layers=LAYERS)

    @pytest.mark.parametrize("bits", [0, 17, 4.5, float("inf"), True, "8"])
    def test_bits_are_whole_numbers(self, bits: Any) -> None:
        with pytest.raises(nc.InvalidArgumentError, match="the bits of layer 'fc' are"):
            quantization_choice({"quantize_method": {"_name": "qat", "fc": bits}})


class TestLabels:
    def test_there_are_none_outside_a_trial(self) -> None:
        assert trial_labels({}) == {}
        assert trial_labels({"NNI_EXP_ID": "exp1"}) == {}  # NNI's own processes

    def test_a_session_of_a_trial_is_found_by_its_experiment(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in TRIAL.items():
            monkeypatch.setenv(name, value)
        with client.bind_model(
            "level", [{"sparsity": 0.5}], LAYERS, labels={"nni_sequence": "mine", "run": "7"}
        ) as session:
            (info,) = client.sessions({"nni_experiment": "exp1"})
            assert info.id == session.id
            assert info.labels == {
                "nni_experiment": "exp1",
                "nni_trial": "trial1",
                "nni_sequence": "mine",
                "run": "7",
            }


TRAINER = """
import sys, threading
import nni_compression as nc
client = nc.Client(sys.argv[1])
if "opt in" in sys.argv:
    from nni_compression.nni import end_with_parent
    end_with_parent()
layer = nc.Layer("fc", "Linear", (10, 8))
session = client.bind_model("level", [{"sparsity": 0.5}], [layer])
print(session.id, [thread.name for thread in threading.enumerate()], flush=True)
threading.Event().wait(600)
"""


def start_trainer(
    server: ServerProcess, environment: dict[str, str], *arguments: str
) -> tuple[subprocess.Popen[str], str, str]:
    """A shell, as NNI starts one, with a trainer in it; its session's id, its threads' names."""
    shell = subprocess.Popen(
        # Two commands, or the shell would become the trainer.
        [
            *("/bin/bash", "-c", '"$0" "$@"; true', sys.executable, "-c", TRAINER, server.address),
            *arguments,
        ],
        env={**os.environ, **environment, "PYTHONPATH": str(SOURCES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout is not None
    session_id, _, threads = shell.stdout.readline().partition(" ")
    return shell, session_id, threads


class TestTheParentsEnd:
    def test_a_trainer_whose_shell_is_killed_closes_its_session_and_ends(
        self, server: ServerProcess, client: nc.Client
    ) -> None:
        shell, session_id, _ = start_trainer(server, TRIAL, "opt in")
        assert client.session_info(session_id).state == "active"
        shell.kill()
        # Both streams end when the trainer, which has inherited them, does.
        _, errors = shell.communicate(timeout=TIMEOUT)
        assert client.session_info(session_id).state == "closed"
        assert f"process {shell.pid}, which started this trial, is gone" in errors

    @pytest.mark.parametrize(("environment", "arguments"), [(TRIAL, []), ({}, ["opt in"])])
    def test_nobody_watches_the_parent_unasked_or_outside_a_trial(
        self, server: ServerProcess, environment: dict[str, str], arguments: list[str]
    ) -> None:
        shell, _, threads = start_trainer(server, environment, *arguments)
        trainer = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text()
        os.kill(int(trainer), signal.SIGKILL)
        shell.communicate(timeout=TIMEOUT)
        assert "keep-alive" in threads
        assert "parent-watch" not in threads


class TestFinalResults:
    @pytest.mark.parametrize(
        ("result", "kept"),
        [(0.5, {"default": 0.5}), ({"default": 1, "saved": 0.25}, {"default": 1.0, "saved": 0.25})],
    )
    def test_nni_gets_what_is_kept_with_the_session(
        self,
        client: nc.Client,
        monkeypatch: pytest.MonkeyPatch,
        result: Any,
        kept: dict[str, float],
    ) -> None:
        reported: list[Any] = []
        nni = types.SimpleNamespace(report_final_result=reported.append)
        monkeypatch.setitem(sys.modules, "nni", nni)  # type: ignore[arg-type]
        with client.bind_model("level", [{"sparsity": 0.5}], LAYERS) as session:
            report_final_result(session, result)
            assert session.info().results == kept
        assert reported == [result]

    def test_a_server_that_is_too_old_to_keep_results_is_no_hindrance(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reported: list[Any] = []
        nni = types.SimpleNamespace(report_final_result=reported.append)
        monkeypatch.setitem(sys.modules, "nni", nni)  # type: ignore[arg-type]

        class Old:
            def report(self, results: Any, /) -> None:
                raise nc.UnimplementedError("unknown method")

        report_final_result(Old(), 0.5)
        assert reported == [0.5]
