#!/usr/bin/env bash
# fsck of a cluster with a node whose only disk is lost names it, and checks all else. It makes nothing: not the disk that was added to a
# stopped node, either.
. "$(dirname "$0")/lib.sh"
[ -z "${COREFS_E2E_KV:-}" ] || skip "fsck of the embedded store is meant"
need_tool python3
up --cores 1 --replicas 2 --capacity 1GiB --targets 4
head -c 4000000 /dev/urandom >"$work/data"
"$COREFS" fs put "$work/data" /data
down
dir=$work/cluster/node-1

# parts STATE...: what fsck found in each part, and the number of findings in all.
parts() {
  fsck --json >"$work/fsck.json" || true
  python3 - "$work/fsck.json" "$@" <<'PY' || { cat "$work/fsck.json"; exit 1; }
import json, sys
found = ["{}:{}".format(part["part"], len(part["findings"])) for part in json.load(open(sys.argv[1]))["parts"]]
assert found == sys.argv[2:], f"{found}, not {sys.argv[2:]}"
print("fsck:", ", ".join(found))
PY
}

"$COREFS" fsck --dir "$dir" --remove-orphans 2>"$work/refused" && die "a node alone has orphans"
grep -q -- '--remove-orphans' "$work/refused" || die "not said why: $(cat "$work/refused")"
"$COREFS" disk add --dir "$dir" --json | python3 -c '
import json, sys
told = json.load(sys.stdin)
assert told["node"] == 1 and not told["served"] and told["when_it_serves"] == ["corefs node add 1"], told' || die "programs aren't told of the disk"
rm "$dir/disk-1"
parts "key-value store:0" namespace:0 node-1:0 node-2:0
[ ! -e "$dir/disk-1" ] || die "fsck has made a disk"
mv "$dir/disk-0" "$work/disk-0"
fsck >"$work/fsck.out" && die "fsck doesn't see that a disk is missing"
grep -q "^DAMAGE node-1: disk 0 can't be opened: .*disk-0" "$work/fsck.out" || { cat "$work/fsck.out"; die "the lost disk isn't named"; }
parts "key-value store:0" namespace:0 node-1:1 node-2:0
head -c 1000000 "$work/disk-0" >"$dir/disk-0"
parts "key-value store:0" namespace:0 node-1:1 node-2:0
echo nonsense >"$dir/node.toml"
parts "key-value store:0" namespace:0 node-1:1 node-2:0
