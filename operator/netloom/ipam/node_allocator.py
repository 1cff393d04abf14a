"""A node's allocator: gives single addresses of what the node holds to owners, and takes them back. Pure.

Whoever calls it says what time it is, in seconds of any clock that only goes on. What was done is in `unwritten` until
somebody has written it down (`netloom.ipam.address_records`); `restore` takes it in again.

- One address has one owner, and an owner that asks again is told what it has.
- A release frees what exactly that owner has, and nothing else.
- A freed address rests for `rest_seconds`, or as long as who asks for one says. Then the one that has been free longest
  is the next of its block. Blocks are used in the order in which the node holds them, so that the later ones become
  idle.
- What is used stays used when it is no longer provided: see `orphans`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from netloom.api.v1alpha1 import PoolAddress
from netloom.cidr import VERSIONS, WIDTH, Address, Cidr, CidrError, Version, format_address, parse_address
from netloom.ipam.address_block import AddressBlock, withheld
from netloom.ipam.address_records import Closed, Freed, Gave, Opened, Record, Rests

REST_SECONDS = 30.0
"""As long as others remember who had an address: flows, neighbours, DNS."""
FORGET_SECONDS = 90.0
"""After which one that met a shortage and did not ask again waits no longer. A kubelet asks again sooner."""

NO_POOL = ""
"""In modes in which a node holds blocks of no named pool, or single addresses."""


_OF_ONE_POOL: Mapping[Version, str] = {}


class Owner(NamedTuple):
    """Who has addresses. name: `namespace/pod`, or what else asks. container: "" for who is none of the CNI's."""

    name: str
    container: str = ""
    interface: str = "eth0"


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


class Shortage(NamedTuple):
    """There is none to give: of which families. ready_at: when the first that rests will have rested, if any does."""

    pool: str
    versions: frozenset[Version]
    ready_at: float | None = None


MOST = 2**53 - 1
"""More free addresses are not told: JSON of others has no larger integers."""


class Count(NamedTuple):
    """Of one pool and family: addresses used, owners that wait, addresses that can be given at once (at most MOST), and
    that rest."""

    used: int = 0
    waiting: int = 0
    free: int = 0
    resting: int = 0


Need = Mapping[Version, Count]


class OwnerHolding(NamedTuple):
    """What an owner has. uid: of the pod that it was given for, "" where that is not known."""

    pool: str
    addresses: tuple[Address, ...]
    uid: str = ""


class _Waiter(NamedTuple):
    pools: Mapping[Version, str]
    asked: float


class NodeAllocator:
    """See the module. `on_change`: the need of some pool may be another now."""

    def __init__(self, rest_seconds: float = REST_SECONDS) -> None:
        self.rest_seconds = rest_seconds
        self.on_change: Callable[[], None] = lambda: None
        self.unwritten: list[Record] = []
        self.overlapping: tuple[Cidr, ...] = ()
        """Blocks that were provided inside others, and are left out."""
        self._supply = Supply()
        self._held: dict[Owner, OwnerHolding] = {}
        self._users: dict[Address, Owner] = {}
        self._waiting: dict[Owner, _Waiter] = {}
        self._shut: set[Cidr] = set()
        self._blocks: dict[Cidr, AddressBlock] = {}
        self._of_pool: dict[tuple[str, Version], list[AddressBlock]] = {}
        self._lengths: tuple[tuple[Version, int], ...] = ()
        self._freed: dict[Address, float] = {}
        """Outside of all blocks: single addresses, and those of blocks that went."""

    # ------------------------------------------------------------------------------------------------ what there is

    def provide(self, supply: Supply) -> None:
        """From now on it gives of this. What is in use outside of it stays in use: `orphans`."""
        if supply == self._supply:
            return
        before, self._supply, self._blocks, self._of_pool = self._blocks, supply, {}, {}
        fresh: list[AddressBlock] = []
        wanted = {cidr: pool for pool, cidrs in supply.blocks.items() for cidr in cidrs}
        self.overlapping = tuple(_inside_others(wanted))
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
        for cidr in self._shut - self._blocks.keys():
            self.reopen(cidr)
        self.on_change()

    def _fill(self, fresh: AbstractSet[int]) -> None:
        """Enters into new blocks what is used and what rests there."""
        for address in self._users:
            block = self._block_of(address)
            if block is not None and id(block) in fresh:
                block.use(int.from_bytes(address, "big"))
        for address, at in sorted(self._freed.items(), key=lambda item: item[1]):
            block = self._block_of(address)
            if block is not None:
                del self._freed[address]
                block.free(int.from_bytes(address, "big"), at)

    def _block_of(self, address: Address) -> AddressBlock | None:
        version: Version = 4 if len(address) == 4 else 6
        number = int.from_bytes(address, "big")
        for each, length in self._lengths:
            if each == version:
                shift = WIDTH[version] - length
                block = self._blocks.get(Cidr(version, number >> shift << shift, length))
                if block is not None:
                    return block
        return None

    # -------------------------------------------------------------------------------------------- giving and taking

    def allocate(
        self,
        owner: Owner,
        pool: str,
        versions: frozenset[Version],
        now: float,
        elsewhere: Mapping[Version, str] = _OF_ONE_POOL,
        *,
        uid: str = "",
        rest: float | None = None,
    ) -> tuple[Address, ...] | Shortage:
        """An address of each family, or none at all; what the owner has already, if it has any. Who meets a shortage
        counts as waiting until it is served, released, or has not asked again for some time. elsewhere: pools of
        families that come of another one than `pool`. uid: of the pod. rest: seconds for which what was freed must have
        rested, if not `rest_seconds`."""
        rest = self.rest_seconds if rest is None else rest
        held = self._held.get(owner)
        if held is not None:
            return held.addresses
        found: list[Address] = []
        pools = {version: elsewhere.get(version, pool) for version in sorted(versions)}
        lacking = {version for version, name in pools.items() if name in self._supply.closed}
        for version in sorted(versions - lacking):
            address = self._next(owner, pools[version], version, now, rest)
            if address is None:
                lacking.add(version)
            else:
                found.append(address)
        if lacking or not versions:
            is_new = owner not in self._waiting
            self._waiting[owner] = _Waiter(pools, now)
            if is_new:
                self.on_change()
            short = pools[min(lacking)] if lacking else pool
            ready_at = self._ready_at(owner, {each: pools[each] for each in lacking}, now, rest)
            return Shortage(short, frozenset(lacking), ready_at)
        self._waiting.pop(owner, None)
        self._give(owner, OwnerHolding(pool, tuple(found), uid))
        self.on_change()
        return tuple(found)

    def pin(self, owner: Owner, uid: str) -> None:
        """What this owner has is for the pod with this uid."""
        held = self._held.get(owner)
        if held is not None and held.uid != uid:
            self._held[owner] = held._replace(uid=uid)
            self.unwritten.append(_gave(owner, self._held[owner]))

    def _next(self, owner: Owner, pool: str, version: Version, now: float, rest: float) -> Address | None:
        for block in self._of_pool.get((pool, version), ()):
            if block.cidr not in self._shut:
                number = block.longest_free(now, rest)
                if number is not None:
                    return block.packed(number)
        return self._next_single(owner, version, now, rest) if pool == NO_POOL and self._supply.singles else None

    def _next_single(self, owner: Owner, version: Version, now: float, rest: float) -> Address | None:
        """One that is meant for the owner before one that anybody may have, and of these the longest free."""
        best: tuple[bool, float] | None = None
        found: Address | None = None
        for address, entry in self._singles(version):
            if entry.owner not in ("", owner.name):
                continue
            at = self._freed.get(address, -float("inf"))
            rank = (not entry.owner, at)
            if at + rest <= now and (best is None or rank < best):
                best, found = rank, address
        return found

    def _singles(self, version: Version) -> Iterator[tuple[Address, PoolAddress]]:
        """Those that nobody uses."""
        size = WIDTH[version] // 8
        for address, entry in self._supply.singles.items():
            if len(address) == size and address not in self._users and address not in self._supply.taken:
                yield address, entry

    def _ready_at(self, owner: Owner, pools: Mapping[Version, str], now: float, rest: float) -> float | None:
        """When all of the families may have one for the owner that has rested; None where one of them has none that
        rests. What has rested already is not what it waits for."""
        found = []
        for version, pool in pools.items():
            blocks = (each for each in self._of_pool.get((pool, version), ()) if each.cidr not in self._shut)
            times = [block.next_ready(rest) for block in blocks]
            if pool == NO_POOL:
                times += [
                    self._freed[address] + rest
                    for address, entry in self._singles(version)
                    if address in self._freed and entry.owner in ("", owner.name)
                ]
            ready = min((each for each in times if each is not None and each > now), default=None)
            if ready is None:
                return None
            found.append(ready)
        return max(found, default=None) if self._supply.closed.isdisjoint(pools.values()) else None

    def _give(self, owner: Owner, holding: OwnerHolding) -> None:
        self._held[owner] = holding
        for address in holding.addresses:
            self._users[address] = owner
            self._freed.pop(address, None)
            block = self._block_of(address)
            if block is not None:
                block.use(int.from_bytes(address, "big"))
        self.unwritten.append(_gave(owner, holding))

    def release(self, owner: Owner, addresses: Collection[Address] | None = None, *, now: float) -> tuple[Address, ...]:
        """Frees what exactly this owner has (of these addresses, if any are named), and waits for it no longer."""
        waited = self._waiting.pop(owner, None) is not None
        held = self._held.get(owner)
        gone = tuple(each for each in held.addresses if addresses is None or each in addresses) if held else ()
        if held is not None and gone:
            rest = tuple(each for each in held.addresses if each not in gone)
            if rest:
                self._held[owner] = held._replace(addresses=rest)
            else:
                del self._held[owner]
            for address in gone:
                self._free(address, now)
            self.unwritten.append(Freed(*owner, tuple(map(format_address, gone)), now))
        if gone or waited:
            self.on_change()
        return gone

    def _free(self, address: Address, at: float) -> None:
        del self._users[address]
        block = self._block_of(address)
        if block is not None:
            block.free(int.from_bytes(address, "big"), at)
        else:
            self._freed.pop(address, None)
            self._freed[address] = at

    def adopt(self, owner: Owner, addresses: Iterable[Address], pool: str = NO_POOL) -> tuple[Address, ...]:
        """Addresses that this owner is seen to have: they are its own from now on, but for those that another one of
        another name has, which are returned."""
        mine: list[Address] = []
        others: list[Address] = []
        for address in addresses:
            user = self._users.get(address)
            if user is None:
                mine.append(address)
            elif user.name != owner.name:
                others.append(address)
        if mine:
            held = self._held.get(owner, OwnerHolding(pool, ()))
            self._give(owner, held._replace(addresses=tuple(dict.fromkeys((*held.addresses, *mine)))))
            self.on_change()
        return tuple(others)

    # ------------------------------------------------------------------------------------------------ what is needed

    def need(self, pool: str, now: float) -> Need:
        """By family. What waited and did not ask again is forgotten here."""
        for owner in [each for each, waiter in self._waiting.items() if waiter.asked + FORGET_SECONDS <= now]:
            del self._waiting[owner]
        return {version: self._count(pool, version, now) for version in VERSIONS}

    def _count(self, pool: str, version: Version, now: float) -> Count:
        used = free = resting = 0
        for block in self._of_pool.get((pool, version), ()):
            used += len(block.used)
            resting += block.resting(now, self.rest_seconds)
            if block.cidr not in self._shut:
                free += block.ready(now, self.rest_seconds)
        if pool == NO_POOL and self._supply.singles:
            used += sum(len(each) * 8 == WIDTH[version] and each in self._users for each in self._supply.singles)
            rested = [
                self._freed.get(each, -float("inf")) + self.rest_seconds <= now for each, _ in self._singles(version)
            ]
            free, resting = free + sum(rested), resting + len(rested) - sum(rested)
        waiting = sum(each.pools.get(version) == pool for each in self._waiting.values())
        return Count(used, waiting, 0 if pool in self._supply.closed else min(free, MOST), resting)

    @property
    def is_provided(self) -> bool:
        """Whether there is anything that may ever be given, used or not."""
        return any(self._supply.blocks.values()) or bool(self._supply.singles)

    def pools(self) -> tuple[str, ...]:
        """Of which there is something, used or not, or somebody waits."""
        known = [*self._supply.blocks, *(NO_POOL for _ in self._supply.singles)]
        return tuple(dict.fromkeys([*known, *self.waited_for()]))

    def waited_for(self) -> Iterator[str]:
        """The pools for which anybody waits, once for each that does."""
        for waiter in self._waiting.values():
            yield from waiter.pools.values()

    @property
    def has_waiters(self) -> bool:
        """Whether anybody met a shortage, and may ask again."""
        return bool(self._waiting)

    def idle(self, pool: str, now: float) -> list[Cidr]:
        """Its blocks of which no address is used or rests."""
        return [
            block.cidr
            for version in VERSIONS
            for block in self._of_pool.get((pool, version), ())
            if not block.used and not block.resting(now, self.rest_seconds)
        ]

    def close(self, cidr: Cidr, now: float) -> bool:
        """Nothing is given of this block from now on; False if one of its addresses is used or rests."""
        block = self._blocks.get(cidr)
        if block is not None and (block.used or block.resting(now, self.rest_seconds)):
            return False
        if block is not None and cidr not in self._shut:
            self._shut.add(cidr)
            self.unwritten.append(Closed(str(cidr)))
            self.on_change()
        return True

    def reopen(self, cidr: Cidr) -> None:
        """It is given of again."""
        if cidr in self._shut:
            self._shut.discard(cidr)
            self.unwritten.append(Opened(str(cidr)))
            self.on_change()

    @property
    def closed(self) -> frozenset[Cidr]:
        """The blocks of which nothing is given."""
        return frozenset(self._shut)

    def held(self) -> Iterator[tuple[Owner, OwnerHolding]]:
        """Who has what."""
        return iter(list(self._held.items()))

    def holding(self, owner: Owner) -> OwnerHolding | None:
        """What this one has."""
        return self._held.get(owner)

    def is_withheld(self, address: Address) -> bool:
        """Whether the node has it itself."""
        return address in self._supply.taken

    def user(self, address: Address) -> Owner | None:
        """Who has it."""
        return self._users.get(address)

    def block(self, address: Address) -> Cidr | None:
        """In which of the node's blocks it is."""
        block = self._block_of(address)
        return block.cidr if block is not None else None

    def orphans(self) -> dict[Address, Owner]:
        """What is used, and not provided any more."""
        singles = self._supply.singles
        return {
            address: owner
            for address, owner in self._users.items()
            if address not in singles and self._block_of(address) is None
        }

    # ------------------------------------------------------------------------------------------------- what is kept

    def records(self, now: float) -> list[Record]:
        """All that is to be known after a restart, in the fewest records. What is still `unwritten` is in them."""
        self._freed = {
            address: at
            for address, at in self._freed.items()
            if address in self._supply.singles or at + self.rest_seconds > now
        }
        found: list[Record] = [_gave(owner, holding) for owner, holding in self._held.items()]
        found += [_rests(block.remembered()) for block in self._blocks.values() if block.freed]
        found += [_rests(self._freed.items())] if self._freed else []
        return [*found, *(Closed(str(cidr)) for cidr in sorted(self._shut))]

    def restore(self, records: Iterable[Record], now: float) -> int:
        """Takes in what an earlier life wrote down, before anything is provided. How many records say what cannot be:
        they are passed over. What would have been freed later than now, by a clock that was another, was freed now."""
        odd = 0
        for record in records:
            try:
                odd += not self._restored(record, now)
            except CidrError:
                odd += 1
        self._freed = dict(sorted(self._freed.items(), key=lambda item: item[1]))
        self.unwritten.clear()
        return odd

    def _restored(self, record: Record, now: float) -> bool:
        if isinstance(record, Gave):
            owner = Owner(record.name, record.container, record.interface)
            addresses = tuple(map(parse_address, record.addresses))
            if any(self._users.get(each, owner) != owner for each in addresses):
                return False
            held = self._held.get(owner, OwnerHolding(record.pool, ()))
            both = tuple(dict.fromkeys((*held.addresses, *addresses)))
            self._give(owner, held._replace(addresses=both, uid=record.uid or held.uid))
        elif isinstance(record, Freed):
            owner = Owner(record.name, record.container, record.interface)
            addresses = tuple(map(parse_address, record.addresses))
            return len(self.release(owner, addresses, now=min(record.at, now))) == len(addresses)
        elif isinstance(record, Rests):
            freed = {parse_address(text): min(at, now) for text, at in record.freed}
            self._freed |= {address: at for address, at in freed.items() if address not in self._users}
            return freed.keys().isdisjoint(self._users)
        elif isinstance(record, Closed):
            self._shut.add(Cidr.parse(record.cidr))
        else:
            self._shut.discard(Cidr.parse(record.cidr))
        return True


def _gave(owner: Owner, holding: OwnerHolding) -> Gave:
    return Gave(*owner, holding.pool, tuple(map(format_address, holding.addresses)), holding.uid)


def _rests(freed: Iterable[tuple[Address, float]]) -> Rests:
    return Rests(tuple((format_address(address), at) for address, at in freed))


def _inside_others(cidrs: Iterable[Cidr]) -> Iterator[Cidr]:
    """Those that another one contains."""
    widest: Cidr | None = None
    for cidr in sorted(cidrs):
        if widest is not None and widest.contains(cidr):
            yield cidr
        else:
            widest = cidr
