"""All ledgers as one operator process knows them, and its plans for changing them. No I/O; time is handed in.

The rules that keep two nodes from ever holding overlapping blocks are enforced here, each in one place:

- a block is handed out (`Grant`) only with a mark of this incarnation in the same commit (`_grant`);
- a mark of ours goes when every request sent under it was answered, else not before QUARANTINE (`_removable`);
- an entry is freed only if no mark of anybody else stands on it, nothing of ours is under way, and the ledger has
  not been changed by anybody else since before the node was last seen without the block (`freeable`).

docs/allocation.md has the proof. A plan is made against the ledgers as known; the API server's compare-and-swap
decides whether they were known well enough.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from netloom.cidr import Cidr, Version
from netloom.cidr.interval_set import IntervalSet
from netloom.ipam import ledger
from netloom.ipam.former import Former
from netloom.ipam.ledger import Edit, Entry, Ledger, Mark
from netloom.ipam.ledger_range import ledger_name, ledger_range_of
from netloom.ipam.pool import Exhausted, Pool, Usage

REQUEST_SECONDS = 10.0
"""Time-out of every request that writes a block to a node."""
WINDOW_SECONDS = 15.0
"""A grant is good for sending requests this long, counted from before its commit was sent."""
QUARANTINE_SECONDS = 120.0
"""After this no request sent under a mark can still be executed: window, time-out, the API server's own limit of
60 s for a request, and a margin of 35 s."""


@dataclass(frozen=True, slots=True)
class Want:
    """A node that needs its blocks: those in `cidrs`, or, where that is empty, one of each pool."""

    node: str
    mode: str
    cidrs: tuple[Cidr, ...] = ()
    adopt: bool = False
    """The node holds `cidrs` already: enter what is missing, send nothing."""
    since: str = ""
    """Of adoptions that exclude each other, the one that holds for longest counts."""


@dataclass(frozen=True, slots=True)
class Free:
    """Free `cidr` of `node`, which was seen, live, not to hold it when the ledger's lineage was `lineage`."""

    node: str
    cidr: Cidr
    lineage: int


@dataclass(frozen=True, slots=True)
class Taken:
    """`cidr` overlaps `other`, which belongs to `holder`."""

    cidr: Cidr
    other: Cidr
    holder: str

    def __str__(self) -> str:
        which = "is" if self.cidr == self.other else f"overlaps {self.other},"
        return f"{self.cidr} {which} held by node {self.holder}"


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nothing can be given at the moment. `reason` is CamelCase for a condition."""

    reason: str
    message: str

    def __str__(self) -> str:
        return self.message


Refusal = Exhausted | Taken | Blocked


@dataclass(frozen=True, slots=True)
class Grant:
    """Until `deadline`, requests may be sent that write `cidrs` to `node`. Hand it back by `Book.settle`, once."""

    node: str
    mode: str
    cidrs: tuple[Cidr, ...]
    deadline: float


@dataclass(slots=True)
class Plan:
    """One batch: what to commit per ledger, and what holds for each node if that succeeds."""

    mark: Mark
    edits: dict[str, dict[Cidr, Entry | None]] = field(default_factory=dict)
    opens: set[str] = field(default_factory=set)
    """Ledgers that get new entries: they must be open for the mode."""
    grants: dict[str, Grant] = field(default_factory=dict)
    adopted: set[str] = field(default_factory=set)
    refused: dict[str, Refusal] = field(default_factory=dict)
    freed: list[Free] = field(default_factory=list)
    touched: dict[str, set[str]] = field(default_factory=dict)
    """Ledgers that must have been committed, by node."""


@dataclass(slots=True)
class Shard:
    """A ledger as it is known: `ledger` None where it does not exist, `version` its resourceVersion ("" then)."""

    name: str
    region: Cidr
    ledger: Ledger | None = None
    version: str = ""
    problem: str = ""
    """Why the content is not readable."""
    stale: bool = False
    """A commit went wrong: to be read again before anything is planned here."""
    lineage: int = 0
    """Changes whenever the content was replaced by anything but our own commit."""
    taken: IntervalSet = field(default_factory=IntervalSet)
    marked: set[Cidr] = field(default_factory=set)
    """Entries with marks."""
    seen: dict[Mark, float] = field(default_factory=dict)
    """When each mark of another incarnation was first seen."""

    @property
    def mode(self) -> str:
        return self.ledger.mode if self.ledger is not None else ""

    @property
    def entries(self) -> Mapping[Cidr, Entry]:
        return self.ledger.entries if self.ledger is not None else {}


@dataclass(slots=True)
class _Flight:
    """Requests that write one block to one node: granted or sent and not answered."""

    grants: int = 0
    unanswered_until: float = 0.0


class Book:
    """See the module. `incarnation` must never have been used before, by any process."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.shards: dict[str, Shard] = {}
        self.mode = ""
        self.pools: dict[Version, Pool] = {}
        self._sequence = 0
        self._of_node: dict[str, tuple[Cidr, ...]] = {}
        self._held: dict[str, tuple[Cidr, ...]] = {}
        self._loose: dict[str, tuple[Cidr, ...]] = {}
        self._loose_ranges: IntervalSet | None = None
        self._reserved = IntervalSet()
        self._flights: dict[tuple[str, Cidr], _Flight] = {}
        self._former = Former()

    # What is known

    def configure(self, mode: str, pools: Iterable[Pool], reserved: Collection[Cidr] = ()) -> None:
        """Writes are in `mode`, blocks come from `pools`; none is given that contains a `reserved` address."""
        self.mode = mode
        self.pools = {pool.version: pool for pool in pools}
        self._reserved = IntervalSet(reserved)

    def load(self, region: Cidr, content: Ledger | str | None, version: str, now: float) -> None:
        """The server's answer: a ledger, why it is unreadable, or None where there is none."""
        shard = self._shard(region)
        if shard.version == version and not shard.stale and shard.lineage:
            return
        before = shard.entries
        shard.ledger = content if isinstance(content, Ledger) else None
        shard.problem = content if isinstance(content, str) else ""
        shard.version, shard.stale = version, False
        shard.lineage += 1
        shard.taken = IntervalSet(shard.entries)
        shard.marked = {cidr for cidr, entry in shard.entries.items() if entry.marks}
        marks = {mark for cidr in shard.marked for mark in shard.entries[cidr].marks if self._foreign(mark)}
        shard.seen = {mark: shard.seen.get(mark, now) for mark in marks}
        for cidr in sorted(before.keys() | shard.entries.keys()):
            self._reindex(cidr, before.get(cidr), shard.entries.get(cidr))
        if content is None:
            for cidr, entry in before.items():
                self._former.remember(entry.node, cidr)
        self._put_back(region)  # what was passed over while the content was unknown, or is free now

    def hold(self, node: str, cidrs: tuple[Cidr, ...]) -> None:
        """What the NetloomNode `node` holds. Its space is given to nobody, whether or not a ledger knows of it."""
        if cidrs:
            self._held[node] = cidrs
        else:
            self._held.pop(node, None)
        self._update_loose(node)

    def forget(self, node: str) -> None:
        """The node is gone: what it had by a ledger that vanished is anybody's."""
        for cidr in self._former.forget(node):
            self._put_back(cidr)

    def dispossessed(self) -> list[str]:
        """All nodes that had blocks by a ledger that vanished, and have none instead."""
        return self._former.nodes()

    def entries_of(self, node: str) -> tuple[Cidr, ...]:
        """The blocks that the ledgers have for a node."""
        return self._of_node.get(node, ())

    def loose(self, node: str) -> tuple[Cidr, ...]:
        """The blocks that a node holds and that no ledger has for it."""
        return self._loose.get(node, ())

    def nodes(self) -> list[str]:
        """All nodes with entries."""
        return list(self._of_node)

    def holders(self) -> Set[str]:
        """All nodes that hold blocks, are being given some, or have not yet given all back."""
        return self._of_node.keys() | self._held.keys()

    def unsettled(self) -> list[str]:
        """All nodes that hold blocks which no ledger has for them."""
        return list(self._loose)

    def in_use(self) -> bool:
        """Whether any block is in use, or may be."""
        return bool(self._of_node or self._held) or any(shard.problem for shard in self.shards.values())

    def usage(self) -> list[Usage]:
        """How much of each cluster CIDR is in use."""
        blocks = list(self.blocks())
        return [usage for pool in self.pools.values() for usage in pool.usage(blocks)]

    def shard(self, cidr: Cidr) -> Shard:
        """What is known of the ledger for a block."""
        return self._shard(cidr)

    def blocks(self) -> Iterable[Cidr]:
        """All blocks in use."""
        for shard in self.shards.values():
            yield from shard.entries
        for cidrs in self._loose.values():
            yield from cidrs

    def lineage(self, cidr: Cidr) -> int:
        """See `Free`."""
        return self._shard(cidr).lineage

    # Requests under way

    def settle(self, grant: Grant, sent: float | None) -> None:
        """The grant is used up. `sent`: when a request was sent that got no answer; None if there is none such."""
        for cidr in grant.cidrs:
            flight = self._flights[grant.node, cidr]
            flight.grants -= 1
            if sent is not None:
                flight.unanswered_until = max(flight.unanswered_until, sent + QUARANTINE_SECONDS)
            if not flight.grants and not flight.unanswered_until:
                del self._flights[grant.node, cidr]

    def freeable(self, node: str, cidr: Cidr, now: float) -> float:
        """Seconds until the marks let the entry be freed; 0 where they do now. Infinite while we write it ourselves."""
        shard = self._shard(cidr)
        entry = shard.entries.get(cidr)
        if entry is None or entry.node != node:
            return 0.0
        flight = self._flights.get((node, cidr))
        if flight is not None and flight.grants:
            return float("inf")
        return max([0.0, *(self._expires(shard, node, cidr, mark) - now for mark in entry.marks)])

    # Plans

    def plan(self, wants: Sequence[Want], frees: Sequence[Free], now: float) -> Plan:
        """A batch. Every ledger in `edits` has to be committed (`committed`) or given up (`failed`) before the next."""
        self._sequence += 1
        plan = Plan(Mark(self.incarnation, self._sequence))
        for free in frees:
            self._free(plan, free, now)
        for want in sorted(wants, key=lambda want: (not want.adopt, want.since)):
            if want.mode != self.mode:
                plan.refused[want.node] = Blocked(
                    "ModeChanged", f"the network is not in IPAM mode {want.mode} any more"
                )
            elif want.adopt:
                self._adopt(plan, want)
            else:
                self._grant(plan, want, now)
        for name, edit in plan.edits.items():
            self._tidy(self.shards[name], edit, plan.mark, now)
        return plan

    def tidy(self, now: float) -> Plan:
        """A batch that does nothing but remove marks that are no longer needed."""
        plan = Plan(Mark(self.incarnation, 0))
        for shard in self.shards.values():
            edit: dict[Cidr, Entry | None] = {}
            self._tidy(shard, edit, plan.mark, now)
            if edit:
                plan.edits[shard.name] = edit
        return plan

    def next_tidy(self, now: float) -> float | None:
        """Seconds until a mark is no longer needed; None where there is none that time alone removes."""
        times = [
            self._expires(shard, shard.entries[cidr].node, cidr, mark)
            for shard in self.shards.values()
            for cidr in shard.marked
            for mark in shard.entries[cidr].marks
        ]
        soonest = min(times, default=float("inf"))
        return None if soonest == float("inf") else max(0.0, soonest - now)

    def committed(self, plan: Plan, name: str, content: Ledger, version: str) -> None:
        """Our write of this ledger succeeded."""
        shard = self.shards[name]
        before = shard.entries
        shard.ledger, shard.version = content, version
        for cidr, entry in plan.edits[name].items():
            old = before.get(cidr)
            self._reindex(cidr, old, entry)
            shard.marked.discard(cidr)
            if entry is not None and entry.marks:
                shard.marked.add(cidr)
            if old is not None and entry is None:
                shard.taken.remove(cidr)
                self._put_back(cidr)

    def failed(self, name: str) -> None:
        """Our write of this ledger failed or was not answered: nothing is planned there until `load`."""
        self.shards[name].stale = True

    def edited(self, plan: Plan, name: str, epoch: int) -> Ledger:
        """The ledger `name` as the plan wants it; `epoch` counts only where it is opened by it."""
        shard = self.shards[name]
        current = shard.ledger or ledger.closed(shard.region, 0)
        if current.mode or name not in plan.opens:
            return Edit(plan.edits[name]).apply(current, current.mode, current.epoch)
        return Edit(plan.edits[name]).apply(current, self.mode, epoch)

    def _grant(self, plan: Plan, want: Want, now: float) -> None:
        chosen = self._choose(want)
        if not isinstance(chosen, tuple):
            plan.refused[want.node] = chosen
            return
        for cidr in chosen:
            shard = self._shard(cidr)
            entry = shard.entries.get(cidr)
            self._edit(plan, shard, want.node)[cidr] = ledger.marked(entry or Entry(want.node), plan.mark)
            self._flights.setdefault((want.node, cidr), _Flight()).grants += 1
        plan.grants[want.node] = Grant(want.node, self.mode, chosen, now + WINDOW_SECONDS)

    def _choose(self, want: Want) -> tuple[Cidr, ...] | Refusal:
        """Blocks for the node, reserved in `taken`; both families or neither."""
        mine = self._mine(want.node)
        chosen: list[Cidr] = []
        new: list[Cidr] = []
        refusal: Refusal | None = None
        for version, cidr in self._asked(want, mine):
            found = cidr or self.pools[version].take(self._occupied)
            if isinstance(found, Exhausted):
                refusal = found
                break
            refusal = self._obstacle(found, want.node)
            if refusal is not None:
                break
            if found not in self._shard(found).entries:
                self._shard(found).taken.add(found)
                new.append(found)
            chosen.append(found)
        if refusal is None and chosen:
            return tuple(chosen)
        for cidr in new:
            self._shard(cidr).taken.remove(cidr)
            self._put_back(cidr)
        return refusal or Blocked("NoClusterCIDR", "the network has no usable CIDR to give blocks from")

    def _asked(self, want: Want, mine: Mapping[Version, Cidr]) -> list[tuple[Version, Cidr | None]]:
        if want.cidrs:
            return [(cidr.version, cidr) for cidr in want.cidrs]
        versions = sorted({*self.pools, *mine})
        return [(version, mine.get(version) or self._former_block(want.node, version)) for version in versions]

    def _former_block(self, node: str, version: Version) -> Cidr | None:
        """What the node had by a ledger that vanished, if it can be given again."""
        cidr = self._former.of(node, version)
        if cidr is None or version not in self.pools or not self.pools[version].gives(cidr):
            return None
        reserved = self._reserved.overlap(cidr)
        return None if reserved or isinstance(self._obstacle(cidr, node), Taken) else cidr

    def _mine(self, node: str) -> dict[Version, Cidr]:
        """The entry to honour per family. A node has several only after two operators raced: the settled one counts."""
        found: dict[Version, Cidr] = {}
        for cidr in sorted(self.entries_of(node), key=lambda cidr: (bool(self._shard(cidr).entries[cidr].marks), cidr)):
            found.setdefault(cidr.version, cidr)
        return found

    def _adopt(self, plan: Plan, want: Want) -> None:
        for cidr in want.cidrs:
            shard = self._shard(cidr)
            obstacle = self._obstacle(cidr, want.node, held=False)
            if obstacle is not None:
                plan.refused[want.node] = obstacle
                continue
            if cidr in shard.entries:
                continue
            shard.taken.add(cidr)
            self._edit(plan, shard, want.node)[cidr] = Entry(want.node)
        if want.node not in plan.refused:
            plan.adopted.add(want.node)

    def _free(self, plan: Plan, free: Free, now: float) -> None:
        shard = self._shard(free.cidr)
        entry = shard.entries.get(free.cidr)
        if shard.problem or shard.stale or shard.lineage != free.lineage or entry is None or entry.node != free.node:
            return
        if self.freeable(free.node, free.cidr, now) > 0:
            return
        plan.edits.setdefault(shard.name, {})[free.cidr] = None
        plan.freed.append(free)

    def _edit(self, plan: Plan, shard: Shard, node: str) -> dict[Cidr, Entry | None]:
        plan.opens.add(shard.name)
        plan.touched.setdefault(node, set()).add(shard.name)
        return plan.edits.setdefault(shard.name, {})

    def _tidy(self, shard: Shard, edit: dict[Cidr, Entry | None], mark: Mark, now: float) -> None:
        if shard.problem or shard.stale:
            return
        for cidr in shard.marked:
            new = edit.get(cidr, shard.entries[cidr])
            if new is None:
                continue
            gone = [each for each in new.marks if each != mark and self._expires(shard, new.node, cidr, each) <= now]
            if gone:
                edit[cidr] = ledger.unmarked(new, gone)

    # Marks

    def _foreign(self, mark: Mark) -> bool:
        return mark.incarnation != self.incarnation

    def _expires(self, shard: Shard, node: str, cidr: Cidr, mark: Mark) -> float:
        """When the mark stops counting."""
        if self._foreign(mark):
            return shard.seen[mark] + QUARANTINE_SECONDS
        flight = self._flights.get((node, cidr), _Flight())
        return float("inf") if flight.grants else flight.unanswered_until

    # Space

    def _shard(self, cidr: Cidr) -> Shard:
        region = ledger_range_of(cidr)
        name = ledger_name(region)
        shard = self.shards.get(name)
        if shard is None:
            shard = self.shards[name] = Shard(name, region)
        return shard

    def _barrier(self, shard: Shard) -> Blocked | None:
        """Why nothing may be entered into a ledger, None where it may."""
        if shard.problem:
            message = (
                f"NetloomLedger {shard.name} is unreadable: {shard.problem}; docs/allocation.md says how to recover"
            )
            return Blocked("LedgerUnreadable", message)
        if shard.stale:
            return Blocked("LedgerBusy", f"NetloomLedger {shard.name} has to be read again")
        if shard.mode not in ("", self.mode):
            message = (
                f"NetloomLedger {shard.name} holds blocks of IPAM mode {shard.mode}; the mode in force is {self.mode}"
            )
            return Blocked("ModeLocked", message)
        return None

    def _occupied(self, cidr: Cidr) -> int | None:
        """Of what overlaps the block, the last address (see `Pool`)."""
        shard = self._shard(cidr)
        if self._barrier(shard):
            return shard.region.last
        for known in (shard.taken, self._ranges_of_loose(), self._reserved, self._former):
            found = known.overlap(cidr)
            if found is not None:
                return found.last
        return None

    def _obstacle(self, cidr: Cidr, node: str, held: bool = True) -> Refusal | None:
        """Why the node cannot have this very block. `held`: what others hold without an entry counts, too."""
        shard = self._shard(cidr)
        barrier = self._barrier(shard)
        if barrier is not None:
            return barrier
        entry = shard.entries.get(cidr)
        if entry is not None and entry.node == node:
            return None
        if shard.taken.overlap(cidr) is not None:
            for other, entry in shard.entries.items():
                if other.overlaps(cidr):
                    return Taken(cidr, other, entry.node)
            return Blocked("LedgerBusy", f"{cidr} overlaps what another node is being given at this moment")
        if held:
            for holder, cidrs in self._loose.items():
                for other in cidrs:
                    if holder != node and other.overlaps(cidr):
                        return Taken(cidr, other, holder)
        return None

    def _put_back(self, cidr: Cidr) -> None:
        pool = self.pools.get(cidr.version)
        if pool is not None:
            pool.put_back(cidr)

    def _reindex(self, cidr: Cidr, before: Entry | None, after: Entry | None) -> None:
        old, new = before and before.node, after and after.node
        if old == new:
            return
        if old:
            self._index(old, tuple(each for each in self._of_node[old] if each != cidr))
        if new:
            self._index(new, (*self._of_node.get(new, ()), cidr))
            for former in self._former.forget(new, cidr.version):
                self._put_back(former)

    def _index(self, node: str, cidrs: tuple[Cidr, ...]) -> None:
        if cidrs:
            self._of_node[node] = cidrs
        else:
            del self._of_node[node]
        self._update_loose(node)

    def _update_loose(self, node: str) -> None:
        mine = self._of_node.get(node, ())
        loose = tuple(cidr for cidr in self._held.get(node, ()) if cidr not in mine)
        before = self._loose.get(node, ())
        if loose == before:
            return
        if loose:
            self._loose[node] = loose
        else:
            del self._loose[node]
        self._loose_ranges = None
        for cidr in before:
            self._put_back(cidr)

    def _ranges_of_loose(self) -> IntervalSet:
        if self._loose_ranges is None:
            self._loose_ranges = IntervalSet(cidr for cidrs in self._loose.values() for cidr in cidrs)
        return self._loose_ranges
