"""Role `agent`: one per node. Objects in, from a cluster or from a directory; this node's kernel state out.

What it does is a list of features (`FEATURES`). The order matters for a restart that nobody notices: the kernel's side
is opened (it only reads), the caches fill, and only then the first whole desired state is applied. Until that moment,
and while the API server is away, the kernel keeps what it has.
"""

import resource
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from netloom.api.v1alpha1 import NETLOOM_NODES
from netloom.kernel.capability import require_net_admin
from netloom.roles import presence
from netloom.roles.agent_sources import AgentOptions, sources
from netloom.roles.feature_keepers import keepers, opened
from netloom.roles.node_plan import check_run_dir, remove_leftovers
from netloom.roles.sources import Sources
from netloom.runtime import health, metrics
from netloom.runtime.client import Api
from netloom.runtime.events import EventRecorder
from netloom.runtime.http import web
from netloom.runtime.manager import Manager
from netloom.runtime.startup import follow_api_server
from netloom_reconcilers.conditions import AGENT, Conditions, Readiness, manager_of
from netloom_reconcilers.features import chosen
from netloom_reconcilers.features.node import NodeContext, NodeFeature
from netloom_reconcilers.node.addresses.feature import AddressesFeature
from netloom_reconcilers.node.endpoints.feature import EndpointsFeature
from netloom_reconcilers.node.forwarding import ForwardingFeature
from netloom_reconcilers.node.known.departures import Departures, NodeLookup
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
        busy = {each.name: [keeper.busy_seconds for keeper in keepers([each])] for each in self.features}
        stuck = [name for name, seconds in busy.items() if max(seconds, default=0.0) > STUCK]
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
        writing = any(feature.is_writing for feature in self.features)
        facts: dict[str, object] = {
            "node": self.context.node_name,
            "features": [feature.name for feature in self.features],
            "inSync": self._applied and not writing and not errors,
            "peersHeld": len(peers.held) + len(peers.completed),
            "retained": self.departures.retained,
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
        yield metrics.gauge(
            "netloom_peers_held",
            "Peers that stay although their NetloomNode vanished, or lacks what it had: their Nodes may live.",
            len(peers.held) + len(peers.completed),
        )
        yield metrics.gauge(
            "netloom_pod_cidrs_kept",
            "Pod CIDRs that this node's NetloomNode does not hold any more, and that are kept.",
            len(own.kept),
        )
        yield metrics.gauge(
            "netloom_peer_warnings",
            "What is wrong with other nodes and keeps a part of them out of this node's data path; the agent's /status "
            "names each.",
            len(self._warnings()),
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
    check_run_dir(options.run_dir)
    require_net_admin()
    raise_descriptors()
    async with sources(options, patient=True) as (found, api):
        agent = Agent(options, found, api)
        async with opened(agent.features), presence.shown():
            agent.leftovers = await remove_leftovers(options, FEATURES)
            metrics.REGISTRY.register(agent)
            routes = [web.get("/status", agent.show_status), web.get("/check", agent.check)]
            async with health.serve(agent.manager.health, host, port, routes=routes):
                log.info("agent started", node=options.node_name, features=[each.name for each in agent.features])
                await agent.manager.run()
