"""The few kernel switches that routing between pods needs, and how they were before.

What is switched on outside our own device is written to a file first, so that `cleanup` can put it back. A value is
written only if it differs; one that was right already is not ours to put back.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from netloom.kernel.replaced_file import replace_file

ROOT = Path(os.environ.get("NETLOOM_PROC_SYS", "/proc/sys"))
"""A container's own /proc/sys cannot be written to, unless it may do everything; the machine's is mounted elsewhere."""

_DOTTED = str.maketrans("/.", "./")


class Sysctl(msgspec.Struct, frozen=True):
    """A switch. `name` is its path below /proc/sys. `ours`: it belongs to our device and goes with it.

    `only_from`: a value other than this one is somebody's choice, and stays. `beside`: another switch, of which the
    kernel takes the greater of both. `implied_by`: another switch, that sets this one, too, when it is set.
    """

    name: str
    value: str
    ours: bool = False
    only_from: str = ""
    beside: str = ""
    implied_by: str = ""

    @property
    def dotted(self) -> str:
        """The name as `sysctl` takes it: a dot within, as in eth0.5, becomes a slash."""
        return self.name.translate(_DOTTED)

    def is_set(self, now: str) -> bool:
        """Whether a value that is read needs no change."""
        return now == self.value or (self.only_from != "" and now != self.only_from)


IPV4, IPV6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
"""Forwarding as a whole, of each family. Setting one sets it on all devices, and on those to come."""
_TO_COME = "net/ipv4/conf/default/forwarding"
_ALL_STRICT = "net/ipv4/conf/all/rp_filter"


def of_node(underlay: Collection[str], advertised: Iterable[str] = (), *, ipv6: bool, native: bool) -> list[Sysctl]:
    """The switches of a node whose pods' traffic goes through the devices `underlay`, in the order to set them.

    advertised: devices, the underlay's or not, that this node may be configured by router advertisements on.
    accept_ra: where it is not 2, the kernel takes no advertisements on a device that forwards. The moment that
    forwarding is switched on for *any* device, it deletes all that it has learned so on devices without a 2: so first.
    forwarding: IPv4 asks the device that a packet comes in by; devices to come (pods' veths) take over `default`. IPv6
    asks `all` alone: what its switch of a device says, is whether that device takes router advertisements.
    rp_filter: where packets may come in natively, it has to be loose: what goes to their sender may go through a
    tunnel while the cluster changes from one to the other. A filter that is off stays off.
    """
    result = []
    if ipv6:
        devices = dict.fromkeys((*underlay, *advertised))
        result += [Sysctl(f"net/ipv6/conf/{device}/accept_ra", "2", only_from="1") for device in devices]
    result += [Sysctl(IPV4, "1"), Sysctl(_TO_COME, "1", implied_by=IPV4)]
    for device in underlay:
        result.append(forwarding(device))
        if native:
            strict = f"net/ipv4/conf/{device}/rp_filter"
            result.append(Sysctl(strict, "2", only_from="1", beside=_ALL_STRICT))
    if ipv6:
        result.append(Sysctl(IPV6, "1"))
    return result


def forwarding(device: str, *, ours: bool = False) -> Sysctl:
    """That IPv4 packets which come in by this device go further."""
    return Sysctl(f"net/ipv4/conf/{device}/forwarding", "1", ours=ours, implied_by=IPV4)


def of_tunnel(device: str, *, ipv6: bool, strict: bool) -> list[Sysctl]:
    """The switches of a tunnel's device. strict: see `is_strict`.

    rp_filter: never strict, because a remote node's own traffic to a pod may come from an address that is not routed
    through the tunnel. The kernel uses the greater of the device's and `all`, and 2 (loose) is the greatest. Where
    `all` is not strict, the device has none, whatever devices are made with: loose looks up one route more for each
    packet, 1.7 % of what it costs, and lets pass what any route leads back to. accept_ra: nobody who can send through
    the tunnel shall be able to configure this node.
    """
    rp_filter = "2" if strict else "0"
    result = [forwarding(device, ours=True), Sysctl(f"net/ipv4/conf/{device}/rp_filter", rp_filter, ours=True)]
    if ipv6:
        result += [
            Sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "0", ours=True),
            Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0", ours=True),
        ]
    return result


def is_strict() -> bool:
    """Whether packets are to come in on *every* device by the way to their source; also where that cannot be read."""
    with suppress(OSError):
        return read(_ALL_STRICT) == "1"
    return True


def read(name: str) -> str:
    """The value now. Raises OSError."""
    return (ROOT / name).read_text(encoding="ascii").strip()


def write(name: str, value: str) -> None:
    """Set it. By system calls alone: a pod waits for it. Raises OSError."""
    descriptor = os.open(f"{ROOT}/{name}", os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def effective(sysctl: Sysctl) -> str:
    """The value that the kernel acts on now. Raises OSError."""
    values = [read(sysctl.name), *([read(sysctl.beside)] if sysctl.beside else [])]
    return max(values, key=int) if sysctl.beside else values[0]


def _is_of_forwarding(name: str) -> bool:
    """Whether it goes off with forwarding, and not before: without accept_ra at 2 a node that forwards loses its routes
    from router advertisements."""
    return name == IPV4 or name.endswith(("/forwarding", "/accept_ra"))


class SysctlRecord:
    """Sets switches, and remembers in a file (which survives a crash, but not a reboot) what they were before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, sysctl: Sysctl) -> bool:
        """Whether it had to be written. Raises OSError."""
        before = read(sysctl.name)
        if sysctl.is_set(effective(sysctl)):
            return False
        if not sysctl.ours:
            self._remember(sysctl.name, before, sysctl.value)
        (ROOT / sysctl.name).write_text(sysctl.value, encoding="ascii")
        return True

    def before(self, name: str) -> str:
        """The value that it had before; empty where it was not set here."""
        return self._load().get(name, ("", ""))[0]

    def due(self, *, shared: bool = False) -> list[Sysctl]:
        """What `restore` would put back: what nobody has changed since, the last that was set first. Raises OSError."""
        return [sysctl for sysctl in self._unchanged() if not (shared and _is_of_forwarding(sysctl.name))]

    def left(self) -> list[Sysctl]:
        """What a `restore` that shares leaves, each with the value that it had before. Raises OSError."""
        return [sysctl for sysctl in self._unchanged() if _is_of_forwarding(sysctl.name)]

    def sentence(self, why: str) -> str:
        """What a `restore` that shares has left, because of `why`, and how to switch it; empty if nothing."""
        left = self.left()
        if not left:
            return ""
        now = ", ".join(f"{sysctl.dotted}={read(sysctl.name)}" for sysctl in left)
        then = " ".join(f"{sysctl.dotted}={sysctl.value}" for sysctl in left)
        return (
            f"{now}: left as the agent set it, because packets of others may be forwarded by {why}. If nothing on this "
            f"machine forwards packets any more: sysctl -w {then}"
        )

    def restore(self, *, shared: bool = False) -> list[Sysctl]:
        """Put it back, and forget it. Returns what was put back. Raises OSError.

        shared: others' packets may be forwarded, too. Forwarding, and what is needed with it, stays and is remembered.
        """
        restored, left = self.due(shared=shared), self.left() if shared else []
        for sysctl in restored:
            with suppress(FileNotFoundError):
                (ROOT / sysctl.name).write_text(sysctl.value, encoding="ascii")
        if left:
            record, names = self._load(), {sysctl.name for sysctl in left}
            self._store({name: values for name, values in record.items() if name in names})
        else:
            self._path.unlink(missing_ok=True)
        return restored

    def _unchanged(self) -> list[Sysctl]:
        found = []
        for name, (before, ours) in self._load().items():
            with suppress(FileNotFoundError):  # of a device that is no longer there
                if read(name) == ours:
                    found.append(Sysctl(name, before))
        return found[::-1]

    def _remember(self, name: str, before: str, ours: str) -> None:
        record = self._load()
        wanted = (record[name][0] if name in record else before, ours)
        if record.get(name) != wanted:
            # Those of devices that are gone went with them: of pods' devices there would be more with each pod.
            there = {each: values for each, values in record.items() if (ROOT / each).exists()}
            self._store({**there, name: wanted})

    def _store(self, record: dict[str, tuple[str, str]]) -> None:
        try:
            replace_file(self._path, msgspec.json.encode(record))
        except OSError as error:
            why = f"{self._path}, which remembers what `cleanup` puts back, cannot be written: {error.strerror}"
            raise OSError(error.errno, f"{why}. Make room there, or name another directory by --run-dir") from error

    def _load(self) -> dict[str, tuple[str, str]]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, tuple[str, str]])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError:
            # Half a file can only come from a crash of the machine, and that has reset the switches, too.
            return {}
