"""Which of the addresses that a Node reports others can send to, and what is wrong with the rest.

A kubelet reports what it finds, and a virtual kubelet what it likes: 127.0.0.1, 0.0.0.0, a broadcast address. None of
them leads to the node, and a kernel refuses most of them as a nexthop, in words that name nobody.
"""

from collections.abc import Iterator

from netloom.api.core import Node
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import IGNORE_LABEL
from netloom.cidr import WIDTH, Address, Cidr, CidrError, parse_address


def _top(cidr: Cidr) -> int:
    """The first byte of the highest address."""
    return cidr.last >> (WIDTH[cidr.version] - 8)


_UNUSABLE: tuple[tuple[Cidr, str], ...] = tuple(
    (Cidr.parse(cidr), what)
    for cidr, what in (
        ("0.0.0.0/8", "no address of a machine"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("::/128", "no address of a machine"),
        ("::1/128", "a loopback address"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
"""RFC 6890, RFC 4291. The rest of 240.0.0.0/4 is no more reserved in practice: clouds number machines by it."""

_SUSPECT = {
    size: frozenset(
        first for cidr, _ in _UNUSABLE if len(cidr.packed) == size for first in range(cidr.packed[0], _top(cidr) + 1)
    )
    for size in (4, 16)
}
"""First bytes of such addresses, by the address's length: all others cost 0.1 us."""

_IGNORE = f"if it is none of Netloom's, label it {IGNORE_LABEL}=true."
_REPORT = "Have its kubelet (--node-ip) or the cloud controller manager report one by which other nodes reach it; "


def unusable(address: Address) -> str:
    """What an address is that leads to no other machine; "" if it may lead to one."""
    if address[0] not in _SUSPECT[len(address)]:
        return ""
    cidr = Cidr.of(address)
    return next((what for of, what in _UNUSABLE if of.contains(cidr)), "")


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
