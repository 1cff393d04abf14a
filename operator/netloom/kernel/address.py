"""Addresses and prefixes as the kernel writes them: packed bytes in network order.

`ipaddress` objects cost 2-6 us to make and hash in Python code; a mesh of 10,000 peers makes and hashes 50,000 of
them. Packed bytes cost 0.1 us, hash in C, and go into a message as they are. The length tells the family.
"""

import socket

import msgspec

Address = bytes
"""4 bytes (IPv4) or 16 bytes (IPv6), network order."""

Mac = bytes
"""6 bytes."""


def parse_address(text: str) -> Address:
    """The packed form of `10.0.0.1` or `fd00::1`. Raises ValueError for anything else."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        raise ValueError(f"not an IP address: {text!r}") from None


def format_address(address: Address) -> str:
    """As `ip` prints it."""
    return socket.inet_ntop(family_of(address), address)


def family_of(address: Address) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def parse_mac(text: str) -> Mac:
    """The packed form of `02:00:00:00:00:01`."""
    return bytes.fromhex(text.replace(":", ""))


def format_mac(mac: Mac) -> str:
    """As `ip` prints it."""
    return mac.hex(":")


class Prefix(msgspec.Struct, frozen=True, gc=False):
    """A network, or an interface address with its prefix length; host bits are kept as given."""

    address: Address
    length: int

    @classmethod
    def parse(cls, text: str) -> "Prefix":
        """A CIDR with no host bits set, as a pod CIDR has to be. Raises ValueError."""
        address, slash, length = text.partition("/")
        try:
            packed = parse_address(address)
        except ValueError:
            raise ValueError(f"not a CIDR: {text!r}") from None
        bits = len(packed) * 8
        if not slash or not length.isascii() or not length.isdigit() or int(length) > bits:
            raise ValueError(f"not a CIDR: {text!r}")
        prefix = cls(packed, int(length))
        if int.from_bytes(packed, "big") & ((1 << (bits - prefix.length)) - 1):
            raise ValueError(f"host bits are set in CIDR {text!r}")
        return prefix

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return family_of(self.address)

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.length}"

    def contains(self, address: Address) -> bool:
        """Whether an address of the same family is in it."""
        host = len(self.address) * 8 - self.length
        return int.from_bytes(self.address, "big") >> host == int.from_bytes(address, "big") >> host

    def widened(self, length: int) -> "Prefix":
        """The prefix of this length that contains it."""
        host = len(self.address) * 8 - length
        number = int.from_bytes(self.address, "big") >> host << host
        return Prefix(number.to_bytes(len(self.address), "big"), length)
