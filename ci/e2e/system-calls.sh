#!/usr/bin/env bash
# What shards ask of the kernel under load, by strace: their ring, and nothing that waits for another core. Control messages (a lease,
# a report) cost an eventfd's write or a futex now and then; data operations cost neither.
. "$(dirname "$0")/lib.sh"
need_tool strace
need_tool python3
up --cores 2 --capacity 2GiB
node=$(role_pid storage)
strace -c -o "$work/try" true 2>/dev/null || skip "this machine doesn't let strace trace"

threads() { # -p THREAD for each shard of the storage node
  local task
  for task in /proc/"$node"/task/*; do
    case $(cat "$task/comm") in shard-*) printf ' -p %s' "$(basename "$task")" ;; esac
  done
}

for mode in randread randwrite; do
  "$COREFS" perf $mode --size 64MiB --path /$mode.dat --seconds 1 >/dev/null # makes the file
  "$COREFS" perf $mode --size 64MiB --path /$mode.dat --seconds 5 --json "$work/$mode.json" >/dev/null &
  load=$!
  for _ in $(seq 100); do # it is under way when the counter moves
    before=${count:-0}
    count=$("$COREFS" status --counters --json | python3 -c '
import json, sys
name = {"randread": "reads", "randwrite": "updates"}[sys.argv[1]]
processes = json.load(sys.stdin)["processes"]
print(sum(shard["counters"][name] for process in processes for shard in process.get("shards", [])))' $mode)
    [ "$before" -gt 0 ] && [ "$count" -gt $((before + 500)) ] && break
    sleep 0.1
  done
  # shellcheck disable=SC2046
  timeout --signal=INT 2 strace -c -o "$work/$mode.calls" $(threads) 2>/dev/null || true
  wait "$load" || die "perf $mode failed"
  awk -v mode=$mode '
    $NF == "io_uring_enter" { enters = $4 }
    $NF == "futex" { futexes = $4 }
    $4 ~ /^[0-9]+$/ && $NF != "total" { said = said " " $NF " " $4 }
    END {
      print mode ":" said
      if (enters < 100) { print "too few calls were seen: this shows nothing"; exit 1 }
      if (futexes > 10 || futexes * 100 > enters) { print "futex under load"; exit 1 }
    }' "$work/$mode.calls" || die "see above"
  unset count
done
down
