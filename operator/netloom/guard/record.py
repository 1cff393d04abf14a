"""The record: which modes are in force, and who holds addresses, as the policies and the next decision need it; and
what live objects show of somebody who got past the guard."""

from collections.abc import Iterator

from netloom.api.cilium import AGENTS_NAME, CONFIG_NAME, DAEMON_SETS, OPERATOR_NAME, DaemonSet, spellings
from netloom.api.core import CONFIG_MAPS
from netloom.api.events import ObjectReference
from netloom.api.problem import Problem, Severity
from netloom.api.words import NODES_HOLD, in_use, some
from netloom.guard import wording
from netloom.guard.cilium import IPAM, migrates, modes_of, who_holds
from netloom.guard.cilium_workload import overrides
from netloom.guard.cluster_state import (
    BREAK_GLASS_GROUP,
    CILIUM_IN_USE,
    CILIUM_MODE,
    NETLOOM_IN_USE,
    NETLOOM_MODE,
    RECORD_NAME,
    ClusterState,
)

MODE_BYPASSED, NODES_VANISHED, RECORD_TAMPERED = "ModeBypassed", "CiliumNodesVanished", "RecordTampered"
"""Reasons."""


class LiveProblem(Problem, frozen=True):
    """What is wrong with a live object; `about`: which that is, for an Event."""

    about: ObjectReference = ObjectReference()


def wanted(live: ClusterState) -> dict[str, str]:
    """`data` of the record as it should be; keys of what is not in use are left out.

    To be asked only while everything can be seen: caches that are empty as yet say that nobody holds anything.
    """
    data: dict[str, str] = {}
    if live.cilium_held.count and (mode := cilium_mode(live)):
        data[CILIUM_MODE] = mode
        data[CILIUM_IN_USE] = in_use(live.cilium_held.count, live.cilium_held.names)
    elif remembered(live):
        data = {CILIUM_MODE: live.recorded[CILIUM_MODE], CILIUM_IN_USE: who_holds(live)}
    if live.held.count and (mode := _netloom_mode(live)):
        data[NETLOOM_MODE] = mode
        data[NETLOOM_IN_USE] = in_use(live.held.count, live.held.names)
    return data


def remembered(live: ClusterState) -> bool:
    """Whether nothing but the record says that Cilium is in use: all CiliumNodes went while no guard ran, and Nodes are
    left of which nobody knows whether their pods have addresses."""
    return bool(live.recorded.get(CILIUM_MODE) and live.nodes and not live.cilium_seen)


def bypasses(live: ClusterState, namespace: str) -> list[LiveProblem]:
    """What has another mode follow than the one in force, or may have. namespace: of the record."""
    problem = bypassed(live, namespace)
    return [*([problem] if problem else []), *_overridden(live)]


def vanished(live: ClusterState, namespace: str) -> LiveProblem | None:
    """CiliumNodes that were taken from under their pods."""
    names = sorted(live.cilium_vanished)
    if names:
        what = f"Nodes live whose CiliumNodes were deleted or emptied ({some(names)})"
    elif remembered(live):
        before = live.recorded.get(CILIUM_IN_USE, NODES_HOLD)
        what = f"Nodes live, and no CiliumNode holds addresses any more ({before} before)"
    else:
        return None
    mode = live.recorded.get(CILIUM_MODE, "") or cilium_mode(live)
    message = f"{what}: their pods have their addresses all the same, so mode {mode} stays in force."
    way_out = (
        "Restart Cilium's agents, which make their CiliumNodes anew; a Node that is removed counts no more. If no pod "
        f"has addresses of that mode any more, {_forget(namespace)}"
    )
    about = _config_map(live.cilium_namespace, CONFIG_NAME)
    return _problem(about, f"data.{IPAM}", "", NODES_VANISHED, message, way_out, "warning")


def tampered(live: ClusterState, namespace: str) -> LiveProblem | None:
    """Somebody else wrote into the record."""
    if not live.tampered:
        return None
    message = (
        "somebody but the guard wrote down which IPAM mode is in force; what is live counts, and is written again."
    )
    way_out = f"If a change of the mode was meant and made, {_forget(namespace)}"
    field = ", ".join(f"data.{key}" for key in live.tampered)
    return _problem(_config_map(namespace, RECORD_NAME), field, "", RECORD_TAMPERED, message, way_out)


def _overridden(live: ClusterState) -> Iterator[LiveProblem]:
    mode = live.recorded.get(CILIUM_MODE, "")
    for kind, workload in sorted(live.cilium_workloads.items() if mode else ()):
        found = overrides(workload.spec.template.spec, live.cilium_namespace, mode)
        if found:
            name = AGENTS_NAME if isinstance(workload, DaemonSet) else OPERATOR_NAME
            said = {"in_use": who_holds(live), "mode": mode}
            about = ObjectReference(DAEMON_SETS.api_version, kind, name, live.cilium_namespace)
            seen = wording.CILIUM_OVERRIDE.problem("", "spec.template", "; ".join(found), **said)
            yield _problem(about, seen.field, seen.value, MODE_BYPASSED, seen.message, seen.way_out, seen.severity)


def bypassed(live: ClusterState, namespace: str) -> LiveProblem | None:
    """Cilium's configuration asks for another mode than the one that is recorded while nodes hold addresses of it."""
    recorded = live.recorded.get(CILIUM_MODE, "")
    if not recorded or not (live.cilium_held.count or remembered(live)) or live.cilium_data is None:
        return None
    modes = modes_of(live.cilium_data)
    if modes == (recorded,) or (recorded == "cluster-pool" and migrates(live.cilium_data)):
        return None
    mode = " or ".join(each for each in modes if each != recorded)
    message = (
        f"the IPAM mode was changed past the guard: {who_holds(live)} of mode "
        f"{recorded}, and what restarts in mode {mode} takes the network from their pods."
    )
    way_out = f"Set it back to {recorded} before Cilium restarts; if the change is meant, {_forget(namespace)}"
    about = _config_map(live.cilium_namespace, CONFIG_NAME)
    key = next((each for each in spellings(live.cilium_data, IPAM) if live.cilium_data[each].strip() != recorded), IPAM)
    return _problem(about, f"data.{key}", live.cilium_data.get(key, ""), MODE_BYPASSED, message, way_out)


def _config_map(namespace: str, name: str) -> ObjectReference:
    return ObjectReference(CONFIG_MAPS.api_version, CONFIG_MAPS.kind, name, namespace)


def _problem(
    about: ObjectReference,
    field: str,
    value: str,
    reason: str,
    message: str,
    way_out: str,
    severity: Severity = "error",
) -> LiveProblem:
    name = f"{about.kind} {about.namespace}/{about.name}"
    return LiveProblem(name, field, value, reason, message, way_out, severity, about)


def _forget(namespace: str) -> str:
    """The way to have the record made anew, from what is there."""
    return (
        f"delete the record, which is then made anew: kubectl delete configmap {RECORD_NAME} -n {namespace} --as=admin "
        f"--as-group=system:masters --as-group={BREAK_GLASS_GROUP}"
    )


def cilium_mode(live: ClusterState) -> str:
    """Cilium's mode in force while addresses are in use; "" where nothing says it.

    The recorded mode stays, but for the documented migration; without one, the configuration's.

    Or the configuration's before a change that came after the first node got its addresses: the two were under way at
    the same time, and the guard could not know of the one when it was asked about the other.
    """
    recorded = live.recorded.get(CILIUM_MODE, "")
    if live.cilium_data is None:
        return recorded
    asked, migrating = modes_of(live.cilium_data), migrates(live.cilium_data)
    since = (before for changed, before in live.cilium_changes if 0 < live.cilium_first < changed)
    if not migrating and (before := next(since, None)) is not None:
        asked = modes_of(before)
    (mode,) = asked if len(asked) == 1 else ("",)
    return mode if recorded == "cluster-pool" and migrating else recorded or mode


def _netloom_mode(live: ClusterState) -> str:
    """The mode in force: the network says it, or the nodes, as long as they agree."""
    if live.network_now and live.network_now.status.ipam.mode:
        return live.network_now.status.ipam.mode
    modes = live.held.modes - {""}
    return next(iter(modes)) if len(modes) == 1 else ""
