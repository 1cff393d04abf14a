"""The few kernel switches that routing between pods needs, and how they were before.

What is switched on outside our own device is written to a file first, so that `cleanup` can put it back. A value is
written only if it differs; one that was right already is not ours to put back.
"""

from pathlib import Path

import msgspec

ROOT = Path("/proc/sys")


class Sysctl(msgspec.Struct, frozen=True):
    """A switch. `name` is its path below /proc/sys. `ours`: it belongs to our device and goes with it.

    `only_from`: a value other than this one is somebody's choice, and stays.
    """

    name: str
    value: str
    ours: bool = False
    only_from: str = ""

    def is_set(self, now: str) -> bool:
        """Whether a value that is read needs no change."""
        return now == self.value or (self.only_from != "" and now != self.only_from)


def wanted(device: str, underlay: str, *, ipv6: bool) -> list[Sysctl]:
    """The switches for pods behind this tunnel device, on a node whose address is on `underlay` (empty: unknown).

    rp_filter: loose on our device, because a remote node's own traffic to a pod may come from an address that is not
    routed through the tunnel, which strict mode drops; the kernel uses the greater of the device's and `all`, and 2
    (loose) is the greatest.
    accept_ra: nobody who can send through the tunnel shall be able to configure this node. And with forwarding on, the
    kernel ignores router advertisements on all devices, unless the switch is at 2: a node that has its default route
    from one would lose it minutes later.
    """
    result = [Sysctl(f"net/ipv4/conf/{device}/rp_filter", "2", ours=True), Sysctl("net/ipv4/ip_forward", "1")]
    if ipv6:
        result += [
            Sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "0", ours=True),
            Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0", ours=True),
        ]
        if underlay:
            result.append(Sysctl(f"net/ipv6/conf/{underlay}/accept_ra", "2", only_from="1"))
        result.append(Sysctl("net/ipv6/conf/all/forwarding", "1"))
    return result


def read(name: str) -> str:
    """The value now. Raises OSError."""
    return (ROOT / name).read_text(encoding="ascii").strip()


class SysctlRecord:
    """Sets switches, and remembers in a file (which survives a crash, but not a reboot) what they were before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, sysctl: Sysctl) -> bool:
        """Whether it had to be written. Raises OSError."""
        before = read(sysctl.name)
        if sysctl.is_set(before):
            return False
        if not sysctl.ours:
            self._remember(sysctl.name, before, sysctl.value)
        (ROOT / sysctl.name).write_text(sysctl.value, encoding="ascii")
        return True

    def restore(self) -> list[Sysctl]:
        """Put back what nobody has changed since, and forget it. Returns what was put back. Raises OSError."""
        restored = []
        for name, (before, ours) in self._load().items():
            if read(name) == ours:
                (ROOT / name).write_text(before, encoding="ascii")
                restored.append(Sysctl(name, before))
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
