"""The masquerade reconciler: from NetloomNetwork and NetloomNodes to which of this node's packets are masqueraded.

It depends on no other reconciler: tunnels may be blocked, or not built for a routing mode, and pods still reach the
world outside. As there, the whole state is one key, the names of the nodes that changed are remembered beside it, and
a changed node of 10,000 costs one element of a set. Where the objects give no answer, the kernel stays as it is.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode, NetworkSpec
from netloom.cidr import Cidr
from netloom.kernel.masquerade import Masquerade
from netloom.kernel.masquerade_sets import MasqueradeRules, Masquerading
from netloom.kernel.report import MasqueradeReport
from netloom.runtime.controller import Controller
from netloom.runtime.store import Store
from netloom_reconcilers.own_side import OwnSide
from netloom_reconcilers.peers import Nodes

log = structlog.get_logger(__name__)

_RULES = "masquerade"
_NETWORK = ""
"""Whose problems are those of the network; no node has an empty name."""


def rules_of(spec: NetworkSpec, pods: tuple[Cidr, ...]) -> tuple[MasqueradeRules, tuple[str, ...]]:
    """What the network's options make of this node's pod CIDRs, and sentences about what could not be read."""
    routing, masquerade = spec.routing, spec.masquerade
    fields = {
        "spec.routing.ipv4NativeRoutingCIDR": filter(None, [routing.ipv4_native_routing_cidr]),
        "spec.routing.ipv6NativeRoutingCIDR": filter(None, [routing.ipv6_native_routing_cidr]),
        "spec.masquerade.nonMasqueradeCIDRs": masquerade.non_masquerade_cidrs,
    }
    excluded: list[Cidr] = []
    problems: list[str] = []
    for field, texts in fields.items():
        found, bad = _prefixes(f"NetloomNetwork {NETWORK_NAME}: {field}", texts)
        excluded += found
        problems += bad
    rules = MasqueradeRules(pods=pods, ipv4=masquerade.ipv4, ipv6=masquerade.ipv6, excluded=tuple(excluded))
    return rules, tuple(problems)


def pod_cidrs_of(node: NetloomNode) -> tuple[tuple[Cidr, ...], tuple[str, ...]]:
    """The node's pod CIDRs, of whatever IPAM mode, and sentences about what could not be read."""
    where = f"NetloomNode {node.metadata.name}: spec.ipam"
    found, problems = _prefixes(f"{where}.podCIDRs", node.spec.ipam.pod_cidrs)
    for allocation in node.spec.ipam.pools.allocated:
        more, bad = _prefixes(f"{where}.pools.allocated", allocation.cidrs)
        found += more
        problems += bad
    return tuple(dict.fromkeys(found)), tuple(problems)


def _prefixes(where: str, texts: Iterable[str]) -> tuple[list[Cidr], list[str]]:
    found, problems = [], []
    for text in texts:
        try:
            found.append(Cidr.parse(text))
        except ValueError as error:
            problems.append(f"{where}: {error}.")
    return found, problems


class MasqueradeReconciler:
    """Hands what is to be masqueraded to the kernel side. `blocked` and `problems` say what keeps it from being
    whole."""

    def __init__(
        self,
        node_name: str,
        networks: Store[NetloomNetwork],
        nodes: Nodes,
        masquerade: Masquerade,
        own: OwnSide,
    ) -> None:
        self.controller = Controller("masquerade", self.reconcile)
        self.applied = asyncio.Event()
        self.blocked = ""
        """Why there is nothing to apply, as a sentence."""
        self.problems: dict[str, tuple[str, ...]] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called after every run."""
        self._node_name = node_name
        self._networks = networks
        self._nodes = nodes
        self._masquerade = masquerade
        self._own = own
        self._desired = Masquerading()
        self._touched: set[str] = set()
        networks.subscribe(lambda key, old, new: self.controller.enqueue(_RULES))
        nodes.subscribe(lambda key, old, new: self._node_changed(key))

    def _node_changed(self, name: str) -> None:
        self._touched.add(name)
        self.controller.enqueue(_RULES)

    async def reconcile(self, key: str = _RULES) -> float | None:
        """Make the kernel what the objects say; what it refuses is in the report, and tried again by itself. Returns
        after how many seconds to look again at a CIDR that is to be given up."""
        await self._networks.wait_synced()
        await self._nodes.wait_synced()
        again = await self._own.look(self._nodes.get(self._node_name))
        desired = self.desired()
        if desired is not None:
            report = await self._masquerade.apply(desired)
            if not self.applied.is_set():
                self.applied.set()
                log.info("masquerading is in place", node=self._node_name, families=report.families)
        self.on_change()
        return again

    def desired(self) -> Masquerading | None:
        """The whole desired state, brought up to date with the caches; None where the objects give no answer."""
        network, node = self._networks.get(NETWORK_NAME), self._own.effective(self._nodes.get(self._node_name))
        blocked = ""
        if network is None:
            blocked = f'there is no NetloomNetwork "{NETWORK_NAME}": apply one'
        elif node is None:
            blocked = f"there is no NetloomNode {self._node_name}: the operator makes it once a Node exists"
        if blocked and blocked != self.blocked:
            log.warning("masquerading stays as it is", why=blocked)
        self.blocked = blocked
        if network is None or node is None:
            return None
        touched, self._touched = self._touched, set()
        for name in touched | {self._node_name}:
            self._take(name)
        self._desired.rules, problems = rules_of(network.spec, pod_cidrs_of(node)[0])
        self._report(_NETWORK, problems)
        return self._desired

    def _take(self, name: str) -> None:
        node = self._nodes.get(name)
        if name == self._node_name:
            node = self._own.effective(node)
        cidrs, problems = pod_cidrs_of(node) if node is not None else ((), ())
        self._desired.set_known(name, cidrs)
        self._report(name, problems)

    def _report(self, name: str, problems: tuple[str, ...]) -> None:
        if not problems:
            self.problems.pop(name, None)
        elif self.problems.get(name) != problems:
            self.problems[name] = problems
            log.warning("masquerading leaves something out", problems=problems)

    def errors(self, report: MasqueradeReport) -> list[str]:
        """All that keeps masquerading from being whole, as sentences; empty if nothing does."""
        found = [self.blocked] if self.blocked else []
        found += [problem for problems in self.problems.values() for problem in problems]
        found += [f"nftables {failure.kind} {failure.key}: {failure.error}" for failure in report.failures]
        found += [f"nftables {item}: somebody else keeps changing it; its repair is delayed" for item in report.fought]
        return found
