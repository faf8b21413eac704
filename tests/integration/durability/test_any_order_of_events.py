"""Trainers, checkpoints and servers in any order of events, against a plain model of a session.

A seed draws what happens: two trainers train, save, and go on from any checkpoint, while those that
were interrupted may go on beside them; the server is killed and comes back, with and without its
sessions, or with those of a backup; replies are lost, and the server with them. Every answer has to
be that of `reference`, which knows nothing of all this. A seed that fails says what happened.
"""

from __future__ import annotations

import copy
import math
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import grpc
import numpy as np
import pytest
import torch
from torch import nn

import nni_compression as nc
import reference
from nni_compression._transport import channel
from nni_compression.torch import (
    AGPPruner,
    DoReFaQuantizer,
    LevelPruner,
    NaiveQuantizer,
    QATQuantizer,
)
from servers import ServerProcess

LONG = bool(os.environ.get("NNI_COMPRESSION_LONG"))
SEEDS = range(5000 if LONG else 60)
EVENTS = 45  # of a seed
SHAPES = {"0": (5, 6), "1": (4, 5)}
INPUTS = (3, 6)

ADAPTERS: dict[str, Any] = {
    "level": LevelPruner,
    "agp": AGPPruner,
    "naive": NaiveQuantizer,
    "qat": QATQuantizer,
    "dorefa": DoReFaQuantizer,
}


class LostReplyError(grpc.RpcError):
    """What gRPC raises when the connection breaks before the reply."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the reply was lost"

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()


class Reply:
    """All messages that a call was answered with."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages = list(call)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._messages)

    def cancel(self) -> None:
        """It is over."""

    def trailing_metadata(self) -> Any:
        return self._call.trailing_metadata()


class World:
    """A server and a client, between which replies are lost when that is asked for."""

    def __init__(self, data_dir: Path | None) -> None:
        self.flags = () if data_dir is None else (f"--data_dir={data_dir}",)
        self.data_dir = data_dir
        self.durable = data_dir is not None
        self.server = ServerProcess(*self.flags)
        self.client = nc.Client(self.server.address, timeout=60, keep_alive=False)
        make = self.client._transport._make_channel
        self.client._transport._make_channel = lambda: LossyChannel(make(), self)  # type: ignore
        self.when_answered: list[Callable[[], None]] = []  # before replies that are lost

    def kill(self) -> None:
        """`kill -9`; another server comes in its place."""
        self.server.kill()
        self.start()

    def start(self) -> None:
        self.server = ServerProcess(*self.flags, port=self.server.port)

    def back_up(self) -> None:
        """What is stored now is kept, in place of what was before."""
        if self.data_dir is not None:
            self.server.kill()
            shutil.rmtree(self.backup, ignore_errors=True)
            shutil.copytree(self.data_dir, self.backup)
            self.start()

    def forget_backup(self) -> None:
        """The server cannot go back before the next backup."""
        if self.data_dir is not None:
            shutil.rmtree(self.backup, ignore_errors=True)

    def go_back(self) -> None:
        """The server goes on with its backup, which its trainers do not know."""
        if self.data_dir is not None and self.backup.is_dir():
            self.server.kill()
            shutil.rmtree(self.data_dir)
            shutil.copytree(self.backup, self.data_dir)
            self.start()

    @property
    def backup(self) -> Path:
        assert self.data_dir is not None
        return self.data_dir.with_name("backup")

    def close(self) -> None:
        self.client.close()
        self.server.stop()


class LossyChannel:
    """A channel of gRPC as far as the client needs it."""

    def __init__(self, channel: Any, world: World) -> None:
        self._channel = channel
        self._world = world

    def __getattr__(self, name: str) -> Any:
        made = getattr(self._channel, name)
        if name == "close":
            return made

        def method(path: str) -> Any:
            return LossyMethod(made(path), self._world, streams=name.endswith("stream"))

        return method


class LossyMethod:
    """A method of gRPC's, likewise."""

    def __init__(self, method: Any, world: World, *, streams: bool) -> None:
        self._method = method
        self._world = world
        self._streams = streams

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reply = self._method(*args, **kwargs)
        return self._delivered(Reply(reply) if self._streams else reply)

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        return self._delivered(self._method.with_call(*args, **kwargs))

    def _delivered(self, reply: Any) -> Any:
        if self._world.when_answered:
            self._world.when_answered.pop(0)()
            raise LostReplyError
        return reply


@dataclass
class Checkpoint:
    """What a trainer saves, and what the reference was then."""

    trainer: type
    weights: dict[str, Any]
    state: Any
    expected: reference.Session


def draw_rule(rng: random.Random) -> tuple[str, dict[str, Any]]:
    algorithm = rng.choice(["level", "agp", "agp", "naive", "naive", "qat", "qat", "dorefa"])
    rule: dict[str, Any] = {"op_types": ["default"]}
    if algorithm == "level":
        rule["sparsity"] = rng.choice([0.0, 0.3, 0.77, 1.0])
    elif algorithm == "agp":
        rule.update(
            initial_sparsity=rng.choice([0.0, 0.2]),
            final_sparsity=rng.choice([0.5, 0.8]),
            start_epoch=rng.choice([0, 2]),
            end_epoch=rng.choice([6, 9]),
            frequency=rng.choice([1, 3]),
        )
    elif algorithm == "dorefa":
        rule["quant_bits"] = rng.choice([2, 4, 8])
    elif algorithm == "qat":
        kinds = ["per_tensor_affine", "per_tensor_symmetric"]
        rule.update(
            quant_types=rng.choice(
                [["weight"], ["weight", "output"], ["weight", "output", "input"]]
            ),
            quant_bits=rng.choice([4, 8]),
            quant_start_step=rng.choice([0, 0, 4]),
            quant_scheme=rng.choice([*kinds, "per_channel_affine", "per_channel_symmetric"]),
        )
    return algorithm, rule


class Trainer:
    """What trainers of both kinds have in common.

    Attributes:
        expected: the reference that all answers are compared with.
    """

    def __init__(self, world: World, rng: random.Random, expected: reference.Session) -> None:
        self.world = world
        self.rng = rng
        self.expected = expected

    def numbers(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        random = np.random.default_rng(self.rng.getrandbits(32))
        scale = F32(self.rng.choice([0.1, 1.0, 10.0]))
        return random.normal(size=shape).astype(np.float32) * scale

    def next_step(self) -> int:
        """Mostly the next; sometimes one that was taken, or a later one."""
        applied = self.expected.applied or 0
        return max(0, applied + self.rng.choice([1, 1, 1, 1, 2, 0, -1]))

    def next_epoch(self) -> int:
        return max(0, self.expected.epoch + self.rng.choice([1, 1, 1, 1, 2, 0, -1]))


F32 = np.float32


class Adapted(Trainer):
    """A PyTorch model in the adapter."""

    def __init__(
        self,
        world: World,
        rng: random.Random,
        expected: reference.Session,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(world, rng, expected)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        transfer = {} if expected.prunes else {"transfer": expected.transfer}
        self.compressor = ADAPTERS[expected.algorithm](
            [expected.rule], client=world.client, lease=120, **transfer
        )
        self.seen: dict[tuple[str, str], tuple[float, float]] = {}
        if checkpoint is not None:
            self.seen = dict(checkpoint.state["test"])
            self.model.load_state_dict(checkpoint.weights)
            self.compressor.load_state_dict(checkpoint.state["compressor"])
        until_bound(lambda: self.compressor(self.model))

    def dense(self, name: str) -> torch.Tensor:
        return self.model[int(name)]._parameters["weight"]  # type: ignore

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: self.dense(name).detach().numpy().copy() for name in SHAPES}

    def change(self) -> str:
        name = self.rng.choice(list(SHAPES))
        new = torch.from_numpy(self.numbers(SHAPES[name]))
        if self.rng.random() < 0.3:
            self.dense(name).data.copy_(new)
            return f"{name}.data"
        with torch.no_grad():
            self.dense(name).copy_(new)
        return name

    def change_unseen_and_step(self) -> str:
        """A write to one element that leaves no trace; it is noticed at the step."""
        self.dense("0").data.view(-1)[7] = self.rng.uniform(-20, 20)
        return "one element, " + self.step()

    def forward(self) -> str:
        training = self.rng.random() < 0.7
        self.model.train(training)
        x = torch.from_numpy(self.numbers(INPUTS))
        output = self.model(x)
        for name, module in self.model.named_children():
            effective = self.expected.ask(name, self.weights()[name])
            self.check(module.weight.detach().numpy(), effective)
            weight = module.weight.detach() if self.inexact else torch.from_numpy(effective)
            x = self.quantized(name, "input", x, training)
            x = nn.functional.linear(x, weight, module.bias)
            x = self.quantized(name, "output", x, training)
        assert torch.equal(output, x.detach())
        return "training" if training else "evaluation"

    @property
    def inexact(self) -> bool:
        return self.expected.algorithm == "dorefa"

    def check(self, found: np.ndarray[Any, Any], effective: np.ndarray[Any, Any]) -> None:
        if self.inexact:  # tanh may differ in its last bit, and so a code
            levels = 2 ** self.expected.rule["quant_bits"] - 1
            np.testing.assert_allclose(found, effective, atol=2.01 / levels)
        else:
            np.testing.assert_array_equal(found, effective)

    def quantized(self, name: str, target: str, x: torch.Tensor, training: bool) -> torch.Tensor:
        if target not in self.expected.targets():
            return x
        key = (name, target)
        if training:
            low, high = x.min().item(), x.max().item()
            before = self.seen.get(key, (math.inf, -math.inf))
            self.seen[key] = (min(low, before[0]), max(high, before[1]))
        numbers = self.expected.activation(key)
        return x if numbers is None else torch.fake_quantize_per_tensor_affine(x, *numbers)

    def epoch(self) -> str:
        epoch = self.next_epoch()
        self.expected.epoch = epoch
        self.compressor.update_epoch(epoch)
        return str(epoch)

    def step(self) -> str:
        step = self.next_step()
        # Without need the adapter makes no call, and the session knows of no step.
        plan = self.compressor.plan
        sends = not self.expected.prunes and self.compressor.transfer == "ranges"
        if plan.needs_step or sends:
            self.expected.take_step(step, self.weights() if sends else {}, self.seen)
        self.seen = {}
        self.compressor.step(step)
        return str(step)

    def rebind(self) -> str:
        until_bound(self.compressor.rebind)
        return ""

    def save(self) -> Checkpoint:
        state = {"compressor": self.compressor.state_dict(), "test": self.seen}
        weights = copy.deepcopy(self.model.state_dict())
        return Checkpoint(type(self), weights, copy.deepcopy(state), self.expected.fork())

    def load(self, checkpoint: Checkpoint) -> str:
        """In place."""
        self.model.load_state_dict(checkpoint.weights)
        self.expected, self.seen = checkpoint.expected.fork(), dict(checkpoint.state["test"])
        until_bound(lambda: self.compressor.load_state_dict(checkpoint.state["compressor"]))
        return ""

    def settle(self) -> None:
        """Session and model agree, as far as the session still is there."""
        self.compressor.refresh()
        for name, weight in self.weights().items():
            self.expected.ask(name, weight)
        if self.expected.prunes:
            agree(self.compressor.session, self.expected)

    def end(self) -> None:
        self.compressor.close()

    def die(self) -> None:
        """As by `kill -9`: nothing is closed."""
        self.compressor._lifecycle._closer.cancel()


class Bare(Trainer):
    """A trainer on numpy, which keeps what answers tell it and restores sessions by itself."""

    def __init__(
        self,
        world: World,
        rng: random.Random,
        expected: reference.Session,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(world, rng, expected)
        self.values = {name: self.numbers(shape) for name, shape in SHAPES.items()}
        self.masks: dict[str, nc.Mask] = {}
        self.memory: dict[str, Any] = {}
        self.place = (0, 0, False)  # epoch, step, whether that was taken
        if checkpoint is not None:
            self.values = dict(checkpoint.weights)
            self.masks, self.memory, self.place = copy.deepcopy(checkpoint.state)
        self.session = self.bind()

    def bind(self) -> nc.Session:
        epoch, step, applied = self.place
        return self.world.client.bind_model(
            self.expected.algorithm,
            [self.expected.rule],
            [nc.Layer(name, "Linear", shape) for name, shape in SHAPES.items()],
            masks=self.masks,
            memory=self.memory,
            epoch=epoch,
            step=step,
            step_applied=applied,
            lease=120,
        )

    def persist(self, call: Callable[[nc.Session], Any]) -> Any:
        """Calls; in a session that goes on from what is known here if the server has lost it."""
        try:
            return call(self.session)
        except nc.NotFoundError:
            self.session = self.bind()
            return call(self.session)

    def change(self) -> str:
        name = self.rng.choice(list(SHAPES))
        self.values[name] = self.numbers(SHAPES[name])
        return name

    def forward(self) -> str:
        names = self.rng.sample(list(SHAPES), self.rng.choice([1, 2]))
        weights = {name: self.values[name] for name in names}
        if self.expected.prunes:
            found = self.persist(lambda session: session.calc_mask(weights))
            self.masks.update(found)
            for name, mask in found.items():
                expected = self.expected.mask(name, weights[name])
                np.testing.assert_array_equal(mask.to_numpy(), expected)
            return f"{names}"
        reply = self.rng.choice(["codes", "values"])
        answers = self.persist(lambda session: session.quantize_weight(weights, reply=reply))
        for name, answer in answers.items():
            self.memory[name] = answer.memory
            expected = self.expected.ask(name, weights[name])
            assert answer.unquantized == (not self.expected.quantizes_now)
            if answer.unquantized:
                continue
            values = answer.dequantize() if reply == "codes" else answer.values
            if self.expected.algorithm == "dorefa":
                levels = 2 ** self.expected.rule["quant_bits"] - 1
                np.testing.assert_allclose(values, expected, atol=2.01 / levels)
            else:
                np.testing.assert_array_equal(values, expected)
        return f"{reply} of {names}"

    def change_unseen_and_step(self) -> str:
        return self.step()

    def epoch(self) -> str:
        epoch = self.next_epoch()
        self.expected.epoch = epoch
        self.persist(lambda session: session.update_epoch(epoch))
        self.place = (epoch, *self.place[1:])
        return str(epoch)

    def step(self) -> str:
        step = self.next_step()
        names = self.rng.sample(list(SHAPES), self.rng.choice([0, 1, 2]))
        weights, ranges = {}, {}
        if self.expected.algorithm == "naive":
            weights = {name: self.values[name] for name in names}
            ranges = {n: np.array([w.min(), w.max()], F32) for n, w in weights.items()}
        activations = {
            target: {name: tuple(sorted(map(float, self.numbers((2,))))) for name in names}
            for target in self.expected.targets()
        }
        result = self.persist(
            lambda session: session.step(
                step, ranges, outputs=activations.get("output"), inputs=activations.get("input")
            )
        )
        seen = {(n, t): of[n] for t, of in activations.items() for n in of}
        self.expected.take_step(step, weights, seen)
        for key, answer in result.answers.items():
            self.memory[key if isinstance(key, str) else key[0]] = answer.memory
            if isinstance(key, str):
                continue
            assert answer.range == self.expected.ranges.get(key)
            numbers = self.expected.activation(key)
            assert answer.unquantized == (numbers is None)
            if numbers is not None:
                assert (answer.scale, answer.zero_point) == numbers[:2]
        assert result.step == self.expected.step
        self.place = (self.place[0], result.step, True)
        return f"{step} with {names}"

    def rebind(self) -> str:
        self.session = self.bind()
        return ""

    def save(self) -> Checkpoint:
        state = copy.deepcopy((self.masks, self.memory, self.place))
        return Checkpoint(type(self), dict(self.values), state, self.expected.fork())

    def load(self, checkpoint: Checkpoint) -> str:
        self.values, self.expected = dict(checkpoint.weights), checkpoint.expected.fork()
        self.masks, self.memory, self.place = copy.deepcopy(checkpoint.state)
        self.session = self.bind()
        return ""

    def settle(self) -> None:
        if self.expected.prunes:
            agree(self.session, self.expected)

    def end(self) -> None:
        self.session.close()

    def die(self) -> None:
        """Its session is nobody's any more."""


def until_bound(bind: Callable[[], Any]) -> None:
    """Binds; once more if the server has lost the session before it was there as a whole."""
    try:
        bind()
    except nc.NotFoundError:
        bind()


def agree(session: nc.Session, expected: reference.Session) -> None:
    """What the server reports is what the trainer has."""
    try:
        layers = session.info().layers
    except nc.NotFoundError:
        return
    for layer in layers:
        if layer.name in expected.masks:
            pruned = 1 - expected.masks[layer.name].mean()
            assert layer.achieved_sparsity == pytest.approx(pruned)


EVENT_WEIGHTS: Mapping[str, int] = {
    "change": 6,
    "forward": 8,
    "epoch": 5,
    "step": 5,
    "change_unseen_and_step": 1,
    "save": 3,
    "load": 1,
    "restart": 3,
    "rebind": 1,
    "lose a reply": 2,
    "lose a reply and kill": 1,
    "kill": 1,
    "back up": 3,
    "go back": 3,
}


class Story:
    """What happens in one seed."""

    def __init__(self, seed: int, worlds: Mapping[bool, World]) -> None:
        self.rng = random.Random(seed)
        self.world = worlds[self.rng.random() < 0.5]
        self.world.forget_backup()  # so that the seed has the same story alone
        self.kills = self.rng.random() < 0.25  # they cost time
        self.kind: type = self.rng.choice([Adapted, Adapted, Bare])
        algorithm, rule = draw_rule(self.rng)
        transfer = self.rng.choice(["weights", "ranges"])
        self.events = [
            f"{self.kind.__name__}, {algorithm} {rule}, {transfer}, "
            f"{'durable' if self.world.durable else 'in memory'}"
        ]
        self.trainers = [
            self.kind(self.world, self.rng, reference.Session(algorithm, rule, transfer))
            for _ in range(2)
        ]
        self.checkpoints: list[Checkpoint] = []

    def happen(self) -> None:
        event = self.rng.choices(list(EVENT_WEIGHTS), list(EVENT_WEIGHTS.values()))[0]
        number = self.rng.randrange(len(self.trainers))
        trainer = self.trainers[number]
        self.events.append(f"{number}: {event}")
        detail = ""
        if event.startswith("lose"):
            kills = event.endswith("kill") and self.kills
            self.world.when_answered.append(self.world.kill if kills else lambda: None)
        elif event in ("kill", "back up", "go back"):
            if self.kills:
                getattr(self.world, event.replace(" ", "_"))()
        elif event == "save":
            self.checkpoints.append(trainer.save())
        elif event in ("load", "restart"):
            if self.checkpoints:
                index = self.rng.randrange(len(self.checkpoints))
                checkpoint = self.checkpoints[index]
                self.events[-1] += f" checkpoint {index}"
                if event == "load":
                    trainer.load(checkpoint)
                else:
                    self.restart(number, checkpoint)
        else:
            detail = getattr(trainer, event)()
        self.events[-1] += f" {detail}"

    def restart(self, number: int, checkpoint: Checkpoint) -> None:
        """Another process goes on from the checkpoint; the one that there was may do so, too."""
        trainer = self.trainers[number]
        trainer.die()
        fresh = self.kind(self.world, self.rng, checkpoint.expected.fork(), checkpoint)
        if len(self.trainers) < 4 and self.rng.random() < 0.5:
            self.trainers.append(fresh)
        else:
            self.trainers[number] = fresh

    def end(self) -> None:
        self.world.when_answered.clear()
        for trainer in self.trainers:
            trainer.forward()
            trainer.settle()
        for trainer in self.trainers:
            trainer.end()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[bool, World]]:
    """One that keeps its sessions when it is killed, and one that does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel, "_FIRST_DELAY", 0.002)
        both = {True: World(tmp_path_factory.mktemp("data")), False: World(None)}
        yield both
        for world in both.values():
            world.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_trainer_computes_as_if_it_had_never_been_disturbed(
    seed: int, worlds: Mapping[bool, World]
) -> None:
    story = Story(seed, worlds)
    try:
        for _ in range(EVENTS):
            story.happen()
        story.events.append("end")
        story.end()
    except BaseException as error:
        story.world.when_answered.clear()
        told = "\n  ".join(story.events)
        raise AssertionError(f"seed {seed}, where this happened:\n  {told}\n{error!r}") from error


def test_a_story_knows_of_no_backup_of_another_one(worlds: Mapping[bool, World]) -> None:
    worlds[True].back_up()
    durable = next(seed for seed in SEEDS if random.Random(seed).random() < 0.5)
    story = Story(durable, worlds)
    assert story.world is worlds[True]
    server = story.world.server
    story.world.go_back()
    assert story.world.server is server
    story.end()


def test_the_judgement_notices_a_trainer_whose_session_has_gone_on(
    worlds: Mapping[bool, World],
) -> None:
    """What joins the session of its checkpoint gets what others have made of it meanwhile."""
    rng = random.Random(1)
    rule = {"op_types": ["default"], "final_sparsity": 0.8, "end_epoch": 9}
    first = Bare(worlds[False], rng, reference.Session("agp", rule))
    first.forward()
    saved = first.save()
    first.session.update_epoch(5)
    first.session.calc_mask(first.values)
    second = Bare(worlds[False], rng, saved.expected.fork(), saved)
    second.session.close()
    second.session = first.session
    second.expected.epoch = 1
    second.session.update_epoch(1)
    with pytest.raises(AssertionError):
        second.forward()
