"""Message templates: filled in they are what pyroute2 encodes; what is read by them is what pyroute2 decodes."""

import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netloom.cidr import Cidr, format_address
from netloom.kernel.mac import Mac, format_mac
from netloom.kernel.mesh import reader, row_readers
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.row_messages import (
    dump_all_routes,
    dump_nexthops,
    dump_routes,
    encode_nexthops,
    encode_routes,
    probe_neighbour,
)
from netloom.kernel.mesh.rows import EDITED, Nexthop, OddRoute, RouteContent, SeenNexthop, SeenRoute
from netloom.kernel.netlink import messages
from netloom.kernel.netlink.fib_lookup import ask_route
from netloom.kernel.netlink.messages import (
    IpEncapsulation,
    NeighbourMessage,
    NexthopMessage,
    RouteMessage,
    decode,
    nested,
)
from netloom.kernel.netlink.neighbours import SeenNeighbour, dump_neighbours, encode_neighbours, read_neighbour
from netloom.kernel.netlink.sockets import CommandSocket, EventSocket, walk
from netloom.kernel.netlink.template import marker, message_template
from tests.kernel.netns import Namespace

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
ipv4 = st.binary(min_size=4, max_size=4)
macs = st.binary(min_size=6, max_size=6)
numbers = st.integers(1, 2**32 - 1)


class RouteByPyroute2(rtmsg):  # type: ignore[misc]
    """pyroute2's class, with its addresses as text, and the attribute that it does not have."""

    nla_map = (*rtmsg.nla_map, *RouteMessage.nla_map[len(rtmsg.nla_map) :])


def encoded(layout: Any, kind: int, flags: int, fields: dict[str, int], sequence: int = 0, **attributes: Any) -> bytes:
    """By the class alone."""
    message = layout()
    message.update(fields)
    message["header"].update(type=kind, flags=flags, sequence_number=sequence)
    message["attrs"] = [(layout.name2nla(name), value) for name, value in attributes.items()]
    message.encode()
    return bytes(message.data)


def family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def filler(sequence: int, fill: Callable[[Sequence[Any]], list[bytes]], write: Any) -> bytes:
    """The request of this sequence number."""
    return fill([write] * (sequence + 1))[sequence]


@given(st.integers(0, 2**32 - 1), ipv4, macs)
def test_a_template_is_filled_in_where_the_markers_are(sequence: int, first: bytes, second: bytes) -> None:
    percent = int.from_bytes(b"%%%d", "big")
    about = (NeighbourMessage, 28, 0x500, {"ifindex": percent, "state": 0x2525})
    template = message_template(*about, dst=marker(b"a", 4), vni=percent, lladdr=marker(b"b", 6), port=0x2525)
    number = sequence.to_bytes(4, sys.byteorder)
    expected = messages.encode(*about, dst=first, vni=percent, lladdr=second, port=0x2525)
    assert template % (number, first, second) == expected[:8] + number + expected[12:]
    with pytest.raises(TypeError):
        _ = template % (number, first)


@given(addresses, st.integers(0, 32), numbers, st.integers(0, 9000), st.booleans(), st.integers(0, 3))
def test_routes(address: bytes, length: int, nexthop: int, mtu: int, replaced: bool, sequence: int) -> None:
    before = RouteContent(9) if replaced else None
    made = filler(sequence, encode_routes, (Cidr.of(address, length), RouteContent(nexthop, mtu), before))
    fields = {"family": family(address), "dst_len": length, "table": 254, "proto": 158, "type": 1}
    metrics = {"metrics": nested(RTAX_MTU=mtu)} if mtu else {}
    flags = 0x401 | (0x100 if replaced else 0x200)
    text = format_address(Cidr.of(address, length).packed)
    assert made == encoded(RouteByPyroute2, 24, flags, fields, sequence, dst=text, nh_id=nexthop, **metrics)


@given(addresses, st.integers(0, 32), st.integers(0, 2**32 - 1), st.integers(0, 255), st.booleans())
def test_deleted_routes(address: bytes, length: int, metric: int, tos: int, odd: bool) -> None:
    prefix = Cidr.of(address, length)
    (made,) = encode_routes([(OddRoute(prefix, metric, tos) if odd else prefix, None, RouteContent(9))])
    fields = {"family": family(address), "dst_len": length, "table": 254, "proto": 158, "scope": 255}
    if odd:
        fields["tos"] = tos
    priority = metric if odd else {4: 0, 16: 1024}[len(address)]
    assert made == encoded(RouteByPyroute2, 25, 1, fields, dst=format_address(prefix.packed), priority=priority)


@given(numbers, st.integers(1, 99), addresses, ipv4 | st.just(b""), st.integers(0, 2**24 - 1), st.booleans())
def test_nexthops(key: int, ifindex: int, gateway: bytes, remote: bytes, vni: int, replaced: bool) -> None:
    value = Nexthop(ifindex, gateway, remote, vni) if remote else Nexthop.native(ifindex, gateway)
    (made,) = encode_nexthops([(key, value, value if replaced else None)])
    outer = nested(LWTUNNEL_IP_ID=vni, LWTUNNEL_IP_TTL=64, LWTUNNEL_IP_DST=remote)
    encapsulation = {"encap_type": 2, "encap": outer} if remote else {}
    fields = {"family": family(gateway), "protocol": 158, "flags": 4}
    flags = 0x401 | (0x100 if replaced else 0x200)
    assert made == encoded(NexthopMessage, 104, flags, fields, id=key, oif=ifindex, gateway=gateway, **encapsulation)
    (deletion,) = encode_nexthops([(key, None, value)])
    assert deletion == encoded(NexthopMessage, 105, 1, {}, id=key)


@given(st.integers(1, 99), addresses, macs, st.integers(0, 3))
def test_neighbours(ifindex: int, address: bytes, mac: bytes, sequence: int) -> None:
    made = filler(sequence, encode_neighbours, ((ifindex, address), mac, None))
    fields, text = {"family": family(address), "ifindex": ifindex}, format_address(address)
    permanent = {**fields, "state": 0x80, "ndm_type": 1}
    assert made == encoded(ndmsg, 28, 0x501, permanent, sequence, dst=text, lladdr=format_mac(mac))
    deletion = filler(sequence, encode_neighbours, ((ifindex, address), None, mac))
    assert deletion == encoded(ndmsg, 29, 1, fields, sequence, dst=text)
    probe = probe_neighbour(sequence, ifindex, address)
    assert probe == encoded(ndmsg, 28, 1, {**fields, "flags": 1}, sequence, dst=text)


@given(addresses, st.integers(0, 1023), st.sampled_from([0, 0x2000]))
def test_questions(address: bytes, sequence: int, flags: int) -> None:
    fields = {"family": family(address), "dst_len": len(address) * 8, "flags": flags}
    expected = encoded(RouteByPyroute2, 26, 1, fields, sequence, dst=format_address(address))
    assert ask_route(sequence, address, flags) == expected


# ------------------------------------------------------------------------------------------ from the real kernel


def raw(commands: CommandSocket, request: bytes) -> Iterable[tuple[bytes, int, int]]:
    """A dump, as it comes."""
    found: list[tuple[bytes, int, int]] = []
    assert commands.dump(request, lambda _kind, *place: found.append(place))
    return found


def nexthop_by_pyroute2(buffer: bytes, start: int, _end: int) -> SeenNexthop:
    seen = decode(NexthopMessage, buffer, start)
    outer = seen.get_attr("NHA_ENCAP")
    parts = [outer.get_attr(f"LWTUNNEL_IP_{name}") for name in ("DST", "ID", "TTL")] if outer else [b"", 0, 0]
    value = Nexthop(seen.get_attr("NHA_OIF"), seen.get_attr("NHA_GATEWAY"), *parts)
    return SeenNexthop(seen.get_attr("NHA_ID"), value, seen["protocol"])


def route_by_pyroute2(buffer: bytes, start: int, _end: int) -> SeenRoute:
    seen = decode(RouteMessage, buffer, start)
    content = RouteContent(seen.get_attr("RTA_NH_ID"), seen.get_nested("RTA_METRICS", "RTAX_MTU") or 0)
    return SeenRoute(Cidr.of(seen.get_attr("RTA_DST"), seen["dst_len"]), content, seen["proto"])


def neighbour_by_pyroute2(buffer: bytes, start: int, _end: int) -> SeenNeighbour:
    seen = decode(NeighbourMessage, buffer, start)
    return SeenNeighbour(seen["ifindex"], seen.get_attr("NDA_DST"), seen.get_attr("NDA_LLADDR"))


def rows(
    ifindex: int, underlay: int
) -> tuple[dict[int, Nexthop], dict[tuple[int, bytes], Mac], dict[Cidr, RouteContent]]:
    """300 peers through a tunnel, by IPv4 and IPv6, and 30 natively, in no order."""
    chance = random.Random(158)
    nexthops: dict[int, Nexthop] = {}
    neighbours: dict[tuple[int, bytes], Mac] = {}
    routes: dict[Cidr, RouteContent] = {}
    for number in range(330):
        identity = chance.randrange(1, 2**31)
        four, six = chance.randbytes(2), chance.randbytes(8)
        if number >= 300:
            nexthops[identity] = Nexthop.native(underlay, b"\xc0\xa8\x07" + bytes([number - 200]))
        elif number % 3:
            nexthops[identity] = Nexthop(ifindex, b"\x0a\x80" + four, chance.randbytes(4), number % 2)
        else:
            nexthops[identity] = Nexthop(ifindex, b"\xfe\x80" + bytes(6) + six, chance.randbytes(4), number % 2)
        gateway = nexthops[identity].gateway
        if number < 300:
            neighbours[ifindex, gateway] = b"\x02" + chance.randbytes(5)
        if len(gateway) == 4:
            length = chance.choice((24, 25, 32))
            routes[Cidr.of(bytes([100, *four, 0]), length)] = RouteContent(identity, chance.choice((0, 0, 1400)))
        else:
            routes[Cidr.of(b"\xfd\x02" + six[:6] + bytes(8), 64)] = RouteContent(identity)
    return nexthops, neighbours, routes


def test_what_the_kernel_shows_is_read_as_pyroute2_decodes_it(node: Namespace) -> None:
    node.ip("link add tunnel type vxlan external dstport 8472")
    node.ip("link set tunnel up")
    (tunnel,), (eth0,) = node.ip_json("link show tunnel"), node.ip_json("link show eth0")
    nexthops, neighbours, routes = rows(tunnel["ifindex"], eth0["ifindex"])
    commands = CommandSocket()
    for encode, entries in (
        (encode_neighbours, neighbours),
        (encode_nexthops, nexthops),
        (encode_routes, routes),
    ):
        writes = [(key, value, None) for key, value in entries.items()]  # type: ignore[attr-defined]
        assert commands.execute(encode(writes)) == {}
    for request, read, plain, pyroute2, count in (
        (dump_nexthops(), row_readers.nexthop_reader().read, row_readers.read_nexthop, nexthop_by_pyroute2, 330),
        (
            dump_routes(socket.AF_INET),
            row_readers.route_reader().read,
            row_readers.read_route,
            route_by_pyroute2,
            230,
        ),
        (
            dump_routes(socket.AF_INET6),
            row_readers.route_reader().read,
            row_readers.read_route,
            route_by_pyroute2,
            100,
        ),
    ):
        of_routes = plain is row_readers.read_route
        dump = [place for place in raw(commands, request) if not of_routes or row_readers.route_is_ours(*place[:2])]
        assert len(dump) == count
        expected = [pyroute2(*place) for place in dump]
        assert [plain(*place) for place in dump] == expected
        assert [read(*place) for place in dump] == expected
    assert {seen.id: seen.value for seen in reader.nexthops(commands)} == nexthops
    assert {seen.key: seen.content for seen in reader.routes(commands).ours if seen.owned} == routes
    assert reader.neighbours(commands, [tunnel["ifindex"]]) == neighbours
    read = row_readers.neighbour_reader().read
    for place in raw(commands, dump_neighbours(tunnel["ifindex"])):
        seen = read_neighbour(*place)
        assert read(*place) == seen
        assert seen is None or not seen.mac or seen == neighbour_by_pyroute2(*place)
    commands.close()


def test_a_route_that_is_to_expire_is_told_from_those_like_it(node: Namespace) -> None:
    """In a dump, and in the events of its making (that of its end says nothing of a lifetime)."""
    node.ip("nexthop add id 7 via fd00:7::2 dev eth0 onlink")
    events, read = EventSocket(["ipv6-route"]), row_readers.route_reader().read
    for number in range(3):
        node.ip(f"route add fd00:9:{number}::/64 nhid 7 proto 158{' expires 60' if number == 1 else ''}")
    commands = CommandSocket()
    contents = {seen.key: seen.content for seen in reader.routes(commands).ours}
    commands.close()
    told = []
    while (buffer := events.receive()) is not None:
        told += [read(buffer, start, end) for _kind, _flags, _sequence, start, end in walk(buffer)]
    events.close()
    keys = [Cidr.parse(f"fd00:9:{number}::/64") for number in range(3)]
    right = [RouteContent(7), EDITED, RouteContent(7)]
    assert contents == dict(zip(keys, right, strict=True))
    assert [(seen.key, seen.content) for seen in told if seen] == [*contents.items()]


def test_the_way_to_an_address_is_read_as_pyroute2_decodes_it(node: Namespace) -> None:
    node.ip("route add 10.0.0.0/8 via 192.168.7.2")
    node.ip("route add unreachable 10.9.0.0/16")
    addresses = [bytes([192, 168, 7, number]) for number in range(2, 60)] + [bytes([10, n, 0, 1]) for n in range(20)]
    commands = CommandSocket()
    read = row_readers.fib_result_reader().read
    seen: list[tuple[bytes, FibResult]] = []

    def visit(number: int, kind: int, buffer: bytes, start: int, end: int) -> None:
        if kind == 24:
            answer = decode(RouteMessage, buffer, start)
            direct = answer.get_attr("RTA_GATEWAY") is None
            exact = direct and answer["dst_len"] == 32
            result = FibResult(answer.get_attr("RTA_OIF"), direct, exact, answer.get_attr("RTA_PREFSRC") or b"")
            assert read(buffer, start, end) == row_readers.read_fib_result(buffer, start, end) == result
            seen.append((addresses[number], result))

    commands.ask([ask_route(number, address, 0x2000) for number, address in enumerate(addresses)], visit)
    assert len(seen) == len(addresses) - 1, "one is unreachable"
    assert dict(reader.fib_lookups(commands, addresses)) == {**dict(seen), bytes([10, 9, 0, 1]): FibResult()}
    commands.close()


def test_a_route_that_carries_its_encapsulation_is_understood(node: Namespace) -> None:
    """pyroute2 alone passes over `encap ip`."""
    node.ip("route add 10.99.0.0/24 encap ip id 77 dst 192.168.7.9 ttl 64 via 192.168.7.2 dev eth0")
    commands = CommandSocket()
    found = [decode(RouteMessage, buffer, start) for buffer, start, _ in raw(commands, dump_all_routes(socket.AF_INET))]
    (outer,) = [outer for seen in found if (outer := seen.get_attr("RTA_ENCAP")) is not None]
    assert isinstance(outer, IpEncapsulation)
    figures = [outer.get_attr(f"LWTUNNEL_IP_{name}") for name in ("ID", "DST", "TTL")]
    assert figures == [77, bytes([192, 168, 7, 9]), 64]
    again = messages.encode(
        RouteMessage,
        24,
        0x600,
        {"family": 2, "dst_len": 24, "table": 254, "proto": 158, "type": 1},
        dst=bytes([10, 98, 0, 0]),
        oif=found[0].get_attr("RTA_OIF"),
        encap_type=2,
        encap=nested(LWTUNNEL_IP_ID=78, LWTUNNEL_IP_DST=bytes([192, 168, 7, 9])),
    )
    assert commands.execute([again]) == {}
    assert "10.98.0.0/24  encap ip id 78 src 0.0.0.0 dst 192.168.7.9" in node.ip("route show proto 158")
    commands.close()


@pytest.mark.slow
@pytest.mark.parametrize("whole_first", [False, True])
def test_the_message_classes_come_without_the_package_and_harm_no_whole_one(whole_first: bool) -> None:
    code = f"""
import sys
if {whole_first}:
    import pyroute2
from netloom.kernel.netlink import messages
brought = [name for name in sys.modules if name.startswith("pyroute2")]
assert bool(brought) == {whole_first}, brought
assert messages.encode(messages.RouteMessage, 26, 0, {{}})
import pyroute2
from pyroute2.netlink.rtnl.rtmsg import rtmsg
assert pyroute2.IPRoute
assert rtmsg not in messages.RouteMessage.__mro__
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
