"""Which of the addresses that a Node reports others can send to, and what the rest are.

A kubelet reports what it finds, and a virtual kubelet what it likes: 127.0.0.1, 0.0.0.0, a broadcast address. None of
them leads to the node, and a kernel refuses most of them as a nexthop, in words that name nobody.
"""

from netloom.cidr import LINK_LOCAL, LOOPBACK, MULTICAST, Address, Cidr

_UNUSABLE: tuple[tuple[Cidr, str], ...] = (
    *((Cidr.parse(cidr), "no address of a machine") for cidr in ("0.0.0.0/8", "::/128")),
    *((cidr, "a loopback address") for cidr in LOOPBACK.values()),
    *((cidr, "a link-local address") for cidr in LINK_LOCAL.values()),
    *((cidr, "a multicast address") for cidr in MULTICAST.values()),
    (Cidr.parse("255.255.255.255/32"), "the broadcast address"),
)
"""RFC 6890, RFC 4291. The rest of 240.0.0.0/4 is no more reserved in practice: clouds number machines by it."""
_FIRST_BYTES = frozenset(
    byte for cidr, _ in _UNUSABLE for byte in range(cidr.packed[0], (cidr.packed[0] | 0xFF >> min(cidr.length, 8)) + 1)
)


def unusable(address: Address) -> str:
    """What an address is that leads to no other machine; "" if it may lead to one."""
    if address[0] not in _FIRST_BYTES:
        return ""  # an agent asks for each of its peers: 0.1 us instead of 3
    cidr = Cidr.of(address)
    return next((what for of, what in _UNUSABLE if of.contains(cidr)), "")
