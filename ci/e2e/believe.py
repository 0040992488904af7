#!/usr/bin/env python3
"""What one mount believes without asking, and how soon it shows what another one did.

    believe.py COREFS ONE TWO PID_OF_COREFS_UP [again]

again: only whether it asks, of a tree that is there.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

corefs, one, two, up = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
ASKED = ("meta.lookup.ok", "meta.lookup.failed", "meta.get_attr.ok", "meta.get_attr.failed")
bad = []


def check(right, what):
    if not right:
        bad.append(what)
        print(what)


def status(*flags):
    # Whether all is well, which its exit code says, is not what is asked here.
    done = subprocess.run([corefs, "status", "--json", *flags], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


def counters():
    """Those of all metadata servers together."""
    found = {}

    def collect(value):
        if isinstance(value, dict):
            if isinstance(value.get("counters"), dict) and "changes_noted" in value["counters"]:
                for name, count in value["counters"].items():
                    found[name] = found.get(name, 0) + count
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    collect(status("--counters"))
    return found


def asked():
    found = counters()
    return sum(found.get(name, 0) for name in ASKED)


def seen(work, wanted, within):
    """How long it took until `work` gave what it should; None if it didn't `within` so many seconds."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        try:
            found = work()
        except OSError as error:
            found = type(error)
        if found == wanted:
            return time.monotonic() - began
        time.sleep(0.002)
    return None


def make(count):
    os.mkdir(f"{one}/tree")
    for number in range(count):
        with open(f"{one}/tree/{number}", "w") as file:
            file.write("x" * (number % 7))


def look(count):
    for number in range(count):
        os.stat(f"{two}/tree/{number}")
        try:
            os.stat(f"{two}/tree/{number}.missing")
        except FileNotFoundError:
            pass


def server():
    """The process of the cluster with the metadata server: its store's, but with FoundationDB."""
    for child in pathlib.Path(f"/proc/{up}/task/{up}/children").read_text().split():
        if pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[1] in (b"kv", b"meta"):
            return int(child)
    sys.exit("there is no process with a metadata server")


def works_below():
    """What forgetting must leave alone: a mount in a directory, and who works in another one."""
    os.makedirs(f"{two}/stay/work", exist_ok=True)
    os.makedirs(f"{two}/stay/point", exist_ok=True)
    subprocess.run(["mount", "--bind", "/proc", f"{two}/stay/point"], check=True)
    return subprocess.Popen(["sleep", "600"], cwd=f"{two}/stay/work")


def still_works(worker, when):
    where = os.readlink(f"/proc/{worker.pid}/cwd")
    check(where == f"{two}/stay/work", f"{when}: who works in stay/work is in {where}")
    check(os.path.ismount(f"{two}/stay/point"), f"{when}: what was mounted on stay/point isn't any more")


COUNT = 200
again = sys.argv[5:] == ["again"]
if not again:
    make(COUNT)
time.sleep(1.5)
look(COUNT)
# A machine that stands still for seconds makes mounts forget: not three times in a row.
for _ in range(3):
    # Twice as long as kernels believe names that aren't remembered.
    time.sleep(2.2)
    before = asked()
    look(COUNT)
    more = asked() - before
    if more < COUNT / 10:
        break
check(more < COUNT / 10, f"{COUNT} files and as many names that aren't there, looked at again after two seconds: {more} questions")
print(f"{2 * COUNT} names looked at again after two seconds: {more} questions")

if again:
    sys.exit(1 if bad else 0)

# Each kind of change, seen soon. What is looked at before and after it by the other mount is what it changes.
longest = 0.0
done = 0


def change(what, deed, shown, wanted, within=3.0):
    global longest, done
    try:
        shown()
    except OSError:
        pass
    deed()
    done += 1
    took = seen(shown, wanted, within)
    check(took is not None, f"{what}: not seen within {within} s")
    longest = max(longest, took or within)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


for round in range(5):
    name = f"tree/{round}"
    change("chmod", lambda: os.chmod(f"{one}/{name}", 0o640 + round), lambda: os.stat(f"{two}/{name}").st_mode & 0o777, 0o640 + round)
    change("a new name", lambda: write(f"{one}/{name}.new", "new"), lambda: os.stat(f"{two}/{name}.new").st_size, 3)
    change("a write", lambda: write(f"{one}/{name}.new", "longer"), lambda: os.stat(f"{two}/{name}.new").st_size, 6)
    change("a large write", lambda: write(f"{one}/{name}.new", "y" * 100_000), lambda: os.stat(f"{two}/{name}.new").st_size, 100_000)
    change("a link", lambda: os.link(f"{one}/{name}", f"{one}/{name}.link"), lambda: os.stat(f"{two}/{name}").st_nlink, 2)
    change("a rename", lambda: os.rename(f"{one}/{name}.new", f"{one}/{name}.moved"), lambda: os.stat(f"{two}/{name}.new"), FileNotFoundError)
    change("its new name", lambda: None, lambda: os.stat(f"{two}/{name}.moved").st_size, 100_000)
    change("a replacement", lambda: os.rename(f"{one}/{name}.moved", f"{one}/{name}"), lambda: os.stat(f"{two}/{name}").st_size, 100_000)
    change("an unlink", lambda: os.unlink(f"{one}/{name}.link"), lambda: os.path.exists(f"{two}/{name}.link"), False)
    change("a directory", lambda: os.mkdir(f"{one}/{name}.dir"), lambda: os.stat(f"{two}/{name}.dir").st_nlink, 2)
    change("its entries", lambda: os.mkdir(f"{one}/{name}.dir/x"), lambda: os.stat(f"{two}/{name}.dir").st_nlink, 3)
    change("no directory", lambda: (os.rmdir(f"{one}/{name}.dir/x"), os.rmdir(f"{one}/{name}.dir")), lambda: os.path.exists(f"{two}/{name}.dir"), False)
    change("an attribute", lambda: os.setxattr(f"{one}/{name}", "user.a", b"%d" % round), lambda: os.getxattr(f"{two}/{name}", "user.a"), b"%d" % round)
    # What was renamed here is another file by its new name, and a name that led nowhere before does.
    change("a file", lambda: write(f"{one}/{name}.a", "a"), lambda: os.stat(f"{two}/{name}.a").st_size, 1)
    change("its own rename", lambda: os.rename(f"{two}/{name}.a", f"{two}/{name}.b"), lambda: os.stat(f"{two}/{name}.b").st_size, 1, 0.01)
    change("what it renamed", lambda: (write(f"{one}/{name}.c", "ccc"), os.rename(f"{one}/{name}.c", f"{one}/{name}.b")), lambda: os.stat(f"{two}/{name}.b").st_size, 3)
    change("its own unlink", lambda: os.unlink(f"{two}/{name}.b"), lambda: os.path.exists(f"{two}/{name}.b"), False, 0.01)
print(f"{done} changes, the longest seen by the other mount after {longest * 1000:.0f} ms")

# What one mount changes and doesn't tell at once it shows as others do once it has.
for what in ("written", "touched"):
    with open(f"{two}/tree/{what}", "wb") as file:
        if what == "written":
            file.write(bytes(300_000))
            file.flush()
        else:
            os.utime(file.fileno(), (1e9, 1e9))
        for _ in range(6):
            os.stat(f"{two}/tree/{what}")
            time.sleep(1)
        os.fsync(file.fileno())
    time.sleep(1.2)
    own, others = os.stat(f"{two}/tree/{what}"), os.stat(f"{one}/tree/{what}")
    times = [(found.st_size, found.st_mtime_ns, found.st_ctime_ns) for found in (own, others)]
    check(times[0] == times[1], f"a file that was {what}: {times[0]} where it was, {times[1]} elsewhere")

# The process with the metadata server is killed, and another one takes its place: what was believed is asked for again.
worker = works_below()
for number in range(3):
    look(COUNT)
    os.kill(server(), signal.SIGKILL)
    began = time.monotonic()
    for at in range(COUNT):
        os.chmod(f"{one}/tree/{at}", 0o600 + number)
    took = seen(lambda: {os.stat(f"{two}/tree/{at}").st_mode & 0o777 for at in range(COUNT)}, {0o600 + number}, 10.0)
    check(took is not None, "a metadata server was killed, and what changed then is not seen within 10 s")
    still_works(worker, "a metadata server was killed")
    print(f"killed: {COUNT} changes took {time.monotonic() - began - (took or 0):.1f} s, the last was seen {(took or 10) * 1000:.0f} ms later")

# One that stands still for longer than anybody waits for news.
look(COUNT)
stopped = server()
os.kill(stopped, signal.SIGSTOP)
time.sleep(3)
os.kill(stopped, signal.SIGCONT)
for at in range(COUNT):
    os.chmod(f"{one}/tree/{at}", 0o666)
took = seen(lambda: {os.stat(f"{two}/tree/{at}").st_mode & 0o777 for at in range(COUNT)}, {0o666}, 5.0)
check(took is not None, "a metadata server stood still, and what changed then is not seen within 5 s")
still_works(worker, "a metadata server stood still")
subprocess.run(["umount", f"{two}/stay/point"], check=True)
worker.kill()
worker.wait()

# There are two servers, and one stands still, or dies. The other one does what it is asked; whoever can't hear the first believes nothing for long.
kv = status()["kv"]
for deed in (signal.SIGSTOP, signal.SIGKILL):
    other = subprocess.Popen([corefs, "meta", "--kv", kv, "--manager", os.environ["COREFS_MANAGER"]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    other.stdout.readline()
    time.sleep(3)
    look(COUNT)
    other.send_signal(deed)
    mode = 0o640 if deed == signal.SIGSTOP else 0o604
    # Each is told to one of the two; those of the one that doesn't answer go to the other one after some seconds.
    for at in range(8):
        os.chmod(f"{one}/tree/{at}", mode)
    took = seen(lambda: {os.stat(f"{two}/tree/{at}").st_mode & 0o777 for at in range(8)}, {mode}, 8.0)
    check(took is not None, f"one of two metadata servers got {deed.name}, and what changed then is not seen within 8 s")
    if other.poll() is None:
        other.kill()
    other.wait()
    time.sleep(1)

# More at once than is told in one answer, of things that are believed.
look(COUNT)
os.mkdir(f"{one}/many")
for number in range(3000):
    write(f"{one}/many/{number}", "")
os.listdir(f"{two}/many")
for number in range(3000):
    os.stat(f"{two}/many/{number}")
time.sleep(1.2)
for number in range(3000):
    os.rename(f"{one}/many/{number}", f"{one}/many/{number}.moved")
for name in range(3000):
    took = seen(lambda: (os.path.exists(f"{two}/many/{name}"), os.path.exists(f"{two}/many/{name}.moved")), (False, True), 5.0)
    check(took is not None, f"many/{name} is still there")
found = counters()
print(f"changes noted {found['changes_noted']}, told {found['changes_told']}, asked for too late {found['changes_lost']}; {found['watchers']} mounts listen")
check(found["watchers"] == 2, f"two mounts listen, and {found['watchers']} are counted")
print(f"believed until told otherwise: {len(bad)} wrong")
sys.exit(1 if bad else 0)
