"""What was found around the data path, in sentences: what it is about, why that matters, and the command that mends it.

They become a condition's message, which every agent hears of, so none holds a figure that always moves: those are in
metrics and on /status.
"""

from collections.abc import Iterable

from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.kernel.surroundings.detours import Detour
from netloom.kernel.surroundings.part import SurroundingsFound, UnfilteredBridge
from netloom.kernel.surroundings.tables import Conntrack, NeighbourTable
from netloom.kernel.sysctl import Sysctl

_MAIN = 32766
"""The priority of the rule that the kernel makes for the main table (net/ipv4/fib_rules.c, fib_default_rules_init)."""
_OPTION = f"spec.limits.raise of NetloomNetwork {NETWORK_NAME}"


def errors(found: SurroundingsFound, memory: int) -> list[str]:
    """What keeps packets of pods from passing. memory: of the machine, in bytes."""
    sentences = [detour_text(each) for each in found.detours]
    sentences += [
        _full_neighbours(table, found)
        for table in found.tables.neighbours
        if table.needed >= table.thresholds[2] or table.family in found.refused
    ]
    tracked = found.tables.conntrack
    if tracked is not None and "conntrack" in found.refused:
        why = f"net.netfilter.nf_conntrack_max is {tracked.limit}, and connections were refused for want of room."
        sentences.append(f"{why} {_raise(tracked.raised(memory), found)}")
    return sentences


def warnings(found: SurroundingsFound, memory: int) -> list[str]:
    """What will keep them, or keeps only some."""
    sentences = [_unfiltered(each) for each in found.unfiltered]
    for table in found.tables.neighbours:
        if table.thresholds[1] <= table.needed < table.thresholds[2] and table.family not in found.refused:
            why = (
                f"net.{table.family}.neigh.default.gc_thresh2 is {table.thresholds[1]}, and {_neighbours(table)}: "
                "above it the kernel forgets them every few seconds, and asks for them again."
            )
            sentences.append(f"{why} {_raise(table.raised(), found)}")
    tracked = found.tables.conntrack
    if tracked is not None and tracked.is_nearly_full and "conntrack" not in found.refused:
        why = f"net.netfilter.nf_conntrack_max is {tracked.limit}, and so many connections are nearly reached."
        sentences.append(f"{why} {_raise(tracked.raised(memory), found)}")
    return sentences


def detour_text(detour: Detour) -> str:
    """A sentence about a policy rule."""
    rule, ip = detour.rule, "ip rule" if detour.cidr.version == 4 else "ip -6 rule"
    more = f" and {detour.count - 1} more CIDRs" if detour.count > 1 else ""
    whose = f" (of {detour.node})" if detour.node else ""
    packets = f"to pods of this node ({detour.cidr}{more})" if detour.inward else f"to {detour.cidr}{whose}{more}"
    if rule.is_end:
        return (
            f"No {ip} has the main table asked, which has the route: packets {packets} are dropped. Put the kernel's "
            f"own rule back: {ip} add pref {_MAIN} lookup main"
        )
    what = f"leads packets {packets} out of {detour.device}" if detour.device else f"drops packets {packets}"
    main = f"to {detour.cidr} lookup main" if detour.count == 1 else "lookup main suppress_prefixlength 0"
    before = (
        f"Have the main table asked before it ({ip} add pref {rule.priority - 1} {main}). " if rule.priority > 1 else ""
    )
    return (
        f"{ip} {rule.priority} ({rule.text}) {what}, before the main table is asked, which has the route. {before}"
        f"If nobody needs the rule, take it away: {ip} delete pref {rule.priority} {rule.text}"
    )


def _full_neighbours(table: NeighbourTable, found: SurroundingsFound) -> str:
    what = f"and {_neighbours(table)}" if table.needed >= table.thresholds[2] else "and was reached"
    why = (
        f"net.{table.family}.neigh.default.gc_thresh3 is {table.thresholds[2]}, {what}: beyond it the kernel takes no "
        "more, and drops packets to them."
    )
    return f"{why} {_raise(table.raised(), found)}"


def _neighbours(table: NeighbourTable) -> str:
    """Rounded down to one digit: it moves with every pod."""
    size = 10 ** (len(str(table.needed)) - 1)
    return f"this node's peers without a tunnel and its pods are {table.needed // size * size} neighbours or more"


def _raise(wanted: Iterable[Sysctl], found: SurroundingsFound) -> str:
    settings = {sysctl.name: f"{sysctl.dotted}={sysctl.value}" for sysctl in wanted}
    if not settings:
        return "The machine has too little memory for a higher limit: find out who opens so many."
    command = f"sysctl -w {' '.join(settings.values())}"
    refusals = list(dict.fromkeys(why for name, why in found.unset.items() if name in settings))
    if refusals:
        return f"The agent cannot raise it ({refusals[0]}); on the machine itself: {command}"
    return f"Raise it ({command}), or let agents do so ({_OPTION})."


def _unfiltered(bridge: UnfilteredBridge) -> str:
    name = bridge.switch.replace("/", ".")
    load = "" if bridge.value else "modprobe br_netfilter && "
    return (
        f"Bridge {bridge.name}: {name} is {bridge.value or 'not there'}, so packets between pods on it go around rules "
        "that translate Services' addresses: a pod gets no answer of a Service whose pod is on the same bridge. "
        f"{load}sysctl -w {name}=1"
    )


def figures(found: SurroundingsFound) -> dict[str, object]:
    """For /status."""
    tables = {table.family: {"needed": table.needed, "limit": table.thresholds[2]} for table in found.tables.neighbours}
    tracked: Conntrack | None = found.tables.conntrack
    connections = {"entries": tracked.count, "limit": tracked.limit} if tracked is not None else {}
    return {
        "detours": len(found.detours),
        "neighbours": tables,
        "connections": connections,
        "refused": dict(found.refused),
    }
