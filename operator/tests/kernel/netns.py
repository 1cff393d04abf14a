"""Network namespaces for tests: the kernel is real, the machine's own network is never touched.

A `Lab` makes namespaces whose names carry the process id, and removes them also on failure; what a killed run has
left behind is removed by the next one. State is read with `ip`, which knows nothing of the code under test.
"""

import contextlib
import ctypes
import json
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = "nlk"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# What differs between two equal states: ifindexes, what a bridge has learned of the devices that were in it, and the
# moment in which an IPv6 address of somebody else's device is new.
_VOLATILE = re.compile(r"^\d+: |@if\d+|link-netns \S+|link-netnsid \d+|tso_max_size \d+| tentative")


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
        """`ip -j -d` decoded."""
        return json.loads(run("ip", "-n", self.name, "-j", "-d", *arguments.split()) or "[]")

    def exec(self, command: str, *, check: bool = True) -> str:
        """A command inside."""
        return run("ip", "netns", "exec", self.name, *command.split(), check=check)

    def batch(self, lines: list[str]) -> None:
        """`ip -batch`."""
        command = ["ip", "-n", self.name, "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def sysctl(self, name: str, value: str = "") -> str:
        """Read, or set, `net/...`."""
        return self.exec(f"sysctl -n {name}" if not value else f"sysctl -qw {name}={value}").strip()

    def pings(self, target: str, *, size: int = 0, source: str = "") -> bool:
        """One answered ping; with `size` (bytes of the whole packet) it may not be fragmented."""
        options = f"-s {size - (48 if ':' in target else 28)} -M do" if size else ""
        origin = f"-I {source}" if source else ""
        return " 0% packet loss" in self.exec(f"ping -n -c 1 -W 2 {options} {origin} {target}", check=False)

    def advertise_router(self, device: str, prefix: str = "") -> None:
        """One router advertisement (RFC 4861): a default route by the device's link-local address, for half an hour,
        and, with `prefix`, a /64 in which every host makes itself an address."""
        message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
        if prefix:
            network = socket.inet_pton(socket.AF_INET6, prefix)
            message += struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 86400, 14400, 0, network)
        with self.entered(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            raw.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex(device)))

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
        """All of the network state, as `ip` prints it, in an order of its own."""
        lines = []
        for command in ("link", "address", "nexthop", "route show table all", "-6 route show table all", "neighbour"):
            for line in self.ip(f"-d {command}" if command == "link" else command).splitlines():
                # Neighbours that the kernel makes by itself come and go.
                if "lladdr" in line and "PERMANENT" not in line:
                    continue
                # The kernel's echo of IPv6 addresses comes when it has the time.
                if line.endswith("table local proto kernel metric 0 pref medium"):
                    continue
                lines.append(f"{command}: {_VOLATILE.sub('', line).strip()}")
        return "\n".join(sorted(lines))

    def owned(self) -> str:
        """What is Netloom's, one line each, by its marks: device name, protocol number."""
        lines = []
        for link in self.ip_json("address"):
            if not link.get("ifname", "").startswith("netloom_"):
                continue
            data = link["linkinfo"].get("info_data", {})
            lines.append(
                f"link {link['ifname']} {'up' if 'UP' in link['flags'] else 'down'} mtu {link['mtu']} "
                f"address {link['address']} {link['linkinfo']['info_kind']}"
                f"{' external' if data.get('external') else ''} dstport {data.get('port')}"
            )
            lines += [f"address {a['local']}/{a['prefixlen']}" for a in link["addr_info"]]
            neighbours = self.ip(f"neighbour show dev {link['ifname']} nud permanent").splitlines()
            lines += [f"neighbour {' '.join(line.split())}" for line in sorted(neighbours)]
        nexthops = [" ".join(line.split()) for line in self.ip("nexthop").splitlines() if "proto 158" in line]
        lines += [f"nexthop {line.replace(' src 0.0.0.0', '').replace(' tos 0', '')}" for line in nexthops]
        for family in ("-4", "-6"):
            for line in self.ip(f"{family} route show proto 158").splitlines():
                lines.append("route " + re.sub(r" encap .*", "", " ".join(line.split())))
        return "\n".join(lines)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Lab:
    """Namespaces of one test."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []

    def namespace(self, name: str) -> Namespace:
        """A new one, with `lo` up, and link-local addresses that are there at once (no duplicate detection)."""
        namespace = Namespace(f"{PREFIX}-{os.getpid()}-{name}")
        run("ip", "netns", "add", namespace.name)
        self._made.append(namespace)
        namespace.exec("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
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
