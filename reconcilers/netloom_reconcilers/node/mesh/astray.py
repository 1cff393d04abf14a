"""Sentences about Nodes with addresses that are no other machine's: a pod's, a container's, this machine's own."""

from netloom.api.v1alpha1 import NETWORK_NAME
from netloom.cidr import format_address
from netloom.kernel.mesh.underlay import Astray

_NAMED = 3
_REPORT = "Let its kubelet report the machine's own address (--node-ip), or delete the Node if its machine is gone."


def is_own(astray: Astray) -> bool:
    """Whether this node is the one that shows that the address is wrong, and nothing gets to the other from here."""
    return astray.why in ("pod", "here")


def astray_text(astray: Astray) -> str:
    """What is wrong, and what to do."""
    about = _whose(astray)
    if astray.why == "here":
        return f"{about}, which {astray}: nothing that is sent there leaves it. {_REPORT}"
    about += f", and packets to it {astray}"
    if astray.why == "tunnel":
        return f"{about}: no machine has it. {_REPORT}"
    left_out = f"{astray.device} does not count as a device between nodes, and neither does its MTU."
    if astray.why == "pod":
        return f"{about}: no machine has it. {left_out} {_REPORT}"
    return (
        f"{about}: only containers or guests of this machine seem to be there. {left_out} If a node is, name "
        f"{astray.device} in spec.devices of NetloomNetwork {NETWORK_NAME}, beside the devices that lead to the other "
        f"nodes. If none is: {_REPORT}"
    )


def _whose(astray: Astray) -> str:
    claims = [
        f"NetloomNode {peer}: spec.addresses has {format_address(address)}"
        for peer, address in zip(astray.peers, astray.addresses, strict=True)
    ]
    more = len(claims) - _NAMED
    return "; ".join(claims[:_NAMED]) + (f"; and so have {more} more" if more > 0 else "")
