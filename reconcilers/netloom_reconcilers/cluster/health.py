"""Whether the agents live, and what is wrong with the cluster as a whole, told where people and alerts look.

- A NetloomNode whose agent is silent, or was never there although the node holds addresses, gets
  `DataplaneReady=Unknown`, as the Node of a silent kubelet does. The agent takes that back when it returns.
- The verdict that `netloom status` prints is the NetloomNetwork's condition `Degraded`, with counts, and metrics.

Every agent is sent each write of a NetloomNode, so what may be written follows from how many there are; where most
agents of a large cluster fall silent at once, something else is broken than their nodes, and it is a tenth of that.
(kube-controller-manager deals with Nodes alike.) That one is silent the cache alone is not believed: its Lease is read
before its node is told so. All this is a look at the caches every few seconds, with nothing to do for an event.
"""

import asyncio
from collections.abc import Callable, Iterator, Set
from typing import ClassVar, NamedTuple

import structlog

from netloom.api import prefilter_verdict
from netloom.api.cluster_facts import AGENT_LABEL, ClusterFacts, Sign, Unseen, agent_lease
from netloom.api.coordination import LEASES, Lease
from netloom.api.core import NODES, Node
from netloom.api.holdings import holds
from netloom.api.meta import DATAPLANE_READY, condition_of
from netloom.api.participation import takes_part
from netloom.api.prefilter import NetloomPrefilter
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, PREFILTERS, NetloomNetwork, NetloomNode
from netloom.api.verdict import Verdict, judge
from netloom.runtime.allowance import Allowance, Pace
from netloom.runtime.cancellation import last_words
from netloom.runtime.clock import boottime, timestamp
from netloom.runtime.errors import ApiError, NotFound, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.cluster.agents_heard import AgentsHeard
from netloom_reconcilers.cluster.allocation.incarnation import netloom_node_changed, node_changed
from netloom_reconcilers.cluster.summary import METRICS, Summary
from netloom_reconcilers.conditions import HEALTH, Conditions, Readiness
from netloom_reconcilers.features.cluster import ClusterContext, Told
from netloom_reconcilers.signs_of_life import NOT_HEARD_OF

log = structlog.get_logger(__name__)

LOOK_SECONDS, LOOK_SECONDS_PER_NODE = 5.0, 0.002
"""Between looks at the caches, and what each of many nodes makes of it. One at 5,000 nodes costs 60 ms."""
LATE_SECONDS = 5.0
"""A look, or an answer, that is later by so much: this process or the API server stood still, and nothing was heard."""
SENT_PER_SECOND = 5000.0
"""Conditions that agents may be sent: one a second to 5,000 of them."""
MARKS_PER_SECOND = 10.0
"""And no more conditions than this in any cluster."""
SAVED_SECONDS = 10.0
"""For so long, what was not used up is kept."""
LARGE, MOST, CAUTION = 50, 0.55, 0.1
"""In a cluster of more nodes than this, where more than this part is silent, so much of the rate is used."""


def sending_pace(nodes: int, silent: int = 0) -> Pace:
    """Of writes of which every agent is told, by how many nodes there are; with most of these `silent`, fewer."""
    rate = min(MARKS_PER_SECOND, SENT_PER_SECOND / max(nodes, 1))
    if nodes > LARGE and silent > MOST * nodes:
        rate *= CAUTION
    return Pace(max(1.0, rate * SAVED_SECONDS), 1 / rate)


class HealthCaches(NamedTuple):
    """Somebody else fills them. `fault` says why the Leases cannot be relied on now."""

    nodes: Store[Node]
    netloom_nodes: Store[NetloomNode]
    networks: Store[NetloomNetwork]
    leases: Store[Lease]
    prefilters: Store[NetloomPrefilter]
    fault: Callable[[], str]


class Health:
    """The work of one term."""

    fault = ""

    def __init__(self, context: ClusterContext, caches: HealthCaches, clock: Callable[[], float] = boottime) -> None:
        self._context = context
        self._caches = caches
        self._clock = clock
        self._heard = AgentsHeard(caches.leases, context.lease_namespace, clock, context.grace_period)
        self._conditions = Conditions(context.api, context.events, HEALTH)
        self._allowance = Allowance(clock(), 0)
        self._looked_at = clock()
        self._deaf = ""
        self._since = timestamp(context.api.clock.now())
        self.summary = Summary(caches.networks, self._conditions, clock)

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        for store in (self._caches.nodes, self._caches.netloom_nodes, self._caches.networks):
            await store.wait_synced()
        leave = self._heard.listen()
        self._looked_at = self._clock()
        try:
            while True:
                await self.turn()
                await asyncio.sleep(self._pause)
        finally:
            leave()
            METRICS.verdict = None

    @property
    def _pause(self) -> float:
        """Between two looks."""
        least = min(LOOK_SECONDS, self._context.grace_period / 8)
        return max(least, LOOK_SECONDS_PER_NODE * len(self._caches.nodes))

    async def turn(self) -> None:
        """One look at the caches, and what is to be written by it."""
        self._listen()
        self._heard.expect(set(self._caches.netloom_nodes))  # without one, an agent has no Lease
        verdict = METRICS.verdict = self._verdict()
        for tell in (self._mark, lambda: self.summary.tell(verdict)):
            try:
                await tell()
            except ApiError as error:
                log.warning("what is wrong with the cluster is not told", error=str(error))

    def look(self) -> None:
        """Crashes are told by others."""

    async def tell_crash(self, crash: str) -> None:
        """That nothing is known of the cluster as a whole any more."""
        try:
            async with last_words(LATE_SECONDS):
                await self.summary.tell_crash(crash)
        except (ApiError, TimeoutError) as error:
            log.warning("the crash is not told", error=str(error) or "no answer")

    def _listen(self) -> None:
        now = self._clock()
        deaf = self._caches.fault()
        if deaf or now > self._looked_at + self._pause + LATE_SECONDS:
            self._heard.nothing_heard()
        self._looked_at = now
        if bool(deaf) != bool(self._deaf):
            say = log.warning if deaf else log.info
            say("agents cannot be heard" if deaf else "agents can be heard", why=deaf)
        self._deaf = deaf

    def _verdict(self) -> Verdict:
        context, caches = self._context, self._caches
        now = timestamp(context.api.clock.now())
        network = caches.networks.get(NETWORK_NAME)
        return judge(
            ClusterFacts(
                nodes=caches.nodes.values(),
                netloom_nodes=caches.netloom_nodes.values(),
                network=network,
                left_out=lambda node: not takes_part(node, network),
                agents=Unseen(self._deaf) if self._deaf else self._heard.signs(),
                operator=Sign(context.identity or "this one", self._since, now, LOOK_SECONDS, alive=True),
                namespace=context.lease_namespace,
                more=prefilter_verdict.problems(caches.prefilters.values()),
            )
        )

    # Nodes whose agents are silent

    async def _mark(self) -> None:
        if self._deaf:
            return
        silent = self._heard.silent()
        now, pace = self._clock(), sending_pace(len(self._caches.netloom_nodes), len(silent))
        for obj in self._to_mark(silent):
            if not self._allowance.take_if_any(now, pace) or not await self._mark_silent(obj):
                return

    def _to_mark(self, silent: Set[str]) -> Iterator[NetloomNode]:
        for name in silent:
            obj = self._caches.netloom_nodes.get(name)
            if obj is None or not holds(obj.spec.ipam) or name not in self._caches.nodes:
                continue
            told = condition_of(obj.status.conditions, DATAPLANE_READY)
            if told is None or (told.status, told.reason) != ("Unknown", NOT_HEARD_OF):
                yield obj

    async def _mark_silent(self, obj: NetloomNode) -> bool:
        """Whether others may be told so, too: not where the API server is slow, so that agents cannot be heard."""
        name, asked = obj.metadata.name, self._clock()
        try:
            why = await self._why_silent(name)
        except ApiError:
            self._heard.nothing_heard()
            raise
        if self._clock() > asked + LATE_SECONDS:
            self._heard.nothing_heard()
            return False
        if why:
            readiness = Readiness(None, NOT_HEARD_OF, why, warns=True)
            try:
                written = await self._conditions.set(NETLOOM_NODES, obj, DATAPLANE_READY, readiness)
            except Unavailable:
                raise
            except ApiError as error:  # it is refused of this one, and others are told all the same
                log.warning("a node is not told that its agent is silent", node=name, error=str(error))
                return True
            if written is not None:
                self._caches.netloom_nodes.put(written)
        return True

    async def _why_silent(self, name: str) -> str:
        """What is to be said of a node whose agent is silent; "" if it is not, or if there is no such node any more."""
        api, namespace = self._context.api, self._context.lease_namespace
        try:
            lease = await api.get(LEASES, agent_lease(name), namespace)
            self._caches.leases.put(lease)
            if not self._heard.is_silent(name):
                return ""
        except NotFound:
            pass
        try:
            node = await api.get(NODES, name)
        except NotFound:
            return ""
        sign = self._heard.sign(name)
        if sign is None:
            why = (
                f"The agent of this node was never heard of: there is no Lease {namespace}/{agent_lease(name)}. "
                "So nobody knows whether packets of its pods pass. "
            )
            running = (
                f"Run `netloom agent` on node {name}; where one runs, it needs --lease-namespace={namespace} as the "
                "operator, its log says why it does not write the Lease, and one of a version before this operator's "
                "has to be updated."
            )
        else:
            why = (
                f"The agent of this node was last heard of at {sign.heard}, and {sign.seconds:g} s of silence are "
                "allowed. So nobody knows whether its data path is whole. "
            )
            running = f"Look whether `netloom agent` runs on node {name}, and whether it reaches the API server."
        if node.status.ready.status in ("", "True"):
            return why + running
        return f"{why}Node {name} is not ready, either: see to the machine, or delete the Node if it is gone for good."


class HealthFeature:
    """The signs of life and the verdict as a feature of the operator."""

    name: ClassVar[str] = "health"
    told: ClassVar[Told] = ((NETWORKS, (HEALTH,)),)
    """What it says of nodes, their agents take back."""

    def __init__(self, context: ClusterContext) -> None:
        self._context, caches = context, context.caches
        leases = caches.store(
            LEASES,
            namespace=context.lease_namespace,
            label_selector=f"{AGENT_LABEL}=true",
            optional=True,
        )
        self._caches = HealthCaches(
            nodes=caches.store(NODES, node_changed),
            netloom_nodes=caches.store(NETLOOM_NODES, netloom_node_changed),
            networks=caches.store(NETWORKS),
            leases=leases,
            prefilters=caches.store(PREFILTERS, optional=True),
            fault=lambda: caches.fault(LEASES),
        )

    def begin(self) -> Health:
        """A new term: nothing is known of who was heard of."""
        return Health(self._context, self._caches)
