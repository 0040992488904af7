"""Fills a new disk of a node while programs read, as ci/bench's step `resync` asks: how fast that goes, and what it costs them.

  ci/resync.py COREFS OUT SIZE ROUNDS SECONDS RATE NODE_DIR

The cluster that COREFS_MANAGER names has SIZE bytes, twice; the disk of NODE_DIR is replaced, so all of its targets move. Windows
without and with filling alternate (`corefs moves pause`), because on a shared machine only neighbours can be compared, and after
them comes one in which fio asks of the disk what filling did in the one before, as fast, with two nodes' ten flushes a second each:
what the disk itself makes readers pay. In each, `corefs perf randread` reads RATE blocks a second, and latency counts from when
each was due.
"""
import json
import os
import statistics
import subprocess
import sys
import time

COREFS, OUT, SIZE, ROUNDS, SECONDS, RATE, NODE = sys.argv[1:8]
ROUNDS, SECONDS = int(ROUNDS), float(SECONDS)


def run(*words):
    ran = subprocess.run([COREFS, *words], capture_output=True, text=True, timeout=900)
    if ran.returncode:
        sys.exit(f"corefs {' '.join(words)} ended with {ran.returncode}: {ran.stderr}")
    return ran.stdout


def look(*words):
    return json.loads(run(*words, "--json"))


def filled():
    """Bytes that nodes have sent to fill others since they were started."""
    processes = look("status", "--counters")["processes"]
    return sum(shard["counters"].get("filled_bytes", 0) for process in processes for shard in process.get("shards", []))


def reads():
    """Latencies of the reads of one window (us)."""
    report = json.loads(run("perf", "randread", "--path", "/resync.dat", "--size", SIZE, "--rate", RATE, "--depth", "64",
                            "--seconds", str(SECONDS), "--runtime-warmup", "0.5", "--json"))
    row = report["rows"][0]
    if row["errors"] or row["verify_errors"]:
        sys.exit(f"reads failed: {row}")
    return row["latency_us"]


def start_disk(rate):
    """fio, reading and writing `rate` MiB a second; the file is made at the first time."""
    name = ["fio", "--name=fill", f"--filename={FILE}", "--size=1GiB", "--bs=32k", "--direct=1", "--ioengine=io_uring", "--iodepth=8"]
    if not os.path.exists(FILE):
        subprocess.run([*name, "--rw=write"], check=True, stdout=subprocess.DEVNULL)
    flush = max(1, int(rate * 32 / 20))
    return subprocess.Popen([*name, "--rw=rw", f"--rate={rate:.0f}m", f"--fdatasync={flush}", "--time_based", "--runtime=600"],
                            stdout=subprocess.DEVNULL)


def left():
    return look("moves")["moves"]


def still():
    """After a pause: those on their way have arrived."""
    while any(move["begun"] for move in left()):
        time.sleep(0.05)


run("perf", "randread", "--path", "/resync.dat", "--size", SIZE, "--seconds", "0.1", "--runtime-warmup", "0")
spread = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
FILE = os.path.join(os.path.dirname(os.path.normpath(NODE)), "fio")
quiet, busy, disk, rates, ratios, disk_ratios = [], [], [], [], [], []
begun, began = filled(), time.monotonic()
run("moves", "pause")
run("disk", "replace", "0", "--dir", NODE, "--disk", os.path.join(NODE, "new-disk"))
for number in range(ROUNDS):
    still()
    quiet.append(reads())
    run("moves", "resume")
    before, since = filled(), time.monotonic()
    busy.append(reads())
    now, after = time.monotonic(), filled()
    if not left():  # too short a window
        quiet.pop(), busy.pop()
        break
    rates.append((after - before) / (now - since) / (1 << 20))
    ratios.append(busy[-1]["p99"] / quiet[-1]["p99"])
    run("moves", "pause")
    still()
    fio = start_disk(rates[-1])
    disk.append(reads())
    fio.terminate()
    fio.wait()
    disk_ratios.append(disk[-1]["p99"] / quiet[-1]["p99"])
    print(f"  {number + 1}: {rates[-1]:.0f} MiB/s; p50 {quiet[-1]['p50']:.0f}, filling {busy[-1]['p50']:.0f}, fio {disk[-1]['p50']:.0f} us; "
          f"p99 {quiet[-1]['p99']:.0f}, filling {busy[-1]['p99']:.0f}, fio {disk[-1]['p99']:.0f} us", flush=True)
run("moves", "resume")
before, since = filled(), time.monotonic()
run("moves", "wait")
rest, took = (filled() - before) / (1 << 20), time.monotonic() - since
report = {"rounds": len(ratios), "rate": int(RATE), "quiet": quiet, "busy": busy, "disk": disk, "fill_mib_per_second": rates,
          "p99_ratios": ratios, "disk_p99_ratios": disk_ratios, "rest_mib": rest, "rest_seconds": took, "sent_bytes": filled() - begun}
with open(OUT, "w") as out:
    json.dump(report, out, indent=1)
if ratios:
    print(f"beside {RATE} reads a second: filled at {spread(rates)} MiB/s; p99 {spread(ratios)} times that without filling, "
          f"p50 {spread([b['p50'] / q['p50'] for b, q in zip(busy, quiet)])}")
    print(f"fio's same reads and writes: p99 {spread(disk_ratios)} times that without, so filling costs "
          f"{spread([b['p99'] / d['p99'] for b, d in zip(busy, disk)])} times what the disk takes")
if took > 1:
    print(f"alone: {rest:.0f} MiB in {took:.1f} s, {rest / took:.0f} MiB/s")
print(f"{report['sent_bytes'] / (1 << 20):.0f} MiB sent in all")
