#!/usr/bin/env bash
# Runs every fuzz test of the module, one after the other, for the time given (default 20s each).
set -euo pipefail
cd "$(dirname "$0")/.."

fuzztime=${1:-20s}
n=0
while IFS=: read -r file name; do
  [ -n "$file" ] || continue
  pkg=./$(dirname "$file")
  echo "== $pkg $name ($fuzztime)"
  go test "$pkg" -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime"
  n=$((n + 1))
done < <(git ls-files '*_test.go' | xargs grep -hoHE '^func Fuzz[A-Za-z0-9_]*' | sed 's/func //')
[ "$n" -gt 0 ] || { echo "found no fuzz test" >&2; exit 1; }
echo "== $n fuzz tests passed"
