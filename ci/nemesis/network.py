"""A network for each process of a cluster: name spaces on one bridge, where roads can be cut. Needs root and `ip`.

Without them everything runs on loopback, and nothing can be cut: `Network.why` says why.
"""
import os
import shutil
import subprocess

# Nobody has this hardware address: what is sent there is lost without a word, as on a road that is cut.
NOBODY = "02:00:00:00:de:ad"


def ip(*words, check=True):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.returncode == 0


class Network:
    def __init__(self, names):
        self.tag = f"cx{os.getpid() % 1000000}"
        self.names = {name: number + 1 for number, name in enumerate(names)}
        self.why = None
        self.subnet = f"10.{64 + os.getpid() % 128}.{os.getpid() // 128 % 250}"
        try:
            self.build()
        except (RuntimeError, OSError) as error:
            self.remove()
            self.why = str(error)

    def build(self):
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise RuntimeError("network name spaces need root and ip(8)")
        ip("link", "add", self.tag, "type", "bridge")
        ip("addr", "add", f"{self.subnet}.254/24", "dev", self.tag)
        ip("link", "set", self.tag, "up")
        for name, number in self.names.items():
            space, outside = self.space(name), f"{self.tag}n{number}"
            ip("netns", "add", space)
            ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", outside, "master", self.tag, "up")
            ip("-n", space, "addr", "add", f"{self.subnet}.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        # Some containers let one make them and not enter them.
        first = next(iter(self.names))
        if subprocess.run(["ip", "netns", "exec", self.space(first), "true"]).returncode:
            raise RuntimeError("nothing can be run in a network name space")

    def remove(self):
        if not shutil.which("ip"):
            return
        for name in self.names:
            ip("netns", "del", self.space(name), check=False)
        ip("link", "del", self.tag, check=False)

    def space(self, name):
        return f"{self.tag}-{name}"

    def address(self, name):
        """The IP address of a process, or of the clients, who are all in one place."""
        if self.why:
            return "127.0.0.1"
        return f"{self.subnet}.{254 if name == 'client' else self.names[name]}"

    def prefix(self, name):
        """What is put before a command so that it runs there."""
        return [] if self.why or name not in self.names else ["ip", "netns", "exec", self.space(name)]

    def _at(self, name):
        return (["-n", self.space(name)], "eth0") if name in self.names else ([], self.tag)

    def cut(self, one, other):
        """What `one` sends to `other` is lost from now on; not the other direction."""
        where, device = self._at(one)
        ip(*where, "neigh", "replace", self.address(other), "lladdr", NOBODY, "dev", device, "nud", "permanent")

    def mend(self, one, other):
        where, device = self._at(one)
        ip(*where, "neigh", "del", self.address(other), "dev", device, check=False)

    def unplug(self, name):
        ip("link", "set", f"{self.tag}n{self.names[name]}", "down")

    def plug(self, name):
        ip("link", "set", f"{self.tag}n{self.names[name]}", "up")
