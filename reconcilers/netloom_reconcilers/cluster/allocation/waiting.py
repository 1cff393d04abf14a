"""The nodes that cannot be given what they need, and why; what wakes them, and how soon they ask by themselves."""

from collections.abc import Callable

from netloom.api.problem import Problem
from netloom.ipam.plan import BlockTaken, Refusal
from netloom.ipam.pool import Exhausted
from netloom_reconcilers.cluster.allocation.incarnation import Changed, Event

LAG_SECONDS = 1.0
"""When to look again where a cache lags behind what was read live; its event usually comes first."""
RECHECK_SECONDS = 60.0
"""When to look again at a node that was refused; what it waits for usually wakes it first."""
TURN_SECONDS = 600.0
"""The same of one that a pool has no block for: should those whose turn it was not have taken what came back."""

Reason = Problem | Exhausted
"""Why a node waits. Of an exhausted pool, every node is told the same, and as many are woken as blocks come back."""

_WOKEN = frozenset({"NoNetwork", "PodCIDRsMissing", "IPAMModeNotImplemented", "NoClusterCIDR", "NoDefaultPool"})
"""Reasons that end with an event."""
_PASSING = frozenset({"LedgerBusy", "ModeChanged", "NetworkBusy", "NetworkChanged", "PoolChanged"})
"""Reasons that pass by themselves."""
UNREACHABLE = frozenset({"NodeAddressMissing", "NodeAddressUnusable"})
"""Reasons that lie in the Node alone: the network warns of them, and is well."""

OF_ONE_POOL = frozenset({"PoolMissing", "PoolDraining", "PoolUnusable", "TooManyAddresses"})
"""Reasons that concern what a node asks of one NetloomIPPool: the network warns of them, and is well."""


class WaitingNodes(dict[str, Reason]):
    """By name."""

    def __init__(self, publish: Callable[[Event], None]) -> None:
        super().__init__()
        self._publish = publish

    def add(self, name: str, why: Reason) -> float | None:
        """The node waits; when to look at it again, None: not before it is woken."""
        if self.get(name) != why:
            self[name] = why
            self._publish(Changed.WAITING)
        if isinstance(why, Exhausted):
            return TURN_SECONDS if why.pool else None
        if why.reason in _WOKEN:
            return None
        return LAG_SECONDS if why.reason in _PASSING else RECHECK_SECONDS

    def remove(self, name: str) -> None:
        """The node waits no more."""
        if self.pop(name, None) is not None:
            self._publish(Changed.WAITING)

    def woken(self, freed: int | None = None) -> list[str]:
        """Whom to reconcile, as something changed that nodes wait for; `freed`: only that many blocks came back."""
        names = []
        for name, why in self.items():
            if freed is None:
                pass
            elif isinstance(why, Exhausted):
                if why.pool or not freed:
                    continue  # of a pool, those are told that need more of it
                freed -= 1
            elif why.reason in OF_ONE_POOL:
                continue  # no block ends that
            names.append(name)
        return names


def reason_of(why: Reason) -> str:
    """For a condition, an Event and a metric's label."""
    if isinstance(why, Exhausted):
        return "PoolExhausted" if why.pool else "ClusterPoolExhausted"
    return why.reason


def told_by_network(why: Reason) -> bool:
    """Whether the NetloomNetwork tells it: no object per node is written for that."""
    return isinstance(why, Problem) and why.reason in _WOKEN | _PASSING | UNREACHABLE


def problem(node: str, reason: str, message: str, way_out: str) -> Problem:
    """What is wrong with the NetloomNode of a node as a whole."""
    return Problem(f"NetloomNode {node}", "", "", reason, message, way_out)


def refused(node: str, refusal: Refusal) -> Reason:
    """Why the ledgers refused a node what it needs."""
    if isinstance(refusal, Exhausted):
        return refusal
    if isinstance(refusal, BlockTaken):
        return problem(node, "PodCIDRConflict", f"{refusal}.", "Neither is changed; remove one of the two nodes.")
    return problem(node, refusal.reason, f"{refusal.message}.", "It is tried again.")
