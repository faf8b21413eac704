#!/usr/bin/env bash
# Installs the build (build/release, or the folder given) into a fresh folder, builds the example
# against it as a program outside the tree, and runs that against the installed server.
set -euo pipefail
cd "$(dirname "$0")/../../.."
build=${1:-build/release}
work=$(mktemp -d)
server_pid=
cleanup() {
  if [[ -n $server_pid ]]; then
    kill "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
for file in bin/compression_server bin/compressionctl include/nni_compression/client.h \
  include/nni/compression/v1/compression.pb.h lib/cmake/NniCompression/NniCompressionConfig.cmake; do
  [[ -e $work/prefix/$file ]] || fail "$file is not installed"
done
if grep -rlF "$PWD" "$work/prefix/lib/cmake" "$work/prefix/include"; then
  fail "installed files name the source folder"
fi

# Not below the checkout: nothing of it can be found by accident.
cp -r client/cpp/examples "$work/example"
cmake -S "$work/example" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_BUILD_TYPE=Release
cmake --build "$work/build"

"$work/prefix/bin/compression_server" --listen=127.0.0.1:0 --port_file="$work/port" 2>"$work/server.log" &
server_pid=$!
for _ in $(seq 100); do
  [[ -s $work/port ]] && break
  sleep 0.1
done
[[ -s $work/port ]] || fail "the server did not start: $(cat "$work/server.log")"
address=127.0.0.1:$(cat "$work/port")

output=$("$work/build/prune_example" "$address")
printf '%s\n' "$output"
grep -q 'fc1: 188160 of 235200 removed' <<<"$output" || fail "fc1 was not pruned to 80 %"
grep -q 'fc2: 2400 of 3000 removed' <<<"$output" || fail "fc2 was not pruned to 80 %"
"$work/prefix/bin/compressionctl" --server="$address" health
if "$work/build/prune_example" 127.0.0.1:1 2>"$work/error"; then
  fail "the example succeeds without a server"
fi
grep -q 'no compression server answers at 127.0.0.1:1' "$work/error" || fail "$(cat "$work/error")"
