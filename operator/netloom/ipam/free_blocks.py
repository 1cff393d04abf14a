"""The search for a block that can be given: nobody has it, holds it, reserves it or waits for it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from netloom.cidr import Cidr, Version
from netloom.ipam.assignments import Assignments
from netloom.ipam.former import Former
from netloom.ipam.known_ledgers import KnownLedgers
from netloom.ipam.plan import BlockRequest, BlockTaken, Deferred, Refusal
from netloom.ipam.pool import Exhausted, Pool, Usage
from netloom.ipam.reservations import Reservations
from netloom.ipam.singles import Singles


class FreeBlocks:
    """Those of the configured pools, next to what ledgers, nodes and their former holdings say."""

    def __init__(self, ledgers: KnownLedgers, assignments: Assignments, former: Former, singles: Singles) -> None:
        self.mode = ""
        self._ledgers = ledgers
        self._assignments = assignments
        self._former = former
        self._singles = singles
        self._pools: dict[Version, Pool] = {}
        self.reserved = Reservations()
        self._exhausted: dict[Version, Exhausted] = {}

    def configure(self, mode: str, pools: Iterable[Pool]) -> None:
        """Entries are made in `mode`, blocks come from `pools`; none is given that overlaps what is reserved."""
        self.mode = mode
        self._pools = {pool.version: pool for pool in sorted(pools, key=lambda pool: pool.version)}
        self._exhausted = {}

    def reserve(self, cidr: Cidr) -> bool:
        """See `Reservations.reserve`."""
        new = self.reserved.reserve(cidr)
        if new:
            self._exhausted = {}
        return new

    def let_go(self, cidr: Cidr) -> bool:
        """See `Reservations.let_go`."""
        gone = self.reserved.let_go(cidr)
        if gone:
            self._exhausted = {}
            self.put_back((cidr,))
        return gone

    def put_back(self, cidrs: Iterable[Cidr]) -> None:
        """They are (perhaps) free again. To say so too often does no harm."""
        for cidr in cidrs:
            pool = self._pools.get(cidr.version)
            if pool is not None:
                pool.put_back(cidr)

    def usage(self) -> list[Usage]:
        """How much of each cluster CIDR is in use."""
        blocks = [cidr for known in self._ledgers.values() for cidr in known.entries]
        blocks += [cidr for cidrs in self._assignments.unrecorded.values() for cidr in cidrs]
        return [usage for pool in self._pools.values() for usage in pool.usage(blocks, self._reserved_of(pool.version))]

    def choose(self, request: BlockRequest) -> tuple[Cidr, ...] | Refusal:
        """Blocks for the node, entered in their ledgers' `taken`; both families or neither."""
        chosen: list[Cidr] = []
        new: list[Cidr] = []
        refusal: Refusal | None = None
        for version, cidr in self._asked(request):
            found = cidr or self._pools[version].take(self._occupied)
            if isinstance(found, Exhausted):
                refusal = self._told(found)
                break
            refusal = self.obstacle(found, request.node)
            if refusal is not None:
                break
            known = self._ledgers.of(found)
            if found not in known.entries:
                known.taken.add(found)
                new.append(found)
            chosen.append(found)
        if refusal is None and chosen:
            return tuple(chosen)
        for cidr in new:
            self._ledgers.of(cidr).taken.remove(cidr)
        self.put_back(new)
        return refusal or Deferred("NoClusterCIDR", "the network has no usable CIDR to give blocks from")

    def obstacle(self, cidr: Cidr, node: str, held: bool = True) -> BlockTaken | Deferred | None:
        """Why the node cannot have this very block. `held`: what others hold without an entry counts, too."""
        known = self._ledgers.of(cidr)
        deferral = known.deferral(self.mode)
        if deferral is not None:
            return deferral
        entry = known.entries.get(cidr)
        if entry is not None and entry.node == node:
            return None
        if known.taken.overlap(cidr) is not None:
            for other, entry in known.entries.items():
                if other.overlaps(cidr):
                    return BlockTaken(cidr, other, entry.node)
            return Deferred("LedgerBusy", f"{cidr} overlaps what another node is being given at this moment")
        if held:
            for holder, cidrs in self._assignments.unrecorded.items():
                for other in cidrs:
                    if holder != node and other.overlaps(cidr):
                        return BlockTaken(cidr, other, holder)
        return None

    def _told(self, exhausted: Exhausted) -> Exhausted:
        """With how many blocks are reserved, counted once per configuration: all who wait are told the same."""
        version = exhausted.version
        if version not in self._exhausted:
            reserved = sum(usage.reserved for usage in self._pools[version].usage((), self._reserved_of(version)))
            self._exhausted[version] = replace(exhausted, reserved=reserved)
        return self._exhausted[version]

    def _reserved_of(self, version: Version) -> list[Cidr]:
        return list(self.reserved.of(version))

    def _asked(self, request: BlockRequest) -> list[tuple[Version, Cidr | None]]:
        if request.cidrs:
            return [(cidr.version, cidr) for cidr in request.cidrs]
        mine = self._own(request.node)
        if not mine and not self._former:
            return [(version, None) for version in self._pools]
        versions = sorted({*self._pools, *mine})
        return [(version, mine.get(version) or self._former_block(request.node, version)) for version in versions]

    def _own(self, node: str) -> Mapping[Version, Cidr]:
        """The entry to honour per family; of several, after two operators raced, one without marks."""
        entered = self._assignments.entered(node)
        last_first = sorted(entered, key=lambda cidr: (cidr in self._ledgers.of(cidr).marked, cidr), reverse=True)
        return {cidr.version: cidr for cidr in last_first}

    def _former_block(self, node: str, version: Version) -> Cidr | None:
        """What the node had by a ledger that vanished, if it can be given again; reserved or not, its pods live."""
        cidr = self._former.of(node, version)
        if cidr is None or version not in self._pools or not self._pools[version].gives(cidr):
            return None
        return None if isinstance(self.obstacle(cidr, node), BlockTaken) else cidr

    def _occupied(self, cidr: Cidr) -> int | None:
        """Of what overlaps the block, the last address (see `Pool`)."""
        known = self._ledgers.of(cidr)
        if known.deferral(self.mode):
            return known.range.last
        for each in (known.taken, self._assignments, self._singles, self.reserved, self._former):
            found = each.overlap(cidr)
            if found is not None:
                return found.last
        return None
