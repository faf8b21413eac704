#!/usr/bin/env bash
# Fuzzes what reads untrusted bytes, with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/fuzz.sh [SECONDS] [TARGET...]   60 seconds for each of config_list, frames, safetensors, state
#
# Installs clang, builds into build/fuzz, and begins with the seeds in tests/fuzz/corpus; what is found
# on the way is kept in build/fuzz-corpus. An input that does harm is left in build/fuzz-found, and the
# status is 1: put it among the seeds when it is mended.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit
fi
seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
targets=("$@")
[[ $# -gt 0 ]] || targets=(config_list frames safetensors state)

deploy/install-dependencies.sh --fuzz
quietly configure-fuzz cmake --preset fuzz
say "compiling; log in $logs/build-fuzz.log"
quietly build-fuzz cmake --build build/fuzz --target "${targets[@]/%/_fuzzer}"
failed=()
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz-corpus/$target" "build/fuzz-found/$target"
  if quietly "fuzz-$target" "build/fuzz/tests/fuzz/${target}_fuzzer" -max_total_time="$seconds" -max_len=4096 \
    -artifact_prefix="build/fuzz-found/$target/" "build/fuzz-corpus/$target" "tests/fuzz/corpus/$target"; then
    say "$target: $(grep -E '^Done [0-9]+ runs' "$logs/fuzz-$target.log")"
  else
    failed+=("$target")
  fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
  say "found by: ${failed[*]}; the inputs are in build/fuzz-found"
  exit 1
fi
