"""Gives addresses to who asks: the allocator, the checkpoint, and patience.

Nobody is told of anything that is not written down: what arrives at one moment is written in one piece, and answered
then. What cannot be written is not told; the next attempt writes it, too. Who meets a shortage waits for a while: for
the node to be given more, for an address to be released, or to have rested; of what was freed, the longest free one is
given sooner where nothing else comes.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import structlog
from prometheus_client import Histogram

from netloom.api.problem import Problem
from netloom.cidr import Address, Version
from netloom.ipam.address_stock import NO_POOL, Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner, OwnerHolding, Shortage
from netloom.runtime.clock import boottime
from netloom.runtime.metrics import REGISTRY
from netloom.runtime.waking import Alarm
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint, CheckpointFound, InUse, Unwritable
from netloom_reconcilers.node.addresses.wire import WAIT_SECONDS

log = structlog.get_logger(__name__)

TOLD_SECONDS = 300.0
"""How long it is told that somebody got no address, if nobody asks again."""
PRESSED_SECONDS = 2.0
"""After which who waits does so no longer for an operator's answer, which mostly takes less than one, but for whatever
can be had: an address that has rested for `LEAST_REST_SECONDS`. A pod that does not start is worse than a flow of
another one that still remembers its address; and on a full node no pod would start for as long as addresses rest."""
LEAST_REST_SECONDS = 5.0
TIMER_SECONDS = 0.005
"""uvloop's timers end up to a millisecond early, and one that is too early to forget is not set again."""

PoolOf = Callable[[Owner, str | None, str], Awaitable[Mapping[str, frozenset[Version]] | Problem]]
"""Of which pools an owner is to get addresses of which families (none: of all that the pool has), mostly of one; given
the pool that it asks for itself, if it does, and the pod's uid, "" where that is not said."""

WAITED = Histogram(
    "netloom_address_wait_seconds",
    "From a request for an address of a pod to its answer.",
    ["result"],
    buckets=(0.001, 0.002, 0.005, 0.02, 0.1, 0.3, 1, 5, 30),
    registry=REGISTRY,
)
_GIVEN, _REFUSED = WAITED.labels("given"), WAITED.labels("refused")


UNREAD = "Unread"
"""Reason of a Problem: what decides about a pool cannot be read at the moment."""
REPLACED = "PodReplaced"
"""Reason of a Problem: the API server shows another pod of that name. (It may be behind, with static pods.)"""
_PASSING = (UNREAD, REPLACED)


class NoAddress(Exception):
    """No address: reason and sentence. passing: it may be another answer soon."""

    def __init__(self, reason: str, sentence: str, *, passing: bool = True) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.passing = passing


async def no_pool(_owner: Owner, asked: str | None, _uid: str = "") -> Mapping[str, frozenset[Version]] | Problem:
    """For modes without named pools."""
    return {asked or NO_POOL: frozenset()}


@dataclass(eq=False)
class _WaitingCall:
    owner: Owner
    pool: str
    versions: frozenset[Version]
    elsewhere: Mapping[Version, str]
    uid: str
    since: float
    served: asyncio.Future[tuple[Address, ...]]
    shortage: Shortage


@dataclass(eq=False)
class AddressService:
    """See the module.

    pool_of:     which pool an owner is to get that names none.
    versions_of: the address families of a pool; none where that is not known yet.
    explain:     a shortage as a sentence: to an owner; with None about the node, and equal for all owners.
    obstacle:    why nothing can be given yet, as a sentence; "" if it can.
    twin:        that another machine gives of the same, as a sentence; "" while none does.
    check_idle:  raises NoAddress where something lives by what an owner has, so that nobody may free it by hand.
    listeners:   called when the need of some pool may be different.
    changed:     called when `unwritable` or `failed` may be.
    why:         why a pod has what it has, or nothing; None: nobody knows.
    missed:      called with an owner that released, and had nothing.
    """

    allocator: NodeAllocator
    checkpoint: Checkpoint
    versions_of: Callable[[str], frozenset[Version]]
    explain: Callable[[Owner | None, Shortage], str]
    pool_of: PoolOf = no_pool
    clock: Callable[[], float] = boottime
    obstacle: str = "the agent has just begun: what it gave before is still being read."
    twin: Callable[[], str] = lambda: ""
    check_idle: Callable[[Owner], None] = lambda owner: None
    listeners: list[Callable[[], None]] = field(default_factory=list)
    changed: Callable[[], None] = lambda: None
    why: Callable[[str], Awaitable[msgspec.Struct]] | None = None
    missed: Callable[[Owner], None] = lambda owner: None

    def __post_init__(self) -> None:
        self.begun = False
        """Whether what an earlier life wrote down is taken in."""
        self.unwritable = ""
        """Why nothing can be written down, as a sentence; "" if it can."""
        self.failed: dict[tuple[str, frozenset[Version]], tuple[float, str]] = {}
        """By pool and families, who waited in vain last: when, and the sentence."""
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._waiters: list[_WaitingCall] = []
        self._choosing: Counter[Owner] = Counter()
        """Whose pools are looked for, and how often; and who of them was released meanwhile."""
        self._released: set[Owner] = set()
        self._writes: list[asyncio.Future[None]] = []
        self._writing: asyncio.Handle | None = None
        self._serving: asyncio.Handle | None = None
        self._rested = Alarm(self._serve_soon)
        self._told = Alarm(self._forget_failures)
        self.allocator.on_change = self._changed
        self.checkpoint.records = lambda: self.allocator.records(self.clock())

    # ------------------------------------------------------------------------------------------------------ requests

    async def allocate(
        self,
        owner: Owner,
        pool: str | None = None,
        families: frozenset[Version] = frozenset(),
        wait: float = WAIT_SECONDS,
        uid: str = "",
    ) -> OwnerHolding:
        """What the owner has from now on; uid: of the pod. Raises NoAddress."""
        began = self.clock()
        try:
            holding = await self._allocate(owner, pool, families, wait, uid)
        except NoAddress as refusal:
            self.failures[refusal.reason] += 1
            _REFUSED.observe(self.clock() - began)
            raise
        _GIVEN.observe(self.clock() - began)
        return holding

    async def _allocate(
        self, owner: Owner, pool: str | None, families: frozenset[Version], wait: float, uid: str
    ) -> OwnerHolding:
        self.check_giving()
        if self.allocator.holding(owner) is None:
            found = await self._chosen(owner, pool, uid)
            if isinstance(found, Problem):
                raise NoAddress(found.reason, str(found), passing=found.reason in _PASSING)
            pool, families, elsewhere = _split(found, families)
            versions = families or self.versions_of(pool)
            now = self.clock()
            got = self.allocator.allocate(owner, pool, versions, now, elsewhere, uid=uid)
            if isinstance(got, Shortage):
                served = asyncio.get_running_loop().create_future()
                await self._wait(_WaitingCall(owner, pool, families, elsewhere, uid, now, served, got), wait)
            self.counts["given"] += 1
            self._note_success({pool, *elsewhere.values()}, versions)
        elif uid:
            self.allocator.pin(owner, uid)
        holding = self.allocator.holding(owner)
        if holding is None:
            raise _released(owner)
        await self.written()
        return holding

    async def _chosen(self, owner: Owner, pool: str | None, uid: str) -> Mapping[str, frozenset[Version]] | Problem:
        """Its pools. Whoever is released meanwhile would be given some, and never release them. Raises NoAddress."""
        self._choosing[owner] += 1
        try:
            found = await self.pool_of(owner, pool, uid)
            if owner in self._released:
                raise _released(owner)
            return found
        finally:
            self._choosing[owner] -= 1
            if not self._choosing[owner]:
                del self._choosing[owner]
                self._released.discard(owner)

    async def release(self, owner: Owner, addresses: Collection[Address] | None = None) -> tuple[Address, ...]:
        """What the owner had and has no more. Raises NoAddress."""
        self.check()
        if owner in self._choosing:
            self._released.add(owner)
        for waiter in [each for each in self._waiters if each.owner == owner and not each.served.done()]:
            waiter.served.set_exception(_released(owner))  # else it would be given some, and never release them
        gone = self.allocator.release(owner, addresses, now=self.clock())
        await self.written()
        self.counts["released"] += bool(gone)
        if not gone:
            self.missed(owner)
        return gone

    async def collect(self, valid: Collection[tuple[str, str]]) -> tuple[Address, ...]:
        """What attachments (container, interface) had that are none any more. Who has no container is none of the
        CNI's, and keeps what it has. Raises NoAddress; nothing is freed then."""
        self.check()
        gone: list[Address] = []
        held = [owner for owner, _ in self.allocator.held() if owner.container]
        stale = [owner for owner in held if (owner.container, owner.interface) not in valid]
        for owner in stale:
            self.check_idle(owner)
        for owner in stale:
            gone += self.allocator.release(owner, now=self.clock())
            self.counts["released"] += 1
        await self.written()
        return tuple(gone)

    def begin(self) -> CheckpointFound | None:
        """Takes in what an earlier life wrote down; None where that has to be tried again: see `unwritable`."""
        try:
            found = self.checkpoint.open()
        except Unwritable as error:
            self._cannot_write(error)
            return None
        odd = self.allocator.restore(found.records, self.clock())
        self.begun = True
        self._write_now()
        return replace(found, lost=f"{odd} records contradict others", cause="damage") if odd else found

    def provide(self, supply: Supply) -> None:
        """From now on it gives of this."""
        self.allocator.provide(supply)

    def check(self) -> None:
        """Raises NoAddress where nothing can be given."""
        if self.unwritable and not self.obstacle:
            self._write_now()
        if self.unwritable:
            raise NoAddress("CheckpointUnwritable", self.unwritable)
        if self.obstacle:
            raise NoAddress("NotReady", self.obstacle)

    def check_giving(self) -> None:
        """Raises NoAddress where nothing can be given now; what was given may still be released."""
        self.check()
        if why := self.twin():
            raise NoAddress("TwoAgents", f"nothing is given, as both would give the same: {why}")

    # ------------------------------------------------------------------------------------------------------- waiting

    async def _wait(self, waiter: _WaitingCall, wait: float) -> None:
        self._waiters.append(waiter)
        self._look_when_rested(waiter.shortage)
        pressed = asyncio.get_running_loop().call_later(PRESSED_SECONDS + TIMER_SECONDS, self._serve_soon)
        try:
            async with asyncio.timeout(wait):
                await waiter.served
        except TimeoutError:
            self._note_failure(waiter.versions, waiter.shortage)
            raise NoAddress("AddressesExhausted", self.explain(waiter.owner, waiter.shortage)) from None
        finally:
            pressed.cancel()
            self._waiters.remove(waiter)

    def _note_failure(self, families: frozenset[Version], short: Shortage) -> None:
        key = short.pool, families or self.versions_of(short.pool)
        self.failed[key] = self.clock(), self.explain(None, short)
        self.changed()
        self._told.set(TOLD_SECONDS)

    def _note_success(self, pools: Collection[str], families: frozenset[Version]) -> None:
        ended = [key for key in self.failed if key[0] in pools and key[1] == families]
        for key in ended:
            del self.failed[key]
        if ended:
            self.changed()

    def _forget_failures(self) -> None:
        """The failure of who did not ask again counts no more."""
        now = self.clock()
        for key in [key for key, (at, _) in self.failed.items() if at + TOLD_SECONDS <= now]:
            del self.failed[key]
            self.changed()
        if self.failed:
            self._told.set(min(at for at, _ in self.failed.values()) + TOLD_SECONDS - now)

    def _look_when_rested(self, shortage: Shortage) -> None:
        """Whoever waits is looked at then, and sets it again: with an alarm for each who waits, at each look, there
        were 39,000 after 900 pods on a full node, and the agent was 50 MiB larger for half a minute."""
        if shortage.ready_at is not None:
            self._rested.set(shortage.ready_at - self.clock())

    def _serve_soon(self) -> None:
        if self._waiters and self._serving is None:
            self._serving = asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """First come, first served."""
        self._serving, now = None, self.clock()
        in_vain: dict[object, Shortage] = {}
        # Then others may go without.
        meant_for_some = any(each.owner for each in self.allocator.stock.supply.singles.values())
        for waiter in self._waiters:
            versions = waiter.versions or self.versions_of(waiter.pool)
            rest = self.allocator.rest_seconds
            if waiter.since + PRESSED_SECONDS <= now:
                rest = min(rest, LEAST_REST_SECONDS)
            like = waiter.pool, versions, tuple(waiter.elsewhere.items()), rest
            if waiter.served.done():
                continue
            if like in in_vain and self.allocator.holding(waiter.owner) is None:
                waiter.shortage = in_vain[like]
                continue
            got = self.allocator.allocate(
                waiter.owner, waiter.pool, versions, now, waiter.elsewhere, uid=waiter.uid, rest=rest
            )
            if isinstance(got, Shortage):
                waiter.shortage = got
                if waiter.pool != NO_POOL or not meant_for_some:
                    in_vain[like] = got
                self._look_when_rested(got)
            else:
                waiter.served.set_result(got)

    # ------------------------------------------------------------------------------------------------------- writing

    async def written(self) -> None:
        """Once all that the allocator has done so far is written down. Raises NoAddress."""
        if self.allocator.unwritten:
            done = asyncio.get_running_loop().create_future()
            self._writes.append(done)
            self._write_soon()
            await done

    def _write_soon(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        """What all who wait have to have written, in one piece."""
        self._writing = None
        waiting, self._writes = self._writes, []
        self._write_now()
        for done in waiting:
            if done.done():
                continue
            if self.unwritable:
                done.set_exception(NoAddress("CheckpointUnwritable", self.unwritable))
            else:
                done.set_result(None)

    def _write_now(self) -> None:
        try:
            self.checkpoint.append(self.allocator.unwritten)
        except Unwritable as error:
            self._cannot_write(error)
            return
        self.allocator.unwritten.clear()
        if self.unwritable:
            log.info("the checkpoint of addresses can be written again")
            self.unwritable = ""
            self.changed()

    def _cannot_write(self, why: Unwritable) -> None:
        before = self.unwritable
        so = (
            "No pod of this node gets an address meanwhile: it would be forgotten, and given to another. Make room "
            "there, or name another directory by --state-dir."
        )
        if isinstance(why, InUse):  # two with a checkpoint each would give the same addresses
            so = "This one gives no addresses, as both would give the same. Stop one of the two agents of this machine."
        self.unwritable = f"{self.checkpoint.path} cannot be written: {why}. {so}"
        if before != self.unwritable:
            log.warning("no address is given out", why=self.unwritable)
            self.changed()

    def _changed(self) -> None:
        self._serve_soon()
        if self.allocator.unwritten:
            self._write_soon()
        for listener in self.listeners:
            listener()


def _split(
    found: Mapping[str, frozenset[Version]], asked: frozenset[Version]
) -> tuple[str, frozenset[Version], dict[Version, str]]:
    """The first pool; the families, of which only those that are asked for count; those of other pools, by family."""
    (pool, versions), *others = found.items()
    elsewhere = {version: name for name, of in others for version in of}
    families = frozenset((*versions, *elsewhere))
    if asked and families and not asked & families:
        raise NoAddress("NoSuchFamily", f"pool {pool} gives no address of that family.", passing=False)
    return pool, asked & families if asked and families else asked or families, elsewhere


def _released(owner: Owner) -> NoAddress:
    return NoAddress("Released", f"{owner.name} was released while it waited for an address.")
