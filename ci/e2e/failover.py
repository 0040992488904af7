#!/usr/bin/env python3
"""Writers and readers of a mount while storage nodes die: every operation must succeed, every byte must be right.

    failover.py DIR LOG STOP   works until the file STOP is there, then prints what it did, and how long the longest wait was

Each writer owns files, rewrites a random piece of one and fsyncs; each reader reads a random piece of a file and holds it
against what its writer says. A piece is a block of one byte's repetition that names its generation; a reader accepts any
generation from the last that was fsynced before it began up to the last begun before it ended. Each line of LOG is the time of
one success and what it was.
"""
import os
import random
import sys
import threading
import time

PIECE = 16384
PIECES = 24
FILES = 6


class File:
    def __init__(self, path):
        self.path = path
        self.begun = [0] * PIECES
        self.done = [0] * PIECES
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(fd, bytes(PIECE * PIECES))
        os.fsync(fd)
        os.close(fd)


def block(generation):
    return generation.to_bytes(8, "little") * (PIECE // 8)


def writer(file, state, seed):
    rng = random.Random(seed)
    fd = os.open(file.path, os.O_RDWR)
    while not state.stop.is_set():
        piece = rng.randrange(PIECES)
        generation = file.begun[piece] + 1
        file.begun[piece] = generation
        os.pwrite(fd, block(generation), piece * PIECE)
        os.fsync(fd)
        file.done[piece] = generation
        state.success("write")
    os.close(fd)


def reader(files, state, seed):
    rng = random.Random(seed)
    while not state.stop.is_set():
        file, piece = rng.choice(files), rng.randrange(PIECES)
        least = file.done[piece]
        fd = os.open(file.path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        buffer = state.buffer()
        try:
            count = os.preadv(fd, [buffer], piece * PIECE)
        finally:
            os.close(fd)
        data = bytes(buffer[:PIECE])
        most = file.begun[piece]
        generations = {int.from_bytes(data[at:at + 8], "little") for at in range(0, PIECE, 8)}
        if count != PIECE or min(generations) < least or max(generations) > most:
            raise AssertionError(f"{file.path} piece {piece}: {count} bytes, {sorted(generations)}, not {least}..{most}")
        state.success("read")


class State:
    def __init__(self, log):
        self.stop = threading.Event()
        self.log = open(log, "a")
        self.lock = threading.Lock()
        self.local = threading.local()
        self.counts = {"read": 0, "write": 0}
        self.last = {}
        self.longest = {"read": 0.0, "write": 0.0}
        self.failures = []

    def buffer(self):
        if not hasattr(self.local, "buffer"):
            import mmap
            self.local.buffer = mmap.mmap(-1, PIECE)
        return self.local.buffer

    def success(self, what):
        now, key = time.monotonic(), (what, threading.get_ident())
        with self.lock:
            self.counts[what] += 1
            self.longest[what] = max(self.longest[what], now - self.last.get(key, now))
            self.last[key] = now
            self.log.write(f"{time.time():.3f} {what}\n")

    def guard(self, work, *arguments):
        try:
            work(*arguments, self, random.randrange(1 << 30))
        except Exception as error:  # noqa: BLE001 (whatever it is, the test has failed)
            self.failures.append(f"{work.__name__}: {error!r}")
            self.stop.set()


def main():
    directory, log, stop = sys.argv[1:]
    files = [File(os.path.join(directory, f"f{index}")) for index in range(FILES)]
    state = State(log)
    threads = [threading.Thread(target=state.guard, args=(writer, file)) for file in files]
    threads += [threading.Thread(target=state.guard, args=(reader, files)) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not os.path.exists(stop) and not state.stop.is_set():
        time.sleep(0.1)
    state.stop.set()
    for thread in threads:
        thread.join()
    for file in files:
        with open(file.path, "rb") as opened:
            data = opened.read()
        for piece in range(PIECES):
            if data[piece * PIECE:(piece + 1) * PIECE] != block(file.begun[piece]):
                state.failures.append(f"{file.path} piece {piece} isn't generation {file.begun[piece]} in the end")
    for failure in state.failures:
        print(failure)
    print(f"{state.counts['write']} writes and {state.counts['read']} reads, longest wait of one: "
          f"write {state.longest['write']:.2f} s, read {state.longest['read']:.2f} s")
    return 1 if state.failures else 0


if __name__ == "__main__":
    sys.exit(main())
