#!/usr/bin/env bash
# Three replicas: three copies are written, all of them are read, no message between cores belongs to a data operation, a
# killed node comes back by itself and everything is readable while it is away.
. "$(dirname "$0")/lib.sh"
need_tool python3
up --cores 2 --replicas 3 --capacity 1GiB
head -c 20000000 /dev/urandom >"$work/data"
"$COREFS" fs put "$work/data" /data
"$COREFS" fs get /data "$work/back" && cmp "$work/data" "$work/back"
sleep 2 # nodes tell the manager with their next heartbeats how much they hold
"$COREFS" status --json >"$work/status.json" || die "status finds something wrong: $(cat "$work/status.json")"
python3 - "$work/status.json" <<'PY'
import json, sys
status = json.load(open(sys.argv[1]))
assert len(status["nodes"]) == 3 and status["replicas"] == 3, status
node_of = {target["target"]: target["node"] for target in status["targets"]}
for chain in status["chains"]:
    nodes = {node_of[member["target"]] for member in chain["members"]}
    assert len(nodes) == 3, f"chain {chain['chain']} is on nodes {nodes}"
used = [sum(slice["used"] for slice in node["slices"]) for node in status["nodes"]]
assert min(used) >= 20_000_000, f"not every node holds a copy: {used}"
print(f"three copies: {used} bytes used on the three nodes")
PY
for _ in 1 2 3 4 5 6 7 8; do "$COREFS" fs get /data - | cmp - "$work/data"; done
# Each shard is reached, by what, and why so. (COREFS_MANAGER and COREFS_SECRET_FILE are set.)
"$COREFS" doctor --manager "$COREFS_MANAGER" --json >"$work/doctor.json" || die "doctor doesn't reach every shard: $(cat "$work/doctor.json")"
python3 - "$work/doctor.json" <<'PY'
import json, sys
reached = json.load(open(sys.argv[1]))["reached"]
assert sorted({shard["node"] for shard in reached}) == [1, 2, 3], reached
assert all(shard["transport"] == "rdma" or shard["transport"] == "tcp" and shard["why"] for shard in reached), reached
PY
"$COREFS" status --counters --json >"$work/before.json"
"$COREFS" perf randread --manager "$manager" --size 64MiB --seconds 4 --verify --json "$work/perf.json" >/dev/null
"$COREFS" status --counters --json >"$work/after.json"
python3 - "$work" <<'PY'
import json, sys
def shards(name):
    processes = json.load(open(f"{sys.argv[1]}/{name}.json"))["processes"]
    return [shard["counters"] for process in processes if process["role"] == "storage" for shard in process["shards"]]
before, after = shards("before"), shards("after")
grown = lambda name: [new[name] - old[name] for old, new in zip(before, after)]
assert len(after) == 6, f"{len(after)} shards"
reads, messages = grown("reads"), grown("cross_core_messages")
assert all(count > 100 for count in reads), f"reads were not spread over all shards: {reads}"
# Cores talk about leases and routing a few times a second, whatever the load.
assert sum(messages) < 0.02 * sum(reads) and max(messages) < 200, f"{messages} messages between cores for {reads} reads"
row = json.load(open(f"{sys.argv[1]}/perf.json"))["rows"][0]
assert row["errors"] == 0 and row["verify_errors"] == 0, row
print(f"reads by shard {reads}; messages between cores meanwhile {messages}")
PY
victim=$(pgrep -P "$up_pid" -f 'corefs storage .*node-2' | head -n 1)
kill -KILL "$victim"
"$COREFS" fs get /data - | cmp - "$work/data" || die "a read failed while a node was away"
"$COREFS" fs put "$work/data" /again
"$COREFS" fs get /again - | cmp - "$work/data"
grep -q 'node-2.*was killed by signal 9' "$work/up.log" || die "the supervisor didn't report the kill"
say "a node killed: reads and writes went on"
down
fsck
