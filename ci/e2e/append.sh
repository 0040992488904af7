#!/usr/bin/env bash
# O_APPEND from two mounts: no record is lost, torn or out of order, whatever else happens to the file or to a mount.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt"
up --capacity 2GiB --mount "$work/mnt"
second_mount

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
second_mount
cmp "$work/mnt/killed" "$work/two/killed"
second_down
down
fsck
