"""Messages: what is written is read again, like the last or not; junk is survived."""

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.kernel.mesh.fib import FibResult
from netloom.kernel.mesh.row_messages import encode_nexthops, encode_routes
from netloom.kernel.mesh.row_readers import (
    fib_result_reader,
    neighbour_reader,
    nexthop_reader,
    read_fib_result,
    read_nexthop,
    read_route,
    route_reader,
)
from netloom.kernel.mesh.rows import Nexthop, OddRoute, RouteContent
from netloom.kernel.netlink.links import Link, LocalAddress, read_address, read_link
from netloom.kernel.netlink.messages import AddressMessage, LinkMessage, RouteMessage, decode, encode, nested
from netloom.kernel.netlink.neighbours import encode_neighbours, read_neighbour
from netloom.kernel.netlink.sockets import walk
from netloom.kernel.netlink.wire import ATTRIBUTE, HEADER, HEADER_SIZE, attributes

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@given(st.integers(1, 2**32 - 1), addresses, st.binary(min_size=4, max_size=4), st.integers(0, 2**24 - 1))
def test_a_nexthop_is_read_as_it_was_written(key: int, gateway: bytes, remote: bytes, vni: int) -> None:
    value = Nexthop(7, gateway, remote, vni)
    (written,) = encode_nexthops([(key, value, None)])
    seen = read_nexthop(written, HEADER_SIZE, len(written))
    assert (seen.id, seen.value) == (key, value)


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), addresses, st.binary(min_size=4, max_size=4)), min_size=1))
def test_the_learned_template_reads_what_the_plain_reader_reads(some: list[tuple[int, bytes, bytes]]) -> None:
    reader = nexthop_reader()
    for key, gateway, remote in some:
        for vni in (1, 2):
            (written,) = encode_nexthops([(key, Nexthop(7, gateway, remote, vni), None)])
            assert reader.read(written, HEADER_SIZE, len(written)) == read_nexthop(written, HEADER_SIZE, len(written))


@given(st.lists(st.tuples(addresses, st.integers(1, 2**32 - 1), st.binary(min_size=6, max_size=6)), min_size=1))
def test_what_is_read_by_its_likeness_is_what_the_plain_readers_read(some: list[tuple[bytes, int, bytes]]) -> None:
    routes, neighbours = route_reader(), neighbour_reader()
    for address, nexthop, mac in some:
        for length in (24, 32):
            for mtu in (0, 1400):
                (written,) = encode_routes([(Cidr.of(address, length), RouteContent(nexthop, mtu), None)])
                assert routes.read(written, HEADER_SIZE, len(written)) == read_route(written, HEADER_SIZE, len(written))
        for ifindex in (7, 8):
            (written,) = encode_neighbours([((ifindex, address), mac, None)])
            plain = read_neighbour(written, HEADER_SIZE, len(written))
            assert neighbours.read(written, HEADER_SIZE, len(written)) == plain


addresses_of_four = st.binary(min_size=4, max_size=4)


@given(st.lists(st.tuples(addresses_of_four, st.integers(1, 3), st.booleans(), st.integers(0, 9), addresses_of_four)))
def test_an_answer_like_the_last_is_the_same_hop(some: list[tuple[bytes, int, bool, int, bytes]]) -> None:
    reader = fib_result_reader()
    for address, ifindex, direct, references, source in some:
        gateway = {} if direct else {"gateway": b"\x0a\0\0\x01"}
        fields = {"family": 2, "dst_len": 32, "table": 254, "type": 1}
        counts = {"rta_clntref": references}
        answer = encode(
            RouteMessage, 24, 0, fields, dst=address, oif=ifindex, prefsrc=source, **gateway, cacheinfo=counts
        )
        place = (answer, HEADER_SIZE, len(answer))
        assert reader.read(*place) == read_fib_result(*place) == FibResult(ifindex, direct, direct, source)


def test_sequence_numbers_are_places_in_the_batch() -> None:
    prefixes = [Cidr.parse(f"10.{n}.0.0/24") for n in range(3)]
    batch = b"".join(encode_routes([(prefix, RouteContent(7), None) for prefix in prefixes]))
    assert [sequence for _, _, sequence, _, _ in walk(batch)] == [0, 1, 2]
    seen = [read_route(batch, start, end) for _, _, _, start, end in walk(batch)]
    assert [one and (one.key, one.content) for one in seen] == [(prefix, RouteContent(7)) for prefix in prefixes]


def test_a_route_is_deleted_with_the_metric_and_tos_it_has() -> None:
    odd = OddRoute(Cidr.parse("10.1.0.0/24"), 7, 4)
    (deletion,) = encode_routes([(odd, None, RouteContent(1))])
    seen = read_route(deletion, HEADER_SIZE, len(deletion))
    assert seen is not None
    assert seen.key == odd


def test_an_mtu_that_goes_is_written_as_none() -> None:
    """The kernel would take over the old one; see the encoder."""
    prefix, one = Cidr.parse("10.1.0.0/24"), Cidr.parse("10.2.0.0/24")
    plain, _ = encode_routes([(prefix, RouteContent(1), None), (one, RouteContent(2), RouteContent(1))])
    gone, beside = encode_routes([(prefix, RouteContent(1), RouteContent(1, 1400)), (one, RouteContent(1), None)])
    assert [len(message) - len(plain) for message in (gone, beside)] == [12, 12]
    seen = read_route(gone, HEADER_SIZE, len(gone))
    assert seen is not None
    assert seen.content == RouteContent(1)


@given(st.binary(max_size=200))
def test_attributes_of_junk_end(junk: bytes) -> None:
    assert isinstance(attributes(junk, 0, len(junk)), dict)
    assert isinstance(list(walk(junk)), list)


@given(st.binary(min_size=64, max_size=200))
def test_readers_survive_attributes_they_do_not_know(junk: bytes) -> None:
    """A newer kernel's attributes are passed over; what cannot be understood differs from all that is desired."""
    unknown = b"".join(ATTRIBUTE.pack(12, 200) + junk[i : i + 8].ljust(8) for i in range(0, len(junk), 8))
    fixed = bytes([2, 24]) + bytes(2) + bytes([254, 3, 0, 1]) + bytes(8)
    buffer = fixed + unknown
    read_route(buffer, 0, len(buffer))
    read_neighbour(buffer, 0, len(buffer))

    def extended(message: bytes) -> tuple[bytes, int, int]:
        header = HEADER.pack(len(message) + len(unknown), *HEADER.unpack_from(message)[1:])
        return header + message[HEADER_SIZE:] + unknown, HEADER_SIZE, len(message) + len(unknown)

    address = read_address(
        *extended(encode(AddressMessage, 20, 0, {"family": 2, "prefixlen": 8, "flags": 0x80}, local=b"abcd"))
    )
    assert address is not None
    assert address.local == LocalAddress(b"abcd", 8)
    seen = read_link(*extended(encode(LinkMessage, 16, 0, {}, ifname="eth0")))
    assert seen is not None
    assert seen.name == "eth0"


@pytest.mark.parametrize("kind", ["vxlan", "geneve", "veth", ""])
def test_a_link_of_which_the_kernel_says_little(kind: str) -> None:
    info = nested(**({"IFLA_INFO_KIND": kind} if kind else {"IFLA_INFO_SLAVE_KIND": "bridge"}))
    message = encode(LinkMessage, 17, 0, {"index": 7}, ifname="one", linkinfo=info)
    assert read_link(message, HEADER_SIZE, len(message)) == Link("one", 7, kind)


@given(st.binary(max_size=60))
def test_junk_in_a_link_is_no_end_of_the_agent(junk: bytes) -> None:
    """What is in an attribute that is not asked for does not matter; lengths that lie end the walk."""
    message = encode(LinkMessage, 16, 0, {}, ifname="eth0", mtu=1400)
    header = HEADER.pack(len(message) + len(junk), *HEADER.unpack_from(message)[1:])
    seen = read_link(header + message[HEADER_SIZE:] + junk, HEADER_SIZE, len(message) + len(junk))
    assert seen is not None
    assert (seen.name, seen.mtu) == ("eth0", 1400)


def test_a_message_goes_with_whoever_reads_it() -> None:
    """Not when the garbage collector comes by: it keeps the whole answer that it is in."""
    written = encode(LinkMessage, 16, 0, {"index": 7}, ifname="one", linkinfo=nested(IFLA_INFO_KIND="vxlan"))
    seen = decode(LinkMessage, written, HEADER_SIZE)
    kind = next(each for each in seen["attrs"] if each.name == "IFLA_LINKINFO").nla
    assert kind.get_attr("IFLA_INFO_KIND") == "vxlan"
    remains = [weakref.ref(seen), weakref.ref(kind)]
    del seen, kind
    assert [each() for each in remains] == [None, None]
