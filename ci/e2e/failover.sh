#!/usr/bin/env bash
# Storage nodes die under writers and readers of a mount: one by kill -9, one that stands still for longer than its lease and
# then dies, two at once. No operation fails, every byte is right, each node comes back, is filled and serves again.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt"
load=$(dirname "$(realpath "$0")")/failover.py
up --cores 1 --replicas 3 --capacity 1GiB --targets 8 --mount "$work/mnt"
mkdir "$work/mnt/load"
python3 "$load" "$work/mnt/load" "$work/log" "$work/stop" >"$work/load.out" 2>&1 &
load_pid=$!

# node N: the process of a storage node.
node() { pgrep -P "$up_pid" -f "corefs storage .*node-$1( |\$)" | head -n 1; }
now() { date +%s.%N; }

# count STATE: how many members of chains are in that state.
count() {
  { "$COREFS" status --json || true; } | python3 -c '
import json, sys
status = json.load(sys.stdin)
print(sum(member["state"] == sys.argv[1] for chain in status["chains"] for member in chain["members"]))' "$1"
}

members=24 # 8 targets on each of three nodes

# writes_after TIME: waits until a write that ended after it is in the log, and prints how long after.
writes_after() {
  python3 - "$work/log" "$1" "$load_pid" <<'PY'
import os, sys, time
log, since, pid = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
until = time.time() + 60
seen = 0
while time.time() < until:
    times = sorted(float(line.split()[0]) for line in open(log) if line.endswith(" write\n"))
    # The longest wait of all writers together around the event.
    after = [at for at in times if at > since]
    if after and time.time() - since > 6 and len(after) > 20:
        gaps = [b - a for a, b in zip([since] + after, after)]
        print(f"writes stood still for {max(gaps):.2f} s at most; {len(after)} since")
        sys.exit(0)
    try:
        os.kill(pid, 0)
    except OSError:
        print("the load has ended"); sys.exit(1)
    time.sleep(0.2)
print("no writes within 60 s"); sys.exit(1)
PY
}

# whole: waits until all members serve.
whole() {
  local began; began=$(now)
  for _ in $(seq 300); do
    if [ "$(count Serving)" = "$members" ]; then
      python3 -c "import sys; print(f'  all {sys.argv[1]} members serve again, {float(sys.argv[3]) - float(sys.argv[2]):.1f} s later')" \
        "$members" "$began" "$(now)"
      return 0
    fi
    sleep 0.2
  done
  "$COREFS" status || true
  die "not all members serve after 60 s"
}

whole
# The load is at work before anything is hurt: on a busy machine it takes its time to start.
: >>"$work/log"
for _ in $(seq 600); do
  [ "$(grep -c ' write$' "$work/log" || true)" -lt 20 ] || break
  kill -0 "$load_pid" 2>/dev/null || { cat "$work/load.out"; die "the load ended before it wrote"; }
  sleep 0.1
done
at=$(now); kill -KILL "$(node 2)"
waited=$(writes_after "$at") || { tail -n 20 "$work/load.out"; die "writes don't go on: $waited"; }
say "one node killed: $waited"
whole

victim=$(node 3)
at=$(now); kill -STOP "$victim"
waited=$(writes_after "$at") || { tail -n 20 "$work/load.out"; die "writes don't go on: $waited"; }
say "one node stopped: $waited"
[ "$(count Serving)" -lt "$members" ] || die "a node that stands still still serves"
kill -KILL "$victim"
say "it died with old data"
whole

first=$(node 1); second=$(node 3)
at=$(now); kill -KILL "$first" "$second"
waited=$(writes_after "$at") || { tail -n 20 "$work/load.out"; die "writes don't go on: $waited"; }
say "two nodes killed at once: $waited"
whole

victim=$(node 1)
at=$(now); kill -STOP "$victim"; sleep 3; kill -CONT "$victim"
waited=$(writes_after "$at") || { tail -n 20 "$work/load.out"; die "writes don't go on: $waited"; }
say "one node stopped and gone on: $waited"
whole

touch "$work/stop"
wait "$load_pid" || { cat "$work/load.out"; die "an operation failed or a byte was wrong"; }
say "$(cat "$work/load.out")"
for _ in 1 2 3; do cat "$work/mnt"/load/f* | sha256sum; done | sort | uniq -c | awk 'END { exit NR != 1 }' || die "reads differ"
down
fsck
