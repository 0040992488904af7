#!/usr/bin/env python3
"""stat(2) of the same files again, when the kernel believes nothing of them any more: through a mount that remembers what it heard, and one that
hears of no changes and so asks each time; in turns, each freshly mounted.

    again.py COREFS MANAGER WORK REPORT FILES ROUNDS KV_PROCESS
"""
import json
import os
import pathlib
import random
import statistics
import sys
import time

from mounted import Mount

corefs, manager, work, report = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])
files, rounds, server = int(sys.argv[5]), int(sys.argv[6]), int(sys.argv[7])
IN_ONE_DIRECTORY = 50
PASSES = 3
# Longer than a kernel believes anything.
PAUSE = 2.5
WAYS = {"remembered": (), "asked again": ("--believe", "900ms")}
mountpoint = work / "again-mount"


def cpu(process):
    """Seconds of CPU that a process has had."""
    times = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def make():
    paths = [mountpoint / f"again/{number // IN_ONE_DIRECTORY}/{number}" for number in range(files)]
    for number, path in enumerate(paths):
        if number % IN_ONE_DIRECTORY == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    return paths


def look(paths, mount):
    random.shuffle(paths)
    before = time.monotonic(), cpu(server), cpu(mount.process.pid)
    for path in paths:
        os.stat(path)
    after = time.monotonic(), cpu(server), cpu(mount.process.pid)
    return [(end - begin) / files * 1e6 for begin, end in zip(before, after)]


mountpoint.mkdir()
with Mount(corefs, manager, mountpoint):
    names = make()
found = {way: [] for way in WAYS}
for _ in range(rounds):
    for way, flags in WAYS.items():
        with Mount(corefs, manager, mountpoint, *flags) as mount:
            look(names, mount)
            for _ in range(PASSES):
                time.sleep(PAUSE)
                found[way].append(look(names, mount))
mountpoint.rmdir()
report.write_text(json.dumps(found, indent=1))
print(f"{'us a stat(2)':<14}{'time':>24}{'server CPU':>24}{'mount CPU':>24}   medians, least and most of {rounds * PASSES}")
for way, passes in found.items():
    columns = (f"{statistics.median(column):.1f} ({min(column):.1f} to {max(column):.1f})" for column in zip(*passes))
    print(f"{way:<14}" + "".join(f"{column:>24}" for column in columns))
