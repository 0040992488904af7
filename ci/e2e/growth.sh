#!/usr/bin/env bash
# A cluster grows and shrinks under writers and readers of a mount: a node is added, another one is emptied while a third is killed,
# and removed. No operation fails, every byte is right, no more moves than must, and shares are even afterwards.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt"
load=$(dirname "$(realpath "$0")")/failover.py
up --cores 1 --replicas 3 --capacity 1GiB --targets 16 --resync-rate 40MiB --mount "$work/mnt"
head -c 50000000 /dev/urandom >"$work/data"
for copy in 1 2 3; do "$COREFS" fs put "$work/data" "/data$copy"; done
mkdir "$work/mnt/load"
: >"$work/log"
python3 "$load" "$work/mnt/load" "$work/log" "$work/stop" >"$work/load.out" 2>&1 &
load_pid=$!
for _ in $(seq 600); do
  [ "$(grep -c ' write$' "$work/log" || true)" -lt 20 ] || break
  kill -0 "$load_pid" 2>/dev/null || { cat "$work/load.out"; die "the load ended before it wrote"; }
  sleep 0.1
done

# node N: the process of the storage node in that directory.
node() { pgrep -P "$up_pid" -f "corefs storage .*node-$1( |\$)" | head -n 1; }

# shares: targets and bytes of each node; fails unless those in use have the same number of targets, and bytes within 5 %.
shares() {
  sleep 1.5 # nodes say with their next heartbeats what they hold
  "$COREFS" node ls --json | python3 -c '
import json, sys
nodes = json.load(sys.stdin)["nodes"]
used = [node for node in nodes if any(slice["standing"] == "in use" for slice in node["slices"])]
print("  " + "; ".join("node-{node}: {targets} targets, {used} bytes".format(**node) for node in nodes))
targets, size = [node["targets"] for node in used], [node["used"] for node in used]
assert len(used) == int(sys.argv[1]) and max(targets) - min(targets) <= 1, targets
assert max(size) <= 1.05 * min(size), size' "$1" || die "shares are uneven"
}

# sent: bytes that nodes have sent to fill others since they were started.
sent() {
  "$COREFS" status --counters --json | python3 -c '
import json, sys
shards = [shard for process in json.load(sys.stdin)["processes"] for shard in process.get("shards", [])]
print(sum(shard["counters"].get("filled_bytes", 0) for shard in shards))'
}

before=$(sent)
"$COREFS" node add --dir "$work/cluster" --dry-run --json | python3 -c '
import json, sys
plan = json.load(sys.stdin)
assert plan["moves"] and plan["bytes"] and all(one["to_node"] == 4 for one in plan["moves"]), plan' || die "what a node more would get isn't said"
[ ! -e "$work/cluster/node-4" ] || die "a plan has made a node"
"$COREFS" node add --dir "$work/cluster" --wait --json >"$work/add.json"
"$COREFS" node add 4 --dry-run --json | python3 -c '
import json, sys
plan = json.load(sys.stdin)
assert not plan["moves"] and not plan["leaving"], plan' || die "something still moves after --wait"
moved=$(($(sent) - before))
shares 4
least=$("$COREFS" node ls --json | python3 -c 'import json, sys; print([node["used"] for node in json.load(sys.stdin)["nodes"] if node["node"] == 4][0])')
# Updates that come while a chunk is copied may have it sent again.
[ $((moved * 10)) -le $((least * 11 + 10000000)) ] || die "$moved bytes were sent for $least"
say "a node added under load: $moved bytes sent, $least bytes on the new node"

"$COREFS" node remove 2 2>"$work/refused" && die "a node with targets was removed"
grep -q 'still has 12 targets' "$work/refused" || die "the refusal doesn't say why: $(cat "$work/refused")"
"$COREFS" node drain 2 --dry-run | tee "$work/plan"
grep -q '12 targets would move' "$work/plan" || die "the plan isn't that of one node"
"$COREFS" node drain 2 >/dev/null
sleep 1
"$COREFS" moves pause >/dev/null
kill -KILL "$(node 3)"
"$COREFS" moves resume >/dev/null
"$COREFS" moves wait || die "the node isn't emptied: $("$COREFS" moves)"
shares 3
"$COREFS" node remove 2 --dir "$work/cluster"
[ -z "$(node 2)" ] || die "a removed node still runs"
[ "$("$COREFS" node ls --json | grep -c '"node": 2')" = 0 ] || die "a removed node is still listed"
say "a node emptied while another one was killed, and removed"

touch "$work/stop"
wait "$load_pid" || { cat "$work/load.out"; die "an operation failed or a byte was wrong"; }
say "$(cat "$work/load.out")"
for copy in 1 2 3; do "$COREFS" fs get "/data$copy" - | cmp - "$work/data"; done
"$COREFS" node drain 4 --dry-run 2>"$work/refused" && die "three replicas fit on two nodes"
grep -q 'have no other place' "$work/refused" || die "the refusal doesn't say why: $(cat "$work/refused")"
down
up --mount "$work/mnt"
[ "$(pgrep -P "$up_pid" -fc 'corefs storage ')" = 3 ] || die "after a restart it isn't three nodes"
for copy in 1 2 3; do "$COREFS" fs get "/data$copy" - | cmp - "$work/data"; done
"$COREFS" chain ls | head -n 3
"$COREFS" chain balance
"$COREFS" chain balance --json | python3 -c 'import json, sys; found = json.load(sys.stdin)
nodes, chains = found["nodes"], found["chains"]
assert sum(node["heads"] for node in nodes) == chains and sum(node["targets"] for node in nodes) == 3 * chains == 3 * found["targets"]["max"], found' || die "chains aren't counted right"
"$COREFS" target ls --node 4 | head -n 3
"$COREFS" chain show 1 >/dev/null && "$COREFS" node show 4 >/dev/null && "$COREFS" target show "$("$COREFS" target ls --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["targets"][0]["target"])')" >/dev/null
down
fsck
