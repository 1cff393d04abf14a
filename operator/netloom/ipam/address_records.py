"""What a node's allocator did, as records to be kept: one line of text each, with a number and a checksum.

    5f3a0c11 17 ["gave","default/web-0","4f2a","eth0","",["10.42.1.7"],"0f0c2a9e-..."]

The first line names the node, the boot of its machine and the file, and goes into the checksums of all others. So a
line that was written in part, changed, or comes from another file has another checksum, and one that stands there twice
has no new number: of any file the part that can be trusted is known, and what is wrong with the rest.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

FORMAT = 1


class Header(msgspec.Struct, frozen=True, array_like=True, tag="netloom-addresses", gc=False):
    """Whose records these are. boot: the kernel's boot id, as no pod outlives a boot. file: another word for each."""

    node: str
    boot: str
    file: str
    format: int = FORMAT

    @property
    def seed(self) -> int:
        """Of the checksums behind it."""
        return zlib.crc32(_encode(self))


class Gave(msgspec.Struct, frozen=True, array_like=True, tag="gave", gc=False):
    """An owner has these addresses, of this pool. uid: of the pod, where that is known."""

    name: str
    container: str
    interface: str
    pool: str
    addresses: tuple[str, ...]
    uid: str = ""


class Freed(msgspec.Struct, frozen=True, array_like=True, tag="freed", gc=False):
    """An owner does not have these any more. at: in seconds of the allocator's clock."""

    name: str
    container: str
    interface: str
    addresses: tuple[str, ...]
    at: float


class Rests(msgspec.Struct, frozen=True, array_like=True, tag="rests", gc=False):
    """Nobody has these, each since then."""

    freed: tuple[tuple[str, float], ...]


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="closed", gc=False):
    """Nothing is given of this block."""

    cidr: str


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened", gc=False):
    """It is, again."""

    cidr: str


Record = Gave | Freed | Rests | Closed | Opened

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Header | Gave | Freed | Rests | Closed | Opened).decode


def line(number: int, record: Header | Record, seed: int) -> bytes:
    """As it is written. Numbers of one file grow by one; that of the header is 0, as is its seed."""
    text = b"%d %s" % (number, _encode(record))
    return b"%08x %s\n" % (zlib.crc32(text, seed), text)


@dataclass(frozen=True, slots=True)
class RecordsRead:
    """What a file tells. header: None where it does not begin with one. size: bytes of it that can be trusted; behind
    them it can be written on, with the number behind `last`. damage: what is wrong with the rest, "" if there is none.
    """

    header: Header | None
    records: tuple[Record, ...]
    size: int
    last: int
    damage: str = ""


def read(data: bytes) -> RecordsRead:
    """Up to the first line that cannot be trusted. A line that stands there again is passed over."""
    header: Header | None = None
    records: list[Record] = []
    last, size, seed = -1, 0, 0
    for each in data.splitlines(keepends=True):
        number, record = _parsed(each, seed)
        if header is not None and each == line(0, header, 0):
            number, record = 0, header
        if record is None or number > last + 1 or isinstance(record, Header) != (number == 0):
            torn = size + len(each) == len(data)
            what = "the last record was written in part" if torn else f"what follows record {last} cannot be trusted"
            return RecordsRead(header, tuple(records), size, last, what if header else "it does not begin as one")
        size += len(each)
        if number > last:
            last = number
            if isinstance(record, Header):
                header, seed = record, record.seed
            else:
                records.append(record)
    return RecordsRead(header, tuple(records), size, last, "" if header else "it is empty")


def _parsed(text: bytes, seed: int) -> tuple[int, Header | Record | None]:
    checksum, _, rest = text.rstrip(b"\n").partition(b" ")
    number, _, body = rest.partition(b" ")
    try:
        if not text.endswith(b"\n") or int(checksum, 16) != zlib.crc32(rest, seed):
            return -1, None
        return int(number), _decode(body)
    except (ValueError, msgspec.MsgspecError):
        return -1, None


def whole(header: Header, records: Iterable[Record]) -> tuple[bytes, int]:
    """A file anew, and the number of its last record."""
    lines = [line(0, header, 0)]
    lines += [line(number, record, header.seed) for number, record in enumerate(records, 1)]
    return b"".join(lines), len(lines) - 1
