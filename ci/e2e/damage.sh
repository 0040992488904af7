#!/usr/bin/env bash
# Garbage on the disk: a damaged block is an I/O error for that read alone, counted and named by fsck; damaged journal,
# checkpoint and superblock are repaired or reported, never served.
. "$(dirname "$0")/lib.sh"
need_tool python3
up --capacity 1GiB --cores 1
head -c 4000000 /dev/urandom >"$work/data"
"$COREFS" fs put "$work/data" /data
"$COREFS" fs put "$work/data" /other
down
disk=$(find "$work/cluster/node-1" -type f -size +500M | head -n 1)
[ -n "$disk" ] || die "the node's disk file was not found"
fsck >/dev/null || die "fsck finds damage before there is any"
# One byte of one block of /data, found by its content.
python3 - "$disk" "$work/data" <<'PY'
import mmap, sys
want = open(sys.argv[2], "rb").read()[40960:45056]
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
    hits, at = [], disk.find(want)
    while at >= 0:
        hits.append(at)
        at = disk.find(want, at + 1)
    assert len(hits) == 2, f"found at {hits}"
    at = hits[0] + 100
    disk[at:at + 1] = bytes([disk[at] ^ 1])
PY
if fsck >"$work/fsck.out" 2>&1; then cat "$work/fsck.out"; die "fsck did not see the damaged block"; fi
grep -q 'its CRC should be' "$work/fsck.out" || { cat "$work/fsck.out"; die "fsck doesn't name the damage"; }
say "fsck: $(grep 'its CRC' "$work/fsck.out" | head -n 1)"
up
good=0 bad=0
for name in data other; do
  if "$COREFS" fs get "/$name" "$work/back" 2>"$work/err"; then
    cmp "$work/data" "$work/back" || die "/$name came back altered"
    good=$((good + 1))
  else
    grep -q Corrupt "$work/err" || { cat "$work/err"; die "not a Corrupt error"; }
    bad=$((bad + 1))
  fi
done
[ $good = 1 ] && [ $bad = 1 ] || die "$good files readable, $bad refused"
say "one file refused, the other whole"
down
# The first superblock copy: the second one serves, and repairs it.
dd if=/dev/urandom of="$disk" bs=4096 count=1 conv=notrunc status=none
up
"$COREFS" fs ls / >/dev/null
down
say "a damaged superblock copy: came up from the other"
# Chunks whose file the metadata doesn't know take room: named, but no damage.
if [ -z "${COREFS_E2E_KV:-}" ]; then
  rm -rf "$work/cluster" "$work/kv"
  up --capacity 1GiB --cores 1
  "$COREFS" fs put "$work/data" /kept
  kv=$(role_pid kv)
  kill -STOP "$kv"
  cp -a "$work/cluster/kv" "$work/kv"
  kill -CONT "$kv"
  "$COREFS" fs put "$work/data" /lost
  down
  fsck >"$work/fsck.out" || { cat "$work/fsck.out"; die "fsck finds damage in a whole cluster"; }
  if grep ORPHAN "$work/fsck.out"; then die "fsck calls chunks of files that are there orphans"; fi
  rm -rf "$work/cluster/kv" && cp -a "$work/kv" "$work/cluster/kv"
  fsck >"$work/fsck.out" || { cat "$work/fsck.out"; die "orphans are no damage"; }
  [ "$(grep -c '^ORPHAN inode-' "$work/fsck.out")" = 1 ] || { cat "$work/fsck.out"; die "fsck doesn't name the orphan"; }
  say "fsck: $(grep ORPHAN "$work/fsck.out")"
  fsck --remove-orphans | grep '^1 of the orphans' || die "the orphan isn't queued"
  for round in $(seq 20); do
    up
    "$COREFS" fs get /kept "$work/back" && cmp "$work/data" "$work/back" || die "a file that is there was removed"
    down
    fsck >"$work/fsck.out" || { cat "$work/fsck.out"; die "removing orphans leaves damage"; }
    grep -q '^ORPHAN' "$work/fsck.out" || break
    [ "$round" -lt 20 ] || die "the orphan is still there"
  done
  say "--remove-orphans: gone"
fi
