#!/usr/bin/env bash
# What there is to test and to measure on a CUDA device, in a few minutes: the histograms of pruners
# on it, what they save, and sparse tensor cores. Ends with status 77 where there is no device.
#
#   tests/gpu.sh [PYTHON]
#
# PYTHON has PyTorch with CUDA, grpcio, protobuf, numpy and pytest; by default python3. Nothing is installed.
# The server is $COMPRESSION_SERVER_BINARY, or that of build/release.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
export PYTHONPATH=$PWD/client/python/src:$PWD/tests/testing/python:$PWD/tests/benchmarks
interpreter=${1:-python3}

if ! "$interpreter" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "no CUDA device: nothing was tested"
  exit 77
fi
"$interpreter" -m pytest -q -p no:cacheprovider tests/client/torch/test_torch_histogram.py \
  tests/client/torch/test_torch_n_m.py
folder=$(mktemp -d)
trap 'stop_server || true; rm -rf "$folder"' EXIT
start_server "$folder"
"$interpreter" tests/benchmarks/gpu.py
