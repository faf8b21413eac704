#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests. The last line has the totals.
#
#   tests/run.sh                 cpp, python, torch, tensorflow, nni, integration, scripts
#   tests/run.sh PART...         these; asan, tsan, fuzz, python-newest, tidy, debian13, soak, deployment
#   tests/run.sh NAME...         the tests whose name contains NAME, in C++ and Python
#   tests/run.sh --sanitizers    the C++ tests under ASan+UBSan, and under TSan what is not gRPC
#   tests/run.sh --long          what takes hours: all parts, with many more random cases and the tests that
#                                do not gate every change. With PARTs or NAMEs: these, with all of it.
#
# Tests find $NNI_COMPRESSION_LONG set to 1 under --long, and may take 24 times as long.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
export PYTHONPATH=$PWD/client/python/src
# Tests run side by side, and OpenBLAS's threads keep a processor busy while they wait.
export OPENBLAS_NUM_THREADS=1
results=build/test-results

# The test programs that ThreadSanitizer can follow: it does not understand Debian's gRPC and Abseil
# mutexes, which are not instrumented.
tsan_programs=(wire_unit_test client_units_test cli_units_test compression_test server_unit_test)

passed=0 failed=0 skipped=0

# How much longer than in the gate a test, and a program of tests, may take.
patience=1

# record NAME STARTED JUNIT...: adds up result files. A missing or empty one is a failure: what was to
# write it died.
record() {
  local name=$1 started=$2 p f s
  shift 2
  read -r p f s < <($python tests/testing/totals.py "$@")
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  printf '%-16s %5d passed %3d failed %3d skipped %5d s\n' "$name" "$p" "$f" "$s" $((SECONDS - started))
}

# begin NICENESS NAME COMMAND...: runs it beside what follows. Tests wait for servers and processes some
# of the time; what later parts need is made meanwhile.
declare -A begun
begin() {
  local niceness=$1 name=$2
  shift 2
  # A process group of its own, so that all of it can be ended.
  set -m
  (
    trap - EXIT
    renice -n "$niceness" "$BASHPID" >/dev/null 2>&1 || true # it may be lower already
    "$@"
  ) </dev/null &
  begun[$name]=$!
  set +m
}

# finish NAME COMMAND...: waits for what was begun under this name, or runs the command now.
finish() {
  local name=$1 status=0
  shift
  if [[ -z ${begun[$name]:-} ]]; then "$@"; return; fi
  wait "${begun[$name]}" || status=$?
  unset "begun[$name]"
  return "$status"
}

# cpp_part NAME FOLDER FILTER [PROGRAM...]: the programs, or all of them, one more than there are processors at a time,
# since some wait for deadlines most of the time.
cpp_part() {
  local name=$1 folder=$2 filter=$3 started=$SECONDS program programs=() files=()
  shift 3
  rm -f "$results/$name"-*.xml
  while read -r program; do
    if [[ $# -gt 0 && " $* " != *" $(basename "$program") "* ]]; then continue; fi
    programs+=("$program")
    files+=("$results/$name-$(basename "$program").xml")
  done <"$folder/tests/programs.txt"
  # In a shell of its own, which has no other children to wait for.
  (
    running=0
    for program in "${programs[@]}"; do
      if [[ $running -gt $(nproc) ]]; then wait -n || true; fi
      test=$(basename "$program")
      TAIL=80 quietly "$name-$test" timeout --kill-after=10 $((900 * patience)) "$program" --gtest_brief=1 \
        --gtest_filter="$filter" --gtest_output="xml:$PWD/$results/$name-$test.xml" &
      running=$((running + 1))
    done
    wait || true
  )
  record "$name" "$started" "${files[@]}"
}

# run_pytest NAME INTERPRETER ARGUMENT...
run_pytest() {
  local name=$1 interpreter=$2
  shift 2
  rm -f "$results/$name.xml"
  # The tests wait for servers and processes half of the time. One that hangs fails, and says where.
  TAIL=80 quietly "$name" timeout --kill-after=10 $((1500 * patience)) \
    "$interpreter" -m pytest -q -ra -p no:cacheprovider --timeout=$((300 * patience)) -n $(($(nproc) + 1)) --junitxml="$results/$name.xml" "$@" || true
}

# pytest_part NAME INTERPRETER ARGUMENT...
pytest_part() {
  local started=$SECONDS
  run_pytest "$@"
  record "$1" "$started" "$results/$1.xml"
}

# choose [IN_THE_GATE...] -- [WITH_LONG...]: sets `arguments` to one of the two lists.
choose() {
  local separator=1
  while [[ ${!separator} != -- ]]; do separator=$((separator + 1)); done
  if [[ -n ${NNI_COMPRESSION_LONG:-} ]]; then
    arguments=("${@:separator+1}")
  else
    arguments=("${@:1:separator-1}")
  fi
}

build_all() {
  local started=$SECONDS
  build_release all
  if [[ $((SECONDS - started)) -gt 5 ]]; then say "built in $((SECONDS - started)) s"; fi
}

cpp() { build_all; cpp_part cpp $build "${1:-*}"; }
python() { build_all; pytest_part python $python tests/client/python tests/client/torch "$@"; }
integration() { build_all; pytest_part integration $python tests/integration --ignore=tests/integration/nni "$@"; }

# The client must work with the newest gRPC and Protocol Buffers too, and other packages have to open
# what exports write. The environment is kept, and made anew once a month.
newest_venv() {
  make_venv build/venv-newest "$(date +%Y-%m) onnx" quietly pip-newest \
    pip install --upgrade grpcio protobuf onnx onnxruntime safetensors 'numpy<2'
}

# The part torch has the newest gRPC, too, and runs what knows of PyTorch; here is the rest, and what
# Debian's PyTorch writes for packages that Debian does not have.
python-newest() {
  build_all
  finish python-newest newest_venv
  say "python-newest: $(build/venv-newest/bin/python -c \
    'import google.protobuf, grpc, onnx, onnxruntime, safetensors; print("grpcio", grpc.__version__,
      "protobuf", google.protobuf.__version__, "safetensors", safetensors.__version__,
      "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)')"
  pytest_part python-newest build/venv-newest/bin/python tests/client/python \
    tests/client/torch/test_{onnx,onnx_targets,safetensors}.py tests/integration/{access,compatibility} \
    tests/integration/durability/test_durable_sessions.py "$@"
}

# The newest PyTorch, and what its users bring along: the libraries that load exports, and those that
# hold weights in ways of their own. Debian's PyTorch is 1.13. SciPy is named because Debian's is
# built for an older numpy.
torch_venv() {
  local packages=(torch numpy scipy scikit-learn grpcio protobuf onnx onnxscript onnxruntime
    safetensors transformers compressed-tensors peft accelerate lightning pytorch-lightning timm
    optuna tensorboard mlflow-skinny torch-pruning matplotlib)
  make_venv build/venv-torch "$(date +%Y-%m) ${packages[*]}" quietly pip-torch \
    pip install --upgrade "${packages[@]}"
}

# And the documents, whose examples use it. Lost servers and processes are the same with any PyTorch.
torch() {
  build_all
  finish torch torch_venv
  say "torch: $(build/venv-torch/bin/python -c \
    'import importlib.metadata as m; print(*(f"{n} {m.version(n)}" for n in ("torch", "transformers",
      "compressed-tensors", "peft", "lightning", "timm", "optuna", "onnx", "onnxscript", "onnxruntime",
      "torch-pruning")))')"
  local arguments
  choose --ignore=tests/client/torch/test_torch_{trouble,processes}.py -- \
    tests/integration/durability/test_any_order_of_events.py
  pytest_part torch build/venv-torch/bin/python tests/client/torch \
    tests/integration/documents/test_documents.py "${arguments[@]}" "$@"
}

# The newest TensorFlow, which has Keras 3, and the last with Keras 2, whose ml_dtypes is too old for
# later versions of onnx.
tensorflow_venvs() {
  tensorflow_venv build/venv-tensorflow "" &&
    tensorflow_venv build/venv-tensorflow-2.15 '==2.15.*' 'onnx<1.19'
}

tensorflow() {
  build_all
  finish tensorflow tensorflow_venvs
  local arguments
  pytest_part tensorflow build/venv-tensorflow/bin/python tests/client/tensorflow "$@"
  choose --ignore=tests/client/tensorflow/test_document.py -- # its examples train
  pytest_part tensorflow-2.15 build/venv-tensorflow-2.15/bin/python tests/client/tensorflow \
    "${arguments[@]}" "$@"
}

# Real experiments, which wait for NNI most of the time.
nni_tests() { nni_venv && run_pytest nni build/venv-nni/bin/python -n 0 tests/integration/nni "$@"; }

nni() {
  local started=$SECONDS
  build_all
  finish nni nni_tests "$@" || true
  record nni "$started" "$results/nni.xml"
}

# Each script is a test: status 0 passes, 77 is skipped, anything else fails.
scripts() {
  build_all
  local script name started=$SECONDS
  rm -f "$results"/scripts-*.xml
  for script in tests/integration/*/*_test.sh; do
    name=$(basename "$script" .sh)
    local status=0
    quietly "$name" timeout --kill-after=10 900 bash "$script" || status=$?
    $python tests/testing/totals.py --write "$results/scripts-$name.xml" "$status"
  done
  record scripts "$started" "$results"/scripts-*.xml
}

# script_part NAME COMMAND...: one that takes up to a day is one test.
script_part() {
  local name=$1 started=$SECONDS status=0
  shift
  TAIL=80 quietly "$name" timeout --kill-after=60 86400 "$@" || status=$?
  $python tests/testing/totals.py --write "$results/$name.xml" "$status"
  record "$name" "$started" "$results/$name.xml"
}

# The seeds, which the test programs have too; half an hour for each fuzzer with --long.
fuzz() {
  local arguments
  choose --seeds -- 1800
  script_part fuzz tests/fuzz.sh "${arguments[@]}"
}
# Each source by itself, which has to include what it uses; .ci/run checks those of a library together.
tidy() {
  build_all
  finish tidy lint_venv
  script_part tidy $python .ci/tidy.py --each build/venv-lint/bin/clang-tidy $build
}
debian13() { script_part debian13 tests/debian13.sh; }
soak() { script_part soak tests/soak.sh; }
deployment() { script_part deployment tests/deployment.sh; }

# build_sanitized PRESET TARGET...
build_sanitized() {
  local name=$1 started=$SECONDS
  shift
  quietly "configure-$name" cmake --preset "$name" &&
    quietly "build-$name" cmake --build "build/$name" --target "$@" &&
    say "built with $name in $((SECONDS - started)) s"
}

build_asan() { build_sanitized asan all; }
build_tsan() { build_sanitized tsan "${tsan_programs[@]}"; }

# A build that fails is a failed test.
asan() {
  if ! finish asan build_asan; then record asan $SECONDS "$results/no-such-file.xml"; return; fi
  # The conversations with a whole server take a second without sanitizers.
  local arguments
  # The part cpp has these too, and they take longest.
  choose 20 "-*.AtEveryOperation*:ProgramTest.RefusesWhatItCannotDo" -- 600 ""
  NNI_COMPRESSION_FUZZ_SECONDS=${arguments[0]} ASAN_OPTIONS=strict_string_checks=1:check_initialization_order=1 \
    LSAN_OPTIONS=suppressions=$PWD/tests/testing/lsan.supp:print_suppressions=0 \
    UBSAN_OPTIONS=print_stacktrace=1 cpp_part asan build/asan "${1:-*}${arguments[1]}"
}

tsan() {
  if ! finish tsan build_tsan; then record tsan $SECONDS "$results/no-such-file.xml"; return; fi
  TSAN_OPTIONS=suppressions=$PWD/tests/testing/tsan.supp cpp_part tsan build/tsan "${1:-*}" \
    "${tsan_programs[@]}"
}

# begin_all PART...: what the parts after the first need.
begin_all() {
  local part
  for part in "${@:2}"; do
    case $part in
      python-newest) begin 10 python-newest newest_venv ;;
      torch) begin 10 torch torch_venv ;;
      tensorflow) begin 10 tensorflow tensorflow_venvs ;;
    esac
  done
  build_all
  for part in "${@:2}"; do
    case $part in
      nni) begin 0 nni nni_tests ;;
      # Takes the longest, and is needed last.
      asan | tsan) begin 19 "$part" "build_$part" ;;
    esac
  done
}

main() {
  local all=(cpp python torch tensorflow nni integration scripts)
  local long=("${all[@]}" fuzz python-newest asan tsan tidy debian13 soak deployment)
  local parts=() names=() argument
  for argument in "$@"; do
    case $argument in
      --sanitizers) parts+=(asan tsan) ;;
      --long) export NNI_COMPRESSION_LONG=1 patience=24 all=("${long[@]}") ;;
      -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; trap - EXIT; exit 0 ;;
      -*) say "unknown option $argument" >&2; exit 2 ;;
      cpp | python | python-newest | torch | tensorflow | nni | integration | scripts | asan | tsan | \
        tidy | debian13 | fuzz | soak | deployment) parts+=("$argument") ;;
      *) names+=("$argument") ;;
    esac
  done

  mkdir -p $results
  deploy/install-dependencies.sh
  if [[ ${#names[@]} -gt 0 ]]; then
    local cpp_filter python_filter part
    # Names in C++ are in CamelCase.
    local camel=()
    mapfile -t camel < <(printf '%s\n' "${names[@]}" | sed -E 's/(^|_)([a-z])/\u\2/g')
    cpp_filter=$(printf '*%s*:' "${names[@]}" "${camel[@]}")
    python_filter=$(printf ' or %s' "${names[@]}")
    [[ ${#parts[@]} -gt 0 ]] || parts=(cpp python integration)
    for part in "${parts[@]}"; do
      case $part in
        cpp | asan | tsan) "$part" "$cpp_filter" ;;
        scripts | tidy | debian13 | fuzz | soak | deployment) "$part" ;;
        *) "$part" -k "${python_filter# or }" ;;
      esac
    done
  else
    [[ ${#parts[@]} -gt 0 ]] || parts=("${all[@]}")
    begin_all "${parts[@]}"
    for argument in "${parts[@]}"; do "$argument"; done
  fi
}

totals() {
  local status=$? pid
  trap - EXIT
  for pid in "${begun[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
  # A step that could not even run its tests ended the script: that is a failure too.
  if [[ $status -ne 0 ]]; then failed=$((failed + 1)); fi
  local line="$passed passed, $failed failed"
  if [[ $skipped -gt 0 ]]; then line+=", $skipped skipped"; fi
  say "$line"
  [[ $failed -eq 0 && $passed -gt 0 ]] || exit 1
}

trap totals EXIT
main "$@"
