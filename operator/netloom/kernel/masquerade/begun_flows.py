"""Flows that began before they could be masqueraded.

The kernel decides once per connection whether it is translated, and one that it knows stays as it is for as long as
packets come: a pod's UDP flow to the world outside that began before there was a rule leaves with the pod's address for
ever, and nobody answers.

So when rules are made, the entries of such flows are deleted; the next packet makes them anew, through the rules. What
has been answered works as it is, and is left alone.
"""

import socket
from bisect import bisect_right
from collections.abc import Callable

import msgspec
import structlog

from netloom.kernel.masquerade.sets import Sets
from netloom.kernel.netlink.nftables import START
from netloom.kernel.netlink.sockets import BATCH, NETLINK_NETFILTER, AnswerLost, CommandSocket, read_all
from netloom.kernel.netlink.wire import HEADER, HEADER_SIZE, REQUEST, attribute, attributes

log = structlog.get_logger(__name__)

_SUBSYSTEM, _GET, _DELETE = 1 << 8, 1, 2
"""NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*: linux/netfilter/nfnetlink_conntrack.h."""
_FAMILY_BYTES = 4
"""`struct nfgenmsg`."""
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _STATUS_MASK = 1, 2, 3, 12, 18, 26
_TUPLE_IP = 1
_SOURCE = {4: 1, 6: 3}
"""CTA_IP_V4_SRC, CTA_IP_V6_SRC."""
_ANSWERED, _TRANSLATED = 1 << 1, 1 << 4
"""IPS_SEEN_REPLY, IPS_SRC_NAT: linux/netfilter/nf_conntrack_common.h."""
_NESTED = 0x8000
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class ConntrackSocket(CommandSocket):
    """Asks connection tracking."""

    protocol = NETLINK_NETFILTER


class Flow(msgspec.Struct, frozen=True, gc=False):
    """A tracked flow that nobody has answered, and whose source is not translated. `destination`: after translation;
    `identity`: the attributes by which the kernel finds it."""

    source: bytes
    destination: bytes
    identity: bytes


def forget(sets: Sets, families: tuple[str, ...]) -> int:
    """Delete the entries of unanswered flows that leave by the rules as they are now, and were begun without them; how
    many these were. Nothing is changed where connections are not tracked, or cannot be read: that is logged."""
    commands = None
    try:
        commands = ConntrackSocket()
        return sum(_forget(commands, int(family), _leaving(sets, family)) for family in families)
    except (OSError, AnswerLost) as error:
        log.warning("flows that began before masquerading stay as they are", error=str(error))
        return 0
    finally:
        if commands is not None:
            commands.close()


def _forget(commands: CommandSocket, version: int, leaves: Callable[[Flow], bool]) -> int:
    found = read_all(commands, _request(version), lambda *place: read_flow(version, *place))
    due = [flow.identity for flow in found if leaves(flow)]
    for first in range(0, len(due), BATCH):
        batch = due[first : first + BATCH]
        # What is refused has ended meanwhile.
        commands.execute([message(_DELETE, version, identity, number) for number, identity in enumerate(batch)])
    return len(due)


def _leaving(sets: Sets, family: str) -> Callable[[Flow], bool]:
    """Whether a flow is from an own pod to somewhere outside."""
    pods, known, excluded = (sorted(sets.tables[kind + family].desired) for kind in ("pods", "known", "excluded"))

    def leaves(flow: Flow) -> bool:
        outside = not _inside(known, flow.destination) and not _inside(excluded, flow.destination)
        return outside and _inside(pods, flow.source)

    return leaves


def _inside(ends: list[bytes], address: bytes) -> bool:
    at = bisect_right(ends, address + START) - 1
    return at >= 0 and ends[at].endswith(START)


def _request(version: int) -> bytes:
    """For a dump; newer kernels leave out by themselves what has been answered or is translated."""
    mask = (_ANSWERED | _TRANSLATED).to_bytes(4, "big")
    return message(_GET, version, attribute(_STATUS, bytes(4)) + attribute(_STATUS_MASK, mask))


def read_flow(version: int, buffer: bytes, start: int, end: int) -> Flow | None:
    """An entry, if nobody has answered. By hand, as there may be a hundred thousand: by
    pyroute2's class each takes 15 times as long (`make bench-codec`)."""
    found = attributes(buffer, start + _FAMILY_BYTES, end)
    status = int.from_bytes(found.get(_STATUS, b"\xff"), "big")
    if status & (_ANSWERED | _TRANSLATED) or not found.keys() >= {_TUPLE_ORIG, _TUPLE_REPLY}:
        return None
    source, destination = (_source(version, found[each]) for each in (_TUPLE_ORIG, _TUPLE_REPLY))
    identity = attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG])
    for kind in (_ZONE, _ID):
        if kind in found:
            identity += attribute(kind, found[kind])
    return Flow(source, destination, identity)


def _source(version: int, direction: bytes) -> bytes:
    """Of a direction's packets; who answers is the destination as it is after all translations."""
    inner = attributes(direction, 0, len(direction)).get(_TUPLE_IP, b"")
    return attributes(inner, 0, len(inner)).get(_SOURCE[version], b"")


def message(kind: int, version: int, body: bytes, number: int = 0) -> bytes:
    """A request; body: attributes."""
    length = HEADER_SIZE + _FAMILY_BYTES + len(body)
    return HEADER.pack(length, _SUBSYSTEM | kind, REQUEST, number, 0) + bytes((_FAMILIES[version], 0, 0, 0)) + body
