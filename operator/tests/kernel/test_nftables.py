"""Messages of nf_tables: what is written and read by hand is what pyroute2's class makes of it."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.kernel.masquerade import ruleset
from netloom.kernel.masquerade.outermost import keys
from netloom.kernel.netlink import nftables
from netloom.kernel.netlink.messages import decode, encode, nested, nftsocket
from netloom.kernel.netlink.nftables import DELSETELEM, END, NEWSETELEM, START, ElementMessages, request
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from netloom.kernel.netlink.sockets import read_all
from netloom.kernel.netlink.wire import CREATE
from tests.kernel.netns import Namespace
from tests.kernel.nft import nft

Elements = list[tuple[bytes, bool]]


class ElementsByPyroute2(nftsocket.nft_set_elem_list_msg):  # type: ignore[misc]
    """Its class, mended: it numbers the elements, and loses the flag that marks an end."""

    _nlmsg_base__compiled_nla = False
    """That of the class that is mended has been compiled."""

    class set_elem(nftsocket.nft_set_elem_list_msg.set_elem):  # type: ignore[misc]
        header_type = 1
        nla_map = tuple(
            (name, "be32" if name == "NFTA_SET_ELEM_FLAGS" else kind)
            for name, kind in nftsocket.nft_set_elem_list_msg.set_elem.nla_map
        )


def encoded(kind: int, name: str, keys: Sequence[bytes]) -> bytes:
    """By the class alone."""
    elements = []
    for key in keys:
        ends = {"NFTA_SET_ELEM_FLAGS": 1} if key.endswith(END) else {}
        elements.append(nested(NFTA_SET_ELEM_KEY=nested(NFTA_DATA_VALUE=key[:-1]), **ends))
    flags = CREATE if kind == NEWSETELEM else 0
    about: dict[str, Any] = {"table": "netloom", "set": name, "elements": elements}
    return encode(ElementsByPyroute2, nftables.SUBSYSTEM | kind, flags, {"nfgen_family": 1}, **about)


def by_pyroute2(buffer: bytes, start: int, _end: int) -> tuple[str, Elements]:
    """Decoded by the class alone."""
    seen = decode(ElementsByPyroute2, buffer, start)
    found: Elements = []
    for element in seen.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS", []):
        key = element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE")
        plain = not {name for name, _ in element["attrs"]} - {"NFTA_SET_ELEM_KEY", "NFTA_SET_ELEM_FLAGS"}
        found.append((key + (END if element.get_attr("NFTA_SET_ELEM_FLAGS") else START), plain))
    return seen.get_attr("NFTA_SET_ELEM_LIST_SET"), found


@pytest.mark.parametrize("size", [4, 16])
@given(st.data())
def test_elements(size: int, data: st.DataObject) -> None:
    ends = st.sampled_from([START, END])
    some = data.draw(st.lists(st.builds(bytes.__add__, st.binary(min_size=size, max_size=size), ends), max_size=4))
    for kind in (NEWSETELEM, DELSETELEM):
        messages = ElementMessages("netloom", "pods", size)
        made = messages.encode(kind, some)
        assert made == encoded(kind, "pods", some)
        starts = [key[:-1] for key in some]
        assert messages.encode_plain(kind, starts) == encoded(kind, "pods", [key + START for key in starts])
        expected = ("pods", [(key, True) for key in some])
        assert nftables.read_elements(made, 16, len(made)) == by_pyroute2(made, 16, len(made)) == expected


def test_what_the_kernel_shows_is_read_as_pyroute2_decodes_it(node: Namespace) -> None:
    sock = NftablesSocket()
    sets = {
        "four": [Cidr.of(bytes([10, 2 * number, 0, 0]), 16) for number in range(100)],
        "six": [Cidr.of(b"\xfd\0" + bytes([0, 2 * number]) + bytes(12), 64) for number in range(100)],
    }
    requests = [request(nftables.NEWTABLE, name="netloom")]
    for number, (name, prefixes) in enumerate(sets.items()):
        size = len(prefixes[0].packed)
        key: dict[str, Any] = {"key_type": nftables.KEY_TYPES[size], "key_len": size, "flags": nftables.INTERVAL}
        requests.append(request(nftables.NEWSET, table="netloom", name=name, **key, id=number))
        elements = ElementMessages("netloom", name, size)
        requests += [elements.encode(NEWSETELEM, keys(prefix)) for prefix in prefixes]
    assert sock.execute(requests) == {}
    nft(node, 'add element inet netloom four { 11.0.0.0/24 comment "by hand" }')
    for name, prefixes in sets.items():
        dump = request(nftables.GETSETELEM, table="netloom", set=name)
        seen = read_all(sock, dump, nftables.read_elements)
        assert seen == read_all(sock, dump, by_pyroute2)
        found = dict(element for _name, part in seen for element in part)
        assert {key for key, plain in found.items() if plain} >= {key for prefix in prefixes for key in keys(prefix)}
        assert (b"\x0b\0\0\0" + START in found) == (name == "four")
        assert not found.get(b"\x0b\0\0\0" + START)
    sock.close()


def test_rules_are_those_of_the_versions_before() -> None:
    """The comment tells a rule of this version by a fingerprint: another one would have every node's rules replaced."""
    rules = [ruleset.rule_of(family) for family in ("4", "6")]
    assert [rule.remark for rule in rules] == ["netloom 05707986", "netloom c2ec53b6"]
