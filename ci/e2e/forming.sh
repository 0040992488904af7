#!/usr/bin/env bash
# Before the chains are made, when fewer storage nodes have come than were wanted, `corefs status` says so, and who is there; what needs
# chains doesn't.
. "$(dirname "$0")/lib.sh"
[ -z "${COREFS_E2E_KV:-}" ] || skip "it starts a store of its own"
need_tool python3
export COREFS_MANAGER=127.0.0.1:$((10000 + $$ % 20000))
roles=()
end_roles() {
  local code=$?
  set +e
  kill -TERM "${roles[@]}" 2>/dev/null
  for pid in "${roles[@]}"; do wait "$pid" 2>/dev/null; done
  (exit $code)
  cleanup
}
trap end_roles EXIT

# role NAME FLAGS...: starts a role, and waits until it is ready.
role() {
  local name=$1; shift
  "$COREFS" "$@" >"$work/$name.out" 2>"$work/$name.log" &
  roles+=($!)
  for _ in $(seq 300); do
    ! grep -q '^ready ' "$work/$name.out" || return 0
    kill -0 "${roles[-1]}" 2>/dev/null || { cat "$work/$name.log"; die "$name ended before it was ready"; }
    sleep 0.1
  done
  die "$name wasn't ready after 30 s"
}

# check_status TEXT: waits until the status has that in it, and is one that isn't well.
check_status() {
  for _ in $(seq 100); do
    code=0
    timeout 20 "$COREFS" status >"$work/status" 2>&1 || code=$?
    ! grep -q "$1" "$work/status" || break
    sleep 0.1
  done
  grep -q "$1" "$work/status" || { cat "$work/status"; die "it isn't said: $1"; }
  [ "$code" = 3 ] || { cat "$work/status"; die "exit code $code"; }
}

role kv kv --dir "$work/kv" --listen "unix:$work/kv.sock"
role mgmtd mgmtd --kv "unix:$work/kv.sock" --listen "$COREFS_MANAGER" --nodes 2 --replicas 1 --targets 4
check_status '0 of 2'
"$COREFS" storage --dir "$work/node-1" --manager "$COREFS_MANAGER" --cores 1 --capacity 1GiB >/dev/null 2>"$work/node-1.log" &
roles+=($!)
check_status '1 of 2'
"$COREFS" node ls | grep -q '^node-1 *alive' || die "the node that is there isn't listed"
{ "$COREFS" status --json || [ $? = 3 ]; } | python3 -c 'import json, sys; assert json.load(sys.stdin)["problems"]' || die "nothing is said to programs"
# The node itself may not answer yet.
{ "$COREFS" status --counters --json || [ $? = 3 ]; } | python3 -c '
import json, sys
roles = {process.get("role") for process in json.load(sys.stdin)["processes"]}
assert {"mgmtd", "kv"} <= roles, roles' || die "not every process says what it has counted"
"$COREFS" node drain 1 --dry-run 2>"$work/refused" && die "what has no chains was emptied"
grep -q NotReady "$work/refused" || die "not said why: $(cat "$work/refused")"
say "$(grep -m 1 '1 of 2' "$work/status")"

# `corefs up` is ready when the chains serve, and not before: a node whose disk takes longer to make than its lease lasts is dead meanwhile.
slow=
for try in 1 2 3 4 5; do
  port=$((10000 + ($$ + try) % 20000))
  COREFS_LOG=info "$COREFS" up --dir "$work/slow-$try" --port $port --capacity 1GiB --targets 8 >"$work/slow.out" 2>"$work/slow.log" & slow=$!
  roles+=($slow)
  for _ in $(seq 1000); do
    ! grep -qs 'formed the cluster' "$work/slow-$try/log/mgmtd.log" || break
    sleep 0.01
  done
  node=$(pgrep -P $slow -f 'corefs storage ')
  kill -STOP "$node"
  sleep 2
  ready=$(grep -c '^ready ' "$work/slow.out" || true)
  kill -CONT "$node"
  [ "$ready" != 0 ] || break
  # It was faster than we are.
  kill -TERM $slow
  wait $slow || die "corefs up stopped with exit code $?"
  slow=
done
[ -n "$slow" ] || die "no node could be stopped while it made its disk"
for _ in $(seq 3000); do
  ! grep -q '^ready ' "$work/slow.out" || break
  sleep 0.01
done
"$COREFS" status --manager 127.0.0.1:$port >"$work/status" || { cat "$work/slow.out" "$work/slow.log" "$work/status"; die "ready, but not well"; }
grep -q '8 chains changed' "$work/slow-$try/log/mgmtd.log" || die "the node wasn't dead meanwhile: this shows nothing"
say "ready when the chains serve"
