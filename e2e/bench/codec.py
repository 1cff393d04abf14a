"""`make bench-codec`: what a netlink message costs, by pyroute2's class, by hand and by a template, in one process.

The figures by which `netloom.kernel` decides what goes through pyroute2's classes and what does not. CPU time of one
message in us, the least of many rounds; what is decoded was encoded here, but for the link, which is `lo` as the kernel
shows it. Needs no capability. Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import timeit
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pyroute2.netlink import NLA_F_NESTED, nlmsg
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from netloom.cidr import Cidr
from netloom.kernel.endpoints import link_messages
from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.forwarding.expressions import rules_of
from netloom.kernel.mac import format_mac
from netloom.kernel.masquerade import begun_flows
from netloom.kernel.masquerade.outermost import keys
from netloom.kernel.mesh import row_messages, row_readers
from netloom.kernel.mesh.rows import Nexthop, RouteContent
from netloom.kernel.netlink import expressions, links, neighbours, netconf, nftables
from netloom.kernel.netlink.messages import (
    LWTUNNEL_ENCAP_IP,
    AddressMessage,
    LinkMessage,
    NeighbourMessage,
    NexthopMessage,
    RouteMessage,
    decode,
    encode,
    nested,
    nftsocket,
)
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.netlink.template import TemplateReader
from netloom.kernel.netlink.wire import (
    HEADER_SIZE,
    RTM_GETLINK,
    RTM_GETNETCONF,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    attribute,
)
from netloom_e2e import bench

_NUMBER = 1000
_MAC = b"\x02abcde"


def _us(work: Callable[[int], object], rounds: int, times: int = _NUMBER) -> float:
    """Of one call; its argument is a number below `times`."""

    def run() -> None:
        for number in range(times):
            work(number)

    return round(min(timeit.repeat(run, timer=time.process_time, number=1, repeat=rounds)) / times * 1e6, 2)


def _address(number: int) -> bytes:
    return bytes([10, *number.to_bytes(2, "big"), 0])


def _encode_route(number: int) -> bytes:
    fields = {"family": 2, "dst_len": 24, "table": 254, "proto": 158, "type": 1}
    return encode(RouteMessage, RTM_NEWROUTE, 0x600, fields, dst=_address(number), nh_id=number + 1)


def _encode_nexthop(number: int) -> bytes:
    outer = nested(LWTUNNEL_IP_ID=1, LWTUNNEL_IP_TTL=64, LWTUNNEL_IP_DST=_address(number))
    tunnel: dict[str, Any] = {"encap_type": LWTUNNEL_ENCAP_IP, "encap": outer}
    fields = {"family": 2, "protocol": 158, "flags": 4}
    about = {"id": number + 1, "oif": 7, "gateway": _address(number)}
    return encode(NexthopMessage, RTM_NEWNEXTHOP, 0x600, fields, **about, **tunnel)


def _encode_neighbour(number: int) -> bytes:
    fields = {"family": 2, "ifindex": 7, "state": 0x80, "ndm_type": 1}
    return encode(NeighbourMessage, RTM_NEWNEIGH, 0x500, fields, dst=_address(number), lladdr=_MAC)


class Kind(NamedTuple):
    """Of what there are 10,000: pyroute2's class and the attributes that are read, and what is used in their place."""

    name: str
    layout: Any
    attributes: Sequence[str]
    encode: Callable[[int], bytes]
    fill: Callable[[Sequence[Any]], list[bytes]]
    writes: Sequence[Any]
    read: Callable[[bytes, int, int], object]
    by_template: TemplateReader[Any]

    def cost(self, rounds: int) -> dict[str, dict[str, float]]:
        """Of encoding and decoding. Raises Wrong."""
        made = [self.encode(number) for number in range(_NUMBER)]
        if [message[:8] + bytes(4) + message[12:] for message in self.fill(self.writes)] != made:
            raise bench.Wrong(f"{self.name}: the template makes something else than the class")
        encoding = {
            "pyroute2": _us(self.encode, rounds),
            "template": round(_us(lambda _number: self.fill(self.writes), rounds, times=1) / _NUMBER, 2),
        }
        decoding = {
            "pyroute2": _us(lambda number: self._decode(made[number]), rounds),
            "by hand": _us(lambda number: self.read(made[number], HEADER_SIZE, len(made[number])), rounds),
            "template": _us(lambda number: self.by_template.read(made[number], HEADER_SIZE, len(made[number])), rounds),
        }
        return {f"encode a {self.name}": encoding, f"decode a {self.name}": decoding}

    def _decode(self, buffer: bytes) -> None:
        seen = decode(self.layout, buffer, HEADER_SIZE)
        for name in self.attributes:
            seen.get_attr(name)


KINDS = (
    Kind(
        "route",
        RouteMessage,
        ("RTA_DST", "RTA_PRIORITY", "RTA_METRICS", "RTA_NH_ID"),
        _encode_route,
        row_messages.encode_routes,
        [(Cidr.of(_address(number), 24), RouteContent(number + 1), None) for number in range(_NUMBER)],
        row_readers.read_route,
        row_readers.route_reader(),
    ),
    Kind(
        "nexthop",
        NexthopMessage,
        ("NHA_ID", "NHA_OIF", "NHA_GATEWAY", "NHA_ENCAP_TYPE", "NHA_ENCAP"),
        _encode_nexthop,
        row_messages.encode_nexthops,
        [(number + 1, Nexthop(7, _address(number), _address(number), 1), None) for number in range(_NUMBER)],
        row_readers.read_nexthop,
        row_readers.nexthop_reader(),
    ),
    Kind(
        "neighbour",
        NeighbourMessage,
        ("NDA_DST", "NDA_LLADDR"),
        _encode_neighbour,
        neighbours.encode_neighbours,
        [((7, _address(number)), _MAC, None) for number in range(_NUMBER)],
        neighbours.read_neighbour,
        row_readers.neighbour_reader(),
    ),
)


def _elements(rounds: int) -> dict[str, dict[str, float]]:
    """The two ends of a CIDR in a set."""
    pairs = [keys(Cidr.of(_address(number), 24)) for number in range(_NUMBER)]
    elements = nftables.ElementMessages("netloom", "known4", 4)
    made = [elements.encode(nftables.NEWSETELEM, pair) for pair in pairs]

    def by_class(number: int) -> bytes:
        ends = [nested(NFTA_SET_ELEM_KEY=nested(NFTA_DATA_VALUE=key[:-1])) for key in pairs[number]]
        return nftables.request(nftables.NEWSETELEM, table="netloom", set="known4", elements=ends)

    def decoded(number: int) -> None:
        seen = decode(nftsocket.nft_set_elem_list_msg, made[number], HEADER_SIZE)
        for element in seen.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS"):
            element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE")
            element.get_attr("NFTA_SET_ELEM_FLAGS")

    def by_hand(number: int) -> None:
        nftables.read_elements(made[number], HEADER_SIZE, len(made[number]))

    return {
        "encode two elements": {
            "pyroute2": _us(by_class, rounds),
            "by hand": _us(lambda number: elements.encode(nftables.NEWSETELEM, pairs[number]), rounds),
        },
        "decode two elements": {"pyroute2": _us(decoded, rounds), "by hand": _us(by_hand, rounds)},
    }


class NetconfByPyroute2(nlmsg):  # type: ignore[misc]
    """`struct netconfmsg`, linux/netconf.h, of which pyroute2 has no class."""

    prefix = "NETCONFA_"
    fields = (("family", "B"), ("__padding", "3x"))
    nla_map = tuple((f"NETCONFA_{name}", "int32") for name in ("UNSPEC", "IFINDEX", "FORWARDING", "RP_FILTER"))


def _dumped(request: bytes) -> bytes:
    """The first message of an answer."""
    found: list[bytes] = []
    commands = CommandSocket()
    commands.dump(request, lambda _kind, buffer, start, end: found.append(buffer[start - HEADER_SIZE : end]))
    commands.close()
    return found[0]


def _of_devices(rounds: int) -> dict[str, dict[str, float]]:
    """What is told of each device, of which pods bring some, and what makes a pod's."""
    lo = _dumped(link_messages.dump_links())
    switches = _dumped(encode(NetconfByPyroute2, RTM_GETNETCONF, 0, {"family": 2}))
    pod = Endpoint(container="c" * 64, interface="eth0", addresses=(_address(1),), mtu=1450)

    def end(_number: int) -> None:
        seen = decode(LinkMessage, lo, HEADER_SIZE)
        for name in ("IFLA_IFNAME", "IFLA_MTU", "IFLA_ADDRESS", "IFLA_IFALIAS", "IFLA_MASTER", "IFLA_LINKINFO"):
            seen.get_attr(name)
        seen.get_nested("IFLA_AF_SPEC", "AF_INET")
        seen.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_CONF")

    def pair(number: int) -> None:
        peer = nested(IFLA_IFNAME="eth0", IFLA_ADDRESS=format_mac(pod.pod_mac), IFLA_MTU=1450, IFLA_NET_NS_FD=number)
        info = nested(IFLA_INFO_KIND="veth", IFLA_INFO_DATA=nested(VETH_INFO_PEER=peer))
        about = {"ifname": pod.device, "address": pod.host_mac, "mtu": 1450, "linkinfo": info}
        encode(LinkMessage, RTM_NEWLINK, 0x600, {}, **about)

    def netconf_(_number: int) -> None:
        seen = decode(NetconfByPyroute2, switches, HEADER_SIZE)
        for name in ("NETCONFA_IFINDEX", "NETCONFA_FORWARDING", "NETCONFA_RP_FILTER"):
            seen.get_attr(name)

    return {
        "decode a link as a pod's": {
            "pyroute2": _us(end, rounds, 100),
            "by hand": _us(lambda _number: link_messages.read_end(lo, HEADER_SIZE, len(lo)), rounds),
        },
        "encode a pod's pair": {
            "pyroute2": _us(pair, rounds, 100),
            "by hand": _us(lambda number: link_messages.create_pair(pod, number), rounds),
        },
        "decode switches of a device": {
            "pyroute2": _us(netconf_, rounds, 100),
            "by hand": _us(lambda _number: netconf.read_netconf(switches, HEADER_SIZE, len(switches)), rounds),
        },
    }


def _of_filters(rounds: int) -> dict[str, dict[str, float]]:
    """A rule of somebody's forward filter, and an entry of the table of connections: there may be thousands."""
    asked = expressions.address_within(_address(1), 24) + expressions.counter()
    asked += expressions.verdict(expressions.ACCEPT)
    rule = nftables.request(nftables.NEWRULE, table="filter", chain="FORWARD", handle=7, expressions=asked)
    here, there = _address(1), _address(2)
    tuples = (
        attribute(kind | NLA_F_NESTED, attribute(1 | NLA_F_NESTED, attribute(1, source) + attribute(2, target)))
        for kind, source, target in ((1, here, there), (2, there, here))
    )
    flow = begun_flows.message(1, 4, b"".join(tuples) + attribute(3, bytes([0, 0, 0, 8])) + attribute(12, bytes(4)))

    def values(of: Any) -> None:
        for name, _value in of["attrs"]:
            value = of.get_attr(name)
            if hasattr(value, "get_attr"):
                values(value)

    def by_class(_number: int) -> None:
        for expression in decode(nftsocket.nft_rule_msg, rule, HEADER_SIZE).get_attr("NFTA_RULE_EXPRESSIONS"):
            values(expression)

    def connection(_number: int) -> None:
        seen = decode(nfct_msg, flow, HEADER_SIZE)
        seen.get_attr("CTA_STATUS")
        for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY"):
            seen.get_nested(name, "CTA_TUPLE_IP", "CTA_IP_V4_SRC")

    return {
        "decode a rule of a filter": {
            "pyroute2": _us(by_class, rounds, 50),
            "by hand": _us(lambda _number: rules_of(7, asked, lambda _: None), rounds),
        },
        "decode a connection": {
            "pyroute2": _us(connection, rounds, 100),
            "by hand": _us(lambda _number: begun_flows.read_flow(4, flow, HEADER_SIZE, len(flow)), rounds),
        },
    }


def _others(rounds: int) -> dict[str, dict[str, float]]:
    """What is left to pyroute2: as it is read, with all that is asked for."""
    fields = {"family": 2, "prefixlen": 24, "index": 7}
    about = {"address": _address(1), "local": _address(1), "label": "eth0", "flags": 0x80, "broadcast": _address(2)}
    address = encode(AddressMessage, RTM_NEWADDR, 0, fields, **about, cacheinfo={"ifa_valid": 2**32 - 1})
    found: list[bytes] = []
    commands = CommandSocket()
    commands.get(
        encode(LinkMessage, RTM_GETLINK, 0, {}, ifname="lo", ext_mask=8),
        lambda _kind, buffer, start, end: found.append(buffer[start - HEADER_SIZE : end]),
    )
    commands.close()
    lo = found[0]
    requests = {
        "encode a change of a link": lambda number: links.change(number, mtu=1450),
        "decode an address": lambda _number: links.read_address(address, HEADER_SIZE, len(address)),
        "decode a link": lambda _number: links.read_link(lo, HEADER_SIZE, len(lo)),
    }
    return {what: {"pyroute2": _us(work, rounds)} for what, work in requests.items()}


def run(rounds: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(bench.circumstances())
    gc.freeze()
    result: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        result |= kind.cost(rounds)
    result |= _elements(rounds) | _of_devices(rounds) | _of_filters(rounds) | _others(rounds)
    columns = ("pyroute2", "by hand", "template")
    rows = [(what, *(str(figures.get(column, "")) for column in columns)) for what, figures in result.items()]
    console.print(bench.table("CPU time of one message, us", ("message", *columns), rows))
    return {"us": result}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="What a netlink message costs.")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    return bench.conclude("bench-codec", lambda: run(options.rounds))


if __name__ == "__main__":
    sys.exit(main())
