#!/usr/bin/env bash
# Disks of a node come, are emptied and are replaced while it serves; one that is lost for good is rebuilt from the other replicas, and
# takes only its own targets out meanwhile. Wrong requests are refused and leave everything as it was.
. "$(dirname "$0")/lib.sh"
need_tool python3
up --cores 2 --replicas 2 --capacity 1GiB --targets 16
head -c 40000000 /dev/urandom >"$work/data"
for copy in 1 2; do "$COREFS" fs put "$work/data" "/data$copy"; done
dir=$work/cluster/node-1

# disks EXPECTED...: state and number of targets of each disk of node-1.
disks() {
  "$COREFS" disk ls --dir "$dir" --json >"$work/disks.json"
  python3 - "$work/disks.json" "$@" <<'PY'
import json, sys
found = ["{state}:{targets}".format(**disk) for disk in json.load(open(sys.argv[1]))["disks"]]
assert found == sys.argv[2:], f"{found}, not {sys.argv[2:]}"
print("disks of node-1:", ", ".join(found))
PY
}

same() { for copy in 1 2; do "$COREFS" fs get "/data$copy" - | cmp - "$work/data" || die "other bytes came back"; done; }
well() {
  for _ in $(seq 100); do "$COREFS" status >"$work/status" && return 0; sleep 0.2; done
  cat "$work/status"; die "all isn't well after 20 s"
}

disks "in use:16"
files=$(ls "$dir")
"$COREFS" disk add --dir "$dir" --dry-run | grep -q '8 targets would move' || die "what a disk more would get isn't said"
"$COREFS" disk replace 0 --dir "$dir" --disk "$work/third" --dry-run | grep -q '16 targets would move' || die "what goes to another disk isn't said"
[ "$(ls "$dir")" = "$files" ] && [ ! -e "$work/third" ] || die "a plan has made something"
disks "in use:16"
"$COREFS" disk add --dir "$dir" --wait | tail -n 1
disks "in use:8" "in use:8"
same
"$COREFS" disk replace 0 --dir "$dir" --disk "$work/third" --wait | tail -n 1
disks "leaving:0" "in use:8" "in use:8"
same
well

"$COREFS" disk add --dir "$dir" --disk "$work/data" 2>"$work/refused" && die "a file of ours was taken for a disk"
grep -q 'is there already' "$work/refused" || die "not said why: $(cat "$work/refused")"
"$COREFS" disk add --dir "$dir" --capacity 1MiB 2>"$work/refused" && die "a disk without room was taken"
grep -q 'give it at least' "$work/refused" || die "not said why: $(cat "$work/refused")"
if [ "$(id -u)" = 0 ] && loop=$(truncate -s 1G "$work/image" && losetup -f --show "$work/image" 2>/dev/null); then
  free_device() {
    local code=$?
    set +e
    umount "$work/mounted" 2>/dev/null
    losetup -d "$loop" 2>/dev/null
    (exit $code)
    cleanup
  }
  trap free_device EXIT
  mkfs.ext4 -q "$loop"
  "$COREFS" disk add --dir "$dir" --disk "$loop" 2>"$work/refused" && die "a device with a file system was taken"
  grep -q -- '--overwrite' "$work/refused" || die "not said why: $(cat "$work/refused")"
  fsck.ext4 -nf "$loop" >/dev/null 2>&1 || die "a refused device was changed"
  mkdir "$work/mounted" && mount "$loop" "$work/mounted"
  "$COREFS" disk add --dir "$dir" --disk "$loop" --overwrite 2>"$work/refused" && die "a mounted device was taken"
  grep -q 'is mounted' "$work/refused" || die "not said why: $(cat "$work/refused")"
  umount "$work/mounted"
  losetup -d "$loop"
  trap cleanup EXIT
else
  say "devices skipped, because there is no loop device to be had"
fi
"$COREFS" disk drain 7 --dir "$dir" 2>"$work/refused" && die "a disk that isn't there was emptied"
"$COREFS" disk ls --dir "$work" 2>"$work/refused" && die "what is no node has disks"
disks "leaving:0" "in use:8" "in use:8"
cmp "$work/data" <(head -c 40000000 "$work/data") || die "a refused disk was changed"

# Somebody thinks better of it, twice.
"$COREFS" disk use 0 --dir "$dir" --wait | tail -n 1
"$COREFS" disk ls --dir "$dir" --json | python3 -c '
import json, sys
found = sorted((disk["state"], disk["targets"]) for disk in json.load(sys.stdin)["disks"])
assert found == [("in use", 5), ("in use", 5), ("in use", 6)], found' || die "a disk that was emptied isn't in use again"
"$COREFS" disk drain 0 --dir "$dir" --wait | tail -n 1
disks "leaving:0" "in use:8" "in use:8"

# The disk that was emptied is taken out, and one that is in use is lost while its node is away.
pid=$(pgrep -P "$up_pid" -f 'corefs storage .*node-1( |$)')
rm "$dir/disk-0" "$work/third"
kill -KILL "$pid"
for _ in $(seq 100); do
  "$COREFS" status >"$work/status" || true
  ! grep -q 'slices (slice-16 and others) of node-1 are dead' "$work/status" || break
  sleep 0.2
done
grep -q 'disk replace' "$work/status" || { cat "$work/status"; die "a lost disk isn't reported with what to type"; }
same
for copy in 1 2; do "$COREFS" fs put "$work/data" "/again$copy"; done
disks "dead:0" "in use:8" "dead:8"
"$COREFS" disk replace 2 --dir "$dir" --wait | tail -n 1
disks "dead:0" "in use:8" "dead:0" "in use:8"
well
same
# Somebody puts a blank disk in the place of one, under the same name: the node comes back with the others.
blank=$dir/disk-3
pid=$(pgrep -P "$up_pid" -f 'corefs storage .*node-1( |$)')
kill -KILL "$pid"
bytes=$(stat -c %s "$blank")
truncate -s 0 "$blank" && truncate -s "$bytes" "$blank"
for _ in $(seq 100); do
  "$COREFS" status >"$work/status" || true
  ! grep -q 'of node-1 are dead' "$work/status" || break
  sleep 0.2
done
same
disks "dead:0" "in use:8" "dead:0" "dead:8"
"$COREFS" disk replace 3 --dir "$dir" --wait | tail -n 1
disks "dead:0" "in use:8" "dead:0" "dead:0" "in use:8"
well
same
# The other node dies: what was rebuilt is complete.
kill -KILL "$(pgrep -P "$up_pid" -f 'corefs storage .*node-2( |$)')"
same
down
"$COREFS" fsck --dir "$work/cluster" >"$work/fsck" && die "fsck doesn't see that disks are missing"
[ "$(grep -c "DAMAGE node-1: disk . can't be opened" "$work/fsck")" = 2 ] || { cat "$work/fsck"; die "fsck finds something else"; }
say "a lost disk was rebuilt from the other replica"

# A disk may also be added while its node is stopped.
"$COREFS" disk add --dir "$dir" | tee "$work/offline"
grep -q 'corefs node add 1' "$work/offline" || die "it doesn't say how to go on"
up
"$COREFS" status >"$work/status" || true
grep -q 'hold nothing yet: of node 1' "$work/status" || { cat "$work/status"; die "a disk that isn't used isn't mentioned"; }
"$COREFS" node add 1 --wait | tail -n 1
"$COREFS" disk ls --dir "$dir" --json | python3 -c '
import json, sys
found = sorted(disk["targets"] for disk in json.load(sys.stdin)["disks"] if disk["state"] == "in use")
assert found == [5, 5, 6], found' || die "the disks of a node have uneven shares"
same
down
