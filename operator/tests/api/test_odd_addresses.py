"""Which addresses of a Node others can send to."""

from hypothesis import given
from hypothesis import strategies as st

from netloom.api.core import Node, NodeAddress, NodeStatus
from netloom.api.meta import ObjectMeta
from netloom.api.node_addresses import unusable
from netloom.api.odd_addresses import is_usable, odd_addresses


@given(st.ip_addresses())
def test_what_is_unusable_is_so_to_the_standard_library(address: object) -> None:
    packed = address.packed  # type: ignore[attr-defined]
    kinds = ("is_loopback", "is_link_local", "is_multicast", "is_unspecified")
    odd = any(getattr(address, kind) for kind in kinds) or str(address) == "255.255.255.255"
    if len(packed) == 4:
        odd = odd or packed[0] == 0
    assert bool(unusable(packed)) == odd


def test_each_odd_address_is_named_by_its_field() -> None:
    reported = ("10.0.0.1", "127.0.0.1", "255.255.255.255", "240.0.0.9", "nonsense", "::ffff:10.0.0.1")
    addresses = [NodeAddress(type="InternalIP", address=each) for each in reported]
    addresses.append(NodeAddress(type="Hostname", address="127.0.0.1"))
    node = Node(metadata=ObjectMeta(name="vk"), status=NodeStatus(addresses=tuple(addresses)))
    assert [f"{each.object} {each.field} {each.message}" for each in odd_addresses(node)] == [
        "Node vk status.addresses[1] this is a loopback address, and no other node can send to it.",
        "Node vk status.addresses[2] this is the broadcast address, and no other node can send to it.",
        "Node vk status.addresses[4] 'nonsense' is not an IP address.",
        "Node vk status.addresses[5] '::ffff:10.0.0.1' is not an IP address of its own, but an IPv4 address written as "
        "IPv6.",
    ]
    assert [is_usable(each) for each in reported] == [True, False, False, True, False, False]
