"""Role `agent`: one per node. Objects in, from a cluster or from a directory; this node's kernel state out.

The order matters for a restart that nobody notices: the data path is opened (it only reads), the caches fill, and only
then the first whole desired state is applied. Until that moment, and while the API server is away, the kernel keeps
what it has.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
from aiohttp import web

from netloom.api.meta import ObjectMeta, OwnerReference
from netloom.api.v1alpha1 import (
    LEDGERS,
    NETLOOM_NODES,
    NETWORKS,
    POOLS,
    PREFILTERS,
    NetloomNetwork,
    NetloomNode,
)
from netloom.api.validation import validate
from netloom.kernel.capability import require_net_admin
from netloom.kernel.dataplane import Dataplane
from netloom.kernel.desired import Desired
from netloom.kernel.errors import DataplaneError, KernelUnsupported, NotPermitted
from netloom.kernel.masquerade import Masquerade
from netloom.kernel.masquerade_sets import Masquerading
from netloom.kernel.report import PlannedChange, Report
from netloom.runtime import health
from netloom.runtime.client import Api
from netloom.runtime.directory import DirectorySource
from netloom.runtime.errors import ConfigError
from netloom.runtime.events import EventRecorder
from netloom.runtime.manager import Manager
from netloom.runtime.startup import follow_api_server
from netloom.runtime.store import Store
from netloom.runtime.watch import EVERY_NODE, ListWatch
from netloom_reconcilers import dataplane_metrics, masquerade_metrics
from netloom_reconcilers.announcement import AnnouncementReconciler
from netloom_reconcilers.conditions import AGENT, Conditions
from netloom_reconcilers.departures import Departures, Lookup
from netloom_reconcilers.masquerade import MasqueradeReconciler
from netloom_reconcilers.node_status import NodeStatusReconciler, Verdict, verdict_of
from netloom_reconcilers.own_side import RECORD, OwnSide
from netloom_reconcilers.peers import Peers, is_owned
from netloom_reconcilers.tunnels import TunnelsReconciler

log = structlog.get_logger(__name__)

PLAN_SYNC_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What `netloom agent` was asked to do. `manifests` set: no cluster is spoken to."""

    node_name: str
    kubeconfig: str | None = None
    context: str | None = None
    manifests: Path | None = None
    run_dir: Path = Path("/run/netloom")
    http_address: str = "127.0.0.1:9964"


class Sources:
    """Where the desired objects come from, and the components that keep the caches filled."""

    def __init__(self, options: AgentOptions, api: Api | None) -> None:
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self._api = api
        self._watches: dict[str, ListWatch[Any]] = {}
        self._directory: DirectorySource | None = None
        if api is not None:
            self._watches = {
                NETWORKS.kind: ListWatch(api, self.networks, changed=_spec_changed, timing=EVERY_NODE),
                NETLOOM_NODES.kind: ListWatch(
                    api,
                    self.nodes,
                    changed=_spec_changed,
                    trim=lambda node: _trimmed(node, options.node_name),
                    timing=EVERY_NODE,
                ),
            }
        elif options.manifests is not None:
            ignored = (POOLS, PREFILTERS, LEDGERS)
            self._directory = DirectorySource(
                options.manifests, [self.networks, self.nodes], ignored=ignored, validate=validate
            )

    def _parts(self) -> dict[str, tuple[Callable[[], Awaitable[None]], Callable[[], str]]]:
        """What runs, and how to ask it what is wrong."""
        parts: dict[str, tuple[Callable[[], Awaitable[None]], Callable[[], str]]] = {}
        for kind, watch in self._watches.items():
            parts[f"watch of {kind}"] = watch.run, lambda watch=watch: watch.trouble  # type: ignore[misc]
        if self._directory is not None:
            parts["manifests"] = self._directory.run, self._directory.trouble
        return parts

    @property
    def node_watch(self) -> ListWatch[NetloomNode] | None:
        """The watch of the NetloomNodes; None where they come from a directory."""
        return self._watches.get(NETLOOM_NODES.kind)

    def add_to(self, manager: Manager) -> None:
        """Run under this manager; say in its health what is wrong."""
        for name, (run, trouble) in self._parts().items():
            manager.add(name, run, restart=True)
            manager.health.ready(name, trouble)

    async def fill(self, seconds: float) -> None:
        """Run until the caches are filled once. Raises ConfigError, which says what was in the way."""
        parts = self._parts().values()
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                running = [group.create_task(_forever(run)) for run, _ in parts]
                await self.networks.wait_synced()
                await self.nodes.wait_synced()
                for task in running:
                    task.cancel()
        except TimeoutError:
            troubles = "; ".join(filter(None, [trouble() for _, trouble in parts]))
            raise ConfigError(f"the objects could not be read in {seconds:g} s: {troubles}") from None


async def _forever(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def _spec_changed(old: NetloomNetwork | NetloomNode, new: NetloomNetwork | NetloomNode) -> bool:
    """Other nodes' status is nobody's business here: at 5,000 nodes it would be most of what there is to do."""
    return old.spec != new.spec or old.metadata.creation_timestamp != new.metadata.creation_timestamp


def _trimmed(node: NetloomNode, own: str) -> NetloomNode:
    """What an agent needs to know of another node. The rest, conditions above all, is more than half of the memory."""
    meta = node.metadata
    if meta.name == own:
        return node
    kept = ObjectMeta(
        name=meta.name,
        resource_version=meta.resource_version,
        creation_timestamp=meta.creation_timestamp,
        owner_references=_OWNED if is_owned(node) else (),
    )
    return NetloomNode(metadata=kept, spec=node.spec)


_OWNED = (OwnerReference(api_version="v1", kind="Node"),)
"""That an object stands for a Node; which one, its name says."""


@asynccontextmanager
async def sources(options: AgentOptions, *, patient: bool = False) -> AsyncIterator[tuple[Sources, Api | None]]:
    """The sources, and the connection where there is a cluster. Nothing is asked of it yet. Raises ConfigError.

    patient: as with `Api.connect`.
    """
    if options.manifests is not None:
        if not options.manifests.is_dir():
            raise ConfigError(f"--manifests {options.manifests}: there is no such directory")
        yield Sources(options, None), None
        return
    connected = Api.connect(options.kubeconfig, options.context, user_agent="netloom-agent", patient=patient)
    async with await connected as api:
        yield Sources(options, api), api


class Agent:
    """The parts of a running agent, and what it says about itself."""

    def __init__(self, options: AgentOptions, found: Sources, api: Api | None) -> None:
        self._options = options
        self.manager = Manager(on_crash=self._changed)
        self.peers = Peers(options.node_name, found.nodes)
        self.dataplane = Dataplane(run_directory=options.run_dir, on_report=self._reported, spare_unknown=True)
        self.own = OwnSide(options.node_name, self.dataplane.lodgers, options.run_dir / RECORD)
        self.tunnels = TunnelsReconciler(options.node_name, found.networks, self.peers, self.dataplane, self.own)
        self.masquerade = Masquerade(on_report=lambda report: self._changed(), spare_unknown=True)
        self.masquerading = MasqueradeReconciler(
            options.node_name, found.networks, self.peers, self.masquerade, self.own
        )
        events = EventRecorder(api, "netloom-agent", host=options.node_name) if api is not None else None
        self.departures = Departures(
            options.node_name,
            found.networks,
            found.nodes,
            self.peers,
            (self.dataplane, self.masquerade),
            Lookup(api) if api is not None else None,
            found.node_watch,
            events=events,
        )
        self.status: NodeStatusReconciler | None = None
        self.announcement: AnnouncementReconciler | None = None
        found.add_to(self.manager)
        self.manager.health.ready("mesh", lambda: "" if self.tunnels.applied.is_set() else "nothing applied yet")
        self.manager.add("tunnels", self.tunnels.controller.run, restart=True)
        self.manager.add("dataplane", self.dataplane.run, restart=True)
        self.manager.add("masquerade", self.masquerading.controller.run, restart=True)
        self.manager.add("nftables", self.masquerade.run, restart=True)
        self.manager.add("departures", self.departures.controller.run, restart=True)
        if api is not None and events is not None:
            follow_api_server(api, self.manager)
            self.status = NodeStatusReconciler(
                options.node_name, found.nodes, Conditions(api, events, AGENT), self.verdict
            )
            self.announcement = AnnouncementReconciler(
                options.node_name, found.nodes, api, lambda: self.tunnels.announcement
            )
            self.manager.add("announcement", self.announcement.controller.run, restart=True)
            self.manager.add("node status", self.status.controller.run, restart=True)
            self.manager.add("events", events.run, restart=True)
        self.tunnels.on_change = self.masquerading.on_change = self.departures.on_change = self._changed

    def _reported(self, report: Report) -> None:
        self.tunnels.settled(report)
        self._changed()

    def _changed(self) -> None:
        self.departures.look()
        if self.status is not None:
            self.status.changed()
        if self.announcement is not None:
            self.announcement.changed()

    def verdict(self) -> Verdict | None:
        """The node's condition; None until the objects have been read."""
        blocked = self.tunnels.blocked
        if blocked is None and not self.tunnels.applied.is_set() and not self.manager.crashes:
            return None
        return verdict_of(blocked.reason if blocked else self.own.reason or "Degraded", self._errors(lasting=True))

    def _errors(self, *, lasting: bool = False) -> list[str]:
        found = self.own.errors() + self.tunnels.errors(self.dataplane.report)
        found += self.masquerading.errors(self.masquerade.report)
        found += self.departures.errors(lasting=lasting)
        found += self.manager.crashes
        return list(dict.fromkeys(found))  # a missing object is missed by both

    async def show_status(self, _request: web.Request) -> web.Response:
        """GET /status: what `netloom status` prints of this node."""
        return web.Response(body=msgspec.json.encode(self.facts()), content_type="application/json")

    def facts(self) -> dict[str, object]:
        """This node's data path, for people and for tests."""
        report: Report = self.dataplane.report
        masquerade, errors = self.masquerade.report, self._errors()
        written = {**report.written, **masquerade.written}
        return {
            "node": self._options.node_name,
            "inSync": self.tunnels.applied.is_set() and self.masquerading.applied.is_set() and not errors,
            "peers": report.peers,
            "peersHeld": len(self.peers.held) + len(self.peers.completed),
            "unknownWays": self.departures.unknown,
            "mtu": report.mtu,
            "mtuSource": report.mtu_source,
            "underlay": report.underlay,
            "tunnels": [str(way) for way in report.tunnels],
            "keptPodCIDRs": self.own.kept,
            "masquerade": {"families": masquerade.families, "elements": masquerade.elements},
            "driftRepaired": report.repaired + masquerade.repaired,
            "netlinkWrites": sum(written.values()),
            "written": written,
            "kernelReads": report.compared,
            "kernelReadMs": round(report.reading_seconds * 1000, 1),
            "errors": errors,
        }


async def run_agent(options: AgentOptions) -> None:
    """Run until SIGTERM or SIGINT. Raises UserError where there is nothing to run on; leaves the data path as it is.

    An API server that is not there is waited for, with the data path as it is.
    """
    host, port = health.parse_address(options.http_address)
    require_net_admin()
    async with AsyncExitStack() as stack:
        found, api = await stack.enter_async_context(sources(options, patient=True))
        agent = Agent(options, found, api)
        await agent.dataplane.open()
        stack.push_async_callback(agent.dataplane.close)
        await agent.masquerade.open()
        stack.push_async_callback(agent.masquerade.close)
        dataplane_metrics.register(agent.dataplane, agent.tunnels, agent.peers)
        masquerade_metrics.register(agent.masquerade, agent.masquerading)
        routes = [web.get("/status", agent.show_status)]
        await stack.enter_async_context(health.serve(agent.manager.health, host, port, routes=routes))
        log.info("agent started", node=options.node_name)
        await agent.manager.run()


async def plan(options: AgentOptions) -> list[PlannedChange]:
    """What an agent with these options would change in the kernel. Writes nothing. Raises UserError."""
    async with sources(options) as (found, api):
        if api is not None:
            await api.check()
        dataplane = Dataplane(run_directory=options.run_dir)
        own = OwnSide(options.node_name, dataplane.lodgers, options.run_dir / RECORD)
        tunnels = TunnelsReconciler(options.node_name, found.networks, found.nodes, dataplane, own)
        masquerading = MasqueradeReconciler(options.node_name, found.networks, found.nodes, Masquerade(), own)
        await found.fill(PLAN_SYNC_SECONDS)
        await dataplane.open()
        try:
            await own.look(found.nodes.get(options.node_name), write=False)
            desired = tunnels.desired()
            if desired is None:
                assert tunnels.blocked is not None
                raise ConfigError(tunnels.blocked.message)
            changes = await dataplane.plan(desired)
        finally:
            await dataplane.close()
        masqueraded = masquerading.desired()
        return changes + (await _masquerade_plan(masqueraded) if masqueraded is not None else [])


async def _masquerade_plan(desired: Masquerading) -> list[PlannedChange]:
    """The part that takes NET_ADMIN even to read; without it, the rest of the plan is still worth having."""
    masquerade = Masquerade()
    await masquerade.open()
    try:
        return await masquerade.plan(desired)
    except (NotPermitted, KernelUnsupported) as error:
        log.warning("the plan says nothing of masquerading", why=str(error))
        return []
    finally:
        await masquerade.close()


async def cleanup(run_dir: Path) -> list[PlannedChange]:
    """Remove all that agents made on this machine; what was removed. Raises UserError, naming what would not go."""
    require_net_admin()
    dataplane, masquerade = Dataplane(run_directory=run_dir), Masquerade()
    async with AsyncExitStack() as stack:
        for part in (dataplane, masquerade):
            await part.open()
            stack.push_async_callback(part.close)
        removed = await dataplane.plan(Desired())
        failures = (await dataplane.cleanup()).failures
        # A kernel that has no nftables has no table of ours.
        with suppress(KernelUnsupported):
            removed += await masquerade.plan(Masquerading())
            failures += (await masquerade.cleanup()).failures
    if failures:
        left = "; ".join(f"{failure.kind} {failure.key}: {failure.error}" for failure in failures)
        raise DataplaneError(f"not everything could be removed: {left}. Run it again once that is out of the way.")
    (run_dir / RECORD).unlink(missing_ok=True)
    return removed
