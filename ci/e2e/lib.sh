# Shared by the end-to-end tests: a cluster of real processes in a scratch directory, ended with the test.
# A test prints what it shows, `skipped, because ...` with exit code 77 where it can't run, and fails on the first error.
set -Eeuo pipefail

COREFS=${COREFS:?the binary under test}
work=$(mktemp -d "${COREFS_E2E_DIR:-${TMPDIR:-/tmp}}/corefs-e2e.XXXXXX")
up_pid=
two_pid=

cleanup() {
  local code=$?
  set +e
  trap - EXIT
  [ -z "$two_pid" ] || kill -TERM "$two_pid" 2>/dev/null
  [ ! -d "$work/two" ] || umount -l "$work/two" 2>/dev/null
  if [ -n "$up_pid" ] && kill -0 "$up_pid" 2>/dev/null; then
    kill -TERM "$up_pid" 2>/dev/null
    for _ in $(seq 300); do kill -0 "$up_pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$up_pid" 2>/dev/null
  fi
  [ ! -d "$work/mnt" ] || umount -l "$work/mnt" 2>/dev/null
  if [ $code -ne 0 ] && [ $code -ne 77 ]; then
    echo "--- failed with exit code $code; the ends of the logs:"
    for log in "$work"/up.log "$work"/cluster/log/*.log; do
      [ -s "$log" ] && { echo "--- $log"; tail -n 15 "$log"; }
    done
  fi
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT
# What ends a test without a word says at least where that was.
trap 'case $- in *e*) echo "FAILED: line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND: exit code $?" >&2 ;; esac' ERR

say() { printf '%s\n' "$*"; }
die() { say "FAILED: $*"; exit 1; }
skip() { say "skipped, because $*"; exit 77; }

can_mount() { [ -c /dev/fuse ] && [ "$(id -u)" = 0 ]; }
need_mount() { can_mount || skip "mounting needs /dev/fuse and root"; }
need_tool() { command -v "$1" >/dev/null || skip "$1 is not installed"; }

# up [flags of corefs up]: starts the cluster in $work/cluster and waits for its ready line. Sets up_pid, manager.
# COREFS_E2E_KV: where it keeps metadata, as `--kv` says it; in its own directory if that isn't set.
# On a port of the test's own: a cluster that was killed must find its port free, whoever else starts one meanwhile.
up() {
  : >"$work/up.out"
  [ -z "${COREFS_E2E_KV:-}" ] || [ -e "$work/cluster/cluster.toml" ] || set -- --kv "$COREFS_E2E_KV" "$@"
  "$COREFS" up --dir "$work/cluster" --port $((10000 + $$ % 20000)) "$@" >"$work/up.out" 2>>"$work/up.log" &
  up_pid=$!
  for _ in $(seq 1200); do
    if grep -q '^ready ' "$work/up.out"; then
      manager=$(sed -n 's/^ready manager=\([^ ]*\).*/\1/p' "$work/up.out")
      export COREFS_MANAGER=$manager COREFS_SECRET_FILE=$work/cluster/secret
      return 0
    fi
    kill -0 "$up_pid" 2>/dev/null || { cat "$work/up.log"; die "corefs up ended before it was ready"; }
    sleep 0.1
  done
  die "corefs up was not ready after 120 s"
}

# down: stops it cleanly and fails if that isn't clean.
down() {
  kill -TERM "$up_pid"
  wait "$up_pid" || die "corefs up stopped with exit code $?"
  up_pid=
}

# second_mount [flags of corefs mount]: another mount of the cluster, at $work/two. Sets two_pid.
second_mount() {
  mkdir -p "$work/two"
  : >"$work/two.out"
  "$COREFS" mount "$@" "$work/two" >"$work/two.out" 2>"$work/two.log" & two_pid=$!
  for _ in $(seq 300); do
    ! grep -q '^ready ' "$work/two.out" || return 0
    kill -0 "$two_pid" 2>/dev/null || { cat "$work/two.log"; die "the second mount ended before it was ready"; }
    sleep 0.1
  done
  cat "$work/two.log"
  die "the second mount wasn't ready after 30 s"
}

# second_down: ends it and fails if that isn't clean.
second_down() {
  kill -TERM "$two_pid"
  wait "$two_pid" || die "the second mount ended with exit code $?"
  two_pid=
}

# pids of all processes of this cluster: the supervisor and its children.
pids() { echo "$up_pid"; pgrep -P "$up_pid"; }

# kill_all: kill -9 to every process at once, the supervisor first so that it restarts nothing.
kill_all() {
  local all; all=$(pids)
  # shellcheck disable=SC2086
  kill -KILL $all 2>/dev/null || true
  wait "$up_pid" 2>/dev/null || true
  for pid in $all; do
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.05; done
  done
  up_pid=
  umount -l "$work/mnt" 2>/dev/null || true
}

# role_pid NAME: the process of a role, as in `role_pid storage`.
role_pid() { pgrep -P "$up_pid" -f "corefs $1( |\$)" | head -n 1; }

fsck() { "$COREFS" fsck --dir "$work/cluster" "$@"; }
