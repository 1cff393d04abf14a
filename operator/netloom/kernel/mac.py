"""MAC addresses as the kernel writes them: packed bytes; and those of our tunnel devices."""

import hashlib

from netloom.cidr import Address

Mac = bytes
"""6 bytes."""


def format_mac(mac: Mac) -> str:
    """As `ip` prints it."""
    return mac.hex(":")


def mac_of(node_name: str) -> Mac:
    """The MAC of the node's tunnel device: locally administered, unicast, and known to every peer without asking.

    The inner frame has to carry the receiver's MAC, or its kernel takes the packet for somebody else's. Derived from
    the name, it survives restarts and needs no field in the API.
    """
    digest = hashlib.sha256(b"netloom:" + node_name.encode()).digest()
    return bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6]


def mac_in(link_local: Address) -> Mac:
    """The MAC that the link-local address was made of."""
    return bytes([link_local[8] ^ 0x02]) + link_local[9:11] + link_local[13:16]


def link_local_of(mac: Mac) -> Address:
    """The IPv6 link-local address of a device with this MAC (EUI-64, RFC 4291 appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:6]
