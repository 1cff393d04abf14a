"""What is said of a change that would take the network from pods: one home for words that several places say.

The rules of the CRDs, `netloom.api.validation`, the webhook and the ValidatingAdmissionPolicies say the same of the
same change, whichever of them a user meets first. A template's holes are filled with values in Python, and with CEL
expressions in a policy; the rules in `crds/` spell them out, and tests hold them against these.

Holes: `in_use` "3 nodes hold addresses (a, b, c)", `mode` the one in force, `wanted` the one asked for, `cidr` the one
that the change takes away.
"""

from collections.abc import Iterable

SHOWN = 3
"""Names that are told; the others are counted."""

NODES_HOLD = "nodes hold addresses"
"""Stands for `in_use` where it is not known which nodes."""

MODE_LOCKED = (
    "the IPAM mode of a live cluster cannot change: {in_use} of mode {mode}, and in mode {wanted} their pods would "
    "lose the network."
)
MODE_WAY_OUT = (
    "Keep spec.ipam.mode {mode}, or remove every node first (the lock opens when the last address came back), or build "
    "a new cluster in mode {wanted} and move the workloads there."
)
NETWORK_MODE = f"{MODE_LOCKED} {MODE_WAY_OUT}"
CIDR_IN_USE = "{cidr} cannot be removed or made smaller while {in_use}: pods may be using it."
CIDR_WAY_OUT = "Keep it, or put a larger one in its place that holds all of it; to get more space, add another CIDR."
MASK_IN_USE = "the mask size cannot change while {in_use}: new blocks would not fit between the old ones."
MASK_WAY_OUT = "Keep it, or remove every node first."


def in_use(count: int, names: Iterable[str], what: str = "addresses") -> str:
    """Who holds addresses, or something else. names: at least SHOWN of them, or all."""
    shown = list(names)[:SHOWN]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{count} node{'' if count == 1 else 's'} hold{'s' if count == 1 else ''} {what} ({', '.join(shown)}{more})"
