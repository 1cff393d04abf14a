"""What is said of a change of the IPAM mode: the same words by the webhook and by the ValidatingAdmissionPolicies.

The API server asks a policy before a webhook, so which of the two a user meets depends on what is installed and runs.
Placeholders are filled with values here, and with CEL expressions by whoever renders a policy.

Placeholders: `in_use` "3 nodes hold addresses (a, b, c)", `mode` the one in force, `wanted` the one asked for.
"""

from dataclasses import dataclass, replace

from netloom.api.problem import Problem


@dataclass(frozen=True, slots=True)
class Wording:
    """One refusal: what is wrong and why, and what to do, both with placeholders."""

    message: str
    way_out: str

    @property
    def text(self) -> str:
        return f"{self.message} {self.way_out}"

    def __add__(self, hint: str) -> "Wording":
        return replace(self, way_out=f"{self.way_out} {hint}")

    def problem(self, name: str, field: str, value: str, **values: str) -> Problem:
        """The refusal of a field's value, with all placeholders filled."""
        message, way_out = self.message.format(**values), self.way_out.format(**values)
        return Problem(name, field, value, "ModeLocked", message, way_out)


NETWORK_MODE = Wording(
    "the IPAM mode of a live cluster cannot change: {in_use} of mode {mode}, and in mode {wanted} their pods would "
    "lose the network.",
    "Keep spec.ipam.mode {mode}, or remove every node first (the lock opens when the last address came back), or build "
    "a new cluster in mode {wanted} and move the workloads there.",
)
NETWORK_CREATED = Wording(
    "a network that is made anew has to keep the IPAM mode: {in_use} of mode {mode}, and in mode {wanted} their pods "
    "would lose the network.",
    "Create it with spec.ipam.mode {mode}, or remove every node first, or build a new cluster in mode {wanted} and "
    "move the workloads there.",
)
NETWORK_DELETED = Wording(
    "the network cannot be deleted while it is in use: {in_use} of mode {mode}, and nothing would say any more how "
    "their pods reach each other.",
    "Remove every node first.",
)
NETWORK_UNLOCKED = Wording(
    "only the operator writes what is in force: {in_use} of mode {mode}, and another entry would let the IPAM mode be "
    "changed under them.",
    "Leave status.ipam as it is; it is cleared when the last address came back.",
)
CILIUM_MODE = Wording(
    "the IPAM mode of a live cluster cannot change: {in_use} of mode {mode}, and in mode {wanted} their pods would "
    "lose the network.",
    "Keep ipam: {mode} (Helm: --set ipam.mode={mode}), or remove every node and its CiliumNode first, or build a new "
    "cluster in mode {wanted} and move the workloads there.",
)
CILIUM_MIGRATION = (
    "The one live migration that Cilium has, from cluster-pool to multi-pool, needs "
    'enable-cluster-pool-to-multi-pool-migration: "true" in the same change (from Cilium 1.20 on).'
)
"""Follows CILIUM_MODE where somebody asks for that one without its flag."""
CILIUM_UNSET = Wording(
    "the key cannot be removed while it is in use: {in_use} of mode {mode}, and Cilium would fall back to a default of "
    "its own when it restarts.",
    "Keep ipam: {mode} (Helm: --set ipam.mode={mode}).",
)
CILIUM_SPELLINGS = Wording(
    "the key is there in several spellings with different values, and Cilium, which reads all keys in lower case, "
    "would go by any one of them.",
    "Write it once, in lower case.",
)
CILIUM_DELETED = Wording(
    "Cilium's configuration cannot be deleted while it is in use: {in_use} of mode {mode}, and whatever starts without "
    "it, or is installed anew in another mode, takes the network from their pods.",
    "Remove every node and its CiliumNode first.",
)
CILIUM_NODE_MODE = Wording(
    "some nodes of a live cluster cannot have another IPAM mode: {in_use} of mode {mode}, and where Cilium restarts in "
    "mode {wanted}, pods would lose the network.",
    "Take ipam out of spec.defaults, or remove every node and its CiliumNode first, or build a new cluster in mode "
    "{wanted} and move the workloads there.",
)
CILIUM_NODE_SELECTOR = Wording(
    "more or other nodes cannot get another IPAM mode: {in_use} of mode {mode}, and where Cilium restarts in mode "
    "{wanted}, pods would lose the network.",
    "Leave the selector as it is, or take ipam out of spec.defaults first.",
)
CILIUM_NODE_MIGRATION = (
    "The one live migration that Cilium has, from cluster-pool to multi-pool, is made in cilium-config, for all nodes "
    "(from Cilium 1.20 on)."
)
"""Follows the two above where somebody asks for that one."""
CILIUM_NO_MODE = '""'
"""Stands for a mode that is set to nothing: no agent starts with it."""
CILIUM_BINARY = Wording(
    "a key of Cilium's configuration cannot be binary data while it is in use: {in_use} of mode {mode}, and Cilium's "
    "operator, which reads it like any other, would go by it.",
    "Write it under data.",
)
CILIUM_OVERRIDE = Wording(
    "it overrules the ConfigMap cilium-config, or puts something else in its place, while that is in use: {in_use} of "
    "mode {mode}, and with other settings their pods would lose the network when Cilium restarts.",
    "Take it out, and write what is needed into cilium-config; another source of the agents' configuration may be "
    "given together with daemon.allowedConfigOverrides (Helm) that names no key of IPAM.",
)
CILIUM_PART = Wording(
    "Cilium cannot be taken away while it is in use: {in_use} of mode {mode}, new pods would get no network, and what "
    "is installed anew in another mode takes it from the others.",
    "Remove every node and its CiliumNode first. To make this object anew under running pods, delete it with "
    "--cascade=orphan. If this was helm uninstall, what it did delete comes back with helm rollback.",
)
DEFINITIONS_BY_HELM = Wording(
    "helm install of a chart with other definitions than those of the network that is here would change them under "
    "live objects, and what an older one does not know would be lost. Nothing was changed.",
    "Upgrade the release that is there (helm list --all-namespaces), or uninstall it first; to bring definitions by "
    "hand: kubectl apply --server-side --force-conflicts -f crds/.",
)
RECORD_WRITTEN = Wording(
    "only the guard writes down which IPAM mode is in force: with another entry the mode could be changed under live "
    "nodes.",
    "Leave it as it is. If a change of the mode was meant and made, delete this ConfigMap as a member of the group "
    "{group} (docs/guard.md, Break-glass), and the guard makes it anew. A guard with a user name of its own has to be "
    "named: netloom guard install --guard-user.",
)
