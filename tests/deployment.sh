#!/usr/bin/env bash
# Builds the image of deploy/Dockerfile without a Docker engine, and runs it as another user than root. Needs root, buildah and mmdebstrap, and takes long; not part of tests/run.sh.
#
#   tests/deployment.sh              compiles in the image, as `docker build` does
#   tests/deployment.sh --prebuilt   takes the programs of build/release instead, for a quick look at the rest
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot

folder=$(mktemp -d)
image=localhost/compression-server container='' server_pid=''
cleanup() {
  [[ -z $server_pid ]] || kill "$server_pid" 2>/dev/null || true
  [[ -z $container ]] || buildah rm "$container" >/dev/null
  rm -rf "$folder"
}
trap cleanup EXIT

options=()
if [[ ${1:-} == --prebuilt ]]; then
  install -s -D -t "$folder/prebuilt/out" "$COMPRESSION_SERVER_BINARY" "$COMPRESSIONCTL_BINARY"
  options=(--build-context "build=$folder/prebuilt")
fi

say "a base by mmdebstrap"
base=$(buildah from scratch)
quietly mmdebstrap mmdebstrap --variant=minbase --include=ca-certificates bookworm "$folder/base.tar"
buildah add -q "$base" "$folder/base.tar" / >/dev/null
buildah commit -q --rm "$base" localhost/debian-base >/dev/null

say "the image"
quietly image buildah bud -f deploy/Dockerfile --build-arg BASE=localhost/debian-base "${options[@]}" -t $image .
container=$(buildah from $image)
say "the image has $(du -sm "$(buildah mount "$container")" | cut -f1) MB"
run() { buildah run --user 10001:10001 "$@"; }
[[ $(run "$container" -- id -u) == 10001 ]] || { say "it runs as root" >&2; exit 1; }
run "$container" -- compression_server --listen=127.0.0.1:50051 --data_dir=/var/lib/compression \
  --metrics_listen=127.0.0.1:9464 --log_format=json 2>"$folder/server.log" &
server_pid=$!
until run "$container" -- compression_server --healthcheck=127.0.0.1:50051 2>/dev/null; do
  kill -0 "$server_pid" 2>/dev/null || { cat "$folder/server.log" >&2; exit 1; }
done
run "$container" -- compressionctl --server=127.0.0.1:50051 algorithms >/dev/null
say "the container serves"
