#!/usr/bin/env bash
# Installs, by name and only where missing, the Debian packages whose programs the tests call.
set -euo pipefail

missing=()
need() { # need PROGRAM PACKAGE
  command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need fio fio
need git git
need sqlite3 sqlite3
need gcc gcc        # the race detector links with cgo
need diff diffutils
need python3 python3-minimal  # the client in another language
need openssl openssl         # its signatures

if [ "$(uname -s)" = Linux ] && command -v gcc >/dev/null 2>&1 && [ ! -e /usr/include/stdlib.h ]; then
  missing+=(libc6-dev)
elif ! command -v gcc >/dev/null 2>&1; then
  missing+=(libc6-dev)
fi

[ ${#missing[@]} -eq 0 ] && exit 0
echo "== installing: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "these Debian packages are missing; install them as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
if ! apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
