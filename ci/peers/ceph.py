"""Ceph, as small as it gets: one monitor, one OSD (BlueStore in a plain file), a pool of one copy, and an RBD image that fio reads through librbd.

Configuration, keys, sockets, logs and data are in one directory, which CEPH_CONF names; nothing of the machine's own Ceph is read or written."""
import json
import os
import socket
import uuid

from processes import Server, Skip, load, row, run

PACKAGES = ["ceph:ceph-common", "ceph-mon:ceph-mon", "ceph-osd:ceph-osd", "fio:fio"]
POOL, IMAGE = "bench", "image"
# Ceph's own rule of thumb: a hundred for each OSD, rounded up to a power of two.
PLACEMENT_GROUPS = 128
# Of the data set: random reads find at most as much of it in the cache.
CACHE_SHARE = 1 / 8


def free_ports(count):
    """The first of `count` neighbouring ports that nobody has, below those the kernel gives to clients."""
    for first in range(20000 + os.getpid() % 8000, 32000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise Skip(f"no {count} neighbouring ports are free")


class Ceph:
    name = "ceph"

    def __init__(self, dir, bench):
        self.dir, self.bench = dir, bench
        self.env = {**os.environ, "CEPH_CONF": str(dir / "ceph.conf"), "CEPH_ARGS": ""}
        self.servers = []

    def run(self, *command, limit=60):
        return run(command, limit, env=self.env, cwd=self.dir)

    def start(self):
        self.bench.install(PACKAGES)
        if "rbd" not in run(["fio", "--enghelp"], 10).split():
            raise Skip("this fio was built without its engine rbd")
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        ports = free_ports(48)
        self.configure(fsid, ports)
        for name, caps in (
            ("client.admin", {"mon": "allow *", "osd": "allow *"}),
            ("mon.", {"mon": "allow *"}),
            ("osd.0", {"mon": "allow profile osd", "osd": "allow *"}),
        ):
            create = [] if (self.dir / "keyring").exists() else ["--create-keyring"]
            words = [word for cap in caps.items() for word in ("--cap", *cap)]
            self.run("ceph-authtool", *create, "keyring", "--gen-key", "-n", name, *words)
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{ports}/0]", "monmap")
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        mon = self.serve("ceph-mon", "a", "mon.a")
        mon.wait_until(lambda: self.answers("ceph", "--connect-timeout", "5", "mon", "stat"), 60)
        self.run("ceph", "osd", "new", osd)
        self.run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd, limit=120)
        osds = ("ceph", "--connect-timeout", "5", "osd", "stat", "--format", "json")
        self.serve("ceph-osd", "0", "osd.0").wait_until(lambda: json.loads(self.answers(*osds) or "{}").get("num_up_osds"), 120)
        self.run("ceph", "osd", "pool", "create", POOL, PLACEMENT_GROUPS)
        self.run("ceph", "osd", "pool", "application", "enable", POOL, "rbd")
        self.run("rbd", "create", f"{POOL}/{IMAGE}", "--size", f"{self.bench.size}B")
        self.fio("write", 60 + self.bench.size / 10e6, "--rw=write", "--bs=4M", "--iodepth=8", "--end_fsync=1")

    def configure(self, fsid, ports):
        at = self.dir
        cache = int(self.bench.size * CACHE_SHARE)
        settings = {
            "fsid": fsid,
            "mon_host": f"[v2:127.0.0.1:{ports}/0]",
            "mon_initial_members": "a",
            "public_addr": "127.0.0.1",
            "cluster_addr": "127.0.0.1",
            "ms_bind_port_min": ports + 1,
            "ms_bind_port_max": ports + 47,
            # Where it keeps everything.
            "run_dir": at,
            "keyring": at / "keyring",
            "admin_socket": f"{at}/$name.$pid.asok",
            "log_file": f"{at}/$name.log",
            "mon_cluster_log_file": f"{at}/cluster.$channel.log",
            "pid_file": f"{at}/$name.pid",
            "crash_dir": at / "crash",
            "mon_data": at / "mon",
            "osd_data": at / "osd",
            # What a single OSD forces.
            "osd_pool_default_size": 1,
            "osd_pool_default_min_size": 1,
            "mon_allow_pool_size_one": "true",
            "osd_crush_chooseleaf_type": 0,
            # A file with holes: what isn't written takes no space.
            "bluestore_block_size": self.bench.size * 3 // 2 + (4 << 30),
            # osd_memory_target can't be set below 896 MiB, of which most would be cache: more than a third of 2 GiB. So the cache itself is set.
            "bluestore_cache_autotune": "false",
            "bluestore_cache_size": cache,
        }
        for name in ("mon", "osd", "crash"):
            (at / name).mkdir()
        config = at / "ceph.conf"
        config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        # The kernel calls many a virtual disk rotational, and Ceph then serves it with a few threads as befits a hard disk.
        known = dict(line.split(" = ", 1) for line in self.run("ceph-osd", "--show-config").splitlines() if " = " in line)
        fast = {name: known[name[:-3] + "ssd"] for name in known if name.endswith("_hdd") and name[:-3] + "ssd" in known}
        fast.pop("bluestore_cache_size_hdd", None)
        with config.open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in fast.items())
        self.version = self.run("ceph-osd", "--version").split()[2]
        shards, threads = known["osd_op_num_shards_ssd"], known["osd_op_num_threads_per_shard_ssd"]
        self.notes = [
            f"ceph {self.version}: one monitor, one OSD, no manager; BlueStore in a plain file, read past the page cache but for its metadata; one "
            f"copy; {shards} shards of {threads} threads: where Ceph's defaults for hard disks and SSDs differ, those for SSDs are set, whatever the "
            "kernel calls the disk. The rest is default. The OSD checks a CRC of each block that it reads.",
            f"ceph: BlueStore's cache has {cache >> 20} MiB for data and metadata, the image {self.bench.size >> 20} MiB, fully written.",
            "ceph: the client is fio with librbd, a virtual disk striped over objects of 4 MiB; the client's CPU time is that of fio's process.",
        ]

    def serve(self, program, id, name):
        server = Server(program, [program, "-f", "-i", id], self.dir / f"{name}.out", env=self.env, cwd=self.dir)
        self.servers.append(server)
        return server

    def answers(self, *command):
        try:
            return self.run(*command, limit=10)
        except Skip:
            return None

    def fio(self, name, limit, *flags):
        """What fio with the image does, and when it began with it."""
        command = ["fio", f"--name={name}", "--ioengine=rbd", "--clientname=admin", f"--pool={POOL}", f"--rbdname={IMAGE}", "--thread=1"]
        # When the job begins, by the clock that the CPU time is looked at by: the image is open then.
        command += ["--exec_prerun=date +%s.%N", "--output-format=json", *flags]
        said, samples = load(command, [pid for server in self.servers for pid in server.pids()], limit, env=self.env, cwd=self.dir)
        job = json.loads(said[said.index("{"):])["jobs"][0]
        if job["error"]:
            raise Skip(f"fio: error {job['error']}")
        return job["read"], float((self.dir / f"{name}.prerun.txt").read_text()), samples

    def measure(self, depth, seed):
        bench = self.bench
        flags = ["--rw=randread", "--norandommap", f"--bs={bench.block}", f"--iodepth={depth}", f"--randseed={seed}", "--lat_percentiles=1"]
        flags += ["--time_based", f"--ramp_time={bench.warmup * 1000:.0f}ms", f"--runtime={bench.seconds * 1000:.0f}ms"]
        read, began, samples = self.fio(f"read-{depth}-{seed}", bench.limit, *flags)
        latency = read["lat_ns"]["percentile"]
        p50, p99 = (latency[key] / 1000 for key in ("50.000000", "99.000000"))
        return row(read["total_ios"], bench.block, began + bench.warmup, read["runtime"] / 1000, p50, p99, self.servers, samples)
