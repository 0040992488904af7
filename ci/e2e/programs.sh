#!/usr/bin/env bash
# Programs as people run them, on a mount: databases that are killed, copies with everything, random verified I/O by every
# engine, builds. ci/posix gives the same programs more time.
#   PROGRAMS_SCALE=N       so many times the work (1)
#   PROGRAMS_STRESSORS=... these stressors of stress-ng
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
root=$(cd "$(dirname "$0")/../.." && pwd)
scale=${PROGRAMS_SCALE:-1}
mkdir "$work/mnt"
up --capacity 4GiB --mount "$work/mnt"
mnt=$work/mnt
has() { command -v "$1" >/dev/null || { say "$1: skipped, because it is not installed"; return 1; }; }

# Databases under concurrent writers, killed: what was committed is there, and nothing is broken.
cat >"$work/writers.py" <<'PY'
import os, signal, sqlite3, sys, time
path, journal, log, seconds = sys.argv[1:4] + [float(sys.argv[4])]
def connect():
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute(f"pragma journal_mode={journal}"); db.execute("pragma synchronous=full")
    return db
connect().execute("create table if not exists t(writer integer, number integer, filler blob)")
children = []
for writer in range(3):
    pid = os.fork()
    if pid == 0:
        db, done = connect(), os.open(f"{log}.{writer}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in range(1_000_000):
            db.execute("begin immediate")
            db.execute("insert into t values (?, ?, ?)", (writer, number, os.urandom(2000)))
            db.execute("commit")
            os.write(done, f"{number}\n".encode())
    children.append(pid)
deadline = time.time() + 60 + seconds
while time.time() < deadline and any(not os.path.exists(f"{log}.{w}") or os.path.getsize(f"{log}.{w}") < 20 * seconds for w in range(3)):
    time.sleep(0.05)
for pid in children: os.kill(pid, signal.SIGKILL)
for pid in children: os.waitpid(pid, 0)
db = sqlite3.connect(path, timeout=60)
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
total = 0
for writer in range(3):
    logged = [int(line) for line in open(f"{log}.{writer}") if line.endswith("\n")]
    stored = {n for n, in db.execute("select number from t where writer = ?", (writer,))}
    missing = set(logged) - stored
    assert not missing, f"writer {writer} lost {sorted(missing)[:5]}"
    assert len(stored) <= len(logged) + 1, "more than the one that was under way"
    total += len(stored)
assert total > 0
print(f"sqlite, journal {journal}: killed under 3 writers, {total} commits there")
PY
for journal in wal delete; do
  python3 "$work/writers.py" "$mnt/$journal.db" $journal "$work/$journal.log" "$scale" || die "sqlite with journal $journal"
done

# Copies with everything: bytes, holes, links, owners, modes, times, attributes, lists.
mkdir "$work/tree" && cd "$work/tree"
mkdir -p a/b; for i in $(seq 50); do head -c $((i * 997)) /dev/urandom >"a/file $i"; done
truncate -s 64M sparse; printf data | dd of=sparse bs=1 seek=40M conv=notrunc status=none
ln -s ../a a/b/soft; ln "a/file 1" a/b/hard; mkfifo fifo; chmod 4711 "a/file 2"; chown 1234:5678 "a/file 3"; touch -d @1.123456789 "a/file 4"
attributes=()
# shellcheck disable=SC2015 # the local file system may have neither
setfattr -n user.x -v y "a/file 5" 2>/dev/null && setfacl -m u:7:r "a/file 6" 2>/dev/null && setfacl -d -m g:8:rx a/b 2>/dev/null && attributes=(-A -X) ||
  say "attributes of copies: skipped, because $work has none to copy"
cd "$work"
same() { # as rsync sees it: nothing to do
  local todo; todo=$(rsync -aHS --checksum "${attributes[@]}" --dry-run --itemize-changes --delete "$work/tree/" "$1/")
  [ -z "$todo" ] || { say "$todo"; die "$2 changed what it copied"; }
}
if has rsync; then
  rsync -aHS "${attributes[@]}" "$work/tree/" "$mnt/rsync/" && same "$mnt/rsync" rsync
  cp -a --sparse=always "$work/tree" "$mnt/cp" && same "$mnt/cp" "cp -a"
  mkdir "$mnt/tar" && tar -C "$work/tree" --xattrs --acls --sparse -cf - . | tar -C "$mnt/tar" --xattrs --xattrs-include='*' --acls -xpf - && same "$mnt/tar" tar
  mkdir "$mnt/back" && cp -a --sparse=always "$mnt/cp/." "$mnt/back" && same "$mnt/back" "cp within the mount"
  say "rsync, cp -a, tar: everything is copied"
fi

# Random operations against a model: fsx has truncation, holes, mappings and copies.
fsx=$root/.cache/fsx-0.3.0/bin/fsx
if [ ! -x "$fsx" ] && has cargo; then
  cargo install --quiet --debug --locked --root "$root/.cache/fsx-0.3.0" fsx@0.3.0 >"$work/install.log" 2>&1 || { cat "$work/install.log"; die "fsx can't be installed"; }
fi
cat >"$work/fsx.toml" <<'TOML'
flen = 3000000
[opsize]
max = 200000
[weights]
close_open = 1
invalidate = 1
mapread = 1
mapwrite = 1
read = 3
write = 3
truncate = 1
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 1
punch_hole = 2
sendfile = 1
posix_fadvise = 1
copy_file_range = 2
TOML
for seed in $(seq "$scale"); do
  "$fsx" -q -q -f "$work/fsx.toml" -S "$seed" -N 1000 -P "$work" "$mnt/fsx" >"$work/fsx.log" 2>&1 || { tail -n 30 "$work/fsx.log"; die "fsx with seed $seed"; }
done
say "fsx: $((1000 * scale)) operations as in the model"

if has fio; then
  for engine in psync mmap libaio io_uring; do
    fio --name=$engine --directory="$mnt" --ioengine=$engine --size=$((4 * scale))m --rw=randrw --bsrange=512-64k --blockalign=512 --iodepth=8 \
      --verify=crc32c --verify_fatal=1 --verify_backlog=64 --do_verify=1 --output="$work/fio.log" || { tail -n 20 "$work/fio.log"; die "fio with engine $engine"; }
  done
  fio --name=direct --directory="$mnt" --ioengine=io_uring --direct=1 --size=$((4 * scale))m --rw=randrw --bs=4k --iodepth=16 --verify=crc32c --verify_fatal=1 \
    --do_verify=1 --output="$work/fio.log" || { tail -n 20 "$work/fio.log"; die "fio, direct"; }
  say "fio: verified with psync, mmap, libaio, io_uring, and direct"
fi

if has stress-ng; then
  stressors='dentry dir fallocate filename flock fpunch getdent hdd iomix lockf lockofd mknod rename seek utime xattr'
  there=$(stress-ng --stressors 2>/dev/null)
  # All at once, each verifying what it can.
  mkdir "$mnt/stress"
  flags=()
  for stressor in ${PROGRAMS_STRESSORS:-$stressors}; do
    [[ " $there " == *" $stressor "* ]] && flags+=("--$stressor" 1) || say "stress-ng --$stressor: skipped, because this stress-ng doesn't have it"
  done
  stress-ng --temp-path "$mnt/stress" "${flags[@]}" --hdd-bytes 8m --timeout $((6 * scale)) --verify >"$work/stress.log" 2>&1 ||
    { tail -n 20 "$work/stress.log"; die "stress-ng"; }
  if grep -qE 'fail:|error:' "$work/stress.log"; then cat "$work/stress.log"; die "stress-ng complains"; fi
  say "stress-ng: $((${#flags[@]} / 2)) stressors have nothing to say"
fi

if has dbench; then
  mkdir "$mnt/dbench"
  dbench -c /usr/share/dbench/client.txt -D "$mnt/dbench" -t $((4 * scale)) 2 >"$work/dbench.log" 2>&1 || { tail -n 20 "$work/dbench.log"; die "dbench"; }
  say "dbench: $(grep '^Throughput' "$work/dbench.log")"
fi

if has git; then
  git clone -q --no-hardlinks "$root" "$mnt/clone" 2>/dev/null || { rm -rf "$mnt/clone"; say "git: skipped, because $root is no repository"; }
  if [ -d "$mnt/clone" ]; then
    git -C "$mnt/clone" fsck --full --no-dangling >"$work/git.log" 2>&1 || { cat "$work/git.log"; die "git fsck"; }
    # By whole words: names of objects are letters, too.
    if grep -wiE 'error|missing|corrupt|bad|broken' "$work/git.log"; then die "git fsck complains"; fi
    [ -z "$(git -C "$mnt/clone" status --porcelain)" ] || die "a fresh clone isn't clean"
    say "git: this repository cloned and checked"
  fi
fi
if has cargo; then
  mkdir -p "$mnt/crate/src" && cd "$mnt/crate"
  printf '[package]\nname = "small"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' >Cargo.toml
  for i in $(seq 12); do printf 'pub fn f() -> u64 { %s }\n' "$i" >"src/m$i.rs"; done
  { for i in $(seq 12); do echo "mod m$i;"; done; echo 'fn main() { println!("{}", 0'; for i in $(seq 12); do echo " + m$i::f()"; done; echo '); }'; } >src/main.rs
  env -u CARGO_TARGET_DIR cargo build --offline --quiet -j 2 && [ "$(./target/debug/small)" = 78 ] || die "cargo build"
  touch src/m3.rs && env -u CARGO_TARGET_DIR cargo build --offline --quiet -j 2 || die "cargo build, again"
  say "cargo: a crate built and built again"
fi
cd "$work"
if /usr/bin/python3 -c 'import numpy' 2>/dev/null; then
  /usr/bin/python3 - "$mnt/array" <<'PY' || die "numpy"
import numpy, sys
a = numpy.memmap(sys.argv[1], dtype="int64", mode="w+", shape=(512, 1024))
a[:] = numpy.arange(a.size).reshape(a.shape); a.flush()
b = numpy.memmap(sys.argv[1], dtype="int64", mode="r+", shape=(512, 1024))
assert (b == numpy.arange(b.size).reshape(b.shape)).all()
b[100:200] *= -1; del a, b
c = numpy.memmap(sys.argv[1], dtype="int64", mode="r", shape=(512, 1024))
assert c[150, 7] == -(150 * 1024 + 7) and c[:100].sum() == numpy.arange(100 * 1024).sum()
PY
  say "numpy: memory-mapped arrays"
else
  say "numpy: skipped, because python3-numpy is not installed"
fi
down
fsck | tee "$work/fsck.log"
grep -q ', 0 sessions,' "$work/fsck.log" || die "sessions are left of files that were closed"
