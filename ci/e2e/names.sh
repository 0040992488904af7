#!/usr/bin/env bash
# kill -9 of metadata servers and mounts in the middle of creates, links, renames, removals, and writes of small files: each operation
# happened once or not at all, one that was acknowledged did, and `corefs fsck` finds nothing. COREFS_NAME_ROUNDS sets how often (default 3), COREFS_NAME_SEED what is
# killed when.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
rounds=${COREFS_NAME_ROUNDS:-3} seed=${COREFS_NAME_SEED:-$(date +%Y%m%d)}
RANDOM=$seed
here=$(dirname "$(realpath "$0")")
mkdir "$work/mnt" "$work/two"
mounts=(mnt two)
declare -A mount_pid=() workers=()
other_pid= remover=

names() { python3 -B "$here/names.py" "$@"; }

# between LEAST MOST: so many seconds, by chance.
pause() {
  # Not in a subshell, where chance would begin anew.
  local draw=$RANDOM
  sleep "$(awk -v draw="$draw" -v least="$1" -v most="$2" 'BEGIN { print least + draw / 32768 * (most - least) }')"
}

# until_ready PID FILE WHAT: its ready line.
until_ready() {
  for _ in $(seq 600); do
    ! grep -q '^ready ' "$2" || return 0
    kill -0 "$1" 2>/dev/null || { tail -n 20 "${2%.out}.log"; die "$3 ended"; }
    sleep 0.1
  done
  die "$3 wasn't ready after 60 s"
}

mount_at() { # NAME
  : >"$work/$1.out"
  "$COREFS" mount "$work/$1" >"$work/$1.out" 2>>"$work/$1.log" & mount_pid[$1]=$!
  until_ready "${mount_pid[$1]}" "$work/$1.out" "the mount $1"
}

# A second metadata server, in a process of its own: when it dies the store lives, and the other way round.
start_other() {
  : >"$work/other.out"
  "$COREFS" meta --kv "$kv" --manager "$manager" >"$work/other.out" 2>>"$work/other.log" & other_pid=$!
  until_ready $other_pid "$work/other.out" "the second metadata server"
}

# The process that has a metadata server and, but with FoundationDB, the store.
first_pid() { role_pid kv || role_pid meta || true; }

ended() { kill -KILL "$1" 2>/dev/null || true; wait "$1" 2>/dev/null || true; }

end_all() {
  local code=$? name
  set +e
  for name in "${!workers[@]}"; do ended "${workers[$name]}"; done
  [ -z "$remover" ] || ended "$remover"
  for name in "${mounts[@]}"; do
    [ -z "${mount_pid[$name]:-}" ] || ended "${mount_pid[$name]}"
    umount -l "$work/$name" 2>/dev/null
  done
  [ -z "$other_pid" ] || ended "$other_pid"
  (exit $code)
  cleanup
}
trap end_all EXIT

# work_on NAME ROUND: three workers on that mount, which go on with their logs where there are some.
work_on() {
  local name=$1 round=$2 worker draw
  for worker in a b c; do
    draw=$RANDOM
    names work "$work/$name/round-$round" "$work/log/$round-$name-$worker" "$name-$worker" "$draw" >>"$work/workers.out" 2>&1 &
    workers[$name-$worker]=$!
  done
}

# Of a mount that was killed: they must have noticed nothing else.
cut_off() {
  local name=$1 worker
  for worker in a b c; do
    wait "${workers[$name-$worker]}" || die "a worker failed: $(tail -n 3 "$work/workers.out")"
    unset "workers[$name-$worker]"
  done
}

all_work() {
  local name
  for name in "${!workers[@]}"; do
    kill -0 "${workers[$name]}" 2>/dev/null || die "the worker $name ended: $(tail -n 3 "$work/workers.out")"
  done
}

kill_mount() { # NAME ROUND
  ended "${mount_pid[$1]}"
  cut_off "$1"
  [ "$1" != two ] || end_remover
  umount -l "$work/$1"
  mount_at "$1"
  work_on "$1" "$2"
}

kill_first() {
  local pid; pid=$(first_pid)
  # It may still be on its way back.
  [ -z "$pid" ] || kill -KILL "$pid"
}
kill_other() { ended "$other_pid"; start_other; }

# The tree of the round before goes meanwhile, through the second mount.
removed=
end_remover() {
  [ -n "$remover" ] || return 0
  if wait "$remover"; then removed=yes; else
    ! grep -v 'not connected\|connection abort' "$work/remover.out" || die "removing the tree of the round before failed"
  fi
  remover=
}

mkdir "$work/log"
kills=0 trash=0
up --capacity 1GiB
kv=$("$COREFS" status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["kv"])')
start_other
for name in "${mounts[@]}"; do mount_at "$name"; done
for round in $(seq "$rounds"); do
  names begin "$work/mnt/round-$round"
  removed=
  if [ -e "$work/two/round-$((round - 1))" ]; then
    # Name by name, or in one step, of which a server that dies has done all or nothing.
    if [ $((round % 2)) = 0 ]; then
      rm -rf "$work/two/round-$((round - 1))" 2>"$work/remover.out" & remover=$!
    else
      "$COREFS" fs rm -r "/round-$((round - 1))" 2>"$work/remover.out" & remover=$! trash=1
    fi
  fi
  for name in "${mounts[@]}"; do work_on "$name" "$round"; done
  for _ in 1 2 3; do
    pause 0.2 1.2
    all_work
    case $((RANDOM % 6)) in
      0 | 1) kill_first ;;
      2) kill_other ;;
      3) kill_first; kill_other ;;
      4) kill_mount mnt "$round" ;;
      5) kill_mount two "$round" ;;
    esac
    kills=$((kills + 1))
  done
  pause 0.2 1.5
  all_work
  # Everything at once, and what is left of it is looked at before anybody repairs anything.
  kill_all
  for name in "${mounts[@]}"; do ended "${mount_pid[$name]}"; done
  ended "$other_pid"
  for name in "${!workers[@]}"; do ended "${workers[$name]}"; unset "workers[$name]"; done
  end_remover
  for name in "${mounts[@]}"; do umount -l "$work/$name" 2>/dev/null || true; done
  kills=$((kills + 1))
  fsck >"$work/fsck.out" || { cat "$work/fsck.out"; die "round $round of seed $seed left damage"; }
  up
  start_other
  for name in "${mounts[@]}"; do mount_at "$name"; done
  names check "$work/two/round-$round" "$work"/log/"$round"-* >"$work/check.out" ||
    { cat "$work/check.out"; die "round $round of seed $seed: something happened twice, in part, or was lost"; }
  [ -z "$removed" ] || [ ! -e "$work/mnt/round-$((round - 1))" ] || die "round $round of seed $seed: what was removed is back"
  [ -z "${COREFS_NAME_VERBOSE:-}" ] || say "round $round: $(tail -n 1 "$work/check.out")"
  cat "$work/check.out" >>"$work/all.out"
done
answered=$(awk '/answered/ { sum += $1 } END { print sum }' "$work/all.out")
open=$(awk '/answered/ { sum += $4 } END { print sum }' "$work/all.out")
[ "$answered" -ge $((rounds * 100)) ] || die "the workers got only $answered answers: this shows nothing"

# The check can fail: a name that somebody has moved, and one that somebody has doubled.
some=$(find "$work"/mnt/round-"$rounds"/pool-* -maxdepth 1 -type f -print -quit)
[ -n "$some" ] || die "no file is left to try the check with"
spoiled() { ! names check "$work/mnt/round-$rounds" "$work"/log/"$rounds"-* >"$work/check.out" || die "the check doesn't see $1"; }
mv "$some" "$some.moved"; spoiled "a name that is another one"; mv "$some.moved" "$some"
ln "$some" "$some.twice"; spoiled "a name too many"; rm "$some.twice"
cp -p "$some" "$work/some"; printf x >>"$some"; spoiled "a byte too many"; cat "$work/some" >"$some"
names check "$work/mnt/round-$rounds" "$work"/log/"$rounds"-* >/dev/null || die "the check sees what isn't there"

# Nothing stays behind: what workers that died had open and unlinked goes with their mounts' leases.
rm -rf "$work"/mnt/round-*
inodes() { stat -f -c '%c %d' "$work/mnt" | awk '{ print $1 - $2 }'; }
for _ in $(seq 180); do [ "$(inodes)" -gt $((1 + trash)) ] || break; sleep 1; done
[ "$(inodes)" = $((1 + trash)) ] || die "$(inodes) inodes are left of an empty file system (trash: $trash)"
for name in "${mounts[@]}"; do kill -TERM "${mount_pid[$name]}"; wait "${mount_pid[$name]}" || die "the mount $name didn't end cleanly"; unset "mount_pid[$name]"; done
kill -TERM "$other_pid"; wait "$other_pid" || die "the second metadata server didn't end cleanly"
other_pid=
down
fsck
say "$rounds rounds, $kills times kill -9 (seed $seed): $answered operations answered, $open cut off, each done once or not at all; fsck clean after each"
