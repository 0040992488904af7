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
    assert row["histogram"].startswith("HIST"), row
    points = row["series"]["points"]
    assert sum(point["operations"] for point in points) == row["operations"], points
    order = [row["latency_us"][name] for name in ("p50", "p90", "p99", "p99_9", "max")]
    assert order == sorted(order) and order[0] > 0, row
    if row["mode"].startswith("native"):
        assert row["verify_errors"] == 0, row
        assert all(row["cpu_us_per_op"][name] is not None for name in row["cpu_us_per_op"]), row
    if row["mode"].endswith("_randread") and "disk" in modes:
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

# Everything that a run can be: reads and writes mixed, skewed, of many files, of odd sizes at odd places, larger than a frame.
short=(--size 32MiB --seconds 1 --runtime-warmup 0.2 --verify)
"$COREFS" perf mixed "${short[@]}" --reads 60 --zipf 0.99 --cores 2 --path /mixed.dat --json "$work/mixed.json" --hdr-log "$work/mixed.hlog" \
  --csv "$work/mixed.csv" --html "$work/mixed.html" >"$work/table"
report "$work/mixed.json" native_mixed_read native_mixed_write
grep -q '60% reads' "$work/table" || die "the table doesn't say what was mixed"
python3 - "$work" <<'PY' || die "the files of the report are wrong"
import base64, csv, json, struct, sys, zlib
from xml.etree import ElementTree
work = sys.argv[1]
rows = json.load(open(f"{work}/mixed.json"))["rows"]
reads, writes = (row["operations"] for row in rows)
assert 0.5 < reads / (reads + writes) < 0.7, (reads, writes)
lines = list(csv.DictReader(open(f"{work}/mixed.csv")))
assert [(line["mode"], float(line["iops"])) for line in lines] == [(row["mode"], row["iops"]) for row in rows]
log = [line.rstrip().split(",") for line in open(f"{work}/mixed.hlog") if line[0] not in '#"']
assert {fields[0] for fields in log} == {"Tag=" + row["mode"] for row in rows}, log
for fields in log:
    cookie, length = struct.unpack(">II", base64.b64decode(fields[4])[:8])
    assert cookie == 0x1C849314 and struct.unpack(">I", zlib.decompress(base64.b64decode(fields[4])[8:])[:4])[0] == 0x1C849313
page = open(f"{work}/mixed.html").read()
ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
assert all(part in page for part in ("native_mixed_write", "polyline", "prefers-color-scheme")) and "<script" not in page
PY
"$COREFS" perf randread "${short[@]}" --path /mixed.dat --json "$work/read.json" >/dev/null
report "$work/read.json" native_randread
"$COREFS" perf randread "${short[@]}" --path /many.dat --files 24 --zipf 1.1 --zipf-over files --json "$work/read.json" >/dev/null
report "$work/read.json" native_randread
"$COREFS" perf randwrite "${short[@]}" --path /many.dat --files 24 --depth 16 --cores 2 --json "$work/write.json" >/dev/null
report "$work/write.json" native_randwrite
[ "$("$COREFS" fs ls / | grep -c 'many[.]dat[.]')" = 24 ] || die "there aren't 24 files"
odd=(--size 160MiB --runtime-warmup 0.1 --verify --depth 2 --unaligned --path /odd.dat)
for block in 512 12345 3MiB 16MiB; do
  for verb in randwrite randread seqwrite seqread; do
    # Longer when this machine is so busy that not one of the large ones ends in time.
    for seconds in 0.5 5 40; do
      "$COREFS" perf "$verb" "${odd[@]}" --block "$block" --seconds $seconds --json "$work/odd.json" >/dev/null
      python3 -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["rows"][0]["operations"] == 0)' "$work/odd.json" && break
    done
    report "$work/odd.json" "native_$verb"
  done
done
# What the odd writes left is known by whole blocks too.
"$COREFS" perf randread "${short[@]}" --path /odd.dat --json "$work/read.json" >/dev/null
report "$work/read.json" native_randread
say "mixed, skewed, many files, odd blocks: verified"

# The bounds without a file system, idle connections, and what an operation cost the servers.
"$COREFS" perf wire --seconds 1 --servers 2 --batch 16 --json "$work/wire.json" >/dev/null
report "$work/wire.json" wire
"$COREFS" perf bare --seconds 1 --size 64MiB --path "$work" --json "$work/bare.json" >/dev/null
report "$work/bare.json" disk bare
"$COREFS" perf randread "${short[@]}" --path /mixed.dat --connections 500 --json "$work/read.json" >"$work/table"
report "$work/read.json" native_randread
grep '500 idle connections' "$work/table" || die "nothing is said of idle connections"
python3 - "$work/read.json" <<'PY' || die "the servers' costs are wrong"
import json, sys
extras = json.load(open(sys.argv[1]))["rows"][0]
costs = extras["server_per_op"]
assert 1 <= costs["ring_entries"] < 3 and costs["system_calls"] < 2 and costs["cross_core_messages"] < 0.1, costs
assert costs["allocations"] < 0.5 and 0 < extras["server_bytes_per_connection"] < 65536, extras
PY
(unset COREFS_MANAGER
  "$COREFS" perf compare bare randread --size 64MiB --seconds 0.5 --repeat 2 --ceiling "$work" --json "$work/own.json" >"$work/table")
grep -q 'of bare' "$work/table" || die "no ratio to bare"
[ -z "$(find "$work" -name 'corefs-compare-*')" ] || die "the cluster of a comparison was left behind"
say "bounds, costs, a cluster for one comparison"

# Reports again, and against each other.
"$COREFS" perf compare disk randread --size 32MiB --seconds 0.3 --repeat 3 --path /compared.dat --ceiling "$work" --json "$work/compared.json" >/dev/null
"$COREFS" perf report "$work/compared.json" --html "$work/compared.html" --csv "$work/compared.csv" | grep -q '3 rounds' || die "no rounds"
[ "$(wc -l <"$work/compared.csv")" = 9 ] || die "the CSV has not a line a row and round"
grep -q 'id="ratios"' "$work/compared.html" || die "the page has no ratios"
"$COREFS" perf diff "$work/compared.json" "$work/compared.json" --fail-over 0 | grep -q 'within the rounds' || die "a report differs from itself"
"$COREFS" perf diff "$work/mixed.json" "$work/compared.json" | grep -q 'SETTINGS DIFFER: ' || die "other settings are not told"
if "$COREFS" perf diff "$work/mixed.json" "$work/compared.json" --fail-over 5 >"$work/said"; then die "missing rows are no failure"; fi
grep -q 'FAILED: disk is missing' "$work/said" || die "a missing row isn't named"
# The bar, on a terminal.
if command -v script >/dev/null; then
  script -qec "$COREFS perf randread --size 32MiB --seconds 3 --runtime-warmup 0 --path /mixed.dat" "$work/terminal" >/dev/null
  grep -aq 'IOPS, p50 .*, p99 .*, 0 errors' "$work/terminal" || die "the bar doesn't say how it goes"
fi
say "reports shown again and compared"

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
refused '--block' randread --block 100
refused 'O_DIRECT' disk --path "$work" --block 5000
refused '--files' randread --files 100000
refused '--zipf' seqread --zipf 1
refused 'no such directory' randread --html "$work/no/such/place.html"
refused 'no report' report "$work/hole"
refused 'no unit' randread --size 3parsecs
refused 'NaN' randread --seconds NaN
refused 'needed' randread --path /written.dat --size 1GiB
down
say "nonsense refused"
