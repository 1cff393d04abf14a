"""The prefilter as a feature of the agent: from the NetloomPrefilters that select this node to what its kernel drops.

Independent of all other features: what the node lives by it finds out itself. Where there is no prefilter at all it
follows one kind of object, of which there is none, and nothing else: no Node, no ConfigMap, no look at the devices.

Nothing is changed in the kernel before all that decides is known: the node's labels, and the lists (for a moment). An
agent that starts finds what the one before left, and leaves it until then.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from prometheus_client.core import Metric

from netloom.api.prefilter import NetloomPrefilter, NodePrefilter
from netloom.api.v1alpha1 import PREFILTERS, NetloomNode
from netloom.cidr import Address, addresses_in
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.mesh.node_network_part import NodeNetworkKeeper, read_node_network
from netloom.kernel.netlink.sockets import AnswerLost
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Prefiltering
from netloom.prefilter.lists import ParsedList, parse_list
from netloom.prefilter.node_rules import Filter, NodeRules, Share
from netloom.prefilter.withheld import Lifeline, lifelines_of, of_address, of_pods
from netloom.runtime.controller import Controller
from netloom.runtime.errors import ApiError, ConfigError
from netloom.runtime.manager import Run
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features import spec_changed
from netloom_reconcilers.features.node import NodeContext, NodeFeature
from netloom_reconcilers.node.known.peers import pods_of
from netloom_reconcilers.node.mesh.api_addresses import ApiAddresses
from netloom_reconcilers.node.prefilter import telling
from netloom_reconcilers.node.prefilter.config_maps import ConfigMaps
from netloom_reconcilers.node.prefilter.own_labels import OwnLabels
from netloom_reconcilers.node.prefilter.reporting import PrefilterReporter, has_words
from netloom_reconcilers.node.prefilter.selection import Machine, Together, machine_of, selecting, together
from netloom_reconcilers.node.prefilter.telling import Told

_KEY = "prefilter"
_MODES = ("native", "generic", "")
_INLINE_DENY, _INLINE_ALLOW = "spec.denyCIDRs", "spec.allowCIDRs"


class Reached(NamedTuple):
    """By what others reach a node and its pods. As lifelines: to make those of 5,000 nodes takes 11 ms, and so it would
    for each change of one of them."""

    addresses: tuple[Lifeline, ...]
    pods: tuple[Lifeline, ...]


class PrefilterFeature(NodeFeature):
    """See the module. What it left is taken away by an agent without it: that is the way back in for a node that one
    of its lists cut off (docs/prefilter.md)."""

    name = "prefilter"
    drops = True
    knows_by_nodes = False
    keeper: PrefilterKeeper

    def __init__(
        self, context: NodeContext, keeper: PrefilterKeeper | None = None, node_network: NodeNetworkKeeper | None = None
    ) -> None:
        super().__init__(context)
        cache = (context.state_dir or context.run_dir) / "prefilter"
        self.node_network = node_network or NodeNetworkKeeper(self._turn)
        self.further = (self.node_network,)
        self.keeper = keeper or PrefilterKeeper(cache, on_report=lambda report: context.changed())
        self.controller = Controller(self.name, self.reconcile)
        self.told: tuple[Told, ...] = ()
        self.work: Counter[str] = Counter()
        """What was done for it: by this, how often lists were merged, and how many entries were looked at for it."""
        self._prefilters = context.caches.store(PREFILTERS, spec_changed, optional=True)
        self._rules: list[NodeRules] = []
        """Of each group of prefilters that decide together."""
        self._shares: Mapping[str, Share] = {}
        self._main: tuple[str, ...] = ()
        self._inline: dict[tuple[str, ...], ParsedList] = {}
        self._lifelines: tuple[Lifeline, ...] = ()
        self._around: object = None
        self._peers: dict[str, Reached] | None = None
        """By name; None while this node has no prefilter, as of 5,000 nodes it is some MiB."""
        self._peers_changed = False
        self._servers: Mapping[Address, str] = {}
        self._applied = False
        self._given: Prefiltering | None = None
        self._labels: OwnLabels | None = None
        self._lists: ConfigMaps | None = None
        self._addresses: ApiAddresses | None = None
        self._reporter: PrefilterReporter | None = None
        if context.api is not None:
            self._labels = OwnLabels(context.api, context.node_name, self._turn)
            self._lists = ConfigMaps(context.api, context.lease_namespace, self._turn)
            self._addresses = ApiAddresses(context.api, self._reached_by)
            if context.events is not None:
                self._reporter = PrefilterReporter(
                    context.node_name, context.nodes, context.api, context.events, self.status
                )
        self._prefilters.subscribe(lambda key, old, new: self._turn())
        self._prefilters.on_replace(self._turn)
        context.peers.subscribe(self._peer_changed)

    # ----------------------------------------------------------------------------------------------- as a feature

    @classmethod
    def has_words(cls, node: NetloomNode) -> bool:
        """Its condition and the rest of its report."""
        return has_words(node)

    def components(self) -> Mapping[str, Run]:
        """The reconciler, the kernel's side, what only prefilters need to know, and the report where there is one."""
        found: dict[str, Run] = {self.name: self.controller.run, "filter of packets": self.keeper.run}
        found["devices for prefilters"] = self.node_network.run
        if self._labels is not None and self._lists is not None and self._addresses is not None:
            found["labels of this node"] = self._labels.run
            found["lists of prefilters"] = self._lists.run
            found["API server's addresses for prefilters"] = self._addresses.run
        if self._reporter is not None:
            found["report of prefilters"] = self._reporter.controller.run
        return found

    @property
    def applied(self) -> bool:
        """An agent is ready without: what is dropped is none of what pods need."""
        return True

    def changed(self) -> None:
        """What is to be told may be different."""
        if self._reporter is not None:
            self._reporter.changed()

    def warnings(self) -> list[str]:
        """What keeps prefilters from running here, what is wrong with lists, and what is held back. None of it is an
        error of the node's data path, which pods' packets take all the same: the condition of its own says it."""
        found = [f"prefilter: {why}. It is tried again." for why in self.controller.failing.values()]
        status = self.status()
        for each in status.filters if status is not None else ():
            said = [each.error] if each.error else []
            found += [f"NetloomPrefilter {each.name}: {sentence}" for sentence in (*said, *each.problems)]
        return found

    def status(self) -> NodePrefilter | None:
        """As for the node's object; None as long as nothing is known, no filter in it where none selects the node."""
        if not self._applied:
            return None
        try:
            dropped = self.keeper.dropped() if self.told else {}
        except OSError:
            dropped = {}  # the kernel's side says what is wrong
        return telling.status_of(self.told, self._shares, self.keeper.report, dropped, self._main)

    def facts(self) -> dict[str, object]:
        """What is dropped, and where; nothing where nothing is."""
        status = self.status()
        if status is None or not self.told:
            return {}
        report = self.keeper.report
        lists = {
            each.name: {
                key: {"entries": len(one.v4) + len(one.v6), "duplicates": one.duplicates, "masked": one.masked}
                for key, one in each.lists.items()
            }
            for each in self.told
        }
        verifier = {"verifier": report.verifier} if report.verifier else {}
        work = {**self.work, "written": self.keeper.stats.get("entry", 0)}
        return {"prefilter": {"status": status, "lists": lists, "program": report.program, "work": work, **verifier}}

    def metrics(self) -> Iterable[Metric]:
        """By prefilter, of which a node has few; nothing where it has none."""
        status = self.status()
        if status is None or not status.filters:
            return
        filters = status.filters
        packets, sizes = {each.name: each.packets for each in filters}, {each.name: each.bytes for each in filters}
        entries = {(each.name, "ipv4"): each.ipv4_entries for each in filters}
        entries |= {(each.name, "ipv6"): each.ipv6_entries for each in filters}
        left_out = {(each.name, "withheld"): each.withheld for each in filters}
        left_out |= {(each.name, "bad"): each.bad_lines for each in filters}
        modes = {mode or "none": sum(each.mode == mode for each in status.devices) for mode in _MODES}
        text = "Packets dropped at the devices' hook."
        yield counter("netloom_prefilter_dropped_packets", text, packets, "prefilter")
        yield counter("netloom_prefilter_dropped_bytes", f"Bytes of {text.lower()}", sizes, "prefilter")
        yield gauge("netloom_prefilter_entries", "Entries that are active.", entries, "prefilter", "family")
        text = "Entries that are not active: withheld, as they would cut off this node; bad, lines that are no CIDR."
        yield gauge("netloom_prefilter_left_out", text, left_out, "prefilter", "why")
        yield gauge("netloom_prefilter_devices", "Devices, by mode; none: not there.", modes, "mode")
        with suppress(OSError):  # the kernel's side says what is wrong
            text = (
                "Frames dropped at the devices' hook, whatever prefilters say: they have more VLAN tags than any "
                "network's, and would get past the filter to what it protects."
            )
            yield counter("netloom_prefilter_overtagged_packets", text, self.keeper.overtagged().packets)

    # ------------------------------------------------------------------------------------------------ what is known

    def _turn(self) -> None:
        self.controller.enqueue(_KEY)

    async def _reached_by(self, servers: Mapping[Address, str]) -> None:
        self._servers = servers
        self._around = None
        self._turn()

    def _peer_changed(self, name: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        """Addresses and pod CIDRs of others are lifelines; of this node itself, its addresses."""
        if self._peers is None:
            return
        before = self._peers.pop(name, None)
        if new is not None:
            self._peers[name] = _reached(new)
        if before != self._peers.get(name):
            self._peers_changed = True
            self._turn()

    def _followed_peers(self) -> dict[str, Reached]:
        """From now on changes are followed, one node at a time."""
        if self._peers is None:
            known = ((name, self.context.peers.get(name)) for name in self.context.peers)
            self._peers = {name: _reached(node) for name, node in known if node is not None}
            self._peers_changed = True
        return self._peers

    def _known_by(self) -> Collection[Address]:
        own = self._followed_peers().get(self.context.node_name)
        return [each.cidr.packed for each in own.addresses] if own is not None else ()

    def _lives_by(self, machine: Machine) -> tuple[Lifeline, ...]:
        """The same object as before if nothing is different."""
        around = machine.own, machine.gateways
        if self._around != around or self._peers_changed:
            self._around, self._peers_changed = around, False
            own, peers = self.context.node_name, self._followed_peers()
            of_nodes = [each for name, peer in peers.items() if name != own for each in peer.addresses]
            self._lifelines = lifelines_of(
                own=sorted(machine.own | set(self._known_by())),
                servers=self._servers,
                gateways=sorted(machine.gateways),
                known=(*of_nodes, *(each for peer in peers.values() for each in peer.pods)),
            )
        return self._lifelines

    def _own_labels(self) -> Mapping[str, str] | None:
        """None: not known yet. Of a directory of manifests, where there are no Nodes, the NetloomNode's."""
        if self._labels is not None:
            return self._labels.labels
        node = self.context.nodes.get(self.context.node_name)
        return node.metadata.labels if node is not None else {}

    # ---------------------------------------------------------------------------------------------- what is wanted

    async def reconcile(self, key: str) -> float | None:
        """Makes the kernel drop what prefilters say. Returns after how many seconds to look again: while it waits for
        lists. All else is told by events, of the API server or of the kernel."""
        if not self._prefilters.synced.is_set():
            return None  # it turns once they are there; where the cluster does not know the kind, never
        await self.context.nodes.wait_synced()
        if len(self._prefilters) and self._labels is not None:
            self._labels.want()
        selected = self._selected()
        if selected is None:
            return None
        if self._lists is not None:
            self._lists.want(each for one in selected for each in one.spec.references)
            if (seconds := self._lists.wait()) > 0:
                return seconds
        machine = machine_of(await self.node_network.around(), self._known_by()) if selected else Machine()
        desired, told = await self._desired(selected, machine)
        if self._given != desired:
            await self.keeper.apply(desired)
            self._given = desired
        # Only now: what is told of it is in the kernel.
        self._applied, self.told, self._shares = True, told, telling.shares_of([each.shares for each in self._rules])
        self._main = machine.main
        self.context.changed()
        if not selected:
            await self.node_network.leave()
        return None

    def _selected(self) -> list[NetloomPrefilter] | None:
        """None: it cannot be told, as one asks for labels and these are not known. The kernel stays as it is then."""
        labels, prefilters = self._own_labels(), self._prefilters.values()
        if labels is None and any(each.spec.node_selector.requirements for each in prefilters):
            return None
        return selecting(prefilters, labels or {})

    async def _desired(
        self, selected: Sequence[NetloomPrefilter], machine: Machine
    ) -> tuple[Prefiltering, tuple[Told, ...]]:
        """And what there is to tell of each of these, when it is in force."""
        if not selected:
            self._inline, self._peers, self._lifelines, self._around = {}, None, (), None
            self._rules = []
            return Prefiltering(), ()
        chosen = together(selected, machine)
        told = tuple(self._told(each, chosen) for each in selected)
        used = {texts for each in chosen.active for texts in (each.spec.deny_cidrs, each.spec.allow_cidrs)}
        self._inline = {texts: parsed for texts, parsed in self._inline.items() if texts in used}
        if not chosen.groups:
            self._rules = []
            return Prefiltering(), told
        self._rules = [*self._rules, *(NodeRules(self.work) for _ in chosen.groups)][: len(chosen.groups)]
        lifelines = self._lives_by(machine)
        for rules, group in zip(self._rules, chosen.groups, strict=True):
            filters = [Filter(each.metadata.name, self._lists_of(each), each.spec.may_cut_off_nodes) for each in group]
            await asyncio.to_thread(rules.update, filters, lifelines)
        first, *further = (each.rules for each in self._rules)
        return Prefiltering(first, chosen.devices, tuple(further)), told

    def _lists_of(self, prefilter: NetloomPrefilter) -> dict[tuple[bool, str], ParsedList]:
        spec = prefilter.spec
        found = {(False, _INLINE_DENY): self._parsed(spec.deny_cidrs)}
        found[True, _INLINE_ALLOW] = self._parsed(spec.allow_cidrs)
        for allow, references in ((False, spec.deny_from_config_maps), (True, spec.allow_from_config_maps)):
            for reference in references:
                lists = self._lists.lists(reference)[0] if self._lists is not None else {}
                found |= {(allow, key): each for key, each in lists.items()}
        return found

    def _parsed(self, texts: tuple[str, ...]) -> ParsedList:
        """The same object for the same texts."""
        if texts not in self._inline:
            self._inline[texts] = parse_list("\n".join(texts))
        return self._inline[texts]

    def _told(self, prefilter: NetloomPrefilter, chosen: Together) -> Told:
        name = prefilter.metadata.name
        problems = [chosen.problems[name]] if name in chosen.problems else []
        for reference in prefilter.spec.references:
            if self._lists is not None:
                problems += self._lists.lists(reference)[1]
            else:
                problems.append(f"ConfigMap {reference.name} is not read: manifests in a directory have none.")
        lists = {
            key: each for (_, key), each in self._lists_of(prefilter).items() if len(each.v4) + len(each.v6) or each.bad
        }
        error, devices = chosen.errors.get(name, ""), chosen.meant[name]
        return Told(name, prefilter.metadata.generation, lists, tuple(problems), error, devices)

    # --------------------------------------------------------------------------------------------- plan and cleanup

    async def plan(self) -> list[PlannedChange]:
        """From the objects as they are; what is not there once in a cluster's caches is asked for. Raises UserError."""
        try:
            if len(self._prefilters) and self._labels is not None:
                await self._labels.load()
            selected = self._selected() or []
            if self._lists is not None:
                self._lists.want(each for one in selected for each in one.spec.references)
                await self._lists.load()
        except ApiError as error:
            raise ConfigError(f"what prefilters drop cannot be read: {error}") from error
        if self._addresses is not None and selected:
            self._servers = await self._addresses.look_up()
        try:
            machine = machine_of(await read_node_network(), self._known_by()) if selected else Machine()
            return await self.keeper.plan((await self._desired(selected, machine))[0])
        except (OSError, AnswerLost) as error:
            raise ConfigError(f"what prefilters drop cannot be planned: {error}") from error


def _reached(node: NetloomNode) -> Reached:
    name = node.metadata.name
    addresses = addresses_in(one.ip for one in node.spec.addresses)
    return Reached(
        tuple(of_address(address, name) for address in addresses),
        tuple(of_pods(cidr, name) for cidr in pods_of(node)[0]),
    )
