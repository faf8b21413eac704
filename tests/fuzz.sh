#!/usr/bin/env bash
# Fuzzes whatever reads untrusted bytes, under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/fuzz.sh [SECONDS] [TARGET...]   60 seconds for each of config_list, frames, safetensors, state, rpc
#   tests/fuzz.sh --seeds [TARGET...]     only the seeds in tests/fuzz/corpus; rpc has none
#
# rpc holds conversations with a whole server, made from the descriptor of its service. The others are
# libFuzzer's: clang is installed and builds them into build/fuzz; they start from the seeds, and keep
# what they find on the way in build/fuzz-corpus. An input that does harm is left in build/fuzz-found,
# and the status is 1: put it among the seeds once it is fixed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
all=(config_list frames safetensors state rpc)
seconds=60
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit
elif [[ ${1:-} == --seeds ]]; then
  seconds=0 all=(config_list frames safetensors state)
  shift
elif [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  seconds=$1
  shift
fi
targets=("$@")
[[ $# -gt 0 ]] || targets=("${all[@]}")

fuzzers=()
for target in "${targets[@]}"; do
  [[ $target == rpc ]] || fuzzers+=("${target}_fuzzer")
done
if [[ ${#fuzzers[@]} -gt 0 ]]; then
  deploy/install-dependencies.sh --fuzz
  quietly configure-fuzz cmake --preset fuzz
  say "compiling; log in $logs/build-fuzz.log"
  quietly build-fuzz cmake --build build/fuzz --target "${fuzzers[@]}"
fi

# library_fuzzer TARGET
library_fuzzer() {
  local corpora=("tests/fuzz/corpus/$1") limit=(-runs=0)
  if [[ $seconds -gt 0 ]]; then
    mkdir -p "build/fuzz-corpus/$1"
    corpora=("build/fuzz-corpus/$1" "${corpora[@]}") limit=(-max_total_time="$seconds")
  fi
  mkdir -p "build/fuzz-found/$1"
  quietly "fuzz-$1" "build/fuzz/tests/fuzz/${1}_fuzzer" "${limit[@]}" -max_len=4096 \
    -artifact_prefix="build/fuzz-found/$1/" "${corpora[@]}" &&
    say "$1: $(grep -E '^Done [0-9]+ runs' "$logs/fuzz-$1.log")"
}

# Its log ends with the seed of the conversation that does harm.
rpc_fuzzer() {
  quietly configure-asan cmake --preset asan
  say "compiling; log in $logs/build-fuzz-rpc.log"
  quietly build-fuzz-rpc cmake --build build/asan --target rpc_fuzz_test
  NNI_COMPRESSION_FUZZ_SECONDS=$seconds LSAN_OPTIONS=suppressions=$PWD/tests/testing/lsan.supp \
    UBSAN_OPTIONS=print_stacktrace=1 quietly fuzz-rpc build/asan/tests/fuzz/rpc_fuzz_test &&
    say "rpc: $(grep -E '^[A-Za-z]+: [0-9]+ conversations' "$logs/fuzz-rpc.log" | paste -sd ' ')"
}

failed=()
for target in "${targets[@]}"; do
  if [[ $target == rpc ]]; then
    rpc_fuzzer || failed+=(rpc)
  else
    library_fuzzer "$target" || failed+=("$target")
  fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
  say "found by: ${failed[*]}; the inputs are in build/fuzz-found, the seeds of conversations in $logs/fuzz-rpc.log"
  exit 1
fi
