#!/usr/bin/env bash
# Installs the packages that this project stands on: of Debian 12, or of Debian 13, where the server
# and the C++ tests are compiled and run as well. Needs root, or sudo. Installs only what is missing,
# so a second run is silent and takes no time.
#
#   deploy/install-dependencies.sh              what a build and all the tests need
#   deploy/install-dependencies.sh --build      what deploy/quickstart.sh needs
#   deploy/install-dependencies.sh --compile    what compiling the server needs
#   deploy/install-dependencies.sh --runtime    what the installed programs need
#   deploy/install-dependencies.sh --fuzz       what tests/fuzz.sh needs
#   deploy/install-dependencies.sh --deployment what tests/deployment.sh needs
#   deploy/install-dependencies.sh --debian13   what tests/debian13.sh needs
set -euo pipefail

runtime=(ca-certificates libprometheus-cpp-core1.0 libsqlite3-0 zlib1g)
# shellcheck source=/dev/null
case $(source /etc/os-release && echo "${VERSION_CODENAME:-}") in
  trixie) runtime+=(libabsl20240722 libcpp-httplib0.18 libgrpc++1.51t64 libprotobuf32t64 libre2-11 libspdlog1.15 libssl3t64 libtorch2.6) ;;
  *) runtime+=(libabsl20220623 libcpp-httplib0.11 libgrpc++1.51 libprotobuf32 libre2-9 libspdlog1.10 libssl3 libtorch1.13) ;;
esac

compile=(ccache cmake g++ libabsl-dev libcli11-dev libcpp-httplib-dev libgrpc++-dev libprotobuf-dev libre2-dev libspdlog-dev libsqlite3-dev libssl-dev
         libtorch-dev ninja-build pkg-config nlohmann-json3-dev prometheus-cpp-dev protobuf-compiler
         protobuf-compiler-grpc zlib1g-dev)

build=("${compile[@]}" git libgmock-dev libgtest-dev openssl
       python3 python3-grpcio python3-numpy python3-protobuf python3-setuptools python3-sklearn
       python3-torch python3-venv python3-wheel)

tests=(chromium clang-format-14 haproxy libbenchmark-dev libfaketime libjemalloc2 mypy openssl
       prometheus python3-h2 python3-pytest python3-pytest-timeout python3-pytest-xdist python3-yaml shellcheck)

case "${1:-}" in
  --runtime) wanted=("${runtime[@]}") ;;
  --compile) wanted=("${runtime[@]}" "${compile[@]}") ;;
  --build) wanted=("${runtime[@]}" "${build[@]}") ;;
  "") wanted=("${runtime[@]}" "${build[@]}" "${tests[@]}") ;;
  --fuzz) wanted=("${runtime[@]}" "${build[@]}" "${tests[@]}" clang-14 libclang-rt-14-dev libomp-14-dev) ;;
  --deployment) wanted=("${runtime[@]}" "${build[@]}" "${tests[@]}" buildah iproute2 mmdebstrap) ;;
  --debian13) wanted=(mmdebstrap) ;;
  -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "unknown option $1; it must be --build, --compile, --runtime, --fuzz, --deployment or --debian13" >&2; exit 2 ;;
esac

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $state == ii* ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "please install as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=600 "$@" \
    </dev/null >>"$log" 2>&1
}

echo "installing ${#missing[@]} packages (minutes on a fresh machine): ${missing[*]}"
# A list that cannot be refreshed may belong to a repository that is not needed here.
apt update || echo "some package lists could not be refreshed; going on"
if ! apt install --no-install-recommends "${missing[@]}"; then
  tail -n 40 "$log" >&2
  echo "apt-get could not install the packages; this script is made for Debian 12 and 13" >&2
  exit 1
fi
