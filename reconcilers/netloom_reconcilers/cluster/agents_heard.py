"""When each agent was heard of, by the clock of who listens: a Lease counts from the moment in which it was seen
renewed, whatever the clock of its node says. No I/O.

Nobody is silent who could not be heard. Whoever begins to listen, or could not listen for a while, gives every agent
its whole time anew: so neither a new leader nor an outage of the API server makes anybody silent.
"""

import math
from collections.abc import Callable, Set

from netloom.api.cluster_facts import Sign, agent_lease
from netloom.api.coordination import Lease
from netloom.runtime.store import Store, Unsubscribe
from netloom_reconcilers.signs_of_life import grace


class _Agent:
    """lease: None where there is none. heard: when it was heard of, or began to be listened for."""

    __slots__ = ("heard", "lease")

    def __init__(self, lease: Lease | None, heard: float) -> None:
        self.lease = lease
        self.heard = heard


class AgentsHeard:
    """`leases` are the agents', in `namespace`. `least`: seconds of silence allowed in a small cluster."""

    def __init__(self, leases: Store[Lease], namespace: str, clock: Callable[[], float], least: float) -> None:
        self._leases = leases
        self._namespace = namespace
        self._clock = clock
        self._least = least
        self._grace = least
        self._agents: dict[str, _Agent] = {}
        self._deaf_until = -math.inf

    def listen(self) -> Unsubscribe:
        """Follow the Leases until what it returns is called."""
        return self._leases.subscribe(self._changed)

    def _changed(self, key: str, old: Lease | None, new: Lease | None) -> None:
        agent = self._agents.get(key.rpartition("/")[2].removeprefix(agent_lease("")))
        if agent is None:
            return
        if agent.lease is None or new is None or agent.lease.spec.renew_time != new.spec.renew_time:
            agent.heard = self._clock()
        agent.lease = new

    def nothing_heard(self) -> None:
        """Until now nobody could be heard."""
        self._deaf_until = self._clock()

    def expect(self, nodes: Set[str]) -> None:
        """Listen for the agents of these nodes, and no others. Those that are new have their whole time from now."""
        for name in self._agents.keys() - nodes:
            del self._agents[name]
        for name in nodes - self._agents.keys():
            self._agents[name] = _Agent(self._leases.get(f"{self._namespace}/{agent_lease(name)}"), self._clock())
        self._grace = grace(len(self._agents), self._least)

    def silent(self) -> set[str]:
        """The nodes whose agents have used up their time."""
        return {name for name in self._agents if self.is_silent(name)}

    def is_silent(self, node: str) -> bool:
        """Whether the agent of a node has used up its time; of one that is not listened for nobody knows."""
        agent = self._agents.get(node)
        return agent is not None and self._clock() > max(agent.heard, self._deaf_until) + self._seconds(agent.lease)

    def signs(self) -> dict[str, Sign]:
        """Of each agent that has a Lease, by its node."""
        return {name: sign for name in self._agents if (sign := self.sign(name)) is not None}

    def sign(self, node: str) -> Sign | None:
        """Of its agent; None where it has no Lease."""
        agent = self._agents.get(node)
        if agent is None or agent.lease is None:
            return None
        spec = agent.lease.spec
        times = (_to_seconds(spec.acquire_time), _to_seconds(spec.renew_time))
        return Sign(spec.holder_identity, *times, self._seconds(agent.lease), not self.is_silent(node))

    def _seconds(self, lease: Lease | None) -> float:
        """The Lease says it where there is one: its agent knows how often it renews it."""
        return (lease.spec.lease_duration_seconds if lease else 0) or self._grace


def _to_seconds(time: str | None) -> str:
    """A Lease's time without its microseconds."""
    return f"{time[:19]}Z" if time else ""
