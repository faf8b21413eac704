#!/usr/bin/env bash
# What docs/adding-an-algorithm.md says is enough: its file, its line and its test are put into a copy
# of the tree, which is built and passes the new test and the contract suite; then compressionctl and
# PyTorch use the new algorithm through the copy's server.
set -euo pipefail
cd "$(dirname "$0")/../../.."
copy=$PWD/build/adding-an-algorithm
page=docs/adding-an-algorithm.md

# block FIRST_WORDS: the block of C++ that begins with these words.
block() {
  awk -v first="$1" '
    /^```/ { if (inside) exit; opening = ($0 == "```cpp"); next }
    opening { opening = 0; inside = (index($0, first) == 1) }
    inside { print }' $page
}

rm -rf "${copy:?}"/{proto,server,client,compression,tests}
mkdir -p "$copy"
cp -rp --parents CMakeLists.txt deploy proto server client compression tests "$copy"
# Of the library's tests, the contract suite is the one that has to know the new algorithm.
find "$copy/tests/compression" -name '*_test.cc' ! -name contract_test.cc -delete

block '// Random pruner' >"$copy/compression/algorithms/random.cc"
block '#include "tests/' >"$copy/tests/compression/algorithms/random_test.cc"
line=$(block '  ALGORITHM(')
[[ -n $line && -s $copy/compression/algorithms/random.cc ]]
sed -i "s/^  ALGORITHM(Qat)\$/  ALGORITHM(Qat) \\\\\n  ALGORITHM(Random)/" "$copy/compression/algorithms/registry.cc"
grep -q 'ALGORITHM(Random)' "$copy/compression/algorithms/registry.cc"

export CCACHE_BASEDIR=$copy CCACHE_NOHASHDIR=1
cmake -S "$copy" -B "$copy/build/release" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNNI_COMPRESSION_WERROR=ON
cmake --build "$copy/build/release" --target compression_test compression_server compressionctl
"$copy/build/release/tests/compression/compression_test" --gtest_filter='*Random*:*/random'

COMPRESSION_SERVER_BINARY=$copy/build/release/server/compression_server \
  COMPRESSIONCTL_BINARY=$copy/build/release/client/cli/compressionctl \
  /usr/bin/python3 tests/integration/documents/new_algorithm_in_use.py
