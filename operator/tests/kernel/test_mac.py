"""MAC addresses, and those that nodes' names give."""

from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import format_address
from netloom.kernel.mac import format_mac, link_local_of, mac_in, mac_of


@given(st.text())
def test_any_nodes_mac_is_unicast_locally_administered_and_in_its_link_local_address(name: str) -> None:
    mac = mac_of(name)
    assert len(mac) == 6
    assert mac[0] & 0x03 == 0x02
    assert mac_in(link_local_of(mac)) == mac
    assert bytes.fromhex(format_mac(mac).replace(":", "")) == mac


def test_a_nodes_mac_never_changes() -> None:
    """Every agent of every version derives it alike; another result would cut off mixed clusters."""
    assert format_mac(mac_of("node-1")) == "3a:72:55:8c:ab:f9"
    assert format_address(link_local_of(mac_of("node-1"))) == "fe80::3872:55ff:fe8c:abf9"
