"""A mount of a cluster, for as long as a `with` lasts."""
import subprocess
import sys


class Mount:
    def __init__(self, corefs, manager, at, *flags):
        self.command = [corefs, "mount", at, "--manager", manager, *flags]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        if not self.process.stdout.readline().startswith("ready"):
            sys.exit("the mount didn't start")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        if self.process.wait(60) != 0:
            sys.exit("the mount didn't end cleanly")
