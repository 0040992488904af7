#!/usr/bin/env python3
"""Random reads of corefs beside those of Ceph and XRootD, on this machine, over the loopback: `ci/bench --peers`.

Each round measures the raw disk, corefs and every peer in turn, with as many reads in flight and as much data. What can't be installed or started is
skipped, with the reason. Everything is in a scratch directory, and is stopped and removed at the end, however that comes."""
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from ceph import Ceph
from processes import Server, Skip, end_of, load, row, run
from xrootd import XRootD

ROOT = Path(__file__).resolve().parent.parent.parent
COREFS = os.environ["COREFS"]
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
INSTALL_SECONDS = 900
COLUMNS = {
    "IOPS": ("iops", 1, "{:,.0f}"),
    "p50 ms": ("p50_us", 1e-3, "{:.2f}"),
    "p99 ms": ("p99_us", 1e-3, "{:.2f}"),
    "server CPU us": ("server_cpu_us", 1, "{:.1f}"),
    "client CPU us": ("client_cpu_us", 1, "{:.1f}"),
    "of disk": ("of_disk", 1, "{:.2f}"),
    "from disk": ("from_disk", 1, "{:.2f}"),
}


class Bench:
    """What is measured, and how much of it: the same for all."""

    depths, block, warmup = (128, 32), 4096, 1.0

    def __init__(self, work):
        text = os.environ.get("BENCH_SIZE", "8GiB")
        self.size = int(float(text[:-3]) * UNITS[text[-3:]]) if text[-3:] in UNITS else int(text)
        self.size -= self.size % (4 << 20)
        self.seconds = float(os.environ.get("BENCH_SECONDS", "5"))
        self.repeat = int(os.environ.get("BENCH_REPEAT", "5"))
        # Of one run: opening, warm-up, the measured time, and the end.
        self.limit = 60 + 2 * self.seconds
        self.work = work
        # The file that the raw disk and XRootD read.
        self.data = work / "data"

    def install(self, packages):
        """Out of reach of Ctrl-C, and waited for whatever happens: half an installation is the machine's problem and not ours alone."""
        command = [ROOT / "ci/packages", *packages]
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        with subprocess.Popen(command, **how) as packages:
            try:
                said, _ = packages.communicate(timeout=INSTALL_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(packages.pid, signal.SIGTERM)
                raise Skip(f"its packages weren't installed within {INSTALL_SECONDS} s") from None
        if packages.returncode:
            raise Skip(f"its packages can't be installed:{end_of(said)}")

    def write_data(self):
        with self.data.open("wb") as file:
            for _ in range(self.size >> 22):
                file.write(os.urandom(4 << 20))
            os.fsync(file.fileno())
        self.data.chmod(0o644)

    def drop_cache(self):
        """Only this file leaves the page cache: the rest of the machine goes on as before."""
        with self.data.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Corefs:
    name = "corefs"

    def __init__(self, dir, bench):
        self.dir, self.bench = dir, bench

    def start(self):
        out, capacity = self.dir / "up.json", self.bench.size * 5 // 4 + (1 << 30)
        with out.open("w") as said:
            command = [COREFS, "up", "--dir", self.dir / "cluster", "--capacity", capacity, "--json"]
            self.server = Server("corefs up", command, self.dir / "up.log", stdout=said)
        self.server.wait_until(lambda: out.read_text().rstrip().endswith("}"), 120)
        ready = json.loads(out.read_text())
        self.server.children = [process["pid"] for process in ready["processes"]]
        self.flags = ["--manager", ready["manager"], "--secret-file", ready["secret_file"]]
        # Writes the file.
        self.perf("randread", self.flags, 1, 1, 0.1, 60 + self.bench.size / 10e6, self.server.pids())
        self.version = run([COREFS, "--version"], 10).split()[-1]
        self.notes = [
            f"corefs {self.version}: `corefs up` with its defaults, one copy, one storage node; O_DIRECT, and nothing keeps data in memory. "
            "The client, `corefs perf randread`, checks a CRC of each block, which the server keeps on disk."
        ]

    def perf(self, verb, flags, depth, seed, seconds, limit, servers):
        out, bench = self.dir / "report.json", self.bench
        command = [COREFS, "perf", verb, *flags, "--size", bench.size, "--block", bench.block, "--depth", depth, "--seed", seed]
        command += ["--seconds", seconds, "--runtime-warmup", bench.warmup, "--json", out]
        _, samples = load(command, servers, limit, cwd=self.dir)
        return json.loads(out.read_text()), samples

    def measured(self, verb, flags, depth, seed, servers):
        report, samples = self.perf(verb, flags, depth, seed, self.bench.seconds, self.bench.limit, servers)
        self.machine = report["machine"]
        of = report["rows"][0]
        if of["errors"]:
            raise Skip(f"{of['errors']} reads of `corefs perf {verb}` failed")
        latency = of["latency_us"]
        return row(of["operations"], self.bench.block, of["series"]["began"], of["seconds"], latency["p50"], latency["p99"], servers, samples)

    def measure(self, depth, seed):
        return self.measured("randread", self.flags, depth, seed, self.server.pids())


class Disk(Corefs):
    """The same loop as a storage node's, on a file."""

    name = "disk"

    def start(self):
        self.notes = ["disk: `corefs perf disk`, io_uring with O_DIRECT on a file of the same file system: the ceiling. One process, the client."]

    def measure(self, depth, seed):
        self.bench.drop_cache()
        return self.measured("disk", ["--path", self.bench.data], depth, seed, [])


def spread(values):
    values = [value for value in values if value is not None]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)} if values else None


def summary(who, depth, rounds, of_disk):
    """A row of the table, from the rounds in which both it and the disk were measured."""
    rounds = [{**figures, "of_disk": figures["iops"] / disk["iops"]} for figures, disk in zip(rounds, of_disk)]
    keys = [key for key, _, _ in COLUMNS.values()]
    return {"who": who, "depth": depth, **{key: spread([one[key] for one in rounds]) for key in keys}, "rounds": rounds}


def table(rows):
    def cell(row, key, scale, form):
        if row[key] is None:
            return "-"
        median, least, most = (form.format(row[key][which] * scale) for which in ("median", "least", "most"))
        return f"{median} ({least}-{most})"

    lines = [["", *COLUMNS]] + [[row["who"], *(cell(row, *column) for column in COLUMNS.values())] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0])] + [text.rjust(width) for text, width in zip(line[1:], widths[1:])]).rstrip())


def measure(bench, out):
    skipped, peers = {}, []
    # Of the last minute, before anything here runs.
    busy = os.getloadavg()[0]

    def skip(peer, why):
        died = [server for server in peer.servers if server.process.poll() is not None]
        skipped[peer.name] = str(why) + "".join(f"\n    {server.name} died:{server.last_words()}" for server in died if server.name not in str(why))
        print(f"== {peer.name}: skipped, because {skipped[peer.name]}", flush=True)
        for server in peer.servers[::-1]:
            server.stop()

    free = shutil.disk_usage(bench.work).free
    needed = bench.size * 7 // 2 + (3 << 30)
    if free < needed:
        sys.exit(f"ci/bench --peers: {needed >> 20} MiB of free space are needed, and there are {free >> 20} MiB: set BENCH_SIZE or BENCH_DIR")
    bench.write_data()
    for kind in (Disk, Corefs, Ceph, XRootD):
        dir = bench.work / kind.name
        dir.mkdir()
        peer = kind(dir, bench)
        print(f"== {peer.name}: starts", flush=True)
        try:
            peer.start()
            peers.append(peer)
        except Skip as why:
            if isinstance(peer, Corefs):
                raise
            skip(peer, why)

    rounds = {}
    for depth in bench.depths:
        for number in range(1, bench.repeat + 1):
            for peer in peers[:]:
                try:
                    figures = peer.measure(depth, number)
                except Skip as why:
                    if isinstance(peer, Corefs):
                        raise
                    skip(peer, why)
                    peers.remove(peer)
                    continue
                rounds.setdefault((depth, peer.name), []).append(figures)
                print(f"== {depth} in flight, round {number}: {peer.name} {figures['iops']:,.0f} IOPS", flush=True)

    rows = [summary(who, depth, of, rounds[depth, "disk"]) for (depth, who), of in rounds.items() if who not in skipped]
    notes = [note for peer in peers for note in peer.notes]
    for one in rows:
        cached = 1 - one["from_disk"]["median"]
        if cached > 0.02:
            which = f"{one['who']} with {one['depth']} in flight"
            notes.append(f"LOOK: {cached:.0%} of what was read came from a cache in memory, not from the disk: {which}")
    if busy > 1:
        notes.append(f"LOOK: the load average was {busy:.1f} before this began: if others were still at work, the figures are theirs too.")
    report = {
        "load_before": busy,
        "config": {"size": bench.size, "block": bench.block, "seconds": bench.seconds, "warmup": bench.warmup, "repeat": bench.repeat},
        "machine": peers[0].machine,
        "versions": {peer.name: peer.version for peer in peers[1:]},
        "skipped": skipped,
        "notes": notes,
        "rows": rows,
    }
    (out / "peers.json").write_text(json.dumps(report, indent=1) + "\n")

    print(f"\nRandom reads of {bench.block} bytes of {bench.size >> 20} MiB: medians of {bench.repeat} rounds of {bench.seconds:g} s (least-most).")
    for depth in bench.depths:
        print(f"\n{depth} in flight")
        table([one for one in rows if one["depth"] == depth])
    print()
    legend = (
        "CPU: user and system time of all processes of a side, for each read. `of disk`: IOPS over the disk's in the same round. `from disk`: bytes "
        "that the serving processes (of the disk, the client) read from it, over those that were asked for."
    )
    for note in [legend, *notes]:
        print(textwrap.fill(note, 150, subsequent_indent="    "))
    for who, why in skipped.items():
        print(f"{who}: skipped, because {why.splitlines()[0]}")
    print(f"the report is {out / 'peers.json'}")


def main():
    out = Path(os.environ.get("BENCH_OUT", "bench-results")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for name in ends:
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    # Nobody else may read the keys that are made in it.
    work = Path(tempfile.mkdtemp(prefix="corefs-bench.", dir=os.environ.get("BENCH_DIR", "."))).resolve()
    try:
        measure(Bench(work), out)
    except Skip as why:
        sys.exit(f"ci/bench --peers: {why}")
    finally:
        for name in ends:
            signal.signal(name, signal.SIG_IGN)
        Server.stop_all()
        shutil.rmtree(work)


main()
