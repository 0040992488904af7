"""What goes wrong, one function a kind. Each takes a Nemesis and its own source of chance, does harm, undoes it where that is for somebody
to do, and returns what it did in words. What kills says so to `nemesis.event`, so that the time until service is back is measured."""
import itertools
import os
import signal
import time


class Skipped(Exception):
    """It can't be done here, because ..."""


class Nemesis:
    def __init__(self, cluster, history, rng, long_stop):
        self.cluster, self.network, self.history = cluster, cluster.network, history
        self.rng, self.long_stop = rng, long_stop
        self.events = []
        self.flipped = 0
        self.leads = []
        self.pairs = list(itertools.combinations(cluster.names("node-"), 2))
        rng.shuffle(self.pairs)
        self.pair = 0

    def event(self, at, kind, what, chains):
        self.events.append({"at": at, "kind": kind, "what": what, "chains": sorted(chains)})

    def affected(self, *names):
        status = self.cluster.status()
        if status is None:
            return []
        return sorted({chain for name in names for chain in self.cluster.chains_of(status, name)})

    def all_chains(self):
        status = self.cluster.status()
        return [chain["chain"] for chain in status["chains"]] if status else []

    def node(self, rng):
        return rng.choice(self.cluster.names("node-"))

    def leader(self):
        status = self.cluster.status()
        if status is None:
            return "manager-1"
        return f"manager-{self.cluster.managers.index(status['primary']) + 1}"


def kill(nemesis, rng, hold=None):
    """kill -9 of a storage node."""
    name, hold = nemesis.node(rng), rng.choice([0.2, 1, 2, 4]) if hold is None else hold
    chains = nemesis.affected(name)
    nemesis.event(nemesis.cluster.kill(name, hold), "kill", name, chains)
    time.sleep(hold + rng.random())
    return f"{name}, dead for {hold} s"


def pair(nemesis, rng, hold=None):
    """kill -9 of two storage nodes at once; over a run each pair has its turn."""
    names = nemesis.pairs[nemesis.pair % len(nemesis.pairs)]
    nemesis.pair += 1
    hold = rng.choice([0.2, 2, 4]) if hold is None else hold
    chains = nemesis.affected(*names)
    at = min([nemesis.cluster.kill(name, hold) for name in names])
    nemesis.event(at, "pair", " ".join(names), chains)
    time.sleep(hold + rng.random())
    return f"{' and '.join(names)}, dead for {hold} s"


def stop(nemesis, rng):
    """A storage node stands still and goes on, with what it knew."""
    name = nemesis.node(rng)
    seconds = rng.choice([0.5, 1.1, 1.5, 3, 8]) if rng.random() < 0.85 or not nemesis.long_stop else rng.uniform(20, 60)
    role = nemesis.cluster.roles[name]
    chains = nemesis.affected(name)
    at = time.monotonic_ns()
    role.send(signal.SIGSTOP)
    nemesis.event(at, "stop", name, chains)
    time.sleep(seconds)
    role.send(signal.SIGCONT)
    return f"{name} stood still for {seconds:.1f} s"


def manager(nemesis, rng, leader=None, hold=None):
    """kill -9 of a manager, of the leader mostly."""
    is_leader = rng.random() < 0.75 if leader is None else leader
    lead = nemesis.leader()
    name = lead if is_leader else rng.choice([one for one in nemesis.cluster.names("manager-") if one != lead])
    hold = rng.choice([0.2, 1, 5]) if hold is None else hold
    chains = nemesis.all_chains()
    at = nemesis.cluster.kill(name, hold)
    nemesis.event(at, "leader" if is_leader else "manager", name, chains)
    if is_leader:
        # The killed one is dead at least as long as this question takes, or it leads again: either counts.
        status = nemesis.cluster.status()
        if status is not None:
            nemesis.leads.append((time.monotonic_ns() - at) / 1e9)
    time.sleep(hold + rng.random())
    return f"{name}{', the leader' if is_leader else ''}, dead for {hold} s"


def manager_stop(nemesis, rng):
    """The leader of the managers stands still, and goes on as if it still led."""
    name, seconds = nemesis.leader(), rng.choice([1, 2.5, 5, 10])
    role = nemesis.cluster.roles[name]
    chains = nemesis.all_chains()
    at = time.monotonic_ns()
    role.send(signal.SIGSTOP)
    nemesis.event(at, "manager-stop", name, chains)
    time.sleep(seconds)
    role.send(signal.SIGCONT)
    return f"{name}, the leader, stood still for {seconds} s"


def meta(nemesis, rng):
    """kill -9 of a metadata server."""
    name, hold = rng.choice(nemesis.cluster.names("meta-")), rng.choice([0.2, 2])
    nemesis.event(nemesis.cluster.kill(name, hold), "meta", name, [])
    time.sleep(hold + rng.random())
    return f"{name}, dead for {hold} s"


def full(nemesis, rng):
    """The slices of a chain are filled to the last block, stay so for a while, and are emptied."""
    nemesis.event(time.monotonic_ns(), "full", "", [])
    written = nemesis.history("fill", "--chains", "1", "--most", str(256 << 20), "--hold-ms", str(rng.choice([500, 3000])))
    return f"the slices of a chain were full after {int(written) >> 20} MiB"


def flip(nemesis, rng):
    """Bits of values flip on the disk of one running node. They are healed before anything else goes wrong: two copies that are both
    damaged, or the only one left that is, are another test's."""
    nemesis.cluster.whole(120)
    name = nemesis.node(rng)
    nemesis.event(time.monotonic_ns(), "flip", name, [])
    disk = largest(f"{nemesis.cluster.root}/{name}")
    count = damage(disk, rng, 12)
    nemesis.flipped += count
    time.sleep(2)
    scrub(nemesis.cluster)
    return f"{count} blocks on the disk of {name}"


def scrub(cluster):
    """Until a scrub of everything finds nothing more."""
    for _ in range(5):
        done = cluster.tell("scrub", "--now", "--json")
        if done.returncode == 0:
            return
        time.sleep(1)
    raise RuntimeError(f"scrub: {done.stdout[-2000:]} {done.stderr[-500:]}")


def largest(directory):
    files = [os.path.join(at, name) for at, _, names in os.walk(directory) for name in names]
    return max(files, key=os.path.getsize)


def damage(disk, rng, most):
    """Flips a bit in at most `most` of the values on a disk. How many."""
    found, at = [], 0
    fd = os.open(disk, os.O_RDWR)
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
        while at < end:
            piece = os.pread(fd, 4 << 20, at)
            if piece.count(0) != len(piece):
                found += [at + offset for offset in range(0, len(piece), 4096) if piece[offset:offset + 8] == b"CFSvalue"]
            at += len(piece)
        chosen = rng.sample(found, min(most, len(found)))
        for place in chosen:
            inside = place + rng.randrange(16, 4096)
            byte = os.pread(fd, 1, inside)[0]
            os.pwrite(fd, bytes([byte ^ (1 << rng.randrange(8))]), inside)
        os.fsync(fd)
    finally:
        os.close(fd)
    return len(chosen)


def roads(nemesis, pairs, seconds):
    """These roads, each in one direction, are cut for a while."""
    if nemesis.network.why:
        raise Skipped(nemesis.network.why)
    for one, other in pairs:
        nemesis.network.cut(one, other)
    try:
        time.sleep(seconds)
    finally:
        for one, other in pairs:
            nemesis.network.mend(one, other)


def partition(nemesis, rng):
    """A storage node is cut off: from everybody, from the managers, from another node, from clients; sometimes in one direction."""
    name, seconds = nemesis.node(rng), rng.choice([0.5, 2, 4, 10])
    managers = nemesis.cluster.names("manager-")
    other = rng.choice([one for one in nemesis.cluster.names("node-") if one != name])
    kind = rng.choice(["everybody", "managers", "node", "client", "to managers", "to node", "from client"])
    chains = nemesis.affected(name)
    nemesis.event(time.monotonic_ns(), f"cut {kind}", name, chains)
    both = {"managers": managers, "node": [other], "client": ["client"]}
    if kind == "everybody":
        if nemesis.network.why:
            raise Skipped(nemesis.network.why)
        nemesis.network.unplug(name)
        time.sleep(seconds)
        nemesis.network.plug(name)
    elif kind in both:
        roads(nemesis, [pair for one in both[kind] for pair in ((name, one), (one, name))], seconds)
    elif kind == "to managers":
        roads(nemesis, [(name, one) for one in managers], seconds)
    elif kind == "to node":
        roads(nemesis, [(name, other)], seconds)
    else:
        roads(nemesis, [("client", name)], seconds)
    return f"{name} cut off {'from ' if kind in both or kind == 'everybody' else ''}{kind} for {seconds} s"


def apart(nemesis, rng, hold=None):
    """Two storage nodes can't reach each other, and everybody else reaches both: no lease runs out."""
    names = rng.sample(nemesis.cluster.names("node-"), 2)
    seconds = rng.choice([1, 5, 12]) if hold is None else hold
    status = nemesis.cluster.status()
    of = [set(nemesis.cluster.chains_of(status, name)) if status else set() for name in names]
    nemesis.event(time.monotonic_ns(), "apart", " ".join(names), of[0] & of[1])
    roads(nemesis, [(names[0], names[1]), (names[1], names[0])], seconds)
    return f"{' and '.join(names)} cut off from each other for {seconds} s"


def partition_manager(nemesis, rng, hold=None):
    """The leader of the managers is cut off from all nodes, or from everybody; it still reaches the store."""
    name, seconds = nemesis.leader(), rng.choice([1, 3, 6]) if hold is None else hold
    chains = nemesis.all_chains()
    nemesis.event(time.monotonic_ns(), "leader cut off", name, chains)
    if hold is not None or rng.random() < 0.5:
        roads(nemesis, [pair for node in nemesis.cluster.names("node-") for pair in ((name, node), (node, name))], seconds)
        return f"{name}, the leader, cut off from the nodes for {seconds} s"
    if nemesis.network.why:
        raise Skipped(nemesis.network.why)
    nemesis.network.unplug(name)
    time.sleep(seconds)
    nemesis.network.plug(name)
    return f"{name}, the leader, cut off from everybody for {seconds} s"


def drain(nemesis, rng):
    """A node is emptied in the middle of everything, and taken into use again."""
    name = nemesis.node(rng)
    number = str(nemesis.cluster.number(name))
    chains = nemesis.affected(name)
    nemesis.event(time.monotonic_ns(), "drain", name, chains)
    done = nemesis.cluster.tell("node", "drain", number)
    if done.returncode:
        return f"{name} could not be drained: {done.stderr.strip()[-200:]}"
    time.sleep(rng.choice([1, 5, 15]))
    for _ in range(20):
        done = nemesis.cluster.tell("node", "add", number)
        if done.returncode == 0:
            return f"{name} was drained, and added again"
        time.sleep(1)
    raise RuntimeError(f"node add {number}: {done.stderr.strip()[-300:]}")


KINDS = {
    "kill": kill, "pair": pair, "stop": stop, "manager": manager, "manager-stop": manager_stop, "meta": meta, "full": full,
    "flip": flip, "partition": partition, "apart": apart, "partition-manager": partition_manager, "drain": drain,
}
# How often each comes up.
WEIGHTS = {"kill": 4, "pair": 4, "stop": 3, "partition": 4, "apart": 2, "manager": 3}
# What needs everything whole and still, and what takes it all to itself.
ALONE = {"flip", "drain"}
