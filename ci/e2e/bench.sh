#!/usr/bin/env bash
# That ci/bench runs, in small: no figure of it is looked at.
. "$(dirname "$0")/lib.sh"
need_tool fio
need_tool python3
unset COREFS_MANAGER COREFS_SECRET_FILE
BENCH_SIZE=64MiB BENCH_SECONDS=0.3 BENCH_REPEAT=2 BENCH_DIR="$work" BENCH_OUT="$work/out" \
  "$(dirname "$0")/../bench" reads latency sequential writes >"$work/said" 2>&1 || { tail -n 30 "$work/said"; die "ci/bench failed"; }
python3 - "$work/out" <<'PY' || die "the reports are wrong"
import json, pathlib, sys
reports = {path.stem: json.loads(path.read_text()) for path in pathlib.Path(sys.argv[1]).glob("*.json")}
assert len(reports) == 8, sorted(reports)
for name, report in reports.items():
    assert all(row["errors"] in (0, None) and row["iops"] > 0 for row in report["rows"]), (name, report["rows"])
assert reports["reads-128"]["rows"][-1]["ratios"].keys() == {"bare", "fio"}, reports["reads-128"]["rows"][-1]
assert "local_flush" in [row["mode"] for row in reports["writes-1"]["rows"]]
PY
[ -z "$(find "$work" -name 'corefs-bench.*')" ] || die "something was left behind"
say "8 comparisons ran"
