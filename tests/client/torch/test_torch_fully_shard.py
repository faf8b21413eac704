"""Pruners of models under `fully_shard`: the masks of the unsharded model, on 2 and 4 ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nni_compression as nc
from servers import ServerProcess

pytest.importorskip("torch", "2.6", reason="FSDP2 is of PyTorch 2.6 and later")

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import fully_sharded
from fully_sharded import (
    ALL,
    LAYERS,
    Rank,
    Uneven,
    assert_same_masks,
    assert_zero,
    batch,
    set_weights,
    sgd,
    train,
    weights,
    whole_masks,
)
from nni_compression.torch import (
    AGPPruner,
    GlobalMagnitudePruner,
    LAMPPruner,
    LevelPruner,
    LotteryTicketPruner,
    MovementPruner,
    Pruner,
    QATQuantizer,
    RandomPruner,
)

EPOCHS = 4
STEPS = 2  # of each
LEVEL = [{"sparsity": 0.5, **ALL}]
SCHEDULE = {"final_sparsity": 0.8, "end_epoch": EPOCHS - 1, **ALL}
RULES: list[tuple[Any, dict[str, Any]]] = [
    (LevelPruner, LEVEL[0]),
    (LevelPruner, {"schedule": "linear", **SCHEDULE}),
    (AGPPruner, SCHEDULE),
    (AGPPruner, {"scope": "global", **SCHEDULE}),
    (GlobalMagnitudePruner, {"sparsity": 0.6, **ALL}),
    (GlobalMagnitudePruner, {"schedule": "linear", **SCHEDULE}),
    (
        GlobalMagnitudePruner,
        {"schedule": "exponential", "min_sparsity": 0.3, "max_sparsity": 0.9, **SCHEDULE},
    ),
]

Run = Callable[..., None]


@pytest.fixture
def run(server: ServerProcess, tmp_path: Path) -> Run:
    """Runs a job of so many ranks, with arguments."""

    def run_job(ranks: int, job: Callable[..., None], *arguments: Any) -> None:
        fully_sharded.run(ranks, job, server.address, tmp_path, *arguments)

    return run_job


def raised(kind: type[BaseException], text: str, call: Callable[[], Any]) -> None:
    """Asserts that a call raises, on this rank as on all others."""
    with pytest.raises(kind) as found:
        call()
    assert text in str(found.value), found.value


# Masks.


def train_both(rank: Rank) -> None:
    for make, rule in RULES:
        plain, model = Uneven(), rank.shard(Uneven())
        one, other = make([rule], server=rank.address), make([rule], server=rank.address)
        other.transfer = "weights"
        other(plain)
        one(model)
        optimizers = sgd(model), sgd(plain)
        for epoch in range(EPOCHS):
            # The sums of gradients are rounded in another order: the same bits from here on.
            masks = whole_masks(other)
            for name, weight in weights(model):
                dense = getattr(plain, name)._parameters["weight"]
                assert torch.allclose(weight[masks[name]], dense[masks[name]], atol=1e-5)
                with torch.no_grad():
                    dense[masks[name]] = weight[masks[name]]
            for pruner in (one, other):
                pruner.update_epoch(epoch)
            assert_same_masks(one, other, (make, rule, epoch))
            assert_zero(model, one)
            for step in range(STEPS):
                norms = [
                    train(each, optimizer, 10 * epoch + step)
                    for each, optimizer in zip((model, plain), optimizers)
                ]
                assert torch.allclose(*norms, rtol=1e-4), (rule, epoch, norms)
                assert_zero(model, one)
                one.step()
                other.step()
        with torch.no_grad():
            assert torch.allclose(model(batch(0)), plain(batch(0)), atol=1e-5)
        numbers = [{k: v for k, v in p.metrics().items() if "sparsity" in k} for p in (one, other)]
        assert numbers[0] == numbers[1]
        assert one.metrics()["sparsity"] > 0.4
        other.close()
        assert one.unwrap() is model
        assert_zero(model, one)
        train(model, optimizers[0], 1)
        assert any((weight == 0).sum() < (~masks[name]).sum() for name, weight in weights(model))


@pytest.mark.parametrize("ranks", [2, 4])
def test_masks_and_training_are_those_of_the_unsharded_model(run: Run, ranks: int) -> None:
    run(ranks, train_both)


def compare_ties(rank: Rank) -> None:
    random = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for make, rule in (RULES[2], RULES[5]):
            plain, model = Uneven().to(dtype), rank.shard(Uneven().to(dtype))
            one = make([rule], server=rank.address)
            other = make([rule], server=rank.address, transfer="weights")
            one(model)
            other(plain)
            for epoch in range(EPOCHS):
                values = {
                    name: torch.randint(-3, 4, weight.shape, generator=random).to(dtype) / 2
                    for name, weight in weights(plain)
                }
                for each in (model, plain):
                    set_weights(each, values)
                one.update_epoch(epoch)
                other.update_epoch(epoch)
                assert_same_masks(one, other, (dtype, make, epoch))
            one.close()
            other.close()


def test_equal_magnitudes_are_pruned_in_the_order_of_the_whole_weight(run: Run) -> None:
    run(4, compare_ties)


def show_masks(rank: Rank) -> None:
    model = rank.shard(Uneven())
    pruner = LevelPruner(LEVEL, server=rank.address)
    pruner(model)
    assert list(pruner.plan.layers) == list(LAYERS)
    assert pruner.plan.coverage.compressed == 4
    assert pruner.metrics()["sparsity"] == 0
    for name, mask in pruner.masks.items():
        weight = getattr(model, name).weight
        assert isinstance(mask, DTensor)
        assert mask.to_local().all()
        assert (mask.shape, mask.placements) == (weight.shape, weight.placements)
    model(batch(0))
    assert pruner.metrics()["sparsity"] == 0  # nothing is asked for by a forward pass
    pruner.refresh()
    assert [pruner.metrics()[f"sparsity/{name}"] for name in LAYERS] == [0.5, 0.5, 10 / 21, 0.5]
    assert_zero(model, pruner)
    sizes = [len(getattr(model, name).weight.to_local()) for name in LAYERS]
    rows = {0: [3, 2, 1, 1], 1: [3, 2, 1, 1], 2: [3, 2, 1, 0], 3: [1, 1, 0, 0]}
    assert sizes == rows[rank.number]
    made = pruner.stats.calls
    assert (made > 0) == (rank.number == 0)
    for _ in range(3):
        pruner.update_epoch(0)
        pruner.step()
    assert pruner.stats.calls == made  # level has nothing to ask for
    assert pruner.session.info().state == "active"
    pruner.report(accuracy=0.5)
    assert pruner.session.info().results == {"accuracy": 0.5}


def test_masks_are_sharded_as_the_weights(run: Run) -> None:
    run(4, show_masks)


# Zeros.


def write_zeros(rank: Rank) -> None:
    model = Uneven()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    model.fc2.requires_grad_(False)
    rank.shard(model)
    pruner = LevelPruner([{"sparsity": 0.5, **ALL}], server=rank.address)
    pruner(model)
    with torch.no_grad():
        model(batch(0))  # leaves the parameters of the outermost module gathered
    pruner.refresh()
    masks = whole_masks(pruner)
    assert_zero(model, pruner)

    def expected() -> torch.Tensor:
        plain = Uneven()
        plain.load_state_dict(start)
        set_weights(plain, {name: w * masks[name] for name, w in weights(plain)})
        return plain(batch(0))

    with torch.no_grad():
        assert torch.allclose(model(batch(0)), expected(), atol=1e-6)
        set_weights(model, {name: start[f"{name}.weight"] for name in LAYERS})
        pruner.step()
        assert_zero(model, pruner)
        for _ in range(2):
            set_weights(model, {name: start[f"{name}.weight"] for name in LAYERS})
            assert torch.allclose(model(batch(0)), expected(), atol=1e-6)
            assert_zero(model, pruner)

    # Gradients, accumulated ones and those of a layer that is trained from now on.
    model.fc2.requires_grad_(True)
    pruner.step()
    for _ in range(2):
        model(batch(1)).square().mean().backward()
    for name, mask in pruner.masks.items():
        gradient = getattr(model, name)._parameters["weight"].grad.to_local()
        assert not gradient[~mask.to_local()].any(), name
        assert gradient.any()
    pruner.close()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for seed in range(2):
        train(model, optimizer, seed)
        assert_zero(model, pruner)


def test_pruned_weights_and_their_gradients_are_zero_after_every_write(run: Run) -> None:
    run(2, write_zeros)


def train_in_bfloat16(rank: Rank) -> None:
    plain, model = Uneven(), Uneven()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, mesh=rank.mesh, mp_policy=policy)
    one = GlobalMagnitudePruner([{"sparsity": 0.6, **ALL}], server=rank.address)
    other = GlobalMagnitudePruner([{"sparsity": 0.6, **ALL}], server=rank.address)
    one(model)
    other(plain)
    model(batch(0)).sum().backward()
    one.refresh()
    assert_same_masks(one, other)
    optimizer = sgd(model)
    train(model, optimizer, 0)
    assert_zero(model, one)


def test_mixed_precision_counts_the_parameters_in_their_own_type(run: Run) -> None:
    run(2, train_in_bfloat16)


def rewind(rank: Rank) -> None:
    rule = [{"sparsity": 0.8, "rounds": 2, **ALL}]
    plain, model = Uneven(), rank.shard(Uneven())
    one, other = (LotteryTicketPruner(rule, server=rank.address) for _ in range(2))
    one(model)
    other(plain)
    optimizer = sgd(model)
    for epoch in range(3):
        train(model, optimizer, epoch)
        set_weights(plain, dict(weights(model)))
        for pruner in (one, other):
            pruner.update_epoch(epoch)
            pruner.rewind()
        assert_same_masks(one, other)
        with torch.no_grad():
            assert torch.allclose(model(batch(0)), plain(batch(0)), atol=1e-6)
        assert_zero(model, one)


def test_a_lottery_ticket_is_rewound(run: Run) -> None:
    run(2, rewind)


# Checkpoints and files.


def resume(rank: Rank) -> None:
    rule = [{"scope": "global", **SCHEDULE}]

    def begin(model: nn.Module, state: Any = None, **arguments: Any) -> Any:
        pruner = AGPPruner(rule, server=rank.address, **arguments)
        if state is not None:
            pruner.load_state_dict(state)
        pruner(model)
        return pruner

    model = rank.shard(Uneven())
    first = begin(model)
    optimizer = sgd(model)
    for epoch in range(3):
        first.update_epoch(epoch)
        train(model, optimizer, epoch)
        first.step()
    state, values = first.state_dict(), dict(weights(model))
    assert (state["epoch"], state["step"]) == (2, 3)
    again = rank.shard(Uneven(seed=1))
    plain = Uneven(seed=2)
    others = []
    for other, transfer in ((again, None), (plain, "weights")):
        set_weights(other, values)
        others.append(begin(other, state, transfer=transfer))
        assert_same_masks(first, others[-1])
    assert_zero(again, others[0])
    assert others[0].session.id != first.session.id
    later = rank.shard(Uneven(seed=3))
    loaded = AGPPruner(rule, server=rank.address)
    loaded.on_every_rank(later, others[1].state_dict())  # of the unsharded model
    set_weights(later, values)
    loaded.update_epoch(1)
    loaded.load_state_dict(state)  # once it is bound
    for epoch in (EPOCHS - 1, EPOCHS):
        for pruner in (first, loaded, *others):
            pruner.update_epoch(epoch)
        for pruner in (loaded, *others):
            assert_same_masks(first, pruner, epoch)
    assert loaded.metrics()["sparsity"] > 0.79
    loaded.rebind()
    assert_same_masks(first, loaded)
    train(later, sgd(later), 0)
    assert_zero(later, loaded)
    hooks = hooks_of(later)
    loaded.rebind()
    loaded._lifecycle.backend.installed = fail
    raised(RuntimeError, "on purpose", loaded.rebind)
    assert hooks_of(later) == hooks
    train(later, sgd(later), 0)
    assert_zero(later, loaded)


def fail(*unused: Any) -> None:
    raise RuntimeError("on purpose")


def hooks_of(model: nn.Module) -> list[int]:
    weights = [getattr(model, name)._parameters["weight"] for name in LAYERS]
    return [
        len(h)
        for h in (model._forward_pre_hooks, *(w._post_accumulate_grad_hooks for w in weights))
    ]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_training_continues_from_a_checkpoint_sharded_or_not(run: Run, ranks: int) -> None:
    run(ranks, resume)


def export(rank: Rank) -> None:
    plain, model = Uneven(), rank.shard(Uneven())
    one, other = (LevelPruner(LEVEL, server=rank.address) for _ in range(2))
    one(model)
    other(plain)
    one.refresh()
    for format in ("safetensors", "pth", "sparse", "masks"):
        files = one.export(rank.folder / "sharded" / format, format)
        expected = other.export(rank.folder / f"plain-{rank.number}" / format, format)
        assert [file.name for file in files] == [file.name for file in expected]
        for file, same in zip(files, expected):
            assert file.read_bytes() == same.read_bytes(), file
    folder = rank.folder / "nni"
    folder.mkdir(exist_ok=True)
    one.export_model(str(folder / "model.pth"), str(folder / "mask.pth"))
    other.export_model(*(str(folder / f"{name}{rank.number}.pth") for name in ("model", "mask")))
    for name in ("model", "mask"):
        found, same = (torch.load(folder / f"{name}{n}.pth") for n in ("", rank.number))
        assert found.keys() == same.keys()
        for key, value in same.items():
            of = found[key]
            if isinstance(value, dict):
                value, of = value["weight"], of["weight"]
            assert torch.equal(of, value), key
    state = one.compressed_state_dict()
    if rank.number == 0:
        Uneven().load_state_dict(state)
    else:
        assert not state
    raised(
        nc.UnimplementedError,
        "load model_path into the plain model",
        lambda: one.export_model(str(folder / "no.pth"), onnx_path="no.onnx", input_shape=(1,)),
    )
    raised(OSError, "not", lambda: one.export("/dev/null/not", "masks"))
    assert not (folder / "no.pth").exists()
    raised(nc.UnimplementedError, "under fully_shard", lambda: one.apply_to(Uneven()))
    one.unwrap()
    assert_same_masks(one, other)
    assert one.metrics()["sparsity"] == other.metrics()["sparsity"] > 0.49
    raised(nc.FailedPreconditionError, "export before unwrap", lambda: one.export("no", "masks"))


@pytest.mark.parametrize("ranks", [2, 4])
def test_files_are_those_of_the_unsharded_model(run: Run, ranks: int) -> None:
    run(ranks, export)


def save_pretrained(rank: Rank) -> None:
    import transformers

    def language_model() -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
        return transformers.LlamaForCausalLM(config)

    plain, model = language_model(), language_model()
    fully_shard(model, mesh=rank.mesh)
    one, other = (LevelPruner(LEVEL, server=rank.address) for _ in range(2))
    one(model)
    other(plain)
    one.refresh()
    paths = one.save_pretrained(rank.folder / "sharded")
    other.save_pretrained(rank.folder / f"plain-{rank.number}")
    names = {path.name for path in paths}
    assert {"config.json", "model.safetensors"} <= names
    for name in names if rank.number == 0 else ():
        found, same = (
            rank.folder / folder / name for folder in ("sharded", f"plain-{rank.number}")
        )
        assert found.read_bytes() == same.read_bytes(), name
    raised(
        nc.InvalidArgumentError,
        'under fully_shard it must be "safetensors"',
        lambda: one.save_pretrained(rank.folder / "no", format="compressed-tensors"),
    )


def test_a_folder_of_transformers_is_that_of_the_unsharded_model(run: Run) -> None:
    pytest.importorskip("transformers")
    run(2, save_pretrained)


# Trouble.


def lose_the_server(rank: Rank) -> None:
    server = ServerProcess() if rank.number == 0 else None
    address = [server.address if server is not None else "127.0.0.1:1"]  # others need none
    client = nc.Client(address[0], timeout=2, connect_timeout=2)
    model = rank.shard(Uneven())
    pruner = AGPPruner([SCHEDULE], client=client)
    pruner(model)
    optimizer = sgd(model)
    for epoch in range(3):
        pruner.update_epoch(epoch)
        train(model, optimizer, epoch)
        pruner.step()
    masks = whole_masks(pruner)
    if server is not None:
        server.kill()
    for call in (lambda: pruner.update_epoch(3), pruner.rebind):
        raised(nc.UnavailableError, "127.0.0.1:", call)
        for name, mask in whole_masks(pruner).items():
            assert torch.equal(mask, masks[name])
    train(model, optimizer, 3)
    assert_zero(model, pruner)
    again = ServerProcess(port=server.port) if server is not None else None
    pruner.update_epoch(3)  # binds another session with the masks
    assert pruner.session.info().state == "active"
    for name, mask in whole_masks(pruner).items():
        assert not (mask & ~masks[name]).any()
    assert pruner.metrics()["sparsity"] > 0.7
    pruner.close()
    dist.barrier()
    if again is not None:
        again.stop()


def test_a_server_that_dies_is_an_error_on_all_ranks(run: Run) -> None:
    run(4, lose_the_server)


def find_no_server(rank: Rank) -> None:
    model = rank.shard(Uneven())
    client = nc.Client("127.0.0.1:1", connect_timeout=0.2)
    pruner = LevelPruner(LEVEL, client=client)
    raised(nc.UnavailableError, "127.0.0.1:1", lambda: pruner(model))
    assert not pruner.is_bound
    raised(nc.UnavailableError, "127.0.0.1:1", lambda: pruner.on_every_rank(model))


def test_no_server_is_an_error_on_all_ranks(run: Run) -> None:
    run(2, find_no_server)


def count_bad_weights(rank: Rank) -> None:
    model = rank.shard(Uneven())
    rules = [
        {"sparsity": 0.5, "op_names": ["conv", "fc2"]},
        {"sparsity": 0.5, "op_names": ["fc1", "fc3"]},
    ]
    pruner = LevelPruner(rules, server=rank.address)
    pruner(model)
    before = dict(weights(model))
    bad = {name: weight.clone() for name, weight in before.items()}
    bad["fc1"][6, 39] = float("nan")  # on the last rank
    bad["fc1"][5, 7] = -float("inf")
    set_weights(model, bad)
    raised(nc.InvalidArgumentError, 'layer "fc1": element 207 is -inf', pruner.refresh)
    sparsities = {name: pruner.metrics()[f"sparsity/{name}"] for name in LAYERS}
    assert sparsities["fc1"] == 0
    assert min(sparsities[name] for name in LAYERS if name != "fc1") > 0.3
    set_weights(model, {"fc1": before["fc1"]})
    pruner.refresh()
    assert pruner.metrics()["sparsity/fc1"] == 0.5
    assert_zero(model, pruner)


def test_a_weight_that_is_not_finite_is_named_on_all_ranks(run: Run) -> None:
    run(4, count_bad_weights)


def call_other_methods(rank: Rank) -> None:
    model = rank.shard(Uneven())
    pruner = AGPPruner([SCHEDULE], server=rank.address)
    pruner(model)
    if rank.number == 0:
        pruner.report(accuracy=1)
    else:
        text = "the first rank has called report, and rank 1 update_epoch: all ranks"
        raised(RuntimeError, text, lambda: pruner.update_epoch(1))


def test_ranks_that_call_other_methods_are_told(run: Run) -> None:
    run(2, call_other_methods)


class OwnPruner(Pruner):
    def calc_mask(self, weight: Any, config: Any, **kwargs: Any) -> Any:
        return weight > 0


def refuse(rank: Rank) -> None:
    mesh, client = rank.mesh, nc.Client(rank.address)

    def refused(model: nn.Module, text: str, make: Any = LevelPruner, rule: Any = LEVEL) -> None:
        compressor = make(rule, server=rank.address, labels={"job": str(rank.folder)})
        raised(nc.UnimplementedError, text, lambda: compressor(model))
        assert not compressor.is_bound
        dist.barrier()
        assert client.sessions({"job": str(rank.folder)}) == []
        model(batch(0)).sum().backward()

    def sharded(**arguments: Any) -> nn.Module:
        model = Uneven()
        fully_shard(model, **{"mesh": mesh, **arguments})
        return model

    whole_only = "are sharded over the ranks (fully_shard"
    parallel = Uneven()
    parallelize_module(parallel, mesh, {"fc2": ColwiseParallel()})
    compressor = LevelPruner(LEVEL, server=rank.address)
    raised(nc.UnimplementedError, "use DistributedDataParallel", lambda: compressor(parallel))
    refused(sharded(), whole_only, QATQuantizer, [{"quant_bits": 8, **ALL}])

    grid = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicated", "sharded"))
    refused(sharded(mesh=grid), "on a mesh of one dimension")
    refused(
        sharded(shard_placement_fn=lambda own: Shard(1 if own.dim() == 3 else 0)),
        "with [Shard(dim=0)] on",
    )
    refused(sharded(), "are counted, not sent", RandomPruner)
    refused(sharded(), "the rule of layer 'conv' needs its weight", LAMPPruner)
    refused(sharded(), "needs whole weights", OwnPruner, [ALL])
    moving = MovementPruner([{"final_sparsity": 0.5, "end_epoch": 2, **ALL}], server=rank.address)
    text = "the weight_gradient of layer 'conv', which is not collected of a model that fully_shard"
    raised(nc.InvalidArgumentError, text, lambda: moving(sharded()))
    computed = Uneven()
    nn.utils.parametrizations.weight_norm(computed.fc1)
    fully_shard(computed, mesh=mesh)
    refused(computed, "the weight of layer 'fc1' is computed")
    pruner = LevelPruner(LEVEL, server=rank.address, transfer="weights")
    raised(nc.InvalidArgumentError, 'it must be "histogram"', lambda: pruner(sharded()))

    part = Uneven()
    fully_shard(part.fc1, mesh=mesh)
    refused(part, "the weight of layer 'conv' is not sharded and others are")
    pruner = LevelPruner([{"sparsity": 0.5, "op_names": ["fc1"]}], server=rank.address)
    pruner(part)
    pruner.refresh()
    assert pruner.metrics()["sparsity/fc1"] == 0.5
    second = LevelPruner([{"sparsity": 0.5, "op_names": ["fc1"]}], server=rank.address)
    raised(RuntimeError, "layer 'fc1' already has a pruner", lambda: second(part))

    # The other order.
    model = Uneven()
    pruner = LevelPruner(LEVEL, server=rank.address)
    pruner(model)(batch(0))
    fully_shard(model, mesh=mesh)
    for call in (lambda: pruner.update_epoch(1), pruner.step, lambda: pruner.export("nowhere")):
        raised(nc.UnimplementedError, "call them after fully_shard, not before", call)
    pruner.close()

    model = Uneven()
    pruner = LevelPruner(LEVEL, server=rank.address)
    pruner(model)
    plain = pruner.unwrap()
    expected = plain(batch(0))
    fully_shard(plain, mesh=mesh)
    assert torch.allclose(plain(batch(0)), expected)


def test_what_cannot_be_pruned_is_refused(run: Run) -> None:
    run(2, refuse)
