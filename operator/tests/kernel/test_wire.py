"""Messages: stamps make what `message` makes, stencils take out what stamps put in, junk is survived."""

from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.kernel.alike import HopReader, NeighbourReader, NexthopReader, RouteReader
from netloom.kernel.links import read_address, read_link
from netloom.kernel.netlink import walk
from netloom.kernel.reach import Hop
from netloom.kernel.rows import (
    NeighbourMessages,
    Nexthop,
    NexthopMessages,
    OddRoute,
    RouteMessages,
    Via,
    read_hop,
    read_neighbour,
    read_nexthop,
    read_route,
)
from netloom.kernel.wire import HEADER_SIZE, Stamp, attribute, attributes, message, nested, u32

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@given(st.integers(0, 2**32 - 1), st.binary(min_size=4, max_size=4), st.binary(min_size=6, max_size=6))
def test_a_stamp_makes_what_the_plain_encoder_makes(sequence: int, first: bytes, second: bytes) -> None:
    def plain(first: bytes, second: bytes, sequence: int = 0) -> bytes:
        inner = nested(9, attribute(1, first), attribute(2, second))
        return message(24, 0x500, b"\2\0\0\0", attribute(7, u32(1)), inner, sequence=sequence)

    encode = Stamp(plain(b"\xa5ab\x5a", b"\xa5cdef\x5a"), b"\xa5ab\x5a", b"\xa5cdef\x5a").two()
    assert encode(sequence, first, second) == plain(first, second, sequence)


@given(st.integers(1, 2**32 - 1), addresses, st.binary(min_size=4, max_size=4), st.integers(0, 2**24 - 1))
def test_a_nexthop_is_read_as_it_was_written(key: int, gateway: bytes, remote: bytes, vni: int) -> None:
    value = Nexthop(7, gateway, remote, vni)
    (written,) = NexthopMessages().encode([(key, value, None)])
    seen = read_nexthop(written, HEADER_SIZE, len(written))
    assert (seen.id, seen.value) == (key, value)


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), addresses, st.binary(min_size=4, max_size=4)), min_size=1))
def test_the_learned_stencil_reads_what_the_plain_reader_reads(some: list[tuple[int, bytes, bytes]]) -> None:
    reader, messages = NexthopReader(), NexthopMessages()
    for key, gateway, remote in some:
        for vni in (1, 2):
            (written,) = messages.encode([(key, Nexthop(7, gateway, remote, vni), None)])
            assert reader.read(written, HEADER_SIZE, len(written)) == read_nexthop(written, HEADER_SIZE, len(written))


@given(st.lists(st.tuples(addresses, st.integers(1, 2**32 - 1), st.binary(min_size=6, max_size=6)), min_size=1))
def test_what_is_read_by_its_likeness_is_what_the_plain_readers_read(some: list[tuple[bytes, int, bytes]]) -> None:
    route_messages, neighbour_messages = RouteMessages(), NeighbourMessages()
    routes, neighbours = RouteReader(), NeighbourReader()
    for address, nexthop, mac in some:
        for length in (24, 32):
            for mtu in (0, 1400):
                (written,) = route_messages.encode([(Cidr.of(address, length), Via(nexthop, mtu), None)])
                assert routes.read(written, HEADER_SIZE, len(written)) == read_route(written, HEADER_SIZE, len(written))
        for ifindex in (7, 8):
            (written,) = neighbour_messages.encode([((ifindex, address), mac, None)])
            plain = read_neighbour(written, HEADER_SIZE, len(written))
            assert neighbours.read(written, HEADER_SIZE, len(written)) == plain


@given(st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.integers(1, 3), st.booleans(), st.integers(0, 9))))
def test_an_answer_like_the_last_is_the_same_hop(some: list[tuple[bytes, int, bool, int]]) -> None:
    reader = HopReader()
    for address, ifindex, direct, references in some:
        parts = [attribute(1, address), attribute(4, u32(ifindex))]
        parts += [] if direct else [attribute(5, b"\x0a\0\0\x01")]
        answer = bytes([2, 32, 0, 0, 254, 0, 0, 1]) + bytes(4) + b"".join([*parts, attribute(12, u32(references))])
        assert reader.read(answer, 0, len(answer)) == read_hop(answer, 0, len(answer)) == Hop(ifindex, direct)


def test_sequence_numbers_are_places_in_the_batch() -> None:
    prefixes = [Cidr.parse(f"10.{n}.0.0/24") for n in range(3)]
    batch = b"".join(RouteMessages().encode([(prefix, Via(7), None) for prefix in prefixes]))
    assert [sequence for _, _, sequence, _, _ in walk(batch)] == [0, 1, 2]
    seen = [read_route(batch, start, end) for _, _, _, start, end in walk(batch)]
    assert [one and (one.key, one.via) for one in seen] == [(prefix, Via(7)) for prefix in prefixes]


def test_a_route_is_deleted_with_the_metric_and_tos_it_has() -> None:
    odd = OddRoute(Cidr.parse("10.1.0.0/24"), 7, 4)
    (deletion,) = RouteMessages().encode([(odd, None, Via(1))])
    seen = read_route(deletion, HEADER_SIZE, len(deletion))
    assert seen is not None
    assert seen.key == odd


def test_an_mtu_that_goes_is_written_as_none() -> None:
    """The kernel would take over the old one; see the encoder."""
    prefix, one = Cidr.parse("10.1.0.0/24"), Cidr.parse("10.2.0.0/24")
    plain, _ = RouteMessages().encode([(prefix, Via(1), None), (one, Via(2), Via(1))])
    gone, beside = RouteMessages().encode([(prefix, Via(1), Via(1, 1400)), (one, Via(1), None)])
    assert [len(message) - len(plain) for message in (gone, beside)] == [12, 12]
    seen = read_route(gone, HEADER_SIZE, len(gone))
    assert seen is not None
    assert seen.via == Via(1)


@given(st.binary(max_size=200))
def test_attributes_of_junk_end(junk: bytes) -> None:
    assert isinstance(attributes(junk, 0, len(junk)), dict)
    assert isinstance(list(walk(junk)), list)


@given(st.binary(min_size=64, max_size=200))
def test_readers_survive_attributes_they_do_not_know(junk: bytes) -> None:
    """A newer kernel's attributes are passed over; what cannot be understood differs from all that is desired."""
    fixed = bytes([2, 24]) + bytes(2) + bytes([254, 3, 0, 1]) + bytes(8)
    unknown = b"".join(attribute(200, junk[i : i + 8]) for i in range(0, len(junk), 8))
    buffer = fixed + unknown
    read_route(buffer, 0, len(buffer))
    read_neighbour(buffer, 0, len(buffer))
    read_address(buffer, 0, len(buffer))
    link = attribute(3, b"eth0\0") + unknown
    seen = read_link(bytes(16) + link, 0, 16 + len(link))
    assert seen is not None
    assert seen.name == "eth0"
