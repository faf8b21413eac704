"""Pruners of filters: the groups that they find, and models that `shrink` makes smaller by them."""

from __future__ import annotations

import copy
import inspect
import logging
import os

import pytest

import nni_compression as nc

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nni_compression.torch import (
    FPGMPruner,
    L1FilterPruner,
    L2FilterPruner,
    RandomPruner,
    prune,
    shrink,
)
from servers import ServerProcess
from test_torch_shrink import Random, assert_equal, one_thread, run, trained  # noqa: F401
from torch_helpers import Net, images, vit

IS_TORCH_2 = int(torch.__version__.split(".")[0]) >= 2
needs_torch_2 = pytest.mark.skipif(not IS_TORCH_2, reason="the graph needs PyTorch 2")

HALF = {"sparsity": 0.5, "op_types": ["Conv2d"]}


def pruned(model, inputs, client, *rules, cls=L1FilterPruner, **kwargs):
    """The pruner of a model whose masks are in force."""
    pruner = cls(model, list(rules) or [HALF], example_inputs=inputs, client=client, **kwargs)
    pruner.compress()
    pruner.refresh()
    return pruner


def removed_shares(pruner):
    """Layer -> the share of its filters that its mask removes; masks are constant over filters."""
    found = {}
    for name, mask in pruner.masks.items():
        by_filter = mask.flatten(1)
        assert torch.equal(by_filter.any(1), by_filter.all(1)), name
        found[name] = 1 - float(by_filter.any(1).double().mean())
    return found


def together(groups, layers):
    """Which layers are in one group: a set of sets."""
    found = {frozenset(group.members) for group in groups}
    grouped = {name for group in found for name in group}
    return found | {frozenset([name]) for name in layers if name not in grouped}


# Whole networks.


def torchvision_model(name):
    return getattr(pytest.importorskip("torchvision").models, name)(num_classes=5)


def small_vgg():
    """VGG-11 without its large Linear layers."""
    model = torchvision_model("vgg11_bn")
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, 5))
    return model


def bert(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        **options,
    )
    return transformers.BertForSequenceClassification(config)


def picture(size=48):
    return torch.randn(2, 3, size, size)


def tokens():
    ids = torch.randint(0, 50, (2, 8))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def small_resnext():
    """ResNeXt with a block in each of its four stages."""
    models = pytest.importorskip("torchvision").models
    block = models.resnet.Bottleneck
    return models.ResNet(block, [1, 1, 1, 1], num_classes=5, groups=32, width_per_group=4)


def small_densenet():
    """DenseNet with four blocks of two to four layers."""
    models = pytest.importorskip("torchvision").models
    return models.DenseNet(32, (2, 3, 4, 3), 64, num_classes=5)


NETWORKS = {
    "resnet18": (lambda: torchvision_model("resnet18"), picture, "Conv2d", 20, 4),
    "vgg11_bn": (small_vgg, picture, "Conv2d", 8, 0),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2"), picture, "Conv2d", 52, 22),
    "resnext": (small_resnext, picture, "Conv2d", 17, 12),
    "densenet": (small_densenet, picture, "Conv2d", 28, 0),
    "vit": (vit, lambda: picture(32), "Linear", 4, 2),
    "bert": (bert, tokens, "Linear", 9, 2),
}
if os.environ.get("NNI_COMPRESSION_LONG"):
    NETWORKS |= {
        "resnext50": (lambda: torchvision_model("resnext50_32x4d"), picture, "Conv2d", 53, 36),
        "densenet121": (lambda: torchvision_model("densenet121"), picture, "Conv2d", 120, 0),
    }


@needs_torch_2
@pytest.mark.parametrize("name", NETWORKS)
def test_shrink_takes_out_all_that_the_masks_remove(client, name):
    make, make_inputs, op_type, layers, groups = NETWORKS[name]
    model, inputs = trained(make()), make_inputs()
    rule = {"sparsity": 0.5, "op_types": [op_type]}
    pruner = pruned(model, inputs, client, rule)
    assert len(pruner.plan.compressed) == layers
    assert len(pruner.filter_groups) == groups
    assert not any("filter_groups" in warning for warning in pruner.plan.warnings)
    shares = removed_shares(pruner)
    # An odd number of heads is rounded down.
    assert {round(share, 2) for share in shares.values()} <= {0.5, 0.33}
    small = shrink(model, inputs)
    report = small.shrink_report
    assert not report.kept
    assert_equal(small, model, inputs)
    assert report.removed.keys() | report.carriers.keys() == shares.keys()
    full = shrink(model, inputs, zero_constants=True).shrink_report
    assert not full.kept
    assert not full.carriers
    masks = pruner.masks
    for layer, gone in full.removed.items():
        assert gone == tuple((~masks[layer].flatten(1).any(1)).nonzero().flatten().tolist())
    pruner.close()


@needs_torch_2
def test_random_networks_are_shrunk_by_all_that_the_masks_remove(client):
    compressed = left_out = 0
    for seed in range(30):
        model = trained(Random(seed)).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        inputs = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        pruner = pruned(model, inputs, client)
        small = shrink(model, inputs)
        assert not small.shrink_report.kept, seed
        assert_equal(small, model, inputs)
        convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        compressed += len(pruner.plan.compressed)
        for name in pruner.kept_layers.keys() & set(convolutions):
            assert "cannot be followed into the groups of" in pruner.kept_layers[name], seed
            left_out += 1
        pruner.close()
    assert compressed > 10 * left_out


@needs_torch_2
@pytest.mark.parametrize("name", [*NETWORKS, "random"])
def test_groups_are_those_of_torch_pruning(client, name):
    import torch_pruning

    for seed in range(8 if name == "random" else 1):
        if name == "random":
            model, inputs, op_type = Random(seed), torch.randn(1, 3, 5, 5), "Conv2d"
        else:
            make, make_inputs, op_type, *_ = NETWORKS[name]
            model, inputs = make(), make_inputs()
        plain = copy.deepcopy(model).eval()
        pruner = pruned(model, inputs, client, {"sparsity": 0.5, "op_types": [op_type]})
        names = {module: name for name, module in plain.named_modules()}
        layers = {name for name in names.values() if name in pruner.plan.compressed}
        graph = torch_pruning.DependencyGraph().build_dependency(plain, inputs, verbose=False)
        own = together(pruner.filter_groups, layers)
        theirs = set()
        for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
            members = {
                names[dependency.target.module]
                for dependency, _ in group
                if graph.is_out_channel_pruning_fn(dependency.handler)
                and dependency.target.module in names
            }
            theirs.add(frozenset(members & layers))
        theirs.discard(frozenset())
        if all(group.runs == 1 for group in pruner.filter_groups):
            assert own == theirs, seed
        else:  # filters before a grouped convolution are chosen together, too
            assert all(any(each <= group for group in own) for each in theirs), seed
        pruner.close()


# Units.


@needs_torch_2
def test_a_unit_of_attention_is_a_head(client):
    model = vit(num_classes=5)
    pruner = pruned(model, picture(32), client, {"sparsity": 0.5, "op_names_re": [".*qkv"]})
    units = [head for _ in "qkv" for head in range(3) for _ in range(64)]
    members = [dict(group.members) for group in pruner.filter_groups]
    assert members == [{f"blocks.{i}.attn.qkv": tuple(units)} for i in range(2)]
    by_head = pruner.masks["blocks.0.attn.qkv"].view(3, 3, 64, -1).flatten(2)
    assert by_head.any(2).sum(1).tolist() == [2, 2, 2]
    assert torch.equal(by_head.any(2), by_head.all(2))
    assert torch.equal(by_head[0].any(1), by_head[2].any(1))
    small = shrink(model, picture(32))
    assert small.blocks[0].attn.num_heads == 2
    pruner.close()

    model = bert()
    pruner = pruned(model, tokens(), client, {"sparsity": 0.5, "op_types": ["Linear"]})
    names = [f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]
    units = tuple(head for head in range(4) for _ in range(8))
    assert dict(pruner.filter_groups[0].members) == dict.fromkeys(names, units)
    small = shrink(model, tokens())
    assert small.bert.encoder.layer[0].attention.self.num_attention_heads == 2
    pruner.close()


@needs_torch_2
def test_grouped_convolutions_lose_the_same_number_in_each_group(client):
    class Grouped(nn.Module):
        """One tensor goes into convolutions with 2 and with 3 groups."""

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 24, 1)
            self.two = nn.Conv2d(24, 8, 3, groups=2)
            self.three = nn.Conv2d(24, 12, 3, groups=3)
            self.last = nn.Linear(20, 2)

        def forward(self, x):
            x = self.first(x).relu()
            x = torch.cat([self.two(x), self.three(x)], 1).relu()
            return self.last(x.mean((2, 3)))

    model = trained(Grouped())
    pruner = pruned(model, picture(8), client)
    runs = {next(iter(group.members)): group.runs for group in pruner.filter_groups}
    assert runs == {"first": 6, "two": 2, "three": 3}
    for name, count in runs.items():
        kept = pruner.masks[name].flatten(1).any(1).view(count, -1)
        assert kept.sum(1).tolist() == [kept.shape[1] // 2] * count
    small = shrink(model, picture(8), zero_constants=True)
    assert small.first.out_channels == small.two.in_channels == 12
    assert (small.two.out_channels, small.three.out_channels) == (4, 6)
    pruner.close()


# Depthwise convolutions.


def separable():
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 2),
        )
    )


@needs_torch_2
def test_a_depthwise_convolution_loses_what_the_layer_before_it_loses(client):
    model = separable()
    pruner = pruned(model, picture(8), client)
    assert pruner.filter_groups == (nc.FilterGroup(["0", "3"]),)
    assert pruner.masks["0"].flatten(1).any(1).tolist() == (
        pruner.masks["3"].flatten(1).any(1).tolist()
    )
    small = shrink(model, picture(8))
    assert not small.shrink_report.kept
    assert small[3].groups == 4
    pruner.close()


@needs_torch_2
@pytest.mark.parametrize("how", ["excluded", "not named"])
def test_one_that_no_rule_compresses_follows_it_in_shrink(client, how):
    model = separable()
    labels = {"job": f"depthwise {how}"}
    rules = {
        "excluded": [HALF, {"exclude": True, "op_names": ["3"]}],
        "not named": [{"sparsity": 0.5, "op_names": ["0", "6"]}],
    }[how]
    pruner = pruned(model, picture(8), client, *rules, labels=labels)
    assert pruner.filter_groups == ()
    assert pruner.plan.compressed == ("0", "6")
    assert [info.id for info in client.sessions(labels)] == [pruner.session.id]
    small = shrink(model, picture(8), zero_constants=True)
    assert not small.shrink_report.kept
    assert small[0].out_channels == small[3].groups == 4
    pruner.close()


# Layers that keep their filters.


@needs_torch_2
def test_layers_whose_filters_cannot_go_are_left_out_with_the_reason(client, caplog):
    model = Net()
    with caplog.at_level(logging.WARNING):
        pruner = pruned(model, images(), client, {"sparsity": 0.5})
    assert pruner.kept_layers == {"fc2": "it is in the output of the model"}
    assert pruner.plan.compressed == ("conv1", "conv2", "fc1")
    assert [p.layer for p in pruner.plan.coverage.excluded] == ["fc2"]
    told = "left out of pruning, as their filters cannot go: fc2 (it is in the output of the model)"
    assert [r.getMessage() for r in caplog.records].count(told) == 1
    caplog.clear()
    pruner.rebind()
    pruner.compress()
    assert not any(r.getMessage().startswith("left out") for r in caplog.records)
    assert pruner.config_list == [{"sparsity": 0.5}]
    pruner.close()


@needs_torch_2
def test_of_an_attention_with_grouped_queries_only_the_others_are_pruned(client):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    inputs = {"input_ids": torch.randint(0, 40, (1, 6)), "use_cache": False}
    pruner = pruned(model, inputs, client, {"sparsity": 0.5, "op_types": ["Linear"]})
    parts = {name.rpartition(".")[2] for name in pruner.plan.compressed}
    assert parts == {"gate_proj", "up_proj"}
    assert set(pruner.kept_layers) > {"model.layers.0.self_attn.q_proj", "lm_head"}
    small = shrink(model, inputs)
    assert not small.shrink_report.kept
    assert small.model.layers[0].mlp.up_proj.out_features == 24
    pruner.close()


@needs_torch_2
def test_code_that_depends_on_the_number_of_channels_is_noticed(client):
    class Reshaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.c = nn.Linear(8, 2)

        def forward(self, x):
            x = self.b(self.a(x).relu()).relu()
            return self.c(x.view(len(x), 8, -1).mean(2))

    model = Reshaped()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = pruned(model, picture(8), client)
    assert pruner.plan.compressed == ("a",)
    assert pruner.kept_layers["b"].startswith("without it the model would raise")
    assert shrink(model, picture(8)).a.out_channels in (4, 5)
    pruner.unwrap()
    assert all(
        torch.equal(own, before[n]) for n, own in model.state_dict().items() if "a." not in n
    )


@needs_torch_2
def test_tied_layers_keep_their_filters_under_all_their_names(client):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x).relu()).relu())

    pruner = pruned(Tied(), torch.randn(2, 6), client, {"sparsity": 0.5, "op_types": ["Linear"]})
    assert pruner.kept_layers["a"].endswith("shares a parameter with another module")
    assert pruner.plan.compressed == ()
    pruner.close()


@needs_torch_2
def test_a_layer_with_two_names_is_one(client):
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 2)
            self.again = self.a

        def forward(self, x):
            return self.c(self.again(x).relu())

    model = Aliased()
    pruner = pruned(model, torch.randn(2, 6), client, {"sparsity": 0.5, "op_types": ["Linear"]})
    assert pruner.plan.compressed == ("a",)
    assert shrink(model, torch.randn(2, 6), zero_constants=True).a.out_features == 4
    pruner.close()


@needs_torch_2
def test_a_weight_that_is_computed_is_pruned_as_any_other(client):
    model = Residual()
    weight_norm = nn.utils.parametrizations.weight_norm
    model.a, model.b = weight_norm(model.a), weight_norm(model.b)
    pruner = pruned(model, picture(8), client)
    assert pruner.filter_groups == GROUP
    assert removed_shares(pruner) == {"a": 0.5, "b": 0.5}
    small = shrink(model, picture(8), zero_constants=True)
    assert not small.shrink_report.kept
    assert small.a.out_channels == 4
    pruner.close()


# Sessions.


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(F.relu(x + self.b(x)).mean((2, 3)))


GROUP = (nc.FilterGroup(["a", "b"]),)
AGP = [{"final_sparsity": 0.5, "schedule": "agp", "end_epoch": 3, "op_types": ["Conv2d"]}]


@pytest.fixture
def sent(monkeypatch):
    """The groups of each BindModel."""
    found = []
    bind = nc.Client.bind_model

    def recording(self, *args, **kwargs):
        found.append(kwargs["filter_groups"])
        return bind(self, *args, **kwargs)

    monkeypatch.setattr(nc.Client, "bind_model", recording)
    return found


@needs_torch_2
def test_every_session_is_told_of_the_groups(client, sent):
    model = Residual()
    pruner = pruned(model, picture(8), client, *AGP)
    assert sent == [GROUP]
    pruner.rebind()
    assert sent == [GROUP] * 2
    pruner.update_epoch(1)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    state = pruner.state_dict()
    other = L1FilterPruner(AGP, example_inputs=picture(8), client=client)
    other.load_state_dict(state)
    other(Residual())
    assert sent == [GROUP] * 3
    assert all(torch.equal(mask, masks[name]) for name, mask in other.masks.items())
    for each in (pruner, other):
        each.update_epoch(3)
    kept = [each.masks[name].flatten(1).any(1) for each in (pruner, other) for name in "ab"]
    assert int(kept[0].sum()) == 4
    assert all(torch.equal(each, kept[0]) for each in kept)
    pruner.close()
    other.close()


@needs_torch_2
def test_a_session_that_was_lost_has_its_groups_again(sent):
    model = Residual()
    with ServerProcess() as process:
        pruner = pruned(model, picture(8), nc.Client(process.address, timeout=60), *AGP)
        process.kill()
        with ServerProcess(port=process.port):
            pruner.update_epoch(3)
            model(picture(8))
            assert sent == [GROUP] * 2
            assert removed_shares(pruner) == {"a": 0.5, "b": 0.5}
            kept = [pruner.masks[name].flatten(1).any(1) for name in "ab"]
            assert torch.equal(*kept)
            pruner.close()


@needs_torch_2
def test_a_server_that_is_killed_between_masks_and_shrink_goes_on_alike(client, sent, tmp_path):
    """The one that was killed has the groups of its stored session, without another BindModel."""
    flag = f"--data_dir={tmp_path}"
    inputs = picture(8)
    model, other = Residual(), Residual()
    undisturbed = pruned(other, inputs, client, *AGP)
    with ServerProcess(flag) as process:
        pruner = pruned(model, inputs, nc.Client(process.address, timeout=60), *AGP)
        for each in (pruner, undisturbed):
            each.update_epoch(1)
            each.refresh()
        process.kill()
        before = shrink(model, inputs)
        with ServerProcess(flag, port=process.port):
            for each in (pruner, undisturbed):
                each.update_epoch(3)
            assert all(torch.equal(m, undisturbed.masks[n]) for n, m in pruner.masks.items())
            after = shrink(model, inputs)
            pruner.close()
    undisturbed.close()
    assert sent == [GROUP] * 2, "of the two pruners"
    assert 8 > before.a.out_channels > after.a.out_channels == after.b.out_channels == 4


@needs_torch_2
def test_a_model_that_has_changed_is_traced_again(client, sent):
    model = Residual()
    pruner = pruned(model, picture(8), client)
    model.b = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    pruner.rebind()
    assert sent == [GROUP, (nc.FilterGroup(["a", "b.1"]),)]
    pruner.close()


@needs_torch_2
def test_without_example_inputs_each_layer_loses_its_own_filters(client, sent):
    model = Residual()
    pruner = L1FilterPruner(model, [HALF], client=client)
    pruner.compress()
    assert removed_shares(pruner) == {"a": 0.5, "b": 0.5}
    assert sent == [()]
    assert pruner.filter_groups == ()
    assert pruner.kept_layers == {}
    pruner.close()


@needs_torch_2
@pytest.mark.parametrize("wrapper", ["DataParallel", "compile"])
def test_wrappers_are_no_part_of_the_names(client, wrapper):
    model = Residual()
    wrapped = nn.DataParallel(model) if wrapper == "DataParallel" else torch.compile(model)
    pruner = pruned(wrapped, picture(8), client)
    assert pruner.filter_groups == GROUP
    assert shrink(wrapped, picture(8)).a.out_channels in (4, 5)
    pruner.close()


# Options and algorithms.


@needs_torch_2
@pytest.mark.parametrize("cls", [L1FilterPruner, L2FilterPruner, FPGMPruner, RandomPruner])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_all_scores_and_scopes_take_groups(client, cls, scope):
    rule = {**HALF, "scope": scope}
    if cls is RandomPruner:
        rule["structure"] = "filter"
    model = Residual()
    pruner = pruned(model, picture(8), client, rule, cls=cls)
    small = shrink(model, picture(8))
    assert not small.shrink_report.kept
    assert small.a.out_channels == small.b.out_channels in (4, 5)
    pruner.close()


@needs_torch_2
def test_one_line_takes_example_inputs(client):
    model = prune(Residual(), "l1_filter", sparsity=0.5, client=client, example_inputs=picture(8))
    assert model.compressor.filter_groups == GROUP
    assert type(model.compressor) is L1FilterPruner
    model.compressor.close()


@needs_torch_2
def test_round_to_is_a_number_of_filters_of_a_group(client):
    model = Residual()
    pruner = pruned(model, picture(8), client, {**HALF, "sparsity": 0.3, "round_to": 4})
    assert removed_shares(pruner) == {"a": 0.0, "b": 0.0}
    pruner.close()
    pruner = pruned(Residual(), picture(8), client, {**HALF, "round_to": 4})
    assert removed_shares(pruner) == {"a": 0.5, "b": 0.5}
    pruner.close()


# Bad input.


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"example_inputs": 3}, "example_inputs is of type int; it must be a tensor"),
        ({"dummy_input": "x"}, "example_inputs is of type str"),
        ({"example_inputs": {3: 4}}, r"example_inputs has the keys \[3\]"),
        ({"dependency_aware": True}, "dependency_aware is True, and dummy_input is None"),
        ({"dependency_aware": len}, "dependency_aware is <built-in .*>; it must be a bool"),
        ({"example_inputs": (), "dummy_input": ()}, "example_inputs and dummy_input are both"),
    ],
)
def test_wrong_arguments_are_refused(client, given, told):
    if not IS_TORCH_2 and "dependency_aware" not in given and len(given) < 2:
        pytest.skip("PyTorch 1 is refused first")
    with pytest.raises(nc.InvalidArgumentError, match=told):
        L1FilterPruner([HALF], client=client, **given)


@pytest.mark.skipif(IS_TORCH_2, reason="PyTorch 2 has a graph")
def test_example_inputs_need_pytorch_2(client):
    with pytest.raises(nc.UnimplementedError, match="example_inputs needs PyTorch 2 or newer"):
        L1FilterPruner([HALF], client=client, example_inputs=picture())
    model = Net()
    pruner = L1FilterPruner(model, [HALF], client=client)
    pruner.compress()
    assert removed_shares(pruner) == {"conv1": 0.5, "conv2": 0.5}
    pruner.close()


@needs_torch_2
def test_a_model_that_does_not_run_is_refused_and_stays_as_it_was(client):
    model = Net()
    labels = {"job": "does not run"}
    classes = [type(module) for module in model.modules()]
    pruner = L1FilterPruner([HALF], client=client, example_inputs=picture(), labels=labels)
    with pytest.raises(nc.InvalidArgumentError, match="example_inputs: the model does not run"):
        pruner(model)
    assert not pruner.is_bound
    assert [type(module) for module in model.modules()] == classes
    assert client.sessions(labels) == []


@needs_torch_2
def test_layers_of_a_group_under_different_rules_are_refused(client):
    labels = {"job": "two rules"}
    rules = [HALF, {"sparsity": 0.2, "op_names": ["b"]}]
    pruner = L1FilterPruner(rules, client=client, example_inputs=picture(8), labels=labels)
    with pytest.raises(nc.InvalidArgumentError, match=r"filters go together \(filter_groups\[0\]"):
        pruner(Residual())
    assert client.sessions(labels) == []
    assert pruner.filter_groups == ()


@needs_torch_2
def test_a_group_with_a_layer_that_is_not_compressed_keeps_its_filters(client):
    pruner = pruned(Residual(), picture(8), client, {"sparsity": 0.5, "op_names": ["a"]})
    assert pruner.plan.compressed == ()
    assert any('config_list does not compress "b"' in warning for warning in pruner.plan.warnings)
    pruner.close()


def test_help_shows_all_arguments():
    names = list(inspect.signature(L1FilterPruner).parameters)
    assert names[:5] == ["model", "config_list", "optimizer", "dependency_aware", "dummy_input"]
    assert {"example_inputs", "server", "transfer"} < set(names)
