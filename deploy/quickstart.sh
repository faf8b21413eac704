#!/usr/bin/env bash
# From a fresh Debian 12 machine to a finished compression job: installs what is missing, builds
# the server, starts it on a free port, and lets a PyTorch trainer prune and quantize a small
# network on real images through it. Safe and quick to run again.
#
#   deploy/quickstart.sh          prunes and quantizes, each once
#   deploy/quickstart.sh --nni    an NNI experiment of 20 trials searches each layer's sparsity
#   deploy/quickstart.sh --tensorflow    prunes and quantizes a network in Keras and as a graph
#   deploy/quickstart.sh --shrink    half of a network's filters go; it is smaller and faster then
#
# What follows is passed on to the example.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh

example=digits
case ${1:-} in
  --nni | --tensorflow | --shrink) example=${1#--} && shift ;;
  -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit ;;
esac

deploy/install-dependencies.sh --build
build_release compression_server compressionctl

# As a user would install it, but from a copy: setuptools leaves files in the tree that it builds.
install_client() {
  rm -rf build/client-python
  cp -r client/python build/client-python
  pip install --no-deps --no-index --no-build-isolation build/client-python
}

folder=$(mktemp -d)
trap 'stop_server || true; rm -rf "$folder"' EXIT
start_server "$folder"
say "server at $NNI_COMPRESSION_SERVER"

case $example in
  digits)
    sources=$(find client/python -type f ! -path '*/__pycache__/*' | sort | xargs -d '\n' sha256sum | sha256sum)
    make_venv build/venv "$sources" quietly pip install_client
    env -u PYTHONPATH build/venv/bin/python client/python/examples/digits.py "$@"
    ;;
  nni)
    nni_venv
    PYTHONPATH=$PWD/client/python/src build/venv-nni/bin/python \
      client/python/examples/auto_compression/search.py prune --out build/auto_compression "$@"
    ;;
  tensorflow)
    tensorflow_venv build/venv-tensorflow ""
    for each in keras graph; do
      PYTHONPATH=$PWD/client/python/src build/venv-tensorflow/bin/python \
        "client/python/examples/digits_$each.py" "$@"
    done
    ;;
  shrink)
    shrink_venv
    PYTHONPATH=$PWD/client/python/src build/venv-shrink/bin/python \
      client/python/examples/shrink.py --plot build/shrink.png "$@"
    ;;
esac
stop_server
