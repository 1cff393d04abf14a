"""What is refused of writes to CiliumNodeConfigs while CiliumNodes hold addresses: another IPAM mode for some nodes.

When an agent starts, it reads cilium-config, and over it the CiliumNodeConfigs of Cilium's namespace that select its
Node. They may set any key, unless the Helm values `daemon.configSources`, `allowedConfigOverrides` and
`blockedConfigOverrides` say otherwise. (Source: cilium-dbg/cmd/build-config.go and pkg/option/resolver of
cilium/cilium, and Documentation/configuration/per-node-config.rst.)

The live migration from cluster-pool to multi-pool is no exception here: Cilium's operator makes it, whose mode and flag
are those of cilium-config, and agents follow as they restart. (Source: cluster-pool-to-multi-pool.rst in
Documentation/network/concepts/ipam, Cilium 1.20.)
"""

from netloom.api.cilium import CONFIG_NAME, CiliumNodeConfig, spellings
from netloom.api.problem import Problem
from netloom.guard import wording
from netloom.guard.cilium import IPAM, MIGRATION_MODES, who_holds
from netloom.guard.cluster_state import CILIUM_MODE, ClusterState
from netloom.guard.decode import Change
from netloom.guard.record import cilium_mode
from netloom.guard.verdict import ALLOWED, Ruling

_IPAM_FIELD, _SELECTOR_FIELD = f"spec.defaults.{IPAM}", "spec.nodeSelector"


def decide_cilium_node_config(change: Change[CiliumNodeConfig], live: ClusterState) -> Ruling:
    """The verdict on one write of a CiliumNodeConfig in Cilium's namespace."""
    old, new = _override(change.old), _override(change.new)
    # Which nodes are selected is not looked at: the labels of 5,000 nodes would have to be kept, and they change. As
    # Cilium's operator runs in one mode, another one is wrong for whichever nodes it would be.
    if set(old.values()) == set(new.values()) and (not new or not _selects_others(change)):
        return ALLOWED
    mode, unknown = _in_force(live)
    if not mode:
        return Ruling(unseen=unknown if new else ())
    was, wanted = (next((value for value in each.values() if value != mode), mode) for each in (old, new))
    if wanted == mode:
        return Ruling(warnings=() if was == mode else (_way_back(change.name, was, mode, new.get(IPAM, "")),))
    if was == wanted and not _selects_others(change):
        return ALLOWED
    refusal = wording.CILIUM_NODE_SELECTOR if was == wanted else wording.CILIUM_NODE_MODE
    if (mode, wanted) == MIGRATION_MODES:
        refusal += wording.CILIUM_NODE_MIGRATION
    key = next(key for key, value in new.items() if value != mode)
    field, value = (_SELECTOR_FIELD, "") if was == wanted else (f"spec.defaults.{key}", wanted)
    said = {"in_use": who_holds(live), "mode": mode, "wanted": wanted or wording.CILIUM_NO_MODE}
    return Ruling(refusals=(refusal.problem(change.name, field, value, **said),))


def _override(config: CiliumNodeConfig | None) -> dict[str, str]:
    """The mode that a configuration sets for its nodes, by the key as it is written; of several spellings any may
    count. Empty where it leaves the nodes in the mode of the cluster."""
    defaults = config.spec.defaults if config else {}
    return {key: defaults[key].strip() for key in spellings(defaults, IPAM)}


def _selects_others(change: Change[CiliumNodeConfig]) -> bool:
    old, new = change.old, change.new
    return old is not None and new is not None and old.spec.node_selector != new.spec.node_selector


def _in_force(live: ClusterState) -> tuple[str, tuple[str, ...]]:
    """The mode that nodes hold addresses of, or why it is not known; neither while nobody holds any."""
    if unseen := live.missing("ConfigMap"):
        return "", unseen
    recorded = live.recorded.get(CILIUM_MODE, "")
    if not recorded and not live.cilium_held.count:
        return "", live.missing("CiliumNode")
    if not recorded and (unseen := live.missing(CONFIG_NAME)):
        return "", unseen
    mode = cilium_mode(live)
    return mode, () if mode else (f"{CONFIG_NAME}: there is none, and so no mode that nodes hold addresses of",)


def _way_back(name: str, was: str, mode: str, value: str) -> Problem:
    message = (
        f"where Cilium started in mode {was or wording.CILIUM_NO_MODE}, it goes back to mode {mode} when it restarts, "
        "and pods that got their addresses in between lose the network."
    )
    return Problem(name, _IPAM_FIELD, value, "ModeReturns", message, "Drain each such node before.", "warning")
