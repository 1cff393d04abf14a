"""CIDRs as integers: the same answers as `ipaddress`, and refusals that say what is wrong."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr, CidrError, Version, format_address, is_address, parse_address, split

VERSIONS: st.SearchStrategy[Version] = st.sampled_from((4, 6))


@st.composite
def cidrs(draw: st.DrawFn, version: Version | None = None, shortest: int = 0) -> Cidr:
    version = version or draw(VERSIONS)
    width = 32 if version == 4 else 128
    length = draw(st.integers(shortest, width))
    # Few distinct high bits, so that two of them often overlap.
    address = draw(st.integers(0, 3)) << (width - 4) | draw(st.integers(0, (1 << (width - 4)) - 1))
    return Cidr(version, address, length).supernet(length)


def network(cidr: Cidr) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    kind = ipaddress.IPv4Network if cidr.version == 4 else ipaddress.IPv6Network
    return kind((cidr.base, cidr.length))


@given(st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None))
def test_addresses_are_those_of_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = parse_address(str(address))
    assert packed == address.packed
    assert format_address(packed) == str(address)


@given(st.integers(0, 2**33 - 1), st.integers(0, 128))
def test_ipv4_in_an_ipv6_address_is_written_in_hexadecimal(number: int, shift: int) -> None:
    """Canonical is what Go's netip, and so the API server, writes."""
    address = ipaddress.IPv6Address(number << shift & (1 << 128) - 1)
    assert is_address(str(address)) == (address.ipv4_mapped is None)
    if address.ipv4_mapped is None:
        assert format_address(address.packed) == str(address)


@given(st.ip_addresses(), st.integers(0, 128))
def test_prefixes_are_those_of_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    cidr = Cidr.of(address.packed, network.prefixlen)
    assert (cidr.packed, cidr.length) == (network.network_address.packed, network.prefixlen)
    if is_address(str(network.network_address)):
        assert str(cidr) == str(network)
        assert Cidr.parse(str(network)) == cidr
    if is_address(str(address)):
        text = f"{address}/{network.prefixlen}"
        assert (Cidr.masked(text), split(text)) == (cidr, (address.packed, network.prefixlen))


@given(st.ip_addresses(), cidrs())
def test_an_address_is_a_cidr_of_its_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address, cidr: Cidr) -> None:
    host = Cidr.of(address.packed)
    assert (host.packed, host.base, host.last) == (address.packed, int(address), int(address))
    assert cidr.contains(host) == (address in network(cidr))


@given(cidrs(), cidrs())
def test_in_order_a_cidr_comes_before_all_it_contains(one: Cidr, other: Cidr) -> None:
    assert (one < other) == ((one.version, one.base, one.length) < (other.version, other.base, other.length))
    assert not one.contains(other) or one <= other


@given(cidrs())
def test_text_is_that_of_ipaddress_and_comes_back(cidr: Cidr) -> None:
    assert ipaddress.ip_network(str(cidr)) == network(cidr)
    assert Cidr.parse(str(cidr)) == cidr
    assert cidr.last == int(network(cidr).broadcast_address)


@given(cidrs(), cidrs())
def test_overlap_and_containment_are_those_of_ipaddress(one: Cidr, other: Cidr) -> None:
    same = one.version == other.version
    assert one.overlaps(other) == (same and network(one).overlaps(network(other)))
    assert one.contains(other) == (same and network(other).subnet_of(network(one)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not a CIDR"),
        ("10.0.0.0", "'10.0.0.0' is not a CIDR (address/length)"),
        ("10.0.0.0/", "is not a CIDR"),
        ("10.0.0/24", "'10.0.0' is not an IP address"),
        ("10.0.0.00/24", "'10.0.0.00' is not an IP address"),
        ("010.0.0.0/24", "'010.0.0.0' is not an IP address"),
        ("10.0.0.0/024", "is not a CIDR"),
        ("10.0.0.0/-1", "is not a CIDR"),
        ("10.0.0.0/+8", "is not a CIDR"),
        ("10.0.0.0/²", "is not a CIDR"),
        (" 10.0.0.0/24", "is not an IP address"),
        ("10.0.0.0/33", "an IPv4 prefix has at most 32 bits"),
        ("fd00::/129", "an IPv6 prefix has at most 128 bits"),
        ("fd00::%eth0/64", "is not an IP address"),
        ("10.0.0.5/24", "has bits set below its mask: write 10.0.0.0/24"),
        ("fd00::1/64", "write fd00::/64"),
        ("node-1/24", "'node-1' is not an IP address"),
        ("10.0.0.0/255.0.0.0", "is not a CIDR"),
        ("::ffff:10.0.0.0/120", "an IPv4 address written as IPv6"),
        ("10.0.0.0\0/24", "is not an IP address"),
        ("\ud800/24", "is not an IP address"),
    ],
)
def test_what_is_no_cidr_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(CidrError) as refused:
        Cidr.parse(text)
    assert says in str(refused.value)
