"""Tells what keeps nodes from their pod CIDRs: in the NetloomNetwork's condition `Ready` (and by that in an Event), and
in metrics. The message names the way out.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

from msgspec.structs import replace

from netloom.api.cidrs import check_nodes_outside
from netloom.api.ipam_modes import IpamMode, mode_of
from netloom.api.meta import READY
from netloom.api.odd_addresses import in_pod_cidr, is_usable
from netloom.api.problem import Problem, Severity
from netloom.api.v1alpha1 import NETWORK_NAME, NETWORKS, NetloomNetwork
from netloom.api.validation import validate_network
from netloom.api.validation.network import cluster_cidrs
from netloom.api.words import SHOWN, in_use
from netloom.cidr import Cidr, addresses_in, format_address, parse_address
from netloom.ipam import settings as ipam_settings
from netloom.ipam.known_ledgers import KnownLedger
from netloom.ipam.pool import Exhausted
from netloom.runtime.errors import Conflict
from netloom_reconcilers.cluster.allocation.commit_queue import CommitQueue
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member
from netloom_reconcilers.cluster.allocation.left_out import LeftOut
from netloom_reconcilers.cluster.allocation.lock import ModeLock
from netloom_reconcilers.cluster.allocation.metrics import PROBLEMS, WAITING
from netloom_reconcilers.cluster.allocation.refused_writes import RefusedWrites
from netloom_reconcilers.cluster.allocation.waiting import OF_ONE_POOL, UNREACHABLE, Reason, WaitingNodes, reason_of
from netloom_reconcilers.cluster.overlaps import (
    CONNECTED,
    NODES,
    OF_POOLS,
    SERVICES,
    About,
    OfNodes,
    Ranges,
    holders,
    odd,
    overlaps,
    ranges_of,
    unreadable,
)
from netloom_reconcilers.conditions import Readiness, said

GATHER_SECONDS = 0.2
"""How long news gather before they are told."""
RETELL_SECONDS = 5.0
"""How soon a condition is told again of which nothing but the numbers changed, and how soon other words of who holds
addresses are told. Every agent watches the network: 5,000 of them are sent each of these writes."""
IN_USE_KEY = f"{NETWORK_NAME}/inUse"
"""In the queue of the network's controller: its one worker does this or the condition, never both."""
QUIET_SECONDS = 0.5
"""A burst is over when ledgers were not written, and no node was being given addresses, for so long."""
PATIENCE_SECONDS = 30.0
"""How long the end of a burst is waited for: where nodes come and go without a pause, it is told in between."""
DEADLINE_SECONDS = 2.0
"""For the write of who holds addresses. One that arrives later fails by its version, or is right."""
_SHOWN = 3
_SERVICES = 32
"""CIDRs in `status.ipam.serviceCIDRs`, as many as the schema takes."""


class NetworkReconciler(Member):
    """Its one key is the network's name."""

    def __init__(
        self,
        incarnation: Incarnation,
        lock: ModeLock,
        configuration: AllocationConfiguration,
        left_out: LeftOut,
        waiting: WaitingNodes,
        refused: RefusedWrites,
        crashes: Callable[[], Iterable[str]],
    ) -> None:
        super().__init__(incarnation)
        self._lock = lock
        self._configuration = configuration
        self._reserved = configuration.reserved
        self._left_out = left_out
        self._waiting = waiting
        self._refused = refused
        self._crashes = crashes
        self._told_at = float("-inf")
        self._told = (False, "")
        """What the condition said: status and reason."""

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
        reason = problems[0].reason if problems else "Accepted"
        wait = self._told_at + RETELL_SECONDS - self._clock()
        if (not errors, reason) == self._told and wait > 0:
            return wait
        good = [] if errors else [_good(mode_of(network))]
        message = " ".join([*good, *(said(problem, _NETWORK) for problem in problems)])
        readiness = Readiness(not errors, reason, message, warns=bool(problems))
        written = await self._conditions.set(NETWORKS, network, READY, readiness)
        self._told, self._told_at = (not errors, reason), self._clock()
        if written is not None:
            self._networks.put(written)
        return None

    async def tell_crash(self, crash: str) -> None:
        """Says so at the network, without a look at anything that may have crashed."""
        problem = _crashed(crash)
        readiness = Readiness(False, problem.reason, said(problem, _NETWORK))
        while (network := self._networks.get(NETWORK_NAME)) is not None:
            with suppress(Conflict):
                await self._conditions.set(NETWORKS, network, READY, readiness)
                return
            self._networks.put(await self._api.get(NETWORKS, NETWORK_NAME))

    # What is wrong

    def _problems(self, network: NetloomNetwork | None) -> list[Problem]:
        """What the network says, then what became of it; errors before warnings."""
        found = [_crashed(crash) for crash in self._crashes()]
        held = holders(self._allocator)
        if network is not None:
            mode = mode_of(network)
            found += [] if mode.is_implemented else [ipam_settings.not_implemented(mode.name)]
            found += validate_network(network) + self._nodes_inside(network) + self._overlaps(network, held)
        found += self._left_out.problems(_NETWORK) + self._odd(held)
        found += [_unreadable(known) for known in self._allocator.ledgers.values() if known.problem]
        found += self._refused.problems()
        found += self._ambiguous(network) or _waiting(self._waiting.items(), self._allocator.singles.nodes())
        return sorted(found, key=lambda problem: problem.severity)

    def _ambiguous(self, network: NetloomNetwork | None) -> list[Problem]:
        """Nothing is in force, and nodes hold addresses of several modes: until that ends, all else follows from it."""
        why = self._lock.ambiguous
        if why is None or network is None or network.status.ipam.mode or not self._allocator.in_use():
            return []
        return [Problem(_NETWORK, "", "", why.reason, str(why), "")]

    def _nodes_inside(self, network: NetloomNetwork) -> list[Problem]:
        """Cluster CIDRs with addresses of nodes in them. Of most nodes: the CIDR is wrong. Of few: those are odd, and
        nobody else has to suffer for it, as the blocks are passed over."""
        cidrs = cluster_cidrs(network)
        inside: dict[str, list[str]] = {}
        for name, found in self._reserved.addresses.items() if cidrs else ():
            accepted = self._accepted(name)
            for address in found:
                if name not in self._left_out.names and (
                    address in accepted or self._allocator.given(address.packed) is None
                ):
                    inside.setdefault(name, []).append(format_address(address.packed))
        most = 2 * len(inside) > len(self._nodes) - len(self._left_out.names)
        severity: Severity = "error" if most else "warning"
        problems = check_nodes_outside(cidrs, inside, object=_NETWORK, reason="ClusterCIDROverlapsNodes")
        return [replace(problem, severity=severity) for problem in problems]

    def _overlaps(self, network: NetloomNetwork, held: list[tuple[str, Cidr]]) -> list[Problem]:
        """What nodes hold, or could be given, of what is no pod's."""
        reserved, of = self._allocator.blocks.reserved, self._reserved
        cidrs = cluster_cidrs(network)
        whole = [cidr for _, cidr in cidrs if (around := reserved.overlap(cidr)) and around.contains(cidr)]
        services, networks = Ranges(reserved, of.services.known), Ranges(reserved, ranges_of(of.networks))
        elsewhere = OF_POOLS if mode_of(network).from_pools else ""
        found = overlaps(SERVICES, services, cidrs, held, _CIDRS, whole, elsewhere)
        found += overlaps(CONNECTED, networks, cidrs, held, _CIDRS, whole, elsewhere)
        if unusual := of.odd:
            found += odd([each for each in ranges_of(of.networks) if each.cidr in unusual], cidrs, _CIDRS)
        found += overlaps(NODES, self._nodes_near(held, accepted=True), (), held, _CIDRS)
        return [*found, unreadable(of.services.unreadable, _NETWORK)] if of.services.unreadable else found

    def _nodes_near(self, held: list[tuple[str, Cidr]], *, accepted: bool) -> Ranges[OfNodes]:
        """Where blocks are `held` that hold something else, the addresses of nodes; by which others send to them, or
        not."""
        addresses = self._reserved.addresses.items() if held else ()
        chosen = {
            name: [each for each in cidrs if (each in self._accepted(name)) == accepted] for name, cidrs in addresses
        }
        return Ranges(self._allocator.blocks.reserved, ranges_of(chosen))

    def _accepted(self, name: str) -> set[Cidr]:
        """The addresses by which others send to the node."""
        obj = self._netloom_nodes.get(name)
        texts = [each.ip for each in obj.spec.addresses if each.type == "InternalIP"] if obj is not None else ()
        return set(map(Cidr.of, addresses_in(texts)))

    def _odd(self, held: list[tuple[str, Cidr]]) -> list[Problem]:
        """Addresses of Nodes that are not accepted, by Node; who waits for one is told of elsewhere."""
        found = {name: problem for problem, name in self._in_pod_cidrs(held)} | self._configuration.odd
        odd = [
            problem
            for name, problem in sorted(found.items())
            if name not in self._left_out.names and name not in self._waiting
        ]
        if not odd:
            return []
        more = f" {len(odd) - 1} more Nodes report such." if odd[1:] else ""
        return [replace(odd[0], message=f"{odd[0].message}{more}")]

    def _in_pod_cidrs(self, held: list[tuple[str, Cidr]]) -> Iterator[tuple[Problem, str]]:
        near = self._nodes_near(held, accepted=False).near
        for block, name in [(cidr, name) for _, cidr in held for found in near(cidr) for name in found.nodes]:
            if (node := self._nodes.get(name)) is None:
                continue
            for number, each in enumerate(node.status.addresses):
                usable = each.type == "InternalIP" and is_usable(each.address)
                if usable and block.holds(parse_address(each.address)):
                    yield in_pod_cidr(node, number, block), name

    def _measure(self, problems: Iterable[Problem]) -> None:
        PROBLEMS.clear()
        for problem in problems:
            PROBLEMS.labels(problem.reason).set(1)
        WAITING.clear()
        for reason, count in Counter(map(reason_of, self._waiting.values())).items():
            WAITING.labels(reason).set(count)


class InUseReconciler(Member):
    """Keeps `status.ipam.inUse`: who holds addresses, in words that refusals can repeat, as the API server's rules see
    one object at a time; and beside it `nodesLeftOut`, without which agents that miss NetloomNodes could not tell that
    none is missing. Its one key is `IN_USE_KEY`, looked at `QUIET_SECONDS` after the network or ledgers changed.

    Nobody waits for it. So it is written by compare-and-swap when a burst of nodes has got
    its CIDRs, lest it be written beside a lock that opened meanwhile, and gives up after a moment, lest a condition or
    the lock wait behind it.
    """

    def __init__(
        self,
        incarnation: Incarnation,
        lock: ModeLock,
        commits: CommitQueue,
        configuration: AllocationConfiguration,
        left_out: LeftOut,
        waiting: WaitingNodes,
    ) -> None:
        super().__init__(incarnation)
        self._lock = lock
        self._commits = commits
        self._configuration = configuration
        self._services = configuration.reserved.services
        self._left_out = left_out
        self._waiting = waiting
        self._changed_at = float("-inf")
        self._untold_since: float | None = None
        self._told_at = float("-inf")

    def ledgers_changed(self) -> None:
        """Ledgers were written or read: the burst of nodes goes on."""
        self._changed_at = self._clock()

    async def reconcile(self) -> float | None:
        """Tells who holds addresses, if that is not what the network says, and if now is the time."""
        network = self._lock.network
        if network is None or not self._commits.loaded.is_set():
            return None  # both are told when they come
        now = self._clock()
        self._untold_since = now if self._untold_since is None else self._untold_since
        if now < self._untold_since + PATIENCE_SECONDS:
            if self._commits.busy:
                return QUIET_SECONDS
            if now < self._changed_at + QUIET_SECONDS:
                return self._changed_at + QUIET_SECONDS - now
        words = self._words() if network.status.ipam.mode else ""
        left_out, services, ipam = self._nodes_left_out(), self._service_cidrs(network), network.status.ipam
        if (words, left_out, services) != (ipam.in_use, ipam.nodes_left_out, ipam.service_cidrs):
            if now < self._told_at + RETELL_SECONDS:
                return self._told_at + RETELL_SECONDS - now
            self._told_at = now
            if not await self._tell(words, left_out, services):
                return RETELL_SECONDS
        self._untold_since = None
        return None

    async def _tell(self, words: str, left_out: int, services: tuple[str, ...] | None) -> bool:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._lock.tell(words, left_out, services)
        except TimeoutError:
            return False

    def _service_cidrs(self, network: NetloomNetwork) -> tuple[str, ...] | None:
        """Of what Services get their addresses of, that which overlaps CIDRs that blocks are given of; the last known
        if nothing is. None where there are none: one that comes is not to meet an answer that was not about it."""
        known = [each.cidr for each in self._services.known]
        if not known:
            return network.status.ipam.service_cidrs
        settings = self._configuration.settings
        mine = [cidr for family in settings.families for cidr in family.cidrs] if settings else []
        if not mine:
            return None
        return tuple(str(cidr) for cidr in sorted(set(known)) if any(map(cidr.overlaps, mine)))[:_SERVICES]

    def _nodes_left_out(self) -> int:
        """Nodes without a NetloomNode that are meant to have none."""
        unreachable = sum(
            1
            for name, why in self._waiting.items()
            if reason_of(why) in UNREACHABLE and name not in self._netloom_nodes
        )
        return self._left_out.without_object() + unreachable

    def _words(self) -> str:
        holders = self._allocator.holders()
        return in_use(len(holders), heapq.nsmallest(SHOWN, holders)) if holders else ""


def _crashed(crash: str) -> Problem:
    return Problem(_NETWORK, "", "", "OperatorCrashed", f"In the operator, {crash}", "")


def _unreadable(known: KnownLedger) -> Problem:
    message = f"{known.problem}; nothing is given out of {known.range}."
    way_out = "docs/allocation.md says how to recover it."
    return Problem(f"NetloomLedger {known.name}", "spec.entries", "", "LedgerUnreadable", message, way_out)


def _good(mode: IpamMode) -> str:
    if mode.from_outside:
        return f"Nodes use the addresses that are written into their NetloomNodes, in IPAM mode {mode.name}."
    return f"Nodes are given their pod CIDRs in IPAM mode {mode.name}."


def _waiting(waiting: Iterable[tuple[str, Reason]], served: Collection[str]) -> list[Problem]:
    """One problem per reason, and per pool that is full, with how many nodes, some of them by name, and what to do.
    `served`: who has addresses from outside."""
    by_reason: dict[tuple[str, str], list[tuple[str, Reason]]] = {}
    for name, why in sorted(waiting, key=lambda item: item[0]):
        pool = why.pool if isinstance(why, Exhausted) else ""
        by_reason.setdefault((reason_of(why), pool), []).append((name, why))
    warned = UNREACHABLE | OF_ONE_POOL | ({"NoAddresses"} if served else set())
    told = ((reason, nodes) for (reason, _), nodes in sorted(by_reason.items()) if reason not in _TOLD_BY_SETTINGS)
    return [_group(reason, nodes, "warning" if reason in warned else "error") for reason, nodes in told]


_TOLD_BY_SETTINGS = frozenset({"IPAMModeNotImplemented", "NoClusterCIDR", "NoNetwork"})


def _group(reason: str, nodes: list[tuple[str, Reason]], severity: Severity) -> Problem:
    names = ", ".join(name for name, _ in nodes[:_SHOWN]) + (", ..." if len(nodes) > _SHOWN else "")
    why = nodes[0][1]
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ({names})"
    if isinstance(why, Exhausted) and why.pool:
        way_out = f"Append a CIDR to spec.ipv{why.version}.cidrs of the pool."
        return Problem(_NETWORK, "", "", reason, f"{count} in need of more addresses: {why}.", way_out, "warning")
    if isinstance(why, Exhausted):
        field = f"spec.ipam.clusterPool.ipv{why.version}PodCIDRList"
        way_out = f"Append a CIDR to {field}, or remove nodes."
        return Problem(_NETWORK, "", "", reason, f"{count} without a pod CIDR: {why}.", way_out)
    return Problem(_NETWORK, "", "", reason, f"{count}: {said(why, why.object)}", "", severity)


_NETWORK = f"NetloomNetwork {NETWORK_NAME}"
_CIDRS = About(_NETWORK)
