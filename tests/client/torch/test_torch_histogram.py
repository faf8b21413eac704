"""Pruners that send histograms of magnitudes: the masks of those that send the weights."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_compression as nc
from servers import ServerProcess

pytest.importorskip("torch")

import torch
from torch import nn

from nni_compression.torch import (
    AGPPruner,
    GlobalMagnitudePruner,
    LAMPPruner,
    LevelPruner,
    LotteryTicketPruner,
    Pruner,
    RandomPruner,
    answers,
    magnitudes,
    prune,
)
from nni_compression.torch.answers import TorchPruning
from nni_compression.torch.transfer import DTYPES, to_host
from nni_compression.values.magnitudes import ArrayCounter, Threshold, mask_from_threshold
from torch_helpers import AGP, COMPRESSED, LEVEL, Net, calls, dense, images, train_step

ALL = {"op_types": ["default"]}
SCHEDULE = {"final_sparsity": 0.8, "end_epoch": 4, **ALL}
RULES = [
    pytest.param(LevelPruner, LEVEL[0], id="level"),
    pytest.param(AGPPruner, SCHEDULE, id="agp"),
    pytest.param(AGPPruner, {"scope": "global", **SCHEDULE}, id="agp-global"),
    pytest.param(LevelPruner, {"schedule": "linear", **SCHEDULE}, id="linear"),
    pytest.param(LevelPruner, {"schedule": "exponential", **SCHEDULE}, id="exponential"),
    pytest.param(LotteryTicketPruner, {"sparsity": 0.8, "rounds": 3, **ALL}, id="iterative"),
    pytest.param(
        GlobalMagnitudePruner,
        {"schedule": "linear", "min_sparsity": 0.3, "max_sparsity": 0.9, **SCHEDULE},
        id="global-limits",
    ),
]

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def laid_out(weight: torch.Tensor, layout: str) -> torch.Tensor:
    """The same weight, in memory in another way."""
    if layout == "channels_last":
        return weight.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return weight.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided":
        return torch.stack([weight, weight + 1], -1)[..., 0]
    return weight


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_counting_and_masking_are_those_of_arrays(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, layout: str, masked: bool, device: str
) -> None:
    monkeypatch.setattr(magnitudes, "_CPU_PART", 100)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 4, 3, generator=random).to(dtype)
    weight[0] = torch.randint(-2, 3, (5, 4, 3), generator=random).to(dtype) / 2
    weight[1] *= 1e-30
    weight[2, 0, 0] = -0.0
    laid = laid_out(weight.to(device), layout)
    kept = torch.rand(weight.shape, generator=random) < 0.7 if masked else None
    kept_there = None if kept is None else kept.to(device)
    array = to_host({"w": weight})["w"]
    kept_array = None if kept is None else kept.numpy()
    bits, one, other = 8 * weight.element_size(), magnitudes.TorchCounter(laid, kept_there), None
    other = ArrayCounter(array, kept_array)
    assert (one.bits, one.shape) == (other.bits, other.shape) == (bits, weight.shape)
    key, known = 0, 0
    while known < bits:
        found, expected = one.count(key, known), other.count(key, known)
        assert found.digits.dtype == expected.digits.dtype
        np.testing.assert_array_equal(found.digits, expected.digits)
        np.testing.assert_array_equal(found.counts, expected.counts)
        at = int(np.searchsorted(np.cumsum(found.counts), found.counts.sum() // 3))
        key, known = key << 16 | int(found.digits[at]), known + 16
    ties = int(found.counts[at])
    assert one.count(key ^ 0x700, known - 16).digits.size == 0 or known == 16
    for taken in {0, ties // 2, ties}:
        magnitude = weight.abs().double()
        limit = magnitude.reshape(-1)[_element(weight, key)]
        below = magnitude < limit if kept is None else (magnitude < limit) & kept
        removed = int(below.sum()) + taken + (0 if kept is None else int((~kept).sum()))
        threshold = Threshold(key, bits, taken, removed)
        mask = magnitudes.mask_from_threshold(laid, threshold, kept_there)
        assert mask.is_contiguous()
        expected_mask = mask_from_threshold(array, threshold, kept_array).to_numpy()
        np.testing.assert_array_equal(mask.cpu().numpy(), expected_mask)
        other_threshold = Threshold(key, bits, taken, removed + 1)
        with pytest.raises(nc.InternalError, match="has changed since it was counted"):
            magnitudes.mask_from_threshold(laid, other_threshold, kept_there)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_are_the_first_that_the_mask_keeps(dtype: torch.dtype, device: str) -> None:
    weight = torch.tensor([1, -1, 1, 0, -1, 1, 2], dtype=dtype, device=device)
    kept = torch.tensor([0, 1, 1, 1, 1, 1, 1], dtype=torch.bool, device=device)
    bits = 8 * weight.element_size()
    key, known = 0, 0
    while known < bits:
        found = magnitudes.TorchCounter(weight[1:3], None).count(key, known)
        key, known = key << 16 | int(found.digits[0]), known + 16
    mask = magnitudes.mask_from_threshold(weight, Threshold(key, bits, 2, 4), kept)
    assert mask.int().tolist() == [0, 0, 0, 0, 1, 1, 1]


def _element(weight: torch.Tensor, key: int) -> int:
    """The index of an element with this key."""
    array = ArrayCounter(to_host({"w": weight})["w"])._tensor
    words = np.frombuffer(array.data, f"<u{weight.element_size()}") << 1
    return int(np.flatnonzero(words == words.dtype.type(key))[0])


def masks_of(pruner: Any) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in pruner.masks.items()}


def assert_same(one: Any, other: Any) -> None:
    one, other = masks_of(one), masks_of(other)
    assert one.keys() == other.keys() == set(COMPRESSED)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def training(pruner: Any, model: Any, epochs: Iterable[int]) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in epochs:
        pruner.update_epoch(epoch)
        train_step(model.train(), optimizer, seed=epoch)
        pruner.step()
    return model.eval()(images()).detach()


@pytest.mark.parametrize(("make", "rule"), RULES)
def test_training_is_that_of_weights(client: nc.Client, make: Any, rule: Any) -> None:
    one, other = (make([rule], client=client, transfer=t) for t in ("histogram", "weights"))
    models = [one(Net()), other(Net())]
    for epoch in range(6):
        outputs = [training(p, m, [epoch]) for p, m in zip((one, other), models)]
        assert torch.equal(*outputs), epoch
        assert_same(one, other)
    assert one.metrics()["sparsity"] == other.metrics()["sparsity"] > 0.4
    names = ["sparsity"] + [f"sparsity/{name}" for name in COMPRESSED]
    assert [one.metrics()[name] for name in names] == [other.metrics()[name] for name in names]


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_every_type(client: nc.Client, dtype: torch.dtype) -> None:
    models = [Net().to(dtype).to(memory_format=torch.channels_last) for _ in range(2)]
    one, other = (LevelPruner(LEVEL, client=client, transfer=t) for t in ("histogram", "weights"))
    one(models[0])
    other(models[1])
    assert_same(one, other)


def test_of_a_weight_that_is_computed(client: nc.Client) -> None:
    one, other = (LevelPruner(LEVEL, client=client, transfer=t) for t in ("histogram", "weights"))
    for pruner in (one, other):
        torch.manual_seed(0)
        pruner(nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 4))))
    assert one.masks.keys() == {"0"}
    assert torch.equal(one.masks["0"], other.masks["0"])
    assert int(one.masks["0"].sum()) == 16


def test_little_is_sent_in_one_call_for_each_16_bits(client: nc.Client) -> None:
    pruner = LevelPruner(LEVEL, client=client, transfer="histogram")
    model = pruner(nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 300)))
    model(torch.ones(1, 1000))
    assert calls(pruner) == 2
    assert pruner.stats.bytes_sent < 4 * 1_300_000 / 30
    assert pruner.stats.bytes_received < 10_000
    model(torch.ones(1, 1000))
    assert calls(pruner) == 2


class Calls:
    """Which layers are sent how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted: set[str] = set()
        self.sent: set[str] = set()
        calc_mask, calc_thresholds = nc.Session.calc_mask, nc.Session.calc_thresholds

        def mask(session: Any, weights: Any, **kwargs: Any) -> Any:
            self.sent.update(weights)
            return calc_mask(session, weights, **kwargs)

        def thresholds(session: Any, counters: Any, **kwargs: Any) -> Any:
            self.counted.update(counters)
            return calc_thresholds(session, counters, **kwargs)

        monkeypatch.setattr(nc.Session, "calc_mask", mask)
        monkeypatch.setattr(nc.Session, "calc_thresholds", thresholds)

    def take(self) -> tuple[set[str], set[str]]:
        """Layers counted, and sent, since the last time."""
        found = set(self.counted), set(self.sent)
        self.counted.clear()
        self.sent.clear()
        return found


class TestWhatIsSent:
    def test_layers_that_take_no_counts_are_sent(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Calls(monkeypatch)
        rules = [SCHEDULE, {**SCHEDULE, "op_names": ["fc1"], "score": "random"}]
        one, other = (AGPPruner(rules, client=client, transfer=t) for t in ("histogram", "weights"))
        models = [one(Net()), other(Net())]
        for pruner, model in zip((one, other), models):
            pruner.update_epoch(2)
            model(images())
        assert told.take() == ({"conv1", "conv2", "fc2"}, set(COMPRESSED))
        assert_same(one, other)

    def test_by_default_it_depends_on_the_device(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Calls(monkeypatch)
        pruner = AGPPruner(AGP, client=client)
        model = pruner(Net())
        model(images())
        assert told.take() == (set(), set(COMPRESSED))
        on_gpu = {"fc1"}
        monkeypatch.setattr(
            TorchPruning, "counts_by_default", lambda self, weight: weight.name in on_gpu
        )
        pruner.update_epoch(3)
        model(images())
        assert told.take() == ({"fc1"}, set(COMPRESSED) - {"fc1"})
        on_gpu.clear()  # the server has no mask of fc1, so that it could not use a weight
        pruner.update_epoch(4)
        model(images())
        assert told.take() == ({"fc1"}, set(COMPRESSED) - {"fc1"})
        model = pruner.bound_model
        pruner.rebind()
        pruner.update_epoch(5)
        model(images())
        assert told.take() == (set(), set(COMPRESSED))

    def test_a_layer_that_the_server_may_have_decided_about_is_counted_again(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pruner = AGPPruner(AGP, client=client)
        model = pruner(Net())
        pruner.update_epoch(3)
        with monkeypatch.context() as patch:
            patch.setattr(TorchPruning, "counts_by_default", lambda self, weight: True)
            patch.setattr(nc.Session, "calc_thresholds", lose_reply)
            with pytest.raises(nc.UnavailableError):
                model(images())
        told = Calls(monkeypatch)
        model(images())
        assert told.take()[0] == set(COMPRESSED)

    def test_layers_that_are_decided_about_together_are_sent_alike(
        self, client: nc.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Calls(monkeypatch)
        monkeypatch.setattr(
            TorchPruning, "counts_by_default", lambda self, weight: weight.name == "fc1"
        )
        pruner = GlobalMagnitudePruner([{"sparsity": 0.5, **ALL}], client=client)
        pruner(Net())(images())
        assert told.take() == (set(COMPRESSED), set())

    def test_a_cuda_device_is_one_where_counting_costs_less(self) -> None:
        weight: Any = type("Weight", (), {"dense": torch.ones(1)})()
        assert not TorchPruning().counts_by_default(weight)
        weight.dense = type("OnCuda", (), {"device": torch.device("cuda", 0)})()
        assert TorchPruning().counts_by_default(weight)

    def test_one_line_takes_it(self, client: nc.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        told = Calls(monkeypatch)
        model = prune(Net(), "level", sparsity=0.5, client=client, transfer="histogram")
        model(images())
        assert told.take() == (set(COMPRESSED), set())

    @pytest.mark.parametrize("make", [LAMPPruner, RandomPruner])
    def test_an_algorithm_that_takes_none_is_refused(self, client: nc.Client, make: Any) -> None:
        label = {"refused": make.__name__}
        rules = [{"sparsity": 0.5, **ALL}]
        pruner = make(rules, client=client, labels=label, transfer="histogram")
        model = Net()
        with pytest.raises(nc.InvalidArgumentError, match="level, agp, global_magnitude"):
            pruner(model)
        assert type(model.fc1) is nn.Linear
        assert client.sessions(label) == []
        make(rules, client=client, transfer="weights")(model)(images())

    def test_a_custom_algorithm_takes_none(self, client: nc.Client) -> None:
        class Mine(Pruner):
            def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
                return torch.ones_like(weight)

        with pytest.raises(nc.InvalidArgumentError, match='transfer is "histogram"'):
            Mine([ALL], client=client, transfer="histogram")(Net())

    def test_the_choices_are_checked(self, client: nc.Client) -> None:
        told = """transfer is 'ranges'; it must be "weights" or "histogram\""""
        with pytest.raises(ValueError, match=told):
            LevelPruner(LEVEL, client=client, transfer="ranges")


class TestABadWeight:
    def test_is_named(self, client: nc.Client) -> None:
        pruner = AGPPruner(AGP, client=client, transfer="histogram")
        model = pruner(Net())
        pruner.update_epoch(2)
        with torch.no_grad():
            dense(model.fc1)[0, 3] = float("nan")
        told = 'weight of layer "fc1": element 3 is nan; it must be finite'
        with pytest.raises(nc.InvalidArgumentError, match=told) as raised:
            model(images())
        assert "epoch 2" in str(raised.value)
        assert int((~pruner._masks().masks()["fc2"]).sum()) > 0  # the others are answered
        with torch.no_grad():
            dense(model.fc1)[0, 3] = 1.0
        made = calls(pruner)
        model(images())
        assert calls(pruner) == made + 2  # no mask is sent, as nothing was decided about this layer
        assert int((~pruner.masks["fc1"]).sum()) > 0

    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_may_keep_its_mask(
        self, client: nc.Client, caplog: pytest.LogCaptureFixture, scope: str
    ) -> None:
        rules = [{**SCHEDULE, "scope": scope}]
        pruner = AGPPruner(rules, client=client, transfer="histogram", on_bad_weight="keep")
        model = pruner(Net())
        pruner.update_epoch(1)
        before = masks_of(pruner)
        pruner.update_epoch(2)
        at = int(before["fc1"].reshape(-1).nonzero()[7])
        with torch.no_grad():
            dense(model.fc1).reshape(-1)[at] = float("inf")
        with caplog.at_level(logging.WARNING, "nni_compression"):
            model(images())
        assert f"element {at} is inf" in caplog.text
        assert torch.equal(pruner.masks["fc1"], before["fc1"])
        assert torch.equal(pruner.masks["fc2"], before["fc2"]) == (scope == "global")
        with torch.no_grad():
            dense(model.fc1).reshape(-1)[at] = 1.0
        pruner.update_epoch(3)
        model(images())
        assert int(pruner.masks["fc1"].sum()) < int(before["fc1"].sum())


class TestMasksThatTheServerLacks:
    @pytest.mark.parametrize("format", ["safetensors", "pth", "sparse", "masks", "report"])
    def test_an_export_is_that_of_weights_and_training_continues(
        self, client: nc.Client, tmp_path: Path, format: str
    ) -> None:
        one, other = (AGPPruner(AGP, client=client, transfer=t) for t in ("histogram", "weights"))
        models = [one(Net()), other(Net())]
        for pruner, model in zip((one, other), models):
            training(pruner, model, range(3))
        exported = [p.export(tmp_path / str(i), format) for i, p in enumerate((one, other))]
        if format != "report":  # which has the number of bytes sent
            for first, second in zip(*exported):
                assert first.read_bytes() == second.read_bytes(), first.name
        assert [path.name for path in exported[0]] == [path.name for path in exported[1]]
        before = calls(one)
        one.export(tmp_path / "again", format)
        assert calls(one) == before + 1  # the masks are not sent again
        outputs = [training(p, m, range(3, 6)) for p, m in zip((one, other), models)]
        assert torch.equal(*outputs)
        assert_same(one, other)

    def test_a_checkpoint_has_them(self, client: nc.Client) -> None:
        whole = AGPPruner(AGP, client=client, transfer="histogram")
        model = whole(Net())
        training(whole, model, range(3))
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "pruner": whole.state_dict()}, file)
        expected = training(whole, model, range(3, 7))
        file.seek(0)
        saved = torch.load(file)
        for transfer in ("histogram", "weights"):
            resumed, other = AGPPruner(AGP, client=client, transfer=transfer), Net(seed=9)
            other.load_state_dict(saved["model"])
            resumed.load_state_dict(saved["pruner"])
            resumed(other)
            assert torch.equal(training(resumed, other, range(3, 7)), expected)
            assert_same(resumed, whole)

    def test_a_lost_session_continues_with_them(self, client: nc.Client) -> None:
        whole = AGPPruner(AGP, client=client, transfer="weights")
        expected = whole(Net())
        training(whole, expected, range(3))
        with ServerProcess() as server:
            pruner = AGPPruner(AGP, server=server.address, transfer="histogram")
            model = pruner(Net())
            training(pruner, model, range(3))
            lost = pruner.session.id
            server.kill()
            with ServerProcess(port=server.port):
                output = training(pruner, model, range(3, 6))
                assert pruner.session.id != lost
                assert torch.equal(output, training(whole, expected, range(3, 6)))
                assert_same(pruner, whole)
                pruner.close()

    def test_a_server_that_was_restarted_with_storage_continues(
        self, client: nc.Client, tmp_path: Path
    ) -> None:
        whole = AGPPruner(AGP, client=client, transfer="weights")
        expected = whole(Net())
        training(whole, expected, range(3))
        storage = f"--data_dir={tmp_path}"
        with ServerProcess(storage) as server:
            pruner = AGPPruner(AGP, server=server.address, transfer="histogram")
            model = pruner(Net())
            training(pruner, model, range(3))
            session = pruner.session.id
            server.kill()
            with ServerProcess(storage, port=server.port):
                output = training(pruner, model, range(3, 6))
                assert pruner.session.id == session
                assert torch.equal(output, training(whole, expected, range(3, 6)))
                pruner.close()

    def test_unwrapping_writes_them(self, client: nc.Client) -> None:
        models = []
        for transfer in ("histogram", "weights"):
            pruner = LevelPruner(LEVEL, client=client, transfer=transfer)
            models.append(pruner(Net()))
            pruner.unwrap()
        for name, value in models[1].state_dict().items():
            assert torch.equal(models[0].state_dict()[name], value)
        assert type(models[0].fc1) is nn.Linear

    def test_a_copy_gets_them(self, client: nc.Client) -> None:
        pruner = AGPPruner(AGP, client=client, transfer="histogram")
        model = pruner(Net()).eval()
        pruner.update_epoch(4)
        follower = pruner.apply_to(copy.deepcopy(model))
        assert torch.equal(follower(images()), model(images()))
        assert float((follower.fc1.weight == 0).float().mean()) > 0.5
        pruner.update_epoch(6)
        assert torch.equal(model(images()), follower(images()))

    def test_a_mask_of_anothers_weights_is_used_as_it_is(self, client: nc.Client) -> None:
        """Where another rank sends weights: no adapter mixes them, and a script may."""
        pruner = LevelPruner(LEVEL, client=client, transfer="histogram")
        model = pruner(Net())
        joined = client.join(pruner.session.id)
        other = {name: dense(getattr(Net(seed=3), name)).detach().numpy() for name in COMPRESSED}
        masks = joined.calc_mask(other)
        model(images())
        for name in COMPRESSED:
            np.testing.assert_array_equal(pruner.masks[name].numpy(), masks[name].to_numpy())


calc_thresholds = nc.Session.calc_thresholds


def lose_reply(*args: Any, **kwargs: Any) -> Any:
    calc_thresholds(*args, **kwargs)
    raise nc.UnavailableError("it is lost")


def interrupt(*args: Any, **kwargs: Any) -> Any:
    calc_thresholds(*args, **kwargs)
    raise KeyboardInterrupt("it is lost")


def lose_weight(*args: Any) -> Any:
    raise nc.InternalError("it is lost")


def scale(weight: torch.Tensor) -> None:
    weight.mul_(torch.linspace(0.5, 2, weight.numel()).view_as(weight))


def change_lower_bits(weight: torch.Tensor) -> None:
    """Of a first round, which the server remembers, no count changes."""
    bits = torch.arange(weight.numel(), dtype=torch.int32).view_as(weight)
    weight.view(torch.int32).bitwise_xor_(bits % 1000 + 1)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("lose", [lose_reply, interrupt, lose_weight])
@pytest.mark.parametrize("change", [scale, change_lower_bits, None])
def test_a_threshold_that_gets_lost_is_decided_anew(
    client: nc.Client, monkeypatch: pytest.MonkeyPatch, scope: str, lose: Any, change: Any
) -> None:
    """When the weights have changed since, or the epoch."""
    rule = {"scope": scope, **SCHEDULE}
    one, other = (AGPPruner([rule], client=client, transfer=t) for t in ("histogram", "weights"))
    models = [one(Net()), other(Net())]
    for pruner, model in zip((one, other), models):
        training(pruner, model, range(2))
        pruner.update_epoch(2)
    with monkeypatch.context() as patch:
        if lose is lose_weight:
            made: list[Any] = []

            def lose_third(*args: Any) -> Any:
                made.append(args)
                return lose_weight() if len(made) == 3 else magnitudes.mask_from_threshold(*args)

            patch.setattr(answers, "mask_from_threshold", lose_third)
        else:
            patch.setattr(nc.Session, "calc_thresholds", lose)
        with pytest.raises((nc.CompressionError, KeyboardInterrupt), match="it is lost"):
            models[0](images())
    for pruner, model in zip((one, other), models):
        if change is None:
            pruner.update_epoch(3)
            continue
        for name in COMPRESSED:
            with torch.no_grad():
                change(dense(model.get_submodule(name)))
    assert torch.equal(*(model(images()) for model in models))
    assert_same(one, other)
