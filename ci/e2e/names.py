#!/usr/bin/env python3
"""Changes names and logs what came of it; or checks that each change happened once or not at all, and each that was acknowledged did.

    names.py work MOUNT LOG WORKER SEED    until the mount dies or this process is killed
    names.py check MOUNT LOG...            all workers of a round, by a mount that nobody has used for it

A worker creates, links, renames, exchanges and removes names of its own, mostly in directories that all workers share, so that their
transactions meet; and writes, cuts and reads its files, which are about as long as what is kept with an inode, so that many outgrow it. It logs each operation before it asks for it and its answer after it; what was asked for and not answered may have
happened or not, and is left alone from then on by whoever goes on with the log. Operations that must fail are asked for as well: one that
was carried out twice fails with another error, or succeeds where it must not. All workers turn a wheel besides: directories that they move
into each other, which must neither be lost nor doubled nor make a circle.
"""
import ctypes
import errno
import json
import os
import random
import stat
import sys
import zlib

POOLS = 3
WHEEL = 7
FILES_MOST, DIRECTORIES_MOST, HELD_MOST = 30, 8, 5
# Bytes of a file that start there or are written at once, at most: now and then they end beyond 16 KiB.
START_MOST, WRITE_MOST = 12000, 9000
NOREPLACE, EXCHANGE = 1, 2
CUT = (errno.ENOTCONN, errno.ECONNABORTED)
# What others who turn the wheel, or a mount that hasn't heard of it yet, may cause there.
TURNED = (errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST, errno.ESTALE, errno.EBUSY)
libc = ctypes.CDLL(None, use_errno=True)


def rename(root, source, target, flags):
    if libc.renameat2(root, source.encode(), root, target.encode(), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Model:
    """What is there if nothing is lost: entries (directory, name) to nodes. Pools are nodes `pool-0` and so on."""

    def __init__(self):
        self.entries, self.kinds, self.inodes, self.above, self.bytes = {}, {}, {}, {}, {}

    def path(self, entry):
        directory, name = entry
        return f"{directory}/{name}" if str(directory).startswith("pool-") else f"{self.path(self.above[directory])}/{name}"

    def names(self, node):
        return [entry for entry, other in self.entries.items() if other == node]

    def inside(self, directory):
        return [entry for entry in self.entries if entry[0] == directory]

    def way(self, node):
        """The directories from one up to its pool, itself first."""
        while not str(node).startswith("pool-"):
            yield node
            node = self.above[node][0]

    def apply(self, op, inode=None):
        do, at = op["do"], tuple(op["at"])
        if do in ("file", "directory", "symlink", "fifo"):
            self.kinds[op["node"]] = do
            self.inodes[op["node"]] = inode
            self.bytes[op["node"]] = b""
            self.put(at, op["node"])
        elif do == "write":
            node = self.entries[at]
            self.bytes[node] = edited(self.bytes[node], op)
        elif do == "link":
            self.put(at, op["node"])
        elif do in ("unlink", "rmdir"):
            del self.entries[at]
        elif do == "rename":
            to, node = tuple(op["to"]), self.entries[at]
            other = self.entries.get(to)
            if op["flags"] == EXCHANGE:
                self.put(at, other)
                self.put(to, node)
            elif other != node:  # Of two names of one file, rename(2) leaves both.
                del self.entries[at]
                self.put(to, node)

    def put(self, entry, node):
        self.entries[entry] = node
        if self.kinds[node] == "directory":
            self.above[node] = entry


def text(op):
    """The bytes of a write: they differ from those of any other."""
    return (f"{op['mark']} " * op["length"])[: op["length"]].encode()


def edited(old, op):
    """A file's bytes after a write, or a cut."""
    if "cut" in op:
        return old[: op["cut"]].ljust(op["cut"], b"\0")
    start = len(old) if op["append"] else op["start"]
    return old[:start].ljust(start, b"\0") + text(op) + old[start + op["length"] :]


def between(old, new, found):
    """Whether a file can be what a write has made of it that may have been cut off in the middle."""
    longest = max(len(old), len(new))
    each = zip(old.ljust(longest, b"\0"), new.ljust(longest, b"\0"), found)
    return len(found) in range(min(len(old), len(new)), longest + 1) and all(byte in (one, other) for one, other, byte in each)


def read_log(path):
    """What was answered, in order, as (operation, answer); and what wasn't."""
    answered, open_ = [], {}
    for line in open(path):
        if not line.endswith("\n"):
            break
        said = json.loads(line)
        if "op" in said:
            open_[said["number"]] = said["op"]
        else:
            answered.append((open_.pop(said["number"]), said))
    return answered, list(open_.values())


def replay(log):
    model = Model()
    answered, unknown = read_log(log)
    for op, answer in answered:
        if "error" not in answer:
            model.apply(op, answer.get("inode"))
    return model, answered, unknown


class Worker:
    def __init__(self, mount, log, name, seed):
        self.root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        self.name, self.random, self.held = name, random.Random(seed), []
        answered, unknown = [], []
        self.model = Model()
        if os.path.exists(log):
            self.model, answered, unknown = replay(log)
        self.count = len(answered) + len(unknown)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Whatever an unanswered operation may have touched stays as it is.
        self.left_entries = {tuple(op[which]) for op in unknown for which in ("at", "to") if which in op}
        self.left_nodes = {node for op in unknown for node in op["touches"]}

    def say(self, **what):
        os.write(self.log, (json.dumps(what) + "\n").encode())

    def free(self, entry):
        on_way = [self.model.entries[entry], *self.model.way(entry[0])]
        return entry not in self.left_entries and not any(node in self.left_nodes for node in on_way)

    def entries(self, directories):
        found = [entry for entry, node in self.model.entries.items() if (self.model.kinds[node] == "directory") == directories]
        return sorted(filter(self.free, found), key=str)

    def place(self):
        own = [self.model.entries[entry] for entry in self.entries(True)]
        return self.random.choice([f"pool-{number}" for number in range(POOLS)] * 2 + own)

    def fresh(self):
        return [self.place(), f"{self.name}-{self.count}"]

    def empty(self, node):
        return not self.model.inside(node) and not any(entry[0] == node for entry in self.left_entries)

    def choose(self):
        """The next operation, with the error that it must give, if it must. None: nothing came to mind."""
        model, draw = self.model, self.random
        files, directories = self.entries(False), self.entries(True)
        pick = draw.random()
        if not files or pick < 0.25:
            kind = draw.choices(["file", "symlink", "fifo", "directory"], [6, 1, 1, 3])[0]
            full = len(directories) >= DIRECTORIES_MOST if kind == "directory" else len(files) >= FILES_MOST
            if not full:
                return {"do": kind, "at": self.fresh(), "node": self.count}
        if not files:
            return None
        if draw.random() < 0.3:
            return self.change(files)
        if pick < 0.30:
            return {"do": "file", "at": list(draw.choice(files)), "node": self.count, "fails": "EEXIST"}
        if pick < 0.42:
            named = [entry for entry in files if model.kinds[model.entries[entry]] == "file"]
            if not named:
                return None
            old = draw.choice(named)
            return {"do": "link", "at": self.fresh(), "old": list(old), "node": model.entries[old]}
        if pick < 0.57:
            return {"do": "unlink", "at": list(draw.choice(files))}
        if pick < 0.62:
            if not directories:
                return None
            at = draw.choice(directories)
            node = model.entries[at]
            if self.empty(node):
                return {"do": "rmdir", "at": list(at)}
            full = any(map(self.free, model.inside(node)))
            return {"do": "rmdir", "at": list(at), "fails": "ENOTEMPTY"} if full else None
        at = draw.choice(directories if directories and pick < 0.75 else files)
        node, op = model.entries[at], {"do": "rename", "at": list(at), "to": self.fresh(), "flags": 0}
        is_directory = model.kinds[node] == "directory"
        how = draw.random()
        if how < 0.35:
            others = directories if is_directory else files
            to = draw.choice(others)
            if how < 0.1:
                op.update(to=list(to), flags=NOREPLACE, fails="EEXIST")
                return op
            if how < 0.2:
                op["flags"] = EXCHANGE
            elif is_directory and to != at and not self.empty(model.entries[to]):
                return None
            op["to"] = list(to)
        if is_directory:
            target = model.entries.get(tuple(op["to"]))
            # Into itself, or in exchange with what it is in.
            if node in model.way(op["to"][0]) or target in model.way(at[0]):
                op["fails"] = "EINVAL"
        return op

    def change(self, files):
        """Of a file's bytes; or a look at them."""
        draw = self.random
        plain = [entry for entry in files if self.model.kinds[self.model.entries[entry]] == "file"]
        if not plain:
            return None
        at = draw.choice(plain)
        if draw.random() < 0.25:
            return {"do": "read", "at": list(at)}
        op = {"do": "write", "at": list(at), "sync": draw.random() < 0.5, "mark": f"{self.name}-{self.count}"}
        if draw.random() < 0.2:
            return {**op, "cut": draw.randrange(START_MOST + WRITE_MOST)}
        append = draw.random() < 0.3
        return {**op, "append": append, "start": draw.randrange(START_MOST), "length": 1 + draw.randrange(WRITE_MOST)}

    def write(self, path, op):
        fd = os.open(path, os.O_RDWR | (os.O_APPEND if op.get("append") else 0), dir_fd=self.root)
        try:
            if "cut" in op:
                os.ftruncate(fd, op["cut"])
            else:
                data = text(op)
                done = os.write(fd, data) if op["append"] else os.pwrite(fd, data, op["start"])
                if done != len(data):
                    sys.exit(f"{self.name}: {op} wrote {done} bytes")
            if op["sync"]:
                os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, path, at):
        wanted = self.model.bytes[self.model.entries[at]]
        with open(os.open(path, os.O_RDONLY, dir_fd=self.root), "rb") as file:
            found = file.read()
        if found != wanted:
            sys.exit(f"{self.name}: {path} has {shown(found)}, and should have {shown(wanted)}")

    def touches(self, op):
        model = self.model
        entries = [tuple(op[which]) for which in ("at", "to") if which in op]
        return sorted({model.entries[entry] for entry in entries if entry in model.entries} | {op[key] for key in ("node",) if key in op})

    def carry_out(self, op):
        path = self.model.path(tuple(op["at"]))
        do = op["do"]
        if do == "file":
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self.root)
            inode = os.fstat(fd).st_ino
            if len(self.held) < HELD_MOST:
                self.held.append(fd)
            else:
                os.close(fd)
            return inode
        if do == "write":
            self.write(path, op)
        elif do == "read":
            self.read(path, tuple(op["at"]))
        elif do == "directory":
            os.mkdir(path, dir_fd=self.root)
        elif do == "symlink":
            os.symlink(f"to {op['node']}", path, dir_fd=self.root)
        elif do == "fifo":
            os.mkfifo(path, dir_fd=self.root)
        elif do == "link":
            old = self.model.path(tuple(op["old"]))
            os.link(old, path, src_dir_fd=self.root, dst_dir_fd=self.root)
        elif do == "unlink":
            os.unlink(path, dir_fd=self.root)
            if self.held and self.random.random() < 0.2:
                os.close(self.held.pop(0))
        elif do == "rmdir":
            os.rmdir(path, dir_fd=self.root)
        elif do == "rename":
            rename(self.root, path, self.model.path(tuple(op["to"])), op["flags"])
        if do in ("directory", "symlink", "fifo"):
            return os.stat(path, dir_fd=self.root, follow_symlinks=False).st_ino
        return None

    def step(self):
        op = self.choose()
        if not op:
            return
        op["touches"] = self.touches(op)
        self.say(number=self.count, op=op)
        number, self.count = self.count, self.count + 1
        wrong = lambda error: f"{self.name}, operation {number}: {op} gave {error}"
        try:
            inode = self.carry_out(op)
        except OSError as error:
            if error.errno in CUT:
                raise
            name = errno.errorcode[error.errno]
            if name != op.get("fails"):
                sys.exit(wrong(error))
            return self.say(number=number, error=name)
        if "fails" in op:
            sys.exit(wrong("no error"))
        self.say(number=number, inode=inode)
        self.model.apply(op, inode)

    def turn(self):
        """Moves a directory of the wheel into another one, wherever it is."""
        places = [path for path, _, _, _ in os.fwalk("wheel", dir_fd=self.root)]
        if not places:
            return
        moved, into = self.random.choice(places[1:] or places), self.random.choice(places)
        flags = self.random.choice([0, 0, NOREPLACE])
        rename(self.root, moved, f"{into}/{os.path.basename(moved)}", flags)

    def work(self):
        while True:
            if self.random.random() < 0.15:
                try:
                    self.turn()
                except OSError as error:
                    if error.errno not in TURNED:
                        raise
            self.step()


def happened(op, model, there, prefix):
    """Whether an operation that wasn't answered has been carried out, by one thing that tells."""
    at = f"{prefix}/{model.path(tuple(op['at']))}"
    if op["do"] in ("unlink", "rmdir"):
        return at not in there
    if op["do"] != "rename":
        return at in there
    to = tuple(op["to"])
    if op["flags"] == EXCHANGE:
        return at in there and there[at]["inode"] == model.inodes[model.entries[to]]
    return model.entries.get(to) != model.entries[tuple(op["at"])] and at not in there


def shown(data):
    return f"{len(data)} bytes, CRC {zlib.crc32(data):08x}"


KIND = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


def look(root):
    there, wheel, bytes_of = {}, [], {}
    for directory, directories, files in os.walk(root, onerror=lambda error: sys.exit(f"listing: {error}")):
        for name in directories + files:
            path = os.path.join(directory, name)
            if os.path.relpath(path, root).split("/")[0] == "wheel":
                wheel += [name] if path != f"{root}/wheel" else []
                continue
            found = os.lstat(path)
            there[path] = {"kind": KIND[stat.S_IFMT(found.st_mode)], "inode": found.st_ino, "links": found.st_nlink}
            if stat.S_ISLNK(found.st_mode):
                there[path]["target"] = os.readlink(path)
            if stat.S_ISREG(found.st_mode):
                bytes_of[path] = open(path, "rb").read()
                there[path]["bytes"] = shown(bytes_of[path])
    return there, wheel, bytes_of


def check(root, logs):
    there, wheel, bytes_of = look(root)
    wanted, bad, operations, unanswered, done = {}, [], 0, 0, 0
    for log in logs:
        model, answered, unknown = replay(log)
        operations += len(answered)
        unanswered += len(unknown)
        open_writes = {model.entries[tuple(op["at"])]: op for op in unknown if op["do"] == "write"}
        for op in [op for op in unknown if "fails" not in op and op["do"] not in ("read", "write")]:
            if happened(op, model, there, root):
                done += 1
                model.apply(op)
        nodes = set(model.entries.values())
        links = {node: len(model.names(node)) for node in nodes}
        for node in nodes:
            if model.kinds[node] == "directory":
                links[node] = 2 + sum(model.kinds[model.entries[entry]] == "directory" for entry in model.inside(node))
        for entry, node in model.entries.items():
            expected = {"kind": model.kinds[node], "inode": model.inodes[node], "links": links[node]}
            if model.kinds[node] == "symlink":
                expected["target"] = f"to {node}"
            path = f"{root}/{model.path(entry)}"
            if model.kinds[node] == "file":
                data, found = model.bytes[node], bytes_of.get(path)
                half_way = node in open_writes and found is not None and between(data, edited(data, open_writes[node]), found)
                expected["bytes"] = shown(found if half_way else data)
            wanted[path] = (expected, os.path.basename(log))
    for path, (expected, log) in wanted.items():
        found = there.get(path)
        if found is None:
            bad.append(f"{path} is gone ({log})")
            continue
        if expected["inode"] is None:
            expected = {**expected, "inode": found["inode"]}
        if found != expected:
            bad.append(f"{path} is {found}, {expected} was expected ({log})")
    pools = {f"{root}/pool-{number}" for number in range(POOLS)}
    bad += [f"{path} shouldn't be there" for path in sorted(there.keys() - wanted.keys() - pools)]
    if sorted(wheel) != [f"spoke-{number}" for number in range(WHEEL)]:
        bad.append(f"the wheel has {sorted(wheel)}")
    for line in bad[:20]:
        print(line)
    print(f"{operations} operations answered, {unanswered} not ({done} of them done), {len(there)} names there, {len(bad)} wrong")
    return not bad


def begin(root):
    for number in range(POOLS):
        os.makedirs(f"{root}/pool-{number}")
    for number in range(WHEEL):
        os.makedirs(f"{root}/wheel/spoke-{number}")


if __name__ == "__main__":
    verb, mount, *rest = sys.argv[1:]
    if verb == "begin":
        begin(mount)
    elif verb == "work":
        try:
            Worker(mount, rest[0], rest[1], rest[2]).work()
        except OSError as error:
            if error.errno not in CUT:
                raise
            print(f"{rest[1]}: cut off")
    else:
        sys.exit(0 if check(mount, rest) else 1)
