#!/usr/bin/env bash
# Kills and soaks a server for a long time; tests/run.sh does the same in small.
#
#   tests/soak.sh [--kills N] [--minutes M] [--seed S] [--report FILE]
#
# 200 kills and 30 minutes by default. Installs what is missing and builds first. Prints every moment
# and every look at the server, then the report that docs/reliability.md has of such a run; the status
# is 1 when something leaks, or an answer was not that of a quiet run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
export PYTHONPATH=$PWD/client/python/src:$PWD/tests/testing/python

deploy/install-dependencies.sh
build_release compression_server compressionctl nni_compression_test_plugins
exec $python tests/soak/run.py "$@"
