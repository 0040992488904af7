#!/usr/bin/env bash
# Bad input of any kind: a clear error, nothing harmed.
. "$(dirname "$0")/lib.sh"

refuses() { # expected text, then the command
  local text=$1; shift
  if "$@" >"$work/said" 2>&1; then die "accepted: $*"; fi
  grep -qi -- "$text" "$work/said" || { cat "$work/said"; die "the error of '$*' doesn't say '$text'"; }
}
refuses 'unexpected argument' "$COREFS" up --dir "$work/x" --nonsense
refuses 'size' "$COREFS" up --dir "$work/x" --capacity 12parsecs
refuses 'size' "$COREFS" up --dir "$work/x" --capacity=-5GiB
refuses 'size' "$COREFS" up --dir "$work/x" --capacity 99999999999999999999
refuses 'chunk-size' "$COREFS" up --dir "$work/x" --chunk-size 100KB
refuses 'replicas' "$COREFS" up --dir "$work/x" --replicas 0
refuses 'replicas' "$COREFS" up --dir "$work/x" --replicas 3 --nodes 2
refuses 'cores' "$COREFS" up --dir "$work/x" --cores 0
refuses 'free' "$COREFS" up --dir "$work/x" --capacity 9000TiB
refuses 'manager' "$COREFS" storage --dir "$work/x"
refuses 'wonder' "$COREFS" kv --config <(printf '[kv]\nwonder = 1\n')
mkdir "$work/mine"; echo precious >"$work/mine/file"
refuses 'holds' "$COREFS" up --dir "$work/mine"
[ "$(cat "$work/mine/file")" = precious ] && [ "$(ls "$work/mine")" = file ] || die "a foreign directory was touched"
refuses 'no manager\|unreachable\|refused' timeout 60 "$COREFS" fs --manager 127.0.0.1:1 ls /
[ ! -e "$work/x/cluster.toml" ] || die "a refused start left a cluster behind"
"$COREFS" storage --dir "$work/lonely" --manager 127.0.0.1:1 --capacity 1GiB >"$work/said" 2>&1 & lonely=$!
sleep 1
kill -0 $lonely || die "a node gave up although a manager may come: $(cat "$work/said")"
kill -TERM $lonely
for _ in $(seq 100); do kill -0 $lonely 2>/dev/null || break; sleep 0.1; done
! kill -9 $lonely 2>/dev/null || die "a node that waits for a manager doesn't stop when it is told to"
wait $lonely || die "a node that was told to stop while it waited ended with $?"

up --capacity 1GiB
refuses 'another corefs runs' "$COREFS" up --dir "$work/cluster"
port=${manager##*:}
refuses 'in use' "$COREFS" up --dir "$work/second" --capacity 1GiB --port "$port"
refuses 'NotFound' "$COREFS" fs cat /nowhere
refuses 'NotFound' "$COREFS" fs rm /nowhere
refuses 'NotDirectory\|Exists' sh -c "\"$COREFS\" fs put /etc/hostname /file && \"$COREFS\" fs mkdir /file/below"
refuses 'NameTooLong' "$COREFS" fs mkdir "/$(printf 'n%.0s' $(seq 256))"
refuses 'NameTooLong' "$COREFS" fs mkdir -p "/$(printf 'dddddddd/%.0s' $(seq 500))"
printf '%064d' 7 >"$work/wrong-secret"
"$COREFS" fs mkdir /fine
"$COREFS" fs stat /fine >/dev/null
say "wrong flags, sizes, directories, ports, names: refused with a reason"
# Another cluster's directory: the node's disk of this one handed to a second cluster.
down
"$COREFS" up --dir "$work/other" --capacity 1GiB >"$work/other.out" 2>&1 & other=$!
for _ in $(seq 600); do grep -q '^ready ' "$work/other.out" && break; sleep 0.1; done
kill -TERM $other; wait $other || true
rm -rf "$work/other/node-1"; cp -r --sparse=always "$work/cluster/node-1" "$work/other/node-1"
refuses 'cluster' "$COREFS" up --dir "$work/other"
say "another cluster's disk: refused"
