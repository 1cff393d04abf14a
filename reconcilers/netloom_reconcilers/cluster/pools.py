"""Tells how each NetloomIPPool fares: counts and condition `Ready` (and by that an Event) before it is full and when it
is, and metrics.

All agents of a cluster with pools watch them, so counts alone are written seldom; what the condition says, at once.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta

from netloom.api.meta import READY
from netloom.api.pool_choice import families_of
from netloom.api.problem import Problem, Severity
from netloom.api.v1alpha1 import POOLS, NetloomIPPool, NetloomNode
from netloom.api.v1alpha1 import PoolUsage as Counts
from netloom.api.validation.pool import validate_pool
from netloom.cidr import VERSIONS, Cidr, Version
from netloom.ipam.settings import PoolSettings, Settings
from netloom.ipam.trend import Trend
from netloom.runtime.clock import timestamp
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member, PoolsAffected, pool_changed
from netloom_reconcilers.cluster.allocation.metrics import POOL_METRICS, PoolSample
from netloom_reconcilers.cluster.overlaps import CONNECTED, NODES, SERVICES, About, Ranges, odd, overlaps, ranges_of
from netloom_reconcilers.cluster.pool_usage import PoolCounts
from netloom_reconcilers.conditions import Readiness, said

RETELL_SECONDS = 30.0
"""How soon counts are told again of which the condition says the same. 5,000 agents are sent each of these writes."""
COUNT_SECONDS = 1.0
"""How soon a pool's blocks are counted again, at the earliest: 40,000 take 0.1 s."""
COUNT_SHARE = 0.02
"""Of the time that counting may take, while nodes come and go."""
NEARLY_FULL = 0.9
"""Part of the blocks in use from which a pool is nearly full."""
SOON = timedelta(hours=24)
"""A pool that will be full by then is nearly full, too."""
FORESEEN = timedelta(days=30)
"""A later end is none that anybody plans for."""
ROUGHLY = 0.25
"""Part of the time that is left by which it may be wrong without being told anew."""
SPARE_TAKERS = 8
_MOST = 2**53 - 1
_SHOWN = 3
_NOT_IN_USE = "NotInUse"


class PoolsReconciler(Member):
    """One key is one pool's name."""

    def __init__(self, incarnation: Incarnation, configuration: AllocationConfiguration) -> None:
        super().__init__(incarnation)
        self._configuration = configuration
        self._reserved = configuration.reserved
        self._usage = PoolCounts()
        self._trends: dict[tuple[str, Version], Trend] = {}
        self._told: dict[str, tuple[float, tuple[bool, str]]] = {}
        """When the pool's status was written, and what its condition said: status and reason."""
        self._counted: dict[str, float] = {}
        """From when on its blocks are counted again."""
        self._awaited: set[str] = set()
        """Pools that nodes changed since they were counted: another look at them is coming."""

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [self._netloom_nodes.subscribe(self._node_changed), self._pools.subscribe(self._pool_changed)]

    def settings_changed(self) -> None:
        """The pools are others, or the mode: all is counted again."""
        self._usage = PoolCounts(self._settings)
        for node in self._netloom_nodes.values():
            self._usage.note(node.metadata.name, node.spec.ipam)
        self._publish(PoolsAffected(tuple(self._pools)))

    def reserved_changed(self) -> None:
        """Other blocks are given to nobody than before."""
        if self._settings.pools:
            self._publish(PoolsAffected(tuple(self._pools)))

    def takers(self, freed: Collection[Cidr]) -> list[str]:
        """Nodes that blocks in these CIDRs are free for, and some more: one of them may not be able to take any."""
        found: list[str] = []
        for pool in self._settings.pools if self._settings.rules.from_pools else ():
            for family in pool.families:
                mine = [each for each in freed if any(each.overlaps(cidr) for cidr in family.cidrs)]
                if mine:
                    count = sum(1 << max(0, family.mask - cidr.length) for cidr in mine)
                    found += self._usage.takers(pool.name, family.version, count + SPARE_TAKERS)
        return found

    def _node_changed(self, key: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        if old is not None and new is not None and old.spec.ipam.pools == new.spec.ipam.pools:
            return
        if not self._settings.rules.from_pools:
            return
        names = self._usage.note(key, new.spec.ipam if new is not None else None) - self._awaited
        if names:  # where 5,000 nodes join, few: a pool is published once for each time that it is counted
            self._awaited |= names
            self._publish(PoolsAffected(names))

    def _pool_changed(self, key: str, old: NetloomIPPool | None, new: NetloomIPPool | None) -> None:
        if old is not None and (new is None or old.metadata.uid != new.metadata.uid):
            self._told.pop(key, None)
        if new is None:
            self._counted.pop(key, None)
            for version in VERSIONS:
                self._trends.pop((key, version), None)
            POOL_METRICS.forget(key)
        elif old is None or pool_changed(old, new):
            self._counted.pop(key, None)
            self._publish(PoolsAffected((key,)))

    async def reconcile(self, name: str) -> float | None:
        """Tells how the pool fares, if that is not what it says, and if now is the time."""
        pool = self._pools.get(name)
        settings = self._settings.pool(name)
        began = self._clock()
        if pool is not None and settings is not None and (wait := self._counted.get(name, began) - began) > 0:
            return wait
        self._awaited.discard(name)
        if pool is None:
            return None
        if settings is None:
            POOL_METRICS.forget(name)
            return await self._tell(pool, [_idle(pool, self._settings)])
        samples = [self._sample(settings, version) for version in families_of(pool)]
        self._counted[name] = began + max(COUNT_SECONDS, (self._clock() - began) / COUNT_SHARE)
        POOL_METRICS.note(name, len(self._usage.holders.get(name, ())), len(self._usage.short(name)), samples)
        full_at = self._full_at(pool, samples)
        return await self._tell(pool, list(self._problems(pool, settings, samples, full_at)), samples, full_at)

    async def _tell(
        self, pool: NetloomIPPool, problems: list[Problem], samples: Iterable[PoolSample] = (), full_at: str = ""
    ) -> float | None:
        name = pool.metadata.name
        problems.sort(key=lambda problem: problem.severity)
        good = all(problem.severity != "error" for problem in problems)
        reason = problems[0].reason if problems else "Ready"
        at, before = self._told.get(name, (-math.inf, None))
        if (good, reason) == before and (wait := at + RETELL_SECONDS - self._clock()) > 0:
            return wait
        sentences = [said(problem, problem.object) for problem in problems]
        message = " ".join(sentences) or "Nodes are given blocks of it."
        counts = {each.version: _counts(each) for each in samples}
        written = await self._conditions.set(
            POOLS,
            pool,
            READY,
            Readiness(good, reason, message, warns=any(problem.reason != _NOT_IN_USE for problem in problems)),
            ipv4=counts.get(4),
            ipv6=counts.get(6),
            nodes=len(self._usage.holders.get(name, ())),
            waiting=len(self._usage.short(name)),
            full_at=full_at,
        )
        self._told[name] = self._clock(), (good, reason)
        if written is not None:
            self._pools.put(written)
        return RETELL_SECONDS if any(each.seconds is not None for each in samples) else None

    # What there is to tell

    @property
    def _settings(self) -> Settings:
        return self._configuration.settings or Settings("")

    def _sample(self, pool: PoolSettings, version: Version) -> PoolSample:
        of = [each for each in self._allocator.blocks.usage(pool.name) if each.cidr.version == version]
        total, used, reserved = (sum(getattr(each, name) for each in of) for name in ("total", "used", "reserved"))
        trend = self._trends.setdefault((pool.name, version), Trend())
        trend.note(self._clock(), used)
        share = self._usage.of(pool.name, version)
        seconds = trend.seconds_to(total - reserved)
        return PoolSample(version, total, used, reserved, share.orphaned, share.addresses, share.needed, seconds)

    def _problems(
        self, pool: NetloomIPPool, settings: PoolSettings, samples: list[PoolSample], full_at: str
    ) -> Iterator[Problem]:
        """What keeps nodes from blocks of it, or soon will."""
        name = pool.metadata.name
        yield from validate_pool(pool)
        yield from (_overlap(name, each.cidr, each.other, each.pool) for each in settings.overlaps)
        yield from self._no_pods(settings)
        if settings.draining:
            message, way_out = "it is draining: nothing new is given of it.", "Set it to false to end that."
            yield Problem(f"NetloomIPPool {name}", "spec.draining", "true", "Draining", message, way_out)
            return
        short = sorted(self._usage.short(name))
        for sample in samples:
            if sample.free <= 0 and sample.total:
                yield _full(name, sample, short)
            elif nearly := _nearly(name, sample, full_at):
                yield nearly

    def _no_pods(self, settings: PoolSettings) -> Iterator[Problem]:
        """Its CIDRs that overlap what is no pod's."""
        reserved, of = self._allocator.blocks.reserved, self._reserved
        cidrs = [(f"spec.ipv{each.version}.cidrs", cidr) for each in settings.families for cidr in each.cidrs]
        whole = [cidr for _, cidr in cidrs if (around := reserved.overlap(cidr)) and around.contains(cidr)]
        about = About(f"NetloomIPPool {settings.name}", "Pool")
        kinds = (
            (SERVICES, Ranges(reserved, of.services.known)),
            (CONNECTED, Ranges(reserved, ranges_of(of.networks))),
            (NODES, Ranges(reserved, ranges_of(of.addresses))),
        )
        for kind, ranges in kinds:
            yield from overlaps(kind, ranges, cidrs, (), about, whole)
        if unusual := of.odd:
            yield from odd([each for each in ranges_of(of.networks) if each.cidr in unusual], cidrs, about)

    def _full_at(self, pool: NetloomIPPool, samples: Iterable[PoolSample]) -> str:
        """What was told stays as long as it is about right: each write goes to all agents."""
        left = min((each.seconds for each in samples if each.seconds is not None), default=math.inf)
        if left > FORESEEN.total_seconds():
            return ""
        now = self._api.clock.now()
        at, told = now + timedelta(seconds=left), _moment(pool.status.full_at)
        if told is not None and abs((told - at).total_seconds()) <= max(60.0, ROUGHLY * left):
            return pool.status.full_at
        return timestamp(at.replace(second=0, microsecond=0))


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _counts(sample: PoolSample) -> Counts:
    return Counts(
        total=min(sample.total, _MOST),
        used=min(sample.used, _MOST),
        free=min(max(0, sample.free), _MOST),
        orphaned=sample.orphaned,
        addresses=min(sample.addresses, _MOST),
        addresses_needed=sample.needed,
    )


def _idle(pool: NetloomIPPool, settings: Settings) -> Problem:
    mode = f"IPAM mode is {settings.mode}" if settings.mode else "there is no NetloomNetwork"
    message = f"nothing is given of pools, as {'the ' if settings.mode else ''}{mode}."
    way_out = "Pools serve IPAM mode multi-pool."
    return Problem(f"NetloomIPPool {pool.metadata.name}", "", "", _NOT_IN_USE, message, way_out, "warning")


def _overlap(name: str, cidr: Cidr, other: Cidr, pool: str) -> Problem:
    message = f"it overlaps {other} of NetloomIPPool {pool}, which was there first, and nothing of it is given."
    way_out = "Take it out of one of the two; put another in its place."
    return Problem(f"NetloomIPPool {name}", f"spec.ipv{cidr.version}.cidrs", str(cidr), "PoolOverlap", message, way_out)


def _nearly(name: str, sample: PoolSample, full_at: str) -> Problem | None:
    usable = sample.total - sample.reserved
    soon = sample.seconds is not None and sample.seconds <= SOON.total_seconds()
    if not usable or (sample.used < NEARLY_FULL * usable and not soon):
        return None
    when = f", and at the present rate the pool is full at {full_at}" if sample.seconds is not None and full_at else ""
    message = f"{sample.used} of {usable} IPv{sample.version} blocks are in use{when}."
    way_out = f"Append a CIDR to spec.ipv{sample.version}.cidrs."
    return Problem(f"NetloomIPPool {name}", "", "", "NearlyFull", message, way_out, "warning")


def _full(name: str, sample: PoolSample, short: list[str]) -> Problem:
    reserved = f", or reserved ({sample.reserved})" if sample.reserved else ""
    message = f"all {sample.total} IPv{sample.version} blocks are in use{reserved}."
    severity: Severity = "warning"
    if short:
        names = ", ".join(short[:_SHOWN]) + (", ..." if short[_SHOWN:] else "")
        message += f" {len(short)} node{'s' if short[1:] else ''} ({names}) need more."
        severity = "error"
    way_out = f"Append a CIDR to spec.ipv{sample.version}.cidrs, or end pods that use it."
    return Problem(f"NetloomIPPool {name}", "", "", "PoolExhausted", message, way_out, severity)
