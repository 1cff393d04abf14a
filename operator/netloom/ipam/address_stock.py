"""What a node may give of, and how each address of it is: used, free, or resting since it was freed. Pure.

Addresses are those of blocks, which are of pools, or single ones (mode crd). Who has them is not known here
(`netloom.ipam.node_allocator`), only that they are used.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from netloom.api.v1alpha1 import PoolAddress
from netloom.cidr import VERSIONS, WIDTH, Address, Cidr, Version, version_of
from netloom.cidr.interval_set import outermost
from netloom.ipam.address_block import AddressBlock, withheld

NO_POOL = ""
"""In modes in which a node holds blocks of no named pool, or single addresses."""


@dataclass(frozen=True, slots=True)
class Supply:
    """All that a node may give of.

    blocks: by pool, in the order in which they are used. singles: mode crd. closed: pools of which nothing new is
    given. whole: pools of whose blocks pods may have the first and the last address, too. taken: addresses that the
    node has itself.
    """

    blocks: Mapping[str, tuple[Cidr, ...]] = field(default_factory=dict)
    singles: Mapping[Address, PoolAddress] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    taken: frozenset[Address] = frozenset()


class Counted(NamedTuple):
    """Of one pool and family: addresses used, that can be given at once, and that rest."""

    used: int
    free: int
    resting: int


class AddressStock:
    """closed_blocks: of which nothing is given. overlapping: that were provided inside others, and are left out."""

    def __init__(self) -> None:
        self.supply = Supply()
        self.closed_blocks: set[Cidr] = set()
        self.overlapping: tuple[Cidr, ...] = ()
        self._used: set[Address] = set()
        self._blocks: dict[Cidr, AddressBlock] = {}
        self._of_pool: dict[tuple[str, Version], list[AddressBlock]] = {}
        self._lengths: tuple[tuple[Version, int], ...] = ()
        self._freed: dict[Address, float] = {}
        """Outside of all blocks: single addresses, and those of blocks that went."""

    # ------------------------------------------------------------------------------------------------ what there is

    def provide(self, supply: Supply) -> AbstractSet[Cidr]:
        """From now on this is what there is. What is used outside of it stays used. Returns closed blocks that went."""
        before, self.supply, self._blocks, self._of_pool = self._blocks, supply, {}, {}
        fresh: list[AddressBlock] = []
        wanted = {cidr: pool for pool, cidrs in supply.blocks.items() for cidr in cidrs}
        outer = set(outermost(sorted(wanted)))
        self.overlapping = tuple(cidr for cidr in sorted(wanted) if cidr not in outer)
        for pool, cidrs in supply.blocks.items():
            for cidr in dict.fromkeys(cidrs):
                if wanted[cidr] != pool or cidr in self.overlapping:
                    continue
                never = withheld(cidr, gateway=pool == NO_POOL, whole=pool in supply.whole, taken=supply.taken)
                block = before.get(cidr)
                if block is None or block.pool != pool or block.withheld != never:
                    block = AddressBlock(cidr, pool, never)
                    fresh.append(block)
                self._blocks[cidr] = block
                self._of_pool.setdefault((pool, cidr.version), []).append(block)
        self._lengths = tuple(sorted({(cidr.version, cidr.length) for cidr in self._blocks}))
        kept = set(map(id, self._blocks.values()))
        for block in before.values():
            if id(block) not in kept:
                self._freed |= dict(block.remembered())
        if fresh:
            self._fill(set(map(id, fresh)))
        return self.closed_blocks - self._blocks.keys()

    def _fill(self, fresh: AbstractSet[int]) -> None:
        """Enters into new blocks what is used and what rests there."""
        for address in self._used:
            block = self.block_of(address)
            if block is not None and id(block) in fresh:
                block.use(int.from_bytes(address, "big"))
        for address, at in sorted(self._freed.items(), key=lambda item: item[1]):
            block = self.block_of(address)
            if block is not None:
                del self._freed[address]
                block.free(int.from_bytes(address, "big"), at)

    def block_of(self, address: Address) -> AddressBlock | None:
        """The block that it is of."""
        version = version_of(address)
        number = int.from_bytes(address, "big")
        for each, length in self._lengths:
            if each == version:
                shift = WIDTH[version] - length
                block = self._blocks.get(Cidr(version, number >> shift << shift, length))
                if block is not None:
                    return block
        return None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that may ever be given, used or not."""
        return not any(self.supply.blocks.values()) and not self.supply.singles

    def has(self, address: Address) -> bool:
        """Whether it is provided."""
        return address in self.supply.singles or self.block_of(address) is not None

    # ------------------------------------------------------------------------------------------------ how each is

    def use(self, address: Address) -> None:
        """From now on it is used."""
        self._used.add(address)
        self._freed.pop(address, None)
        block = self.block_of(address)
        if block is not None:
            block.use(int.from_bytes(address, "big"))

    def free(self, address: Address, at: float) -> None:
        """It is not used any more, and rests."""
        self._used.remove(address)
        block = self.block_of(address)
        if block is not None:
            block.free(int.from_bytes(address, "big"), at)
        else:
            self._freed.pop(address, None)
            self._freed[address] = at

    def remember(self, freed: Mapping[Address, float]) -> bool:
        """What rests, and since when, before anything is provided. Whether none of it is used: that is passed over."""
        self._freed |= {address: at for address, at in freed.items() if address not in self._used}
        return freed.keys().isdisjoint(self._used)

    def remembered(self, now: float, rest: float) -> Iterator[Iterable[tuple[Address, float]]]:
        """What was freed, and when: of each block, and outside of them what still matters."""
        self._freed = {
            address: at for address, at in self._freed.items() if address in self.supply.singles or at + rest > now
        }
        yield from (block.remembered() for block in self._blocks.values() if block.freed)
        if self._freed:
            yield self._freed.items()

    def is_busy(self, cidr: Cidr, now: float, rest: float) -> bool:
        """Whether an address of this block is used or rests."""
        block = self._blocks.get(cidr)
        return block is not None and _is_busy(block, now, rest)

    def idle(self, pool: str, now: float, rest: float) -> list[Cidr]:
        """The pool's blocks of which no address is used or rests."""
        blocks = (block for version in VERSIONS for block in self._of_pool.get((pool, version), ()))
        return [block.cidr for block in blocks if not _is_busy(block, now, rest)]

    def holds(self, cidr: Cidr) -> bool:
        """Whether this block is provided."""
        return cidr in self._blocks

    def count(self, pool: str, version: Version, now: float, rest: float) -> Counted:
        """What there is of a pool."""
        used = free = resting = 0
        for block in self._of_pool.get((pool, version), ()):
            used += len(block.used)
            resting += block.resting(now, rest)
            if block.cidr not in self.closed_blocks:
                free += block.ready(now, rest)
        if pool == NO_POOL and self.supply.singles:
            used += sum(len(each) * 8 == WIDTH[version] and each in self._used for each in self.supply.singles)
            rested = [self._freed.get(each, -float("inf")) + rest <= now for each, _ in self._singles(version)]
            free, resting = free + sum(rested), resting + len(rested) - sum(rested)
        return Counted(used, 0 if pool in self.supply.closed else free, resting)

    # ------------------------------------------------------------------------------------------------ which is next

    def next(self, owner: str, pool: str, version: Version, now: float, rest: float) -> Address | None:
        """The one to be given to an owner of this name; None where all are used or rest."""
        for block in self._of_pool.get((pool, version), ()):
            if block.cidr not in self.closed_blocks:
                number = block.longest_free(now, rest)
                if number is not None:
                    return block.packed(number)
        return self._next_single(owner, version, now, rest) if pool == NO_POOL and self.supply.singles else None

    def _next_single(self, owner: str, version: Version, now: float, rest: float) -> Address | None:
        """One that is meant for the owner before one that anybody may have, and of these the longest free."""
        best: tuple[bool, float] | None = None
        found: Address | None = None
        for address, entry in self._singles(version):
            if entry.owner not in ("", owner):
                continue
            at = self._freed.get(address, -float("inf"))
            rank = (not entry.owner, at)
            if at + rest <= now and (best is None or rank < best):
                best, found = rank, address
        return found

    def _singles(self, version: Version) -> Iterator[tuple[Address, PoolAddress]]:
        """Those that nobody uses."""
        size = WIDTH[version] // 8
        for address, entry in self.supply.singles.items():
            if len(address) == size and address not in self._used and address not in self.supply.taken:
                yield address, entry

    def ready_at(self, owner: str, pools: Mapping[Version, str], now: float, rest: float) -> float | None:
        """When all of the families may have one for this owner that has rested; None where one of them has none that
        rests. What has rested already is not what it waits for."""
        found = []
        for version, pool in pools.items():
            blocks = (each for each in self._of_pool.get((pool, version), ()) if each.cidr not in self.closed_blocks)
            times = [block.next_ready(rest) for block in blocks]
            if pool == NO_POOL:
                times += [
                    self._freed[address] + rest
                    for address, entry in self._singles(version)
                    if address in self._freed and entry.owner in ("", owner)
                ]
            ready = min((each for each in times if each is not None and each > now), default=None)
            if ready is None:
                return None
            found.append(ready)
        return max(found, default=None) if self.supply.closed.isdisjoint(pools.values()) else None


def _is_busy(block: AddressBlock, now: float, rest: float) -> bool:
    return bool(block.used) or block.resting(now, rest) > 0
