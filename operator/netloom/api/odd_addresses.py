"""What is said of the addresses that a Node reports and that are not accepted, by Node and field."""

from collections.abc import Iterator

from netloom.api.core import Node
from netloom.api.node_addresses import unusable
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import IGNORE_LABEL
from netloom.cidr import Cidr, CidrError, parse_address

_IGNORE = f"if it is none of Netloom's, label it {IGNORE_LABEL}=true."
_REPORT = "Have its kubelet (--node-ip) or the cloud controller manager report one by which other nodes reach it; "


def is_usable(text: str) -> bool:
    """Whether a text is an address that may lead to another machine."""
    try:
        return not unusable(parse_address(text))
    except CidrError:
        return False


def odd_addresses(node: Node) -> Iterator[Problem]:
    """The InternalIPs of a Node that are not accepted, by field."""
    for number, each in enumerate(node.status.addresses):
        if each.type != "InternalIP":
            continue
        try:
            what = unusable(parse_address(each.address))
        except CidrError as error:
            yield not_accepted(node, number, f"{error}.")
            continue
        if what:
            yield not_accepted(node, number, f"this is {what}, and no other node can send to it.")


def unreachable(node: Node) -> Problem | None:
    """Why no other node can send to any InternalIP of a Node; None if one of them may lead to it."""
    if any(each.type == "InternalIP" and is_usable(each.address) for each in node.status.addresses):
        return None
    return next(odd_addresses(node), None) or no_address(node)


def not_accepted(node: Node, number: int, message: str) -> Problem:
    """Of the address at that place of Node status.addresses. message: why."""
    field, text = f"status.addresses[{number}]", node.status.addresses[number].address
    return Problem(_of(node), field, text, "NodeAddressUnusable", message, f"{_REPORT}{_IGNORE}", "warning")


def in_pod_cidr(node: Node, number: int, block: Cidr) -> Problem:
    """The address at that place lies in a block that a node holds for its pods."""
    message = f"it lies in {block}, a node's pod CIDR, so it may be the address of a pod, and is not sent to."
    return not_accepted(node, number, message)


def no_address(node: Node) -> Problem:
    """A Node that reports no InternalIP at all."""
    message = "it reports no address of type InternalIP, so no other node can send to it, and it is given no pod CIDR."
    return Problem(_of(node), "status.addresses", "", "NodeAddressMissing", message, f"{_REPORT}{_IGNORE}", "warning")


def _of(node: Node) -> str:
    return f"Node {node.metadata.name}"
