#!/usr/bin/env bash
# What docs/scripts.md says, as a researcher and an operator do it: the page's scripts and the examples
# are saved by PyTorch; a server runs them for trainers, with gradients and statistics, for one layer or
# all of a rule, tells what they raise in their own words, and survives one that hangs. Then what must keep
# a server from starting.
set -euo pipefail
cd "$(dirname "$0")/../../.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
work=$(mktemp -d)
server_pid=
trap 'stop_server || true; rm -rf "$work"' EXIT

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

scripts=$work/scripts
mkdir "$scripts"
export PYTHONPATH=client/python/src
awk -v file="$work/page" '/^```/ { inside = ($0 == "```py"); count += inside; next }
  inside { print >(file count ".py") }' docs/scripts.md
for page in "$work"/page*.py; do
  (cd "$scripts" && PYTHONPATH=$OLDPWD/client/python/src $python "$page")
done
$python client/python/examples/script_global_pruner.py "$scripts/renewed.pt"
$python client/python/examples/script_pruner.py "$scripts/moving.pt"
$python client/python/examples/script_quantizer.py "$scripts/clipped.pt"
mkdir "$work/all"
cp "$scripts"/*.pt $build/tests/compression/scripts/misbehaving/{raises,hangs}.pt "$work/all"

start_server "$work" --script_dir="$work/all" --algorithm_timeout=20s
$python - <<'EOF'
import numpy as np
import torch

import nni_compression as nc
from nni_compression.torch import Pruner

weight = np.random.default_rng(1).standard_normal((20, 10)).astype("float32")
layers = [nc.Layer(name="fc", op_type="Linear", shape=(20, 10), dtype="float32")]
two = [nc.Layer(name=name, op_type="Linear", shape=(20, 10), dtype="float32") for name in "ab"]
rule = {"op_types": ["default"]}


class MovementPruner(Pruner):
    algorithm = "moving"


class TaylorPruner(Pruner):
    algorithm = "renewed"


def fails(error, text, call):
    try:
        call()
    except error as caught:
        assert text in str(caught), caught
    else:
        raise SystemExit(f"no error that says: {text}")


with nc.Client() as client:
    listed = {a.name: a for a in client.algorithms() if a.source}
    assert {name: a.source for name, a in listed.items()} == {
        name: f"{name}.pt" for name in ("small", "first_order", "renewed", "moving", "clipped", "raises", "hangs")
    }, listed
    (option,) = listed["small"].options
    assert (option.name, option.type, option.default) == ("threshold", "number", 0.1), option

    def bind(algorithm, layers=layers, **options):
        return client.bind_model(algorithm, [{**rule, **options}], layers=layers, framework="pytorch")

    with bind("small", threshold=0.5) as session:
        mask = session.calc_mask({"fc": weight})["fc"].to_numpy()
        assert (mask == (abs(weight) >= 0.5)).all()
    with bind("clipped", quant_bits=4) as session:
        quantized = session.quantize_weight({"fc": weight})["fc"]
        assert abs(quantized.dequantize() - weight).max() <= 0.2 * abs(weight).max()
        assert quantized.codes.min() >= -8 and quantized.codes.max() <= 7
    out_of_range = "config_list[0].sparsity is 2"
    fails(nc.InvalidArgumentError, out_of_range, lambda: bind("moving", sparsity=2))

    # Gradients, by hand: the weights that they move towards 0 go.
    with bind("moving", sparsity=0.5) as session:
        assert session.plan.layers["fc"].step_inputs == ("gradient",)
        session.calc_mask({"fc": weight})
        towards = np.zeros_like(weight)
        towards[:10] = np.sign(weight[:10])
        session.step(1, gradients={"fc": towards})
        assert session.update_epoch(1) == {"fc"}
        mask = session.calc_mask({"fc": weight})["fc"].to_numpy()
        assert not mask[:10].any() and mask[10:].all()
        wrong = lambda: session.step(2, gradients={"fc": towards[0]})  # noqa: E731
        fails(nc.InvalidArgumentError, "shape", wrong)

    # And by the adapter, which finds them in the model.
    model = torch.nn.Sequential(torch.nn.Linear(10, 20))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(weight))
    pruner = MovementPruner([{**rule, "sparsity": 0.5}], client=client)
    pruner(model)
    pruner.refresh()
    dict(model.named_parameters())["0.weight"].grad = torch.from_numpy(towards)
    pruner.step()
    pruner.update_epoch(1)
    pruner.refresh()
    assert (pruner.masks["0"].numpy() == mask).all()
    pruner.close()

    # Statistics, by hand, of layers that are decided about together.
    sums = {"a": weight, "b": weight[::-1] * 3}
    for algorithm in ("first_order", "renewed"):
        with bind(algorithm, two, sparsity=0.75) as session:
            assert session.plan.layers["b"].statistics == {"weight_gradient": (20, 10)}
            weights = {"a": weight, "b": weight}
            first = nc.StatisticPart(sums["a"], count=3)
            session.add_statistics({"a": {"weight_gradient": first}})
            missing = 'layer "b" has no weight_gradient yet, which the script needs'
            fails(nc.FailedPreconditionError, missing, lambda: session.calc_mask(weights))
            session.add_statistics({"b": {"weight_gradient": sums["b"] / 2}})
            session.add_statistics({"b": {"weight_gradient": sums["b"] / 2}}, source=1)
            wanted = "the 2 layers of config_list[0] are decided about together"
            fails(nc.InvalidArgumentError, wanted, lambda: session.calc_mask({"a": weight}))
            if algorithm == "renewed":  # half of it in epoch 0
                session.calc_mask(weights)
                assert session.update_epoch(1) == {"a", "b"}
            masks = session.calc_mask(weights)
            scores = np.concatenate([abs(sums[name]).ravel() for name in "ab"])
            kept = np.concatenate([masks[name].to_numpy().ravel() for name in "ab"])
            assert kept.sum() == 100 and scores[kept].min() > scores[~kept].max()

    # And by the adapter, which collects them.
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = TaylorPruner([{**rule, "sparsity": 0.5, "end_epoch": 0}], optimizer=sgd, client=client)
    pruner(model)
    model(torch.ones(4, 10)).square().mean().backward()
    sgd.step()
    pruner.step()
    pruner.refresh()
    assert sum(int(mask.sum()) for mask in pruner.masks.values()) == 120
    pruner.close()

    raising = bind("raises")
    theirs = "calc_mask of the script failed: "
    fails(nc.InternalError, theirs, lambda: raising.calc_mask({"fc": weight}))
    own = "epoch 0 is too early for Linear"
    fails(nc.InternalError, own, lambda: raising.calc_mask({"fc": weight}))
    raising.update_epoch(1)
    raising.calc_mask({"fc": weight})

    hanging = bind("hangs")
    fails(nc.DeadlineExceededError, "no answer within 20s", lambda: hanging.calc_mask({"fc": weight}))
    refused = "is disabled until the server is restarted"
    fails(nc.FailedPreconditionError, refused, lambda: bind("hangs"))
    assert {a.name for a in client.algorithms() if a.refusal} == {"hangs"}
    with bind("small") as session:
        session.calc_mask({"fc": weight})
EOF
grep -q 'event=algorithm_refused algorithm=hangs' "$work/server.log" ||
  fail "the log does not say what is refused"
stop_server || fail "the server did not end well: $(tail -n 5 "$work/server.log")"

# refused TEXT: a server with these scripts does not start, and says TEXT.
refused() {
  if timeout 60 "$COMPRESSION_SERVER_BINARY" --listen=127.0.0.1:0 --script_dir="$scripts" 2>"$work/refusal"; then
    fail "a server started that should have said: $1"
  fi
  grep -qF "$1" "$work/refusal" || fail "not '$1' but: $(cat "$work/refusal")"
}
mv "$scripts/moving.pt" "$scripts/level.pt"
refused 'level.pt: the algorithm "level" exists already, built in'
head -c 1000 "$scripts/level.pt" >"$scripts/cut.pt"
refused 'cut.pt": LibTorch cannot load it'
