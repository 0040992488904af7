#!/usr/bin/env python3
"""What is removed or replaced by one mount while another knows it: names lead to what is there, handles say ESTALE, and no byte is
made up.

    stale.py ONE TWO
"""
import errno
import os
import sys
import time

one, two = sys.argv[1:]
MIB = 1 << 20
bad = []


def check(right, what):
    if not right:
        bad.append(what)
        print(what)


def outcome(work):
    """What came of it: its value, or the name of its error."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno]


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def gone(before):
    """Waits until as many inodes are there again as were `before`: what was removed is removed for good."""
    for _ in range(1200):
        found = os.statvfs(one)
        if found.f_files - found.f_ffree <= before:
            return
        time.sleep(0.05)
    sys.exit("a removed file is still there after a minute")


def inodes():
    found = os.statvfs(one)
    return found.f_files - found.f_ffree


# A file that is replaced again and again is always there, although the other mount knows the one before.
write(f"{one}/file", b"0")
count = inodes()
for number in range(1, 13):
    os.stat(f"{two}/file")
    write(f"{one}/file.new", b"%d" % number)
    os.rename(f"{one}/file.new", f"{one}/file")
    gone(count)
    use = [read, lambda path: os.truncate(path, 1), lambda path: os.chmod(path, 0o600)][number % 3]
    found = outcome(lambda: use(f"{two}/file"))
    check(found in (b"%d" % number, None), f"file, replaced {number} times: {found}")

# The same of a directory on the way.
for number in range(4):
    os.mkdir(f"{one}/directory")
    write(f"{one}/directory/old", b"old")
    os.stat(f"{two}/directory/old")
    os.unlink(f"{one}/directory/old")
    os.rmdir(f"{one}/directory")
    os.mkdir(f"{one}/directory")
    found = outcome(lambda: write(f"{two}/directory/new", b"new"))
    check(found is None and os.listdir(f"{one}/directory") == ["new"], f"a directory made anew: {found}")
    found = outcome(lambda: os.stat(f"{two}/directory/old"))
    check(found == "ENOENT", f"a name in a directory made anew: {found}")
    os.unlink(f"{one}/directory/new")
    os.rmdir(f"{one}/directory")
    time.sleep(1.1)

# What is gone for good is not there, however it is known.
os.mkdir(f"{one}/gone")
os.stat(f"{two}/gone")
os.rmdir(f"{one}/gone")
found = outcome(lambda: write(f"{two}/gone/file", b""))
check(found in ("ENOENT", "ESTALE"), f"a file in a directory that is gone: {found}")

# A handle of a file that another mount removes: its bytes, or ESTALE, but never zeros in their place.
count = inodes()
data = os.urandom(2 * MIB)
write(f"{one}/open", data)
handle = os.open(f"{two}/open", os.O_RDONLY | os.O_DIRECT)
os.unlink(f"{one}/open")
gone(count)
found = outcome(lambda: os.pread(handle, 4096, MIB))
check(found in (data[MIB:MIB + 4096], "ESTALE"), f"a read of a file that another mount removed: {found[:20]}")
time.sleep(1.1)
found = outcome(lambda: os.fstat(handle))
check(found == "ESTALE", f"fstat of a file that another mount removed: {found}")
os.close(handle)

# But holes are zeros, and stay so for whoever has read one, whatever becomes of the name.
with open(f"{one}/sparse", "wb") as file:
    file.truncate(64 * MIB)
    file.seek(63 * MIB)
    file.write(data[:4096])
handle = os.open(f"{two}/sparse", os.O_RDONLY | os.O_DIRECT)
found = outcome(lambda: os.pread(handle, 4096, MIB))
check(found == bytes(4096), f"a read of a hole: {found[:20]}")
os.unlink(f"{one}/sparse")
time.sleep(1.5)
found = outcome(lambda: (os.pread(handle, 4096, 32 * MIB), os.pread(handle, 4096, 63 * MIB)))
check(found == (bytes(4096), data[:4096]), f"a sparse file that is held: {found[:20]}")
os.close(handle)
gone(count)
print(f"removed and replaced under another mount's hands: {len(bad)} wrong")
sys.exit(1 if bad else 0)
