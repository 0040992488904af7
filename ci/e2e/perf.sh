#!/usr/bin/env bash
# The measurements say what they measured: the shape of the report, verified bytes, honest refusals. No figure is judged, but that the
# raw disk agrees with fio is looked at and told.
. "$(dirname "$0")/lib.sh"
need_tool python3

# report FILE MODE...: the JSON has these rows, whole, without errors.
report() {
  python3 - "$@" <<'PY' || die "the report is wrong"
import json, sys
report = json.load(open(sys.argv[1]))
modes = [row["mode"] for row in report["rows"]]
assert modes == sys.argv[2:], modes
for row in report["rows"]:
    assert row["iops"] > 0 and row["bytes_per_second"] > 0 and row["operations"] > 0, row
    assert row["errors"] == 0 and row["verify_errors"] in (0, None), row
    order = [row["latency_us"][name] for name in ("p50", "p90", "p99", "p99_9", "max")]
    assert order == sorted(order) and order[0] > 0, row
    if row["mode"].startswith("native"):
        assert row["verify_errors"] == 0, row
        assert all(row["cpu_us_per_op"][name] is not None for name in row["cpu_us_per_op"]), row
    if row["mode"].endswith("_randread"):
        assert row["ratio_to_disk"] > 0, row
assert report["config"]["block"] and report["machine"]["kernel"], report
PY
}

"$COREFS" perf disk --path "$work" --size 256MiB --seconds 2 --json "$work/disk.json" >"$work/table"
report "$work/disk.json" disk
awk 'length > 80 { print; exit 1 }' "$work/table" || die "the table is wider than 80 columns"
grep -q 'p99.9' "$work/table" && grep -q '#' "$work/table" || die "no table or histogram"
LC_ALL=C grep -q '[^ -~]' "$work/table" && die "not plain ASCII, though it is no terminal"
say "$(sed -n 2p "$work/table")"
if command -v fio >/dev/null; then
  "$COREFS" perf disk --path "$work" --size 256MiB --seconds 6 --against-fio | grep 'fio on the same file'
else
  say "fio isn't installed: not compared"
fi

up --capacity 2GiB
"$COREFS" perf randread --size 256MiB --seconds 2 --verify --ceiling "$work" --json "$work/read.json" >"$work/table"
report "$work/read.json" disk native_randread
say "$(sed -n 3p "$work/table")"
"$COREFS" perf randread --size 256MiB --seconds 2 --rate 500 --depth 32 --verify --ceiling "$work" --json >"$work/open.json"
report "$work/open.json" disk native_randread
python3 -c 'import json, sys; row = json.load(open(sys.argv[1]))["rows"][1]; assert row["iops"] <= 510, row' "$work/open.json" ||
  die "an open loop did more than its rate"
"$COREFS" perf randwrite --size 128MiB --seconds 2 --verify --path /written.dat --json "$work/write.json" >/dev/null
report "$work/write.json" native_randwrite
"$COREFS" perf seqwrite --size 256MiB --seconds 2 --verify --path /sequential.dat --json "$work/write.json" >/dev/null
report "$work/write.json" native_seqwrite
"$COREFS" perf seqread --size 128MiB --seconds 2 --verify --path /written.dat --json "$work/read.json" >/dev/null
report "$work/read.json" native_seqread
say "reads and writes verified"

# Another seed's pattern isn't there: the verification can fail.
if "$COREFS" perf randread --size 128MiB --seconds 1 --verify --path /written.dat --seed 2 >"$work/table"; then
  die "wrong bytes passed the verification"
fi
grep -q 'VERIFICATION ERRORS' "$work/table" || die "wrong bytes were not counted"

refused() { # expected text, then flags
  local text=$1; shift
  if "$COREFS" perf "$@" >"$work/said" 2>&1; then die "accepted: perf $*"; fi
  grep -q -- "$text" "$work/said" || { cat "$work/said"; die "perf $* doesn't say '$text'"; }
}
truncate -s 1M "$work/hole"
refused 'never written' disk --path "$work/hole"
refused 'destroy' disk --path "$work/hole" --access randwrite
refused '--block' randread --block 5000
refused 'no unit' randread --size 3parsecs
refused 'NaN' randread --seconds NaN
refused 'needed' randread --path /written.dat --size 1GiB
down
say "nonsense refused"
