"""A CIDR as three integers, and the fixed regions that the address space is divided into.

`ipaddress` networks are objects of 400 bytes that take 5 us to make; planning an allocation makes and compares
thousands of them. A `Cidr` is a tuple: hashable, ordered by address, compared in C.

Every CIDR lies in exactly one *region*: IPv4 /16, IPv6 /56. The region follows from the address alone, never from a
pool or a mask size, so two CIDRs that overlap always meet in the same ledger, whatever was configured when each of
them was given out. This is what lets one object's compare-and-swap keep them apart.
"""

import functools
import socket
from collections.abc import Collection
from typing import Literal, NamedTuple

Version = Literal[4, 6]

WIDTH: dict[int, int] = {4: 32, 6: 128}
REGION_LENGTH: dict[int, int] = {4: 16, 6: 56}
"""Prefix length of a region. A block shorter than this would lie in several ledgers and is refused."""

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class CidrError(ValueError):
    """A text that is not the CIDR it should be; the message names the text and says what is wrong with it."""


class Cidr(NamedTuple):
    """`base`/`length` in address family `version`; no bit below the mask is set."""

    version: Version
    base: int
    length: int

    @property
    def last(self) -> int:
        """The highest address, as an integer."""
        return self.base | ((1 << (WIDTH[self.version] - self.length)) - 1)

    def __str__(self) -> str:
        return f"{address_text(self.version, self.base)}/{self.length}"

    def overlaps(self, other: "Cidr") -> bool:
        """Whether any address lies in both."""
        if self.version != other.version:
            return False
        shift = WIDTH[self.version] - min(self.length, other.length)
        return self.base >> shift == other.base >> shift

    def contains(self, other: "Cidr") -> bool:
        """Whether every address of `other` lies in this one."""
        return self.length <= other.length and self.overlaps(other)

    def supernet(self, length: int) -> "Cidr":
        """The block of prefix `length` (not longer than this one's) that holds this one."""
        shift = WIDTH[self.version] - length
        return Cidr(self.version, self.base >> shift << shift, length)


def address_text(version: Version, address: int) -> str:
    """An address in the usual notation."""
    return socket.inet_ntop(_FAMILY[version], address.to_bytes(WIDTH[version] // 8, "big"))


@functools.lru_cache(maxsize=16384)
def parse_address(text: str) -> tuple[Version, int]:
    """An address as (version, integer); CidrError where it is none."""
    version: Version = 6 if ":" in text else 4
    try:
        return version, int.from_bytes(socket.inet_pton(_FAMILY[version], text), "big")
    except (OSError, ValueError) as error:
        raise CidrError(f"{text!r} is not an IP address") from error


@functools.lru_cache(maxsize=16384)
def parse(text: str) -> Cidr:
    """`10.0.0.0/24` as a Cidr. Strict: no host bits, no leading zeros, no blanks."""
    address, slash, digits = text.partition("/")
    if not slash or not digits.isdecimal() or not digits.isascii() or digits != str(int(digits)):
        raise CidrError(f"{text!r} is not a CIDR (address/length)")
    try:
        version, base = parse_address(address)
    except CidrError as error:
        raise CidrError(f"{text!r} is not a CIDR: {error}") from error
    length = int(digits)
    if length > WIDTH[version]:
        raise CidrError(f"{text!r}: an IPv{version} prefix has at most {WIDTH[version]} bits")
    cidr = Cidr(version, base, length).supernet(length)
    if cidr.base != base:
        raise CidrError(f"{text!r} has bits set below its mask; did you mean {cidr}?")
    return cidr


def region_of(cidr: Cidr) -> Cidr:
    """The region that `cidr` lies in; CidrError where it is larger than a region."""
    length = REGION_LENGTH[cidr.version]
    if cidr.length < length:
        raise CidrError(f"{cidr} is too large for one node: an IPv{cidr.version} block has at least a /{length} mask")
    return cidr.supernet(length)


def cover(cidrs: Collection[Cidr], limit: int) -> list[Cidr]:
    """At most `limit` CIDRs of each family that hold all of `cidrs`: themselves where they are few enough."""
    found: list[Cidr] = []
    for version, width in WIDTH.items():
        mine = {cidr for cidr in cidrs if cidr.version == version}
        length = width
        while len(mine) > limit:
            length -= 1
            mine = {cidr.supernet(min(length, cidr.length)) for cidr in mine}
        found += sorted(mine)
    return found


@functools.lru_cache(maxsize=4096)
def shard_name(region: Cidr) -> str:
    """The name of the region's ledger: `v4-10.0.0.0-16`, `v6-fd00-0-0-0-56`. An object name may hold no colon."""
    if region.version == 4:
        return f"v4-{address_text(4, region.base)}-{region.length}"
    groups = ((region.base >> 64) >> shift & 0xFFFF for shift in (48, 32, 16, 0))
    return f"v6-{'-'.join(f'{group:x}' for group in groups)}-{region.length}"


def region_from_name(name: str) -> Cidr:
    """The region whose ledger has this name; CidrError where there is none."""
    family, _, rest = name.partition("-")
    address, _, length = rest.rpartition("-")
    text = f"{address}/{length}" if family == "v4" else f"{address.replace('-', ':')}::/{length}"
    try:
        region = region_of(parse(text))
    except CidrError:
        region = None
    if region is None or shard_name(region) != name:
        raise CidrError(f"{name!r} is not the name of a region's ledger")
    return region
