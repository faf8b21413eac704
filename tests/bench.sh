#!/usr/bin/env bash
# Installs what is missing, builds, and runs the benchmarks against a server on this machine.
#
#   tests/bench.sh [--filter RE] [--json FILE]    --help lists what there is
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
export PYTHONPATH=$PWD/client/python/src

deploy/install-dependencies.sh --build
build_release compression_server

folder=$(mktemp -d)
trap 'stop_server || true; rm -rf "$folder"' EXIT
start_server "$folder"
$python tests/benchmarks/run.py "$@"
stop_server
