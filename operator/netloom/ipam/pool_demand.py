"""What a node asks of its pools, and which of its blocks it gives back, in IPAM mode multi-pool. Pure.

Everything follows from present use: what is used, waits and rests of each pool, and what the pool's object says is to
be kept ready. Nothing is counted up and down by events, so none can be missed. What keeps a node that is busy from
writing all the time, as every write of a node is sent to every agent:

- what is asked is rounded up to whole blocks, which is what the operator gives anyway;
- more is asked at once if somebody waits for it, else after `DEBOUNCE` seconds;
- less is asked, and a block given back, when it has been so for `idle_seconds` without a break.

A block goes if none of its addresses is used or rests, and the node has what is to be kept ready without it. The blocks
in which the node has addresses of its own stay (`netloom.api.holdings.home_blocks`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from netloom.api.v1alpha1 import NeededAddresses, PoolRequest
from netloom.cidr import VERSIONS, Cidr, Version
from netloom.ipam.node_allocator import MOST, Count, Need

DEBOUNCE = 1.0
"""Seconds for which a need must stand before it is written, if nobody waits for it."""
IDLE_SECONDS = 60.0
"""For how long a block must have been of no use. Pods come back sooner than that: a rollout, a job each minute."""
MOST_ADDRESSES, MOST_BLOCKS = 4096, 128
"""Of one pool and family that a node asks for, whatever happens on it: many times what kubelets run of pods, and as
many blocks as its object has room for."""
MOST_POOLS = 256
"""In one object: of the CRD."""
REST_LOOKS = 4
"""How often within `idle_seconds` it is looked whether what rests has rested: nothing tells."""
UNIT = 1024
"""Addresses to which is rounded where a block has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool, as this node sees it.

    per_block: addresses that pods can have of a block, by family; those that the pool has not are missing. ready: how
    many of each family are to be kept ready while it is used. gives: whether anything new is given of it. need: as of
    the allocator. blocks: those the node holds and gives of, in their order; idle: of these, those that nobody uses.
    """

    name: str
    per_block: Mapping[Version, int] = field(default_factory=dict)
    ready: int = 0
    gives: bool = True
    is_default: bool = False
    need: Need = field(default_factory=dict)
    blocks: tuple[Cidr, ...] = ()
    idle: Collection[Cidr] = ()

    def count(self, version: Version) -> Count:
        """Of a family."""
        return self.need.get(version, _NONE)

    @property
    def is_used(self) -> bool:
        """By anybody, now."""
        return any(each.used or each.resting or (each.waiting and self.gives) for each in self.need.values())


_NONE = Count()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandStep:
    """What is to be written now. requested: the whole field. surplus: blocks to give back, by the same write. is_due:
    there is something to write. again: seconds until there may be more to do. capped: what it needs of pools from which
    it asks for less, as there is a limit."""

    requested: tuple[PoolRequest, ...]
    surplus: tuple[Cidr, ...] = ()
    is_due: bool = False
    again: float | None = None
    capped: Mapping[tuple[str, Version], int] = field(default_factory=dict)


class Demand:
    """Remembers since when things are as they are, and nothing else: a restart costs the waits."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self.idle_seconds = idle_seconds
        self._since: dict[object, float] = {}
        self._seen: set[object] = set()

    def look(
        self, pools: Iterable[PoolView], said: Iterable[PoolRequest], kept: Collection[Cidr], now: float
    ) -> DemandStep:
        """said: what the object holds now. kept: blocks that stay, used or not. now: of any clock that only goes on."""
        self._seen = set()
        waits: list[float] = []
        before = {each.pool: each.needed for each in said}
        requested: dict[str, PoolRequest] = {}
        surplus: list[Cidr] = []
        capped: dict[tuple[str, Version], int] = {}
        hurry = False
        for view in sorted(pools, key=lambda each: each.name):
            needed = before.pop(view.name, NeededAddresses())
            ready = view.ready if self._keeps_ready(view, now, waits) else 0
            goes = self._surplus(view, kept, now, waits)
            amounts: dict[Version, int] = {}
            for version in VERSIONS:
                exact = _exact(view, version, ready)
                amounts[version] = self._amount(view, version, exact, needed, bool(goes), now, waits)
                if amounts[version] < exact:
                    capped[view.name, version] = exact
                hurry = hurry or (amounts[version] > _of(needed, version) and view.count(version).waiting > 0)
                waits += [self.idle_seconds / REST_LOOKS] if view.count(version).resting else []
            surplus += goes
            if any(amounts.values()):
                wanted = NeededAddresses(ipv4_addrs=amounts[4], ipv6_addrs=amounts[6])
                requested[view.name] = PoolRequest(pool=view.name, needed=wanted)
        asked = tuple(requested[name] for name in sorted(requested)[:MOST_POOLS])
        differs = {each.pool: each.needed for each in asked} != {each.pool: each.needed for each in said}
        is_due = bool(surplus) or hurry or (differs and self._stands("write", DEBOUNCE, now, waits))
        self._since = {key: since for key, since in self._since.items() if key in self._seen}
        return DemandStep(
            requested=asked,
            surplus=tuple(surplus),
            is_due=is_due and (differs or bool(surplus)),
            again=min(waits, default=None),
            capped=capped,
        )

    def _stands(self, key: object, seconds: float, now: float, waits: list[float]) -> bool:
        """Whether this has been so in every look for so many seconds."""
        self._seen.add(key)
        left = self._since.setdefault(key, now) + seconds - now
        if left > 0:
            waits.append(left)
        return left <= 0

    def _keeps_ready(self, view: PoolView, now: float, waits: list[float]) -> bool:
        """Whether addresses are kept ready: not for long after the last user, and none of a pool never used here."""
        if not view.gives:
            return False
        if view.is_default or view.is_used:
            return True
        return bool(view.blocks) and not self._stands(("unused", view.name), self.idle_seconds, now, waits)

    def _surplus(self, view: PoolView, kept: Collection[Cidr], now: float, waits: list[float]) -> list[Cidr]:
        found: list[Cidr] = []
        ready = view.ready if view.is_default or view.is_used else 0
        for version in VERSIONS:
            count, size = view.count(version), view.per_block.get(version, 0)
            counts = view.gives and size > 0
            if counts and count.waiting:
                continue
            blocks = [each for each in view.blocks if each.version == version]
            room = size * len(blocks) - count.used - count.resting - _lost(view, version)
            for block in reversed(blocks):  # the allocator gives of the first ones first
                if block not in view.idle or block in kept:
                    continue
                room -= size
                if counts and room < ready:
                    break
                if self._stands(("idle", block), self.idle_seconds, now, waits):
                    found.append(block)
        return found

    def _amount(
        self,
        view: PoolView,
        version: Version,
        exact: int,
        needed: NeededAddresses,
        shrinks: bool,
        now: float,
        waits: list[float],
    ) -> int:
        """What to ask for, in whole blocks."""
        if version not in view.per_block:
            return 0
        unit, before = min(view.per_block[version], UNIT), _of(needed, version)
        most = min(MOST_BLOCKS * unit, MOST_ADDRESSES)
        wanted = min(-(-exact // unit) * unit, most)
        if wanted >= before or shrinks or before > most:
            return wanted
        return wanted if self._stands(("less", view.name, version), self.idle_seconds, now, waits) else before


def _exact(view: PoolView, version: Version, ready: int) -> int:
    """Addresses that the node needs. What of its blocks it cannot give (addresses of its own, ranges that are kept
    free) it needs on top, as the operator counts whole blocks."""
    if version not in view.per_block:
        return 0
    count = view.count(version)
    needed = count.used + count.resting
    return needed + count.waiting + ready + _lost(view, version) if view.gives else needed


def _lost(view: PoolView, version: Version) -> int:
    """Addresses of its blocks that the node cannot give, though they are counted. Of large blocks not all that is free
    is told, and it does not matter."""
    count, size = view.count(version), view.per_block.get(version, 0)
    if not view.gives or count.free >= MOST:
        return 0
    whole = size * sum(each.version == version for each in view.blocks)
    return max(0, whole - count.used - count.resting - count.free)


def _of(needed: NeededAddresses, version: Version) -> int:
    return needed.ipv4_addrs if version == 4 else needed.ipv6_addrs
