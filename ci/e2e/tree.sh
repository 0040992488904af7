#!/usr/bin/env bash
# A real tree copied in through the mount reads back equal: contents, modes, times, links; again after kill -9 of every
# process and a restart; and fsck is clean. COREFS_TREE names the tree (default: a part of the Rust toolchain).
. "$(dirname "$0")/lib.sh"
need_mount
tree=${COREFS_TREE:-}
if [ -z "$tree" ]; then
  tree=$(rustc --print sysroot 2>/dev/null)/lib/rustlib/etc
  [ -d "$tree" ] || tree=/usr/share/perl
  [ -d "$tree" ] || tree=/etc
fi
# Beside the real files: what a tree may also contain.
extra=$work/extra
mkdir -p "$extra/empty" "$extra/deep/er/and/deeper"
ln -s ../nowhere "$extra/dangling"; ln -s deep "$extra/link"
printf 'one' >"$extra/first"; ln "$extra/first" "$extra/deep/second"
printf '' >"$extra/nothing"; chmod 4711 "$extra/first"; chmod 0 "$extra/nothing"
mkfifo "$extra/fifo"; touch -d '1970-01-01 00:00:00.123456789 UTC' "$extra/deep/er"
dd if=/dev/urandom of="$extra/sparse" bs=4096 count=3 seek=1000 status=none
dd if=/dev/urandom of="$extra/odd" bs=1 count=70001 status=none
printf 'x' >"$extra/$(printf 'n%.0s' $(seq 255))"

mkdir "$work/mnt"
up --capacity "${COREFS_TREE_CAPACITY:-2GiB}" --mount "$work/mnt"

same() { # what
  diff -r --no-dereference "$tree" "$work/mnt/tree" >"$work/diff" || { head "$work/diff"; die "$1: contents differ"; }
  diff -r --no-dereference --exclude=fifo "$extra" "$work/mnt/extra" >"$work/diff" || { head "$work/diff"; die "$1: contents differ"; }
  for part in tree extra; do
    local from=$tree; [ $part = extra ] && from=$extra
    # Kind, mode, owner, links, size, time to the nanosecond, target. Directory sizes are each file system's own affair.
    local format='%y %m %U %G %n %s %T@ %l %P\n' dirs='%y %m %U %G %T@ %P\n'
    (cd "$from" && find . ! -type d -printf "$format" | sort) >"$work/want"
    (cd "$work/mnt/$part" && find . ! -type d -printf "$format" | sort) >"$work/have"
    (cd "$from" && find . -mindepth 1 -type d -printf "$dirs" | sort) >>"$work/want"
    (cd "$work/mnt/$part" && find . -mindepth 1 -type d -printf "$dirs" | sort) >>"$work/have"
    diff "$work/want" "$work/have" >"$work/diff" || { head -n 20 "$work/diff"; die "$1: attributes of $part differ"; }
  done
  say "$1: equal, $(find "$work/mnt/tree" "$work/mnt/extra" | wc -l) entries, $(du -sm --apparent-size "$tree" | cut -f 1) MiB"
}

start=$SECONDS
cp -a "$tree" "$work/mnt/tree"
cp -a "$extra" "$work/mnt/extra"
say "copied in $((SECONDS - start)) s"
same "after the copy"
sync -f "$work/mnt"

kill_all
up --mount "$work/mnt"
same "after kill -9 of every process and a restart"

[ "$(stat -c %i "$work/mnt/extra/first")" = "$(stat -c %i "$work/mnt/extra/deep/second")" ] || die "the hard link is two files"
rm -rf "$work/mnt/extra"
# The whole tree in one step; its names go in the background, also when everything is killed meanwhile.
begin=$(date +%s%N)
"$COREFS" fs rm -r /tree
say "a tree gone in $((($(date +%s%N) - begin) / 1000000)) ms, with the start of the command"
! "$COREFS" fs stat /tree 2>/dev/null || die "the tree is still there"
kill_all
fsck
up --mount "$work/mnt"
used() { "$COREFS" fs df --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["files"])'; }
for _ in $(seq 300); do [ "$(used)" -gt 2 ] || break; sleep 0.2; done
[ "$(used)" = 2 ] || die "$(used) inodes are left: the root and the trash are two"
[ -z "$(ls -A "$work/mnt")" ] || die "something is left after rm -rf"
down
fsck
