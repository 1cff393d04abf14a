"""The sockets: errors find their request, own events are not heard, others' are, lost ones are noticed."""

import errno

import pytest

from netloom.cidr import Cidr
from netloom.kernel.mesh.row_messages import dump_nexthops, encode_routes
from netloom.kernel.mesh.rows import RouteContent
from netloom.kernel.netlink.messages import LinkMessage, encode
from netloom.kernel.netlink.sockets import BATCH, CommandSocket, EventSocket, KernelRefusal, Overflow, RefusedError
from netloom.kernel.netlink.wire import RTM_GETLINK, RTM_NEWROUTE
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


def test_lost_events_are_noticed(node: Namespace) -> None:
    node.ip("nexthop add id 7 via 192.168.7.2 dev eth0")
    commands = CommandSocket()
    events = EventSocket(["ipv4-route"], buffer=4096)
    commands.execute(encode_routes([route_to(number, 7) for number in range(500)]))
    with pytest.raises(Overflow):
        list(iter(events.receive, None))
    events.close()
    commands.close()
