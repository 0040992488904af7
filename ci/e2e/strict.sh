#!/usr/bin/env bash
# Two mounts with `--consistency strict`: what one does, the other shows at once. And sqlite on both, which relies on that. And one with
# `--believe`: what the other one does to names and attributes it shows late, but bytes when the file is opened, and its own changes at once.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt" "$work/two"
up --capacity 2GiB
pids=()
# mount_at DIRECTORY ARGS...
mount_at() {
  local at=$1; shift
  "$COREFS" mount "$@" "$at" >"$at.out" 2>"$at.log" & pids+=($!)
  for _ in $(seq 300); do
    ! grep -q '^ready ' "$at.out" || return 0
    kill -0 "${pids[-1]}" 2>/dev/null || { cat "$at.log"; die "the mount at $at ended"; }
    sleep 0.1
  done
  die "the mount at $at wasn't ready after 30 s"
}
end_mounts() {
  local code=$? pid
  set +e
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null; done
  umount -l "$work/two" 2>/dev/null
  (exit $code)
  cleanup
}
trap end_mounts EXIT
unmount_both() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid"; wait "$pid" || die "a mount didn't end cleanly"; done
  pids=()
}
watch() { timeout 300 python3 "$(dirname "$0")/strict.py" "$@"; }

# The check can fail: mounts as they are by default believe for a second what they have heard.
mount_at "$work/mnt"; mount_at "$work/two"
! watch "$work/mnt" "$work/two" 20 >"$work/default.log" 2>&1 || die "mounts without --consistency strict passed: the check sees nothing"
say "mounts as they are by default: $(tail -n 1 "$work/default.log")"
unmount_both
rm -f "$work"/*.out
mount_at "$work/mnt" --consistency strict; mount_at "$work/two" --consistency strict
watch "$work/mnt" "$work/two" 100

# A database that relies on locks and on reading what was written under them, with either kind of journal.
if command -v sqlite3 >/dev/null; then
  for journal in delete truncate persist; do
    database=$journal.db
    sqlite3 "$work/mnt/$database" "PRAGMA journal_mode=$journal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES(0);" >/dev/null
    writers=()
    for side in mnt two; do
      for _ in $(seq 25); do echo "BEGIN IMMEDIATE; UPDATE t SET n = n + 1; COMMIT;"; done |
        timeout 200 sqlite3 -cmd ".timeout 60000" -bail "$work/$side/$database" & writers+=($!)
    done
    for pid in "${writers[@]}"; do wait "$pid" || die "sqlite failed with journal_mode=$journal"; done
    [ "$(sqlite3 "$work/two/$database" 'SELECT n FROM t; PRAGMA integrity_check;' | xargs)" = "50 ok" ] ||
      die "sqlite on two mounts, journal_mode=$journal: $(sqlite3 "$work/two/$database" 'SELECT n FROM t; PRAGMA integrity_check;' | head -3 | xargs)"
  done
  say "sqlite on two mounts at once: 50 increments with each of three kinds of journal, none lost"
else
  say "sqlite: skipped, because sqlite3 is not installed"
fi

unmount_both
rm -f "$work"/*.out
mount_at "$work/mnt"; mount_at "$work/two" --believe 1h
mkdir "$work/mnt/data"
for name in read changed own gone; do echo first >"$work/mnt/data/$name"; done
modes() { stat -c %a "$work/$1/data/changed" "$work/$1/data/own" | xargs; }
[ "$(modes two)" = "644 644" ] || die "modes at first: $(modes two)"
cat "$work"/two/data/* >/dev/null
[ ! -e "$work/two/data/later" ] || die "a file that nobody made"
chmod 600 "$work/mnt/data/changed"
echo second >>"$work/mnt/data/read"
echo there >"$work/mnt/data/later"
rm "$work/mnt/data/gone"
chmod 640 "$work/two/data/own"
[ "$(modes two)" = "644 640" ] || die "a mount's own change must show there at once: $(modes two)"
sleep 2.5
[ "$(modes mnt)" = "600 640" ] || die "a mount as it is by default believes for a second: $(modes mnt)"
[ "$(modes two)" = "644 640" ] || die "--believe 1h asked again after 2.5 s: $(modes two)"
[ "$(cat "$work/two/data/read")" = $'first\nsecond' ] || die "who opens a file must see its bytes: $(cat "$work/two/data/read")"
[ "$(stat -c %s "$work/two/data/read")" = 13 ] || die "and its length then: $(stat -c %s "$work/two/data/read")"
[ "$(cat "$work/two/data/later")" = there ] || die "a name that wasn't there must be looked for again after a second"
code=0; cat "$work/two/data/gone" >/dev/null 2>"$work/wrong" || code=$?
[ $code = 1 ] && grep -q 'No such file' "$work/wrong" || die "a file removed elsewhere: exit code $code, $(cat "$work/wrong")"
python3 - "$work/two/data" <<'EOF' || die "extended attributes that the mount itself has set must be there"
import os, sys, time
first, second = (os.path.join(sys.argv[1], name) for name in ("own", "second"))
os.stat(first)
os.setxattr(first, "user.a", b"1")
with open(second, "w") as file:
    os.setxattr(file.fileno(), "user.a", b"1")
    os.fchmod(file.fileno(), 0o600)
    file.write("text")
# Longer than answers that were on their way are distrusted.
time.sleep(6)
for path in first, second:
    assert os.getxattr(path, "user.a") == b"1" and os.listxattr(path) == ["user.a"], path
assert os.stat(second).st_size == 4 and os.stat(second).st_mode & 0o777 == 0o600
EOF
say "--believe 1h: modes as heard, bytes as written, own changes at once, new names within a second"
unmount_both
rm -f "$work"/*.out
code=0; "$COREFS" mount --believe 1h --consistency strict "$work/two" >/dev/null 2>"$work/wrong" || code=$?
[ $code != 0 ] && grep -q 'a strict mount believes nothing' "$work/wrong" || die "--believe and strict: exit code $code, $(cat "$work/wrong")"
code=0; "$COREFS" mount --believe soon "$work/two" >/dev/null 2>"$work/wrong" || code=$?
[ $code != 0 ] && grep -q 'such as 30s, 10m or 12h' "$work/wrong" || die "a wrong --believe: exit code $code, $(cat "$work/wrong")"

code=0; "$COREFS" mount --consistency sometimes "$work/two" >/dev/null 2>"$work/wrong" || code=$?
[ $code = 2 ] && grep -q 'close-to-open, strict' "$work/wrong" || die "a wrong --consistency: exit code $code, $(cat "$work/wrong")"
down
fsck
