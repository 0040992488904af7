"""XRootD: one server of a directory, and a client that keeps reads in flight through its own asynchronous interface.

The server listens on every interface and can't be told otherwise. It gets a network namespace of its own, which has nothing but a loopback,
and the client enters that. It also refuses to run as root."""
import json
import os
from pathlib import Path

from processes import Server, Skip, load, row, run

HEADERS = "/usr/include/xrootd"
PACKAGES = ["xrootd:xrootd-server", f"{HEADERS}/XrdCl/XrdClFile.hh:libxrootd-client-dev", "g++:g++", "ip:iproute2"]
PORT = 1094
NOBODY = 65534


class XRootD:
    name = "xrootd"

    def __init__(self, dir, bench):
        self.dir, self.bench = dir, bench
        self.servers = []
        self.connections = {}

    def start(self):
        if os.geteuid() != 0:
            raise Skip("its server listens on every interface, and the network namespace that keeps it to the loopback takes root")
        self.bench.install(PACKAGES)
        self.client = self.dir / "xrootd_reads"
        source = Path(__file__).with_name("xrootd_reads.cc")
        compile = ["g++", "-O2", "-std=c++17", f"-I{HEADERS}", source, "-o", self.client, "-lXrdCl", "-lXrdUtils", "-pthread"]
        run(compile, 120, env={**os.environ, "TMPDIR": str(self.dir)})
        self.version = run(["sh", "-c", "xrootd -v 2>&1"], 10).strip()
        state = self.dir / "state"
        state.mkdir()
        os.chown(state, NOBODY, NOBODY)
        (state / "xrootd.cfg").write_text(
            f"xrd.port {PORT}\nxrd.network nodnr\nxrd.allow host 127.0.0.1\nall.adminpath {state}\nall.pidpath {state}\n"
            f"oss.localroot {self.bench.data.parent}\nall.export /{self.bench.data.name} readonly\n"
        )
        # As nobody, but with root's way through directories: the one above may be closed to others.
        caps = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *caps]
        serve = ["xrootd", "-c", state / "xrootd.cfg", "-I", "v4", "-l", state / "xrootd.log", "-s", state / "xrootd.pid", "-w", state]
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "-", *as_nobody, "--", *serve]
        server = Server("xrootd", command, state / "xrootd.out", cwd=state)
        self.servers.append(server)
        log = state / "xrootd.log"
        server.wait_until(lambda: log.exists() and f":{PORT} initialization completed" in log.read_text(errors="replace"), 30)
        self.notes = [
            f"xrootd {self.version}: its server reads through the page cache, which was emptied of the file before each run and fills during it; "
            "`from disk` says how much still came from there (more than 1: the kernel read ahead). Its plain reads carry no checksums.",
            "xrootd: the client is a program of ours over XrdCl, XRootD's native client. The server takes the reads of a connection one after "
            "another, so they are spread over as many connections as gave the most in a second each:",
        ]
        for depth in self.bench.depths:
            self.choose_connections(depth)

    def choose_connections(self, depth):
        tried = {}
        for count in sorted({min(count, depth) for count in (1, 4, 16, 64, depth)}):
            tried[count] = self.reads(depth, count, 1, 0.2, 1.0)[0]["iops"]
        self.connections[depth] = max(tried, key=tried.get)
        found = ", ".join(f"{count}: {iops:,.0f}" for count, iops in tried.items())
        self.notes.append(f"    {depth} in flight over {self.connections[depth]} connections ({found})")

    def reads(self, depth, connections, seed, warmup, seconds):
        bench, server = self.bench, self.servers[0].process.pid
        bench.drop_cache()
        command = ["nsenter", f"--net=/proc/{server}/ns/net", self.client, f"127.0.0.1:{PORT}", f"/{bench.data.name}", bench.size, bench.block]
        said, samples = load([*command, depth, connections, seed, warmup, seconds], [server], bench.limit, cwd=self.dir)
        report = json.loads(said)
        if report["errors"]:
            raise Skip(f"{report['errors']} reads of XRootD failed")
        figures = row(report["operations"], bench.block, report["began"], report["seconds"], report["p50"], report["p99"], self.servers, samples)
        return figures, samples

    def measure(self, depth, seed):
        return self.reads(depth, self.connections[depth], seed, self.bench.warmup, self.bench.seconds)[0]
