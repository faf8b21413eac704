"""The tables of docs/pruners.md about what pruners consist of, compared with a server."""

import itertools
import json
import re

import numpy as np
import pytest

import documents
import nni_compression as nc

TEXT = (documents.ROOT / "docs/pruners.md").read_text()
DIMENSIONS = ("structure", "score", "scope", "normalize", "schedule")
# With what a dimension exists at all, by the structure that its presets have first.
ONLY_WITH = {
    "element": {"normalize": {"scope": ["global"], "score": ["magnitude"]}},
    "filter": {"normalize": {"scope": ["global"]}},
}
# Filters of one weight have their magnitudes as scores.
MAGNITUDES = ("l1", "l2", "bn_scale")
# Of the options that some choice requires, and so that all schedules end at the same sparsity.
FINAL = 0.6
VALUES = {"sparsity": FINAL, "final_sparsity": FINAL, "end_epoch": 4, "rounds": 3}
EPOCHS = range(6)
LAYERS = [nc.Layer(name=name, op_type="Linear", shape=(100,)) for name in ("a", "b")]


def quoted(cell):
    return re.findall(r"`(\w+)`", cell)


# Preset -> dimension -> choices, the default first. One alone is fixed.
PRESETS = {
    quoted(row[0])[0]: {
        dimension: quoted(cell) for dimension, cell in zip(DIMENSIONS, row[1:], strict=True)
    }
    for row in documents.table(TEXT, "preset")
}


def condition(cell):
    """ "`schedule` `agp`, `linear`; `schedule_unit` `epoch`" as a mapping to lists."""
    return {name: choices for name, *choices in map(quoted, cell.split(";"))}


def only_with(conditions, choices):
    """What ListAlgorithms says of an option; None when the preset does not have it."""
    parts = []
    for name, wanted in sorted(conditions.items()):
        fitting = [choice for choice in choices.get(name, wanted) if choice in wanted]
        if not fitting:
            return None
        if len(choices.get(name, "open")) > 1:
            parts.append(f"{name} {', '.join(fitting)}")
    return f"only with {' and '.join(parts)}" if parts else ""


def expected_options(preset):
    """(name, type, default, range, only_with) of all options, by the tables."""
    choices = PRESETS[preset]
    for name, values in choices.items():
        exists = only_with(ONLY_WITH[choices["structure"][0]].get(name, {}), choices)
        if len(values) > 1 and exists is not None:
            yield name, "string", json.dumps(values[0]), f"one of {', '.join(values)}", exists
    for row in documents.table(TEXT, "with"):
        exists = only_with(condition(row[0]), choices)
        if exists is not None:
            yield (row[1].strip("`"), *row[2:5], exists)


@pytest.fixture(scope="module")
def client(server_address):
    with nc.Client(server_address) as client:
        yield client


def masks(client, algorithm, rule):
    """Of two layers, which each normalizer divides otherwise, at each epoch."""
    generator = np.random.default_rng(1)
    weights = {"a": generator.standard_normal(100), "b": generator.uniform(1, 2, 100)}
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    answers = []
    with client.bind_model(algorithm, [rule], LAYERS) as session:
        kinds = session.plan.layers["a"].statistics
        if kinds:
            sums = {name: dict.fromkeys(kinds, abs(w)) for name, w in weights.items()}
            session.add_statistics(sums)
        for epoch in EPOCHS:
            if session.plan.needs_update_epoch:
                session.update_epoch(epoch)
            masks = session.calc_mask(weights)
            answers.append(np.concatenate([masks[name].to_numpy() for name in weights]))
    return np.array(answers)


def rule_for(algorithm, chosen):
    """A rule of the server's algorithm with these choices, where it leaves them open."""
    choices = PRESETS[algorithm]
    rule = {name: choice for name, choice in chosen.items() if len(choices[name]) > 1}
    is_element = chosen["structure"] == "element"
    if chosen["scope"] != "global" or (is_element and chosen["score"] != "magnitude"):
        rule.pop("normalize", None)
    for row in documents.table(TEXT, "with"):
        name = row[1].strip("`")
        wanted = condition(row[0])
        if name in VALUES and chosen["schedule"] in wanted["schedule"]:
            rule[name] = VALUES[name]
    return rule


def test_every_pruner_of_the_server_that_has_a_schedule_is_in_the_table(client):
    schedules = {"sparsity", "final_sparsity"}
    pruners = {
        algorithm.name
        for algorithm in client.algorithms()
        if algorithm.kind == "pruner" and schedules & {o.name for o in algorithm.options}
    }
    assert set(PRESETS) == pruners


@pytest.mark.parametrize("preset", PRESETS)
def test_the_options_of_a_preset_are_those_of_the_tables(client, preset):
    algorithm = next(a for a in client.algorithms() if a.name == preset)
    true = [
        (o.name, o.type, "required" if o.required else json.dumps(o.default), o.range, o.only_with)
        for o in algorithm.options
    ]
    assert sorted(true) == sorted(expected_options(preset))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_allows_all_its_combinations_and_no_other(client, preset):
    choices = PRESETS[preset]
    for combination in itertools.product(*choices.values()):
        chosen = dict(zip(DIMENSIONS, combination, strict=True))
        client.bind_model(preset, [rule_for(preset, chosen)], LAYERS).close()
    defaults = rule_for(preset, {name: values[0] for name, values in choices.items()})
    for dimension in DIMENSIONS:
        for choice in {c for other in PRESETS.values() for c in other[dimension]}:
            if len(choices[dimension]) > 1 and choice in choices[dimension]:
                continue
            with pytest.raises(nc.InvalidArgumentError, match=dimension):
                client.bind_model(preset, [{**defaults, dimension: choice}], LAYERS)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_fixes_is_what_the_table_says(client, preset):
    """Against presets that leave it open: `agp` the last masks, `level` how many are removed."""
    chosen = {name: values[0] for name, values in PRESETS[preset].items()}
    true = masks(client, preset, rule_for(preset, chosen))

    assert true[-1].sum() == 200 - int(200 * FINAL)
    agp = {**chosen, "structure": "element", "schedule": "agp"}
    if chosen["score"] in MAGNITUDES:
        agp["score"] = "magnitude"
    if agp["score"] in PRESETS["agp"]["score"]:
        np.testing.assert_array_equal(true[-1], masks(client, "agp", rule_for("agp", agp))[-1])

    removed = (~true).sum(axis=1)
    level = {**agp, "score": "magnitude", "scope": "layer", "normalize": "none"}
    level["schedule"] = chosen["schedule"]
    by_layers = (~masks(client, "level", rule_for("level", level))).sum(axis=1)
    # Of 200 weights together, or of each of two layers: rounded once or twice.
    assert np.abs(removed - by_layers).max() <= 1


@pytest.mark.parametrize("kind", list(DIMENSIONS))
def test_the_table_of_formulas_has_every_choice(kind):
    said = [quoted(row[0])[0] for row in documents.table(TEXT, kind)]
    assert set(said) == {choice for choices in PRESETS.values() for choice in choices[kind]}
