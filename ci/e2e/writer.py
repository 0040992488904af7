#!/usr/bin/env python3
"""Writes files and logs every fsync that came back, to a file outside; or checks that all that was logged is there.

Each line of the log: round, name, how often the file has been rewritten, and length. A file's content is a function of name
and generation, so a torn or mixed file is seen. The generation in flight when the kill came may be there or not, wholly.
"""
import hashlib
import os
import random
import sys


def content(name, generation, length):
    out = bytearray()
    counter = 0
    while len(out) < length:
        out += hashlib.sha256(f"{name}/{generation}/{counter}".encode()).digest()
        counter += 1
    return bytes(out[:length])


def header(name, generation, length):
    return f"{name} {generation} {length}\n".encode().ljust(64, b".")


def write(mount, log, round_):
    random.seed(round_)
    log = open(log, "a")
    generation = {}
    for step in range(100_000):
        name = f"r{round_}-f{random.randrange(8)}"
        path = os.path.join(mount, name)
        generation[name] = generation.get(name, 0) + 1
        length = random.choice([0, 1, 4095, 4096, 40_000, 600_000])
        data = header(name, generation[name], length) + content(name, generation[name], length)
        # A new file renamed over the old one: readers see either, whole.
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
        os.fsync(fd)
        os.close(fd)
        os.rename(path + ".new", path)
        directory = os.open(mount, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        log.write(f"{round_} {name} {generation[name]} {length}\n")
        log.flush()
        os.fsync(log.fileno())


def check(mount, log):
    acknowledged = {}
    for line in open(log):
        _, name, generation, length = line.split()
        acknowledged[name] = (int(generation), int(length))
    bad = 0
    for name, (generation, _) in acknowledged.items():
        try:
            data = open(os.path.join(mount, name), "rb").read()
        except OSError as error:
            print(f"{name}: generation {generation} was acknowledged: {error}")
            bad += 1
            continue
        try:
            found, found_generation, length = data[:64].rstrip(b".").split()
            found_generation, length = int(found_generation), int(length)
            whole = found.decode() == name and data == header(name, found_generation, length) + content(name, found_generation, length)
        except ValueError:
            whole, found_generation = False, None
        if not whole:
            print(f"{name}: torn, starts with {data[:64]!r}, {len(data)} bytes")
            bad += 1
        elif found_generation < generation:
            print(f"{name}: generation {generation} was acknowledged, {found_generation} is there")
            bad += 1
    print(f"{len(acknowledged)} files checked, {bad} bad")
    return bad == 0


if __name__ == "__main__":
    verb, mount, log, round_ = sys.argv[1:]
    if verb == "write":
        write(mount, log, int(round_))
    sys.exit(0 if check(mount, log) else 1)
