"""CIDRs as integers: the same answers as `ipaddress`, and refusals that say what is wrong."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.ipam.cidr import Cidr, CidrError, Version, cover, parse, region_from_name, region_of, shard_name

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
    return ipaddress.ip_network((cidr.base, cidr.length)) if cidr.version == 4 else ipaddress.IPv6Network(cidr[1:])


@given(cidrs())
def test_text_is_that_of_ipaddress_and_comes_back(cidr: Cidr) -> None:
    assert ipaddress.ip_network(str(cidr)) == network(cidr)
    assert parse(str(cidr)) == cidr
    assert cidr.last == int(network(cidr).broadcast_address)


@given(cidrs(), cidrs())
def test_overlap_and_containment_are_those_of_ipaddress(one: Cidr, other: Cidr) -> None:
    same = one.version == other.version
    assert one.overlaps(other) == (same and network(one).overlaps(network(other)))
    assert one.contains(other) == (same and network(other).subnet_of(network(one)))  # type: ignore[arg-type]


@given(st.data(), VERSIONS)
def test_blocks_that_overlap_meet_in_one_region(data: st.DataObject, version: Version) -> None:
    shortest = 16 if version == 4 else 56
    one, other = data.draw(cidrs(version, shortest)), data.draw(cidrs(version, shortest))
    assert not one.overlaps(other) or region_of(one) == region_of(other)
    assert region_of(one).contains(one)
    assert region_from_name(shard_name(region_of(one))) == region_of(one)


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
        ("10.0.0.5/24", "has bits set below its mask; did you mean 10.0.0.0/24?"),
        ("fd00::1/64", "did you mean fd00::/64?"),
    ],
)
def test_what_is_no_cidr_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(CidrError) as refused:
        parse(text)
    assert says in str(refused.value)


def test_a_block_larger_than_a_region_has_no_ledger() -> None:
    with pytest.raises(CidrError, match=r"10.0.0.0/15 is too large for one node: an IPv4 block has at least a /16"):
        region_of(parse("10.0.0.0/15"))
    with pytest.raises(CidrError, match="at least a /56"):
        region_of(parse("fd00::/48"))


def test_names_of_ledgers_are_object_names() -> None:
    assert shard_name(parse("10.3.0.0/16")) == "v4-10.3.0.0-16"
    assert shard_name(parse("fd00:10:0:ab00::/56")) == "v6-fd00-10-0-ab00-56"


@pytest.mark.parametrize(
    "name", ["", "v4-10.0.0.0-24", "v4-10.0.0.1-16", "v6-fd00--56", "v5-10.0.0.0-16", "v4", "v6-x-56"]
)
def test_other_names_are_none(name: str) -> None:
    with pytest.raises(CidrError, match="is not the name of a region's ledger"):
        region_from_name(name)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(16, 24)), max_size=40), st.integers(1, 5))
def test_a_cover_holds_all_and_is_short(blocks: list[tuple[int, int]], limit: int) -> None:
    cidrs = {Cidr(4, (10 << 24) + (number << 16), length) for number, length in blocks} | {parse("fd00::/56")}
    found = cover(cidrs, limit)
    assert all(any(each.contains(cidr) for each in found) for cidr in cidrs)
    assert sum(each.version == 4 for each in found) <= limit
    if len(cidrs) <= limit:
        assert found == sorted(cidrs)
