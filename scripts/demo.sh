#!/usr/bin/env bash
# make demo, make demo-stop and make demo-wipe.
set -euo pipefail
cd "$(dirname "$0")/.."

what=$1 dir=$2
case $what in
up)
  mount=$3 size=$4
  if [ "$(id -u)" -ne 0 ]; then
    echo "make demo mounts a filesystem: run it as root (sudo make demo)" >&2
    exit 1
  fi
  # A mount point that is missing is made; one that was already there is left as it is.
  [ -e "$mount" ] || mkdir -p "$mount"
  flags=(--dir "$dir" --mount "$mount")
  [ -e "$dir/cluster.json" ] || flags+=(--drive-size "$size")
  bin/crake dev up "${flags[@]}"
  cat <<END

$mount is a Crake filesystem now. Try:

  cp -a \$(go env GOROOT)/src/net $mount/ && diff -r \$(go env GOROOT)/src/net $mount/net && echo equal
  bin/crake status --dir $dir
  bin/crake dev ps --dir $dir
  kill -9 \$(pgrep -f -- "--name drive2")   # a drive dies; $mount goes on; it comes back by itself
  bin/crake events --dir $dir              # and this tells the story
  make demo-stop                           # unmount and stop; the data stays
END
  ;;
down)
  [ -e "$dir/cluster.json" ] || { echo "no demo in $dir: nothing to stop"; exit 0; }
  bin/crake dev down --dir "$dir"
  ;;
wipe)
  [ -e "$dir/cluster.json" ] || { echo "no demo in $dir: nothing to remove"; exit 0; }
  bin/crake dev down --dir "$dir" --wipe
  ;;
*)
  echo "usage: demo.sh up DIR MOUNT DRIVE_SIZE | down DIR | wipe DIR" >&2
  exit 2
  ;;
esac
