"""What a PyTorch trainer meets when things go wrong, with servers that really stop and restart."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nni_compression as nc
from nni_compression.torch import AGPPruner, LevelPruner, QATQuantizer
from servers import ServerProcess
from torch_helpers import AGP, COMPRESSED, LEVEL, QAT, Net, dense, images

SOURCES = Path(nc.__file__).parents[1]
TIMEOUT = 60.0
AWAY = 30.0  # seconds


@pytest.fixture
def own_server() -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    with ServerProcess() as process:
        yield process


def restart(server: ServerProcess) -> ServerProcess:
    """Kills the server; another one, that knows no session, takes its port."""
    server.kill()
    return ServerProcess(port=server.port)


def zeros(model: Net) -> dict[str, torch.Tensor]:
    return {name: getattr(model, name).weight == 0 for name in COMPRESSED}


class TestNoServer:
    def test_binding_says_where_none_answers_and_what_to_do(self) -> None:
        with nc.Client("127.0.0.1:1", connect_timeout=0.2) as client:
            model = Net()
            with pytest.raises(nc.UnavailableError, match=r"127\.0\.0\.1:1 .*start one"):
                LevelPruner(LEVEL, client=client)(model)
            assert type(model.fc1) is torch.nn.Linear


class TestALostSession:
    def test_training_goes_on_with_its_masks_in_a_new_session(
        self, own_server: ServerProcess, client: nc.Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And ends with the masks of a training that was never interrupted."""
        whole = AGPPruner(AGP, client=client)
        expected = whole(Net())
        pruner = AGPPruner(AGP, server=own_server.address)
        model = pruner(Net())
        for each in (whole, pruner):
            each.update_epoch(3)
            each.bound_model(images())
        lost, before = pruner.session.id, zeros(model)
        with restart(own_server):
            with caplog.at_level(logging.WARNING, "nni_compression"):
                pruner.update_epoch(6)
            model(images())
            whole.update_epoch(6)
            expected(images())
            assert pruner.session.id != lost
            assert pruner.epoch == 6
            assert f"no longer has session {lost}" in caplog.text
            assert "at epoch 3" in caplog.text
            for name, pruned in zeros(model).items():
                assert torch.all(pruned | ~before[name]), f"{name}: a weight came back"
                assert torch.equal(pruned, zeros(expected)[name])

    def test_a_forward_pass_and_a_step_find_a_new_session_too(
        self, own_server: ServerProcess
    ) -> None:
        quantizer = QATQuantizer([{**QAT[0], "quant_start_step": 2}], server=own_server.address)
        model = quantizer(Net())
        model(images())
        with restart(own_server) as second:
            quantizer.step(2)
            assert quantizer.steps == 2
            model(images())
            assert set(quantizer.calibration) == set(COMPRESSED)
            with restart(second):
                with torch.no_grad():
                    dense(model.fc1).mul_(2)
                model(images())
                assert quantizer.session.info().state == "active"

    def test_training_waits_for_a_server_that_is_away(self, own_server: ServerProcess) -> None:
        pruner = AGPPruner(AGP, server=own_server.address)
        model = pruner(Net())
        model(images())
        own_server.kill()
        waiting = threading.Thread(target=pruner.update_epoch, args=(4,))
        waiting.start()
        deadline = time.monotonic() + TIMEOUT
        while pruner.stats.retries == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with ServerProcess(port=own_server.port):
            waiting.join(TIMEOUT)
            assert not waiting.is_alive()
            assert pruner.epoch == 4
            model(images())

    @pytest.mark.long
    def test_training_goes_on_after_a_server_was_away_for_half_a_minute(
        self, own_server: ServerProcess, client: nc.Client
    ) -> None:
        whole = AGPPruner(AGP, client=client)
        expected = whole(Net())
        pruner = AGPPruner(AGP, server=own_server.address)
        model = pruner(Net())
        for each in (whole, pruner):
            each.update_epoch(3)
            each.bound_model(images())
            each.bound_model.eval()
        lost = pruner.session
        own_server.kill()
        back: list[ServerProcess] = []
        timer = threading.Timer(AWAY, lambda: back.append(ServerProcess(port=own_server.port)))
        timer.start()
        try:
            pruner.update_epoch(6)
            whole.update_epoch(6)
            assert torch.equal(model(images()), expected(images()))
            assert lost.stats.retries > 1
            assert lost.stats.seconds_waiting > 0.9 * AWAY
        finally:
            timer.join()
            pruner.close()
            for each_server in back:
                each_server.stop()

    @pytest.mark.parametrize("make", [AGPPruner, QATQuantizer])
    def test_an_export_continues_in_another_one(
        self, own_server: ServerProcess, tmp_path: Path, make: Any
    ) -> None:
        compressor = make(AGP if make is AGPPruner else QAT, server=own_server.address)
        model = compressor(Net())
        compressor.update_epoch(3)
        model(images())
        compressor.export(tmp_path / "before")
        with restart(own_server):
            compressor.export(tmp_path / "after")
            names = {path.name for path in (tmp_path / "before").iterdir()}
            assert names == {path.name for path in (tmp_path / "after").iterdir()}
            for name in names:
                before, after = (tmp_path / when / name for when in ("before", "after"))
                assert before.read_bytes() == after.read_bytes()

    def test_it_is_an_error_where_that_was_asked_for(self, own_server: ServerProcess) -> None:
        pruner = AGPPruner(AGP, server=own_server.address, on_lost_session="raise")
        model = pruner(Net())
        pruner.update_epoch(3)
        model(images())
        before = zeros(model)
        with restart(own_server):
            with pytest.raises(nc.NotFoundError, match=pruner.session.id):
                pruner.update_epoch(6)
            model(images())
            assert all(torch.equal(before[name], now) for name, now in zeros(model).items())

    def test_one_that_was_closed_on_purpose_does_not_come_back(self, client: nc.Client) -> None:
        pruner = AGPPruner(AGP, client=client)
        model = pruner(Net())
        model(images())
        client.join(pruner.session.id).close()
        with pytest.raises(nc.NotFoundError, match=pruner.session.id):
            pruner.update_epoch(6)

    def test_one_whose_lease_ran_out_is_replaced(self, server: ServerProcess) -> None:
        with nc.Client(server.address, keep_alive=False) as client:
            pruner = AGPPruner(AGP, client=client, lease=1.0)
            model = pruner(Net())
            pruner.update_epoch(3)
            model(images())
            lost = pruner.session.id
            deadline = time.monotonic() + TIMEOUT
            while any(info.id == lost for info in client.sessions()):  # asking for it would renew
                assert time.monotonic() < deadline
                time.sleep(0.01)
            pruner.update_epoch(4)
            assert pruner.session.id != lost

    def test_the_choices_are_checked(self) -> None:
        with pytest.raises(ValueError, match="on_lost_session is 'wait'; it must be one of"):
            LevelPruner(LEVEL, on_lost_session="wait")
        with pytest.raises(ValueError, match="on_bad_weight is 'drop'; it must be one of"):
            LevelPruner(LEVEL, on_bad_weight="drop")


class TestASlowServer:
    def test_a_server_that_stands_still_is_waited_for(self, own_server: ServerProcess) -> None:
        pruner = AGPPruner(AGP, server=own_server.address)
        model = pruner(Net())
        own_server.stand_still()
        first = threading.Thread(target=model, args=(images(),))
        first.start()
        first.join(1.0)
        assert first.is_alive()
        own_server.go_on()
        first.join(TIMEOUT)
        assert not first.is_alive()
        pruner.close()

    def test_the_deadline_is_an_error_that_names_it_and_training_can_go_on(
        self, own_server: ServerProcess
    ) -> None:
        with nc.Client(own_server.address, timeout=1.0, keep_alive=False) as client:
            pruner = AGPPruner(AGP, client=client)
            model = pruner(Net())
            model(images())
            own_server.stand_still()
            try:
                with pytest.raises(nc.DeadlineExceededError, match=r"UpdateEpoch at .* 1 s"):
                    pruner.update_epoch(4)
            finally:
                own_server.go_on()
            pruner.update_epoch(4)
            model(images())
            assert pruner.epoch == 4
            pruner.close()


def test_trials_of_one_model_send_it_once(own_server: ServerProcess) -> None:
    sent = []
    for sparsity in (0.3, 0.6, 0.9):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2000, 1000))
        with nc.Client(own_server.address) as client:  # each trial is a process of its own
            pruner = LevelPruner([{"sparsity": sparsity, "op_types": ["default"]}], client=client)
            pruner(model)
            assert pruner.masks["0"].sum() == 2_000_000 - int(2_000_000 * sparsity)
            pruner.close()
            sent.append(client.stats.bytes_sent)
    assert sent[0] > 8_000_000
    assert max(sent[1:]) < 20_000


def test_a_rank_that_ends_leaves_the_session_to_the_others(client: nc.Client) -> None:
    first = AGPPruner(AGP, client=client)
    first(Net())
    second = AGPPruner(AGP, client=client, session=first.session.id)
    second(Net())
    second.close()
    assert first.session.info().state == "active"
    first.close()
    assert first.session.info().state == "closed"


class TestABadWeight:
    def test_the_error_names_layer_element_epoch_and_step(self, client: nc.Client) -> None:
        pruner = AGPPruner(AGP, client=client)
        model = pruner(Net())
        pruner.step(7)
        pruner.update_epoch(2)
        with torch.no_grad():
            dense(model.fc1)[0, 3] = float("nan")
        with pytest.raises(nc.InvalidArgumentError, match=r"fc1.*element 3 .*at epoch 2, step 7"):
            model(images())

    def test_training_goes_on_with_the_old_mask_where_that_was_asked_for(
        self, client: nc.Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        pruner = AGPPruner(AGP, client=client, on_bad_weight="keep")
        model = pruner(Net())
        pruner.update_epoch(2)
        model(images())
        before = pruner.masks
        with torch.no_grad():
            dense(model.fc1)[0, 3] = float("nan")
        pruner.update_epoch(5)
        with caplog.at_level(logging.WARNING, "nni_compression"):
            model(images())
        assert "at epoch 5, step 0" in caplog.text
        assert "layer 'fc1' keeps what it has" in caplog.text
        after = pruner.masks
        assert torch.equal(after["fc1"], before["fc1"])
        assert not torch.equal(after["fc2"], before["fc2"])
        with torch.no_grad():
            dense(model.fc1)[0, 3] = 0.0
        pruner.update_epoch(8)
        model(images())
        assert not torch.equal(pruner.masks["fc1"], before["fc1"])

    def test_a_layer_that_never_had_a_mask_has_none_in_checkpoints_and_exports(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        pruner = LevelPruner(LEVEL, client=client, on_bad_weight="keep")
        net = Net()
        with torch.no_grad():
            net.fc1.weight[0, 3] = float("nan")
        model = pruner(net)
        model(images())
        assert "fc2" in pruner.state_dict()["masks"]
        assert "fc1" not in pruner.state_dict()["masks"]
        pruner.rebind()
        with pytest.raises(nc.FailedPreconditionError, match="fc1"):
            pruner.export(tmp_path, "masks")

    def test_a_quantized_layer_keeps_its_values_until_its_weight_is_well_again(
        self, client: nc.Client
    ) -> None:
        quantizer = QATQuantizer(QAT, client=client, on_bad_weight="keep", transfer="weights")
        model = quantizer(Net())
        model(images())
        with torch.no_grad():
            dense(model.fc1)[0, 3] = float("nan")
        assert torch.isfinite(model.fc1.weight).all()
        with torch.no_grad():
            dense(model.fc1)[0, 3] = 10.0
        assert model.fc1.weight.max() > 9

    def test_a_layer_that_is_rounded_here_keeps_its_scale_and_the_bad_element(
        self, client: nc.Client
    ) -> None:
        quantizer = QATQuantizer(QAT, client=client, on_bad_weight="keep", transfer="ranges")
        model = quantizer(Net())
        model(images())
        before = model.fc1.weight.detach().clone()
        with torch.no_grad():
            dense(model.fc1)[0, 3] = float("nan")
        after = model.fc1.weight.detach()
        assert after[0, 3].isnan()
        rest = torch.ones(before.shape, dtype=torch.bool)
        rest[0, 3] = False
        assert torch.equal(after[rest], before[rest])


def test_masks_of_an_offloaded_model_are_in_its_checkpoint(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    before = pruner.state_dict()["masks"]
    model.to("meta")
    after = pruner.state_dict()["masks"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name]["bits"], after[name]["bits"]) for name in before)


@pytest.mark.parametrize("call", ["update_epoch", "step"])
def test_epochs_and_steps_below_0_are_refused_before_anything_changes(
    client: nc.Client, call: str
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    pruner(Net())
    with pytest.raises(nc.InvalidArgumentError, match=r"(epoch|step) is -1; it must be at least 0"):
        getattr(pruner, call)(-1)
    assert (pruner.epoch, pruner.steps) == (0, 0)


def test_a_layer_that_came_after_binding_is_warned_of_and_taken_in(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net())
    model(images())
    before = pruner.masks
    model.head = torch.nn.Linear(10, 4)
    with pytest.warns(UserWarning, match=r"\['head'\] were added to the model after it was bound"):
        pruner.update_epoch(1)
    assert "head" not in pruner.masks
    pruner.rebind()
    masks = pruner.masks
    assert masks["head"].sum() == 20
    assert all(torch.equal(masks[name], before[name]) for name in before)


# What runs in the background of a shell may have inherited that Ctrl-C is ignored.
TRAINER = """
import signal
import sys
import torch
from nni_compression.torch import QATQuantizer
signal.signal(signal.SIGINT, signal.default_int_handler)
model = torch.nn.Sequential(torch.nn.Linear(64, 64))
quantizer = QATQuantizer([{"op_types": ["default"]}], server=sys.argv[1], transfer="weights")
quantizer(model)
print(quantizer.session.id, flush=True)
while True:
    with torch.no_grad():
        model[0]._parameters["weight"].mul_(1.01)
        model(torch.ones(1, 64))
    print("trained", flush=True)
"""


@pytest.mark.parametrize("in_a_call", [False, True], ids=["between calls", "in a call"])
def test_ctrl_c_ends_with_one_traceback_and_without_the_session(
    own_server: ServerProcess, in_a_call: bool
) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, own_server.address],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    session_id = trainer.stdout.readline().strip()
    assert trainer.stdout.readline() == "trained\n"
    if in_a_call:  # the server stands still, so the next call hangs
        own_server.stand_still()
        wait_until_blocked(trainer.pid)
    trainer.send_signal(signal.SIGINT)
    try:
        _, errors = trainer.communicate(timeout=TIMEOUT)
    finally:
        own_server.go_on()
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    if not in_a_call:
        with nc.Client(own_server.address) as client:
            assert client.session_info(session_id).state == "closed"


def wait_until_blocked(pid: int) -> None:
    """Waits until the process uses no processor time any more."""
    deadline = time.monotonic() + TIMEOUT
    used = -1
    while True:
        assert time.monotonic() < deadline
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        now = int(fields[11]) + int(fields[12])
        if now == used:
            return
        used = now
        time.sleep(0.2)
