#!/usr/bin/env bash
# The POSIX conformance suite pjdfstest, as root with all features that Linux has: every test that passes on local ext4
# passes on a mount, and what is skipped is what we know of.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool cargo
for user in nobody daemon; do id "$user" >/dev/null 2>&1 || skip "the suite needs the user $user"; done
root=$(cd "$(dirname "$0")/../.." && pwd)
version=0.2.2
suite=$root/.cache/pjdfstest-$version/bin/pjdfstest
if [ ! -x "$suite" ]; then
  # Unoptimized: it waits for the file system anyway, and builds in half the time.
  cargo install --quiet --debug --locked --root "$root/.cache/pjdfstest-$version" "pjdfstest@$version" >"$work/install.log" 2>&1 ||
    { cat "$work/install.log"; die "pjdfstest $version can't be installed"; }
fi
# Other users walk down to the file systems.
chmod 755 "$work"
runuser -u nobody -- test -x "$work" || skip "other users cannot reach $work: choose another TMPDIR"

# Tests that make the file system read-only find it busy after others, so they are run by themselves.
sed 's/^allow_remount = true/allow_remount = false/' "$root/ci/pjdfstest.toml" >"$work/writable.toml"

# suite_on NAME DIR: runs it; $work/NAME.passed and $work/NAME.skipped list the tests.
suite_on() {
  local from=$SECONDS
  "$suite" -c "$work/writable.toml" -s "$work/other" -p "$2" >"$work/$1.log" 2>&1 || true
  "$suite" -c "$root/ci/pjdfstest.toml" -s "$work/other" -p "$2" erofs >"$work/$1.erofs.log" 2>&1 || true
  for log in "$work/$1.log" "$work/$1.erofs.log"; do
    grep -q '^Summary: ' "$log" || { tail -n 20 "$log"; die "the suite ended before its end on $1"; }
  done
  cat "$work/$1.log" "$work/$1.erofs.log" | awk '$2 == "ok" { print $1 }' | sort -u >"$work/$1.passed"
  awk '$2 == "skipped" { name = $1; getline; sub(/^[ \t]+/, ""); print name ": " $0 }' "$work/$1.log" |
    grep -vE '^[a-z:]*erofs[a-z_:]*: Remounts ' | sort >"$work/$1.skipped" || true
  say "$1: $(sed -n 's/^Summary: //p' "$work/$1.log"); read-only: $(sed -n 's/^Summary: //p' "$work/$1.erofs.log"); in $((SECONDS - from)) s"
}

mkdir "$work/other" "$work/ext4" "$work/mnt"
unmount_local() {
  local code=$?
  set +e
  umount "$work/other" "$work/ext4" 2>/dev/null
  (exit $code)
  cleanup
}
trap unmount_local EXIT
mount -t tmpfs -o size=16m tmpfs "$work/other" || skip "a second file system can't be mounted here"
if truncate -s 256M "$work/image" && mkfs.ext4 -q -F "$work/image" 2>/dev/null && mount -o loop "$work/image" "$work/ext4" 2>/dev/null; then
  suite_on ext4 "$work/ext4"
else
  skip "no ext4 to compare with: it takes mkfs.ext4 and a loop device"
fi
umount "$work/ext4"

up --capacity 2GiB --mount "$work/mnt"
suite_on mount "$work/mnt"
# pathconf(3) knows LINK_MAX only of file systems that glibc names; meta's own tests reach the bound.
echo 'link::link_count_max: Cannot get value for LINK_MAX: filesystem limit is unknown' >"$work/expected"
lost=$(comm -23 "$work/ext4.passed" "$work/mount.passed" | grep -vxF "$(sed 's/: .*//' "$work/expected")" || true)
for name in $lost; do grep -h -A 3 "^$name " "$work/mount.log" "$work/mount.erofs.log"; done
[ -z "$lost" ] || die "$(echo "$lost" | wc -l) tests pass on ext4 and not on a mount"
comm -13 "$work/ext4.skipped" "$work/mount.skipped" >"$work/more"
diff "$work/expected" "$work/more" || die "other tests are skipped than we know of"
say "skipped on a mount, passing on ext4: $(cat "$work/expected")"
while read -r line; do say "skipped on both: $line"; done < <(comm -12 "$work/ext4.skipped" "$work/mount.skipped")
down
fsck
failing=$(grep -h " FAILED$" "$work"/ext4*.log | awk '{ print $1 }' | sort -u | tr "\n" " " || true)
[ -z "$failing" ] || say "failing on ext4 too, so not asked for: $failing"
say "$(comm -12 "$work/ext4.passed" "$work/mount.passed" | wc -l) of $(wc -l <"$work/ext4.passed") tests that pass on ext4 pass on a mount"
