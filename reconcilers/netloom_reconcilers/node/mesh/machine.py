"""Tells the operator what only this node's machine knows: `status.absentAddresses` and `status.connectedCIDRs`.

A Node may report a virtual IP that keepalived or kube-vip has moved to another machine; no Node says which machine has
it, only the machine does. The operator passes such an address over where the node has another. And it gives no node a
block of a network that devices of any node are on: that node would be cut off from what is there.

Every write of a node is sent to every agent, so there are few. What is new is told after a moment, and what went only
when it has stayed away: an address that was absent for a minute, a network for ten. So an address that comes and goes,
or the bridge that a build makes each time, is written once; and networks alone never more often than once a minute.

An address that this machine lost may be the one that connections to the API server come from. They stay open, and
nobody answers there: for a minute the agent would hear nothing of addresses that others got at the same moment, as from
a DHCP server. So they are made anew.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import structlog

from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNode
from netloom.cidr import Cidr
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import apply, manager_of

log = structlog.get_logger(__name__)

NEW_SECONDS = 1.0
"""How long something must be so before it is told."""
BACK_SECONDS, LEFT_SECONDS = 60.0, 600.0
"""How long an address must be back, or a network gone, before that is told."""
PAUSE_SECONDS = 60.0
"""Between two writes of which only networks are the reason."""
MOST = 64
"""Networks that are told: the largest."""


class MachineFacts(msgspec.Struct, frozen=True):
    """absent: of the addresses that the Node reports, those that are on no device. connected: networks that devices are
    on, but for those of its own pods."""

    absent: frozenset[str] = frozenset()
    connected: frozenset[str] = frozenset()


class _Lingering:
    """Of what is said, what is not so any more, and is said on for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}

    def wait(self, said: frozenset[str], now_so: frozenset[str], now: float) -> dict[str, float]:
        """What is to be said on, and for how long."""
        self._since = {each: self._since.get(each, now) for each in said - now_so}
        ends = {each: since + self._seconds - now for each, since in self._since.items()}
        return {each: left for each, left in ends.items() if left > 0}


@dataclass(eq=False)
class MachineReconciler:
    """Writes what `machine` gives (None: nothing can be said yet)."""

    node_name: str
    nodes: Store[NetloomNode]
    api: Api
    machine: Callable[[], MachineFacts | None]
    clock: Callable[[], float] = time.monotonic
    _absent: _Lingering = field(default_factory=lambda: _Lingering(BACK_SECONDS))
    _connected: _Lingering = field(default_factory=lambda: _Lingering(LEFT_SECONDS))
    _written_at: float = float("-inf")
    _lost: frozenset[str] | None = None

    def __post_init__(self) -> None:
        self.controller = Controller("machine", self.reconcile)

    def changed(self) -> None:
        """What is to be said may be different."""
        self.controller.enqueue_after(self.node_name, NEW_SECONDS)

    async def reconcile(self, key: str) -> float | None:
        """Write it if the object says something else. Seconds until there may be more to say."""
        node, machine = self.nodes.get(key), self.machine()
        if node is None or machine is None:
            return None
        self._leave_lost_addresses(machine.absent)
        now, status = self.clock(), node.status
        said = MachineFacts(frozenset(status.absent_addresses), frozenset(status.connected_cidrs))
        back = self._absent.wait(said.absent, machine.absent, now)
        left = self._connected.wait(said.connected, machine.connected, now)
        wanted = MachineFacts(machine.absent | back.keys(), _largest(machine.connected | left.keys()))
        again = min((*back.values(), *left.values()), default=None)
        if wanted == said:
            return again
        pause = self._written_at + PAUSE_SECONDS - now
        if wanted.absent == said.absent and pause > 0:
            return pause if again is None else min(pause, again)
        await self._write(node, wanted)
        self._written_at = now
        return again

    def _leave_lost_addresses(self, absent: frozenset[str]) -> None:
        """An address that was never there is nobody's: a gateway translates it."""
        before, self._lost = self._lost, absent
        if before is not None and (lost := absent - before):
            log.info("connections to the API server are made anew, as this machine lost an address", lost=sorted(lost))
            self.api.reconnect()

    async def _write(self, node: NetloomNode, wanted: MachineFacts) -> None:
        told = {"absentAddresses": sorted(wanted.absent), "connectedCIDRs": sorted(wanted.connected)}
        status = {name: texts for name, texts in told.items() if texts}  # what is not listed goes
        stored = await apply(self.api, NETLOOM_NODES, node, manager_of("machine"), status=status)
        if stored is not None:
            log.info("told what only this machine knows", **status)
            self.nodes.put(stored)


def _largest(texts: Iterable[str]) -> frozenset[str]:
    known = sorted((cidr.length, cidr) for text in texts if (cidr := Cidr.masked(text)) is not None)
    return frozenset(str(cidr) for _, cidr in known[:MOST])
