#!/usr/bin/env bash
# What programs do to files through a mount: unaligned and sparse writes, append, truncate, mmap, rename over open files,
# unlinked open files, long names, errors.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt"
up --capacity 2GiB --mount "$work/mnt"
cd "$work/mnt"
python3 - <<'PY'
import errno, fcntl, mmap, os, random, stat, time

def fails(code, call, *args, **kw):
    try:
        call(*args, **kw)
    except OSError as error:
        assert error.errno == code, f"{call.__name__}{args}: {errno.errorcode[error.errno]}, not {errno.errorcode[code]}"
        return
    raise AssertionError(f"{call.__name__}{args} should have failed with {errno.errorcode[code]}")

# Random unaligned reads, writes and truncates against a model in memory.
random.seed(7)
model = bytearray()
fd = os.open("random", os.O_RDWR | os.O_CREAT)
for step in range(600):
    what = random.random()
    offset = random.randrange(3_000_000)
    if what < 0.5:
        data = random.randbytes(random.choice([1, 10, 4095, 4096, 4097, 70_000, 600_000]))
        if len(model) < offset + len(data):
            model.extend(bytes(offset + len(data) - len(model)))
        model[offset:offset + len(data)] = data
        assert os.pwrite(fd, data, offset) == len(data)
    elif what < 0.9:
        length = random.choice([1, 4096, 5000, 1_000_000])
        assert os.pread(fd, length, offset) == bytes(model[offset:offset + length]), f"step {step}: read at {offset}"
    elif what < 0.95:
        os.ftruncate(fd, offset)
        if offset < len(model):
            del model[offset:]
        else:
            model.extend(bytes(offset - len(model)))
    else:
        os.fsync(fd)
    assert os.fstat(fd).st_size == len(model), f"step {step}: size"
os.close(fd)
assert open("random", "rb").read() == bytes(model)

# Sparse beyond 4 GiB.
with open("sparse", "wb") as file:
    file.seek(5 << 30)
    file.write(b"end")
with open("sparse", "rb") as file:
    assert file.read(1 << 20) == bytes(1 << 20)
    file.seek((5 << 30) - 2)
    assert file.read() == b"\0\0end"

# Append, also from two descriptors in turn.
a, b = (os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2))
for i in range(200):
    os.write(a if i % 2 else b, f"{i:05}\n".encode())
os.close(a); os.close(b)
assert open("log").read() == "".join(f"{i:05}\n" for i in range(200))

# mmap: read, and shared write.
with open("random", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    assert memory[:] == bytes(model)
    memory[100:105] = b"hello"; model[100:105] = b"hello"
    memory.flush()
assert open("random", "rb").read() == bytes(model)

# O_TRUNC, O_EXCL, O_DIRECT.
with open("short", "wb") as file: file.write(b"x" * 100_000)
with open("short", "wb") as file: file.write(b"y")
assert open("short", "rb").read() == b"y"
fails(errno.EEXIST, os.open, "short", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
page = mmap.mmap(-1, 8192); page.write(os.urandom(8192))
assert os.pwritev(fd, [page], 4096) == 8192
back = mmap.mmap(-1, 8192)
assert os.preadv(fd, [back], 4096) == 8192 and back[:] == page[:]
os.close(fd)

# Rename over an open file; the old one stays readable. An unlinked open file too.
for name in "old", "new":
    with open(name, "w") as file: file.write(name)
keep = open("old"); os.rename("new", "old")
assert open("old").read() == "new" and keep.read() == "old"
gone = open("gone", "w+"); gone.write("still here"); gone.flush(); os.unlink("gone")
assert not os.path.exists("gone")
gone.seek(0); assert gone.read() == "still here"
os.fsync(gone.fileno()); assert os.fstat(gone.fileno()).st_nlink == 0
gone.close(); keep.close()

# Files without a name that several have open: whoever closes first, the others go on.
def make(name, data):
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL); os.write(fd, data)
    return fd
def same_again(fd, data): # through a descriptor that stays, long after the others were closed
    assert os.pread(fd, len(data) + 1, 0) == data, "bytes of a file without a name"
    assert os.fstat(fd).st_nlink == 0
kept = []
fd = make("dup", b"d" * 10_000); os.unlink("dup"); os.write(fd, b"d"); os.close(os.dup(fd)); kept.append((fd, b"d" * 10_001))
fd = make("dup", b"e" * 10_000); os.close(os.dup(fd)); os.unlink("dup"); os.write(fd, b"e"); os.close(os.dup(fd)); kept.append((fd, b"e" * 10_001))
fd = make("over", b"o" * 10_000); make("new-over", b""); os.rename("new-over", "over"); os.close(os.dup(fd)); kept.append((fd, b"o" * 10_000))
for synced in False, True:
    fd = make("pair", b"p" * 600_000); reader = os.open("pair", os.O_RDONLY)
    os.unlink("pair"); os.write(fd, b"p")
    if synced: os.fsync(fd)
    os.close(fd); kept.append((reader, b"p" * 600_001))
fd = make("child", b"c" * 10_000); os.unlink("child")
if os.fork() == 0: os._exit(0)
os.wait(); kept.append((fd, b"c" * 10_000))
time.sleep(3)
with open("/proc/sys/vm/drop_caches", "w") as caches: caches.write("3")
for fd, data in kept: same_again(fd, data)
for fd, data in kept:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_RDWR: os.pwrite(fd, b"again", 0); os.fsync(fd); same_again(fd, b"again" + data[5:])
    os.close(fd)

# Directories: loops, non-empty, replacing, many entries.
os.makedirs("a/b/c")
fails(errno.EINVAL, os.rename, "a", "a/b/c/d")
fails(errno.ENOTEMPTY, os.rmdir, "a")
os.mkdir("e"); os.rename("a/b/c", "e"); assert os.listdir("e") == []
open("file", "w").close()
fails(errno.ENOTDIR, os.rename, "a", "file")
fails(errno.EISDIR, os.rename, "file", "a")
fails(errno.ENOTDIR, os.listdir, "file")
fails(errno.ENOENT, os.stat, "nowhere")
os.mkdir("many")
for i in range(2500): open(f"many/{i}", "w").close()
assert sorted(os.listdir("many")) == sorted(map(str, range(2500)))
for entry in list(os.scandir("many")): os.unlink(entry.path)
os.rmdir("many")

# Names.
fails(errno.ENAMETOOLONG, open, "n" * 256, "w")
open("n" * 255, "w").close(); os.unlink("n" * 255)
open(b"\xff\xfe not utf-8 \n", "w").close(); assert b"\xff\xfe not utf-8 \n" in os.listdir(b".")
fails(errno.ENAMETOOLONG, os.stat, "d/" * 2048 + "x")

# Links, modes, times.
os.link("file", "hard"); assert os.stat("file").st_nlink == 2
os.unlink("file"); assert os.stat("hard").st_nlink == 1
os.symlink("hard", "soft"); assert os.readlink("soft") == "hard" and os.stat("soft").st_ino == os.stat("hard").st_ino
os.chmod("hard", 0o6755); assert stat.S_IMODE(os.stat("hard").st_mode) == 0o6755
os.chown("hard", 12, 34); assert (os.stat("hard").st_uid, os.stat("hard").st_gid) == (12, 34)
os.utime("hard", ns=(1_500_000_000_123_456_789, -1_000_000_001))
assert (os.stat("hard").st_atime_ns, os.stat("hard").st_mtime_ns) == (1_500_000_000_123_456_789, -1_000_000_001)
os.mkfifo("fifo"); assert stat.S_ISFIFO(os.stat("fifo").st_mode)
assert os.statvfs(".").f_namemax == 255
print("programs get what POSIX promises")
PY
if command -v sqlite3 >/dev/null; then
  sqlite3 db 'create table t(x); insert into t select value from generate_series(1, 2000); pragma integrity_check; select count(*) from t;' | tr '\n' ' ' | grep -q 'ok 2000' || die "sqlite"
  say "sqlite: integrity ok"
else
  say "sqlite: skipped, because sqlite3 is not installed"
fi
if command -v git >/dev/null; then
  git init -q repo && cd repo && git config user.email e2e@example.com && git config user.name e2e
  cp -r /usr/include/linux . 2>/dev/null || cp -r /etc/ssl .
  git add -A && git commit -qm one && git gc -q && git fsck --strict 2>&1 | grep -iE 'error|missing|corrupt' && die "git fsck"
  cd ..; git clone -q repo clone && diff -r repo/linux clone/linux 2>/dev/null || diff -r repo/ssl clone/ssl
  say "git: commit, gc, fsck, clone"
else
  say "git: skipped, because git is not installed"
fi
if command -v fio >/dev/null; then
  fio --name=verify --filename=fio --size=32m --rw=randrw --bs=4k --verify=crc32c --verify_fatal=1 --ioengine=psync --direct=1 --output=/dev/null || die "fio verify"
  say "fio: random writes verified"
else
  say "fio: skipped, because fio is not installed"
fi
cd "$work"
down
fsck
