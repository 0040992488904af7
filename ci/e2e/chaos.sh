#!/usr/bin/env bash
# A minute of everything that can go wrong with a cluster of five storage nodes and three managers, with a fresh seed; longer runs, and what
# exactly is checked: ci/chaos --help. COREFS_CHAOS_MINUTES sets how long.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v python3 >/dev/null || { echo "skipped, because python3 is not installed"; exit 77; }
history=$(dirname "${COREFS:?the binary under test}")/corefs-history
[ -x "$history" ] || { echo "skipped, because there is no $history: cargo build --release -p corefs-history"; exit 77; }
exec ci/chaos --minutes "${COREFS_CHAOS_MINUTES:-1}"
