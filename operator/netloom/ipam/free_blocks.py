"""The search for a block that can be given: nobody has it, holds it, reserves it or waits for it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from netloom.cidr import Cidr, Version
from netloom.cidr.counted_cidrs import CountedCidrs
from netloom.ipam.assignments import Assignments
from netloom.ipam.former import Former
from netloom.ipam.known_ledgers import KnownLedgers
from netloom.ipam.plan import Block, BlockRequest, BlockTaken, ChosenBlocks, Deferred, Refusal, Want
from netloom.ipam.pool import Exhausted, Pool, Usage
from netloom.ipam.singles import Singles


class FreeBlocks:
    """Those of the configured pools, next to what ledgers, nodes and their former holdings say."""

    def __init__(self, ledgers: KnownLedgers, assignments: Assignments, former: Former, singles: Singles) -> None:
        self.mode = ""
        self._ledgers = ledgers
        self._assignments = assignments
        self._former = former
        self._singles = singles
        self._pools: dict[tuple[str, Version], Pool] = {}
        self.reserved = CountedCidrs()
        """Of which no block is given: something that is no pod has addresses there. What is given already stays."""
        self._exhausted: dict[tuple[str, Version], Exhausted] = {}

    def configure(self, mode: str, pools: Iterable[Pool]) -> None:
        """Entries are made in `mode`, blocks come from `pools`; none is given that overlaps what is reserved."""
        self.mode = mode
        self._pools = {(pool.name, pool.version): pool for pool in pools}
        self._exhausted = {}

    def reserve(self, cidr: Cidr) -> bool:
        """Once more; whether nobody had reserved this very CIDR before."""
        new = self.reserved.add(cidr) is not None
        if new:
            self._exhausted = {}
        return new

    def let_go(self, cidr: Cidr) -> bool:
        """Once less; whether nobody reserves this very CIDR any more. Raises KeyError where nobody did."""
        gone = self.reserved.remove(cidr) is not None
        if gone:
            self._exhausted = {}
            self.put_back((cidr,))
        return gone

    def put_back(self, cidrs: Iterable[Cidr]) -> None:
        """They are (perhaps) free again. To say so too often does no harm."""
        for cidr in cidrs:
            for pool in self._pools.values():
                if pool.version == cidr.version:
                    pool.put_back(cidr)

    def forget_former(self, node: str, cidr: Cidr) -> None:
        """A ledger has this block for the node: it wishes for it no more, nor for others of its pool, if it had to take
        one that it did not wish for."""
        former = self._former.of(node) if self._former else ()
        if not former:
            return
        pool = self.pool_of(cidr)
        others = [each for each in former if each.version == cidr.version and self.pool_of(each) == pool]
        self.put_back(self._former.forget(node, {cidr} if cidr in former else others))

    def pool_of(self, cidr: Cidr) -> str:
        """The pool that has blocks there; "" is that of the cluster's CIDRs, and none."""
        held = (pool.name for pool in self._pools.values() if pool.version == cidr.version and pool.holds(cidr))
        return next(held, "")

    def usage(self, of: str = "") -> list[Usage]:
        """How much of each CIDR of a pool is in use; "": of the cluster CIDRs."""
        pools = [pool for pool in self._pools.values() if pool.name == of]
        ledgers = [known for known in self._ledgers.values() if any(pool.holds(known.range) for pool in pools)]
        blocks = [cidr for known in ledgers for cidr in known.entries]
        blocks += [cidr for cidrs in self._assignments.unrecorded.values() for cidr in cidrs]
        return [usage for pool in pools for usage in pool.usage(blocks, self._reserved_of(pool.version))]

    def choose(self, request: BlockRequest) -> ChosenBlocks | Refusal:
        """Blocks for the node, entered in their ledgers' `taken`; unless `partly`, all that it wants or none."""
        chosen: list[Block] = []
        new: list[Cidr] = []
        refusal: Refusal | None = None
        for block in self._asked(request):
            if isinstance(block, Block):
                found: Cidr | Refusal = self.obstacle(block.cidr, request.node) or block.cidr
            else:
                found = self._take(block)
            if not isinstance(found, Cidr):
                refusal = refusal or found
                if request.partly:
                    continue
                break
            known = self._ledgers.of(found)
            if found not in known.entries:
                known.taken.add(found)
                new.append(found)
            chosen.append(Block(block.pool, found))
        if chosen and (refusal is None or request.partly):
            return ChosenBlocks(tuple(chosen), refusal)
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

    def _take(self, want: Want) -> Cidr | Refusal:
        """One block."""
        pool = self._pools.get((want.pool, want.version))
        if pool is None or pool.draining:
            message = f"NetloomIPPool {want.pool} has no IPv{want.version} blocks to give any more"
            return Deferred("PoolChanged", message)
        found = pool.take(self._occupied)
        return self._told(found) if isinstance(found, Exhausted) else found

    def _told(self, exhausted: Exhausted) -> Exhausted:
        """With how many blocks are reserved, counted once per configuration: all who wait are told the same."""
        key = exhausted.pool, exhausted.version
        if key not in self._exhausted:
            usage = self._pools[key].usage((), self._reserved_of(exhausted.version))
            self._exhausted[key] = replace(exhausted, reserved=sum(each.reserved for each in usage))
        return self._exhausted[key]

    def _reserved_of(self, version: Version) -> list[Cidr]:
        return list(self.reserved.outermost(version))

    def _asked(self, request: BlockRequest) -> Iterator[Block | Want]:
        """One by one: blocks that the node has or had already, and what has to be searched for."""
        if request.cidrs:
            yield from (Block("", cidr) for cidr in request.cidrs)
            return
        spare = self._spare(request.node)
        for want in self._wanted(request, spare):
            mine = [cidr for cidr in spare if self._is_of(cidr, want)][: want.blocks]
            for cidr in mine:
                yield Block(want.pool, cidr)
            for _ in range(want.blocks - len(mine)):
                former = self._former_block(request.node, want)
                yield Block(want.pool, former) if former else want

    def _wanted(self, request: BlockRequest, spare: Sequence[Cidr]) -> Iterable[Want]:
        """What it wants, and what it had of a family that the cluster's CIDRs have no more."""
        if request.partly or not spare:
            return request.wants
        more = {cidr.version for cidr in spare} - {want.version for want in request.wants}
        return sorted((*request.wants, *(Want("", version) for version in more)))

    def _spare(self, node: str) -> list[Cidr]:
        """The entries to honour: of several, after two operators raced, those without marks first."""
        entered = self._assignments.entered(node)
        if not entered:
            return []
        held = self._assignments.held(node)
        spare = [cidr for cidr in entered if cidr not in held]
        return sorted(spare, key=lambda cidr: (cidr in self._ledgers.of(cidr).marked, cidr))

    def _is_of(self, cidr: Cidr, want: Want) -> bool:
        """Whether an entry can be what is wanted. Of the cluster's CIDRs, also one of a former time."""
        if cidr.version != want.version:
            return False
        pool = self._pools.get((want.pool, want.version))
        return not want.pool or (pool is not None and pool.holds(cidr))

    def _former_block(self, node: str, want: Want) -> Cidr | None:
        """What the node had by a ledger that vanished, if it can be given again; reserved or not, its pods live."""
        pool = self._pools.get((want.pool, want.version))
        for cidr in self._former.of(node) if self._former else ():
            given = pool is not None and cidr.version == want.version and pool.gives(cidr)
            if given and not isinstance(self.obstacle(cidr, node), BlockTaken):
                return cidr
        return None

    def _occupied(self, cidr: Cidr) -> int | None:
        """Of what overlaps the block, the last address (see `Pool`)."""
        known = self._ledgers.of(cidr)
        if known.deferral(self.mode) or known.full:
            return known.range.last
        for each in (known.taken, self._assignments, self._singles, self.reserved, self._former):
            found = each.overlap(cidr)
            if found is not None:
                return found.last
        return None
