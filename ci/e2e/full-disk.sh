#!/usr/bin/env bash
# A full disk: ENOSPC reaches the application, what was acknowledged stays, deleting frees space and writing goes on.
. "$(dirname "$0")/lib.sh"
need_mount
mkdir "$work/mnt"
up --capacity 1GiB --mount "$work/mnt"
head -c 50000000 /dev/urandom >"$work/keep"
cp "$work/keep" "$work/mnt/keep" && sync -f "$work/mnt"
for round in 1 2; do
  if dd if=/dev/urandom of="$work/mnt/big" bs=1M count=2000 conv=fsync 2>"$work/dd"; then die "2000 MiB fitted into 1 GiB"; fi
  grep -q 'No space left on device' "$work/dd" || { cat "$work/dd"; die "not ENOSPC"; }
  cmp "$work/keep" "$work/mnt/keep" || die "a full disk harmed another file"
  rm "$work/mnt/big"
  for _ in $(seq 300); do
    free=$(df --output=avail -B1M "$work/mnt" | tail -n 1)
    [ "$free" -gt 500 ] && break
    sleep 0.2
  done
  [ "$free" -gt 500 ] || die "only $free MiB are free after deleting"
  say "round $round: full, then $free MiB free after deleting"
done
cp "$work/keep" "$work/mnt/again" && sync -f "$work/mnt" && cmp "$work/keep" "$work/mnt/again"
down
fsck
