#!/usr/bin/env bash
# `corefs up` keeps a cluster running while a node comes that isn't ready for long: what dies meanwhile is started again, and a stop signal
# is heard. In a directory whose path is too long for a socket, too, the key-value store is found again after its death.
. "$(dirname "$0")/lib.sh"
[ -z "${COREFS_E2E_KV:-}" ] || skip "it kills the embedded store"
long=$work/$(printf 'long%.0s' $(seq 30))
mkdir "$long"
real=$work
work=$long
end_long() {
  local code=$?
  set +e
  work=$real
  (exit $code)
  cleanup
}
trap end_long EXIT
up --cores 1 --capacity 1GiB --targets 4
head -c 1000000 /dev/urandom >"$work/data"
"$COREFS" fs put "$work/data" /before

# dies ROLE: kills that role, and waits until another process has its place.
dies() {
  local old; old=$(role_pid "$1")
  kill -KILL "$old"
  for _ in $(seq 200); do
    pid=$(role_pid "$1" || true)
    if [ -n "$pid" ] && [ "$pid" != "$old" ]; then return 0; fi
    sleep 0.1
  done
  die "corefs $1 isn't started again"
}

dies kv
"$COREFS" fs put "$work/data" /after
for name in before after; do "$COREFS" fs get "/$name" - | cmp - "$work/data" || die "other bytes came back"; done
say "the key-value store of a long path died, and everything goes on"

# No node gets in while the only manager stands still.
manager_pid=$(role_pid mgmtd)
kill -STOP "$manager_pid"
printf 'added = 1\n' >>"$work/cluster/cluster.toml"
for _ in $(seq 100); do
  ! pgrep -P "$up_pid" -f 'corefs storage .*node-2( |$)' >/dev/null || break
  sleep 0.1
done
pgrep -P "$up_pid" -f 'corefs storage .*node-2( |$)' >/dev/null || die "the added node isn't started"
dies kv
say "a role that died while a node was coming was started again"
kill -TERM "$up_pid"
for _ in $(seq 100); do
  ! grep -q 'stopping$' "$work/up.log" || break
  sleep 0.1
done
grep -q 'corefs: stopping$' "$work/up.log" || die "the stop signal wasn't heard while a node was coming"
kill -CONT "$manager_pid"
wait "$up_pid" || die "corefs up stopped with exit code $?"
up_pid=
say "a stop signal was heard while a node was coming"
