"""One end of UDP flows: the process in a pod that sends and counts. Standard library only; see `flow.py` for its user.

It is steered by lines of JSON on standard input and answers in lines of JSON:

    {"me": 0, "rate": 1000, "peers": [[1, "10.42.2.5"], ...], ...}  ->  {"ready": true}
    {"start": 123456789}    CLOCK_MONOTONIC in ns, the same in all namespaces: the barrier
    {"stop": 5010}          ->  {"sent": 5012}: an end that is behind still sends 5,010 packets to each peer
    {"finish": {"1": 5012}} numbers that each sender used  ->  the counts, when all came or nothing comes any more

One thread sleeps until the next tick, sends a packet to every peer, and takes what has arrived: at 1 kHz that is one
wake-up per millisecond, however many flows there are. A process that was not run for a while catches up, so numbers
stay tied to time; a receive buffer for seconds of traffic makes that harmless to the others' packets. But what is sent
late shows nothing of the time for which it was due: so an end comes before all else that wants to run, where it may.
"""

import gc
import json
import os
import resource
import socket
import struct
import sys
import threading
import time
from array import array
from contextlib import suppress
from typing import Any

HEADER = struct.Struct("!IHHQQ")
"""Run, sender, receiver, number, when it was sent (ns)."""

PORT = 7117
_RECEIVE_BUFFER = 256 << 20
"""Bytes, a limit and not a reservation. 3,000 jumbo frames per second fill it in 7 s, small packets in a minute."""

_SEND_BUFFER = 16 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MEMINFO, _MEMINFO_DROPS = 32, 33, 55, 8
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_QUIET_SECONDS = 1.0
_BURST = 64
"""Ticks made up for in one go, before what has arrived is taken."""


class Incoming:
    """What came of one flow."""

    __slots__ = ("duplicates", "last", "received", "reordered", "sent_at")

    def __init__(self) -> None:
        self.sent_at = array("q")
        """By number: the sender's time stamp, 0 while it is missing."""
        self.received = self.duplicates = self.reordered = 0
        self.last = -1

    def take(self, number: int, at: int) -> None:
        """One packet."""
        times = self.sent_at
        if number >= len(times):
            times.frombytes(bytes(8 * (number + 1024 - len(times))))
        if times[number]:
            self.duplicates += 1
            return
        times[number] = at
        self.received += 1
        if number < self.last:
            self.reordered += 1
        else:
            self.last = number

    def gaps(self, used: int) -> list[tuple[int, int, int, int]]:
        """Runs of missing numbers below `used`: first, last, when the packet before and the one after were sent (ns).

        The times are 0 where no packet came before or after.
        """
        times = self.sent_at
        found = []
        number = 0
        while self.received < used and number < used:
            if number < len(times) and times[number]:
                number += 1
                continue
            first = number
            while number < used and (number >= len(times) or not times[number]):
                number += 1
            before = times[first - 1] if first else 0
            found.append((first, number - 1, before, times[number] if number < used else 0))
        return found


class End:
    """The process's state; `plan` is the first line of input."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.run: int = plan["run"]
        self.me: int = plan["me"]
        self.period = 1_000_000_000 // int(plan["rate"])
        self.version: int = plan["version"]
        self.socket = self._socket(plan["address"], df=plan["df"], buffer=plan.get("buffer") or _RECEIVE_BUFFER)
        headers = 28 if self.version == 4 else 48
        self.peers = [(peer, bytearray(plan["size"] - headers), (address, PORT)) for peer, address in plan["peers"]]
        self.incoming = {peer: Incoming() for peer, _ in plan["peers"]}
        self.foreign = 0
        self.sent = 0
        self.refused: dict[int, list[tuple[int, int]]] = {peer: [] for peer, _ in plan["peers"]}
        """By peer: number and errno of packets that our own kernel would not send."""
        self.latest = 0
        """The longest that a packet was behind its time, in ns."""
        self.limit = 1 << 62
        """The number to stop before."""
        self._buffer = bytearray(1 << 16)

    def _socket(self, address: str, *, df: bool, buffer: int) -> socket.socket:
        made = socket.socket(socket.AF_INET if self.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        discover = _PMTUDISC_DO if df else _PMTUDISC_DONT
        if self.version == 4:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
        made.bind((address, PORT))
        made.setblocking(False)
        return made

    # Traffic.

    def send(self, number: int) -> None:
        """A packet to every peer."""
        pack, at = HEADER.pack_into, time.monotonic_ns()
        for peer, packet, address in self.peers:
            pack(packet, 0, self.run, self.me, peer, number, at)
            try:
                self.socket.sendto(packet, address)
            except OSError as error:
                self.refused[peer].append((number, error.errno or 0))

    def receive(self) -> int:
        """Take all that has arrived; how many packets that was."""
        receive, unpack, buffer, incoming = self.socket.recv_into, HEADER.unpack_from, self._buffer, self.incoming
        count = 0
        try:
            while True:
                length = receive(buffer)
                count += 1
                if length < HEADER.size:
                    self.foreign += 1
                    continue
                run, sender, receiver, number, at = unpack(buffer)
                if run != self.run or receiver != self.me or sender not in incoming:
                    self.foreign += 1
                    continue
                incoming[sender].take(number, at)
        except BlockingIOError:
            return count

    def flow(self, start: int) -> None:
        """Send and receive from `start` until the limit."""
        period, number = self.period, 0
        while number < self.limit:
            now = time.monotonic_ns()
            due = (now - start) // period + 1 if now >= start else 0
            if due > number:
                self.latest = max(self.latest, now - start - number * period)
                end = min(due, number + _BURST)
                while number < end:
                    self.send(number)
                    number += 1
                self.receive()
            else:
                time.sleep((start + number * period - now) / 1e9)
        self.sent = number

    def drain(self, expected: dict[int, int]) -> None:
        """Take what is still under way: until all came, or nothing for a second."""
        last = time.monotonic()
        while any(self.incoming[peer].received < count for peer, count in expected.items()):
            if self.receive():
                last = time.monotonic()
            elif time.monotonic() - last > _QUIET_SECONDS:
                break
            else:
                time.sleep(0.005)
        self.receive()

    def result(self, expected: dict[int, int]) -> dict[str, Any]:
        """The counts."""
        memory = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "flows": {
                peer: {
                    "received": flow.received,
                    "duplicates": flow.duplicates,
                    "reordered": flow.reordered,
                    "gaps": flow.gaps(expected[peer]),
                }
                for peer, flow in self.incoming.items()
            },
            "refused": self.refused,
            "foreign": self.foreign,
            "dropped": struct.unpack_from("=I", memory, 4 * _MEMINFO_DROPS)[0],
            "latest": self.latest,
            "cpu": used.ru_utime + used.ru_stime,
        }

    # Commands.

    def listen(self) -> None:
        """A thread waits for the stop, so that the loop needs no system call to look for it."""

        def read() -> None:
            self.limit = json.loads(sys.stdin.readline() or '{"stop": 0}')["stop"]

        threading.Thread(target=read, daemon=True).start()

    def say(self, **words: Any) -> None:
        print(json.dumps(words), flush=True)


def come_first() -> None:
    """Before whatever shares the machine, as far as this may be had: it takes CAP_SYS_NICE."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main() -> None:
    """Follow the commands of one run."""
    come_first()
    end = End(json.loads(sys.stdin.readline()))
    end.say(ready=True)
    start = json.loads(sys.stdin.readline())["start"]
    gc.disable()  # nothing here makes cycles
    end.listen()
    end.flow(start)
    end.say(sent=end.sent)
    expected = {int(peer): count for peer, count in json.loads(sys.stdin.readline())["finish"].items()}
    end.drain(expected)
    end.say(**end.result(expected))


if __name__ == "__main__":
    main()
