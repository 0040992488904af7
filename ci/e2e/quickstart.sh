#!/usr/bin/env bash
# The main job in small: everything is measured and verified, and nothing is left behind.
. "$(dirname "$0")/lib.sh"
need_tool python3
mkdir "$work/here"
cd "$work/here"
"$COREFS" quickstart --size 256MiB --seconds 2 --json >"$work/report.json" 2>"$work/said" || { tail -n 20 "$work/said"; die "quickstart failed"; }
[ -z "$(ls -A "$work/here")" ] || die "it leaves behind: $(ls -A "$work/here")"
mounts=no; can_mount && mounts=yes
python3 - "$work/report.json" $mounts <<'PY' || die "the report is wrong"
import json, sys
report = json.load(open(sys.argv[1]))
rows = {row["mode"]: row for row in report["rows"]}
wanted = {"disk", "native_seqwrite", "native_randread"} | ({"mount_copy", "mount_randread"} if sys.argv[2] == "yes" else set())
assert wanted <= set(rows), f"{sorted(rows)} lacks {sorted(wanted - set(rows))}"
for row in rows.values():
    assert row["errors"] in (0, None) and row["verify_errors"] in (0, None), row
for mode in wanted - {"mount_copy"}:
    assert rows[mode]["iops"] > 0 and rows[mode]["latency_us"]["p99"] > 0, rows[mode]
assert rows["native_randread"]["ratio_to_disk"] > 0 and rows["native_randread"]["verify_errors"] == 0
if "mount_copy" in wanted:
    assert rows["mount_copy"]["mismatches"] == 0 and rows["mount_copy"]["files"] > 0, rows["mount_copy"]
for mode, row in sorted(rows.items()):
    print(f"{mode:18} {row['iops'] or 0:10.0f} a second, ratio to the disk {row['ratio_to_disk']}")
PY
