"""Packed addresses and prefixes: what is taken and what is refused."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.kernel.address import Prefix, format_address, format_mac, parse_address, parse_mac
from netloom.kernel.owned import link_local_of, mac_in, mac_of


@given(st.ip_addresses())
def test_addresses_are_those_of_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = parse_address(str(address))
    assert packed == address.packed
    assert parse_address(format_address(packed)) == packed


@given(st.ip_addresses(), st.integers(0, 128))
def test_prefixes_are_those_of_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    prefix = Prefix.parse(str(network))
    assert (prefix.address, prefix.length) == (network.network_address.packed, network.prefixlen)
    assert ipaddress.ip_network(str(prefix)) == network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.0", "not a CIDR: '10.0.0.0'"),
        ("10.0.0.0/33", "not a CIDR: '10.0.0.0/33'"),
        ("10.0.0.0/-1", "not a CIDR: '10.0.0.0/-1'"),
        ("10.0.0.0/²", "not a CIDR: '10.0.0.0/²'"),
        ("fd00::/129", "not a CIDR: 'fd00::/129'"),
        ("10.0.0.1/24", "host bits are set in CIDR '10.0.0.1/24'"),
        ("10.0.0/24", "not a CIDR: '10.0.0/24'"),
        ("node-1/24", "not a CIDR: 'node-1/24'"),
        ("", "not a CIDR: ''"),
    ],
)
def test_what_is_no_cidr_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        Prefix.parse(text)
    assert str(refused.value) == message


@given(st.text())
def test_any_nodes_mac_is_unicast_locally_administered_and_in_its_link_local_address(name: str) -> None:
    mac = mac_of(name)
    assert len(mac) == 6
    assert mac[0] & 0x03 == 0x02
    assert mac_in(link_local_of(mac)) == mac
    assert parse_mac(format_mac(mac)) == mac


def test_a_nodes_mac_never_changes() -> None:
    """Every agent of every version derives it alike; another result would cut off mixed clusters."""
    assert format_mac(mac_of("node-1")) == "3a:72:55:8c:ab:f9"
    assert format_address(link_local_of(mac_of("node-1"))) == "fe80::3872:55ff:fe8c:abf9"
