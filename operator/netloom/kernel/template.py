"""Message templates: what 10,000 messages of one kind have in common is written, and read, once.

To encode a route by pyroute2's class takes 60 us, to decode it 27. By a template it takes 0.5 us and 1: of 10,000 peers
that is 1.8 s and 0.8 s for a start, 0.015 s and 0.03 s by template.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from netloom.kernel.wire import HEADER_SIZE

Seen = TypeVar("Seen")
Place = tuple[int, int]
"""Where a field starts and ends."""


def message_template(message: bytes, *markers: bytes) -> bytes:
    """A format of bytes: `template % (sequence number, *fields)` is the message with these instead of the markers.

    The markers, in the order of the fields, are byte strings that occur once in the message. All fields are as they are
    on the wire, the sequence number's 4 bytes included.
    """
    constants, at = [message[:8]], 12
    for marker in markers:
        if message.count(marker, HEADER_SIZE) != 1:
            raise ValueError("a marker has to occur exactly once")
        place = message.index(marker, at)
        constants.append(message[at:place])
        at = place + len(marker)
    constants.append(message[at:])
    return b"%b".join(constant.replace(b"%", b"%%") for constant in constants)


def marker(letter: bytes, size: int) -> bytes:
    """A field's value that occurs nowhere else in a message."""
    return bytes([0xA5]) + letter * (size - 2) + bytes([0x5A])


class TemplateReader(Generic[Seen]):
    """Reads many messages of one kind: what is like an earlier one but for some fields is not taken apart again.

    The kernel writes all objects of one kind in one way; which way depends on its version. So the first one of a size
    is taken apart attribute by attribute, and is the template of the 9,999 that follow.
    """

    def __init__(
        self,
        read: Callable[[bytes, int, int], Seen],
        varying: Callable[[bytes, Seen], Sequence[Place | None]],
        like: Callable[[Seen, Sequence[bytes]], Seen],
    ) -> None:
        """read: takes a message apart; its arguments are a buffer, and where what follows the header starts and ends.
        varying: places of the fields that vary, in what follows the header; if one is missing, it is no template.
        like: what is seen in a message that is like the one of which this was seen, but for these fields.
        """
        self._read = read
        self._varying = varying
        self._like = like
        self._templates: dict[int, tuple[Seen, Callable[[bytes, int], tuple[bytes, ...]], list[bytes]]] = {}

    def read(self, buffer: bytes, start: int, end: int) -> Seen:
        """What the message says."""
        template = self._templates.get(end - start)
        if template is not None:
            sample, unpack, constants = template
            parts = unpack(buffer, start)
            if list(parts[::2]) == constants:
                return self._like(sample, parts[1::2])
        seen = self._read(buffer, start, end)
        self._learn(buffer[start:end], seen)
        return seen

    def _learn(self, sample: bytes, seen: Seen) -> None:
        varying = self._varying(sample, seen)
        fields = [place for place in varying if place is not None]
        if len(fields) < len(varying) or fields != sorted(fields):
            return
        layout, at, constants = "=", 0, []
        for start, end in fields:
            constants.append(sample[at:start])
            layout += f"{start - at}s{end - start}s"
            at = end
        constants.append(sample[at:])
        unpack = struct.Struct(layout + f"{len(sample) - at}s").unpack_from
        self._templates[len(sample)] = seen, unpack, constants
