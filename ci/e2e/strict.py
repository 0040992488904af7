"""What is done through one of two mounts must show through the other at once: for strict.sh.

    strict.py ONE TWO ROUNDS

Each round does one thing of each kind through one mount, with files that both have open all the time, and looks through the other without
waiting. Ends with the first difference.
"""
import mmap
import os
import random
import sys
import threading

one, two, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(20261126)
kinds = []


def show(kind):
    if kind not in kinds:
        kinds.append(kind)


def same(kind, seen, done):
    if seen != done:
        def short(value):
            return repr(value)[:60]
        sys.exit(f"{kind}: {short(seen)} is seen where {short(done)} was done")
    show(kind)


def sides(round_):
    """Who does it, and who looks."""
    return (0, 1) if round_ % 2 == 0 else (1, 0)


mounts = [one, two]
path = [os.path.join(mount, "open") for mount in mounts]
model = bytearray()
first = os.open(path[0], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
files = [first, os.open(path[1], os.O_RDWR)]
appends = [os.open(at, os.O_WRONLY | os.O_APPEND) for at in path]

for number in range(rounds):
    does, looks = sides(number)
    # Bytes at a place, which may be past the end.
    at, data = chance.randrange(300_000), chance.randbytes(chance.randrange(1, 20_000))
    os.pwrite(files[does], data, at)
    model.extend(bytes(max(0, at + len(data) - len(model))))
    model[at:at + len(data)] = data
    same("length", os.fstat(files[looks]).st_size, len(model))
    same("bytes", os.pread(files[looks], len(data), at), data)
    # At the end.
    data = chance.randbytes(chance.randrange(1, 3000))
    os.write(appends[does], data)
    same("appended bytes", os.pread(files[looks], len(data) + 10, len(model)), data)
    model += data
    # Cut and made longer: what was cut off is gone.
    if number % 3 == 0:
        cut = chance.randrange(len(model))
        os.ftruncate(files[does], cut)
        same("length after a cut", os.fstat(files[looks]).st_size, cut)
        same("bytes after a cut", os.pread(files[looks], 100, cut), b"")
        os.ftruncate(files[does], cut + 5000)
        del model[cut:]
        model += bytes(5000)
        same("zeros after a cut", os.pread(files[looks], 6000, cut), bytes(5000))
    # A whole read, and one through a mapping made now.
    if number % 10 == 0:
        same("the whole file", os.pread(files[looks], len(model) + 1, 0), bytes(model))
        with mmap.mmap(files[looks], len(model), prot=mmap.PROT_READ) as view:
            same("a new mapping", bytes(view), bytes(model))
        with mmap.mmap(files[does], len(model)) as view:
            view[7:12] = b"hello"
            view.flush()
        model[7:12] = b"hello"
        same("a mapping that was synced", os.pread(files[looks], 5, 7), b"hello")
    # Attributes of a file that is open.
    mode = 0o600 | chance.randrange(0o100)
    os.fchmod(files[does], mode)
    same("mode", os.stat(path[looks]).st_mode & 0o7777, mode)
    os.utime(path[does], ns=(number * 10**9 + 5, number * 10**9 + 7))
    same("times", os.stat(path[looks]).st_mtime_ns, number * 10**9 + 7)
    os.setxattr(path[does], "user.round", str(number).encode())
    same("an extended attribute", os.getxattr(path[looks], "user.round"), str(number).encode())
    # Names: asked for before, so that somebody could believe to know.
    name = [os.path.join(mount, f"name{number}") for mount in mounts]
    other = [os.path.join(mount, f"other{number}") for mount in mounts]
    same("a name that isn't there", os.path.exists(name[looks]), False)
    with open(name[does], "w", encoding="ascii") as file:
        file.write(f"{number}\n" * 3)
    same("a new name", os.path.exists(name[looks]), True)
    with open(name[looks], encoding="ascii") as file:
        same("what a new file holds", file.read(), f"{number}\n" * 3)
    os.rename(name[does], other[does])
    same("names after a rename", (os.path.exists(name[looks]), os.path.exists(other[looks])), (False, True))
    os.link(other[does], name[does])
    same("links", os.stat(other[looks]).st_nlink, 2)
    os.unlink(other[does])
    same("names after a removal", (os.path.exists(other[looks]), os.stat(name[looks]).st_nlink), (False, 1))
    same("a listing", f"name{number}" in os.listdir(mounts[looks]), True)
    os.unlink(name[does])
    same("a listing after a removal", f"name{number}" in os.listdir(mounts[looks]), False)

# Who follows a file that grows, on either mount, never reads what isn't written yet.
line = b"x" * 9999 + b"\n"
growing = [os.open(os.path.join(mount, "growing"), os.O_RDWR | os.O_CREAT, 0o644) for mount in mounts]
wrong = []


def follow(file):
    at = 0
    while at < rounds * len(line) and not wrong:
        data = os.pread(file, 30_000, at)
        if data.strip(b"x\n"):
            wrong.append(f"{data.strip(b'x' + bytes([10]))[:20]!r} at about {at}")
        at += len(data)


readers = [threading.Thread(target=follow, args=(file,)) for file in growing]
for reader in readers:
    reader.start()
for number in range(rounds):
    os.pwrite(growing[0], line, number * len(line))
for reader in readers:
    reader.join()
same("a file that grows", wrong, [])

print(f"{rounds} rounds through two mounts, {len(kinds)} kinds of changes seen at once: {', '.join(kinds)}")
