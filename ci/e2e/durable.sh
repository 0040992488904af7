#!/usr/bin/env bash
# Acknowledged means durable: kill -9 of every process at a random moment under a writer that logs each fsync it got back.
# Nothing in the log is lost and nothing is torn. COREFS_KILL_ROUNDS sets how often (default 4).
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
rounds=${COREFS_KILL_ROUNDS:-4}
mkdir "$work/mnt"
writer=$(dirname "$(realpath "$0")")/writer.py
total=0
: >"$work/log"
up --capacity 2GiB --replicas "${COREFS_KILL_REPLICAS:-1}" --mount "$work/mnt"
for round in $(seq "$rounds"); do
  python3 "$writer" write "$work/mnt" "$work/log" "$round" >"$work/writer.out" 2>&1 &
  writer_pid=$!
  sleep "$(awk -v seed="$RANDOM" 'BEGIN { srand(seed); print 0.3 + rand() * 1.7 }')"
  kill_all
  kill -KILL "$writer_pid" 2>/dev/null || true; wait "$writer_pid" 2>/dev/null || true
  up --mount "$work/mnt"
  python3 "$writer" check "$work/mnt" "$work/log" "$round" || die "round $round lost or tore something that was acknowledged"
  total=$(wc -l <"$work/log")
done
[ "$total" -ge "$rounds" ] || die "the writer got only $total acknowledgments: this shows nothing"
say "$rounds rounds of kill -9, $total acknowledged operations, nothing lost, nothing torn"
down
fsck
