"""CIDRs to the elements of interval sets: held against `ipaddress`, and against a fresh start."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.kernel.masquerade.outermost import cidr_of, keys
from netloom.kernel.masquerade.sets import MasqueradeRules, Masquerading, Sets, intervals
from tests.kernel.nft import prefixes


@pytest.mark.parametrize(
    ("cidr", "elements"),
    [
        ("10.1.0.0/24", ["0a01000001", "0a01010000"]),
        ("0.0.0.0/0", ["0000000001"]),
        ("255.255.255.0/24", ["ffffff0001"]),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", ["ff" * 16 + "01"]),
    ],
)
def test_the_elements_of_a_cidr(cidr: str, elements: list[str]) -> None:
    assert [key.hex() for key in keys(Cidr.parse(cidr))] == elements
    assert cidr_of(keys(Cidr.parse(cidr))) == Cidr.parse(cidr)


@pytest.mark.parametrize("interval", [("0a01000001", "0a01018000"), ("0a01008001", "0a01018000"), ("0a01000001",)])
def test_what_is_no_cidr_is_none(interval: tuple[str, ...]) -> None:
    assert cidr_of(tuple(map(bytes.fromhex, interval))) is None


@st.composite
def cidrs(draw: st.DrawFn) -> Cidr:
    """Few bits at the two ends of the address space, so that CIDRs meet."""
    size = draw(st.sampled_from([4, 16]))
    length = draw(st.sampled_from([0, 1, 2, 3, 4, 5, size * 8 - 2, size * 8 - 1, size * 8]))
    top, bottom = draw(st.integers(0, 31)), draw(st.sampled_from([0, 1, 2, 3, -1]))
    value = (top << (size * 8 - 5)) | (bottom & ((1 << (size * 8 - 5)) - 1))
    return Cidr.of(value.to_bytes(size, "big"), length)


steps = st.lists(st.tuples(st.sampled_from("abcd"), st.lists(cidrs(), max_size=5)), max_size=15)


def contents(sets: Sets) -> dict[str, list[bytes]]:
    return {name: sorted(table.desired) for name, table in sets.tables.items()}


def holds(sets: Sets, name: str, address: bytes) -> bool:
    """What the kernel's look-up answers."""
    for pair in intervals(sets.tables[name].desired):
        if pair[0][:-1] <= address and (len(pair) == 1 or address < pair[1][:-1]):
            return True
    return False


@given(steps)
def test_any_sequence_of_changes_ends_in_what_a_fresh_start_gives(changes: list[tuple[str, list[Cidr]]]) -> None:
    desired = Masquerading(MasqueradeRules(pods=prefixes("10.1.0.0/24", "fd00:1::/64")))
    sets = Sets()
    sets.replace(desired)
    for name, found in changes:
        desired.set_known(name, tuple(found))
        for touched in desired.take_touched():
            sets.set_known(touched, desired.known.get(touched, ()))
        writes = sets.writes(anew=False)
        sets.wrote(writes, anew=False)
        assert sets.pending == 0
        assert contents(sets) == {
            name: sorted(table.kernel) for name, table in sets.tables.items() if table.desired
        } | {name: [] for name, table in sets.tables.items() if not table.desired}
    fresh = Sets()
    fresh.replace(desired)
    assert contents(sets) == contents(fresh)
    known = [ipaddress.ip_network(str(prefix)) for found in desired.known.values() for prefix in found]
    known += [ipaddress.ip_network("10.1.0.0/24"), ipaddress.ip_network("fd00:1::/64")]
    edges = {address for network in known for address in (network[0], network[-1])}
    for address in [
        *edges,
        *(ipaddress.ip_address(t) for t in ("0.0.0.0", "9.9.9.9", "255.255.255.255", "::", "fd00::")),
    ]:
        for probe in (int(address) - 1, int(address), int(address) + 1):
            if 0 <= probe < 1 << address.max_prefixlen:
                packed = probe.to_bytes(address.max_prefixlen // 8, "big")
                inside = any(
                    network.version == address.version and ipaddress.ip_address(packed) in network for network in known
                )
                assert holds(sets, f"known{address.version}", packed) == inside
