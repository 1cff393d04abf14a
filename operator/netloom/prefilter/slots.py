"""Which prefilter counts in which slot: a prefilter keeps its slot as long as the node has it.

The kernel counts by slot. So a prefilter that comes or goes must not move another, and a slot that one left is free for
the next, of which the counts begin at zero (whoever owns the counters sees that the name is another).
"""

from collections.abc import Iterable, Sequence
from typing import Final

MOST: Final = 256
"""Prefilters that a node can have: the kernel's counters have so many places on every CPU."""


def assigned(before: Sequence[str], wanted: Iterable[str]) -> tuple[str, ...]:
    """Names by slot, "" where one is free, without free ones at the end. More than MOST are left without one, the last
    by name."""
    names = sorted(wanted)
    kept = [name if name in names else "" for name in before[:MOST]]
    new = [name for name in names if name not in kept]
    for slot, name in enumerate(kept):
        if not name and new:
            kept[slot] = new.pop(0)
    kept += new[: MOST - len(kept)]
    while kept and not kept[-1]:
        kept.pop()
    return tuple(kept)
