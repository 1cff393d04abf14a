"""NetloomNodes: what cannot be read."""

from netloom.api.cidrs import check_cidrs, check_overlap
from netloom.api.ipam_modes import MODES
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NetloomNode, NodeIPAM
from netloom.cidr import format_address, is_address, parse_address

_LONGEST = 39
"""Characters of an address."""
_NO_PORT, _PORTS = range(1), range(1, 1 << 16)


def validate_node(node: NetloomNode) -> list[Problem]:
    """Everything that is wrong with a NetloomNode by itself."""
    name = f"NetloomNode {node.metadata.name}"
    problems: list[Problem] = []
    for number, address in enumerate(node.spec.addresses):
        if not is_address(address.ip):
            field, way_out = f"spec.addresses[{number}].ip", "Write one such as 192.168.1.10."
            problems.append(Problem(name, field, address.ip, "InvalidAddress", "not an IP address.", way_out))
    ipam = node.spec.ipam
    problems += check_cidrs(ipam.pod_cidrs, object=name, field="spec.ipam.podCIDRs", example="10.244.7.0/24")
    problems += check_overlap(
        ipam.pod_cidrs, object=name, field="spec.ipam.podCIDRs", so="it says the same thing twice"
    )
    for number, allocation in enumerate(ipam.pools.allocated):
        field = f"spec.ipam.pools.allocated[{number}].cidrs"
        problems += check_cidrs(allocation.cidrs, object=name, field=field, example="10.244.7.0/28")
    for number, each in enumerate(node.spec.encapsulations):
        if each.port not in (_NO_PORT if each.protocol == "none" else _PORTS):
            field = f"spec.encapsulations[{number}].port"
            message = "a tunnel needs a UDP port, and packets as they are have none."
            way_out = "Give a port from 1 to 65535 to vxlan or geneve, and leave it out with none."
            problems.append(Problem(name, field, str(each.port), "InvalidPort", message, way_out))
    return problems + _pool(name, sorted(ipam.pool)) + _of_other_modes(name, ipam)


def _of_other_modes(name: str, ipam: NodeIPAM) -> list[Problem]:
    """What the node's mode gives nothing of."""
    problems: list[Problem] = []
    mode = MODES.get(ipam.mode)
    left = () if mode and mode.from_network else ipam.pools.allocated
    if mode and not mode.from_pools and (ipam.pools.requested or left):
        message = (
            f"in IPAM mode {ipam.mode} a node is given no blocks of pools, and no more of them as its pods need them: "
            "only multi-pool does that."
        )
        way_out = "Leave spec.ipam.pools out."
        problems.append(Problem(name, "spec.ipam.pools", "", "NotOfThisMode", message, way_out))
    if mode and not mode.singles and ipam.pool:
        message = f"in IPAM mode {ipam.mode} nodes hold CIDRs and no single addresses: only crd does that."
        way_out = "Leave spec.ipam.pool out."
        problems.append(Problem(name, "spec.ipam.pool", "", "NotOfThisMode", message, way_out))
    return problems


def _pool(name: str, texts: list[str]) -> list[Problem]:
    """The first that is no address, and the first that is not written as others would write it."""
    problems: list[Problem] = []
    if odd := [text for text in texts if not is_address(text)]:
        message, way_out = f'"{odd[0][:_LONGEST]}" is not an IP address.', "Write one such as 192.168.1.10."
        problems.append(Problem(name, "spec.ipam.pool", "", "InvalidAddress", message, way_out))
    if any(text != format_address(parse_address(text)) for text in texts if text not in odd):
        message = "an address is not in canonical form, and equal addresses must be equal as text."
        way_out = 'Write all in lower case, with the longest run of zeros as "::" (RFC 5952).'
        problems.append(Problem(name, "spec.ipam.pool", "", "InvalidAddress", message, way_out))
    return problems
