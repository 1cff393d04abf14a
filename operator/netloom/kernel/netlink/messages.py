"""Netlink's messages in pyroute2's words: by its classes each kind is encoded and decoded, attribute by attribute.

Only those classes are loaded: an agent is 1.5 MiB larger for them, where `import pyroute2` is 10.5 MiB and 0.1 s. They
are slow: 50 us to encode a message, 30 us (an address) to 200 us (a link) to decode one (`make bench-codec`). That
serves for everything that does not come by the ten thousand; for what does, see `template` and `row_messages`.

Addresses and MACs are packed here as everywhere on the kernel side, and not text as in pyroute2's own classes. Those
have no nexthop objects, no `nhid` of a route, and pass over `encap ip` without a word.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from netloom.kernel.netlink.wire import HEADER_SIZE, REQUEST
from netloom.shells import imported_later, shells

_NO_SOCKETS = {"AsyncNetlinkSocket": object, "NetlinkSocket": object}
_LATER = {"multiprocessing": ("Pipe", "Queue", "Process", "shared_memory")}

with shells("pyroute2", stand_ins={"netlink.nlsocket": _NO_SOCKETS}), imported_later(_LATER):
    from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg, nlmsg_base
    from pyroute2.netlink.nfnetlink import nftsocket
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndmsg import ndmsg
    from pyroute2.netlink.rtnl.ndtmsg import ndtmsg
    from pyroute2.netlink.rtnl.rtmsg import LWTUNNEL_ENCAP_IP, rtmsg

__all__ = ["LWTUNNEL_ENCAP_IP", "decode", "encode", "nftsocket"]

nlmsg_base.chain = property(None, lambda _message, _chain: None)
"""By this list, for which nobody here asks, each message and each attribute of one would hold itself: 29,000 objects of
an agent's start with 5,000 peers would wait for the garbage collector, and keep the answers that they are of."""

_TEXT = {"target", "ipaddr", "lladdr", "l2addr"}


def _packed(nla_map: Iterable[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """Addresses as bytes. (pyroute2 works out a class's attributes when it is used first, and heirs take that over: of
    a class and an heir with a map of its own only the heir may be used.)"""
    return tuple((*name, "cdata" if kind in _TEXT else kind) for *name, kind in nla_map)


class LinkMessage(ifinfmsg):  # type: ignore[misc]
    """`struct ifinfomsg`, RTM_*LINK."""

    nla_map = _packed(ifinfmsg.nla_map)


class AddressMessage(ifaddrmsg):  # type: ignore[misc]
    """`struct ifaddrmsg`, RTM_*ADDR."""

    # pyroute2 has a text for it.
    nla_map = tuple(
        (name, "int32" if name == "IFA_TARGET_NETNSID" else kind) for name, kind in _packed(ifaddrmsg.nla_map)
    )


class NeighbourMessage(ndmsg):  # type: ignore[misc]
    """`struct ndmsg`, RTM_*NEIGH."""

    nla_map = _packed(ndmsg.nla_map)


class NeighbourTableMessage(ndtmsg):  # type: ignore[misc]
    """`struct ndtmsg`, RTM_*NEIGHTBL."""

    class stats(nla):  # type: ignore[misc]
        """`struct ndt_stats`, with how often the table was full."""

        fields = (*ndtmsg.stats.fields, ("table_fulls", "Q"))


class RuleMessage(fibmsg):  # type: ignore[misc]
    """`struct fib_rule_hdr`, RTM_*RULE."""

    nla_map = _packed(fibmsg.nla_map)

    class port_range(nla):  # type: ignore[misc]
        """Numbers, where pyroute2 has a text."""

        fields = fibmsg.port_range.fields


class IpEncapsulation(nla):  # type: ignore[misc]
    """`encap ip`: attributes LWTUNNEL_IP_*, linux/lwtunnel.h."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("LWTUNNEL_IP_UNSPEC", "none"),
        ("LWTUNNEL_IP_ID", "be64"),
        ("LWTUNNEL_IP_DST", "cdata"),
        ("LWTUNNEL_IP_SRC", "cdata"),
        ("LWTUNNEL_IP_TTL", "uint8"),
        ("LWTUNNEL_IP_TOS", "uint8"),
        ("LWTUNNEL_IP_FLAGS", "be16"),
        ("LWTUNNEL_IP_PAD", "none"),
        ("LWTUNNEL_IP_OPTS", "cdata"),
    )


class RouteMessage(rtmsg):  # type: ignore[misc]
    """`struct rtmsg`, RTM_*ROUTE."""

    nla_map = (
        *_packed(rtmsg.nla_map),
        ("RTA_PAD", "none"),
        ("RTA_UID", "uint32"),
        ("RTA_TTL_PROPAGATE", "uint8"),
        ("RTA_IP_PROTO", "uint8"),
        ("RTA_SPORT", "be16"),
        ("RTA_DPORT", "be16"),
        ("RTA_NH_ID", "uint32"),
    )
    encaps: ClassVar = {**rtmsg.encaps, LWTUNNEL_ENCAP_IP: IpEncapsulation}


class NexthopMessage(nlmsg):  # type: ignore[misc]
    """`struct nhmsg`, RTM_*NEXTHOP, linux/nexthop.h."""

    prefix = "NHA_"
    fields = (("family", "B"), ("scope", "B"), ("protocol", "B"), ("reserved", "B"), ("flags", "I"))
    nla_map = (
        ("NHA_UNSPEC", "none"),
        ("NHA_ID", "uint32"),
        ("NHA_GROUP", "cdata"),
        ("NHA_GROUP_TYPE", "uint16"),
        ("NHA_BLACKHOLE", "flag"),
        ("NHA_OIF", "uint32"),
        ("NHA_GATEWAY", "cdata"),
        ("NHA_ENCAP_TYPE", "uint16"),
        ("NHA_ENCAP", "ip_encapsulation"),
    )
    ip_encapsulation = IpEncapsulation


class NamespaceIdMessage(nlmsg):  # type: ignore[misc]
    """`struct rtgenmsg`, RTM_*NSID, linux/net_namespace.h."""

    prefix = "NETNSA_"
    fields = (("family", "B"), ("__padding", "3x"))
    nla_map = (
        ("NETNSA_NONE", "none"),
        ("NETNSA_NSID", "int32"),
        ("NETNSA_PID", "uint32"),
        ("NETNSA_FD", "uint32"),
    )


def nested(**attributes: Any) -> dict[str, list[tuple[str, Any]]]:
    """The value of an attribute that holds these, which go by their whole names."""
    return {"attrs": list(attributes.items())}


def encode(layout: Any, kind: int, flags: int, fields: Mapping[str, int], /, **attributes: Any) -> bytes:
    """A whole request, with the sequence number 0. layout: one of the message classes; fields: what is not 0 in the
    part of the message that is before its attributes; these go by their names without the prefix of all."""
    message = layout()
    message.update(fields)
    message["attrs"] = [(layout.name2nla(name), value) for name, value in attributes.items()]
    message["header"].update(type=kind, flags=flags | REQUEST)
    message.encode()
    return bytes(message.data)


def decode(layout: Any, buffer: bytes, start: int) -> Any:
    """The message of which the header ends at `start`. Attributes are decoded when they are asked for."""
    message = layout(buffer, start - HEADER_SIZE)
    message.decode()
    return message
