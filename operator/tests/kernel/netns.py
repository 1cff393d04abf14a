"""Network namespaces for tests: the kernel is real, the machine's own network is never touched.

A `Lab` makes namespaces, and removes them also on failure; what a killed run has left behind is removed by the next
one. State is read with `ip`, which knows nothing of the code under test.

The names carry a number of the run. One of its namespaces, `owner`, says that it lives: the run holds a lock on it. A
process id would not do, as containers that share the names' directory have pids of their own.

Processes are what tests of the kernel cost: 25 a test and 2 ms each. So what a system call does is done by one, and
what several commands do is a batch.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import json
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = f"nlns-{os.urandom(4).hex()}"
SOON = 0.2
"""Seconds. Between namespaces, an answer is there before `ping` has begun to wait: whoever sends a packet takes it all
the way and back. What is not answered by then is lost."""
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_NAMED = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)

# What differs between two equal states: ifindexes, what a bridge has learned of the devices that were in it, and the
# moment in which an IPv6 address of somebody else's device is new.
_VOLATILE = re.compile(r"^\d+: |@if\d+|link-netns \S+|link-netnsid \d+|tso_max_size \d+| tentative")


def run(*command: str, check: bool = True, given: str | None = None) -> str:
    """Run a command that reads what is `given`; its output. Raises with the command's own words.

    pytest ends a test that hangs; with a `timeout` here, Python would look for the end of each command by sleeping.
    """
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
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

    def exec(self, command: str, *, check: bool = True, given: str | None = None) -> str:
        """A command inside. Unlike with `ip netns exec`, /sys is the machine's."""
        with self.entered():
            return run(*command.split(), check=check, given=given)

    def batch(self, lines: list[str], *options: str) -> str:
        """`ip -batch`; its output."""
        return run("ip", "-n", self.name, *options, "-batch", "-", given="\n".join(lines))

    def sysctl(self, name: str, value: str = "") -> str:
        """Read, or set, `net.ipv4...` or `net/ipv4/...`."""
        path = Path("/proc/sys", name if "/" in name else name.replace(".", "/"))
        with self.entered():
            if value:
                path.write_text(value)
            return path.read_text().strip()

    def up(self, device: str) -> None:
        """`ip link set DEVICE up`."""
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH22x", device.encode(), 0))
            (flags,) = struct.unpack_from("H", request, 16)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", device.encode(), flags | _IFF_UP))

    def pings(self, target: str, *, size: int = 0, source: str = "", seconds: float = 2) -> bool:
        """One answered ping; with `size` (bytes of the whole packet) it may not be fragmented.

        `seconds` is what it costs where there is no answer: SOON, where none is expected.
        """
        options = f"-s {size - (48 if ':' in target else 28)} -M do" if size else ""
        origin = f"-I {source}" if source else ""
        return " 0% packet loss" in self.exec(f"ping -n -c 1 -W {seconds:g} {options} {origin} {target}", check=False)

    def takes(self, *addresses: str) -> None:
        """Wait until packets to these IPv6 addresses of its own are let in.

        A socket can be bound to one at once, without duplicate detection, but its route is made by another thread of
        the kernel's: on a busy machine later than the first packet comes.
        """
        until = time.monotonic() + 20
        while not all(f"local {each} " in self.ip("-6 route show table local") for each in addresses):
            assert time.monotonic() < until, self.ip("-6 route show table local")
            time.sleep(0.005)

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
        # With all tables, the routes are those of both families.
        for line in self.batch(["link", "address", "nexthop", "route show table all", "neighbour"], "-d").splitlines():
            # Neighbours that the kernel makes by itself come and go.
            if "lladdr" in line and "PERMANENT" not in line:
                continue
            # The kernel's echo of IPv6 addresses comes when it has the time.
            if line.rstrip().endswith("table local proto kernel scope global metric 0 pref medium"):
                continue
            lines.append(_VOLATILE.sub("", line).strip())
        return "\n".join(sorted(lines))

    def owned(self) -> str:
        """What is Netloom's, one line each, by its marks: device name, protocol number."""
        text = self.batch(["neighbour show nud permanent", "nexthop", "route show proto 158"]).splitlines()
        said = [" ".join(line.split()) for line in (*text, *self.ip("-6 route show proto 158").splitlines())]
        neighbours = [line for line in said if line.endswith("PERMANENT")]
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
            on_it = f" dev {link['ifname']} "
            lines += sorted(f"neighbour {line.replace(on_it, ' ')}" for line in neighbours if on_it in line)
        nexthops = [line for line in said if line.startswith("id ") and "proto 158" in line]
        lines += [f"nexthop {line.replace(' src 0.0.0.0', '').replace(' tos 0', '')}" for line in nexthops]
        routes = [line for line in said if not line.startswith("id ") and line not in neighbours]
        lines += ["route " + re.sub(r" encap .*", "", line) for line in routes]
        return "\n".join(lines)


def _setns(descriptor: int) -> None:
    _done(_libc.setns(descriptor, _CLONE_NEWNET), "setns")


def _done(result: int, call: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), call)


def _add(name: str) -> None:
    """`ip netns add`."""
    place = _NAMED / name
    place.touch(exist_ok=False)
    _mount(place)


def _mount(place: Path) -> None:
    """A new namespace has this name."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _done(_libc.unshare(_CLONE_NEWNET), "unshare")
        _done(_libc.mount(b"/proc/thread-self/ns/net", bytes(place), b"none", _MS_BIND, None), "mount")
    finally:
        _setns(home)
        os.close(home)


def _delete(name: str) -> None:
    """`ip netns delete`."""
    place = _NAMED / name
    _libc.umount2(bytes(place), _MNT_DETACH)
    place.unlink(missing_ok=True)


class Lab:
    """Namespaces of one test."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []

    def namespace(self, name: str) -> Namespace:
        """A new one, with `lo` up, and link-local addresses that are there at once (no duplicate detection).

        It forwards nothing, though the machine may (one with containers does): the kernel lets new ones begin as that.
        """
        _own()
        namespace = Namespace(f"{PREFIX}-{name}")
        self._made.append(namespace)
        _add(namespace.name)
        namespace.sysctl("net.ipv4.ip_forward", "0")
        for scope in ("all", "default"):
            namespace.sysctl(f"net.ipv6.conf.{scope}.accept_dad", "0")
        namespace.up("lo")
        return namespace

    def wire(self, one: Namespace, device: str, other: Namespace, far: str, *more: str) -> None:
        """A veth pair between two namespaces, up; what `ip` is to do `more`, in the first, costs no further process."""
        one.batch([f"link add {device} type veth peer name {far} netns {other.name}", *more])
        one.up(device)
        other.up(far)

    def remove(self, namespace: Namespace) -> None:
        """Remove one."""
        self._made.remove(namespace)
        _delete(namespace.name)

    def close(self) -> None:
        """Remove all."""
        for namespace in self._made:
            _delete(namespace.name)
        self._made.clear()


@functools.cache
def _own() -> None:
    """This run lives: a lock that the kernel releases when the process ends, however that is.

    The machine's first `ip netns add` mounts the directory of names onto itself, with all that is mounted in it. From
    then on no name that was there could be removed: so that `ip` of whoever else is at work has to come before ours.
    """
    run("ip", "netns", "add", f"{PREFIX}-first")
    run("ip", "netns", "delete", f"{PREFIX}-first")
    owner = _NAMED / f"{PREFIX}-owner"
    with _locked(_NAMED, fcntl.LOCK_SH):
        owner.touch(exist_ok=False)
        _hold(owner)  # as it is seen where this process's mounts are not
        _mount(owner)
        _hold(owner)
    atexit.register(_delete_all, PREFIX)


def _hold(path: Path) -> None:
    """Until this process ends."""
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)


def prepare() -> None:
    """To be called before the first namespace is made: removes what runs that no longer live have left."""
    _own()
    with _locked(_NAMED, fcntl.LOCK_EX):  # between a run's first namespace and the lock on it nobody may look
        for owner in _NAMED.glob("nlns-*-owner"):
            if _is_free(owner):
                _delete_all(owner.name.removesuffix("-owner"))


def _delete_all(prefix: str) -> None:
    """The owner last, so that who is interrupted leaves nothing that is not found again."""
    for path in sorted(_NAMED.glob(f"{prefix}-*"), key=lambda path: path.name.endswith("-owner")):
        _delete(path.name)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Raises BlockingIOError, with LOCK_NB, where somebody else has a lock on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _is_free(path: Path) -> bool:
    try:
        with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return True
    except BlockingIOError:
        return False
