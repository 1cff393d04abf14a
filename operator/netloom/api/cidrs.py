"""What is wrong with the CIDRs in objects, said as Problems: the same as the API server's own rules."""

from collections.abc import Iterable, Mapping, Sequence

from netloom.api.problem import Problem
from netloom.cidr import (
    LINK_LOCAL,
    LOOPBACK,
    MULTICAST,
    Cidr,
    Version,
    format_address,
    is_address,
    parse_address,
    split,
)

NodeAddresses = Mapping[str, Iterable[str]]
"""Addresses of nodes, by the node's name. A text that is no address is passed over: it is the node's fault."""

RESERVED: dict[Version, tuple[Cidr, ...]] = {
    4: (Cidr.parse("0.0.0.0/8"), LOOPBACK[4], LINK_LOCAL[4], MULTICAST[4]),
    6: (Cidr.parse("::/8"), LINK_LOCAL[6], MULTICAST[6]),
}
"""Addresses with a meaning of their own, which no pod can have (RFC 6890, RFC 4291)."""

_SHOWN = 3


def check_cidr(
    text: str, *, object: str, field: str, example: str, family: Version | None = None, for_pods: bool = False
) -> tuple[Cidr | None, list[Problem]]:
    """The network that one CIDR names, if any, and what is wrong with it.

    example: one to show to somebody who wrote something else.
    for_pods: pods get addresses of it, so it may hold none of RESERVED.
    """

    def wrong(reason: str, message: str, way_out: str) -> Problem:
        return Problem(object, field, text, reason, message, way_out)

    network = Cidr.masked(text)
    if network is None or family not in (None, network.version):
        what = f"an IPv{family} CIDR" if family else "a CIDR"
        return None, [wrong("InvalidCIDR", f"not {what}.", f"Write one such as {example}.")]
    problems: list[Problem] = []
    address, length = split(text)
    if address != network.packed:
        message = "bits are set after the prefix length, so this is an address, not a network."
        problems.append(wrong("InvalidCIDR", message, f"Write {network}."))
    if f"{format_address(address)}/{length}" != text:
        message = "not in canonical form, and equal CIDRs must be equal as text."
        problems.append(wrong("InvalidCIDR", message, f"Write {network} (RFC 5952)."))
    reserved = RESERVED[network.version]
    if for_pods and any(each.overlaps(network) for each in reserved):
        names = f"{', '.join(map(str, reserved[:-1]))} and {reserved[-1]}"
        message = f"pods cannot use all of it: the standards give {names} a meaning of their own."
        problems.append(wrong("ReservedCIDR", message, "Give a CIDR outside them."))
    return network, problems


def check_cidrs(
    texts: Iterable[str],
    *,
    object: str,
    field: str,
    example: str,
    family: Version | None = None,
    for_pods: bool = False,
) -> list[Problem]:
    """All that is wrong with the CIDRs of a list at `field`, each for itself."""
    return [
        problem
        for number, text in enumerate(texts)
        for problem in check_cidr(
            text, object=object, field=f"{field}[{number}]", example=example, family=family, for_pods=for_pods
        )[1]
    ]


def check_overlap(texts: Sequence[str], *, object: str, field: str, so: str) -> list[Problem]:
    """Names the first two CIDRs of a list that overlap. so: what that leads to."""
    networks = [(text, network) for text in texts if (network := Cidr.masked(text))]
    for number, (text, network) in enumerate(networks):
        for other_text, other in networks[number + 1 :]:
            if network.overlaps(other):
                message = f"{text} overlaps {other_text}, so {so}."
                return [Problem(object, field, text, "CIDROverlap", message, "Remove one of them.")]
    return []


def check_mask_size(
    texts: Iterable[str], mask_size: int, *, family: Version, object: str, field: str, block: str
) -> list[Problem]:
    """Names the first CIDR that is too small for a single block. block: what a block is to the reader."""
    for text in texts:
        network = Cidr.masked(text)
        if network and network.version == family and network.length > mask_size:
            message = f"{block} of /{mask_size} is larger than the whole of {text}."
            way_out = "Give a larger CIDR, or a mask size that fits it."
            return [Problem(object, field, str(mask_size), "InvalidMaskSize", message, way_out)]
    return []


def check_nodes_outside(
    networks: Iterable[tuple[str, Cidr]], node_addresses: NodeAddresses, *, object: str, reason: str
) -> list[Problem]:
    """Names the CIDRs, given with their fields, that hold nodes' own addresses.

    One Problem per CIDR, whatever the number of nodes: a cluster of thousands must stay readable.
    """
    known = [
        (node, Cidr.of(parse_address(text)))
        for node, texts in node_addresses.items()
        for text in texts
        if is_address(text)
    ]
    problems: list[Problem] = []
    for field, network in networks:
        found = [(address, node) for node, address in known if network.contains(address)]
        inside = [f"{format_address(address.packed)} of node {node}" for address, node in found]
        if inside:
            problems.append(holds_nodes(str(network), inside, len(inside), object=object, field=field, reason=reason))
    return problems


def holds_nodes(cidr: str, inside: Sequence[str], count: int, *, object: str, field: str, reason: str) -> Problem:
    """A CIDR that holds `count` addresses of nodes. inside: the first of them, `10.0.0.1 of node a`."""
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    holds = f"it holds addresses of nodes ({', '.join(inside[:_SHOWN])}{more})"
    message = f"{holds}, so a pod could be given the address of a node."
    return Problem(object, field, cidr, reason, message, "Use CIDRs outside the nodes' network.")
