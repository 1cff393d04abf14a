"""Role `agent`: one per node. Objects in, from a cluster or from a directory; this node's kernel state out.

What it does is a list of features (`FEATURES`). The order matters for a restart that nobody notices: the kernel's side
is opened (it only reads), the caches fill, and only then the first whole desired state is applied. Until that moment,
and while the API server is away, the kernel keeps what it has.
"""

import functools
import resource
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from netloom.api.errors import in_words
from netloom.api.meta import ObjectMeta, OwnerReference
from netloom.api.v1alpha1 import NETLOOM_NODES, AcceptedEncapsulation, NetloomNode, NodeIPAM
from netloom.ipam.pool_demand import IDLE_SECONDS
from netloom.kernel.capability import require_net_admin
from netloom.kernel.errors import DataplaneError, KernelUnsupported, NotPermitted
from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.nftables_keeper import unheard_by_each_other
from netloom.kernel.keeper.report import PlannedChange
from netloom.roles import leftovers, presence
from netloom.roles.sources import Sources
from netloom.runtime import health, metrics
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError
from netloom.runtime.events import EventRecorder
from netloom.runtime.http import web
from netloom.runtime.manager import Manager
from netloom.runtime.startup import follow_api_server
from netloom.runtime.watch import EVERY_NODE
from netloom_reconcilers.conditions import AGENT, Conditions, manager_of
from netloom_reconcilers.features import chosen
from netloom_reconcilers.features.node import NodeContext, NodeFeature, Readiness
from netloom_reconcilers.node.addresses.feature import AddressesFeature
from netloom_reconcilers.node.endpoints.feature import EndpointsFeature
from netloom_reconcilers.node.endpoints.options import SOCKET as CNI_SOCKET
from netloom_reconcilers.node.endpoints.options import CniOptions
from netloom_reconcilers.node.forwarding import ForwardingFeature
from netloom_reconcilers.node.known.departures import Departures, NodeLookup
from netloom_reconcilers.node.known.own_node import RECORD
from netloom_reconcilers.node.known.peers import is_owned
from netloom_reconcilers.node.masquerade import MasqueradeFeature
from netloom_reconcilers.node.pools.feature import PoolsFeature
from netloom_reconcilers.node.prefilter.feature import PrefilterFeature
from netloom_reconcilers.node.probe import ProbeFeature
from netloom_reconcilers.node.senders import SendersFeature
from netloom_reconcilers.node.sign_of_life import SignOfLife
from netloom_reconcilers.node.status import NodeStatusReconciler, readiness_of
from netloom_reconcilers.node.surroundings import SurroundingsFeature
from netloom_reconcilers.node.tunnels import TunnelsFeature
from netloom_reconcilers.node.withdrawing import Withdrawing
from netloom_reconcilers.signs_of_life import GRACE_SECONDS

log = structlog.get_logger(__name__)

FEATURES: tuple[type[NodeFeature], ...] = (
    TunnelsFeature,
    MasqueradeFeature,
    SendersFeature,
    ForwardingFeature,
    SurroundingsFeature,
    ProbeFeature,
    AddressesFeature,
    PoolsFeature,
    EndpointsFeature,
    PrefilterFeature,
)
"""What an agent can do, in the order in which it is planned, told and cleaned up."""

DESCRIPTORS = 65536
"""That an agent has at most, where its hard limit allows it."""
STUCK = 60.0
"""Seconds after which a keeper that has not ended its pass counts as stuck. One of 10,000 peers takes a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What `netloom agent` was asked to do. `manifests` set: no cluster is spoken to. features: as for `chosen`.

    lease_namespace: of the Lease that says that this agent lives. grace_period: seconds of silence that it is allowed;
    more in a large cluster. state_dir, socket, give_back_after, cni: as in NodeContext.
    """

    node_name: str
    kubeconfig: str | None = None
    context: str | None = None
    manifests: Path | None = None
    run_dir: Path = Path("/run/netloom")
    state_dir: Path | None = None
    socket: Path | None = None
    give_back_after: float = IDLE_SECONDS
    http_address: str = "127.0.0.1:9964"
    features: str = "*"
    lease_namespace: str = "kube-system"
    grace_period: float = GRACE_SECONDS
    cni: CniOptions | None = None


@asynccontextmanager
async def sources(options: AgentOptions, *, patient: bool = False) -> AsyncIterator[tuple[Sources, Api | None]]:
    """The sources, and the connection where there is a cluster. Nothing is asked of it yet. Raises ConfigError.

    patient: as with `Api.connect`.
    """
    if options.manifests is not None:
        if not options.manifests.is_dir():
            raise ConfigError(f"--manifests {options.manifests}: there is no such directory")
        yield Sources(None, options.manifests), None
        return
    connected = Api.connect(options.kubeconfig, options.context, user_agent="netloom-agent", patient=patient)
    async with await connected as api:
        yield cluster_sources(options, api), api


def cluster_sources(options: AgentOptions, api: Api) -> Sources:
    """What an agent reads of a cluster."""
    trims = {NETLOOM_NODES.kind: lambda node: _trimmed(node, options.node_name)}
    return Sources(api, trims=trims, timing=EVERY_NODE)


def _trimmed(node: NetloomNode, own: str) -> NetloomNode:
    """What an agent needs to know of another node. The rest, conditions above all, is more than half of the memory."""
    meta = node.metadata
    if meta.name == own:
        return node
    kept = ObjectMeta(
        name=meta.name,
        resource_version=meta.resource_version,
        creation_timestamp=meta.creation_timestamp,
        labels=_NOTHING,
        annotations=_NOTHING,
        owner_references=_OWNED if is_owned(node) else (),
    )
    spec, ipam = node.spec, node.spec.ipam
    # Nothing is sent to single addresses of others from here: the network knows the way.
    blocks = NodeIPAM(mode=ipam.mode, pod_cidrs=ipam.pod_cidrs, pools=ipam.pools, pool=_NOTHING)
    encapsulations = _same(spec.encapsulations)
    return NetloomNode(metadata=kept, spec=msgspec.structs.replace(spec, ipam=blocks, encapsulations=encapsulations))


@functools.lru_cache(maxsize=64)
def _same(encapsulations: tuple[AcceptedEncapsulation, ...]) -> tuple[AcceptedEncapsulation, ...]:
    """Those of nearly all nodes are equal: held once, they are 1 MiB less of 5,000 nodes."""
    return encapsulations


_NOTHING: Final[dict[Any, Any]] = {}
"""For all whom it suits, as an empty dict of its own costs each of them 64 bytes."""

_OWNED = (OwnerReference(api_version="v1", kind="Node"),)
"""That an object stands for a Node; which one, its name says."""


def keepers(features: Sequence[NodeFeature]) -> list[Keeper[Any, Any]]:
    """Of those that own something in the kernel, or follow something there."""
    return [each for feature in features for each in (feature.keeper, *feature.further) if each is not None]


@asynccontextmanager
async def opened(features: Sequence[NodeFeature]) -> AsyncIterator[None]:
    """Their keepers are open meanwhile. Raises UserError where the kernel has not what they need."""
    async with AsyncExitStack() as stack:
        for keeper in keepers(features):
            await keeper.open()
            stack.push_async_callback(keeper.close)
        unheard_by_each_other(keepers(features))
        yield


class Agent(Collector):
    """A running agent: its features, what they share, and what it says about itself."""

    def __init__(
        self, options: AgentOptions, found: Sources, api: Api | None, features: Sequence[type[NodeFeature]] = FEATURES
    ) -> None:
        self.manager = Manager(on_crash=self._changed)
        events = EventRecorder(api, "netloom-agent", host=options.node_name) if api is not None else None
        self.context = NodeContext(
            options.node_name,
            options.run_dir,
            found,
            api,
            events,
            changed=self._changed,
            retain_unknown=True,
            lease_namespace=options.lease_namespace,
            state_dir=options.state_dir,
            socket=options.socket,
            give_back_after=options.give_back_after,
            cni=options.cni,
            readiness=self.readiness,
            twin=lambda: self.life.twin if self.life is not None else "",
        )
        self.features = [make(self.context) for make in chosen(features, options.features)]
        self.departures = Departures(
            self.context.networks,
            self.context.peers,
            keepers([each for each in self.features if each.knows_by_nodes]),
            NodeLookup(api) if api is not None else None,
            found.watch(NETLOOM_NODES),
            events=events,
            on_change=self._changed,
        )
        self.leftovers: tuple[str, ...] = ()
        """What `remove_leftovers` could not remove, as sentences."""
        self._conditions: list[NodeStatusReconciler] = []
        self.life: SignOfLife | None = None
        """None where there is no cluster to give signs of life to."""
        found.add_to(self.manager)
        for feature in self.features:
            self.manager.health.ready(feature.name, lambda each=feature: _unapplied(each))  # type: ignore[misc]
            for name, run in feature.components().items():
                self.manager.add(name, run, restart=True)
        self.manager.add("departures", self.departures.controller.run, restart=True)
        if api is not None and events is not None:
            follow_api_server(api, self.manager)
            self.manager.add("events", events.run, restart=True)
            off = [each for each in features if each not in chosen(features, options.features)]
            withdrawing = Withdrawing(options.node_name, self.context.nodes, api, off)
            self.manager.add("words of features that are off", withdrawing.controller.run, restart=True)
            self.life = self._give_signs_of_life(api, options)
            self._add_conditions(api, events, self.life)

    def _give_signs_of_life(self, api: Api, options: AgentOptions) -> SignOfLife:
        life = SignOfLife(
            api,
            options.node_name,
            self.context.nodes,
            options.lease_namespace,
            options.grace_period,
            idle=self._idle,
            on_change=self._changed,
        )
        self.manager.add("sign of life", life.run, restart=True)
        self.manager.health.ready("sign of life", lambda: life.silence or life.twin)
        return life

    def _idle(self) -> str:
        """Why this process does no work, "" while it does. The loop of each keeper waits for its kernel alone."""
        stuck = [feature.name for feature in self.features if feature.keeper and feature.keeper.busy_seconds > STUCK]
        said = f"the kernel has not answered {', '.join(stuck)} for more than {STUCK:g} s; see the kernel's log."
        return said if stuck else ""

    def _add_conditions(self, api: Api, events: EventRecorder, life: SignOfLife) -> None:
        name, nodes = self.context.node_name, self.context.nodes
        conditions = Conditions(api, events, AGENT)
        status = NodeStatusReconciler(name, nodes, conditions, self.readiness, spell=lambda: life.spell)
        self.manager.add("node status", status.controller.run, restart=True)
        self._conditions.append(status)
        for each in [feature for feature in self.features if feature.condition]:
            conditions = Conditions(api, events, manager_of(each.name))
            status = NodeStatusReconciler(name, nodes, conditions, each.readiness, each.condition)
            self.manager.add(f"condition {each.condition}", status.controller.run, restart=True)
            self._conditions.append(status)

    def _changed(self) -> None:
        self.departures.look()
        for condition in self._conditions:
            condition.changed()
        for feature in self.features:
            feature.changed()

    def readiness(self) -> Readiness | None:
        """For the node's condition; None until the objects have been read."""
        if self.life is not None and self.life.twin:
            # Nothing of this agent's own: both write the condition, and would answer each other for ever.
            return Readiness(False, "TwoAgents", self.life.twin)
        obstacle = next(filter(None, (feature.obstacle for feature in self.features)), None)
        if obstacle is None and not self._applied and not self.manager.crashes:
            return None
        reason = obstacle.reason if obstacle else self.context.own.reason or "Degraded"
        return readiness_of(reason, self._errors(lasting=True))

    @property
    def _applied(self) -> bool:
        return all(feature.applied for feature in self.features)

    def _errors(self, *, lasting: bool = False) -> list[str]:
        found = self.context.own.errors()
        for feature in self.features:
            found += feature.errors()
        found += self.departures.errors(lasting=lasting)
        found += self.leftovers
        found += self.manager.crashes
        found += [f"The kernel side does not work: {idle}"] if (idle := self._idle()) else []
        return list(dict.fromkeys(found))  # a missing object is missed by several

    def _warnings(self) -> list[str]:
        """What is wrong with other nodes: they say it themselves, and it makes this one no worse."""
        found = self.context.peers.problems()
        for feature in self.features:
            found += feature.warnings()
        return list(dict.fromkeys(found))

    async def show_status(self, _request: web.Request) -> web.Response:
        """GET /status: what `netloom status` prints of this node."""
        return web.Response(body=msgspec.json.encode(self.facts()), content_type="application/json")

    async def check(self, request: web.Request) -> web.Response:
        """GET /check?node=NAME (any number of them, or none): what `netloom check` prints. It takes seconds."""
        names, peers = request.query.getall("node", []), self.context.peers
        names = [name for name in names if name != self.context.node_name]
        unknown = [name for name in names if peers.get(name) is None]
        found = [each for feature in self.features for each in await feature.check(names)] if not unknown else []
        answer = {"node": self.context.node_name, "unknown": unknown, "checks": found}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def facts(self) -> dict[str, object]:
        """This node's data path, for people and for tests."""
        reports = [keeper.report for keeper in keepers(self.features)]
        written: Counter[str] = Counter()
        for report in reports:
            written.update(report.written)
        peers, errors = self.context.peers, self._errors()
        facts: dict[str, object] = {
            "node": self.context.node_name,
            "features": [feature.name for feature in self.features],
            "inSync": self._applied and not errors,
            "peersHeld": len(peers.held) + len(peers.completed),
            "unknownWays": self.departures.unknown,
            "keptPodCIDRs": self.context.own.kept,
            "driftRepaired": sum(report.repaired for report in reports),
            "netlinkWrites": sum(written.values()),
            "written": written,
            "errors": errors,
            "warnings": self._warnings(),
        }
        if self.life is not None:
            facts["signOfLife"] = self.life.fault or self.life.twin or ("given" if self.life.given else "not yet given")
        for feature in self.features:
            facts |= feature.facts()
        return facts

    def collect(self) -> Iterator[Metric]:
        """Figures of the features and of what they share, as metrics."""
        peers, own = self.context.peers, self.context.own
        yield GaugeMetricFamily(
            "netloom_peers_held",
            "Peers that stay although their NetloomNode vanished, or lacks what it had: their Nodes may live.",
            value=len(peers.held) + len(peers.completed),
        )
        yield GaugeMetricFamily(
            "netloom_pod_cidrs_kept",
            "Pod CIDRs that this node's NetloomNode does not hold any more, and that are kept.",
            value=len(own.kept),
        )
        yield GaugeMetricFamily(
            "netloom_peer_warnings",
            "What is wrong with other nodes and keeps a part of them out of this node's data path; the agent's /status "
            "names each.",
            value=len(self._warnings()),
        )
        for feature in self.features:
            yield from feature.metrics()


def _unapplied(feature: NodeFeature) -> str:
    """For readiness: that its first desired state is still to come, and why."""
    if feature.applied:
        return ""
    return f"nothing applied yet: {feature.obstacle.message}" if feature.obstacle else "nothing applied yet"


def raise_descriptors() -> None:
    """A call of a runtime takes eight descriptors, and a pod one for as long as it runs: more than the 1024 that a
    process begins with, if nobody says otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run_agent(options: AgentOptions) -> None:
    """Run until SIGTERM or SIGINT. Raises UserError where there is nothing to run on; leaves the data path as it is.

    An API server that is not there is waited for, with the data path as it is.
    """
    host, port = health.parse_address(options.http_address)
    chosen(FEATURES, options.features)
    _check_run_dir(options.run_dir)
    require_net_admin()
    raise_descriptors()
    async with sources(options, patient=True) as (found, api):
        agent = Agent(options, found, api)
        async with opened(agent.features), presence.shown():
            agent.leftovers = await remove_leftovers(options)
            metrics.REGISTRY.register(agent)
            routes = [web.get("/status", agent.show_status), web.get("/check", agent.check)]
            async with health.serve(agent.manager.health, host, port, routes=routes):
                log.info("agent started", node=options.node_name, features=[each.name for each in agent.features])
                await agent.manager.run()


def _dropping(options: AgentOptions, features: Sequence[type[NodeFeature]]) -> list[type[NodeFeature]]:
    """Those that are off, and whose leftovers drop packets."""
    on = chosen(features, options.features)
    return [each for each in features if each.drops and each not in on]


async def remove_leftovers(options: AgentOptions, features: Sequence[type[NodeFeature]] = FEATURES) -> tuple[str, ...]:
    """What features that are off left in the kernel, where it drops packets. What would not go, as sentences."""
    context = NodeContext("", options.run_dir, Sources(None))
    failed: list[str] = []
    for make in _dropping(options, features):
        feature = make(context)
        try:
            async with opened([feature]):
                gone, failures = await feature.cleanup()
                why = [*map(str, failures)]
        except Exception as error:  # noqa: BLE001 - whatever it is, the other features do their work; told below
            gone, why = [], [in_words(error)]
        if gone and not why:
            log.info("what a feature left is removed", feature=make.name, what=[each.text for each in gone])
        failed += [
            f"{each}. This is left of the feature {make.name}, which is off, and drops packets of new nodes. Start the "
            f"agent again once it can be removed, or with {make.name} among its --features."
            for each in why
        ]
    for each in failed:
        log.warning("what a feature left is not removed", why=each)
    return tuple(failed)


class NodePlan(NamedTuple):
    """What would be changed, and sentences: about what could not be read, what would be left out, and what cleanup
    leaves."""

    changes: list[PlannedChange]
    unread: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


async def plan(options: AgentOptions, features: Sequence[type[NodeFeature]] = FEATURES) -> NodePlan:
    """What an agent with these options would change in the kernel. Writes nothing. Raises UserError."""
    wanted = chosen(features, options.features)
    _check_run_dir(options.run_dir)
    async with sources(options) as (found, api):
        if api is not None:
            await api.check()
        cni = CniOptions(options.run_dir / CNI_SOCKET)
        context = NodeContext(options.node_name, options.run_dir, found, api, cni=cni)
        made = [make(context) for make in wanted]
        dropping = [make(context) for make in _dropping(options, features)]
        await found.fill()
        await context.own.look(context.nodes.get(options.node_name), write=False)
        return await _of_each(
            [*made, *dropping],
            lambda feature: feature.plan_cleanup() if feature in dropping else feature.plan(),
            beside=dropping,
        )


async def cleanup(
    run_dir: Path,
    features: Sequence[type[NodeFeature]] = FEATURES,
    *,
    dry_run: bool = False,
    state_dir: Path | None = None,
    socket: Path | None = None,
    cni: CniOptions | None = None,
    forget: bool = False,
) -> NodePlan:
    """Remove all that agents made on this machine; what was removed. Raises UserError, naming what would not go.

    dry_run: what would be removed; as with `plan`, nothing is written, and no capability is needed.
    forget: nobody comes back to put back the switches that are left. Their records go as well, and the directories.
    """
    _check_run_dir(run_dir)
    cni = cni or CniOptions(run_dir / CNI_SOCKET)
    context = NodeContext("", run_dir, Sources(None), state_dir=state_dir, socket=socket, cni=cni)
    made = [make(context) for make in features]
    if dry_run:
        kept: list[str] = []

        async def planned(feature: NodeFeature) -> list[PlannedChange]:
            changes = await feature.plan_cleanup()
            kept.extend(await feature.left())
            return changes

        return (await _of_each(made, planned))._replace(left=tuple(kept))
    require_net_admin()
    removed: list[PlannedChange] = []
    failed: list[str] = []
    left: list[str] = []
    async with opened(made):
        for feature in made:
            gone, failures = await feature.cleanup()
            removed += gone
            failed += map(str, failures)
        for feature in made:
            left += await feature.left()
    if failed:
        why = f"not everything could be removed: {'; '.join(failed)}. Run it again once that is out of the way."
        raise DataplaneError(why)
    (run_dir / RECORD).unlink(missing_ok=True)
    if forget:
        leftovers.forget(run_dir, state_dir, cni.deletions)
    return NodePlan(removed, left=tuple(left))


def _check_run_dir(run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"--run-dir {run_dir} is no directory")


async def _of_each(
    features: Sequence[NodeFeature],
    planned: Callable[[NodeFeature], Awaitable[list[PlannedChange]]],
    beside: Sequence[NodeFeature] = (),
) -> NodePlan:
    """What can be read of one is worth having without the others. Raises UserError where that is nothing at all of
    those that were asked for. beside: those that were not."""
    changes: list[PlannedChange] = []
    unread: list[str] = []
    asked = [feature for feature in features if feature not in beside]
    for feature in features:
        try:
            async with opened([feature]):
                changes += await planned(feature)
        except (NotPermitted, KernelUnsupported) as error:
            unread.append(f"{feature.name} is left out: {error}")
            asked = [each for each in asked if each is not feature]
            if not asked:
                raise
    left_out = [f"{each.text}: {each.why}" for each in changes if each.left_out]
    return NodePlan([each for each in changes if not each.left_out], tuple(unread), tuple(left_out))
