#!/usr/bin/env bash
# Compiles the server and the clients on Debian 13, whose Abseil, gRPC and LibTorch are newer than
# those of Debian 12, and runs the C++ tests there. Needs root, and an hour on two cores at first:
# the compiler's cache and the root, made by mmdebstrap, are kept in build/debian13.
#
#   tests/debian13.sh [TARGET...]   the targets, instead of all, and the tests that they are
#
# $MMDEBSTRAP_OPTIONS is passed on, for hosts that get packages in a way of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/common.sh
source deploy/common.sh
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit
fi
[[ $(id -u) == 0 ]] || { say "please run as root" >&2 && exit 1; }

folder=$PWD/build/debian13
root=$folder/root

# In namespaces, so that what it starts and mounts ends with it, whatever happens.
if [[ -z ${IN_NAMESPACES:-} ]]; then
  deploy/install-dependencies.sh --debian13
  mkdir -p "$folder"
  if [[ ! -f $folder/made ]]; then
    say "a root of Debian 13 by mmdebstrap"
    rm -rf "$root"
    read -ra options <<<"${MMDEBSTRAP_OPTIONS:-}"
    quietly mmdebstrap-13 mmdebstrap --variant=minbase --include=ca-certificates "${options[@]}" trixie "$root"
    touch "$folder/made"
  fi
  IN_NAMESPACES=1 unshare --mount --pid --fork --kill-child "$0" "$@" &
  trap 'kill -KILL $!; wait; exit 130' INT TERM
  wait $!
  exit
fi

# The checkout lies in the root where it lies here, so that paths in logs are right.
mkdir -p "$root$PWD"
mount --bind "$PWD" "$root$PWD"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# shellcheck disable=SC2016 # it expands in the root
inside() {
  chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    CCACHE_DIR="$folder/ccache" CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1 \
    bash -c 'cd "$1" && shift && exec "$@"' - "$PWD" "$@"
}

say "packages of Debian 13; log in $logs/packages-13.log"
quietly packages-13 inside deploy/install-dependencies.sh --build
targets=("$@")
[[ $# -gt 0 ]] || targets=(all)
# Without -Werror: newer headers call old functions deprecated.
say "compiling; log in $logs/build-13.log"
quietly configure-13 inside cmake -G Ninja -S . -B "$folder/build" \
  -DCMAKE_BUILD_TYPE=Release -DNNI_COMPRESSION_WERROR=OFF
quietly build-13 inside nice cmake --build "$folder/build" -j "${JOBS:-$(nproc)}" --target "${targets[@]}" -- -k 0

failed=()
while read -r program; do
  name=$(basename "$program")
  if [[ ${targets[*]} != all && " ${targets[*]} " != *" $name "* ]]; then continue; fi
  if TAIL=60 quietly "debian13-$name" inside timeout --kill-after=10 1800 "$program" --gtest_brief=1; then
    say "$name: $(grep -E '^\[  PASSED  \]' "$logs/debian13-$name.log" | tail -n 1)"
  else
    failed+=("$name")
  fi
done <"$folder/build/tests/programs.txt"
[[ ${#failed[@]} -eq 0 ]] || { say "failed: ${failed[*]}" >&2 && exit 1; }
