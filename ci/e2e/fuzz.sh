#!/usr/bin/env bash
# Hostile frames at every listener of a cluster: each lives, its well-behaved neighbours don't notice, no memory is lost, what
# was stored is still there, and the disks are clean. COREFS_FUZZ_FRAMES sets how many (default 20000).
. "$(dirname "$0")/lib.sh"
need_tool python3
fuzz=$(dirname "$COREFS")/corefs-fuzz
[ -x "$fuzz" ] || skip "there is no $fuzz: cargo build --release -p corefs-fuzz"
frames=${COREFS_FUZZ_FRAMES:-20000}
seed=${COREFS_FUZZ_SEED:-1}

up --capacity 1GiB
head -c 5000000 /dev/urandom >"$work/file"
"$COREFS" fs put "$work/file" /before

# Every address that the cluster names, and the key-value store's socket.
listeners=$("$COREFS" status --json | python3 -c '
import json, re, sys
def strings(value):
    if isinstance(value, str): yield value
    elif isinstance(value, dict): yield from (s for v in value.values() for s in strings(v))
    elif isinstance(value, list): yield from (s for v in value for s in strings(v))
found = {s for s in strings(json.load(sys.stdin)) if re.fullmatch(r"(\d+\.){3}\d+:\d+|unix:/.*", s)}
print("\n".join(sorted(found)))')
listeners="$listeners $manager"
[ ! -S "$work/cluster/run/kv.sock" ] || listeners="$listeners unix:$work/cluster/run/kv.sock"
listeners=$(printf '%s\n' $listeners | sort -u)
[ "$(printf '%s\n' "$listeners" | wc -l)" -ge 4 ] || die "found too few listeners: $listeners"

memory() { for pid in $(pids); do awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"; done | awk '{ sum += $1 } END { print int(sum / 1024) }'; }
before=$(memory) running=$(pids | sort)
# shellcheck disable=SC2086
"$fuzz" --frames "$frames" --seed "$seed" $listeners || die "seed $seed"
after=$(memory)
[ "$(pids | sort)" = "$running" ] || die "a process died"
say "memory of all processes before and after: $before MiB, $after MiB"
[ "$after" -lt $((before + 300)) ] || die "the servers keep memory of their attackers"

"$COREFS" fs cat /before | cmp - "$work/file" || die "what was stored has changed"
"$COREFS" fs put "$work/file" /after
"$COREFS" fs cat /after | cmp - "$work/file" || die "the cluster doesn't work any more"
"$COREFS" status >"$work/status" || { cat "$work/status"; die "the cluster says that something is wrong"; }
down
fsck
say "$frames hostile frames with seed $seed: nothing harmed"
