"""The few kernel switches that routing between pods needs, and how they were before.

What is switched on outside our own device is written to a file first, so that `cleanup` can put it back. A value is
written only if it differs; one that was right already is not ours to put back.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

ROOT = Path("/proc/sys")
_DOTTED = str.maketrans("/.", "./")


class Sysctl(msgspec.Struct, frozen=True):
    """A switch. `name` is its path below /proc/sys. `ours`: it belongs to our device and goes with it.

    `only_from`: a value other than this one is somebody's choice, and stays. `beside`: another switch, of which the
    kernel takes the greater of both.
    """

    name: str
    value: str
    ours: bool = False
    only_from: str = ""
    beside: str = ""

    @property
    def dotted(self) -> str:
        """The name as `sysctl` takes it: a dot within, as in eth0.5, becomes a slash."""
        return self.name.translate(_DOTTED)

    def is_set(self, now: str) -> bool:
        """Whether a value that is read needs no change."""
        return now == self.value or (self.only_from != "" and now != self.only_from)


def of_node(underlay: Iterable[str], *, ipv6: bool, native: bool) -> list[Sysctl]:
    """The switches of a node whose pods' traffic goes through these devices.

    rp_filter: where packets may come in natively, it has to be loose: what goes to their sender may go through a
    tunnel while the cluster changes from one to the other. A filter that is off stays off.
    accept_ra: with forwarding on, the kernel ignores router advertisements on all devices, unless the switch is at 2: a
    node that has its default route from one would lose it minutes later.
    """
    result = [Sysctl("net/ipv4/ip_forward", "1")]
    for device in underlay:
        if native:
            strict = f"net/ipv4/conf/{device}/rp_filter"
            result.append(Sysctl(strict, "2", only_from="1", beside="net/ipv4/conf/all/rp_filter"))
        if ipv6:
            result.append(Sysctl(f"net/ipv6/conf/{device}/accept_ra", "2", only_from="1"))
    if ipv6:
        result.append(Sysctl("net/ipv6/conf/all/forwarding", "1"))
    return result


def of_tunnel(device: str, *, ipv6: bool) -> list[Sysctl]:
    """The switches of a tunnel's device.

    rp_filter: loose, because a remote node's own traffic to a pod may come from an address that is not routed through
    the tunnel, which strict mode drops; the kernel uses the greater of the device's and `all`, and 2 (loose) is the
    greatest. accept_ra: nobody who can send through the tunnel shall be able to configure this node.
    """
    result = [Sysctl(f"net/ipv4/conf/{device}/rp_filter", "2", ours=True)]
    if ipv6:
        result += [
            Sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "0", ours=True),
            Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0", ours=True),
        ]
    return result


def read(name: str) -> str:
    """The value now. Raises OSError."""
    return (ROOT / name).read_text(encoding="ascii").strip()


def effective(sysctl: Sysctl) -> str:
    """The value that the kernel acts on now. Raises OSError."""
    values = [read(sysctl.name), *([read(sysctl.beside)] if sysctl.beside else [])]
    return max(values, key=int) if sysctl.beside else values[0]


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

    def due(self) -> list[Sysctl]:
        """What `restore` would put back: what nobody has changed since. Raises OSError."""
        found = []
        for name, (before, ours) in self._load().items():
            with suppress(FileNotFoundError):  # of a device that is no longer there
                if read(name) == ours:
                    found.append(Sysctl(name, before))
        return found

    def restore(self) -> list[Sysctl]:
        """Put it back, and forget all. Returns what was put back. Raises OSError."""
        restored = self.due()
        for sysctl in restored:
            with suppress(FileNotFoundError):
                (ROOT / sysctl.name).write_text(sysctl.value, encoding="ascii")
        self._path.unlink(missing_ok=True)
        return restored

    def _remember(self, name: str, before: str, ours: str) -> None:
        record = self._load()
        if name in record:
            return
        record[name] = (before, ours)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(self._path)

    def _load(self) -> dict[str, tuple[str, str]]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, tuple[str, str]])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError:
            # Half a file can only come from a crash of the machine, and that has reset the switches, too.
            return {}
