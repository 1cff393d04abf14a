"""A feature of the agent: one thing that it does for its node, with all that belongs to it.

The agent iterates over its features and knows none by name. All members but the name have a default, so a feature says
only what it has. It finds what it needs in the context that it is made with; making it reads and writes nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec
from prometheus_client.core import Metric

from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, POOLS, NetloomNetwork, NetloomNode
from netloom.cidr import Address
from netloom.ipam.pool_demand import IDLE_SECONDS
from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom.runtime.manager import Run
from netloom.runtime.metrics import counter
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features import Caches
from netloom_reconcilers.node.addresses.service import AddressService
from netloom_reconcilers.node.endpoints.options import CniOptions
from netloom_reconcilers.node.known.own_node import RECORD, OwnNode
from netloom_reconcilers.node.known.peers import Peers


class MeshFacts(Protocol):
    """The mesh, as far as other features need to know of it."""

    @property
    def applied(self) -> bool:
        """Whether it has been made once."""

    @property
    def pod_mtu(self) -> int:
        """Of pods, in bytes; 0: not known."""

    def lifeline_at(self, address: Address) -> str:
        """What the node lives by that has the address ("a gateway of this node"); empty if nothing has."""


@dataclass(eq=False)
class NodeContext:
    """What the features of one agent share.

    networks, nodes: the caches of the two kinds that all of them read; `caches` has any other kind.
    peers:           the nodes as they count, also those whose objects vanished by mistake.
    own:             this node's object as it counts.
    api, events:     None where the objects come from a directory.
    changed:         to be called when errors, facts or a condition may be different.
    lease_namespace: of the Leases that say which agents live.
    retain_unknown:  keepers leave what an earlier life left, and no object explains, until `prune`.
    state_dir:       of what must outlive this process; None: the run directory.
    socket:          at which pods' addresses are asked for; None: in the run directory.
    give_back_after: seconds for which a block of a pool must have been of no use.
    cni:             where pods' interfaces are asked for; None: nowhere.
    readiness:       what the node's own condition says; None where that is not known.
    twin:            that another machine runs as this node, as a sentence; "" as far as is known.
    """

    node_name: str
    run_dir: Path
    caches: Caches
    api: Api | None = None
    events: EventRecorder | None = None
    changed: Callable[[], None] = lambda: None
    retain_unknown: bool = False
    lease_namespace: str = "kube-system"
    state_dir: Path | None = None
    socket: Path | None = None
    give_back_after: float = IDLE_SECONDS
    cni: CniOptions | None = None
    readiness: Callable[[], Readiness | None] = lambda: None
    twin: Callable[[], str] = lambda: ""

    def __post_init__(self) -> None:
        self.networks = self.caches.store(NETWORKS, _network_changed)
        self.nodes = self.caches.store(NETLOOM_NODES, self._node_matters)
        self.pools = self.caches.store(POOLS) if self.api is None else Store(POOLS)
        """Of a cluster, filled in the modes that need it, by the feature that does."""
        self.addresses: AddressService | None = None
        """Who gives single addresses, if this agent does."""
        self.mesh: MeshFacts | None = None
        """What the mesh tells, if this agent makes it."""
        self.peers = Peers(self.node_name, self.nodes)
        self.own = OwnNode(self.node_name, record=self.run_dir / RECORD)

    def _node_matters(self, old: NetloomNode, new: NetloomNode) -> bool:
        """Of this node's own object the status, too: somebody else may have told its condition."""
        return _spec_changed(old, new) or (new.metadata.name == self.node_name and old.status != new.status)


def _spec_changed(old: NetloomNetwork | NetloomNode, new: NetloomNetwork | NetloomNode) -> bool:
    """Other nodes' status is nobody's business here: at 5,000 nodes it would be most of what there is to do."""
    return old.spec != new.spec or old.metadata.creation_timestamp != new.metadata.creation_timestamp


def _network_changed(old: NetloomNetwork, new: NetloomNetwork) -> bool:
    """Of the status what decides where pods' addresses may be."""
    before, after = old.status.ipam, new.status.ipam
    said = (before.mode, before.clearing) != (after.mode, after.clearing) or before.service_cidrs != after.service_cidrs
    return said or _spec_changed(old, new)


class Obstacle(NamedTuple):
    """Why there is nothing to apply: a reason for the condition, and a sentence with the way out."""

    reason: str
    message: str


def missing(network: NetloomNetwork | None, node_name: str) -> Obstacle:
    """That there is no network, or else no NetloomNode of this node."""
    if network is None:
        return Obstacle("NoNetwork", f'there is no NetloomNetwork "{NETWORK_NAME}": apply one.')
    why = f"there is no NetloomNode {node_name}: the operator makes one for each Node that is not left out."
    return Obstacle("NoNode", f"{why} If this machine's Node has another name, give that as --node-name.")


class NodeFeature:
    """See the module.

    name:      as in --features, and on /readyz.
    drops:     whether what it leaves in the kernel drops packets of nodes that are new. An agent without it takes that
               away when it starts, as nobody keeps it up to date.
    condition: type of the condition that `readiness` gives, on the node's NetloomNode; "" for none. It is applied under
               a field manager of the feature's own, as what a manager applied and does not list again is removed.
    keeper:    of what it owns in the kernel; None: it owns nothing there. further: of what it only follows there.
    knows_by_nodes: what the keeper retains is explained by the nodes' objects, and may go when all of those are known.
    obstacle:  why there is nothing to apply, if so.
    """

    name: ClassVar[str]
    condition: ClassVar[str] = ""
    drops: ClassVar[bool] = False
    knows_by_nodes: ClassVar[bool] = True
    keeper: Keeper[Any, Any] | None = None
    further: Sequence[Keeper[Any, Any]] = ()
    obstacle: Obstacle | None = None

    def __init__(self, context: NodeContext) -> None:
        self.context = context

    def components(self) -> Mapping[str, Run]:
        """What runs, by name. Each is started again when it crashes, and stops no other."""
        return {}

    @property
    def applied(self) -> bool:
        """Whether the first whole desired state has been handed over: readiness waits for it."""
        return True

    @property
    def is_writing(self) -> bool:
        """Whether what `facts` shows is not all in the kernel yet, without an error: it is on its way."""
        return False

    def errors(self) -> list[str]:
        """All that keeps what it owns from being as desired, as sentences; the obstacle's, too."""
        return []

    def warnings(self) -> list[str]:
        """What is wrong with other nodes, and keeps a part of them out of what it owns, as sentences: no error here."""
        return []

    def readiness(self) -> Readiness | None:
        """For its condition; None: nothing can be said yet."""
        return None

    @classmethod
    def has_words(cls, node: NetloomNode) -> bool:
        """Whether the object has words of this feature that an agent without it takes back, as they would be believed
        for ever: its condition."""
        return any(each.type == cls.condition for each in node.status.conditions)

    def facts(self) -> dict[str, object]:
        """Its share of /status."""
        return {}

    def metrics(self) -> Iterable[Metric]:
        """Its share of /metrics, read when somebody asks."""
        return ()

    async def check(self, names: Sequence[str]) -> Sequence[msgspec.Struct]:
        """Looks now whether what it made does its work, towards these peers (none: those that it chooses)."""
        return []

    def changed(self) -> None:
        """Something of the agent is different, this feature's or another's."""

    async def plan(self) -> list[PlannedChange]:
        """What it would change, with the caches filled and its keeper open. Writes nothing. Raises UserError."""
        return []

    async def plan_cleanup(self) -> list[PlannedChange]:
        """What `cleanup` would remove: all that the keeper owns. Writes nothing. Raises UserError."""
        return await self.keeper.plan_cleanup() if self.keeper is not None else []

    async def cleanup(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """Remove all that agents made of its kind on this machine: what was removed, and what would not go. There are
        no objects; its keeper is open."""
        if self.keeper is None:
            return [], ()
        removed = await self.plan_cleanup()
        return removed, (await self.keeper.cleanup()).failures

    async def left(self) -> list[str]:
        """What `cleanup` leaves of what agents made or set, and how to change it, as sentences; its keeper is open."""
        return await self.keeper.left() if self.keeper is not None else []


def remove_files(paths: Iterable[Path]) -> list[Failure]:
    """Remove them; those that would not go."""
    failed = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            failed.append(Failure(kind="file", key=str(path), error=error.strerror or str(error)))
    return failed


def written_metric(name: str, text: str, report: Any) -> Metric:
    """A counter of the requests that a keeper wrote, by message."""
    return counter(name, text, report.written, "message")
