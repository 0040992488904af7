"""Damages blocks of a file where a node's disk has them, as a bad disk would.

    injure.py DISK FILE FIRST KIND...   one block for each KIND, spread over FILE from its block FIRST on
      flip    one bit is another        zero    a write that never came
      torn    its second half is old    astray  another block of the file lies there
    injure.py DISK FILE                 says how many whole blocks of FILE are on DISK
"""
import os
import sys

BLOCK = 4096


def places(disk, wanted):
    """Where each of `wanted` is on the disk; some may be missing."""
    found, at, end = {}, 0, os.lseek(disk, 0, os.SEEK_END)
    while at < end:
        piece = os.pread(disk, 4 << 20, at)
        if piece.count(0) != len(piece):
            for offset in range(0, len(piece), BLOCK):
                block = piece[offset : offset + BLOCK]
                if block in wanted:
                    found.setdefault(block, []).append(at + offset)
        at += len(piece)
    return found


def injured(kind, block, other):
    if kind == "flip":
        return block[:1234] + bytes([block[1234] ^ 16]) + block[1235:]
    return {"zero": bytes(BLOCK), "torn": block[: BLOCK // 2] + bytes(BLOCK // 2), "astray": other}[kind]


def main():
    path, name, kinds = sys.argv[1], sys.argv[2], sys.argv[4:]
    data = open(name, "rb").read()
    blocks = [data[at : at + BLOCK] for at in range(0, len(data) // BLOCK * BLOCK, BLOCK)]
    disk = os.open(path, os.O_RDWR)
    if not kinds:
        print(len(places(disk, set(blocks))))
        return
    first = int(sys.argv[3])
    step = (len(blocks) - first) // len(kinds)
    assert step > 1, "too many for such a file"
    chosen = [(kind, blocks[first + nth * step], blocks[first + nth * step + 1]) for nth, kind in enumerate(kinds)]
    found = places(disk, {block for _, block, _ in chosen})
    for kind, block, other in chosen:
        (at,) = found[block]
        os.pwrite(disk, injured(kind, block, other), at)
    os.fsync(disk)
    print(f"{len(kinds)} blocks of {os.path.basename(name)} damaged in {'/'.join(path.split('/')[-2:])}: {' '.join(kinds)}")


main()
