#!/usr/bin/env bash
# O_APPEND from two mounts: no record is lost, torn or out of order, whatever else happens to the file or to a mount.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt" "$work/two"
up --capacity 2GiB --mount "$work/mnt"
two_pid=
mount_two() {
  "$COREFS" mount "$work/two" >"$work/two.out" 2>"$work/two.log" &
  two_pid=$!
  for _ in $(seq 300); do
    ! grep -q '^ready ' "$work/two.out" || return 0
    kill -0 $two_pid 2>/dev/null || { cat "$work/two.log"; die "the second mount ended"; }
    sleep 0.1
  done
  die "the second mount wasn't ready after 30 s"
}
end_second() {
  local code=$?
  set +e
  [ -z "$two_pid" ] || kill -TERM "$two_pid" 2>/dev/null
  umount -l "$work/two" 2>/dev/null
  (exit $code)
  cleanup
}
trap end_second EXIT
mount_two

# append COMMAND ARGS...
append() { timeout 120 python3 "$(dirname "$0")/append.py" "$@"; }

append race "$work/mnt" "$work/two"
append rotate "$work/mnt" "$work/two"

# Lines of a shell, which opens, writes and closes for each.
for number in $(seq 100); do
  echo "one $number" >>"$work/mnt/lines" & one=$!
  echo "two $number" >>"$work/two/lines"
  wait $one
done
[ "$(sort -u "$work/mnt/lines" | wc -l)" = 200 ] && [ "$(wc -l <"$work/two/lines")" = 200 ] || die "lines of two shells are lost or torn"
say "200 lines of two shells, each there once"

# The second mount dies in the middle of its appends: what it had synced is there, and others go on.
append write "$work/two/killed" two 100000 sync >"$work/acked" 2>/dev/null & writer=$!
append write "$work/mnt/killed" one 400 sync >"$work/acked.one" & other=$!
for _ in $(seq 200); do [ "$(wc -l <"$work/acked")" -lt 100 ] || break; sleep 0.05; done
kill -KILL $two_pid
wait $two_pid 2>/dev/null || true # killed
umount -l "$work/two"
wait $writer || true # its mount is gone; what it had synced is checked below
wait $other || die "the mount that lived failed to append"
append check "$work/mnt/killed" "$work/acked" "$work/acked.one"
mount_two
cmp "$work/mnt/killed" "$work/two/killed"
kill -TERM $two_pid
wait $two_pid || die "the second mount didn't end cleanly"
two_pid=
down
fsck
