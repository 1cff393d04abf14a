"""What two agents say to each other in the probe's packets: a question, and the answer that says what arrived. Pure.

magic 4  kind 1  flags 1  mtu 2  nonce 8  size 2  about 8    then zeros up to the size that is tried
"""

import struct
from typing import Final

import msgspec

_LAYOUT = struct.Struct("!4sBBH8sH8s")
_MAGIC = b"NLPR"
NOTHING = bytes(8)
SMALLEST: Final = _LAYOUT.size

ASK, ANSWER = 1, 2
SEEN, UNANSWERED = 1, 2
FORWARDS = {4: 4, 16: 8}
"""By the length of an address."""
NO_DEVICE = 16
_KNOWN_KINDS = (ASK, ANSWER)


class ProbeMessage(msgspec.Struct, frozen=True):
    """A question or its answer.

    mtu:   bytes, of pods at the sender. nonce: of the question; an answer has the same.
    size:  in an answer, the bytes of the question's packet as it arrived.
    about: in a question, the nonce of another that went by the pods' way.
    flags: SEEN (an answer's: that one arrived), FORWARDS (the sender's own forwarding lets its probe of that
           family through), UNANSWERED (a question's: earlier ones have not been answered), NO_DEVICE (nobody
           reads at the sender what comes by the pods' way).
    """

    kind: int
    nonce: bytes
    flags: int = 0
    mtu: int = 0
    size: int = 0
    about: bytes = NOTHING

    def encode(self, length: int) -> bytes:
        """In at least so many bytes."""
        head = _LAYOUT.pack(_MAGIC, self.kind, self.flags, self.mtu, self.nonce, self.size, self.about)
        return head.ljust(length, b"\0")


def decode(payload: bytes) -> ProbeMessage | None:
    """None where it is none: anybody can send to that port."""
    if len(payload) < SMALLEST:
        return None
    magic, kind, flags, mtu, nonce, size, about = _LAYOUT.unpack_from(payload)
    if magic != _MAGIC or kind not in _KNOWN_KINDS:
        return None
    return ProbeMessage(kind, nonce, flags, mtu, size, about)
