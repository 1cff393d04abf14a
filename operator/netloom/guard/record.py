"""The record: which modes are in force, and who holds addresses, as the policies and the next decision need it."""

from netloom.api.cilium import CONFIG_NAME, spellings
from netloom.api.problem import Problem
from netloom.api.words import in_use
from netloom.guard.cilium import IPAM, migrates, modes_of
from netloom.guard.cluster_state import CILIUM_IN_USE, CILIUM_MODE, NETLOOM_IN_USE, NETLOOM_MODE, ClusterState


def wanted(live: ClusterState) -> dict[str, str]:
    """`data` of the record as it should be; keys of what is not in use are left out.

    To be asked only while everything can be seen: caches that are empty as yet say that nobody holds anything.
    """
    data: dict[str, str] = {}
    if live.cilium_held.count and (mode := cilium_mode(live)):
        data[CILIUM_MODE] = mode
        data[CILIUM_IN_USE] = in_use(live.cilium_held.count, live.cilium_held.names)
    if live.held.count and (mode := _netloom_mode(live)):
        data[NETLOOM_MODE] = mode
        data[NETLOOM_IN_USE] = in_use(live.held.count, live.held.names)
    return data


def bypassed(live: ClusterState) -> Problem | None:
    """Cilium's configuration asks for another mode than the one that is recorded while nodes hold addresses of it."""
    recorded = live.recorded.get(CILIUM_MODE, "")
    if not recorded or not live.cilium_held.count or live.cilium_data is None:
        return None
    modes = modes_of(live.cilium_data)
    if modes == (recorded,) or (recorded == "cluster-pool" and migrates(live.cilium_data)):
        return None
    mode = " or ".join(each for each in modes if each != recorded)
    message = (
        f"the IPAM mode was changed past the guard: {in_use(live.cilium_held.count, live.cilium_held.names)} of "
        f"mode {recorded}, and what restarts in mode {mode} takes the network from their pods."
    )
    way_out = (
        f"Set it back to {recorded} before Cilium restarts; if the change is meant, delete the ConfigMap that records "
        "the mode (docs/guard.md), which is then made anew."
    )
    name = f"ConfigMap {live.cilium_namespace}/{CONFIG_NAME}"
    key = next((each for each in spellings(live.cilium_data, IPAM) if live.cilium_data[each].strip() != recorded), IPAM)
    return Problem(name, f"data.{key}", live.cilium_data.get(key, ""), "ModeBypassed", message, way_out)


def cilium_mode(live: ClusterState) -> str:
    """Cilium's mode in force while addresses are in use; "" where nothing says it.

    The recorded mode stays, but for the documented migration; without one, the configuration's.

    Or the configuration's before its last change, where the first node got its addresses before that: the two were
    under way at the same time, and the guard could not know of the one when it was asked about the other.
    """
    recorded = live.recorded.get(CILIUM_MODE, "")
    if live.cilium_data is None:
        return recorded
    asked, migrating = modes_of(live.cilium_data), migrates(live.cilium_data)
    changed, before = live.cilium_before
    if live.cilium_first and live.cilium_first < changed and not migrating:
        asked = modes_of(before)
    (mode,) = asked if len(asked) == 1 else ("",)
    return mode if recorded == "cluster-pool" and migrating else recorded or mode


def _netloom_mode(live: ClusterState) -> str:
    """The mode in force: the network says it, or the nodes, as long as they agree."""
    if live.network_now and live.network_now.status.ipam.mode:
        return live.network_now.status.ipam.mode
    modes = live.held.modes - {""}
    return next(iter(modes)) if len(modes) == 1 else ""
