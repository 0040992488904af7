#!/usr/bin/env bash
# Waiting for moves ends when what it waits for can't come: it says who is away. What is emptied is waited for alone.
. "$(dirname "$0")/lib.sh"
up --cores 1 --nodes 3 --replicas 1 --capacity 1GiB --targets 4
head -c 8000000 /dev/urandom >"$work/data"
pid=$(pgrep -P "$up_pid" -f 'corefs storage .*node-3( |$)')
"$COREFS" fs put "$work/data" /data
kill -STOP "$pid"
for _ in $(seq 100); do
  "$COREFS" status >"$work/status" || true
  ! grep -q 'node-3 .*is dead' "$work/status" || break
  sleep 0.1
done
"$COREFS" moves balance >/dev/null
timeout 100 "$COREFS" node drain 2 --wait | tee "$work/drained"
grep -q '^node-2 is empty$' "$work/drained" || die "it isn't said that the node is empty"
code=0
timeout -k 10 2 "$COREFS" moves wait 2>/dev/null || code=$?
[ $code = 124 ] || die "exit code $code of a command that waits and was told to stop"
code=0
timeout 100 "$COREFS" moves wait 2>"$work/refused" || code=$?
[ $code = 1 ] || { cat "$work/refused"; die "exit code $code of what can't end"; }
grep -q 'NotReady.*node-3 is dead' "$work/refused" || die "not said why: $(cat "$work/refused")"
say "$(cat "$work/refused")"
kill -CONT "$pid"
timeout 100 "$COREFS" moves wait
"$COREFS" fs get /data - | cmp - "$work/data" || die "other bytes came back"
down
