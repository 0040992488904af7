#!/usr/bin/env bash
# Files and directories that one mount removes or replaces while another one knows them, or has them open.
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
timeout 300 python3 "$(dirname "$0")/stale.py" "$work/mnt" "$work/two"
kill -TERM $two_pid
wait $two_pid || die "the second mount didn't end cleanly"
two_pid=
down
fsck
