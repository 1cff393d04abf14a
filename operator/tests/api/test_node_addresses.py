"""Which addresses lead to another machine."""

import pytest

from netloom.api.node_addresses import unusable
from netloom.cidr import parse_address


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("0.0.0.0", "no address of a machine"),
        ("0.1.2.3", "no address of a machine"),
        ("127.0.0.1", "a loopback address"),
        ("127.255.0.1", "a loopback address"),
        ("169.254.10.1", "a link-local address"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.255", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("::", "no address of a machine"),
        ("::1", "a loopback address"),
        ("fe80::1", "a link-local address"),
        ("febf::1", "a link-local address"),
        ("ff02::1", "a multicast address"),
        *((each, "") for each in ("1.0.0.1", "10.0.0.1", "126.0.0.1", "128.0.0.1", "169.253.0.1", "223.255.255.254")),
        *((each, "") for each in ("240.0.0.1", "255.255.255.254", "::2", "fd00::1", "fec0::1", "2001:db8::1")),
    ],
)
def test_what_leads_to_no_other_machine(address: str, what: str) -> None:
    assert unusable(parse_address(address)) == what
