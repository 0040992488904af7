"""Records appended through mounts, and whether they are all there: for append.sh.

A record is a line of 256 bytes, `WRITER NUMBER FILLING`, whose filling follows from the two. None crosses a page: there the kernel may cut a
write(2) in two before we see it.
"""
import os
import subprocess
import sys
import threading


def record(writer, number):
    filling = chr(ord("a") + number % 26) * 256
    return f"{writer} {number} {filling}"[:255].encode() + b"\n"


def write(path, writer, count, how):
    """`sync`: after each record, and then its number is printed. `buffered`: once, at the end."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in range(count):
        data = record(writer, number)
        assert os.write(file, data) == len(data)
        if how == "sync":
            os.fsync(file)
            print(writer, number, flush=True)
    os.fsync(file)
    os.close(file)


def read(path):
    """Records by writer, in the order of the file. What a dead writer was about to append may be zeros, or be cut at its end."""
    with open(path, "rb") as file:
        data = file.read()
    found = {}
    gaps = data.count(0)
    for line in data.replace(b"\0", b"").split(b"\n"):
        if line:
            parts = line.split(b" ")
            if len(parts) == 3 and parts[1].isdigit() and record(parts[0].decode(), int(parts[1])) == line + b"\n":
                found.setdefault(parts[0].decode(), []).append(int(parts[1]))
            else:
                raise SystemExit(f"{path}: a torn record: {line[:100]!r}")
    return found, gaps


def race(one, two):
    """Several processes on both mounts append to one file at once, some of them syncing."""
    path = [os.path.join(mount, "race") for mount in (one, two)]
    count = 1500
    writers = []
    for at in range(6):
        how, many = ("sync", count // 10) if at >= 4 else ("buffered", count)
        arguments = [sys.executable, __file__, "write", path[at % 2], f"w{at}", str(many), how]
        writers.append((f"w{at}", many, subprocess.Popen(arguments, stdout=subprocess.DEVNULL)))
    for name, _, process in writers:
        assert process.wait() == 0, f"{name} failed"
    for side in path:
        found, gaps = read(side)
        assert gaps == 0, f"{side}: {gaps} zeros, and nobody died"
        for name, many, _ in writers:
            assert found.get(name) == list(range(many)), f"{side}: records of {name} are missing, doubled or out of order"
    print(f"{sum(many for _, many, _ in writers)} records of 6 programs on two mounts: each there once, whole and in order")


def rotate(one, two):
    """A log that is copied and truncated while it is appended to, as logrotate's copytruncate does: nothing goes where the old bytes were."""
    log, other = os.path.join(one, "log"), os.path.join(two, "log")
    stop = threading.Event()

    def append():
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        number = 0
        while not stop.is_set():
            os.write(file, record("w", number))
            number += 1
            if number % 50 == 0:
                os.fsync(file)
        os.fsync(file)
        os.close(file)

    writer = threading.Thread(target=append)
    writer.start()
    for _ in range(10):
        stop.wait(0.3)
        os.truncate(other, 0)
    # Some records come after the last one, too.
    stop.wait(0.3)
    stop.set()
    writer.join()
    found, gaps = read(other)
    assert gaps == 0, f"{gaps} zeros in a log that was truncated ten times"
    assert read(log) == (found, gaps)
    numbers = found.get("w", [])
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "records in front of the last truncation, or out of order"
    print(f"a log truncated ten times from the other mount: {len(numbers)} records since, no gap")


def check(path, *acked):
    found, gaps = read(path)
    for numbers in found.values():
        assert numbers == sorted(set(numbers)), "doubled or out of order"
    known = 0
    for name in acked:
        with open(name) as lines:
            for line in lines:
                writer, number = line.split()
                assert int(number) in found.get(writer, []), f"{writer} {number} was synced, and is lost"
                known += 1
    assert known > 100, f"only {known} records were synced before the kill"
    print(f"{known} synced records of two mounts are there, one of which was killed; {gaps} zeros where it was about to append")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "write":
        write(rest[0], rest[1], int(rest[2]), rest[3])
    else:
        {"race": race, "rotate": rotate, "check": check}[command](*rest)
