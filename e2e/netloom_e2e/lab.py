"""Nodes and pods as network namespaces of one machine, on one Ethernet segment.

    lab-sw   the switch: a bridge `br0` that also carries the control plane's address
    lab-n1   a node: `eth0` on the segment; an agent runs in it
    lab-n1-a a pod of that node: a veth, an address of the node's pod CIDR, a default route

Nothing is added to the namespace the caller is in. A lab is taken down by its context manager; what a killed process
left behind is swept when the next lab of that prefix is made.
"""

import ctypes
import ipaddress
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

NETNS = Path("/run/netns")
SEGMENT = ipaddress.IPv4Network("172.31.0.0/16")
_GATEWAY4 = "169.254.1.1"
_GATEWAY6 = "fe80::1"
_HOST_MAC = "ee:ee:ee:ee:ee:ee"
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills the child when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _enter(name: str) -> None:
    """Move the calling thread, and all that it starts from now on, into a network namespace."""
    with (NETNS / name).open() as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {name}")


def environment() -> dict[str, str]:
    """Ours, but with compiled modules kept: a role starts in half a second with them, in two and a half without."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(*argv: str, check: bool = True, stdin: str | None = None, timeout: float = 30) -> str:
    """Standard output of a command. Raises RuntimeError with its standard error if it fails and `check` is set."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(
            f"`{' '.join(argv)}` failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def wait_for(what: str, condition: Callable[[], object], *, deadline: float = 10.0, every: float = 0.02) -> float:
    """Poll until `condition()` is true; the seconds it took. Raises TimeoutError that says `what` was awaited."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > deadline:
            raise TimeoutError(f"not within {deadline:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - start


@dataclass(frozen=True)
class Namespace:
    """A network namespace by its name in /run/netns."""

    name: str

    @property
    def enter(self) -> tuple[str, ...]:
        """Words to put before a command to run it in here. Mounts stay the caller's."""
        return ("nsenter", f"--net={NETNS / self.name}", "--")

    @property
    def enter_line(self) -> str:
        """The same, for a person to type."""
        return " ".join(self.enter[:-1])

    def run(self, *argv: str, check: bool = True, stdin: str | None = None, timeout: float = 30) -> str:
        """Run a command in here; see `run`."""
        return run(*self.enter, *argv, check=check, stdin=stdin, timeout=timeout)

    def ip(self, *argv: str, check: bool = True) -> str:
        """Run `ip` in here."""
        return run("ip", "-n", self.name, *argv, check=check)

    def batch(self, lines: Sequence[str]) -> None:
        """Run many `ip` commands in here, one line each; stops at the first that fails."""
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines) + "\n")

    def inside(self, make: Callable[[], T]) -> T:
        """What `make` gives when called in here, as a socket that stays in here; the caller's thread does not move."""
        with ThreadPoolExecutor(1, initializer=_enter, initargs=(self.name,)) as thread:
            return thread.submit(make).result()

    def popen(self, argv: Sequence[str], *, stdout: IO[str] | int) -> subprocess.Popen[str]:
        """Start a command in here, to live no longer than the caller."""
        return subprocess.Popen(
            [*self.enter, *argv],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=die_with_parent,
            text=True,
        )


@dataclass(frozen=True)
class Ping:
    """What `ping` counted."""

    sent: int
    received: int

    @property
    def lost(self) -> int:
        return self.sent - self.received


def parse_ping(output: str) -> Ping:
    """The counters of ping's summary. Raises ValueError if there is none."""
    found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    if not found:
        raise ValueError(f"ping gave no summary: {output.strip()}")
    return Ping(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Pod(Namespace):
    """A namespace with a veth and a default route."""

    address: str

    def ping_command(
        self, to: str, *, count: int = 1, interval: float = 0.2, payload: int = 56, wait: float = 1.0
    ) -> list[str]:
        """A `ping` with DF set whose IP packet carries `payload` + 8 bytes of ICMP."""
        return [
            "ping",
            "-n",
            "-q",
            "-M",
            "do",
            "-c",
            str(count),
            "-i",
            f"{interval:g}",
            "-s",
            str(payload),
            "-W",
            f"{wait:g}",
            to,
        ]

    def ping(self, to: str, *, count: int = 1, interval: float = 0.2, payload: int = 56, wait: float = 1.0) -> Ping:
        """Ping with DF set and count the answers."""
        command = self.ping_command(to, count=count, interval=interval, payload=payload, wait=wait)
        return parse_ping(self.run(*command, check=False, timeout=count * interval + wait + 30))


@dataclass(frozen=True)
class Machine(Namespace):
    """A node: its own network namespace on the segment."""

    node: str
    address: str
    pods: dict[str, Pod] = field(default_factory=dict, compare=False)

    def add_pod(self, name: str, address: str, *, mtu: int) -> Pod:
        """A pod with one address (IPv4 or IPv6) of this node's pod CIDR; `mtu` in bytes."""
        ip = ipaddress.ip_address(address)
        pod = Pod(name=f"{self.name}-{name}", address=address)
        veth = f"p-{name}"
        v6 = ip.version == 6
        gateway = _GATEWAY6 if v6 else _GATEWAY4
        family = "-6" if v6 else "-4"
        run("ip", "netns", "add", pod.name)
        self.ip(
            "link",
            "add",
            veth,
            "address",
            _HOST_MAC,
            "mtu",
            str(mtu),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            pod.name,
        )
        # The gateway's own link-local address, at once: duplicate detection would keep it from asking for a second.
        linklocal = [f"link set {veth} addrgenmode none", f"addr add {gateway}/64 dev {veth} nodad"] if v6 else []
        self.batch([*linklocal, f"link set {veth} up", f"route add {ip}/{ip.max_prefixlen} dev {veth}"])
        pod.batch(
            [
                "link set lo up",
                f"link set eth0 mtu {mtu} up",
                f"addr add {ip}/{ip.max_prefixlen} dev eth0{' nodad' if v6 else ''}",
                *([] if v6 else [f"route add {gateway} dev eth0"]),
                f"neigh add {gateway} lladdr {_HOST_MAC} dev eth0 nud permanent",
            ]
        )
        pod.ip(family, "route", "add", "default", "via", gateway, "dev", "eth0")
        self.pods[name] = pod
        return pod

    def remove_pods(self) -> None:
        """Take its pods away. A namespace goes some time after its name, so their veths are deleted first."""
        for name, pod in self.pods.items():
            self.ip("link", "delete", f"p-{name}")
            run("ip", "netns", "delete", pod.name)
        self.pods.clear()


class Lab:
    """A switch and its nodes. `prefix` names the namespaces: at most 8 characters, unique on the machine."""

    address = str(SEGMENT[1])
    """Of the switch: where the nodes find the control plane."""

    def __init__(self, prefix: str, *, mtu: int = 1500) -> None:
        self.prefix = prefix
        self.mtu = mtu
        self.switch = Namespace(f"{prefix}-sw")
        self.nodes: dict[str, Machine] = {}
        self._made = 0

    def __enter__(self) -> "Lab":
        self.sweep()
        run("ip", "netns", "add", self.switch.name)
        self.switch.batch(
            [
                "link set lo up",
                f"link add br0 mtu {self.mtu} type bridge",
                f"addr add {self.address}/{SEGMENT.prefixlen} dev br0",
                "link set br0 up",
            ]
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sweep()

    def enter_switch(self) -> None:
        """Move the calling thread, and all that it starts from now on, into the switch's namespace."""
        _enter(self.switch.name)

    def add_node(self, node: str) -> Machine:
        """A namespace with `eth0` on the segment; addresses count up from .1.1."""
        self._made += 1
        index = self._made
        machine = Machine(name=f"{self.prefix}-{node}", node=node, address=str(SEGMENT[256 + index]))
        port = f"port{index}"
        run("ip", "netns", "add", machine.name)
        self.switch.ip(
            "link", "add", port, "mtu", str(self.mtu), "type", "veth", "peer", "name", "eth0", "netns", machine.name
        )
        self.switch.batch([f"link set {port} master br0 up"])
        machine.batch(
            [
                "link set lo up",
                f"link set eth0 mtu {self.mtu} up",
                f"addr add {machine.address}/{SEGMENT.prefixlen} dev eth0",
                f"route add default via {self.address}",
            ]
        )
        self.nodes[node] = machine
        return machine

    def remove_node(self, node: str) -> None:
        """Take a node away, with its pods and all that runs in it."""
        machine = self.nodes.pop(node)
        self._sweep([path.name for path in NETNS.glob(f"{machine.name}*")])

    def sweep(self) -> None:
        """End every process in a namespace of this prefix, then the namespaces."""
        self._sweep([path.name for path in NETNS.glob(f"{self.prefix}-*")] if NETNS.is_dir() else [])
        self.nodes.clear()

    def _sweep(self, names: list[str]) -> None:
        ours = str(os.getpid())
        for name in names:
            for pid in run("ip", "netns", "pids", name, check=False).split():
                if pid != ours:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        for name in names:
            run("ip", "netns", "delete", name, check=False)
