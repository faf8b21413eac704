#!/usr/bin/env bash
# Builds the image of deploy/Dockerfile without a Docker engine, and lets the quickstart's trainer run against it
# through HAProxy, with TLS and a token. Installs what is missing; needs root, and a quarter of an hour. Not part of
# tests/run.sh. Ends by itself and leaves nothing but logs and the compiler's cache, in build/.
#
#   tests/deployment.sh              compiles in the image, as `docker build` does
#   tests/deployment.sh --prebuilt   takes the programs of build/release instead, for a quick look at the rest
#
# $MMDEBSTRAP_OPTIONS and $BUILDAH_OPTIONS are passed on, for hosts that get packages in a way of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh

case ${1:-} in
  "" | --prebuilt) ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit ;;
  *) say "unknown option $1" >&2 && exit 2 ;;
esac
[[ $(id -u) == 0 ]] || { say "please run as root" >&2 && exit 1; }

folder=$PWD/build/deployment
clean_up() {
  rm -rf "$folder"/{storage,storage.conf,run,base.tar,prebuilt}
  find "$folder/tmp" -mindepth 1 -maxdepth 1 ! -name 'buildah-cache*' -exec rm -rf {} +
}

# In namespaces, so that what it starts and mounts ends with it, whatever happens.
if [[ -z ${IN_NAMESPACES:-} ]]; then
  deploy/install-dependencies.sh --deployment
  mkdir -p "$folder/tmp"
  clean_up
  trap clean_up EXIT
  IN_NAMESPACES=1 unshare --mount --pid --fork --kill-child --mount-proc "$0" "$@" &
  trap 'kill -KILL $!; wait; exit 130' INT TERM
  wait $!
  exit
fi

started=$SECONDS
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' "$folder" "$folder" >"$folder/storage.conf"
# Where `RUN --mount=type=cache` keeps what the compiler made, too.
export TMPDIR=$folder/tmp CONTAINERS_STORAGE_CONF=$folder/storage.conf BUILDAH_ISOLATION=chroot

read -ra mmdebstrap_options <<<"${MMDEBSTRAP_OPTIONS:-}"
read -ra buildah_options <<<"${BUILDAH_OPTIONS:-}"
if [[ ${1:-} == --prebuilt ]]; then
  build_release compression_server compressionctl
  install -s -D -t "$folder/prebuilt/out" "$COMPRESSION_SERVER_BINARY" "$COMPRESSIONCTL_BINARY"
  buildah_options+=(--build-context "build=$folder/prebuilt")
fi

say "a base by mmdebstrap"
quietly mmdebstrap mmdebstrap --variant=minbase --include=ca-certificates "${mmdebstrap_options[@]}" \
  bookworm "$folder/base.tar"
base=$(buildah from scratch)
buildah add -q "$base" "$folder/base.tar" / >/dev/null
buildah commit -q --rm "$base" localhost/debian-base >/dev/null

say "the image; log in $logs/image.log"
quietly image timeout 3600 buildah bud --format docker --build-arg BASE=localhost/debian-base "${buildah_options[@]}" \
  -f deploy/Dockerfile -t localhost/compression-server .
container=$(buildah from localhost/compression-server)

# In a network of their own, where the ports of the image are free.
unshare --net bash -c 'ip link set lo up && exec "$@"' - \
  env PYTHONPATH="$PWD/client/python/src" timeout --kill-after=10 900 \
  $python tests/testing/python/deployment.py "$container"
say "deployed and used in $((SECONDS - started)) s"
