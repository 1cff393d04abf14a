"""Follows the NetloomNetwork: what it says becomes settings, what is wrong becomes its condition `Ready`.

Everything that keeps a node from its pod CIDR is told in three places: here, in an Event (through the condition) and
in metrics. The message names the way out.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from netloom.api.core import Node
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork
from netloom.api.validation import validate_network
from netloom.cidr import Cidr, format_address, parse_address
from netloom.ipam import settings as ipam_settings
from netloom.ipam.book import Book, Shard
from netloom.ipam.pool import Exhausted
from netloom.ipam.settings import Settings
from netloom.runtime.store import Store, Unsubscribe
from netloom_reconcilers.allocation_metrics import PROBLEMS, WAITING
from netloom_reconcilers.conditions import Conditions, said
from netloom_reconcilers.ledgers import Ledgers
from netloom_reconcilers.nodes import Caches, NodesReconciler

GATHER_SECONDS = 0.2
"""How long news gather before they are told."""
RETELL_SECONDS = 5.0
"""How soon a condition is told again of which nothing but the numbers changed."""
_SHOWN = 3


class NetworkReconciler:
    """Its one key is the network's name."""

    def __init__(
        self,
        networks: Store[NetloomNetwork],
        caches: Caches,
        book: Book,
        ledgers: Ledgers,
        reconciler: NodesReconciler,
        conditions: Conditions,
        clock: Callable[[], float],
        enqueue_after: Callable[[str, float], None],
        crashes: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._networks = networks
        self._nodes = caches.nodes
        self._netloom_nodes = caches.netloom_nodes
        self._book = book
        self._ledgers = ledgers
        self._reconciler = reconciler
        self._conditions = conditions
        self._clock = clock
        self._enqueue_after = enqueue_after
        self._crashes = crashes
        self._inside: dict[str, tuple[Cidr, ...]] = {}
        self._told_at = float("-inf")
        self._told = ""

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [self._networks.subscribe(self._network_changed), self._nodes.subscribe(self._node_changed)]

    def changed(self) -> None:
        """There may be news to tell."""
        self._enqueue_after(NETWORK_NAME, GATHER_SECONDS)

    def committed(self) -> None:
        """Ledgers were written or read; what was told of them may be old."""
        self._enqueue_after(NETWORK_NAME, RETELL_SECONDS)

    async def reconcile(self, name: str) -> float | None:
        """Tells what is wrong, or that nothing is."""
        network = self._networks.get(name)
        if name != NETWORK_NAME:
            return None
        problems = self._problems(network)
        self._measure(problems)
        if network is None:
            return None
        errors = [problem for problem in problems if problem.severity == "error"]
        reason = errors[0].reason if errors else "Accepted"
        wait = self._told_at + RETELL_SECONDS - self._clock()
        if reason == self._told and wait > 0:
            return wait
        self._told, self._told_at = reason, self._clock()
        mode = network.status.ipam.mode or network.spec.ipam.mode
        good = [] if errors else [f"Nodes are given their pod CIDRs in IPAM mode {mode}."]
        message = " ".join([*good, *(said(problem, _NETWORK) for problem in problems)])
        written = await self._conditions.network(network, "False" if errors else "True", reason, message)
        if written is not None:
            self._networks.put(written)
        return None

    async def tell_crash(self, crash: str) -> None:
        """Says so at the network, without a look at anything that may have crashed."""
        if (network := self._networks.get(NETWORK_NAME)) is not None:
            problem = _crashed(crash)
            await self._conditions.network(network, "False", problem.reason, said(problem, _NETWORK))

    # Caches

    def _network_changed(self, key: str, old: NetloomNetwork | None, new: NetloomNetwork | None) -> None:
        if key != NETWORK_NAME:
            return
        self._configure(new)
        self._ledgers.look()
        self.changed()

    def _configure(self, network: NetloomNetwork | None) -> None:
        settings = None
        if network is not None:
            ipam = network.status.ipam
            settings = ipam_settings.read(network.spec.ipam, ipam.mode or network.spec.ipam.mode)
        if settings == self._reconciler.settings:
            return
        self._reconciler.settings = settings
        self._inside.clear()
        for name, node in self._nodes.items():
            self._note_addresses(name, node)
        self._configure_book()
        self._reconciler.wake()

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        before = self._inside.get(key)
        self._note_addresses(key, new)
        if before != self._inside.get(key):
            self._configure_book()
            self._reconciler.wake()
            self.changed()

    def _note_addresses(self, name: str, node: Node | None) -> None:
        settings = self._reconciler.settings
        found = []
        if node is not None and settings is not None and settings.families:
            known = self._reconciler.addresses.of(node, self._netloom_nodes.get(name))
            for each in known.addresses:
                address = Cidr.of(parse_address(each.ip))
                if ipam_settings.inside(settings.families, address):
                    found.append(address)
        if found:
            self._inside[name] = tuple(found)
        else:
            self._inside.pop(name, None)

    def _configure_book(self) -> None:
        settings = self._reconciler.settings or Settings("")
        reserved = {address for found in self._inside.values() for address in found}
        self._book.configure(settings.mode, settings.pools(), reserved)

    # What is wrong

    def _problems(self, network: NetloomNetwork | None) -> list[Problem]:
        """What the network says, then what became of it; errors before warnings."""
        found = [_crashed(crash) for crash in self._crashes()]
        if network is not None:
            mode = network.status.ipam.mode or network.spec.ipam.mode
            found += [] if mode in ipam_settings.IMPLEMENTED else [ipam_settings.not_implemented(mode)]
            inside = {name: [format_address(each.packed) for each in known] for name, known in self._inside.items()}
            found += validate_network(network, node_addresses=inside)
        found += [_unreadable(shard) for shard in self._book.shards.values() if shard.problem]
        found += _waiting(self._reconciler.waiting.items())
        return sorted(found, key=lambda problem: problem.severity)

    def _measure(self, problems: Iterable[Problem]) -> None:
        PROBLEMS.clear()
        for problem in problems:
            PROBLEMS.labels(problem.reason).set(1)
        WAITING.clear()
        for reason, count in Counter(map(_reason, self._reconciler.waiting.values())).items():
            WAITING.labels(reason).set(count)


def _crashed(crash: str) -> Problem:
    return Problem(_NETWORK, "", "", "OperatorCrashed", f"In the operator, {crash}", "")


def _unreadable(shard: Shard) -> Problem:
    message = f"{shard.problem}; nothing is given out of {shard.region}."
    way_out = "docs/allocation.md says how to recover it."
    return Problem(f"NetloomLedger {shard.name}", "spec.entries", "", "LedgerUnreadable", message, way_out)


def _waiting(waiting: Iterable[tuple[str, Problem | Exhausted]]) -> list[Problem]:
    """One problem per reason, with how many nodes, some of them by name, and what to do."""
    by_reason: dict[str, list[tuple[str, Problem | Exhausted]]] = {}
    for name, why in sorted(waiting, key=lambda item: item[0]):
        by_reason.setdefault(_reason(why), []).append((name, why))
    return [_group(reason, nodes) for reason, nodes in sorted(by_reason.items()) if reason not in _TOLD_BY_SETTINGS]


_TOLD_BY_SETTINGS = frozenset({"IPAMModeNotImplemented", "NoClusterCIDR", "NoNetwork"})


def _group(reason: str, nodes: list[tuple[str, Problem | Exhausted]]) -> Problem:
    names = ", ".join(name for name, _ in nodes[:_SHOWN]) + (", ..." if len(nodes) > _SHOWN else "")
    why = nodes[0][1]
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ({names})"
    if isinstance(why, Exhausted):
        field = f"spec.ipam.clusterPool.ipv{why.version}PodCIDRList"
        way_out = f"Append a CIDR to {field}, or remove nodes."
        return Problem(_NETWORK, "", "", reason, f"{count} without a pod CIDR: {why}.", way_out)
    return Problem(_NETWORK, "", "", reason, f"{count}: {said(why, why.object)}", "")


def _reason(why: Problem | Exhausted) -> str:
    return "ClusterPoolExhausted" if isinstance(why, Exhausted) else why.reason


_NETWORK = f"NetloomNetwork {NETWORK_NAME}"
