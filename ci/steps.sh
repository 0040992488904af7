# Shared by ci/test and ci/soak: steps with a name, a time limit and a log each, and a summary that says what was skipped.
# A step that exits with 77 was skipped; the last line that it printed says why. Any other code but 0 is a failure.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
export CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-2} CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=never
export COREFS=$CARGO_TARGET_DIR/release/corefs
scratch=$(mktemp -d "${TMPDIR:-/tmp}/corefs-ci.XXXXXX")
export TMPDIR=$scratch/tmp
mkdir -p "$TMPDIR" "$scratch/logs"
# Tests act as other users, too.
chmod 755 "$scratch"
# Drives of guests (ci/vm) lie in memory.
if COREFS_VM_ROOM=$(mktemp -d /dev/shm/corefs-ci.XXXXXX 2>/dev/null); then export COREFS_VM_ROOM; else unset COREFS_VM_ROOM; fi
started=$SECONDS
passed=() failed=() skipped=() figures=()

tidy_up() { rm -rf "$scratch" ${COREFS_VM_ROOM:+"$COREFS_VM_ROOM"}; }
trap tidy_up EXIT
trap 'echo "interrupted"; exit 130' INT TERM

say() { printf '%s\n' "$*"; }

# ends LOG: the last line that says something.
ends() { sed '/^[[:space:]]*$/d' "$1" | tail -n 1; }

# why LOG: what a step says it failed for, before the ends of logs that follow it; or else its last line.
why() {
  local said; said=$(grep '^FAILED: ' "$1" | tail -n 1) || true
  if [ -n "$said" ]; then say "${said#FAILED: }"; else ends "$1"; fi
}

# step NAME SECONDS COMMAND...: runs it in its time and notes what came of it. Returns whether it passed.
step() {
  local name=$1 limit=$2; shift 2
  local log="$scratch/logs/${name//[^a-zA-Z0-9._-]/-}.log" from=$SECONDS code=0
  printf '%-28s ' "$name"
  timeout --kill-after=20 "$limit" "$@" >"$log" 2>&1 </dev/null || code=$?
  local took=$((SECONDS - from))
  case $code in
    0) passed+=("$name"); printf 'ok %5ss  %s\n' "$took" "$(summary "$log")" ;;
    77) skipped+=("$name: $(ends "$log")"); printf 'SKIPPED    %s\n' "$(ends "$log")" ;;
    *)
      [ $took -lt "$limit" ] || echo "ran out of its $limit s" >>"$log"
      failed+=("$name: $(why "$log")")
      printf 'FAILED %ss, exit code %s; the end of what it said:\n' "$took" "$code"
      tail -n "${CI_LOG_LINES:-60}" "$log" | sed 's/^/    /'
      [ -z "${CI_LOGS:-}" ] || { mkdir -p "$CI_LOGS" && cp "$log" "$CI_LOGS/"; } ;;
  esac
  return $code
}

# skip NAME REASON: notes what wasn't even tried.
skip() { skipped+=("$1: $2"); printf '%-28s SKIPPED    %s\n' "$1" "$2"; }

# figure TEXT: a count for the end.
figure() { figures+=("$1"); }

# summary LOG: what a step counted, in one line.
summary() {
  if grep -q '^test result: ' "$1"; then
    tests_in "$1"
  elif grep -q 'tests run: ' "$1"; then
    sed -n 's/.*Summary \[[^]]*\] *//p' "$1" | tail -n 1
  else
    ends "$1" | cut -c 1-100
  fi
}

# tests_in LOG: the sum over all programs of `cargo test`.
tests_in() {
  awk '/^test result: /{ passed += $4; failed += $6; ignored += $8; programs++ }
    END { printf "%d tests passed, %d failed, %d ignored, in %d programs", passed, failed, ignored, programs }' "$1"
}

# end_to_end SECONDS FILES...: each end-to-end test is a step. With COREFS_E2E_KV, clusters keep their metadata there.
end_to_end() {
  local limit=$1 file name=e2e; shift
  [ -z "${COREFS_E2E_KV:-}" ] || name=e2e-fdb
  local as_root=()
  if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then
    as_root=(sudo -n env "PATH=$PATH" "TMPDIR=$TMPDIR" "COREFS=$COREFS" "HOME=$HOME" "COREFS_E2E_KV=${COREFS_E2E_KV:-}" "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}")
  fi
  for file in "$@"; do
    [ "$(basename "$file")" != lib.sh ] || continue
    step "$name/$(basename "$file" .sh)" "$limit" "${as_root[@]}" bash "$file" || true
  done
}

# report: the counts of everything, and the exit code.
report() {
  say ""
  local line
  for line in "${figures[@]+"${figures[@]}"}"; do say "counts: $line"; done
  for line in "${skipped[@]+"${skipped[@]}"}"; do say "skipped: $line"; done
  for line in "${failed[@]+"${failed[@]}"}"; do say "FAILED: $line"; done
  say "${#passed[@]} steps passed, ${#failed[@]} failed, ${#skipped[@]} skipped, in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
  [ ${#failed[@]} -eq 0 ] && [ ${#passed[@]} -gt 0 ]
}
