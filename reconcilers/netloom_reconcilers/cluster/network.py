"""Tells what keeps nodes from their pod CIDRs: in the NetloomNetwork's condition `Ready` (and by that in an Event), and
in metrics. The message names the way out.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, NETWORKS, NetloomNetwork
from netloom.api.validation import validate_network
from netloom.cidr import format_address
from netloom.ipam import settings as ipam_settings
from netloom.ipam.known_ledgers import KnownLedger
from netloom.ipam.pool import Exhausted
from netloom_reconcilers.cluster.allocation.configuration import AllocationConfiguration, mode_of
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member
from netloom_reconcilers.cluster.allocation.metrics import PROBLEMS, WAITING
from netloom_reconcilers.cluster.allocation.waiting import Reason, WaitingNodes, reason_of
from netloom_reconcilers.conditions import said

GATHER_SECONDS = 0.2
"""How long news gather before they are told."""
RETELL_SECONDS = 5.0
"""How soon a condition is told again of which nothing but the numbers changed."""
_SHOWN = 3


class NetworkReconciler(Member):
    """Its one key is the network's name."""

    def __init__(
        self,
        incarnation: Incarnation,
        configuration: AllocationConfiguration,
        waiting: WaitingNodes,
        crashes: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        super().__init__(incarnation)
        self._configuration = configuration
        self._waiting = waiting
        self._crashes = crashes
        self._told_at = float("-inf")
        self._told = ""

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
        good = [] if errors else [f"Nodes are given their pod CIDRs in IPAM mode {mode_of(network)}."]
        message = " ".join([*good, *(said(problem, _NETWORK) for problem in problems)])
        written = await self._conditions.set(NETWORKS, network, "Ready", not errors, reason, message)
        if written is not None:
            self._networks.put(written)
        return None

    async def tell_crash(self, crash: str) -> None:
        """Says so at the network, without a look at anything that may have crashed."""
        if (network := self._networks.get(NETWORK_NAME)) is not None:
            problem = _crashed(crash)
            await self._conditions.set(NETWORKS, network, "Ready", False, problem.reason, said(problem, _NETWORK))

    # What is wrong

    def _problems(self, network: NetloomNetwork | None) -> list[Problem]:
        """What the network says, then what became of it; errors before warnings."""
        found = [_crashed(crash) for crash in self._crashes()]
        if network is not None:
            mode = mode_of(network)
            found += [] if mode in ipam_settings.IMPLEMENTED else [ipam_settings.not_implemented(mode)]
            inside = self._configuration.inside.items()
            addresses = {name: [format_address(each.packed) for each in found_inside] for name, found_inside in inside}
            found += validate_network(network, node_addresses=addresses)
        found += [_unreadable(known) for known in self._allocator.ledgers.values() if known.problem]
        found += _waiting(self._waiting.items())
        return sorted(found, key=lambda problem: problem.severity)

    def _measure(self, problems: Iterable[Problem]) -> None:
        PROBLEMS.clear()
        for problem in problems:
            PROBLEMS.labels(problem.reason).set(1)
        WAITING.clear()
        for reason, count in Counter(map(reason_of, self._waiting.values())).items():
            WAITING.labels(reason).set(count)


def _crashed(crash: str) -> Problem:
    return Problem(_NETWORK, "", "", "OperatorCrashed", f"In the operator, {crash}", "")


def _unreadable(known: KnownLedger) -> Problem:
    message = f"{known.problem}; nothing is given out of {known.range}."
    way_out = "docs/allocation.md says how to recover it."
    return Problem(f"NetloomLedger {known.name}", "spec.entries", "", "LedgerUnreadable", message, way_out)


def _waiting(waiting: Iterable[tuple[str, Reason]]) -> list[Problem]:
    """One problem per reason, with how many nodes, some of them by name, and what to do."""
    by_reason: dict[str, list[tuple[str, Reason]]] = {}
    for name, why in sorted(waiting, key=lambda item: item[0]):
        by_reason.setdefault(reason_of(why), []).append((name, why))
    return [_group(reason, nodes) for reason, nodes in sorted(by_reason.items()) if reason not in _TOLD_BY_SETTINGS]


_TOLD_BY_SETTINGS = frozenset({"IPAMModeNotImplemented", "NoClusterCIDR", "NoNetwork"})


def _group(reason: str, nodes: list[tuple[str, Reason]]) -> Problem:
    names = ", ".join(name for name, _ in nodes[:_SHOWN]) + (", ..." if len(nodes) > _SHOWN else "")
    why = nodes[0][1]
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ({names})"
    if isinstance(why, Exhausted):
        field = f"spec.ipam.clusterPool.ipv{why.version}PodCIDRList"
        way_out = f"Append a CIDR to {field}, or remove nodes."
        return Problem(_NETWORK, "", "", reason, f"{count} without a pod CIDR: {why}.", way_out)
    return Problem(_NETWORK, "", "", reason, f"{count}: {said(why, why.object)}", "")


_NETWORK = f"NetloomNetwork {NETWORK_NAME}"
