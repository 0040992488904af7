#!/usr/bin/env bash
# Bit flips, torn, lost and misdirected writes in replicas' stores, while the nodes run and while they don't: programs read and
# write the right bytes and see no error, each damaged block is found and repaired in its place, and what only one copy has is
# reported.
. "$(dirname "$0")/lib.sh"
need_tool python3
disk() { find "$work/cluster/node-$1" -type f -size +500M | head -n 1; }
injure() { python3 "$(dirname "$0")/injure.py" "$@"; }
# total KEY: the sum over all nodes of what `corefs scrub` says now.
total() { "$COREFS" scrub --json | python3 -c "import json, sys; print(sum(node['$1'] for node in json.load(sys.stdin)['nodes']))"; }
# all_of KEY: the same of the last `corefs scrub --now`.
all_of() { python3 -c "import json; print(sum(node['$1'] for node in json.load(open('$work/scrub.json'))['nodes']))"; }
scrub_now() { "$COREFS" scrub --now --json >"$work/scrub.json"; }
read_all() {
  local round
  for round in 1 2 3 4 5 6; do
    "$COREFS" fs get /one - | cmp - "$work/one" || die "/one is altered, in round $round"
    "$COREFS" fs get /two - | cmp - "$work/two" || die "/two is altered, in round $round"
  done
}

# Nothing in the background, so that this test knows who finds what.
up --cores 1 --replicas 3 --capacity 1GiB --scrub-rate 0
head -c 20000000 /dev/urandom >"$work/one"
head -c 15000000 /dev/urandom >"$work/two"
"$COREFS" fs put "$work/one" /one
"$COREFS" fs put "$work/two" /two
kinds="flip zero torn astray flip flip zero torn astray flip"
# shellcheck disable=SC2086
injure "$(disk 2)" "$work/one" 3 $kinds
# shellcheck disable=SC2086
injure "$(disk 3)" "$work/two" 5 $kinds
# Until every copy of that was asked; of the other file nobody asks.
for _ in 1 2 3 4 5 6; do "$COREFS" fs get /one - | cmp - "$work/one" || die "/one is altered"; done
say "read while a copy was damaged: right bytes, no error; repaired by then: $(total repaired_blocks) of 10"
scrub_now || { cat "$work/scrub.json"; die "damage is left"; }
[ "$(total damaged_blocks)/$(total repaired_blocks)" = 20/20 ] || { cat "$work/scrub.json"; die "not all 20 were found and repaired"; }
[ "$(all_of chunks)" -ge 200 ] && [ "$(all_of bytes)" -ge 105000000 ] || { cat "$work/scrub.json"; die "not everything was verified"; }
scrub_now || die "the second scrub fails"
[ "$(all_of damaged_blocks)" = 0 ] || { cat "$work/scrub.json"; die "the second scrub finds damage"; }
[ "$(injure "$(disk 2)" "$work/one")" = 4882 ] || die "the copy of /one isn't whole on the disk"
read_all
say "a running node: all 20 found and repaired; a second scrub finds nothing"

down
# Every node lacks something, and two of them even something of the same file; no block is lost everywhere.
# shellcheck disable=SC2086
injure "$(disk 1)" "$work/one" 7 $kinds
# shellcheck disable=SC2086
injure "$(disk 2)" "$work/two" 9 $kinds
# shellcheck disable=SC2086
injure "$(disk 3)" "$work/two" 10 $kinds
up --scrub-rate 0
read_all
if can_mount; then
  mkdir "$work/mnt"
  "$COREFS" mount "$work/mnt" &
  for _ in $(seq 100); do mountpoint -q "$work/mnt" && break; sleep 0.1; done
  # Each write keeps a part of a block, damaged or not.
  python3 - "$work/mnt/two" "$work/two" <<'PY'
import os, sys
for path in sys.argv[1:]:
    file = os.open(path, os.O_RDWR)
    for block in range(0, 3600, 3):
        os.pwrite(file, b"changed", block * 4096 + 1000)
    os.fsync(file)
PY
  "$COREFS" umount "$work/mnt"
  say "1200 small writes into that: no error"
fi
read_all
scrub_now || { cat "$work/scrub.json"; die "damage is left"; }
scrub_now && [ "$(all_of damaged_blocks)" = 0 ] || { cat "$work/scrub.json"; die "the second scrub finds damage"; }
read_all
"$COREFS" scrub
down
fsck || die "fsck finds damage after the scrub"
say "three nodes that were stopped: each healed from the others, and fsck finds nothing"

rm -rf "$work/cluster"
up --cores 1 --replicas 1 --capacity 1GiB
"$COREFS" fs put "$work/one" /one
injure "$(disk 1)" "$work/one" 3 flip zero
if "$COREFS" fs get /one "$work/back" 2>"$work/err"; then die "damage was not seen"; fi
grep -q Corrupt "$work/err" || { cat "$work/err"; die "not a Corrupt error"; }
code=0
"$COREFS" scrub --now >"$work/scrub.out" || code=$?
[ $code = 1 ] && [ "$(grep -c 'LOST 1 blocks of chunk' "$work/scrub.out")" = 2 ] || { cat "$work/scrub.out"; die "exit code $code"; }
[ "$(total unrepaired_blocks)" = 2 ] || die "not two blocks are unrepaired"
for _ in $(seq 100); do "$COREFS" status >"$work/status.out" || { grep -q '2 stored blocks of node-1 are damaged' "$work/status.out" && break; }; sleep 0.1; done
grep -q '2 stored blocks of node-1 are damaged' "$work/status.out" || { cat "$work/status.out"; die "status says nothing"; }
"$COREFS" fs rm /one
for _ in $(seq 100); do "$COREFS" scrub --now >"$work/scrub.out" && break; sleep 0.2; done
"$COREFS" scrub || { cat "$work/scrub.out"; die "what was removed is damaged for ever"; }
down
say "one copy: what is damaged is named, exit code 1, until its file is removed"
