"""Which peers a node probes: few of them, and none is left out by all. Pure.

All nodes' names are put on a ring by their hashes, the same one on every node. Each node probes those that come behind
it, by each way in use, so each is probed by those before it; and each minute one more, by chance. A peer that changed
is probed by about `PROBERS` nodes, whatever their number: all of them would be too many for one that joins 5,000.
"""

import heapq
import zlib
from collections.abc import Iterable, Sequence

PER_WAY = 2
"""Peers that a node probes by each way in use."""
CANDIDATES = 64
"""Peers next on the ring, of which the ways are looked at."""
PROBERS = 8


def behind(own: str, names: Iterable[str], count: int = CANDIDATES) -> list[str]:
    """The names next behind `own` on the ring."""
    here = _place(own)
    return heapq.nsmallest(
        count, (name for name in names if name != own), key=lambda name: (_place(name) - here) % _TURN
    )


def by_way(candidates: Sequence[str], ways: Sequence[str]) -> list[str]:
    """Of the candidates (their ways beside them), the first of each way."""
    counts: dict[str, int] = {}
    chosen = []
    for name, way in zip(candidates, ways, strict=True):
        counts[way] = counts.get(way, 0) + 1
        if counts[way] <= PER_WAY:
            chosen.append(name)
    return chosen


def concerns(own: str, peer: str, nodes: int) -> bool:
    """Whether this node is one of those that probe a peer when it has changed. nodes: of the cluster."""
    return zlib.crc32(f"{own} {peer}".encode()) % max(1, nodes) < PROBERS


_TURN = 1 << 32


def _place(name: str) -> int:
    return zlib.crc32(name.encode())
