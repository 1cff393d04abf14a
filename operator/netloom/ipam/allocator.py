"""Decides which node gets which block, and what is committed for it. No I/O; time is handed in.

The rules that keep two nodes from ever holding overlapping blocks are enforced here, each in one place:

- a block is handed out (`Grant`) only with a mark of this incarnation in the same commit (`_grant`);
- a mark of ours goes when every request sent under it was answered, else not before its quarantine (`Marks`);
- an entry is freed only if no mark of anybody else stands on it, nothing of ours is under way, and the ledger has
  not been changed by anybody else since before the node was last seen without the block (`_release`).

docs/allocation.md has the proof. A plan is made against the ledgers as known; the API server's compare-and-swap
decides whether they were known well enough.
"""

from collections.abc import Sequence, Set

from netloom.cidr import Address, Cidr
from netloom.ipam.assignments import Assignments
from netloom.ipam.former import Former
from netloom.ipam.free_blocks import FreeBlocks
from netloom.ipam.known_ledgers import KnownLedger, KnownLedgers
from netloom.ipam.ledger import Entry, Ledger, LedgerError
from netloom.ipam.marks import Marks
from netloom.ipam.plan import BatchPlan, BlockRequest, ChosenBlocks, Deferred, Release
from netloom.ipam.singles import Singles


class Allocator:
    """All that a process knows of the ledgers, and its plans for changing them. `incarnation`: as of `Marks`."""

    def __init__(self, incarnation: str) -> None:
        self.ledgers = KnownLedgers()
        self.assignments = Assignments()
        self.former = Former()
        self.singles = Singles()
        self.blocks = FreeBlocks(self.ledgers, self.assignments, self.former, self.singles)
        self.marks = Marks(incarnation)

    # What is known

    def load(self, cidr: Cidr, content: Ledger | LedgerError | None, version: str, now: float) -> None:
        """The server's answer for the ledger of `cidr`, see `KnownLedger.load`."""
        known = self.ledgers.of(cidr)
        before = known.entries
        if not known.load(content, version, now):
            return
        for block in sorted(before.keys() | known.entries.keys()):
            self._assign(block, before.get(block), known.entries.get(block))
        if content is None:
            for block, entry in before.items():
                self.former.remember(entry.node, block)
        self.blocks.put_back([known.range])  # what was passed over while the content was unknown, or is free now

    def hold(self, node: str, cidrs: tuple[Cidr, ...]) -> bool:
        """What the NetloomNode `node` holds: it is given to nobody, whether or not a ledger knows of it. True where
        something that no ledger knew of is held no more."""
        before = self.assignments.unrecorded.get(node, ())
        self.blocks.put_back(self.assignments.hold(node, cidrs))
        return bool(before) and not set(before) <= set(self.assignments.unrecorded.get(node, ()))

    def forget(self, node: str) -> None:
        """The node is gone: what it had by a ledger that vanished is anybody's."""
        self.blocks.put_back(self.former.forget(node))

    def holders(self) -> Set[str]:
        """All nodes that hold something, are being given it, or may still use it."""
        return self.assignments.holders() | self.singles.holders()

    def in_use(self) -> bool:
        """Whether any block or address is in use, or may be."""
        return bool(self.assignments.holders() or self.singles.holders()) or any(
            known.problem for known in self.ledgers.values()
        )

    def given(self, address: Address) -> Cidr | None:
        """The block with this address in it that a node holds, or is being given, or the address alone."""
        known = self.ledgers.around(address)
        if known is None and not self.assignments.unrecorded and not self.singles.nodes():
            return None
        host = Cidr.of(address)
        return (
            (known.taken.overlap(host) if known else None)
            or self.assignments.overlap(host)
            or self.singles.overlap(host)
        )

    # Plans

    def plan(self, requests: Sequence[BlockRequest], releases: Sequence[Release], now: float) -> BatchPlan:
        """A batch. Every ledger in `edits` has to be committed (`committed`) or given up (`stale`) before the next."""
        self.marks.begin(now)
        plan = BatchPlan()
        for release in releases:
            self._release(plan, release, now)
        for request in sorted(requests, key=lambda request: (not request.adopt, request.since)):
            if request.mode != self.blocks.mode:
                message = f"the network is not in IPAM mode {request.mode} any more"
                plan.decisions[request.node] = Deferred("ModeChanged", message)
            elif request.adopt:
                self._adopt(plan, request)
            else:
                self._grant(plan, request, now)
        for name, edits in plan.edits.items():
            self.marks.tidy(self.ledgers[name], edits, now)
        return plan

    def tidy(self, now: float) -> BatchPlan:
        """A batch that does nothing but remove marks that are no longer needed."""
        plan = BatchPlan()
        for known in self.ledgers.values():
            edits: dict[Cidr, Entry | None] = {}
            self.marks.tidy(known, edits, now)
            if edits:
                plan.edits[known.name] = edits
        return plan

    def edited(self, plan: BatchPlan, name: str, epoch: int) -> Ledger:
        """The ledger `name` as the plan wants it; `epoch` counts only where it is opened by it."""
        known = self.ledgers[name]
        current = known.content or Ledger(known.range)
        if current.mode or name not in plan.opens:
            return current.edited(plan.edits[name], current.mode, current.epoch)
        return current.edited(plan.edits[name], self.blocks.mode, epoch)

    def committed(self, plan: BatchPlan, name: str, content: Ledger, version: str) -> None:
        """Our write of this ledger succeeded."""
        known, edits = self.ledgers[name], plan.edits[name]
        before, was_full = known.entries, known.full
        freed = known.committed(edits, content, version)
        for cidr, entry in edits.items():
            self._assign(cidr, before.get(cidr), entry)
        self.blocks.put_back([known.range] if was_full and freed else freed)

    def _grant(self, plan: BatchPlan, request: BlockRequest, now: float) -> None:
        chosen = self.blocks.choose(request)
        if not isinstance(chosen, ChosenBlocks):
            plan.decisions[request.node] = chosen
            return
        for _, cidr in chosen.blocks:
            known = self.ledgers.of(cidr)
            entry = known.entries.get(cidr, Entry(request.node))
            self._enter(plan, known, cidr, self.marks.marked(entry))
        plan.decisions[request.node] = self.marks.grant(request.node, self.blocks.mode, chosen, now)

    def _adopt(self, plan: BatchPlan, request: BlockRequest) -> None:
        plan.decisions[request.node] = None
        for cidr in request.cidrs:
            known = self.ledgers.of(cidr)
            obstacle = self.blocks.obstacle(cidr, request.node, held=False)
            if obstacle is not None:
                plan.decisions[request.node] = obstacle
            elif cidr not in known.entries:
                known.taken.add(cidr)
                self._enter(plan, known, cidr, Entry(request.node))

    def _enter(self, plan: BatchPlan, known: KnownLedger, cidr: Cidr, entry: Entry) -> None:
        plan.entered.setdefault(entry.node, set()).add(known.name)
        plan.edits.setdefault(known.name, {})[cidr] = entry

    def _release(self, plan: BatchPlan, release: Release, now: float) -> None:
        known = self.ledgers.of(release.cidr)
        entry = known.entries.get(release.cidr)
        if known.problem or known.stale or known.foreign_changes != release.foreign_changes:
            return
        if entry is None or entry.node != release.node:
            return
        if self.marks.wait(known, release.node, release.cidr, now) > 0:
            return
        if any(release.cidr.overlaps(cidr) for cidr in self.assignments.held(release.node)):
            return  # it was taken back meanwhile
        plan.edits.setdefault(known.name, {})[release.cidr] = None
        plan.released.append(release)

    def _assign(self, cidr: Cidr, before: Entry | None, after: Entry | None) -> None:
        old, new = before and before.node, after and after.node
        if old == new:
            return
        if old:
            self.blocks.put_back(self.assignments.strike(old, cidr))
        if new:
            self.blocks.put_back(self.assignments.enter(new, cidr))
            self.blocks.forget_former(new, cidr)
