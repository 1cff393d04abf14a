"""Gathers what agents say of each NetloomPrefilter into its status: on how many nodes it runs, where it fails and why.

Every agent watches prefilters, so a write costs as much as there are nodes. It is a look at the caches every few
seconds, with nothing to do for an event: while 5,000 nodes take a change over, their counts are told a few times. That
a condition is another is told at the next look, but not for ever of a node that fails and runs in turns: each prefilter
has a few writes in hand, and gets another one a minute. All of them together write no more than agents can be sent.
"""

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import ClassVar

import msgspec
import structlog

from netloom.api.core import NODES
from netloom.api.meta import DATAPLANE_READY, READY, Condition
from netloom.api.participation import chosen, takes_part
from netloom.api.prefilter import (
    NetloomPrefilter,
    NodeFilter,
    NodePrefilter,
    PrefilterFailure,
    PrefilterNodes,
    PrefilterStatus,
)
from netloom.api.prefilter_verdict import NO_NODES
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, PREFILTERS, NetloomNode
from netloom.runtime.allowance import Allowance, Pace
from netloom.runtime.errors import ApiError, Unavailable
from netloom_reconcilers.cluster.allocation.incarnation import netloom_node_changed, node_changed
from netloom_reconcilers.cluster.health import sending_pace
from netloom_reconcilers.conditions import OPERATOR, Conditions, Readiness
from netloom_reconcilers.features.cluster import ClusterContext, Told
from netloom_reconcilers.signs_of_life import NOT_HEARD_OF

log = structlog.get_logger(__name__)

LOOK_SECONDS, LOOK_SECONDS_PER_NODE = 5.0, 0.002
"""Between looks at the caches, and what each of many nodes makes of it."""
RETELL_SECONDS = 30.0
"""How soon counts and words are told again of which the conditions say the same."""
PACE = Pace(most=4, seconds=60.0)
"""Times that a prefilter's status is told at once, and after how long once more. A spec that changes begins anew."""
FAILURES, PROBLEMS, LONGEST = 8, 16, 1024
"""Of the CRD."""
_NAMED = 3
WHOLE = "Whole"
"""Type of the second condition."""
WHOLE_MANAGER = "netloom-operator-whole"
"""Its field manager: what one manager applied and does not list again goes."""


class Gathered(msgspec.Struct, frozen=True):
    """How a prefilter fares. ready, whole: for its conditions."""

    nodes: PrefilterNodes
    ipv4_entries: int
    ipv6_entries: int
    withheld: int
    failures: tuple[PrefilterFailure, ...]
    problems: tuple[str, ...]
    ready: Readiness
    whole: Readiness


def gathered(prefilter: NetloomPrefilter, selected: Iterable[str], said: Mapping[str, NodeFilter]) -> Gathered:
    """Of the names of the Nodes that it selects, and what these say of it. Pure."""
    names = sorted(selected)
    reports = {name: said[name] for name in names if name in said}
    failed = {name: each for name, each in reports.items() if each.error}
    active = [each for each in reports.values() if _holds(prefilter, each)]
    failures = tuple(PrefilterFailure(name, each.error[:LONGEST]) for name, each in failed.items())[:FAILURES]
    awaited = (name for name in names if name not in failed and not _holds(prefilter, reports.get(name)))
    problems: dict[str, str] = {}
    for name, each in reports.items():
        for problem in each.problems:
            problems.setdefault(problem, f"on {name}: {problem}"[:LONGEST])
    return Gathered(
        PrefilterNodes(selected=len(names), active=len(active), failed=len(failed)),
        max((each.ipv4_entries for each in active or reports.values()), default=0),
        max((each.ipv6_entries for each in active or reports.values()), default=0),
        max((each.withheld for each in reports.values()), default=0),
        failures,
        tuple(problems.values())[:PROBLEMS],
        _ready(len(names), failures, len(failed), tuple(islice(awaited, _NAMED + 1))),
        _whole(tuple(problems.values()), reports.values()),
    )


def _holds(prefilter: NetloomPrefilter, said: NodeFilter | None) -> bool:
    return said is not None and not said.error and said.generation == prefilter.metadata.generation


def _ready(selected: int, failures: tuple[PrefilterFailure, ...], failed: int, awaited: tuple[str, ...]) -> Readiness:
    """awaited: the first nodes that neither run it nor fail. No counts, which are beside it."""
    if failed:
        named = " ".join(f"On {each.node}: {each.message}" for each in failures[:_NAMED])
        return Readiness(
            False, "NodesFailed", named if failed <= _NAMED else f"{named} And on others: see status.failures."
        )
    if not selected:
        return Readiness(
            None, NO_NODES, "No Node that is Netloom's has the labels of spec.nodeSelector, so it drops nothing."
        )
    if awaited:
        others = " and others" if len(awaited) > _NAMED else ""
        return Readiness(
            False,
            "Waiting",
            f"Nothing says that it runs on {', '.join(awaited[:_NAMED])}{others}. Where that lasts, `netloom status` "
            "says whether their agents live; one that is older, or has the feature prefilter off, runs none.",
        )
    return Readiness(True, "Active", "It runs on every node that it selects.")


def _whole(problems: tuple[str, ...], reports: Iterable[NodeFilter]) -> Readiness:
    if not problems:
        return Readiness(True, "Whole", "All that it says is active where it runs.")
    reasons = {"Withheld": False, "BadLines": False}
    for each in reports:
        reasons["Withheld"] |= each.withheld > 0
        reasons["BadLines"] |= each.bad_lines > 0
    reason = next((name for name, so in reasons.items() if so), "NotWhole")
    more = " And more: see status.problems." if len(problems) > _NAMED else ""
    return Readiness(False, reason, " ".join(problems[:_NAMED]) + more)


class _Record:
    """What is known of a prefilter from the looks before. told: when it was."""

    def __init__(self, prefilter: NetloomPrefilter, now: float) -> None:
        self.uid = prefilter.metadata.uid
        self.generation = prefilter.metadata.generation
        self.selected: tuple[str, ...] = ()
        self.found: Gathered | None = None
        self.told = float("-inf")
        self.allowance = Allowance(now, PACE.most)

    def is_of(self, prefilter: NetloomPrefilter) -> bool:
        """Whether it is still the same object with the same spec."""
        return (self.uid, self.generation) == (prefilter.metadata.uid, prefilter.metadata.generation)


@dataclass(slots=True)
class _Memory:
    """records: by prefilter. said: what each node said at the last look, as objects of the cache."""

    records: dict[str, _Record] = field(default_factory=dict)
    said: dict[str, NodePrefilter | None] = field(default_factory=dict)


class Prefilters:
    """The work of one term."""

    fault = ""

    def __init__(self, feature: "PrefiltersFeature", clock: Callable[[], float] = time.monotonic) -> None:
        self._caches = feature
        self._clock = clock
        api, events = feature.context.api, feature.context.events
        self._ready = Conditions(api, events, OPERATOR)
        self._whole = Conditions(api, events, WHOLE_MANAGER)
        self._allowance = Allowance(clock(), math.inf)
        self._memory = _Memory()

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        for store in (self._caches.prefilters, self._caches.nodes, self._caches.netloom_nodes):
            await store.wait_synced()
        while True:
            try:
                await self.turn()
            except ApiError as error:
                log.warning("how prefilters fare is not told", error=str(error))
            await asyncio.sleep(max(LOOK_SECONDS, LOOK_SECONDS_PER_NODE * len(self._caches.nodes)))

    def look(self) -> None:
        """Crashes are told by others."""

    async def tell_crash(self, crash: str) -> None:
        """They are told of the network."""

    async def turn(self) -> None:
        """One look at the caches, and what is to be written by it."""
        prefilters = {each.metadata.name: each for each in self._caches.prefilters.values()}
        if not prefilters:
            self._memory = _Memory()
            return
        self._note(prefilters, await self._selected(prefilters.values()))
        records = self._memory.records
        said = self._said([name for name, record in records.items() if record.found is None])
        for name, prefilter in prefilters.items():
            record = records[name]
            if record.found is None:
                record.found = gathered(prefilter, record.selected, said[name])
                await asyncio.sleep(0)
            try:
                await self._tell(prefilter, record, record.found)
            except Unavailable:
                raise
            except ApiError as error:  # it is refused of this one, and others are told all the same
                log.warning("how a prefilter fares is not told", prefilter=name, error=str(error))

    async def _selected(self, prefilters: Iterable[NetloomPrefilter]) -> dict[bytes, tuple[str, ...]]:
        """Names of Nodes, in order, by selector: many prefilters have the same."""
        network = self._caches.networks.get(NETWORK_NAME)
        nodes = sorted(
            (each for each in self._caches.nodes.values() if takes_part(each, network)),
            key=lambda node: node.metadata.name,
        )
        found: dict[bytes, tuple[str, ...]] = {}
        for selector in (each.spec.node_selector for each in prefilters):
            if (key := msgspec.json.encode(selector)) not in found:
                found[key] = tuple(each.metadata.name for each in nodes if chosen(each.metadata.labels, selector))
                await asyncio.sleep(0)
        return found

    def _note(self, prefilters: Mapping[str, NetloomPrefilter], selected: Mapping[bytes, tuple[str, ...]]) -> None:
        """`found` of those of which anything is different is None afterwards."""
        memory, before = self._memory, self._memory.said
        memory.said = {each.metadata.name: _said(each) for each in self._caches.netloom_nodes.values()}
        differs = {name for name in before.keys() | memory.said.keys() if before.get(name) is not memory.said.get(name)}
        changed = {each.name for name in differs for said in (before, memory.said) for each in _filters(said.get(name))}
        records: dict[str, _Record] = {}
        for name, prefilter in prefilters.items():
            known = memory.records.get(name)
            if known is None or not known.is_of(prefilter):
                known = _Record(prefilter, self._clock())
            record = records[name] = known
            names = selected[msgspec.json.encode(prefilter.spec.node_selector)]
            if name in changed or record.selected != names:
                record.selected, record.found = names, None
        memory.records = records

    def _said(self, prefilters: Iterable[str]) -> dict[str, dict[str, NodeFilter]]:
        """What nodes say, by prefilter and node."""
        found: dict[str, dict[str, NodeFilter]] = {name: {} for name in prefilters}
        for node, said in self._memory.said.items() if found else ():
            for each in _filters(said):
                if each.name in found:
                    found[each.name][node] = each
        return found

    async def _tell(self, prefilter: NetloomPrefilter, record: _Record, found: Gathered) -> None:
        store, now = self._caches.prefilters, self._clock()
        if not self._is_due(prefilter.status, record, found, now):
            return
        record.told = now
        record.allowance.take()
        self._allowance.take()
        stored = await self._ready.set(
            PREFILTERS,
            prefilter,
            READY,
            found.ready,
            observes=True,
            nodes=found.nodes,
            ipv4_entries=found.ipv4_entries,
            ipv6_entries=found.ipv6_entries,
            withheld=found.withheld,
            failures=found.failures,
        )
        if stored is not None:
            store.put(stored)
        stored = await self._whole.set(PREFILTERS, stored or prefilter, WHOLE, found.whole, problems=found.problems)
        if stored is not None:
            store.put(stored)

    def _is_due(self, status: PrefilterStatus, record: _Record, found: Gathered, now: float) -> bool:
        conditions = {each.type: each for each in status.conditions}
        ready, whole = conditions.get(READY), conditions.get(WHOLE)
        if ready is not None and whole is not None:
            judged = (ready.reason, whole.reason, ready.observed_generation)
            if judged == (found.ready.reason, found.whole.reason, record.generation) and (
                _is_told(status, ready, whole, found) or now < record.told + RETELL_SECONDS
            ):
                return False
        return not (
            record.allowance.wait(now, PACE) or self._allowance.wait(now, sending_pace(len(self._caches.nodes)))
        )


def _is_told(status: PrefilterStatus, ready: Condition, whole: Condition, found: Gathered) -> bool:
    counts = ("nodes", "ipv4_entries", "ipv6_entries", "withheld", "failures", "problems")
    words = (ready.message, whole.message) == (found.ready.message, found.whole.message)
    return words and all(getattr(status, each) == getattr(found, each) for each in counts)


def _said(node: NetloomNode) -> NodePrefilter | None:
    """None of an agent that is silent: what it said last may be long over."""
    silent = any(each.type == DATAPLANE_READY and each.reason == NOT_HEARD_OF for each in node.status.conditions)
    return None if silent else node.status.prefilter


def trimmed(node: NetloomNode) -> NetloomNode:
    """What the operator keeps of a node's word on prefilters. 5,000 with the same lists say the same, with all lines
    that are wrong, so it is kept once (4 MiB instead of 32). Counts of packets are of no use here."""
    said = node.status.prefilter
    if said is None:
        return node
    filters = tuple(msgspec.structs.replace(each, packets=0, bytes=0) for each in said.filters)
    conditions = tuple(
        msgspec.structs.replace(each, message=sys.intern(each.message)) for each in node.status.conditions
    )
    kept = _same(NodePrefilter(said.devices, filters))
    return msgspec.structs.replace(
        node, status=msgspec.structs.replace(node.status, prefilter=kept, conditions=conditions)
    )


@lru_cache(maxsize=256)
def _same(said: NodePrefilter) -> NodePrefilter:
    return said


def _filters(said: NodePrefilter | None) -> tuple[NodeFilter, ...]:
    return said.filters if said is not None else ()


class PrefiltersFeature:
    """What agents say of prefilters, gathered, as a feature of the operator."""

    name: ClassVar[str] = "prefilters"
    told: ClassVar[Told] = ((PREFILTERS, (OPERATOR, WHOLE_MANAGER)),)

    def __init__(self, context: ClusterContext) -> None:
        self.context, caches = context, context.caches
        self.prefilters = caches.store(PREFILTERS, optional=True)
        self.nodes = caches.store(NODES, node_changed)
        self.netloom_nodes = caches.store(NETLOOM_NODES, netloom_node_changed)
        self.networks = caches.store(NETWORKS)

    def begin(self) -> Prefilters:
        """A new term."""
        return Prefilters(self)
