#!/usr/bin/env bash
# Installs what is missing, builds, and runs the benchmarks against a server on this machine.
#
#   tests/bench.sh [--filter RE] [--json FILE]    --help lists what there is
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
export PYTHONPATH=$PWD/client/python/src:$PWD/tests/testing/python

deploy/install-dependencies.sh
quietly configure cmake --preset ci -DNNI_COMPRESSION_BUILD_BENCHMARKS=ON
build_release compression_server compressionctl kernels_benchmark transport_benchmark
nni_venv
export NNI_PYTHON=$PWD/build/venv-nni/bin/python
tensorflow_venv build/venv-tensorflow ""
export TENSORFLOW_PYTHON=$PWD/build/venv-tensorflow/bin/python
runtimes_venv
export RUNTIMES_PYTHON=$PWD/build/venv-runtimes/bin/python
export KERNELS_BENCHMARK=$PWD/$build/tests/benchmarks/kernels/kernels_benchmark
export TRANSPORT_BENCHMARK=$PWD/$build/tests/benchmarks/transport/transport_benchmark

folder=$(mktemp -d)
trap 'stop_server || true; rm -rf "$folder"' EXIT
# Under another name than the one that clients look for: most figures are those of the network.
export SHM_SOCKET=$folder/side
start_server "$folder" --shm_socket="$SHM_SOCKET"
export SERVER_PID=$server_pid
$python tests/benchmarks/run.py "$@"
stop_server
