"""Neighbours: how permanent ones are written, and what the kernel shows of any."""

import sys
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from netloom.cidr import Address
from netloom.kernel.mac import Mac
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.messages import NeighbourMessage, encode
from netloom.kernel.netlink.template import marker, message_template
from netloom.kernel.netlink.wire import NDA_DST, NDA_LLADDR, NUD_PERMANENT, attributes

NeighbourKey = tuple[int, Address]
"""ifindex and address."""

EDITED_MAC = b""
"""Value of a neighbour that is no longer a permanent one with a MAC."""

_INDEX, _MAC = marker(b"i", 4), marker(b"m", 6)
_NUMBER = int.from_bytes(_INDEX, sys.byteorder)


class SeenNeighbour(msgspec.Struct, frozen=True, gc=False):
    """A neighbour; `mac` is EDITED_MAC unless it is a permanent entry. `failed`: nobody answered there."""

    ifindex: int
    address: Address
    mac: Mac
    failed: bool = False

    @property
    def key(self) -> NeighbourKey:
        """By which it is known."""
        return self.ifindex, self.address


def make_neighbour(key: NeighbourKey, mac: Mac) -> bytes:
    """Request: a permanent neighbour, whatever was there."""
    return encode_neighbours([(key, mac, None)])[0]


def encode_neighbours(writes: Sequence[tuple[NeighbourKey, Mac | None, object]]) -> list[bytes]:
    """Requests with the sequence numbers 0, 1, ..., of (key, MAC, what the kernel holds). A MAC of None deletes."""
    messages, order = [], sys.byteorder
    for sequence, ((ifindex, address), mac, _before) in enumerate(writes):
        number, index = sequence.to_bytes(4, order), ifindex.to_bytes(4, order)
        if mac is None:
            messages.append(_deleted(len(address)) % (number, index, address))
        else:
            messages.append(_permanent(len(address)) % (number, index, address, mac))
    return messages


@lru_cache
def _permanent(size: int) -> bytes:
    fields = {"family": wire.FAMILIES[size], "ifindex": _NUMBER, "state": NUD_PERMANENT, "ndm_type": wire.RTN_UNICAST}
    flags = wire.CREATE | wire.REPLACE
    return message_template(NeighbourMessage, wire.RTM_NEWNEIGH, flags, fields, dst=marker(b"a", size), lladdr=_MAC)


@lru_cache
def _deleted(size: int) -> bytes:
    fields = {"family": wire.FAMILIES[size], "ifindex": _NUMBER}
    return message_template(NeighbourMessage, wire.RTM_DELNEIGH, 0, fields, dst=marker(b"a", size))


def dump_neighbours(ifindex: int = 0) -> bytes:
    """Request: the neighbours of one device, or of all."""
    # NDA_IFINDEX, not ndm_ifindex: the strict check wants the filter as an attribute.
    return encode(NeighbourMessage, wire.RTM_GETNEIGH, 0, {}, **({"ifindex": ifindex} if ifindex else {}))


def read_neighbour(buffer: bytes, start: int, end: int) -> SeenNeighbour | None:
    """An RTM_NEWNEIGH or RTM_DELNEIGH; None if it is a bridge's or a proxy entry."""
    family, ifindex, state, flags, _kind = wire.NEIGHBOUR.unpack_from(buffer, start)
    if family not in wire.SIZES or flags & wire.NTF_PROXY:
        return None
    found = attributes(buffer, start + wire.NEIGHBOUR.size, end, NDA_LLADDR)
    mac = found.get(NDA_LLADDR, EDITED_MAC) if state == NUD_PERMANENT else EDITED_MAC
    return SeenNeighbour(ifindex, found.get(NDA_DST, b""), mac, bool(state & wire.NUD_FAILED))
