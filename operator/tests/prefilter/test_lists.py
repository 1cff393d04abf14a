"""Block lists as they are published: what is taken, what is left out and named."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from netloom.prefilter.lists import NAMED, ParsedList, parse_list
from netloom.prefilter.records import text_of


def entries(parsed: ParsedList) -> list[str]:
    return [text_of(each) for each in (*parsed.v4, *parsed.v6)]


PUBLISHED = """\
; Spamhaus DROP List 2026/11/30 - (c) 2026 The Spamhaus Project
; Last-Modified: Mon, 30 Nov 2026 01:11:13 GMT
192.0.2.0/24 ; SBL256894
198.51.100.7 # a single address

\t203.0.113.0/25\t
2001:DB8:0:0::/32
2001:db8::1
   # a comment that does not begin the line
"""


def test_published_lists_are_taken_as_they_are() -> None:
    parsed = parse_list(PUBLISHED)
    assert entries(parsed) == ["192.0.2.0/24", "198.51.100.7/32", "203.0.113.0/25", "2001:db8::/32", "2001:db8::1/128"]
    assert (parsed.lines, parsed.bad_lines, parsed.masked, parsed.duplicates) == (5, 0, 0, 0)


def test_lines_that_end_as_on_windows_are_the_same() -> None:
    assert parse_list(PUBLISHED.replace("\n", "\r\n")) == parse_list(PUBLISHED)
    assert entries(parse_list("192.0.2.0/24\r\n198.51.100.0/24\r")) == ["192.0.2.0/24", "198.51.100.0/24"]
    assert parse_list(f"\ufeff{PUBLISHED}") == parse_list(PUBLISHED), "with a byte order mark"
    assert entries(parse_list("\ufeff192.0.2.0/24")) == ["192.0.2.0/24"]


def test_host_bits_are_dropped_and_counted_and_what_comes_twice_is_there_once() -> None:
    parsed = parse_list("192.0.2.77/24\n192.0.2.0/24\n2001:db8::5/32\n192.0.2.0/24")
    assert entries(parsed) == ["192.0.2.0/24", "2001:db8::/32"]
    assert (parsed.masked, parsed.duplicates) == (2, 2)


def test_a_range_is_the_fewest_cidrs_that_are_just_that() -> None:
    assert entries(parse_list("192.0.2.0-192.0.2.255\n198.51.100.1 - 198.51.100.4")) == [
        "192.0.2.0/24",
        "198.51.100.1/32",
        "198.51.100.2/31",
        "198.51.100.4/32",
    ]
    assert entries(parse_list("0.0.0.0-255.255.255.255\n::-::ffff")) == ["0.0.0.0/0", "::/112"]


BAD = """\
192.0.2.0/24
192.0.2.0/33
example.com
010.0.0.1
10.0.0.0/255.0.0.0
::ffff:192.0.2.1
192.0.2.9-192.0.2.1
192.0.2.0 192.0.2.255 24
fe80::1%eth0
198.51.100.0/
198.51.100.0/24
"""

NAMED_LINES = """\
line 2 ('192.0.2.0/33') is no CIDR, address or range of addresses
line 3 ('example.com') is no CIDR, address or range of addresses
line 4 ('010.0.0.1') is no CIDR, address or range of addresses
line 5 ('10.0.0.0/255.0.0.0') is no CIDR, address or range of addresses
line 6 ('::ffff:192.0.2.1') is an IPv4 address written as IPv6, and packets of IPv4 are not seen as such
line 7 ('192.0.2.9-192.0.2.1') is a range that ends before it begins, or in another family
line 8 ('192.0.2.0 192.0.2.255 24') has more than one word: write one CIDR a line, and what else there is after #
line 9 ('fe80::1%eth0') is no CIDR, address or range of addresses
"""


def test_bad_lines_are_named_by_number_and_the_good_ones_stay() -> None:
    parsed = parse_list(BAD)
    assert entries(parsed) == ["192.0.2.0/24", "198.51.100.0/24"]
    assert "".join(f"{each}\n" for each in parsed.bad) == NAMED_LINES
    assert (parsed.bad_lines, len(parsed.bad)) == (9, NAMED)


def test_three_bad_lines_among_many_have_their_numbers() -> None:
    """Across the pieces in which a list is read; characters that end a line for Python alone do not shift them."""
    lines = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(200_000)]
    lines[6], lines[99_999], lines[199_999] = "x\x0c\x1c\u2028y", "1.2.3.4.5", "-"
    parsed = parse_list("\n".join(lines))
    assert ([each.number for each in parsed.bad], len(parsed.v4)) == ([7, 100_000, 200_000], 199_997)


def test_anything_is_a_list() -> None:
    parsed = parse_list("\0\n\ud800\n" + "x" * 100 + "\n1.2.3.4\0/8\n")
    assert (parsed.bad_lines, len(parsed.v4)) == (4, 0)
    assert parsed.bad[2].text == "x" * 40 + "..."


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(st.lists(st.tuples(addresses, st.integers(0, 128), st.sampled_from(["", " ", "# x", " ; x", "\r"]))))
def test_it_is_what_the_standard_library_reads(drawn: list[tuple[ipaddress.IPv4Address, int, str]]) -> None:
    wanted = []
    for address, length, _ in drawn:
        if address.version == 6 and address.packed.startswith(bytes(10) + b"\xff\xff"):
            return
        wanted.append(ipaddress.ip_network((address, length % (address.max_prefixlen + 1)), strict=False))
    text = "\n".join(
        f"{address.exploded}/{length % (address.max_prefixlen + 1)}{tail}" for address, length, tail in drawn
    )
    parsed = parse_list(text)
    order = sorted(set(wanted), key=lambda each: (each.version, each))
    assert [ipaddress.ip_network(each) for each in entries(parsed)] == order
    assert parsed.bad_lines == 0
