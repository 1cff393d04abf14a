"""The fixed ranges that the address space is divided into, each with a ledger that answers for it.

Every block lies in exactly one *ledger range*: IPv4 /16, IPv6 /56. It follows from the address alone, never from a pool
or a mask size, so two blocks that overlap always meet in the same ledger, whatever was configured when each of them
was given out. This is what lets one object's compare-and-swap keep them apart.
"""

import functools
from collections.abc import Collection
from typing import Final

from netloom.cidr import WIDTH, Cidr, CidrError, Version, format_address

LEDGER_RANGE_LENGTH: Final[dict[Version, int]] = {4: 16, 6: 56}
"""Prefix length of a ledger range. A block shorter than this would lie in several ledgers and is refused."""
MOST_ENTRIES: Final = 8192
"""That are given in one ledger: with node names of 60 characters they are 0.9 of the 1 MiB that its schema takes."""


def ledger_range_of(cidr: Cidr) -> Cidr:
    """The ledger range that `cidr` lies in; CidrError where it is larger than one."""
    length = LEDGER_RANGE_LENGTH[cidr.version]
    if cidr.length < length:
        raise CidrError(f"{cidr} is too large for one node: an IPv{cidr.version} block has at least a /{length} mask")
    return cidr.supernet(length)


@functools.lru_cache(maxsize=4096)
def ledger_name(ledger_range: Cidr) -> str:
    """The name of the range's ledger: `v4-10.0.0.0-16`, `v6-fd00-0-0-0-56`. An object name may hold no colon."""
    if ledger_range.version == 4:
        return f"v4-{format_address(ledger_range.packed)}-{ledger_range.length}"
    groups = ((ledger_range.base >> shift) & 0xFFFF for shift in (112, 96, 80, 64))
    return f"v6-{'-'.join(f'{group:x}' for group in groups)}-{ledger_range.length}"


def ledger_range_from_name(name: str) -> Cidr:
    """The range whose ledger has this name; CidrError where there is none."""
    family, _, rest = name.partition("-")
    address, _, length = rest.rpartition("-")
    text = f"{address}/{length}" if family == "v4" else f"{address.replace('-', ':')}::/{length}"
    try:
        ledger_range = ledger_range_of(Cidr.parse(text))
    except CidrError:
        ledger_range = None
    if ledger_range is None or ledger_name(ledger_range) != name:
        raise CidrError(f"{name!r} is not the name of a ledger")
    return ledger_range


def cover(cidrs: Collection[Cidr], limit: int) -> list[Cidr]:
    """At most `limit` CIDRs of each family that hold all of `cidrs`: themselves where they are few enough."""
    found: list[Cidr] = []
    for version, width in WIDTH.items():
        mine = {cidr for cidr in cidrs if cidr.version == version}
        length = width
        while len(mine) > limit:
            length -= 1
            mine = {cidr.supernet(min(length, cidr.length)) for cidr in mine}
        found += sorted(mine)
    return found
