#!/usr/bin/env bash
# What files have besides bytes and a mode: extended attributes, access control lists, locks, holes, set-id bits; and that
# two mounts agree about them.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
need_tool setfacl
need_tool getfattr
mkdir "$work/mnt"
chmod 755 "$work"
up --capacity 2GiB --mount "$work/mnt"
second_mount

cd "$work/mnt"
python3 - "$work/mnt" "$work/two" <<'PY'
import ctypes, errno, fcntl, os, signal, socket, stat, struct, subprocess, sys, threading
one, two = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)

def fails(code, call, *args, **kw):
    try:
        call(*args, **kw)
    except OSError as error:
        assert error.errno == code, f"{call.__name__}{args}: {errno.errorcode[error.errno]}, not {errno.errorcode[code]}"
        return
    raise AssertionError(f"{call.__name__}{args} should have failed with {errno.errorcode[code]}")

def c(name, *args):
    result = getattr(libc, name)(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def as_user(uid, gid, groups, call):
    """Runs call in a child as somebody else; returns what it returns, an errno as that."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
            result = repr(call())
        except OSError as error:
            result = repr(errno.errorcode[error.errno])
        except BaseException as error:
            result = repr(str(error))
        os.write(w, result.encode()); os._exit(0)
    os.close(w)
    result = os.read(r, 65536).decode(); os.close(r); os.waitpid(pid, 0)
    return eval(result)

# Extended attributes.
open("f", "w").close()
os.setxattr("f", "user.a", b"1"); os.setxattr("f", "trusted.b", b"\0\xff"); os.setxattr("f", "security.c", b"x" * 65536)
assert sorted(os.listxattr("f")) == ["security.c", "trusted.b", "user.a"], os.listxattr("f")
assert os.getxattr(f"{two}/f", "trusted.b") == b"\0\xff" and len(os.getxattr("f", "security.c")) == 65536
fails(errno.EEXIST, os.setxattr, "f", "user.a", b"", os.XATTR_CREATE)
fails(errno.ENODATA, os.setxattr, "f", "user.b", b"", os.XATTR_REPLACE)
fails(errno.ENODATA, os.getxattr, "f", "user.none")
fails(errno.EOPNOTSUPP, os.setxattr, "f", "nonsense.a", b"")
os.mkfifo("pipe"); fails(errno.EPERM, os.setxattr, "pipe", "user.a", b"")
os.removexattr("f", "user.a"); fails(errno.ENODATA, os.removexattr, "f", "user.a")
assert as_user(1000, 1000, [], lambda: os.listxattr("f")) == ["security.c"]
assert as_user(1000, 1000, [], lambda: os.setxattr("f", "user.a", b"")) == "EACCES"

# Access control lists, checked by the kernel, inherited by the servers.
os.mkdir("acl"); os.chmod("acl", 0o700)
assert as_user(1000, 1000, [], lambda: os.listdir("acl")) == "EACCES"
subprocess.check_call(["setfacl", "-m", "u:1000:rwx,g:2000:r-x", "acl"])
assert as_user(1000, 1000, [], lambda: os.mkdir("acl/by-user")) is None
assert as_user(1001, 1001, [2000], lambda: os.listdir("acl")) == ["by-user"], "by a supplementary group"
assert as_user(1001, 1001, [2000], lambda: os.mkdir("acl/x")) == "EACCES"
assert as_user(1001, 1001, [], lambda: os.listdir("acl")) == "EACCES"
os.chmod("acl", 0o750)
assert as_user(1000, 1000, [], lambda: os.mkdir("acl/y")) == "EACCES", "chmod set the mask"
subprocess.check_call(["setfacl", "-d", "-m", "u:1000:rwx,g::r-x,o::-", "acl"])
old = os.umask(0o077); os.mkdir("acl/sub"); open("acl/sub/f", "w").close(); os.umask(old)
text = subprocess.check_output(["getfacl", "-c", "-n", "acl/sub/f"], text=True).split()
assert "user:1000:rwx" in text and "mask::rw-" in text and "other::---" in text, text
assert stat.S_IMODE(os.stat("acl/sub").st_mode) == 0o770 and "default:user:1000:rwx" in subprocess.check_output(["getfacl", "-n", "acl/sub"], text=True)
assert subprocess.check_output(["getfacl", "-n", "acl/sub"], cwd=two) == subprocess.check_output(["getfacl", "-n", "acl/sub"])
old = os.umask(0o022); open("plain", "w").close(); os.umask(old)
assert stat.S_IMODE(os.stat("plain").st_mode) == 0o644, "without a default list the umask counts"
subprocess.check_call(["cp", "-a", "acl", "copied"])
assert subprocess.check_output(["getfacl", "-n", "-p", "sub/f"], cwd="copied") == subprocess.check_output(["getfacl", "-n", "-p", "sub/f"], cwd="acl")

# Set-id bits go with a write, a truncation, a change of owner; not for root's own write.
def mode(path): return stat.S_IMODE(os.stat(path).st_mode)
def write(path, flags=os.O_WRONLY):
    fd = os.open(path, flags); os.write(fd, b"x"); os.close(fd)
for action, kept in [(lambda: write("suid"), 0o777), (lambda: os.truncate("suid", 1), 0o777),
                     (lambda: write("suid", os.O_WRONLY | os.O_TRUNC), 0o777)]:
    open("suid", "w").close(); os.chmod("suid", 0o6777)
    assert as_user(1000, 1000, [], action) is None
    assert mode("suid") == kept, oct(mode("suid"))
os.chmod("suid", 0o6755); write("suid"); assert mode("suid") == 0o6755, "root keeps them"
os.chown("suid", 1000, 1000); assert mode("suid") == 0o755
# Also what was set on a file that is open for writing, and no server knows of yet.
fd = os.open("suid-open", os.O_WRONLY | os.O_CREAT, 0o700); os.write(fd, b"x")
os.fchmod(fd, 0o4755); os.fchown(fd, 1000, 1000); assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
os.close(fd); assert mode("suid-open") == 0o755, oct(mode("suid-open"))
# Set-group-id directories hand their group on, sticky ones protect entries.
os.mkdir("team"); os.chown("team", 0, 2000); os.chmod("team", 0o2777)
assert as_user(1000, 1000, [], lambda: [os.mkdir("team/d"), os.mknod("team/f", 0o600 | stat.S_IFREG)]) == [None, None]
assert (os.stat("team/d").st_gid, mode("team/d") & 0o2000, os.stat("team/f").st_gid) == (2000, 0o2000, 2000)
os.mkdir("sticky"); os.chmod("sticky", 0o1777); open("sticky/f", "w").close()
assert as_user(1000, 1000, [], lambda: os.unlink("sticky/f")) == "EPERM"
# Other kinds.
os.mknod("char", 0o600 | stat.S_IFCHR, os.makedev(1, 3)); assert os.stat("char").st_rdev == os.makedev(1, 3)
fails(errno.EACCES, os.open, "char", os.O_RDONLY)  # a mount is nodev
os.mknod("block", 0o600 | stat.S_IFBLK, os.makedev(259, 70000)); assert os.stat("block").st_rdev == os.makedev(259, 70000)
server = socket.socket(socket.AF_UNIX); server.bind("sock"); server.listen(1)
socket.socket(socket.AF_UNIX).connect("sock")

# Times to the nanosecond; O_EXCL and renames with flags across mounts.
os.utime("plain", ns=(1, 4_000_000_000_999_999_999)); assert os.stat(f"{one}/plain").st_mtime_ns == 4_000_000_000_999_999_999
fails(errno.EEXIST, os.open, f"{two}/plain", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
def rename2(a, b, flags): return c("renameat2", -100, a.encode(), -100, b.encode(), flags)
for name in "p", "q": open(name, "w").write(name)
fails(errno.EEXIST, rename2, "p", "q", 1)
rename2("p", "q", 2); assert open("p").read() == "q" and open("q").read() == "p"
rename2("p", "r", 1); assert not os.path.exists("p")
rename2("acl", "r", 2); assert os.path.isdir("r") and os.path.isfile("acl"); rename2("acl", "r", 2)
fails(errno.EINVAL, rename2, "q", "r", 4)  # RENAME_WHITEOUT

# Holes.
fd = os.open("holes", os.O_RDWR | os.O_CREAT)
MiB = 1 << 20
os.pwrite(fd, b"\xaa" * 8 * MiB, 0)
def fallocate(mode, offset, length): return c("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
fallocate(3, MiB + 100, 4 * MiB)
want = bytearray(b"\xaa" * 8 * MiB); want[MiB + 100:5 * MiB + 100] = bytes(4 * MiB)
assert os.pread(fd, 8 * MiB, 0) == bytes(want) and os.fstat(fd).st_size == 8 * MiB
hole = os.lseek(fd, 0, os.SEEK_HOLE)
assert MiB < hole <= 3 * MiB, hole
data = os.lseek(fd, hole, os.SEEK_DATA); assert 4 * MiB <= data <= 5 * MiB + 100, data
assert os.lseek(fd, data, os.SEEK_HOLE) == 8 * MiB and want[hole:data] == bytes(data - hole)
os.pwrite(fd, b"new", 3 * MiB); want[3 * MiB:3 * MiB + 3] = b"new"
fallocate(0x10, 7 * MiB, 2 * MiB); want[7 * MiB:] = bytes(2 * MiB)
assert os.fstat(fd).st_size == 9 * MiB and os.pread(fd, 9 * MiB, 0) == bytes(want)
fallocate(0, 0, 10 * MiB); assert os.fstat(fd).st_size == 10 * MiB
fallocate(1, 0, 20 * MiB); assert os.fstat(fd).st_size == 10 * MiB
fails(errno.EOPNOTSUPP, fallocate, 8, 0, MiB)
fails(errno.ENXIO, os.lseek, fd, 10 * MiB, os.SEEK_DATA); fails(errno.ENXIO, os.lseek, fd, 9 * MiB, os.SEEK_DATA)
copy = os.open("copy", os.O_RDWR | os.O_CREAT)
done = 0
while done < 9 * MiB: done += os.copy_file_range(fd, copy, 9 * MiB - done, done, done)
assert os.pread(copy, 9 * MiB, 0) == bytes(want)
os.close(fd); os.close(copy)
assert open(f"{two}/holes", "rb").read(9 * MiB) == bytes(want)
# As far as chunks can be numbered: 16 TiB and beyond.
fd = os.open("far", os.O_RDWR | os.O_CREAT)
for at in (1 << 44) - 3, 1 << 46, (1 << 47) + 12345:
    os.pwrite(fd, b"far", at)
    assert os.pread(fd, 9, at - 3) == b"\0\0\0far" and os.fstat(fd).st_size == at + 3
assert os.lseek(fd, 0, os.SEEK_DATA) >= (1 << 44) - (1 << 26)
fails(errno.EFBIG, os.pwrite, fd, b"x", 1 << 62)
os.close(fd)

# Offsets of a directory stay right while it changes.
os.mkdir("many")
for i in range(3000): open(f"many/{i:04}", "w").close()
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
handle = ctypes.c_void_p(libc.opendir(b"many"))
def next_name():
    entry = libc.readdir(handle)
    return Dirent.from_address(entry).name.decode() if entry else None
def next_file():
    while (name := next_name()) in (".", ".."): pass
    return name
for i in range(1500): assert next_file() == f"{i:04}"
place = libc.telldir(handle)
assert next_file() == "1500"
for i in list(range(0, 1000)) + [1499, 1501]: os.unlink(f"many/{i:04}")
for i in range(200): open(f"many/0500-{i}", "w").close()
libc.seekdir(handle, ctypes.c_long(place))
rest = []
while (name := next_file()) is not None: rest.append(name)
assert [n for n in rest if n != "1501"] == ["1500"] + [f"{i:04}" for i in range(1502, 3000)], rest[:5]
libc.closedir(handle)

# Locks: between processes of one mount, between mounts, gone with whoever held them.
lock = open("lock", "w+"); lock.write("x" * 100); lock.flush()
fcntl.lockf(lock, fcntl.LOCK_EX, 10, 0)
def try_lock(path, start, kind=fcntl.LOCK_EX):
    with open(path, "r+") as file:
        fcntl.lockf(file, kind | fcntl.LOCK_NB, 10, start)
        return "locked"
other = lambda path, start: as_user(0, 0, [], lambda: try_lock(path, start))
assert other(f"{one}/lock", 5) == "EAGAIN" and other(f"{two}/lock", 5) == "EAGAIN" and other(f"{two}/lock", 10) == "locked"
def who_blocks():
    with open(f"{two}/lock", "r+") as file:
        flock = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        kind, _, start, length, pid = struct.unpack("hhqqi4x", flock)
        return kind, start, length
assert as_user(0, 0, [], who_blocks) == (fcntl.F_WRLCK, 0, 10), as_user(0, 0, [], who_blocks)
fcntl.lockf(lock, fcntl.LOCK_UN); assert other(f"{two}/lock", 5) == "locked"
# Waiting, woken by the other mount's unlock; and killed while waiting.
fcntl.lockf(lock, fcntl.LOCK_EX)
def wait():
    with open(f"{two}/lock", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX); return "got it"
waiter = subprocess.Popen([sys.executable, "-c", f"import fcntl\nwith open('{two}/lock', 'r+') as f:\n  print('waits', flush=True); fcntl.lockf(f, fcntl.LOCK_EX); print('got it', flush=True)"], stdout=subprocess.PIPE, text=True)
assert waiter.stdout.readline() == "waits\n"
fcntl.lockf(lock, fcntl.LOCK_UN)
assert waiter.stdout.readline() == "got it\n" and waiter.wait() == 0
fcntl.lockf(lock, fcntl.LOCK_EX)
waiter = subprocess.Popen([sys.executable, "-c", f"import fcntl\nwith open('{one}/lock', 'r+') as f:\n  print('waits', flush=True); fcntl.lockf(f, fcntl.LOCK_EX)"], stdout=subprocess.PIPE, text=True)
assert waiter.stdout.readline() == "waits\n"
waiter.kill(); assert waiter.wait() == -signal.SIGKILL, "who waits for a lock can be killed"
# Granted to a thread while another one of its process closes another descriptor of the file: it goes with the process all the same.
waiter = subprocess.Popen([sys.executable, "-c", f'''import fcntl, os, sys, threading
held, other = os.open("{one}/lock", os.O_RDWR), os.open("{one}/lock", os.O_RDWR)
thread = threading.Thread(target=lambda: fcntl.lockf(held, fcntl.LOCK_EX)); thread.start()
print("waits", flush=True); sys.stdin.readline()
os.close(other); print("closed", flush=True)
thread.join(); print("got it", flush=True); sys.stdin.readline()
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def next_step(expected, step="\n"):
    if step: waiter.stdin.write(step); waiter.stdin.flush()
    line = waiter.stdout.readline(); assert line == expected + "\n", (line, expected)
next_step("waits", "")
def in_fcntl(): return any(open(f"/proc/{waiter.pid}/task/{task}/syscall").read().split()[0] in ("72", "25") for task in os.listdir(f"/proc/{waiter.pid}/task"))
while not in_fcntl(): pass
next_step("closed")
fcntl.lockf(lock, fcntl.LOCK_UN)
next_step("got it", "")
assert other(f"{two}/lock", 5) == "EAGAIN"
waiter.stdin.close(); waiter.wait()
assert other(f"{two}/lock", 5) == "locked", "a lock that was granted late stays for ever"
# Locks of open files go with the last descriptor.
fd = os.open("lock", os.O_RDWR)
fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
assert other(f"{two}/lock", 5) == "EAGAIN"
again = os.dup(fd); os.close(fd); assert other(f"{two}/lock", 5) == "EAGAIN", "it goes with the last descriptor only"
os.close(again)
fcntl.fcntl(lock, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLKW: waits for it to be given back
assert other(f"{two}/lock", 5) == "EAGAIN"
fcntl.fcntl(lock, 37, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 0, 0))
# A process that ends without unlocking.
holder = subprocess.Popen([sys.executable, "-c", f"import fcntl, time\nf = open('{two}/held', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(1000)"], stdout=subprocess.PIPE, text=True)
assert holder.stdout.readline() == "held\n"
file = open("held", "r+")
fails(errno.EAGAIN, fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
holder.kill(); holder.wait()
fcntl.flock(file, fcntl.LOCK_EX)
print("attributes, lists, holes and locks are as on a local disk")
PY

# A mount that dies holding a lock: it goes with the mount's lease.
exec 9>"$work/two/dying"
flock -x 9
flock -n "$work/mnt/dying" true && die "a lock of the other mount doesn't hold"
kill -KILL $two_pid
exec 9>&- 2>/dev/null || true
umount -l "$work/two"
timeout 100 flock -x "$work/mnt/dying" true || die "the lock of a mount that died stays"
say "the lock of a mount that died went with its lease"
cd "$work"
down
fsck
