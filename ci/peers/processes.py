"""What the peers are run with: processes that end with the measurement, waits that end, and the CPU time of both sides while a load runs."""
import os
import signal
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.05


class Skip(Exception):
    """A peer can't be measured here. Says why; the others go on."""


def end_of(text, lines=12):
    """The end of a log, indented so that it stands apart from what is said about it."""
    said = [line for line in text.splitlines() if line.strip()]
    return "".join(f"\n    {line[:200]}" for line in said[-lines:])


def run(command, limit, **how):
    """Runs a command to its end and returns what it printed."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=limit, **how)
    except FileNotFoundError:
        raise Skip(f"{command[0]} isn't there") from None
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"") + (late.stderr or b"")
        raise Skip(f"`{' '.join(command)}` took more than {limit} s:{end_of(said.decode(errors='replace'))}") from None
    if done.returncode:
        raise Skip(f"`{' '.join(command)}` failed with {done.returncode}:{end_of(done.stdout + done.stderr)}")
    return done.stdout


class Server:
    """A process that serves until `stop`, in a session of its own: what Ctrl-C ends first is the measurement, which then ends this in order."""

    running = []

    def __init__(self, name, command, log, **how):
        self.name, self.log = name, Path(log)
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=how.pop("stdout", sink), stderr=sink, start_new_session=True, **how
            )
        # What it has started itself, once that is known: measured with it, and ended if it fails to.
        self.children = []
        Server.running.append(self)

    def pids(self):
        return [self.process.pid, *self.children]

    def wait_until(self, ready, limit):
        """Asks again and again whether it is ready; neither its death nor silence is waited for longer than `limit` seconds."""
        deadline = time.monotonic() + limit
        while True:
            if self.process.poll() is not None:
                raise Skip(f"{self.name} ended with {self.process.returncode}:{self.last_words()}")
            found = ready()
            if found:
                return found
            if time.monotonic() > deadline:
                raise Skip(f"{self.name} wasn't ready after {limit} s:{self.last_words()}")
            time.sleep(0.1)

    def last_words(self):
        """The ends of its output and of its own log, which stands beside it where it has one."""
        logs = [log for log in (self.log, self.log.with_suffix(".log")) if log.exists()]
        return "".join(end_of(log.read_text(errors="replace")) for log in dict.fromkeys(logs))

    def stop(self, limit=20):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(limit)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                for pid in self.children:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
        Server.running.remove(self)

    @classmethod
    def stop_all(cls):
        for server in reversed(cls.running[:]):
            server.stop()


def cpu_seconds(pid, alive=False):
    """User and system time of a process, of all its threads, those that have ended too. With `alive` it must not have ended itself."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if alive and fields[0] == "Z":
        raise ProcessLookupError(f"process {pid}")
    return (int(fields[11]) + int(fields[12])) / TICK


def disk_bytes(pid):
    """What a process has read from block devices: what came from the page cache, or from a cache of its own, isn't in it."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "read_bytes":
            return int(value)
    return 0


def load(command, servers, limit, **how):
    """Runs a load and looks at both sides all the time. Returns what it printed, and [(when, CPU of servers, CPU of client, bytes read)].

    Without servers the client is the one that reads."""
    command = [str(word) for word in command]
    samples = []
    errors = Path(how["cwd"]) / "load.err"
    how |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with errors.open("w") as err, subprocess.Popen(command, stderr=err, **how) as client:
        try:
            deadline = time.monotonic() + limit
            while client.poll() is None:
                try:
                    cpu = cpu_seconds(client.pid)
                    of_servers = sum(cpu_seconds(pid, alive=True) for pid in servers)
                    samples.append((time.time(), of_servers, cpu, sum(map(disk_bytes, servers or [client.pid]))))
                except (FileNotFoundError, ProcessLookupError) as gone:
                    raise Skip(f"a server died under the load: {gone}") from None
                if time.monotonic() > deadline:
                    raise Skip(f"`{' '.join(command)}` took more than {limit} s:{end_of(errors.read_text())}")
                time.sleep(SAMPLE_SECONDS)
            # Each of these loads says less than a pipe holds.
            said = client.stdout.read()
        finally:
            if client.poll() is None:
                client.kill()
    if client.returncode:
        raise Skip(f"`{' '.join(command)}` failed with {client.returncode}:{end_of(said + errors.read_text())}")
    return said, samples


def row(operations, block, began, seconds, p50_us, p99_us, servers, samples):
    """The figures of one run, with the CPU time of the seconds in which its operations were counted."""
    within = [sample for sample in samples if began <= sample[0] <= began + seconds]
    if len(within) < 2 or not operations:
        raise Skip(f"a run of {seconds:.2f} s with {operations} operations and {len(within)} looks at the CPU time says nothing")
    first, last = within[0], within[-1]
    iops = operations / seconds
    done = iops * (last[0] - first[0])
    return {
        "iops": iops,
        "p50_us": p50_us,
        "p99_us": p99_us,
        "server_cpu_us": (last[1] - first[1]) / done * 1e6 if servers else None,
        "client_cpu_us": (last[2] - first[2]) / done * 1e6,
        "from_disk": (last[3] - first[3]) / (done * block),
    }
