"""The kernel's tables that fill up: neighbours and tracked connections, what is in them and what will be. Pure, but for
the reading.

Neighbours: above gc_thresh3 the kernel takes no new one, and packets to it are dropped in silence; above gc_thresh2 it
forgets those that it has not heard of for five seconds. Permanent entries, as those of tunnels, do not count (since
Linux 5.0). The table is one for all network namespaces of a machine, and so are its thresholds: the pods' own
neighbours are in it as well.
Connections: with nf_conntrack_max reached, the first packet of a new one is dropped. They are counted by namespace.
"""

import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from netloom.kernel.mesh import reader
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import NeighbourMessage, NeighbourTableMessage, decode, encode
from netloom.kernel.netlink.sockets import CommandSocket, read_all
from netloom.kernel.sysctl import Sysctl, read

_FAMILIES: dict[int, str] = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_PER_POD = 2
"""Neighbours: the pod, on the node, and the node, in the pod."""
_LEAST = 1024
"""gc_thresh3 as kernels have it."""
_ENTRY_BYTES, _SHARE_OF_MEMORY = 384, 32
"""A tracked connection takes about so much; all of them may take one in so many parts of the machine's memory."""
_NEARLY = 0.9

_MAX, _COUNT = "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count"
_CONNTRACK_STATISTICS = Path("/proc/thread-self/net/stat/nf_conntrack")


class NeighbourTable(msgspec.Struct, frozen=True):
    """Of one family. entries: of all namespaces; where that is many, those of this one that are not permanent, as the
    kernel tells no more of the others, which may be nodes with tunnels on the same machine. expected: when all peers
    that are neighbours and all pods are in it. refused: how often it was full, since the machine started."""

    family: str
    thresholds: tuple[int, int, int]
    entries: int = 0
    expected: int = 0
    refused: int = 0

    @property
    def needed(self) -> int:
        """Entries that it has to hold."""
        return max(self.entries, self.expected)

    def raised(self) -> list[Sysctl]:
        """Thresholds with room for four times as many, in the kernel's own proportion; twice what they are, where that
        is there already. The highest first."""
        third = max(_LEAST, 1 << (4 * max(1, self.needed) - 1).bit_length())
        return self._above_now(third) or self._above_now(2 * self.thresholds[2])

    def _above_now(self, third: int) -> list[Sysctl]:
        wanted = zip((3, 2, 1), self.thresholds[::-1], (third, third // 2, third // 8), strict=True)
        name = f"net/{self.family}/neigh/default/gc_thresh"
        return [Sysctl(f"{name}{number}", str(want)) for number, now, want in wanted if want > now]


class Conntrack(msgspec.Struct, frozen=True):
    """Tracked connections of this namespace. dropped: packets, since it was made."""

    count: int
    limit: int
    dropped: int = 0

    @property
    def is_nearly_full(self) -> bool:
        """Whether there is hardly any room left."""
        return self.count >= self.limit * _NEARLY

    def raised(self, memory: int) -> list[Sysctl]:
        """Twice as many, as far as the machine's memory (bytes) bears it."""
        wanted = min(2 * self.limit, memory // _SHARE_OF_MEMORY // _ENTRY_BYTES)
        return [Sysctl(_MAX, str(wanted))] if wanted > self.limit else []


class Tables(msgspec.Struct, frozen=True):
    """All of them; conntrack is None where the kernel tracks nothing."""

    neighbours: tuple[NeighbourTable, ...] = ()
    conntrack: Conntrack | None = None


def read_tables(commands: CommandSocket, pods: Mapping[str, int], *, native: bool) -> Tables:
    """As they are now. pods: of this node, by family ("ipv4"). native: peers may be neighbours. Raises OSError."""
    found = read_all(commands, encode(NeighbourTableMessage, wire.RTM_GETNEIGHTBL, 0, {}), _read_table)
    peers = _native_peers(commands) if native else {}
    neighbours = []
    for table in found:
        expected = peers.get(table.family, 0) + _PER_POD * pods.get(table.family, 0)
        entries = table.entries
        if entries >= table.thresholds[1]:
            entries = min(entries, _passing(commands, table.family))
        neighbours.append(msgspec.structs.replace(table, entries=entries, expected=expected))
    return Tables(tuple(neighbours), _read_conntrack())


def memory_of_machine() -> int:
    """Bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    return 0


def _read_table(buffer: bytes, start: int, _end: int) -> NeighbourTable | None:
    """An RTM_NEWNEIGHTBL of IPv4 or IPv6; None if it is of one device, or another protocol's."""
    seen = decode(NeighbourTableMessage, buffer, start)
    family, config = _FAMILIES.get(seen["family"]), seen.get_attr("NDTA_CONFIG")
    if family is None or config is None:
        return None
    first, second, third = (seen.get_attr(name, 0) for name in ("NDTA_THRESH1", "NDTA_THRESH2", "NDTA_THRESH3"))
    statistics = seen.get_attr("NDTA_STATS")
    refused = statistics["table_fulls"] if statistics else 0
    return NeighbourTable(family, (first, second, third), config["entries"], refused=refused)


def _native_peers(commands: CommandSocket) -> dict[str, int]:
    """How many peers are neighbours: our nexthops that lead through no tunnel, by family."""
    counts = dict.fromkeys(_FAMILIES.values(), 0)
    for seen in reader.nexthops(commands):
        if seen.owned and not seen.value.remote and seen.value.gateway:
            counts["ipv4" if len(seen.value.gateway) == 4 else "ipv6"] += 1
    return counts


def _passing(commands: CommandSocket, family: str) -> int:
    """Those of this namespace that are not permanent."""
    number = next(number for number, name in _FAMILIES.items() if name == family)
    request = encode(NeighbourMessage, wire.RTM_GETNEIGH, 0, {"family": number})
    states = read_all(commands, request, lambda buffer, start, _end: wire.NEIGHBOUR.unpack_from(buffer, start)[2])
    return sum(not state & wire.NUD_PERMANENT for state in states)


def _read_conntrack() -> Conntrack | None:
    try:
        header, *processors = _CONNTRACK_STATISTICS.read_text(encoding="ascii").splitlines()
        at = header.split().index("drop")
        dropped = sum(int(line.split()[at], 16) for line in processors)
        return Conntrack(int(read(_COUNT)), int(read(_MAX)), dropped)
    except (OSError, ValueError):
        return None  # nothing is tracked, or not shown
