"""Tells the verdict on the cluster: condition `Degraded` and counts of the NetloomNetwork, and metrics.

All agents watch the network, so it is written seldom: what is wrong is told once it has been so for a moment, and that
is not every node that joins; other counts and examples of the same are told only now and then.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from netloom.api.cluster_facts import SUMMARY
from netloom.api.meta import condition_of
from netloom.api.v1alpha1 import NETWORK_NAME, NETWORKS, NetloomNetwork, NodeCounts
from netloom.api.verdict import Verdict
from netloom.runtime.metrics import REGISTRY, gauge
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Conditions, Readiness

SETTLE_SECONDS = 10.0
"""How long all must have been well, or something wrong, before that is told."""
RETELL_SECONDS = 10.0
"""How soon other reasons, words and counts are told. 5,000 agents are sent each of these writes."""
SHOWN = 5
"""Groups of problems that the message tells; `netloom status` tells all."""


class Metrics(Collector):
    """Of the verdict that was found last; nothing where this process does not lead."""

    verdict: Verdict | None = None

    def collect(self) -> Iterable[Metric]:
        """When somebody asks."""
        verdict = self.verdict
        if verdict is None:
            return
        degraded = (
            "1 while anything is wrong in the cluster, as in the NetloomNetwork's condition Degraded, but at once."
        )
        yield gauge("netloom_degraded", degraded, float(not verdict.healthy))
        problems: Counter[tuple[str, str]] = Counter()
        for each in sorted(verdict.problems, key=lambda problem: (problem.kind, problem.reason)):
            problems[each.kind, each.reason] += each.count
        yield gauge("netloom_problems", "What is wrong in the cluster.", problems, "kind", "reason")
        totals = verdict.totals
        nodes = {"total": totals.nodes, "ready": totals.ready, "waiting": totals.waiting}
        text = "Nodes of the cluster, by state; ready and waiting are part of total."
        yield gauge("netloom_nodes", text, nodes, "state")
        agents = {"alive": totals.agents_alive, "silent": totals.agents_silent, "never": totals.agents_never_seen}
        yield gauge("netloom_agents", "Agents, by whether they give signs of life.", agents, "state")


METRICS = Metrics()
REGISTRY.register(METRICS)


class Summary:
    """Writes to the NetloomNetwork, of one term."""

    def __init__(self, networks: Store[NetloomNetwork], conditions: Conditions, clock: Callable[[], float]) -> None:
        self._networks = networks
        self._conditions = conditions
        self._clock = clock
        self._healthy: bool | None = None
        self._since = self._told_at = -math.inf

    async def tell(self, verdict: Verdict) -> None:
        """If it is time. Raises ApiError."""
        network = self._networks.get(NETWORK_NAME)
        if network is None:
            return
        now = self._clock()
        if verdict.healthy != self._healthy:
            self._healthy, self._since = verdict.healthy, now
        held = condition_of(network.status.conditions, SUMMARY)
        same = held is not None and held.status == ("False" if verdict.healthy else "True")
        if now < (self._told_at + RETELL_SECONDS if same else self._since + SETTLE_SECONDS):
            return
        totals = verdict.totals
        counts = NodeCounts(
            total=totals.nodes,
            ready=totals.ready,
            waiting=totals.waiting,
            not_heard_of=totals.agents_silent + totals.agents_never_seen,
        )
        reason = verdict.problems[0].reason if verdict.problems else "AllWell"
        await self._write(network, Readiness(verdict.healthy, reason, _message(verdict)), counts)

    async def tell_crash(self, crash: str) -> None:
        """That there is no verdict. Raises ApiError."""
        if (network := self._networks.get(NETWORK_NAME)) is not None:
            counts = network.status.nodes or NodeCounts(total=0, ready=0, waiting=0, not_heard_of=0)
            readiness = Readiness(None, "OperatorCrashed", f"In the operator, {crash}", warns=True)
            await self._write(network, readiness, counts)

    async def _write(
        self,
        network: NetloomNetwork,
        readiness: Readiness,
        counts: NodeCounts,
    ) -> None:
        written = await self._conditions.set(NETWORKS, network, SUMMARY, readiness, nodes=counts)
        if written is not None:
            self._told_at = self._clock()
            self._networks.put(written)


def _message(verdict: Verdict) -> str:
    said = [f"{verdict.summary}.", *(str(group) for group in verdict.problems[:SHOWN])]
    if len(verdict.problems) > SHOWN:
        said.append(f"And {len(verdict.problems) - SHOWN} more kinds of problems: see `netloom status`.")
    return " ".join(said)
