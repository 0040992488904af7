#!/usr/bin/env python3
"""Small files through a mount: tar unpacks a tree of them, packs it by a fresh mount and once more, and rm removes it; in turns with the same on a
local directory beside the cluster, whose files aren't durable when tar ends.

    small.py COREFS MANAGER WORK REPORT FILES ROUNDS
"""
import io
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tarfile
import time

from mounted import Mount

corefs, manager, work, report = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])
files, rounds = int(sys.argv[5]), int(sys.argv[6])
IN_ONE_DIRECTORY = 50
tree, mountpoint, local = work / "small.tar", work / "small-mount", work / "small-local"


def make_tree():
    """As source trees are: half of the files below 3 KiB, nineteen of twenty below 22."""
    draw, data = random.Random(1), random.Random(2).randbytes(1 << 20)
    with tarfile.open(tree, "w") as archive:
        for number in range(files):
            if number % IN_ONE_DIRECTORY == 0:
                directory = tarfile.TarInfo(f"t/{number // IN_ONE_DIRECTORY}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(directory)
            entry = tarfile.TarInfo(f"t/{number // IN_ONE_DIRECTORY}/f{number}")
            entry.size = min(int(draw.lognormvariate(8, 1.2)), len(data) // 2)
            at = draw.randrange(len(data) // 2)
            archive.addfile(entry, io.BytesIO(data[at : at + entry.size]))


def timed(*command):
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return files / (time.monotonic() - begin)


def unpack(root):
    return timed("tar", "xf", tree, "-C", root)


def pack(root):
    # tar notices /dev/null, and then reads nothing.
    return timed("sh", "-c", 'tar cf - -C "$0" t | cat', root)


def remove(root):
    return timed("rm", "-r", root / "t")


make_tree()
for directory in (mountpoint, local):
    directory.mkdir()
found = {}
for _ in range(rounds):
    turn = {}
    with Mount(corefs, manager, mountpoint):
        turn["unpack"] = unpack(mountpoint)
    with Mount(corefs, manager, mountpoint):
        turn["pack"], turn["pack again"] = pack(mountpoint), pack(mountpoint)
        turn["remove"] = remove(mountpoint)
    turn |= {f"local {name}": do(local) for name, do in (("unpack", unpack), ("pack", pack), ("remove", remove))}
    for name, rate in turn.items():
        found.setdefault(name, []).append(rate)
rows = {name: {"median": statistics.median(rates), "rounds": rates} for name, rates in found.items()}
report.write_text(json.dumps({"files": files, "files_per_second": rows}, indent=1))
print(f"{files} files, a second (least and most of {rounds} rounds)")
for name, row in rows.items():
    print(f"{name:14} {row['median']:10,.0f}  ({min(row['rounds']):,.0f} to {max(row['rounds']):,.0f})")
