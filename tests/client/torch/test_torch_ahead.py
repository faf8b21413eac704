"""A trainer that continues from a checkpoint while its session is elsewhere; binding that fails."""

from __future__ import annotations

import copy
import threading
from typing import Any, Callable

import pytest
import torch
from torch import nn

import nni_compression as nc
import servers
from nni_compression.adapters.lifecycle import Lifecycle
from nni_compression.torch import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
    answers,
    checksums,
    modules,
    weights,
)
from torch_helpers import AGP, DOREFA, LEVEL, NAIVE, QAT, Net, calls, dense, images

OUTPUTS = [{"quant_types": ["weight", "output", "input"], "op_types": ["default"]}]
LATE = [{**OUTPUTS[0], "quant_start_step": 4}]
TRANSFERS = ("weights", "ranges")
EPOCHS, STEPS = 9, 2  # in an epoch


class Training:
    """A trainer whose every number follows from where it is."""

    def __init__(self, make: Callable[[], Any], checkpoint: dict[str, Any] | None = None) -> None:
        self.compressor = make()
        self.model = Net()
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint["model"])
            self.compressor.load_state_dict(checkpoint["compressor"])
        self.compressor(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.seen: dict[int, torch.Tensor] = {}

    def epoch(self, epoch: int, steps: int = STEPS) -> None:
        self.compressor.update_epoch(epoch)
        for step in range(epoch * STEPS, epoch * STEPS + steps):
            self.optimizer.zero_grad()
            output = self.model(images(4, seed=step) * (1 + step))
            output.square().mean().backward()
            self.optimizer.step()
            self.compressor.step(step + 1)
        self.model.eval()
        self.seen[epoch] = self.model(images(4, seed=99)).detach()
        self.model.train()

    def epochs(self, first: int, last: int) -> Training:
        for epoch in range(first, last):
            self.epoch(epoch)
        return self

    def checkpoint(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "compressor": self.compressor.state_dict()}
        return copy.deepcopy(state)


KINDS: list[Any] = [
    pytest.param(LevelPruner, LEVEL, {}, id="level"),
    pytest.param(AGPPruner, [{**AGP[0], "end_epoch": 7}], {}, id="agp"),
    pytest.param(AGPPruner, [{**AGP[0], "end_epoch": 8, "frequency": 3}], {}, id="agp-every-third"),
    *(
        pytest.param(make, rules, {"transfer": transfer}, id=f"{name}-{transfer}")
        for make, rules, name in (
            (QATQuantizer, QAT, "qat"),
            (QATQuantizer, OUTPUTS, "qat-outputs"),
            (QATQuantizer, LATE, "qat-late"),
            (NaiveQuantizer, NAIVE, "naive"),
            (DoReFaQuantizer, DOREFA, "dorefa"),
        )
        for transfer in TRANSFERS
    ),
]


@pytest.mark.parametrize(
    "ahead", [0, 3, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 5))]
)
@pytest.mark.parametrize(("make", "rules", "settings"), KINDS)
def test_a_resumed_trainer_goes_on_as_if_it_had_not_been_interrupted(
    client: nc.Client, make: Any, rules: Any, settings: Any, ahead: int
) -> None:
    """However far the session has gone on since the checkpoint, and in the middle of an epoch."""

    def compressor() -> Any:
        return make(rules, client=client, **settings)

    whole = Training(compressor).epochs(0, EPOCHS)
    interrupted = Training(compressor).epochs(0, 2)
    checkpoint = interrupted.checkpoint()
    interrupted.epochs(2, 2 + ahead)
    interrupted.epoch(2 + ahead, steps=1)
    resumed = Training(compressor, checkpoint).epochs(2, EPOCHS)
    for epoch in range(2, EPOCHS):
        assert torch.equal(resumed.seen[epoch], whole.seen[epoch]), epoch
    for training in (whole, interrupted, resumed):
        training.compressor.close()


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_checkpoint_between_a_forward_pass_and_its_step_has_what_was_seen(
    client: nc.Client, transfer: str
) -> None:
    def compressor() -> Any:
        return QATQuantizer(OUTPUTS, client=client, transfer=transfer)

    first = Training(compressor).epochs(0, 1)
    first.model(images(seed=5) * 40)
    second = Training(compressor, first.checkpoint())
    for training in (first, second):
        training.compressor.step()
    assert (
        first.compressor.calibration["fc1"]["output_range"]
        == (second.compressor.calibration["fc1"]["output_range"])
    )


def test_two_trainers_of_one_checkpoint_do_not_disturb_one_another(client: nc.Client) -> None:
    def compressor() -> Any:
        return AGPPruner(AGP, client=client)

    checkpoint = Training(compressor).epochs(0, 3).checkpoint()
    alone = Training(compressor, checkpoint).epochs(3, 6)
    other, same = (Training(compressor, checkpoint) for _ in range(2))
    with torch.no_grad():
        dense(other.model.fc1).neg_().add_(0.01)
    for epoch in range(3, 6):
        other.epoch(epoch)
        same.epoch(epoch)
        assert torch.equal(same.seen[epoch], alone.seen[epoch])
        assert not torch.equal(other.seen[epoch], alone.seen[epoch])


def test_a_step_that_a_checkpoint_has_counts_no_second_time(client: nc.Client) -> None:
    first = QATQuantizer(OUTPUTS, client=client)
    first(Net())(images())
    first.step(5)
    second = QATQuantizer(OUTPUTS, client=client)
    second.load_state_dict(first.state_dict())
    second(Net())(images() * 100)
    second.step(5)
    ranges = [each.calibration["fc1"]["output_range"] for each in (first, second)]
    assert ranges[0] == ranges[1]


def test_a_layer_that_the_session_has_no_answer_for_does_not_pass_unquantized(
    client: nc.Client,
) -> None:
    """Another rank has taken the step before this one's ranges came."""
    first = NaiveQuantizer(NAIVE, client=client, transfer="ranges")
    first(Net())
    second = NaiveQuantizer(NAIVE, client=client, session=first.session.id, transfer="ranges")
    model = second(Net())
    first.session.step(3)
    second.step(2)
    assert not torch.equal(model.fc1.weight, dense(model.fc1))


def test_a_step_that_was_taken_answers_for_no_other_weights(client: nc.Client) -> None:
    quantizer = QATQuantizer(QAT, client=client, transfer="ranges")
    model = quantizer(Net())
    model(images())
    quantizer.step(4)
    with torch.no_grad():
        dense(model.fc1).mul_(3)
    quantizer.step(4)
    expected = QATQuantizer(QAT, client=client)
    assert torch.equal(model.fc1.weight, expected(copy_of(model)).fc1.weight)


def copy_of(model: Net) -> Net:
    plain = Net()
    plain.load_state_dict(model.state_dict())
    return plain


def test_ranks_join_the_session_that_the_first_has_restored(client: nc.Client) -> None:
    def compressor() -> Any:
        return QATQuantizer(OUTPUTS, client=client)

    interrupted = Training(compressor).epochs(0, 2)
    checkpoint = interrupted.checkpoint()
    interrupted.epochs(2, 4)
    first = Training(compressor, checkpoint)
    session = first.compressor.session.id
    second = Training(lambda: QATQuantizer(OUTPUTS, client=client, session=session), checkpoint)
    assert second.compressor.session.id == session
    first.model.eval()
    second.model.eval()
    assert torch.equal(first.model(images()), second.model(images()))
    assert (second.compressor.epoch, second.compressor.steps) == (1, 4)


def test_a_rank_asks_for_the_masks_when_the_first_has_moved_on(client: nc.Client) -> None:
    first = AGPPruner(AGP, client=client)
    model = first(Net())
    first.update_epoch(2)
    model(images())
    state = first.state_dict()
    first.update_epoch(5)
    model(images())
    second = AGPPruner(AGP, client=client, session=first.session.id)
    second.load_state_dict(state)
    second(Net(seed=3))
    assert second.epoch == 5
    for name, mask in first.masks.items():
        assert torch.equal(second.masks[name], mask)


class TestARebindThatFails:
    def test_is_repeated_by_every_call_until_it_succeeds(self, client: nc.Client) -> None:
        whole = AGPPruner(AGP, client=client)
        expected = whole(Net()).eval()
        with servers.ServerProcess() as server:
            patient = nc.Client(server.address, timeout=0.5, connect_timeout=0.2, keep_alive=False)
            pruner = AGPPruner(AGP, client=patient)
            model = pruner(Net()).eval()
            for each in (whole, pruner):
                each.update_epoch(3)
                each.bound_model(images())
            lost = pruner.session.id
            server.kill()
        with servers.ServerProcess(port=server.port) as second:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(patient, "bind_model", unavailable)
                for call in (
                    lambda: pruner.update_epoch(4),
                    lambda: pruner.update_epoch(5),
                    pruner.step,
                    pruner.refresh,
                    pruner.rebind,
                    pruner.compress,
                    lambda: pruner.masks,
                    lambda: pruner.export("nowhere"),
                    lambda: model(images()),
                ):
                    with pytest.raises(nc.UnavailableError):
                        call()
            assert pruner.epoch == 3
            model(images())
            assert pruner.session.id != lost
            whole.update_epoch(6)
            pruner.update_epoch(6)
            assert torch.equal(model(images()), expected(images()))
            pruner.close()
            assert second.process.poll() is None

    def test_leaves_a_session_that_is_well_as_it_was(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pruner = LevelPruner(LEVEL, client=client)
        model = pruner(Net()).eval()
        output, session = model(images()), pruner.session.id
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "bind_model", refused)
            with pytest.raises(nc.InvalidArgumentError):
                pruner.rebind()
        assert pruner.session.id == session
        pruner.update_epoch(1)
        assert torch.equal(model(images()), output)

    def test_of_a_loaded_state_is_made_up_for(self, client: nc.Client) -> None:
        pruner = LevelPruner(LEVEL, client=client)
        model = pruner(Net()).eval()
        state, output = pruner.state_dict(), model(images())
        pruner.masks  # noqa: B018
        other = LevelPruner(LEVEL, client=client)
        other_model = other(Net(seed=8)).eval()
        other_model.load_state_dict(model.state_dict())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "bind_model", unavailable)
            with pytest.raises(nc.UnavailableError):
                other.load_state_dict(state)
            with pytest.raises(nc.UnavailableError):
                other_model(images())
            assert other.state_dict() == state
        assert torch.equal(other_model(images()), output)
        assert other.state_dict()["session"] != state["session"]


def unavailable(*args: Any, **kwargs: Any) -> Any:
    raise nc.UnavailableError("no server")


def refused(*args: Any, **kwargs: Any) -> Any:
    raise nc.InvalidArgumentError("no")


class TestBindingIsAllOrNothing:
    """Whatever fails, and wherever: the model is as it was, and no session is left."""

    PLACES = (
        (nc.Session, "step"),
        (answers, "parameters_of"),
        (answers.TorchQuantizing, "_begin"),
        (modules, "install"),
        (Lifecycle, "_watch"),
        (Lifecycle, "_installed"),
    )

    @staticmethod
    def fail_at_last(patch: pytest.MonkeyPatch, owner: Any, name: str, calls_before: int) -> None:
        original, made = getattr(owner, name), []

        def fail(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) > calls_before:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        patch.setattr(owner, name, fail)

    @pytest.mark.parametrize("calls_before", [0, 1])
    @pytest.mark.parametrize(("owner", "name"), PLACES, ids=lambda place: str(place)[-20:])
    def test_of_a_model_and_of_another_session(
        self, client: nc.Client, owner: Any, name: str, calls_before: int
    ) -> None:
        def compressor() -> Any:
            return QATQuantizer(OUTPUTS, client=client, labels={"all": "or nothing"})

        training = Training(compressor).epochs(0, 2)
        checkpoint = training.checkpoint()
        resumed, model = compressor(), Net()
        resumed.load_state_dict(checkpoint["compressor"])
        before = {info.id for info in client.sessions({"all": "or nothing"})}
        once = name in ("step", "_watch", "_installed")
        interrupts = not (once and calls_before)
        with pytest.MonkeyPatch.context() as patch:
            self.fail_at_last(patch, owner, name, calls_before)
            if interrupts:
                with pytest.raises(KeyboardInterrupt):
                    resumed(model)
        if interrupts:
            assert {type(m) for m in model.modules()} == {type(m) for m in Net().modules()}
            assert {info.id for info in client.sessions({"all": "or nothing"})} == before
        resumed(model)
        assert isinstance(model.fc1, modules.CompressedModule)

        output = training.model.eval()(images())
        session, state = training.compressor.session.id, training.compressor.state_dict()
        with pytest.MonkeyPatch.context() as patch:
            self.fail_at_last(patch, owner, name, calls_before)
            if interrupts:
                with pytest.raises(KeyboardInterrupt):
                    training.compressor.rebind()
                assert training.compressor.session.id == session
        made = calls(training.compressor)
        assert torch.equal(training.model(images()), output)
        if interrupts:  # the forward pass has made up for it
            assert training.compressor.session.id != session
            assert made > 0
        for key in ("epoch", "step", "activations", "memory"):
            assert training.compressor.state_dict()[key] == state[key]
        training.compressor.close()
        resumed.close()


class TestCopiesOnDevices:
    def test_a_mask_that_comes_while_another_is_moved_stays(self) -> None:
        state = modules.WeightState()
        new = torch.zeros(3, dtype=torch.bool)

        class Moving:
            device = torch.device("cuda")

            def to(self, device: Any) -> torch.Tensor:
                state.set_mask(new)
                return torch.ones(3, dtype=torch.bool)

        state.mask = Moving()  # type: ignore[assignment]
        state._mask_on(torch.device("cpu"), keep=True)
        assert state.mask is new

    @pytest.mark.parametrize("transfer", TRANSFERS)
    @pytest.mark.parametrize("sampled", [True, False], ids=["cpu", "as on a gpu"])
    def test_what_is_written_past_autograd_is_noticed_at_the_step(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch, transfer: str, sampled: bool
    ) -> None:
        if not sampled:
            monkeypatch.setattr(weights, "sample_of", lambda weight: None)
        quantizer = QATQuantizer(QAT, client=client, transfer=transfer)
        model = quantizer(nn.Sequential(nn.Linear(64, 32)))
        model(torch.ones(1, 64))
        dense(model[0]).data.view(-1)[7] = 5.0  # no element that a sample would see
        quantizer.step()
        expected = QATQuantizer(QAT, client=client)
        plain = nn.Sequential(nn.Linear(64, 32))
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model[0].weight, expected(plain)[0].weight)

    @pytest.mark.parametrize(("make", "rules"), [(LevelPruner, LEVEL), (AGPPruner, AGP)])
    def test_a_step_costs_a_pruner_no_call(self, client: nc.Client, make: Any, rules: Any) -> None:
        pruner = make(rules, client=client)
        model = pruner(Net())
        model(images())
        made = calls(pruner)
        for _ in range(3):
            pruner.step()
            model(images())
        assert calls(pruner) == made


def test_threads_that_run_the_model_meet_no_dense_weight_while_it_is_bound_again(
    client: nc.Client,
) -> None:
    pruner = LevelPruner(LEVEL, client=client)
    model = pruner(Net()).eval()
    output = model(images())
    wrong: list[int] = []
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            if not torch.equal(model(images()), output):
                wrong.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20):
            pruner.rebind()
    finally:
        done.set()
        thread.join()
    assert not wrong


def _swap_rows(weight: torch.Tensor) -> None:
    weight[:2] = weight[:2].flip(0)


# What leaves sums of a weight's words as they were.
CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "negated": lambda weight: weight.neg_(),
    "a part of a row negated": lambda weight: weight[1, 1:5].neg_(),
    "odd columns negated": lambda weight: weight[:, 1::2].neg_(),
    "four negated": lambda weight: weight[:2, :2].neg_(),
    "rows swapped": _swap_rows,
    "turned": lambda weight: weight.copy_(weight.flip(0, 1)),
    "rolled": lambda weight: weight.copy_(weight.roll(2, 1)),
    "sorted": lambda weight: weight.copy_(weight.sort(0)[0]),
}


class TestWhatIsFrozen:
    """A step takes every weight for changed; what it can show not to be is not sent again."""

    @pytest.mark.parametrize("transfer", TRANSFERS)
    def test_is_sent_once_more_and_then_no_more(self, client: nc.Client, transfer: str) -> None:
        quantizer = QATQuantizer(QAT, client=client, transfer=transfer)
        model = quantizer(Net())
        for step in range(5):
            model(images())
            quantizer.step()
            if step == 1:
                made = calls(quantizer)
        assert calls(quantizer) == made

    @pytest.mark.parametrize("transfer", TRANSFERS)
    def test_is_sent_again_when_it_was_written_to_after_all(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch, transfer: str
    ) -> None:
        monkeypatch.setattr(weights, "sample_of", lambda weight: None)
        quantizer = QATQuantizer(QAT, client=client, transfer=transfer)
        model = quantizer(Net())
        for _ in range(3):
            model(images())
            quantizer.step()
        dense(model.fc1).data.view(-1)[7] = 5.0
        quantizer.step()
        assert model.fc1.weight.max() > 4.9

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("size", [1, 3, 8, 500, 20001])
    def test_every_element_counts(self, dtype: torch.dtype, size: int) -> None:
        weight = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
        before = checksums.checksum_of(weight)
        for i in range(0, size, max(1, size // 50)):
            saved = weight[i].clone()
            weight[i] = saved + 1
            assert not torch.equal(checksums.checksum_of(weight), before)
            weight[i] = saved
        assert torch.equal(checksums.checksum_of(weight), before)
        part = torch.cat([weight[:1], weight])[1:]  # at an odd place in its storage
        assert torch.equal(checksums.checksum_of(part), before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("shape", [(4, 6), (96, 512)], ids=["small", "blocks"])
    def test_signs_and_places_count(
        self, dtype: torch.dtype, change: Callable[[torch.Tensor], None], shape: tuple[int, int]
    ) -> None:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        before = checksums.checksum_of(weight)
        saved = weight.clone()
        change(weight)
        assert not torch.equal(weight, saved)
        assert not torch.equal(checksums.checksum_of(weight), before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_is_sent_again_when_only_signs_or_places_changed(
        self,
        client: nc.Client,
        monkeypatch: pytest.MonkeyPatch,
        dtype: torch.dtype,
        change: Callable[[torch.Tensor], None],
    ) -> None:
        monkeypatch.setattr(weights, "sample_of", lambda weight: None)
        quantizer = QATQuantizer(QAT, client=client)
        model = quantizer(Net().to(dtype))
        for _ in range(3):
            model(images().to(dtype))
            quantizer.step()
        before = model.fc1.weight.detach().clone()
        change(dense(model.fc1).data)
        quantizer.step()
        change(before)
        assert torch.allclose(model.fc1.weight, before, atol=0.01)

    def test_a_nan_that_is_kept_is_asked_about_once(self, client: nc.Client) -> None:
        quantizer = QATQuantizer(QAT, client=client, on_bad_weight="keep")
        model = quantizer(Net())
        model(images())
        with torch.no_grad():
            dense(model.fc1).view(-1)[0] = float("nan")  # one that the sample has
        model(images())
        made = calls(quantizer)
        for _ in range(3):
            model(images())
        assert calls(quantizer) == made
