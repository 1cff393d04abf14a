"""What the kernel says of a namespace's routes, nexthops and neighbours, with the time at which it said so.

Independent of what is observed: a thread that does nothing but read sockets of its own and look at the clock
(`time.monotonic`, the same for all processes). What the events mean is worked out later, by another thread.
"""

from __future__ import annotations

import queue
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from netloom.kernel.netlink.wire import attributes
from netloom_e2e.lab import Namespace

_SO_RCVBUFFORCE = 33
_BUFFER = 256 << 20
"""Of kernel memory, about 1 KiB an event: a monitor that loses events measures nothing."""
_DATAGRAM = 1 << 16
_HEADER = struct.Struct("=IHHII")
GROUPS = {"neighbour": 1 << 2, "route": 1 << 6, "nexthop": 1 << 31}
"""Bits of nl_groups (RTMGRP_*, linux/rtnetlink.h): IPv4 routes, nexthop objects, neighbours."""
_NEW = {24: "route", 28: "neighbour", 104: "nexthop"}
_DELETED = {25: "route", 29: "neighbour", 105: "nexthop"}
_RTN_UNREACHABLE = 7
_RTA_DST, _RTA_NH_ID, _NHA_ID, _NDA_DST, _NDA_LLADDR = 1, 30, 1, 1, 2
_NUD_PERMANENT = 0x80
_PROTOCOL = 158

Key = tuple[str, str]
"""Kind, and what `ip` names it by: the CIDR, the nexthop's id, the neighbour's address."""


class Event(NamedTuple):
    """value: what of the entry is Netloom's choice; empty if it is deleted, or is none of Netloom's any more."""

    at: float
    where: int
    key: Key
    value: bytes


class Monitor:
    """Use as a context manager. `where` of an event is its namespace's place in the sequence."""

    def __init__(self, namespaces: Sequence[Namespace], groups: Iterable[str] = GROUPS) -> None:
        self._mask = sum(GROUPS[group] for group in groups)
        self._sockets = [namespace.inside(self._open) for namespace in namespaces]
        self._seen: queue.SimpleQueue[tuple[float, int, bytes]] = queue.SimpleQueue()
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._read, name="monitor", daemon=True)
        self._interval = sys.getswitchinterval()

    def __enter__(self) -> Monitor:
        # A thread that has something to read gets the interpreter within 0.1 ms instead of 5.
        sys.setswitchinterval(0.0001)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._thread.join()
        self._ended.close()
        for each in self._sockets:
            each.close()
        sys.setswitchinterval(self._interval)

    def events(self, quiet: float) -> Iterator[Event]:
        """Events in their order, until none came for `quiet` seconds."""
        while True:
            try:
                at, where, data = self._seen.get(timeout=quiet)
            except queue.Empty:
                return
            yield from _parse(at, where, data)

    def pass_over(self, quiet: float = 0.05) -> int:
        """Forget what came, and what comes until it is quiet; how many that were."""
        count = 0
        while True:
            try:
                self._seen.get(timeout=quiet)
            except queue.Empty:
                return count
            count += 1

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        made.bind((0, self._mask))
        made.setblocking(False)
        return made

    def _read(self) -> None:
        put, clock = self._seen.put, time.monotonic
        poll = select.epoll()
        by_number = {each.fileno(): (where, each.recv) for where, each in enumerate(self._sockets)}
        for number in (self._ended.fileno(), *by_number):
            poll.register(number, select.EPOLLIN)
        while True:
            for number, _ in poll.poll():
                if number not in by_number:
                    poll.close()
                    return
                where, receive = by_number[number]
                while True:
                    try:
                        data = receive(_DATAGRAM)
                    except BlockingIOError:
                        break
                    put((clock(), where, data))


def _parse(at: float, where: int, data: bytes) -> Iterator[Event]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        event = _event(at, where, kind, data, offset + _HEADER.size, offset + length)
        if event is not None:
            yield event
        offset += (length + 3) & ~3


def _event(at: float, where: int, number: int, data: bytes, start: int, end: int) -> Event | None:
    kind = _NEW.get(number) or _DELETED.get(number)
    value = b""
    if kind == "route":
        if data[start + 7] == _RTN_UNREACHABLE:
            return None
        found, prefix_length, protocol = attributes(data, start + 12, end), data[start + 1], data[start + 5]
        key = f"{_address(found.get(_RTA_DST, b''))}/{prefix_length}"
        if protocol == _PROTOCOL:
            value = found.get(_RTA_NH_ID, b"")
    elif kind == "nexthop":
        found, protocol = attributes(data, start + 8, end), data[start + 2]
        key = str(int.from_bytes(found[_NHA_ID], sys.byteorder))
        if protocol == _PROTOCOL:
            value = data[start + 8 : end]
    elif kind == "neighbour":
        found, state = attributes(data, start + 12, end), data[start + 8]
        key = _address(found.get(_NDA_DST, b""))
        if state & _NUD_PERMANENT:
            value = found.get(_NDA_LLADDR, b"")
    else:
        return None
    return Event(at, where, (kind, key), value if number in _NEW else b"")


def _address(packed: bytes) -> str:
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    return socket.inet_ntop(socket.AF_INET6, packed) if packed else "0.0.0.0"
