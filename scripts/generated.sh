#!/usr/bin/env bash
# Fails when `go generate` would change a file: generated code that does not fit its source.
set -euo pipefail
cd "$(dirname "$0")/.."

files=$(git ls-files | grep -E '(^|/)zz_[^/]*\.go$|^wire/MESSAGES\.md$' || true)
[ -n "$files" ] || exit 0
before=$(sha256sum $files)
go generate ./...
after=$(sha256sum $files)
if [ "$before" != "$after" ]; then
  echo "generated code was out of date; it has been written anew, commit it:" >&2
  diff <(echo "$before") <(echo "$after") | sed -n 's/^> [0-9a-f]*  /  /p' >&2
  exit 1
fi
