"""The two netlink sockets: one that asks, one that listens.

They are separate because an overflow of the listening one (ENOBUFS: the kernel dropped events) sticks to the socket
and would be reported in the place of an ordinary request's answer.

Requests are packed many into one `send`. Only the last asks for an acknowledgement; the kernel reports errors of the
others anyway, each with the sequence number of its request, and that number is the request's place in the batch.
The kernel works a batch off inside `send`, so all answers are there when it returns. It may have to wait for the
kernel's routing lock, which others can hold for seconds: callers with an event loop use a thread.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import TypeVar

import msgspec

from netloom.kernel.netlink import wire
from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.wire import HEADER, HEADER_SIZE, ROUTE, attributes

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 1, 10, 11, 12
_SO_ATTACH_FILTER, SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 26, 32, 33
_ERROR_MESSAGE, _CAPPED, _HAS_ATTRIBUTES = 1, 0x100, 0x200

BATCH = 1024
"""Requests per `send`. At 100 bytes each the send buffer holds far more; the limit is the receive buffer, which has
to take one error per request (about 1 KiB of kernel memory each) in the worst case."""

BUFFER = 16 << 20
"""Bytes. The default of 1 MiB overflows at 4,000 queued events."""

ANSWER_SECONDS = 10.0
"""An answer that is not there by then has been lost: the kernel gives it before `send` returns."""

_ANSWER_BYTES = 1 << 12
"""More than any single object's description: one of 64 KiB costs more to make room for than to read."""

DUMP_ATTEMPTS = 5
"""A dump that the kernel marks as interrupted (the state changed while it was read) is read again that many times."""

GROUPS = {
    "link": 1,
    "neigh": 3,
    "ipv4-addr": 5,
    "ipv4-route": 7,
    "ipv4-rule": 8,
    "ipv6-addr": 9,
    "ipv6-route": 11,
    "ipv6-rule": 19,
    "ipv4-netconf": 24,
    "ipv6-netconf": 25,
    "nexthop": 32,
}
"""Multicast groups (enum rtnetlink_groups) whose events can mean that something owned has changed."""


NETFILTER_GROUPS = {"nftables": 7}
"""Multicast groups (enum nfnetlink_groups) of the other protocol."""

# Message types and the ACK flag fit into the low byte of their 16-bit field.
_LOW_BYTE = 0 if sys.byteorder == "little" else 1
_KIND = itemgetter(4 + _LOW_BYTE)


class KernelRefusal(msgspec.Struct, frozen=True):
    """The kernel's error for one request: errno, and the sentence it may have added (extended acknowledgement)."""

    errno: int
    message: str = ""

    @property
    def name(self) -> str:
        """`EEXIST`."""
        return errno.errorcode.get(self.errno, str(self.errno))

    def __str__(self) -> str:
        return f"{self.name}: {self.message or os.strerror(self.errno)}"


class RefusedError(OSError):
    """A single request was refused."""

    def __init__(self, refusal: KernelRefusal) -> None:
        super().__init__(refusal.errno, refusal.message or os.strerror(refusal.errno))
        self.refusal = refusal


@contextmanager
def unless_missing() -> Iterator[None]:
    """What is asked for may not be there, or go in this moment; a table of routes is there from the first route on."""
    try:
        yield
    except RefusedError as error:
        if error.errno != errno.ENOENT:
            raise


class AnswerLost(Exception):
    """The kernel's answers to a batch did not all arrive: what it did is unknown until it is read."""


class Overflow(Exception):
    """Events were dropped: what changed is unknown until all is read."""


Seen = TypeVar("Seen")
T = TypeVar("T")

Visit = Callable[[int, bytes, int, int], None]
"""Called for each message of a dump with (type, buffer, start and end of what follows the header)."""

VisitAnswer = Callable[[int, int, bytes, int, int], None]
"""Called for each answer with (number of the question, type, buffer, start and end of what follows the header)."""


class CommandSocket:
    """The asking socket. Counts the requests it has written, by message type.

    `port` is its address, which the kernel puts into the events that its requests cause.
    """

    protocol = NETLINK_ROUTE
    whole = -1
    """Sequence number of an answer to all requests at once; -1: there is none such."""

    def __init__(self) -> None:
        self.written: Counter[int] = Counter()
        self.port = 0
        self._sequence = 1 << 20
        self._open()

    def _open(self) -> None:
        self._socket = _netlink_socket(self.protocol)
        prepare_to_ask(self._socket)
        self._socket.bind((self.port, 0))
        self.port = int(self._socket.getsockname()[0])

    def _reopen(self) -> None:
        """Answers that may still be on their way must not be taken for those of the next request."""
        self.close()
        self._open()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        """Do all of them, at most BATCH, message i with sequence number i; return the errors by i."""
        if not messages:
            return {}
        self.written.update(map(_KIND, messages))
        refusals: dict[int, KernelRefusal] = {}
        try:
            self._socket.sendall(self._batch(messages))
            while not self._acknowledged(len(messages) - 1, refusals):
                pass
        except OSError as error:
            self._reopen()
            raise AnswerLost(f"{len(messages)} requests: {error}") from error
        return refusals

    def _batch(self, messages: Sequence[bytes]) -> bytearray:
        """What is sent: only the last is to be acknowledged."""
        batch = bytearray(b"".join(messages))
        batch[len(batch) - len(messages[-1]) + 6 + _LOW_BYTE] |= wire.ACK
        return batch

    def _acknowledged(self, last: int, refusals: dict[int, KernelRefusal]) -> bool:
        """Read one datagram; whether the answer to request `last`, or to all of them, was in it."""
        done, buffer = False, self._socket.recv(1 << 16)
        for kind, flags, sequence, start, end in walk(buffer):
            if kind != wire.NLMSG_ERROR or (sequence > last and sequence != self.whole):
                continue
            refusal = _refusal(buffer, flags, start, end)
            if refusal is not None:
                refusals[sequence] = refusal
            done = done or sequence in (last, self.whole)
        return done

    def ask(self, questions: Sequence[bytes], visit: VisitAnswer) -> None:
        """Ask all of them, at most BATCH, question i with sequence number i, each of which has one answer: what is
        asked for, or an error (type NLMSG_ERROR). Raises OSError when answers are missing."""
        try:
            self._socket.sendall(b"".join(questions))
            left = len(questions)
            while left:
                buffer = self._socket.recv(_ANSWER_BYTES)
                for kind, _flags, sequence, start, end in walk(buffer):
                    if sequence < len(questions):
                        left -= 1
                        visit(sequence, kind, buffer, start, end)
        except OSError:
            self._reopen()
            raise

    def dump(self, request: bytes, visit: Visit) -> bool:
        """Visit every message of the answer. False: the kernel says it was interrupted by a change."""
        return self._ask(request, wire.DUMP, visit)

    def get(self, request: bytes, visit: Visit) -> None:
        """Visit the one object that is asked for. Raises RefusedError, as ENODEV, if there is none."""
        self._ask(request, wire.ACK, visit)

    def _ask(self, request: bytes, flags: int, visit: Visit) -> bool:
        self._sequence += 1
        length, kind, own_flags, _sequence, _port = HEADER.unpack_from(request)
        header = HEADER.pack(length, kind, own_flags | flags, self._sequence, 0)
        try:
            self._socket.sendall(header + request[HEADER_SIZE:])
            return self._answers(visit)
        except RefusedError:
            raise
        except OSError:
            self._reopen()
            raise

    def _answers(self, visit: Visit) -> bool:
        whole = True
        while True:
            buffer = self._socket.recv(1 << 16)
            for kind, flags, sequence, start, end in walk(buffer):
                if sequence != self._sequence:
                    continue
                if flags & wire.DUMP_INTERRUPTED:
                    whole = False
                if kind in (wire.NLMSG_DONE, wire.NLMSG_ERROR):
                    refusal = _refusal(buffer, flags, start, end)
                    if refusal is not None:
                        raise RefusedError(refusal)
                    return whole
                visit(kind, buffer, start, end)


class EventSocket:
    """The listening socket, non-blocking. What `deaf_to` (command sockets' ports) cause is not delivered; nor are, if
    `without_routes_of` is a protocol, its routes by a nexthop object to more than one address."""

    def __init__(
        self,
        groups: Iterable[str] = GROUPS,
        *,
        deaf_to: Iterable[int] = (),
        without_routes_of: int | None = None,
        buffer: int = BUFFER,
    ) -> None:
        numbers = [GROUPS[group] if group in GROUPS else NETFILTER_GROUPS[group] for group in groups]
        netfilter = any(group in NETFILTER_GROUPS for group in groups)
        self._socket = _netlink_socket(NETLINK_NETFILTER if netfilter else NETLINK_ROUTE, buffer)
        self._without_routes_of = without_routes_of
        self.deafen(deaf_to)
        self._socket.bind((0, 0))
        for number in numbers:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, number)
        self._socket.setblocking(False)

    def deafen(self, ports: Iterable[int]) -> None:
        """What these command sockets' ports cause is not delivered from now on; what others were told to be, is."""
        _drop_events(self._socket, tuple(ports), self._without_routes_of)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive(self) -> bytes | None:
        """One datagram, None when there is none. Raises Overflow when the kernel has dropped events."""
        try:
            return self._socket.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise Overflow from error
            raise


def read_all(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], Seen | None]) -> list[Seen]:
    """What `read` makes of the messages of a dump, but for None. It is read again while the kernel says that the state
    changed meanwhile; the last reading stands. Raises RefusedError, OSError."""
    found: list[Seen] = []

    def visit(_kind: int, buffer: bytes, start: int, end: int) -> None:
        seen = read(buffer, start, end)
        if seen is not None:
            found.append(seen)

    for _ in range(DUMP_ATTEMPTS):
        found.clear()
        if commands.dump(request, visit):
            break
    return found


def read_one(commands: CommandSocket, request: bytes, read: Callable[[bytes, int, int], Seen | None]) -> Seen | None:
    """What `read` makes of the one object that is asked for. Raises RefusedError, as ENODEV, if there is none;
    OSError."""
    found: list[Seen | None] = []
    commands.get(request, lambda _kind, *place: found.append(read(*place)))
    return found[0] if found else None


def walk(buffer: bytes) -> Iterable[tuple[int, int, int, int, int]]:
    """The messages of a datagram: type, flags, sequence, start and end of what follows the header."""
    at, size = 0, len(buffer)
    unpack = HEADER.unpack_from
    while at + HEADER_SIZE <= size:
        length, kind, flags, sequence, _port = unpack(buffer, at)
        if length < HEADER_SIZE:
            return
        yield kind, flags, sequence, at + HEADER_SIZE, at + length
        at += (length + 3) & ~3


def prepare_to_ask(sock: socket.socket) -> None:
    """How the kernel is to answer."""
    for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
        sock.setsockopt(_SOL_NETLINK, option, 1)
    # The kernel's own deadline: Python's would ask before each `recv` whether there is something to receive.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(ANSWER_SECONDS), 0))


def _netlink_socket(protocol: int, receive_buffer: int = BUFFER) -> socket.socket:
    result = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    result.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    result.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    # Beyond the system's limits takes CAP_NET_ADMIN; without it (a plan) the limits have to do.
    with suppress(PermissionError):
        result.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        result.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
    return result


def _drop_events(sock: socket.socket, ports: Sequence[int], protocol: int | None) -> None:
    """A classic BPF program: of 30,000 events that are no news each would have to be read otherwise. (All messages of
    a datagram are of one sender, and there is one route in it.)"""
    load_word, load_half, load_byte, load_number, load_index = 0x20, 0x28, 0x30, 0x00, 0x01
    jump_if_equal, give = 0x15, 0x06
    find_attribute = 0xFFFFF000 + 12  # SKF_AD_NLATTR: of the type in X, from A on
    after_header, route_header = HEADER_SIZE, HEADER_SIZE + ROUTE.size

    def swapped(number: int, size: int) -> int:
        """BPF loads in network order, the header of a message is in host order."""
        return int.from_bytes(number.to_bytes(size, sys.byteorder), "big")

    # (operation, where to go on if it is so, where if it is not, value); "" is the next one.
    steps: list[tuple[int, str, str, int]] = [(load_word, "", "", 12)]
    steps += [(jump_if_equal, "drop", "", swapped(port, 4)) for port in ports]
    if protocol is not None:
        steps += [
            (load_half, "", "", 4),
            (jump_if_equal, "the one after", "", swapped(wire.RTM_NEWROUTE, 2)),
            (jump_if_equal, "", "give", swapped(wire.RTM_DELROUTE, 2)),
            (load_byte, "", "", after_header + 5),
            (jump_if_equal, "", "give", protocol),
            (load_byte, "", "", after_header + 1),
            (jump_if_equal, "give", "", 32),
            (jump_if_equal, "give", "", 128),
            (load_index, "", "", wire.RTA_NH_ID),
            (load_number, "", "", route_header),
            (load_word, "", "", find_attribute),
            (jump_if_equal, "", "drop", 0),
        ]
    steps += [(give, "", "", 0xFFFFFFFF), (give, "", "", 0)]
    program = b""
    for left, (operation, so, not_so, value) in zip(reversed(range(len(steps))), steps, strict=True):
        skipped = {"": 0, "the one after": 1, "give": left - 2, "drop": left - 1}
        program += struct.pack("=HBBI", operation, skipped[so], skipped[not_so], value)
    memory = ctypes.create_string_buffer(program)
    filter_program = struct.pack("HL", len(program) // 8, ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)


async def once(read: Callable[[CommandSocket], T]) -> T:
    """What `read` makes of the kernel's answers, in a thread of its own, but in the network namespace of this one.
    Raises as it does."""
    commands, thread = CommandSocket(), KernelThread("netloom-look")

    def run() -> T:
        try:
            return read(commands)
        finally:
            commands.close()

    try:
        return await thread.call(run)
    finally:
        thread.end()


def _refusal(buffer: bytes, flags: int, start: int, end: int) -> KernelRefusal | None:
    """What an error says, with the text that may be behind the header of the request (or all of it); None: that all
    is well."""
    code = -int.from_bytes(buffer[start : start + 4], sys.byteorder, signed=True)
    if code <= 0:
        return None
    if not flags & _HAS_ATTRIBUTES:
        return KernelRefusal(code)
    request_length = int.from_bytes(buffer[start + 4 : start + 8], sys.byteorder)
    skip = HEADER_SIZE if flags & _CAPPED else (request_length + 3) & ~3
    said = attributes(buffer, start + 4 + skip, end).get(_ERROR_MESSAGE, b"")
    return KernelRefusal(code, wire.text(said))
