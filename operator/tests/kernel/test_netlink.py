"""The sockets: errors find their request, own events are not heard, others' are, lost ones are noticed."""

import errno

import pytest

from netloom.cidr import Cidr, format_address
from netloom.kernel.mesh.row_messages import dump_nexthops, encode_routes
from netloom.kernel.mesh.rows import RouteContent
from netloom.kernel.netlink.messages import LinkMessage, encode
from netloom.kernel.netlink.sockets import (
    BATCH,
    CommandSocket,
    EventSocket,
    KernelRefusal,
    Overflow,
    RefusedError,
    walk,
)
from netloom.kernel.netlink.wire import RTA_DST, RTM_DELROUTE, RTM_GETLINK, RTM_NEWROUTE, attributes
from tests.kernel.netns import Namespace


def route_to(number: int, nexthop: int) -> tuple[Cidr, RouteContent, None]:
    return Cidr.parse(f"10.{number // 256}.{number % 256}.0/24"), RouteContent(nexthop), None


def test_each_error_of_a_batch_is_told_of_its_request(node: Namespace) -> None:
    node.ip("nexthop add id 7 via 192.168.7.2 dev eth0")
    commands = CommandSocket()
    writes = [route_to(number, 7 if number % 10 else 8) for number in range(BATCH)]
    refusals = commands.execute(encode_routes(writes))
    assert sorted(refusals) == list(range(0, BATCH, 10))
    assert set(refusals.values()) == {KernelRefusal(errno.EINVAL, "Nexthop id does not exist")}
    assert len(node.ip("route show proto 158").splitlines()) == BATCH - len(refusals)
    assert commands.written == {RTM_NEWROUTE: BATCH}
    commands.close()


def test_a_batch_of_nothing_but_errors_is_answered_whole(node: Namespace) -> None:
    commands = CommandSocket()
    refusals = commands.execute(encode_routes([route_to(number, 8) for number in range(BATCH)]))
    assert len(refusals) == BATCH
    commands.close()


def test_what_is_not_there_is_refused_by_name(node: Namespace) -> None:
    commands = CommandSocket()
    with pytest.raises(RefusedError) as refused:
        commands.get(encode(LinkMessage, RTM_GETLINK, 0, {}, ifname="nothing"), lambda *_: None)
    assert refused.value.refusal.name == "ENODEV"
    assert commands.dump(dump_nexthops(), lambda *_: None), "the socket goes on"
    commands.close()


def test_own_events_are_not_heard_and_others_are(node: Namespace) -> None:
    node.ip("nexthop add id 7 via 192.168.7.2 dev eth0")
    commands = CommandSocket()
    events = EventSocket(["ipv4-route"], deaf_to=[commands.port])
    assert commands.execute(encode_routes([route_to(number, 7) for number in range(50)])) == {}
    node.ip("route add 10.99.0.0/24 nhid 7")
    heard = []
    while (buffer := events.receive()) is not None:
        heard.append(buffer)
    assert len(heard) == 1
    events.close()
    commands.close()


@pytest.mark.parametrize("ports", [0, 1, 20])
def test_a_protocols_routes_by_nexthop_objects_are_not_heard_and_others_are(node: Namespace, ports: int) -> None:
    """Made, replaced and deleted; but for those to one address."""
    node.ip("nexthop add id 7 via 192.168.7.2 dev eth0")
    node.ip("nexthop add id 8 via fd00:7::2 dev eth0 onlink")
    deaf_to = range(1, ports + 1)
    events = EventSocket(["ipv4-route", "ipv6-route", "link"], deaf_to=deaf_to, without_routes_of=158)
    unheard = ["10.1.0.0/24 nhid 7", "10.2.0.0/31 nhid 7", "0.0.0.0/1 nhid 7", "fd00:9::/64 nhid 8"]
    heard = ["10.1.0.9 nhid 7", "fd00:9::9 nhid 8", "10.3.0.0/24 via 192.168.7.2", "unreachable 10.4.0.0/24"]
    for route in (*unheard, *heard):
        for command in (f"add {route}", f"replace {route} mtu 1300", f"del {route}"):
            node.ip(f"route {command} proto 158")
    node.ip("route add 10.1.0.0/24 nhid 7 proto static")
    node.ip("link add other type bridge")
    told = []
    while (buffer := events.receive()) is not None:
        for kind, _flags, _sequence, start, end in walk(buffer):
            if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                destination = attributes(buffer, start + 12, end)[RTA_DST]
                told.append(f"{format_address(destination)}/{buffer[start + 1]}")
            else:
                told.append("another")
    events.close()
    each = [route.removeprefix("unreachable ").split()[0] for route in heard]
    three_times = [
        route if "/" in route else f"{route}/{128 if ':' in route else 32}" for route in each for _ in range(3)
    ]
    assert told == [*three_times, "10.1.0.0/24", "another"]


def test_lost_events_are_noticed(node: Namespace) -> None:
    node.ip("nexthop add id 7 via 192.168.7.2 dev eth0")
    commands = CommandSocket()
    events = EventSocket(["ipv4-route"], buffer=4096)
    commands.execute(encode_routes([route_to(number, 7) for number in range(500)]))
    with pytest.raises(Overflow):
        list(iter(events.receive, None))
    events.close()
    commands.close()
