#!/usr/bin/env bash
# Commands that were cut off half way are given again, and go on: one node comes, one goes. A disk that can't take another one's place is
# refused before anything is made.
. "$(dirname "$0")/lib.sh"
up --cores 1 --nodes 1 --replicas 1 --capacity 1GiB --targets 4
head -c 200000000 /dev/urandom >"$work/data"
"$COREFS" fs put "$work/data" /data
sleep 1.5 # nodes say with their next heartbeats what they hold
dir=$work/cluster/node-1
files=$(ls "$dir")
"$COREFS" disk replace 0 --dir "$dir" --capacity 160MiB 2>"$work/refused" && die "a disk without room was taken in the place of another one"
grep -q 'have no other place' "$work/refused" || die "not said why: $(cat "$work/refused")"
[ "$(ls "$dir")" = "$files" ] || die "a refused disk was made: $(ls "$dir")"
"$COREFS" moves | grep -q '^nothing moves$' || die "something moves: $("$COREFS" moves)"

# cut_off TEXT COMMAND...: kills a command when that is in cluster.toml.
cut_off() {
  local text=$1; shift
  "$@" >/dev/null 2>&1 &
  local cut=$!
  for _ in $(seq 500); do
    ! grep -q "$text" "$work/cluster/cluster.toml" || break
    sleep 0.01
  done
  kill -KILL $cut 2>/dev/null || true
  wait $cut 2>/dev/null || true
  grep -q "$text" "$work/cluster/cluster.toml" || die "nothing was written down"
}

kill -STOP "$up_pid" # so that the node doesn't come meanwhile
cut_off '^added = 1' "$COREFS" node add --dir "$work/cluster"
kill -CONT "$up_pid"
"$COREFS" node add --dir "$work/cluster" --wait | tail -n 1
grep -q '^added = 1$' "$work/cluster/cluster.toml" && [ ! -e "$work/cluster/node-3" ] || die "two nodes came"
"$COREFS" node ls
"$COREFS" node drain 2 --wait | tail -n 1
kill -STOP "$up_pid" # so that the node doesn't go meanwhile
cut_off '^removed' "$COREFS" node remove 2 --dir "$work/cluster"
kill -CONT "$up_pid"
"$COREFS" node remove 2 --dir "$work/cluster"
[ "$("$COREFS" node ls --json | grep -c '"node": 2')" = 0 ] || die "a removed node is still listed"
"$COREFS" fs get /data - | cmp - "$work/data" || die "other bytes came back"
down
