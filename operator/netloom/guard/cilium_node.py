"""What is refused of writes to CiliumNodes by anybody but Cilium: taking from an object what its living node holds.

Cilium's operator gives what no CiliumNode holds to other nodes, at once. And a cluster in which nobody seems to hold
anything could be switched to another mode.
"""

from netloom.api.cilium import CiliumNode
from netloom.api.problem import Problem
from netloom.api.words import some
from netloom.guard.cluster_state import ClusterState
from netloom.guard.decode import Change
from netloom.guard.verdict import ALLOWED, Ruling


def decide_cilium_node(change: Change[CiliumNode], live: ClusterState) -> Ruling:
    """The verdict on one write of a CiliumNode."""
    held = change.old.spec.ipam.held if change.old else frozenset()
    lost = sorted(held - (change.new.spec.ipam.held if change.new else frozenset()))
    if not lost:
        return ALLOWED
    name = change.key
    if name not in live.nodes:
        return Ruling(unseen=live.missing("Node"))
    message = (
        f"the Node of this name lives and holds {some(lost, 2)}: Cilium's operator would give that to other nodes, "
        "while pods here go on with it."
    )
    way_out = f"Remove the Node (kubectl delete node {name}), and Cilium deletes this object."
    if change.new is not None:
        way_out = "Leave spec.ipam to Cilium's operator and the agent of the node."
    field, value = ("metadata.name", name) if change.new is None else ("spec.ipam", "")
    return Ruling(refusals=(Problem(change.name, field, value, "NodeLives", message, way_out),))
