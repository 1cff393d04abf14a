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
from typing import NamedTuple

from netloom.cidr import VERSIONS, Address, Cidr, CidrError, Version, format_address, parse_address
from netloom.ipam.address_records import Closed, Freed, Gave, Opened, Record, Rests
from netloom.ipam.address_stock import NO_POOL, AddressStock, Supply

REST_SECONDS = 30.0
"""As long as others remember who had an address: flows, neighbours, DNS."""
FORGET_SECONDS = 90.0
"""After which one that met a shortage and did not ask again waits no longer. A kubelet asks again sooner."""

_OF_ONE_POOL: Mapping[Version, str] = {}


class Owner(NamedTuple):
    """Who has addresses. name: `namespace/pod`, or what else asks. container: "" for who is none of the CNI's."""

    name: str
    container: str = ""
    interface: str = "eth0"


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
        self.stock = AddressStock()
        self._held: dict[Owner, OwnerHolding] = {}
        self._users: dict[Address, Owner] = {}
        self._waiting: dict[Owner, _Waiter] = {}
        """In the order in which they asked last."""

    def provide(self, supply: Supply) -> None:
        """From now on it gives of this. What is in use outside of it stays in use: `orphans`."""
        if supply == self.stock.supply:
            return
        for cidr in self.stock.provide(supply):
            self.reopen(cidr)
        self.on_change()

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
        lacking = {version for version, name in pools.items() if name in self.stock.supply.closed}
        for version in sorted(versions - lacking):
            address = self.stock.next(owner.name, pools[version], version, now, rest)
            if address is None:
                lacking.add(version)
            else:
                found.append(address)
        if lacking or not versions:
            self._forget_waiters(now)
            is_new = self._waiting.pop(owner, None) is None
            self._waiting[owner] = _Waiter(pools, now)  # last in order
            if is_new:
                self.on_change()
            short = pools[min(lacking)] if lacking else pool
            ready_at = self.stock.ready_at(owner.name, {each: pools[each] for each in lacking}, now, rest)
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

    def _give(self, owner: Owner, holding: OwnerHolding) -> None:
        self._held[owner] = holding
        for address in holding.addresses:
            self._users[address] = owner
            self.stock.use(address)
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
                del self._users[address]
                self.stock.free(address, now)
            self.unwritten.append(Freed(*owner, tuple(map(format_address, gone)), now))
        if gone or waited:
            self.on_change()
        return gone

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
        self._forget_waiters(now)
        found = {}
        for version in VERSIONS:
            used, free, resting = self.stock.count(pool, version, now, self.rest_seconds)
            waiting = sum(each.pools.get(version) == pool for each in self._waiting.values())
            found[version] = Count(used, waiting, min(free, MOST), resting)
        return found

    def _forget_waiters(self, now: float) -> None:
        """Those that did not ask again: also where nobody ever asks what is needed."""
        while self._waiting:
            owner, waiter = next(iter(self._waiting.items()))
            if waiter.asked + FORGET_SECONDS > now:
                return
            del self._waiting[owner]

    def pools(self) -> tuple[str, ...]:
        """Of which there is something, used or not, or somebody waits."""
        known = [*self.stock.supply.blocks, *(NO_POOL for _ in self.stock.supply.singles)]
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
        return self.stock.idle(pool, now, self.rest_seconds)

    def close(self, cidr: Cidr, now: float) -> bool:
        """Nothing is given of this block from now on; False if one of its addresses is used or rests."""
        if self.stock.is_busy(cidr, now, self.rest_seconds):
            return False
        if self.stock.holds(cidr) and cidr not in self.stock.closed_blocks:
            self.stock.closed_blocks.add(cidr)
            self.unwritten.append(Closed(str(cidr)))
            self.on_change()
        return True

    def reopen(self, cidr: Cidr) -> None:
        """It is given of again."""
        if cidr in self.stock.closed_blocks:
            self.stock.closed_blocks.discard(cidr)
            self.unwritten.append(Opened(str(cidr)))
            self.on_change()

    @property
    def closed(self) -> frozenset[Cidr]:
        """The blocks of which nothing is given."""
        return frozenset(self.stock.closed_blocks)

    def held(self) -> Iterator[tuple[Owner, OwnerHolding]]:
        """Who has what."""
        return iter(list(self._held.items()))

    def holding(self, owner: Owner) -> OwnerHolding | None:
        """What this one has."""
        return self._held.get(owner)

    def user(self, address: Address) -> Owner | None:
        """Who has it."""
        return self._users.get(address)

    def block(self, address: Address) -> Cidr | None:
        """In which of the node's blocks it is."""
        block = self.stock.block_of(address)
        return block.cidr if block is not None else None

    def orphans(self) -> dict[Address, Owner]:
        """What is used, and not provided any more."""
        return {address: owner for address, owner in self._users.items() if not self.stock.has(address)}

    # ------------------------------------------------------------------------------------------------- what is kept

    def records(self, now: float) -> list[Record]:
        """All that is to be known after a restart, in the fewest records. What is still `unwritten` is in them."""
        found: list[Record] = [_gave(owner, holding) for owner, holding in self._held.items()]
        found += map(_rests, self.stock.remembered(now, self.rest_seconds))
        return [*found, *(Closed(str(cidr)) for cidr in sorted(self.stock.closed_blocks))]

    def restore(self, records: Iterable[Record], now: float) -> int:
        """Takes in what an earlier life wrote down, before anything is provided. How many records say what cannot be:
        they are passed over. What would have been freed later than now, by a clock that was another, was freed now."""
        odd = 0
        for record in records:
            try:
                odd += not self._restored(record, now)
            except CidrError:
                odd += 1
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
            return self.stock.remember({parse_address(text): min(at, now) for text, at in record.freed})
        elif isinstance(record, Closed):
            self.stock.closed_blocks.add(Cidr.parse(record.cidr))
        else:
            self.stock.closed_blocks.discard(Cidr.parse(record.cidr))
        return True


def _gave(owner: Owner, holding: OwnerHolding) -> Gave:
    return Gave(*owner, holding.pool, tuple(map(format_address, holding.addresses)), holding.uid)


def _rests(freed: Iterable[tuple[Address, float]]) -> Rests:
    return Rests(tuple((format_address(address), at) for address, at in freed))
