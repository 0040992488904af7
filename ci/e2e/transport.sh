#!/usr/bin/env bash
# RDMA is demanded where there is none: an error that says what is missing, from a storage node as from a client, and whoever doesn't demand it is served by TCP.
. "$(dirname "$0")/lib.sh"

"$COREFS" doctor --json >"$work/doctor.json"
what=$(python3 - "$work/doctor.json" <<'PY'
import json, sys
rdma = json.load(open(sys.argv[1]))["rdma"]
used = [gid for device in rdma["devices"] for port in device["ports"] for gid in port["gids"] if gid["used"]]
print("used" if used else "absent" if rdma["built"] else "not built")
PY
)
case $what in
  used) skip "this machine has RDMA that can be used: ci/guest shows what happens then" ;;
  absent) text='RDMA was asked for: ..' ;;
  *) text='built without RDMA; build it with' ;;
esac
# refuses COMMAND...: it ends by itself, with an error that says why.
refuses() {
  local code=0
  timeout 60 "$@" >"$work/said" 2>&1 || code=$?
  [ $code != 0 ] && [ $code != 124 ] || { cat "$work/said"; die "'$*' ended with $code"; }
  grep -q -- "$text" "$work/said" || { cat "$work/said"; die "the error of '$*' doesn't say '$text'"; }
  ! grep -q panicked "$work/said" || { cat "$work/said"; die "'$*' panicked"; }
}
up --capacity 1GiB --cores 1
refuses "$COREFS" fs --transport rdma ls /
COREFS_TRANSPORT=rdma refuses "$COREFS" fs ls /
refuses "$COREFS" perf randread --transport rdma --size 1MiB --seconds 1
refuses "$COREFS" storage --dir "$work/node" --manager "$manager" --capacity 1GiB --transport rdma
say "storage node and clients that demand RDMA: refused, with '$(grep -o "$text.*" "$work/said" | head -n 1 | cut -c 1-100)'"
[ ! -e "$work/node" ] || die "a storage node that was refused left a directory behind"
head -c 100000 /dev/urandom >"$work/data"
"$COREFS" fs put "$work/data" /data
"$COREFS" fs --transport auto cat /data | cmp - "$work/data" || die "what was read isn't what was written"
"$COREFS" fs --transport tcp cat /data | cmp - "$work/data" || die "what was read isn't what was written"
"$COREFS" doctor --manager "$manager" --json >"$work/reached.json"
python3 - "$work/reached.json" <<'PY'
import json, sys
reached = json.load(open(sys.argv[1]))["reached"]
assert reached and all(shard["transport"] == "tcp" and shard["why"] for shard in reached), reached
PY
down
# A whole cluster that demands it doesn't start, and says why rather than trying for ever.
refuses "$COREFS" up --dir "$work/second" --capacity 1GiB --port $((10001 + $$ % 20000)) --transport rdma
[ "$(pgrep -c -f "$work/second" || true)" = 0 ] || die "a cluster that was refused left processes behind"
say "by auto and tcp: served; a cluster that demands RDMA doesn't start"
