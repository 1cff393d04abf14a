"""The asking socket of nf_tables. What it is told to do is one transaction: all of it happens, or nothing.

The kernel works on to the end of a transaction that it will refuse, and reports every request that it would not take.
"""

import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.netlink.nftables import SUBSYSTEM
from netloom.kernel.netlink.sockets import (
    NETLINK_NETFILTER,
    SO_SNDBUFFORCE,
    CommandSocket,
    KernelRefusal,
    read_all,
    read_one,
    unless_missing,
)
from netloom.kernel.netlink.wire import HEADER, HEADER_SIZE, REQUEST

T = TypeVar("T")

WHOLE = 0xFFFF_FFFF
"""Sequence number of what the kernel says about a transaction as a whole, and not about one of its requests."""

_BEGIN, _END = (
    HEADER.pack(HEADER_SIZE + 4, kind, REQUEST, WHOLE, 0) + (SUBSYSTEM >> 8).to_bytes(4, "big")
    for kind in (0x10, 0x11)  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
)

_NUMBER = struct.Struct("=I")
"""A request's sequence number, behind the 8 bytes of length, kind and flags. Written where all are sent from: to copy
10,000 requests one by one before (`wire.numbered`) takes twice as long, and 2 MiB."""

SEND_BUFFER = 64 << 20
"""Bytes; a transaction has to fit. 10,000 CIDRs take 1 MiB. A limit, not a reservation."""


class NftablesSocket(CommandSocket):
    """See the module. Raises KernelUnsupported where the kernel has no netfilter."""

    protocol = NETLINK_NETFILTER
    whole = WHOLE

    def _open(self) -> None:
        try:
            super()._open()
        except OSError as error:
            raise KernelUnsupported(f"this kernel has no netfilter, and so no nftables: {error}") from error
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)

    def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        """Do all of them or none; return the refusals by the requests' places, or by WHOLE."""
        refusals = super().execute(messages)
        if WHOLE in refusals:
            # The last request may have been acknowledged all the same, behind this.
            self._reopen()
        return refusals

    def _batch(self, messages: Sequence[bytes]) -> bytearray:
        batch, at = bytearray(_BEGIN) + super()._batch(messages) + _END, len(_BEGIN)
        for number, message in enumerate(messages):
            _NUMBER.pack_into(batch, at + 8, number)
            at += len(message)
        return batch


def get_one(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], T]) -> T | None:
    """The object that is asked for; None if it is not there. Raises RefusedError, OSError."""
    found: list[T | None] = []
    with unless_missing():
        found.append(read_one(commands, request, read))
    return found[0] if found else None


def get_all(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], T]) -> list[T]:
    """All objects of a kind in a table, none where that is not there. Raises RefusedError, OSError."""
    found: list[T] = []
    with unless_missing():
        found += read_all(commands, request, read)
    return found
