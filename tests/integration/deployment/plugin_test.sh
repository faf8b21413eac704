#!/usr/bin/env bash
# What docs/plugins.md says, as an operator does it: its commands build the example against an
# installation; an installed server loads it, prunes with it, and survives a plugin that throws and
# hangs. Then what must keep a server from starting.
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

export PREFIX=$work/prefix
awk '/^```/ { inside = ($0 == "```sh"); next } inside' docs/plugins.md >"$work/commands.sh"
grep -q cmake "$work/commands.sh" || fail "docs/plugins.md has no commands"
bash -eu "$work/commands.sh" >"$work/commands.log" || fail "$(cat "$work/commands.log")"
if grep -rlF "$PWD" "$PREFIX/lib/cmake" "$PREFIX/include"; then
  fail "installed files name the source folder"
fi
plugins=$PREFIX/plugins

mkdir "$work/all"
cp "$plugins/threshold.so" $build/tests/compression/plugins/misbehaving/misbehaving.so "$work/all"
COMPRESSION_SERVER_BINARY=$PREFIX/bin/compression_server
start_server "$work" --plugin_dir="$work/all" --algorithm_timeout=1s
PYTHONPATH=client/python/src $python - <<'EOF'
import numpy as np

import nni_compression as nc

weight = np.random.default_rng(1).standard_normal((20, 10)).astype("float32")
layers = [nc.Layer(name="fc", op_type="Linear", shape=(20, 10), dtype="float32")]


def fails(error, text, call):
    try:
        call()
    except error as caught:
        assert text in str(caught), caught
    else:
        raise SystemExit(f"no error that says: {text}")


with nc.Client() as client:
    listed = {algorithm.name: algorithm for algorithm in client.algorithms()}
    assert listed["level"].source == "" and listed["threshold"].source == "threshold.so"
    assert [option.name for option in listed["threshold"].options] == ["threshold"]

    def bind(algorithm, **options):
        rule = {"op_types": ["default"], **options}
        return client.bind_model(algorithm, [rule], layers=layers, framework="pytorch")

    threshold = bind("threshold", threshold=0.5)
    mask = threshold.calc_mask({"fc": weight})["fc"].to_numpy()
    assert (mask == (abs(weight) >= 0.5)).all()
    meant = "did you mean `threshold`?"
    fails(nc.InvalidArgumentError, meant, lambda: bind("threshold", treshold=0.5))

    fails(nc.InternalError, "I give up", lambda: bind("throws").calc_mask({"fc": weight}))
    hanging, waiting = bind("hangs"), bind("hangs")
    fails(nc.DeadlineExceededError, "no answer within 1s", lambda: hanging.calc_mask({"fc": weight}))
    refused = "is disabled until the server is restarted"
    fails(nc.FailedPreconditionError, refused, lambda: waiting.calc_mask({"fc": weight}))
    fails(nc.FailedPreconditionError, refused, lambda: bind("hangs"))
    refusals = {algorithm.name for algorithm in client.algorithms() if algorithm.refusal}
    assert refusals == {"hangs"}, refusals

    assert (threshold.calc_mask({"fc": weight})["fc"].to_numpy() == mask).all()
    assert bind("level", sparsity=0.5).calc_mask({"fc": weight})["fc"].sparsity == 0.5
EOF
"$COMPRESSIONCTL_BINARY" --server="$NNI_COMPRESSION_SERVER" algorithms >"$work/algorithms"
grep -q 'of threshold.so' "$work/algorithms" || fail "compressionctl does not name the plugin"
grep -q 'refused: .*hangs' "$work/algorithms" || fail "compressionctl does not say what is refused"
grep -q 'event=algorithm_loaded algorithm=threshold source=threshold.so' "$work/server.log" ||
  fail "the log has no plugin"
grep -q 'event=algorithm_refused algorithm=hangs' "$work/server.log" ||
  fail "the log does not say what is refused"
stop_server || fail "the server did not end well: $(tail -n 5 "$work/server.log")"

# refused TEXT: a server with these plugins does not start, and says TEXT.
refused() {
  if timeout 60 "$COMPRESSION_SERVER_BINARY" --listen=127.0.0.1:0 --plugin_dir="${2:-$plugins}" \
    2>"$work/refusal"; then
    fail "a server started that should have said: $1"
  fi
  grep -qF "$1" "$work/refusal" || fail "not '$1' but: $(cat "$work/refusal")"
}
refused 'cannot read the folder' "$work/none"
cp "$plugins/threshold.so" "$plugins/twin.so"
refused 'twin.so: the algorithm "threshold" exists already, in threshold.so'
printf 'no ELF' >"$plugins/twin.so"
refused 'twin.so" cannot be loaded'

# One of other headers than the server's.
header=$(find "$PREFIX/include" -name headers_version.h)
sed -i 's/headers [0-9a-f]*/headers 000000000000/' "$header"
cmake --build "$PREFIX/my-plugin/build" --clean-first >"$work/rebuild.log"
cp "$PREFIX/my-plugin/build/threshold.so" "$plugins/twin.so"
rm "$plugins/threshold.so"
refused "build it with this server's headers"
