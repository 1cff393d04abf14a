"""Gathers what agents say of each NetloomPrefilter into its status: on how many nodes it runs, where it fails and why.

Every agent watches prefilters, so a write costs as much as there are nodes. It is a look at the caches every few
seconds, with nothing to do for an event: while 5,000 nodes take a change over, their counts are told a few times. What
a condition says is told at the next look.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import msgspec
import structlog

from netloom.api.core import NODES
from netloom.api.participation import chosen, takes_part
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORK_NAME,
    NETWORKS,
    PREFILTERS,
    NetloomPrefilter,
    NodeFilter,
    PrefilterFailure,
    PrefilterNodes,
)
from netloom.runtime.errors import ApiError
from netloom_reconcilers.cluster.allocation.incarnation import netloom_node_changed, node_changed
from netloom_reconcilers.conditions import OPERATOR, Conditions
from netloom_reconcilers.features.cluster import ClusterContext

log = structlog.get_logger(__name__)

LOOK_SECONDS, LOOK_SECONDS_PER_NODE = 5.0, 0.002
"""Between looks at the caches, and what each of many nodes makes of it."""
RETELL_SECONDS = 30.0
"""How soon counts are told again of which the conditions say the same."""
FAILURES, PROBLEMS, LONGEST = 8, 16, 1024
"""Of the CRD."""
_NAMED = 3
WHOLE = "netloom-operator-whole"
"""Field manager of the second condition: what one manager applied and does not list again goes."""


class Gathered(msgspec.Struct, frozen=True):
    """How a prefilter fares. ready, whole: as conditions, `Conditions.set` takes them: good, reason, message."""

    nodes: PrefilterNodes
    ipv4_entries: int
    ipv6_entries: int
    withheld: int
    failures: tuple[PrefilterFailure, ...]
    problems: tuple[str, ...]
    ready: tuple[bool | None, str, str]
    whole: tuple[bool | None, str, str]


def gathered(prefilter: NetloomPrefilter, selected: Iterable[str], said: Mapping[str, NodeFilter]) -> Gathered:
    """Of the names of the Nodes that it selects, and what these say of it. Pure."""
    names = sorted(selected)
    reports = {name: said[name] for name in names if name in said}
    failed = {name: each for name, each in reports.items() if each.error}
    active = [each for each in reports.values() if not each.error and each.generation == prefilter.metadata.generation]
    failures = tuple(PrefilterFailure(name, each.error[:LONGEST]) for name, each in failed.items())[:FAILURES]
    problems: dict[str, str] = {}
    for name, each in reports.items():
        for problem in each.problems:
            problems.setdefault(problem, f"on {name}: {problem}"[:LONGEST])
    return Gathered(
        PrefilterNodes(selected=len(names), active=len(active), failed=len(failed)),
        active[0].ipv4_entries if active else 0,
        active[0].ipv6_entries if active else 0,
        max((each.withheld for each in reports.values()), default=0),
        failures,
        tuple(problems.values())[:PROBLEMS],
        _ready(len(names), len(active), failures, len(failed)),
        _whole(tuple(problems.values()), reports.values()),
    )


def _ready(
    selected: int, active: int, failures: tuple[PrefilterFailure, ...], failed: int
) -> tuple[bool | None, str, str]:
    """No counts, which are beside it: it is written when it changes."""
    if failed:
        named = " ".join(f"On {each.node}: {each.message}" for each in failures[:_NAMED])
        return False, "NodesFailed", named if failed <= _NAMED else f"{named} And on others: see status.failures."
    if not selected:
        return None, "NoNodes", "No Node that is Netloom's has the labels of spec.nodeSelector."
    if active < selected:
        return False, "Waiting", "It does not run yet on every node that it selects: see status.nodes."
    return True, "Active", "It runs on every node that it selects."


def _whole(problems: tuple[str, ...], reports: Iterable[NodeFilter]) -> tuple[bool | None, str, str]:
    if not problems:
        return True, "Whole", "All that it says is active where it runs."
    reasons = {"Withheld": False, "BadLines": False}
    for each in reports:
        reasons["Withheld"] |= each.withheld > 0
        reasons["BadLines"] |= each.bad_lines > 0
    reason = next((name for name, so in reasons.items() if so), "NotWhole")
    more = " And more: see status.problems." if len(problems) > _NAMED else ""
    return False, reason, " ".join(problems[:_NAMED]) + more


class Prefilters:
    """The work of one term."""

    fault = ""

    def __init__(self, feature: "PrefiltersFeature", clock: Callable[[], float] = time.monotonic) -> None:
        self._caches = feature
        self._clock = clock
        api, events = feature.context.api, feature.context.events
        self._ready = Conditions(api, events, OPERATOR)
        self._whole = Conditions(api, events, WHOLE)
        self._counted: dict[str, float] = {}

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
        prefilters = self._caches.prefilters.values()
        self._counted = {each.metadata.name: self._counted.get(each.metadata.name, 0.0) for each in prefilters}
        if not prefilters:
            return
        network = self._caches.networks.get(NETWORK_NAME)
        nodes = [each for each in self._caches.nodes.values() if takes_part(each, network)]
        said: dict[str, dict[str, NodeFilter]] = {}
        for node in self._caches.netloom_nodes.values():
            for each in node.status.prefilter.filters if node.status.prefilter is not None else ():
                said.setdefault(each.name, {})[node.metadata.name] = each
        for prefilter in prefilters:
            selected = [
                node.metadata.name for node in nodes if chosen(node.metadata.labels, prefilter.spec.node_selector)
            ]
            await self._tell(prefilter, gathered(prefilter, selected, said.get(prefilter.metadata.name, {})))

    async def _tell(self, prefilter: NetloomPrefilter, found: Gathered) -> None:
        name, store = prefilter.metadata.name, self._caches.prefilters
        status, now = prefilter.status, self._clock()
        held = {each.type: (each.status, each.reason, each.message) for each in status.conditions}
        same = held.get("Ready", ())[1:] == found.ready[1:] and held.get("Whole", ())[1:] == found.whole[1:]
        counts = (status.nodes, status.ipv4_entries, status.ipv6_entries, status.withheld, status.failures)
        counted = (found.nodes, found.ipv4_entries, found.ipv6_entries, found.withheld, found.failures)
        if same and (
            (counts, status.problems) == (counted, found.problems) or now < self._counted[name] + RETELL_SECONDS
        ):
            return
        self._counted[name] = now
        stored = await self._ready.set(
            PREFILTERS,
            prefilter,
            "Ready",
            *found.ready,
            nodes=found.nodes,
            ipv4_entries=found.ipv4_entries,
            ipv6_entries=found.ipv6_entries,
            withheld=found.withheld,
            failures=found.failures,
        )
        if stored is not None:
            store.put(stored)
        stored = await self._whole.set(PREFILTERS, stored or prefilter, "Whole", *found.whole, problems=found.problems)
        if stored is not None:
            store.put(stored)


class PrefiltersFeature:
    """What agents say of prefilters, gathered, as a feature of the operator."""

    name: ClassVar[str] = "prefilters"

    def __init__(self, context: ClusterContext) -> None:
        self.context, caches = context, context.caches
        self.prefilters = caches.store(PREFILTERS, optional=True)
        self.nodes = caches.store(NODES, node_changed)
        self.netloom_nodes = caches.store(NETLOOM_NODES, netloom_node_changed)
        self.networks = caches.store(NETWORKS)

    def begin(self) -> Prefilters:
        """A new term."""
        return Prefilters(self)
