#!/usr/bin/env bash
# What a mount believes of names and attributes without asking, and how it hears that another one changed them: also when metadata servers end,
# stand still or can't tell everything.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt" "$work/two"
up --capacity 1GiB --mount "$work/mnt"
"$COREFS" mount "$work/two" >"$work/two.out" 2>"$work/two.log" & two_pid=$!
end_second() {
  local code=$?
  set +e
  [ -z "$two_pid" ] || kill -TERM $two_pid 2>/dev/null
  umount -l "$work/two" 2>/dev/null
  (exit $code)
  cleanup
}
trap end_second EXIT
for _ in $(seq 300); do ! grep -q '^ready ' "$work/two.out" || break; sleep 0.1; done
grep -q '^ready ' "$work/two.out" || { cat "$work/two.log"; die "the second mount wasn't ready after 30 s"; }
timeout 300 python3 "$(dirname "$0")/believe.py" "$COREFS" "$work/mnt" "$work/two" "$up_pid"
kill -TERM $two_pid
wait $two_pid || die "the second mount didn't end cleanly"
# The check can fail: this one hears of no changes, and asks.
"$COREFS" mount --believe 900ms "$work/two" >"$work/two.out" 2>"$work/two.log" & two_pid=$!
for _ in $(seq 300); do ! grep -q '^ready ' "$work/two.out" || break; sleep 0.1; done
grep -q '^ready ' "$work/two.out" || { cat "$work/two.log"; die "the mount that hears nothing wasn't ready after 30 s"; }
! timeout 300 python3 "$(dirname "$0")/believe.py" "$COREFS" "$work/mnt" "$work/two" "$up_pid" again >"$work/deaf.log" 2>&1 ||
  die "a mount that hears of no changes passed: the check sees nothing"
grep -q 'looked at again after two seconds: [0-9]\{3,\} questions' "$work/deaf.log" || { cat "$work/deaf.log"; die "a mount that hears of no changes failed otherwise"; }
say "a mount that hears of no changes: $(tail -n 1 "$work/deaf.log")"
kill -TERM $two_pid
wait $two_pid || die "the second mount didn't end cleanly"
two_pid=
down
fsck
