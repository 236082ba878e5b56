#!/bin/sh
# Installs what lapidary needs from the distribution's own packages (Debian 12, Ubuntu 24.04).
#   tools/setup.sh         compiler, CMake and libraries: enough for `make demo` and `make test`
#   tools/setup.sh checks  also clang, clang-format and clang-tidy: enough for .ci/run
# Idempotent: does nothing, and needs no rights, when every package is there.
set -eu

packages="g++ cmake ninja-build ccache pkg-config xz-utils
  nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libfmt-dev
  libgtest-dev libgmock-dev libbenchmark-dev libdnnl-dev openmpi-bin"

case "${1:-build}" in
  build) ;;
  # clang-format is pinned: its versions disagree about layout.
  checks) packages="$packages clang libclang-rt-dev libomp-dev clang-tidy clang-format-14" ;;
  *) echo "usage: tools/setup.sh [build|checks]" >&2; exit 2 ;;
esac

say() { echo "setup: $*" >&2; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  if command -v cmake >/dev/null && command -v c++ >/dev/null; then
    say "not a Debian or Ubuntu system; going on with the tools that are installed"
    exit 0
  fi
  say "this is not a Debian or Ubuntu system. Install the equivalents of:" $packages
  exit 1
fi

missing=""
for package in $packages; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  root="env"
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
  root="sudo env"
else
  say "these packages are missing:$missing"
  say "and this user is neither root nor able to use sudo. As root, run:"
  say "  apt-get install -y$missing"
  exit 1
fi

install() {
  $root DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
}
say "installing:$missing"
$root DEBIAN_FRONTEND=noninteractive apt-get update
if ! install; then
  # Mirrors change between the two commands now and then; a fresh list mends that.
  say "apt-get failed; trying once more"
  $root apt-get update
  install || { say "apt-get could not install:$missing"; exit 1; }
fi
