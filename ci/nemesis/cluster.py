"""A cluster of processes of its own: a key-value store, three managers, storage nodes, two metadata servers, and who starts them
again when they die. The directory is laid out as that of `corefs up`, so that `corefs fsck` checks all of it."""
import json
import os
import secrets
import signal
import subprocess
import threading
import time

REPLICAS = 3
CHUNK = 65536


class Role:
    def __init__(self, name, argv, log):
        self.name, self.argv, self.log = name, argv, log
        self.child = None
        self.wanted = False
        self.restart_at = 0.0
        # How long it stays dead when it has died.
        self.hold = 0.2
        self.starts = 0

    def spawn(self):
        self.starts += 1
        self.out = open(f"{self.log}.out", "wb")
        with open(f"{self.log}.log", "ab") as log:
            self.child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.out, stderr=log,
                                          start_new_session=True)

    def ready(self):
        with open(f"{self.log}.out") as out:
            return any(line.startswith("ready ") for line in out)

    def send(self, number):
        if self.child and self.child.poll() is None:
            os.kill(self.child.pid, number)


class Cluster:
    def __init__(self, work, network, corefs, nodes, targets, capacity):
        self.work, self.network, self.corefs = work, network, corefs
        self.nodes, self.targets = nodes, targets
        self.root = os.path.join(work, "cluster")
        for part in ("kv", "log", "run"):
            os.makedirs(os.path.join(self.root, part))
        secret = os.path.join(self.root, "secret")
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        ports = [7400, 7400, 7400] if not network.why else free_ports(3)
        self.managers = [f"{network.address(f'manager-{number + 1}')}:{ports[number]}" for number in range(3)]
        self.reach = [word for manager in self.managers for word in ("--manager", manager)] + ["--secret-file", secret]
        kv = f"unix:{self.root}/run/kv.sock"
        with open(os.path.join(self.root, "cluster.toml"), "w") as file:
            file.write(f'nodes = {nodes}\ncores = 1\nreplicas = {REPLICAS}\ntargets = {targets}\nchunk_size = {CHUNK}\n'
                       f'capacity = {capacity}\nmanager = "{self.managers[0]}"\n')
        self.roles = {}
        self.role("kv", ["kv", "--dir", f"{self.root}/kv", "--listen", kv, "--secret-file", secret])
        for number in range(3):
            self.role(f"manager-{number + 1}", [
                "mgmtd", "--kv", kv, "--listen", self.managers[number], "--nodes", str(nodes), "--replicas", str(REPLICAS),
                "--targets", str(targets), "--chunk-size", str(CHUNK), "--secret-file", secret])
        for number in range(1, nodes + 1):
            name = f"node-{number}"
            self.role(name, ["storage", "--dir", f"{self.root}/{name}", "--cores", "1", "--first-core",
                             str(number % os.cpu_count()), "--capacity", str(capacity), "--listen", network.address(name),
                             *self.reach])
        for number in (1, 2):
            name = f"meta-{number}"
            self.role(name, ["meta", "--kv", kv, "--listen", f"{network.address(name)}:0", *self.reach])
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.supervise, daemon=True)
        self.died = []

    def role(self, name, words):
        argv = [*self.network.prefix(name), self.corefs, *words]
        self.roles[name] = Role(name, argv, os.path.join(self.root, "log", name))

    def names(self, kind):
        return [name for name in self.roles if name.startswith(kind)]

    def start(self):
        for role in self.roles.values():
            role.spawn()
            role.wanted = True
            until = time.monotonic() + 120
            # Managers have nothing to wait for, and nodes get their numbers in order.
            while not role.ready():
                if role.child.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{role.name} did not start: see {role.log}.log")
                time.sleep(0.02)
        self.thread.start()

    def supervise(self):
        while not self.ending.wait(0.02):
            for role in self.roles.values():
                if not role.wanted:
                    continue
                if role.restart_at:
                    if time.monotonic() >= role.restart_at:
                        role.restart_at = 0.0
                        role.spawn()
                elif role.child.poll() is not None:
                    self.died.append((time.monotonic_ns(), role.name, role.child.returncode))
                    role.restart_at = time.monotonic() + role.hold

    def kill(self, name, hold):
        """kill -9; it is started again after `hold` seconds. When that was, in nanoseconds."""
        role = self.roles[name]
        role.hold = hold
        at = time.monotonic_ns()
        role.send(signal.SIGKILL)
        return at

    def run(self, *words, timeout=60):
        """Output of a command for people, or None if it failed."""
        try:
            done = subprocess.run([self.corefs, *words], capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode in (0, 3) else None

    def tell(self, *words, timeout=600):
        return subprocess.run([self.corefs, *words, *self.reach], capture_output=True, text=True, timeout=timeout)

    def status(self, timeout=40):
        out = self.run("status", "--json", *self.reach, timeout=timeout)
        return json.loads(out) if out else None

    def chains_of(self, status, name):
        """The chains of which a node serves a replica."""
        node = self.number(name)
        mine = {target["target"] for target in status["targets"] if target["node"] == node}
        return [chain["chain"] for chain in status["chains"]
                if any(member["target"] in mine and member["state"] in ("Serving", "Syncing") for member in chain["members"])]

    def number(self, name):
        """The number that the cluster gave to a node."""
        with open(f"{self.root}/{name}/node.toml") as file:
            for line in file:
                if line.startswith("node ="):
                    return int(line.split("=")[1])
        raise RuntimeError(f"{name} has no number")

    def broken(self, status):
        """What isn't whole, in words; empty if all is."""
        if status is None:
            return "no manager answers"
        short = [chain["chain"] for chain in status["chains"]
                 if len(chain["members"]) != REPLICAS or any(member["state"] != "Serving" for member in chain["members"])]
        dead = [node["node"] for node in status["nodes"] if not node["alive"]]
        if len(status["chains"]) != self.nodes * self.targets // REPLICAS:
            return "not all chains are there"
        parts = [f"{len(short)} chains aren't whole ({short[:5]})"] if short else []
        parts += [f"nodes {dead} are dead"] if dead else []
        return "; ".join(parts)

    def whole(self, within):
        """Waits until every member of every chain serves. Seconds it took; raises when it takes longer than `within`."""
        began = time.monotonic()
        while True:
            broken = self.broken(self.status())
            if not broken:
                return time.monotonic() - began
            if time.monotonic() - began > within:
                raise RuntimeError(f"not whole after {within} s: {broken}")
            time.sleep(0.2)

    def stop(self):
        """Ends everything, the last started first. What did not end cleanly."""
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join()
        complaints = []
        for role in reversed(self.roles.values()):
            role.wanted = False
            if not role.child or role.child.poll() is not None:
                continue
            role.send(signal.SIGCONT)
            role.send(signal.SIGTERM)
            try:
                if role.child.wait(timeout=30):
                    complaints.append(f"{role.name} ended with {role.child.returncode}")
            except subprocess.TimeoutExpired:
                complaints.append(f"{role.name} had to be killed")
                role.send(signal.SIGKILL)
                role.child.wait()
        return complaints


def free_ports(count):
    import socket
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
