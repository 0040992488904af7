#!/usr/bin/env bash
# What a mount believes of names and attributes without asking, and how it hears that another one changed them: also when metadata servers end,
# stand still or can't tell everything.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt"
up --capacity 1GiB --mount "$work/mnt"
second_mount
timeout 300 python3 "$(dirname "$0")/believe.py" "$COREFS" "$work/mnt" "$work/two" "$up_pid"
second_down
# The check can fail: this one hears of no changes, and asks.
second_mount --believe 900ms
! timeout 300 python3 "$(dirname "$0")/believe.py" "$COREFS" "$work/mnt" "$work/two" "$up_pid" again >"$work/deaf.log" 2>&1 ||
  die "a mount that hears of no changes passed: the check sees nothing"
grep -q 'looked at again after two seconds: [0-9]\{3,\} questions' "$work/deaf.log" || { cat "$work/deaf.log"; die "a mount that hears of no changes failed otherwise"; }
say "a mount that hears of no changes: $(tail -n 1 "$work/deaf.log")"
second_down
down
fsck
