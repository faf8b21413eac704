# shellcheck shell=bash
# What the scripts share. Sourced from the top folder of the checkout, under `set -euo pipefail`.

# Debian's Python, which has Debian's PyTorch, whatever else comes first on PATH.
python=/usr/bin/python3
build=build/release
logs=build/logs
export COMPRESSION_SERVER_BINARY=$PWD/$build/server/compression_server
export COMPRESSIONCTL_BINARY=$PWD/$build/client/cli/compressionctl
export PYTHONDONTWRITEBYTECODE=1
# Another checkout, or a fresh clone, finds in the compiler cache what this one compiled.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1

say() { printf '%s\n' "$*"; }

# quietly NAME COMMAND...: runs it with its output in $logs/NAME.log; shows the log's end when it fails.
quietly() {
  local name=$1 status=0
  shift
  mkdir -p "$logs"
  "$@" </dev/null >"$logs/$name.log" 2>&1 || status=$?
  if [[ $status -ne 0 ]]; then
    tail -n "${TAIL:-40}" "$logs/$name.log" >&2
    say "failed with status $status: $* (all of it: $logs/$name.log)" >&2
  fi
  return "$status"
}

# build_release TARGET...: the tests and the quickstart share one
# build folder and one configuration, so neither makes the other compile anew.
build_release() {
  if [[ ! -f $build/build.ninja ]] || ! grep -q '^NNI_COMPRESSION_WERROR:BOOL=ON$' $build/CMakeCache.txt; then
    quietly configure cmake --preset ci
  fi
  # Said only when it takes long. What sleeps on after the end keeps no pipe open.
  (
    sleep 5 >/dev/null 2>&1
    say "compiling; log in $logs/build.log"
    while sleep 60 >/dev/null 2>&1; do
      tail -n 1 "$logs/build.log" | sed -n 's|^\[\([0-9]*\)/\([0-9]*\)\].*|  step \1 of \2|p'
    done
  ) &
  local note=$! status=0
  quietly build cmake --build $build --target "$@" || status=$?
  kill "$note" 2>/dev/null || true
  wait "$note" 2>/dev/null || true
  return $status
}

# make_venv FOLDER KEY COMMAND...: a virtual environment over Debian's packages, filled by COMMAND
# (its Python comes first on PATH then); made anew when KEY, which says what is in it, changes.
make_venv() {
  local folder=$1 key=$2
  shift 2
  [[ -x $folder/bin/python && -f $folder/key && $(<"$folder/key") == "$key" ]] && return
  rm -rf "$folder"
  $python -m venv --system-site-packages "$folder"
  (
    unset PYTHONPATH PYTHONHOME
    PATH=$PWD/$folder/bin:$PATH
    "$@"
  ) || return
  printf '%s' "$key" >"$folder/key"
}

# Debian 12 has no ruff, and a clang-tidy that spends most of its time in the headers of LibTorch and
# gRPC; current ones leave them out.
lint_venv() {
  local tools=(ruff==0.17.6 clang-tidy==23.1.4)
  make_venv build/venv-lint "${tools[*]}" quietly pip-lint pip install "${tools[@]}"
}

# NNI 3.0 with the versions that it still works with, and what the examples of searches need.
nni_venv() {
  local packages=('nni==3.0' 'typeguard>=3,<4.1.3' 'filelock<3.12' 'setuptools<70' 'numpy<2'
    optuna matplotlib)
  make_venv build/venv-nni "${packages[*]}" quietly pip-nni pip install "${packages[@]}"
}

# tensorflow_venv FOLDER VERSION [PACKAGE...]: TensorFlow of that version ("": the newest, looked for
# anew once a month), with a scikit-learn that was built for its numpy, and what writes and runs ONNX.
tensorflow_venv() {
  local folder=$1 version=$2 key=$2 others=(scikit-learn scipy tf2onnx onnxruntime "${@:3}")
  [[ -n $version ]] || key=$(date +%Y-%m)
  make_venv "$folder" "tensorflow-cpu $key ${others[*]}" quietly "pip-$(basename "$folder")" \
    pip install --upgrade "tensorflow-cpu$version" "${others[@]}"
}

# PyTorch and its models, the runtimes of integer models, and the quantizers of those.
runtimes_venv() {
  local packages=(torch torchvision transformers numpy scipy scikit-learn grpcio protobuf onnx onnxscript
    onnxruntime openvino nncf mlxtend timm torch-pruning)
  make_venv build/venv-runtimes "$(date +%Y-%m) ${packages[*]}" quietly pip-runtimes \
    pip install --upgrade "${packages[@]}"
}

# PyTorch 2, what finds the filters that go together, and the runtime that the result is measured in.
# SciPy and scikit-learn are named because Debian's are built for an older numpy.
shrink_venv() {
  local packages=(torch torch-pruning numpy scipy scikit-learn grpcio protobuf onnx onnxscript
    onnxruntime matplotlib)
  make_venv build/venv-shrink "$(date +%Y-%m) ${packages[*]}" quietly pip-shrink \
    pip install --upgrade "${packages[@]}"
}

# start_server FOLDER [FLAG...]: starts a server on a free port with its log in FOLDER; sets
# `server_pid` and exports its address.
start_server() {
  local folder=$1 waited=0
  "$COMPRESSION_SERVER_BINARY" --listen=127.0.0.1:0 --port_file="$folder/port" "${@:2}" \
    </dev/null 2>"$folder/server.log" &
  server_pid=$!
  until [[ -s $folder/port ]]; do
    waited=$((waited + 1))
    if ! kill -0 "$server_pid" 2>/dev/null || [[ $waited -gt 300 ]]; then
      tail -n 40 "$folder/server.log" >&2
      say "the server did not start" >&2
      return 1
    fi
    sleep 0.1
  done
  NNI_COMPRESSION_SERVER=127.0.0.1:$(<"$folder/port")
  export NNI_COMPRESSION_SERVER
}

# Drains the server; its exit status.
stop_server() {
  [[ -n ${server_pid:-} ]] || return 0
  local pid=$server_pid
  server_pid=
  kill -TERM "$pid" 2>/dev/null || return 0
  wait "$pid"
}
