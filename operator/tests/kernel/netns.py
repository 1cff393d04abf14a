"""Network namespaces for tests: the kernel is real, the machine's own network is never touched.

`Lab` makes namespaces whose names carry the process id, and removes them also on failure; what a killed run has left
behind is removed by the next one.
"""

import contextlib
import ctypes
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = "nlk"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str, check: bool = True) -> str:
    """Run a command; its output. Raises with the command's own words."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Namespace:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, arguments: str) -> str:
        """`ip -n NAME arguments`."""
        return run("ip", "-n", self.name, *arguments.split())

    def ip_json(self, arguments: str) -> Any:
        """`ip -j` decoded."""
        return json.loads(run("ip", "-n", self.name, "-j", "-d", *arguments.split()) or "[]")

    def run(self, command: str, *, check: bool = True) -> str:
        """A command inside."""
        return run("ip", "netns", "exec", self.name, *command.split(), check=check)

    def batch(self, lines: list[str]) -> None:
        """`ip -batch`."""
        command = ["ip", "-n", self.name, "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True, capture_output=True, timeout=120)

    def pings(self, target: str, *, size: int = 0, source: str = "") -> bool:
        """One answered ping; with `size` (bytes of the whole packet) it must not be fragmented."""
        options = f"-s {size - (48 if ':' in target else 28)} -M do" if size else ""
        origin = f"-I {source}" if source else ""
        return " 0% packet loss" in self.run(f"ping -n -c 1 -W 2 {options} {origin} {target}", check=False)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and those it starts meanwhile, are inside."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _setns(inside)
            yield
        finally:
            _setns(home)
            os.close(inside)
            os.close(home)

    def state(self) -> str:
        """All of the network state, as `ip` prints it, without ifindexes, counters and ages."""
        parts = []
        commands = "link", "address", "nexthop", "route show table all", "-6 route show table all", "neighbour"
        for command in commands:
            shown = self.ip(f"-d {command}") if command in ("link",) else self.ip(command)
            parts.append(f"# {command}\n{shown}")
        text = re.sub(r"^\d+: ", "", "\n".join(parts), flags=re.MULTILINE)
        text = re.sub(r"(@if\d+|link-netns\S* \S+|link-netnsid \d+|qlen \d+| (REACHABLE|STALE|DELAY|PROBE))", "", text)
        return "\n".join(sorted(line.rstrip() for line in text.splitlines() if "lladdr" not in line or "PERM" in line))


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Lab:
    """Namespaces of one test."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []

    def namespace(self, name: str) -> Namespace:
        """A new one, with `lo` up."""
        namespace = Namespace(f"{PREFIX}-{os.getpid()}-{name}")
        run("ip", "netns", "add", namespace.name)
        self._made.append(namespace)
        namespace.ip("link set lo up")
        return namespace

    def wire(self, one: Namespace, device: str, other: Namespace, far: str) -> None:
        """A veth pair between two namespaces, up."""
        one.ip(f"link add {device} type veth peer name {far} netns {other.name}")
        one.ip(f"link set {device} up")
        other.ip(f"link set {far} up")

    def close(self) -> None:
        """Remove all."""
        for namespace in self._made:
            run("ip", "netns", "delete", namespace.name, check=False)
        self._made.clear()


def sweep() -> None:
    """Remove what test processes that no longer live have left."""
    for path in Path("/run/netns").glob(f"{PREFIX}-*"):
        pid = path.name.split("-")[1]
        if not Path(f"/proc/{pid}").exists():
            run("ip", "netns", "delete", path.name, check=False)
