#!/usr/bin/env bash
# What docs/adding-an-algorithm.md says is enough: its files, lines and tests are put into a copy of
# the tree, which is built and passes the new tests and the contract suite; then compressionctl and
# PyTorch use the new algorithm through the copy's server.
set -euo pipefail
cd "$(dirname "$0")/../../.."
copy=$PWD/build/adding-an-algorithm
page=docs/adding-an-algorithm.md

# block FILE: the block of C++ below the line that begins with the file's name.
block() {
  awk -v name="\`$1\`" '
    index($0, name) == 1 { below = 1 }
    inside && /^```/ { exit }
    inside { print }
    below && $0 == "```cpp" { inside = 1 }' $page
}

# add_line FILE AFTER: puts the block of the file behind the line that begins with AFTER.
add_line() {
  local line
  line=$(block "$1")
  [[ -n $line ]]
  LINE=$line awk -v after="$2" '
    { print }
    index($0, after) == 1 { print ENVIRON["LINE"] }' "$1" >"$copy/$1"
  grep -qF "$line" "$copy/$1"
}

rm -rf "${copy:?}"/{proto,server,client,compression,tests}
mkdir -p "$copy"
cp -rp --parents CMakeLists.txt deploy proto server client compression tests "$copy"
# Of the library's tests, the contract suite is the one that has to know the new algorithms.
find "$copy/tests/compression" -name '*_test.cc' ! -name contract_test.cc -delete

for file in compression/{scores/position,schedules/cosine,algorithms/cutoff}.cc \
  tests/compression/{scores/position,schedules/cosine,algorithms/cutoff}_test.cc; do
  block "$file" >"$copy/$file"
  [[ -s $copy/$file ]]
done
add_line compression/scores/scores.cc '  SCORE(Magnitude)'
add_line compression/schedules/schedules.cc '  SCHEDULE(Agp)'
add_line compression/algorithms/registry.cc '  ALGORITHM(CustomQuantizer)'

export CCACHE_BASEDIR=$copy CCACHE_NOHASHDIR=1
cmake -S "$copy" -B "$copy/build/release" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNNI_COMPRESSION_WERROR=ON
cmake --build "$copy/build/release" --target compression_test compression_server compressionctl
"$copy/build/release/tests/compression/compression_test" \
  --gtest_filter='*Position*:*Cosine*:*Cutoff*:*position*:*cosine*:*/cutoff'

COMPRESSION_SERVER_BINARY=$copy/build/release/server/compression_server \
  COMPRESSIONCTL_BINARY=$copy/build/release/client/cli/compressionctl \
  /usr/bin/python3 tests/integration/documents/new_algorithm_in_use.py
