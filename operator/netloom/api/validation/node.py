"""NetloomNodes: what cannot be read, and what a living node cannot lose."""

from netloom.api.cidrs import check_overlap, parse_address, parse_cidrs
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomNode


def validate_node(node: NetloomNode) -> list[Problem]:
    """Everything that is wrong with a NetloomNode by itself."""
    name = f"NetloomNode {node.metadata.name}"
    problems: list[Problem] = []
    for number, address in enumerate(node.spec.addresses):
        problems += _not_an_address(name, f"spec.addresses[{number}].ip", address.ip)
    ipam = node.spec.ipam
    _, wrong = parse_cidrs(ipam.pod_cidrs, object=name, field="spec.ipam.podCIDRs", example="10.244.7.0/24")
    problems += wrong
    problems += check_overlap(
        ipam.pod_cidrs, object=name, field="spec.ipam.podCIDRs", so="it says the same thing twice"
    )
    for number, allocation in enumerate(ipam.pools.allocated):
        field = f"spec.ipam.pools.allocated[{number}].cidrs"
        _, wrong = parse_cidrs(allocation.cidrs, object=name, field=field, example="10.244.7.0/28")
        problems += wrong
    for number, tunnel in enumerate(node.spec.tunnels):
        if (tunnel.protocol == "native") != (tunnel.port == 0):
            field, message = f"spec.tunnels[{number}].port", "a tunnel needs a UDP port, and native has none."
            way_out = "Give a port from 1 to 65535 to a tunnel, and 0 to native."
            problems.append(Problem(name, field, str(tunnel.port), "InvalidPort", message, way_out))
    for text in ipam.pool:
        problems += _not_an_address(name, f"spec.ipam.pool[{text}]", text)
    return problems


def validate_node_update(old: NetloomNode, new: NetloomNode) -> list[Problem]:
    """What a change takes away from a node that lives."""
    name = f"NetloomNode {new.metadata.name}"
    problems: list[Problem] = []
    mode, before = new.spec.ipam.mode, old.spec.ipam.mode
    if before not in ("", mode):
        message = f"the addresses of this node come from mode {before}, and that cannot change while it lives."
        way_out = "Remove the Node (and this object with it), and let it join again."
        problems.append(Problem(name, "spec.ipam.mode", mode, "ModeLocked", message, way_out))
    lost = next((cidr for cidr in old.spec.ipam.pod_cidrs if cidr not in new.spec.ipam.pod_cidrs), None)
    if lost is not None:
        message = (
            f"{lost} cannot be removed or changed while the node lives: its pods use it, and other nodes route to it."
        )
        way_out = "Remove the Node (and this object with it) to give it back."
        problems.append(Problem(name, "spec.ipam.podCIDRs", lost, "CIDRInUse", message, way_out))
    return problems


def _not_an_address(name: str, field: str, text: str) -> list[Problem]:
    if parse_address(text) is not None:
        return []
    return [Problem(name, field, text, "InvalidAddress", "not an IP address.", "Write one such as 192.168.1.10.")]
