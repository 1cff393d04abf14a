"""What nodes hold and ask for of each NetloomIPPool, counted as it changes: one node's change costs what it says. No
I/O."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from netloom.api.v1alpha1 import NeededAddresses, NodeIPAM
from netloom.cidr import VERSIONS, Cidr, Version
from netloom.ipam.settings import Family, PoolSettings, Settings
from netloom.ipam.wants import MOST_BLOCKS, capacity, held_of, needed_of, requests


class FamilyUsage(NamedTuple):
    """Of one family of a pool. addresses: in the blocks; orphaned: blocks outside the pool's CIDRs."""

    blocks: int = 0
    orphaned: int = 0
    addresses: int = 0
    needed: int = 0

    @property
    def short(self) -> bool:
        """Whether more is asked for than there is."""
        return self.needed > self.addresses


Key = tuple[str, Version]
_NOTHING = FamilyUsage()


class PoolCounts:
    """By pool and family."""

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings`: of the pools."""
        self._settings = settings or Settings("")
        self._of: dict[str, dict[Key, FamilyUsage]] = {}
        self._total: dict[Key, FamilyUsage] = {}
        self.holders: dict[str, set[str]] = {}
        """Nodes that hold blocks of a pool, by its name."""
        self._short: dict[Key, dict[str, None]] = {}

    def note(self, node: str, ipam: NodeIPAM | None) -> set[str]:
        """What the node says now, None: it is gone. The pools of which that changes anything."""
        before = self._of.pop(node, {})
        after = self._shares(ipam) if ipam is not None else {}
        if after:
            self._of[node] = after
        if after == before:
            return set()
        for key, share in before.items():
            self._add(key, share, -1)
        for key, share in after.items():
            self._add(key, share, 1)
        for pool, version in before:
            self.holders.get(pool, set()).discard(node)
            if (pool, version) not in after or not after[pool, version].short:
                self._short.get((pool, version), {}).pop(node, None)
        for key, share in after.items():
            if share.blocks:
                self.holders.setdefault(key[0], set()).add(node)
            if share.short:
                self._short.setdefault(key, {}).setdefault(node)
        return {key[0] for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    def short(self, pool: str) -> set[str]:
        """Nodes that need more of a pool than they hold."""
        return {node for version in VERSIONS for node in self._short.get((pool, version), ())}

    def takers(self, pool: str, version: Version, most: int) -> list[str]:
        """Of these, those whose turn it is to look for a block: never the same ones while others wait."""
        waiting = self._short.get((pool, version), {})
        found = list(itertools.islice(waiting, min(most, len(waiting))))
        for node in found:
            del waiting[node]
        waiting.update(dict.fromkeys(found))
        return found

    def of(self, pool: str, version: Version) -> FamilyUsage:
        """Of all nodes."""
        return self._total.get((pool, version), _NOTHING)

    def _add(self, key: Key, share: FamilyUsage, times: int) -> None:
        total = self._total.get(key, _NOTHING)
        self._total[key] = FamilyUsage(
            total.blocks + times * share.blocks,
            total.orphaned + times * share.orphaned,
            total.addresses + times * share.addresses,
            total.needed + times * share.needed,
        )

    def _shares(self, ipam: NodeIPAM) -> dict[Key, FamilyUsage]:
        found: dict[Key, FamilyUsage] = {}
        needed = {each.pool: each.needed for each in requests(ipam, self._settings)}
        for name in needed.keys() | {each.pool for each in ipam.pools.allocated}:
            pool, held = self._settings.pool(name) or PoolSettings(name), held_of(ipam, name)
            families = {family.version: family for family in pool.families}
            for version in families.keys() | {cidr.version for cidr in held}:
                family = families.get(version) or Family(version, (), 0)
                share = _share(pool, family, needed.get(name), held)
                if share != _NOTHING:
                    found[name, version] = share
        return found


def _share(pool: PoolSettings, family: Family, needed: NeededAddresses | None, held: Sequence[Cidr]) -> FamilyUsage:
    blocks, addresses = capacity(held, pool, family.version)
    mine = [cidr for cidr in held if cidr.version == family.version]
    orphaned = sum(1 for cidr in mine if not any(each.contains(cidr) for each in family.cidrs))
    asked = needed_of(needed, family) if needed is not None and family.cidrs else 0
    if blocks >= MOST_BLOCKS:
        asked = min(asked, addresses)  # it is told that, and given no more
    return FamilyUsage(blocks, orphaned, addresses, asked)
