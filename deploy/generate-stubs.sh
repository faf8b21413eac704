#!/usr/bin/env bash
# Writes the Python code of the wire contract into client/python. Run it after a change to the
# .proto with Debian 12's protoc (3.21), whose output loads under protobuf 4.21 and newer.
set -euo pipefail
cd "$(dirname "$0")/.."
out=client/python/src/nni_compression/_wire
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
protoc -I proto --python_out="$work" --pyi_out="$work" nni/compression/v1/compression.proto
mkdir -p "$out"
cp "$work"/nni/compression/v1/compression_pb2.py* "$out/"
