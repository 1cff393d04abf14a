"""What is said of a change of the IPAM mode: the same words by the webhook and by the ValidatingAdmissionPolicies.

The API server asks a policy before a webhook, so which of the two a user meets depends on what is installed and runs.
A template's holes are filled with values here, and with CEL expressions by whoever renders a policy.

Holes: `in_use` "3 nodes hold addresses (a, b, c)", `mode` the one in force, `wanted` the one asked for.
"""

import string
from collections.abc import Mapping

from netloom.api.problem import Problem
from netloom.api.words import NETWORK_MODE, NODES_HOLD, SHOWN, in_use

__all__ = [
    "CILIUM_DELETED",
    "CILIUM_MIGRATION",
    "CILIUM_MODE",
    "CILIUM_NODE_MIGRATION",
    "CILIUM_NODE_MODE",
    "CILIUM_NODE_SELECTOR",
    "CILIUM_NO_MODE",
    "CILIUM_UNSET",
    "NETWORK_CREATED",
    "NETWORK_DELETED",
    "NETWORK_MODE",
    "NETWORK_UNLOCKED",
    "NODES_HOLD",
    "SHOWN",
    "cel",
    "in_use",
    "locked",
]

NETWORK_CREATED = (
    "a network that is made anew has to keep the IPAM mode: {in_use} of mode {mode}, and in mode {wanted} their pods "
    "would lose the network. Create it with spec.ipam.mode {mode}, or remove every node first, or build a new cluster "
    "in mode {wanted} and move the workloads there."
)
NETWORK_DELETED = (
    "the network cannot be deleted while it is in use: {in_use} of mode {mode}, and nothing would say any more how "
    "their pods reach each other. Remove every node first."
)
NETWORK_UNLOCKED = (
    "only the operator writes what is in force: {in_use} of mode {mode}, and another entry would let the IPAM mode be "
    "changed under them. Leave status.ipam as it is; it is cleared when the last address came back."
)
CILIUM_MODE = (
    "the IPAM mode of a live cluster cannot change: {in_use} of mode {mode}, and in mode {wanted} their pods would "
    "lose the network. Keep ipam: {mode} (Helm: --set ipam.mode={mode}), or remove every node and its CiliumNode "
    "first, or build a new cluster in mode {wanted} and move the workloads there."
)
CILIUM_MIGRATION = (
    " The one live migration that Cilium has, from cluster-pool to multi-pool, needs "
    'enable-cluster-pool-to-multi-pool-migration: "true" in the same change (from Cilium 1.20 on).'
)
"""Follows CILIUM_MODE where somebody asks for that one without its flag."""
CILIUM_UNSET = (
    "the key cannot be removed while it is in use: {in_use} of mode {mode}, and Cilium would fall back to a default of "
    "its own when it restarts. Keep ipam: {mode} (Helm: --set ipam.mode={mode})."
)
CILIUM_DELETED = (
    "Cilium's configuration cannot be deleted while it is in use: {in_use} of mode {mode}, and whatever starts without "
    "it, or is installed anew in another mode, takes the network from their pods. Remove every node and its CiliumNode "
    "first."
)
CILIUM_NODE_MODE = (
    "some nodes of a live cluster cannot have another IPAM mode: {in_use} of mode {mode}, and where Cilium restarts in "
    "mode {wanted}, pods would lose the network. Take ipam out of spec.defaults, or remove every node and its "
    "CiliumNode first, or build a new cluster in mode {wanted} and move the workloads there."
)
CILIUM_NODE_SELECTOR = (
    "more or other nodes cannot get another IPAM mode: {in_use} of mode {mode}, and where Cilium restarts in mode "
    "{wanted}, pods would lose the network. Leave the selector as it is, or take ipam out of spec.defaults first."
)
CILIUM_NODE_MIGRATION = (
    " The one live migration that Cilium has, from cluster-pool to multi-pool, is made in cilium-config, for all nodes "
    "(from Cilium 1.20 on)."
)
"""Follows the two above where somebody asks for that one."""
CILIUM_NO_MODE = '""'
"""Stands for a mode that is set to nothing: no agent starts with it."""


def cel(template: str, holes: Mapping[str, str]) -> str:
    """A template as a CEL expression of type string. holes: a CEL expression of type string for each of its holes."""
    parts: list[str] = []
    for text, hole, _, _ in string.Formatter().parse(template):
        if text:
            parts.append("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
        if hole:
            parts.append(holes[hole])
    return " + ".join(parts)


def locked(name: str, field: str, value: str, text: str) -> Problem:
    """A refusal in the words above: a sentence about the trouble, and what to do behind it."""
    message, _, way_out = text.partition(". ")
    return Problem(name, field, value, "ModeLocked", f"{message}.", way_out)
