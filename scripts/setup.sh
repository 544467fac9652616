#!/usr/bin/env bash
# Makes this checkout ready to use: scripts/setup.sh [run|test|bench]...
#
#   run    .venv with Atoll, and the Debian packages that building a template needs (always included)
#   test   + what the test-suite needs
#   bench  + what the benchmarks compare with
#
# Debian packages are installed when root; otherwise the exact line to run is printed and the script ends with 1.
# A stamp per step makes a second run cost nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
PACKAGES_RUN=(mmdebstrap ca-certificates)
PACKAGES_TEST=(nodejs npm libnss-myhostname skopeo zstd busybox-static postgresql)
PACKAGES_BENCH=(bubblewrap)

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Some packages are there in another way on some machines (node from elsewhere): the program is what counts.
provided() {
  case $1 in
    nodejs) command -v node >/dev/null ;;
    npm) command -v npm >/dev/null ;;
    bubblewrap) command -v bwrap >/dev/null ;;
    libnss-myhostname) getent ahosts atoll.localhost >/dev/null ;; # *.localhost, for the tests of domain mode
    mmdebstrap) command -v mmdebstrap >/dev/null ;;
    *) installed "$1" ;;
  esac
}

need_packages() {
  local missing=() package
  for package in "$@"; do provided "$package" || missing+=("$package"); done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null ||
    die "these programs are needed and this is not a Debian-like system: ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    die "Debian packages are missing; run this, then try again:
    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
  fi
  say "installing Debian packages: ${missing[*]}"
  # One quiet retry after reading the package lists: on a fresh machine there are none.
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  }
}

# A Python of at least 3.11 that can make virtual environments; rather one since 3.12, with which an idle sandbox takes
# less than half of the memory.
find_python() {
  local name
  for name in python3.13 python3.12 python3 python3.14 python3.11; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

need_venv() {
  local python stamp="$VENV/.installed" wanted
  wanted=$(cat pyproject.toml attacks/pyproject.toml | sha256sum | cut -d' ' -f1)
  [ -x "$VENV/bin/atoll" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  if ! python=$(find_python); then
    need_packages python3 python3-venv
    python=$(find_python) || die "Python 3.11 or newer is needed; this system's packages have only $(python3 -V 2>&1)"
  fi
  [ -x "$VENV/bin/python" ] || { say "making $VENV with $("$python" -V)"; "$python" -m venv "$VENV"; }
  say "installing Python packages"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]' -e ./attacks
  printf '%s\n' "$wanted" >"$stamp"
}

need_packages "${PACKAGES_RUN[@]}"
need_venv
for group in "$@"; do
  case $group in
    run) ;;
    test)
      need_packages "${PACKAGES_TEST[@]}"
      # For the tests of the console, which skip without it; Ubuntu has no such package.
      if apt-cache policy chromium 2>/dev/null | grep -q 'Candidate: [0-9]'; then need_packages chromium; fi
      # For the tests of the gVisor tier; apart from the data directory, where it would change what `auto` chooses.
      ATOLL_TOOLS_DIR="$VENV/atoll-tools" "$VENV/bin/atoll" doctor --fix >/dev/null || true
      ;;
    bench) need_packages "${PACKAGES_BENCH[@]}" ;;
    *) die "unknown group: $group" ;;
  esac
done
