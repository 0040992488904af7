#!/usr/bin/env python3
"""What a name costs in a large tree beside a small one, from reports of `corefs perf meta`; and what its store takes to start.

    names.py COREFS KV_DIRECTORY REPORTS
"""
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

corefs, store, reports = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
PHASES = ("create", "stat", "readdir")


def rows(name):
    report = json.loads((reports / name).read_text())
    return {row["mode"].removeprefix("native_"): row for row in report["rows"]}


def figures(row):
    """Microseconds of an operation: the servers' CPU, the client's CPU, and time."""
    cpu = row["cpu_us_per_op"]
    if row["errors"] or None in cpu.values():
        sys.exit(f"{row['mode']}: {row['errors']} errors, CPU {cpu}")
    return [cpu["server_user"] + cpu["server_system"], cpu["client_user"] + cpu["client_system"], 1e6 / row["iops"]]


def start():
    """Seconds until the store is ready, its memory then (MiB), and its process."""
    began = time.monotonic()
    address = f"unix:{os.path.abspath(store)}.sock"
    process = subprocess.Popen([corefs, "kv", "--dir", store, "--listen", address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if not process.stdout.readline().startswith(b"ready "):
        sys.exit("the store didn't start")
    seconds = time.monotonic() - began
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return seconds, memory / 1024, process


many, few = rows("names-many.json"), [rows(f"names-few-{number}.json") for number in (1, 2, 3)]
print(f"{'us':<10}{'server CPU':>28}{'client CPU':>28}{'time':>28}   ratios")
print(f"{'files':<10}" + f"{'10,000':>17}{'many':>11}" * 3)
for phase in PHASES:
    small = [statistics.median(values) for values in zip(*(figures(run[phase]) for run in few))]
    large = figures(many[phase])
    pairs = "".join(f"{before:>17.2f}{after:>11.2f}" for before, after in zip(small, large))
    ratios = ", ".join(f"{after / before:.2f}" if before else "-" for before, after in zip(small, large))
    print(f"{phase:<10}{pairs}   {ratios}")
print(f"{many['create']['operations']} files made; the store's process has {many['readdir']['server_memory']['metadata'] >> 20} MiB afterwards, "
      f"{few[-1]['readdir']['server_memory']['metadata'] >> 20} MiB with 40,000 files; the file has "
      f"{sum(path.stat().st_size for path in pathlib.Path(store).iterdir() if path.is_file()) >> 20} MiB")
for how, end in (("after a clean end", signal.SIGKILL), ("after kill -9", signal.SIGTERM)):
    seconds, memory, process = start()
    print(f"the store is ready {seconds:.2f} s after its start {how}, with {memory:.0f} MiB")
    process.send_signal(end)
    process.wait()
