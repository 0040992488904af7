#!/usr/bin/env bash
# Several managers and metadata servers, each a process of its own, on one FoundationDB: the primary dies, a metadata server dies,
# everything of corefs is killed at once, and what was acknowledged is there.
. "$(dirname "$0")/lib.sh"
[ -n "${COREFS_E2E_KV:-}" ] || skip "no FoundationDB was given (COREFS_FDB_CLUSTER_FILE)"
up --cores 1 --replicas 2 --capacity 1GiB --targets 8
kv=$(sed -n 's/^kv = "\(.*\)"/\1/p' "$work/cluster/cluster.toml")
[ -n "$kv" ] || die "cluster.toml doesn't say where metadata is"
[ -z "$(role_pid kv)" ] || die "a corefs kv runs, and nobody needs it"
[ -z "$(ls "$work/cluster/kv")" ] || die "something was written into the embedded store"

# another NAME ARGS...: one more process of a role. Sets pid and address.
others=()
another() {
  local name=$1; shift
  "$COREFS" "$@" --kv "$kv" >"$work/$name.out" 2>"$work/$name.log" &
  pid=$!
  others+=("$pid")
  for _ in $(seq 300); do
    address=$(sed -n 's/^ready //p' "$work/$name.out")
    [ -z "$address" ] || return 0
    kill -0 "$pid" 2>/dev/null || { cat "$work/$name.log"; die "$name ended before it was ready"; }
    sleep 0.1
  done
  die "$name wasn't ready after 30 s"
}
# They are no children of `corefs up`: they go with the test.
end_all() {
  local code=$?
  set +e
  [ ${#others[@]} -eq 0 ] || kill -KILL "${others[@]}" 2>/dev/null
  (exit $code)
  cleanup
}
trap end_all EXIT

another mgmtd-2 mgmtd --listen 127.0.0.1:0
second_manager=$address
another meta-2 meta --manager "$manager" --manager "$second_manager"
second_meta=$pid
export COREFS_MANAGER=$manager,$second_manager
for _ in $(seq 100); do
  metas=$("$COREFS" status --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["metas"]))')
  [ "$metas" != 2 ] || break
  sleep 0.1
done
[ "$metas" = 2 ] || die "the managers know $metas metadata servers instead of 2"
"$COREFS" status | grep -qF "$kv" || die "status doesn't say where metadata is"

# round N: makes names and contents, and reads all of the rounds before.
round() {
  "$COREFS" fs mkdir "/round-$1"
  for number in 1 2 3 4 5; do
    head -c 300000 /dev/urandom >"$work/file-$1-$number"
    "$COREFS" fs put "$work/file-$1-$number" "/round-$1/file-$number"
  done
  "$COREFS" fs mv "/round-$1/file-5" "/round-$1/moved"
  for before in $(seq "$1"); do
    for number in 1 2 3 4; do
      "$COREFS" fs cat "/round-$before/file-$number" | cmp - "$work/file-$before-$number" || die "round $before, file $number"
    done
    "$COREFS" fs cat "/round-$before/moved" | cmp - "$work/file-$before-5" || die "round $before, the one that moved"
  done
}
round 1
kill -KILL "$(role_pid mgmtd)"
round 2
say "the primary was killed, another one leads"
kill -KILL "$second_meta"
round 3
kill -KILL "$(role_pid meta)"
round 4
say "metadata servers were killed, one after the other"
kill -KILL "${others[@]}" 2>/dev/null || true
kill_all
export COREFS_MANAGER=
up
round 5
say "everything of corefs was killed, and is back"

refuses() { # text, then the command
  local text=$1; shift
  if "$@" >"$work/said" 2>&1; then die "accepted: $*"; fi
  grep -q -- "$text" "$work/said" || { cat "$work/said"; die "'$*' doesn't say '$text'"; }
}
down
refuses 'leave the flag out' "$COREFS" up --dir "$work/cluster" --kv "${kv%%#*}#other"
refuses 'a cluster is there already' "$COREFS" up --dir "$work/another" --capacity 1GiB --kv "$kv"
[ ! -e "$work/another/cluster.toml" ] || die "a refused start left a cluster behind"
fsck | tee "$work/fsck.out"
grep -q '^namespace: clean' "$work/fsck.out" || die "fsck didn't look at the namespace"
