"""The asking socket of nf_tables. What it is told to do is one transaction: all of it happens, or nothing.

The kernel works on to the end of a transaction that it will refuse, and reports every request that it would not take.
"""

import socket
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.netlink import (
    NETLINK_NETFILTER,
    AnswerLost,
    CommandSocket,
    Refusal,
    read_answers,
)
from netloom.kernel.nftables import BEGIN_SEQUENCE, frame
from netloom.kernel.wire import ACK

WHOLE = BEGIN_SEQUENCE
"""Key of a refusal that is about the transaction, and not about one of its requests."""

SEND_BUFFER = 64 << 20
"""Bytes; a transaction has to fit. 10,000 CIDRs take 1 MiB. A limit, not a reservation."""

_SO_SNDBUFFORCE = 32
_FLAGS = 6 if sys.byteorder == "little" else 7


class NftablesSocket(CommandSocket):
    """See the module. Raises KernelUnsupported where the kernel has no netfilter."""

    protocol = NETLINK_NETFILTER

    def _open(self) -> None:
        try:
            super()._open()
        except OSError as error:
            raise KernelUnsupported(f"this kernel has no netfilter, so nothing can be masqueraded: {error}") from error
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)

    def execute(self, messages: Sequence[bytes]) -> dict[int, Refusal]:
        """Do all of them or none; return the refusals by the requests' places, or by WHOLE."""
        if not messages:
            return {}
        self.written.update(Counter(message[_KIND] for message in messages))
        last = messages[-1]
        acknowledged = last[:_FLAGS] + bytes([last[_FLAGS] | ACK]) + last[_FLAGS + 1 :]
        refusals: dict[int, Refusal] = {}
        try:
            self._socket.sendall(frame([*messages[:-1], acknowledged]))
            while not self._answered(len(messages) - 1, refusals):
                pass
        except OSError as error:
            self._reopen()
            raise AnswerLost(f"{len(messages)} requests: {error}") from error
        if WHOLE in refusals:
            # The last request may have been acknowledged all the same, behind this.
            self._reopen()
        return refusals

    def _answered(self, last: int, refusals: dict[int, Refusal]) -> bool:
        """Read one datagram; whether the answer to the last request, or to all, was in it."""
        done = False
        for sequence, refusal in read_answers(self._socket.recv(1 << 16)):
            if refusal is not None:
                refusals[sequence] = refusal
            done = done or sequence in (last, WHOLE)
        return done


_KIND = 4 if sys.byteorder == "little" else 5
