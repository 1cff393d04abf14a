"""Asks peers by the pods' way whether packets arrive, and answers those who ask.

A question is written to the TUN device, so this kernel forwards it as it forwards a pod's packets; the peer's kernel
forwards it to the peer's TUN device, where the peer's agent reads and answers it. The answer comes back the same way.
Beside that there is the nodes' own way, between UDP sockets at the nodes' own addresses in the tunnels (or, without
tunnels, on the network between the nodes): it meets no forwarding, and tells what became of a question.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from netloom.cidr import Address, format_address
from netloom.kernel.netlink.wire import FAMILIES
from netloom.kernel.probe import message
from netloom.kernel.probe.message import ANSWER, ASK, FORWARDS, NO_DEVICE, NOTHING, SEEN, UNANSWERED, ProbeMessage
from netloom.kernel.probe.packets import HEADERS, UDP_PORT, Datagram, Rejection, datagram, parse

PACKETS_PER_SECOND = 200
"""Read in a second; of more than that, the rest is left to the device's queue, which drops it: anybody in the cluster
can send to the probe's address, and shall not cost the node more than this. The pods' way and the nodes' own have as
much each: who floods one does not silence the other."""
REMEMBERED = 256
"""Questions that are known to have arrived, and peers that were heard of."""
_PORTS = range(49152, 65536)
"""Dynamic ones (RFC 6335)."""
_FREEBIND = {4: (socket.IPPROTO_IP, 15), 16: (socket.IPPROTO_IPV6, 78)}
"""IP_FREEBIND, IPV6_FREEBIND, by the length of an address."""


class ProbeAnswer(msgspec.Struct, frozen=True):
    """What came back for a question. seconds: the round trip. rejected: an ICMP error came instead. refused: the peer's
    kernel says that nobody listens (the nodes' own way)."""

    seconds: float = 0.0
    said: ProbeMessage | None = None
    rejected: Rejection | None = None
    refused: bool = False


class _Budget:
    """Packets that may still be read in this second."""

    def __init__(self) -> None:
        self._left = 0
        self._second = float("-inf")

    def take(self) -> bool:
        """Whether another packet may be read."""
        now = time.monotonic()
        if now - self._second >= 1:
            self._second, self._left = now, PACKETS_PER_SECOND
        self._left -= 1
        return self._left >= 0


class Prober:
    """See the module. `forwards`: whether this node's own forwarding let the last probe through, by length of address.
    `unanswered(address)` is called when a peer asks and says that it gets no answers; `doubted()`, when one asks by the
    nodes' own way, as it does where the pods' way fails."""

    def __init__(
        self,
        *,
        unanswered: Callable[[Address], None] = lambda address: None,
        doubted: Callable[[], None] = lambda: None,
    ) -> None:
        self.addresses: tuple[Address, ...] = ()
        self.mtu = 0
        self.forwards: dict[int, bool] = {}
        self.unanswered = unanswered
        self.doubted = doubted
        self.answers = 0
        self.descriptor: int | None = None
        self._reading = False
        self._of_pods, self._of_hosts = _Budget(), _Budget()
        self._waiting: dict[bytes, tuple[Address, float, asyncio.Future[ProbeAnswer]]] = {}
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._heard: OrderedDict[Address, float] = OrderedDict()
        self._hosts: dict[Address, socket.socket] = {}

    # ------------------------------------------------------------------------------------------------ by the pods' way

    def attach(self, descriptor: int | None) -> None:
        """Read and write this TUN device from now on; None: there is none any more."""
        self._ignore()
        self.descriptor = descriptor
        self._listen()

    def close(self) -> None:
        """Read nothing any more."""
        self._ignore()
        self.descriptor = None
        self.listen_at(())

    async def ask(
        self, target: Address, size: int, seconds: float, *, nonce: bytes = b"", unanswered: bool = False
    ) -> ProbeAnswer | None:
        """A question to a peer's probe address in a packet of `size` bytes; None where nothing came in `seconds`."""
        source, nonce = self._own(target), nonce or new_nonce()
        if source is None or self.descriptor is None:
            return None
        flags = (UNANSWERED if unanswered else 0) | self._own_flags()
        payload = ProbeMessage(ASK, nonce, flags, self.mtu).encode(size - HEADERS[len(target)])
        packet = datagram(source, target, payload, (_new_port(), UDP_PORT))
        return await self._awaited(nonce, target, seconds, lambda: self._write(packet))

    async def loop(self, version_bytes: int, seconds: float) -> ProbeAnswer | None:
        """Through this node's own forwarding, from the device and to it: which a filter of the forward hook stops."""
        own = next((each for each in self.addresses if len(each) == version_bytes), None)
        if own is None:
            return None
        found = await self.ask(own, HEADERS[version_bytes] + message.SMALLEST, seconds)
        self.forwards[version_bytes] = found is not None and found.said is not None
        return found

    def heard(self, target: Address, since: float) -> bool:
        """Whether anything came from this probe address since that moment (monotonic)."""
        return self._heard.get(target, float("-inf")) > since

    # ------------------------------------------------------------------------------------------- by the nodes' own way

    def listen_at(self, addresses: Iterable[Address]) -> None:
        """Answer at these addresses of the node, and ask from them."""
        wanted = set(addresses)
        loop = asyncio.get_running_loop() if self._hosts or wanted else None
        for address in self._hosts.keys() - wanted:
            assert loop is not None
            loop.remove_reader(self._hosts[address].fileno())
            self._hosts.pop(address).close()
        for address in wanted - self._hosts.keys():
            assert loop is not None
            with contextlib.suppress(OSError):
                self._hosts[address] = made = _bound(address)
                loop.add_reader(made.fileno(), self._on_host, made)

    async def ask_host(self, target: Address, about: bytes, seconds: float) -> ProbeAnswer | None:
        """The same to a peer's own address, with the question whether `about` has arrived there."""
        if not target:
            return None
        nonce = new_nonce()
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with contextlib.suppress(OSError), socket.socket(FAMILIES[len(target)], kind) as asking:
            asking.connect((format_address(target), UDP_PORT))
            payload = ProbeMessage(ASK, nonce, self._own_flags(), self.mtu, about=about).encode(message.SMALLEST)
            return await self._awaited(nonce, target, seconds, lambda: asking.send(payload), asking)
        return None

    # ---------------------------------------------------------------------------------------------------------- inside

    def _own(self, target: Address) -> Address | None:
        return next((each for each in self.addresses if len(each) == len(target)), None)

    def _own_flags(self) -> int:
        forwards = sum(flag for size, flag in FORWARDS.items() if self.forwards.get(size, True))
        return forwards | (NO_DEVICE if self.descriptor is None else 0)

    async def _awaited(
        self,
        nonce: bytes,
        target: Address,
        seconds: float,
        send: Callable[[], Any],
        asking: socket.socket | None = None,
    ) -> ProbeAnswer | None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ProbeAnswer] = loop.create_future()
        self._waiting[nonce] = target, time.monotonic(), future
        try:
            if asking is not None:
                loop.add_reader(asking.fileno(), self._on_asked, asking, future)
            send()
            return await asyncio.wait_for(future, seconds)
        except (TimeoutError, OSError):
            return None
        finally:
            self._waiting.pop(nonce, None)
            if asking is not None:
                loop.remove_reader(asking.fileno())

    def _write(self, packet: bytes) -> None:
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self.descriptor, packet)

    def _listen(self) -> None:
        if self.descriptor is not None and not self._reading:
            asyncio.get_running_loop().add_reader(self.descriptor, self._on_packets)
            self._reading = True

    def _ignore(self) -> None:
        if self._reading and self.descriptor is not None:
            asyncio.get_running_loop().remove_reader(self.descriptor)
        self._reading = False

    def _on_packets(self) -> None:
        while self.descriptor is not None and self._of_pods.take():
            try:
                packet = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return
            except OSError:  # the device was deleted; its keeper makes another
                self._ignore()
                return
            self._take(packet)
        self._ignore()
        asyncio.get_running_loop().call_later(1.0, self._listen)

    def _take(self, packet: bytes) -> None:
        found = parse(packet)
        if isinstance(found, Rejection):
            for target, began, future in list(self._waiting.values()):
                if target == found.destination and not future.done():
                    future.set_result(ProbeAnswer(time.monotonic() - began, rejected=found))
        elif isinstance(found, Datagram) and found.destination in self.addresses:
            said = message.decode(found.payload)
            if said is None:
                return
            if said.kind == ANSWER:
                self._answered(said, found.source)
            elif found.source in self.addresses:
                self._answered(said, found.source)  # its own, through its own forwarding
            else:
                self._answer(said, found)

    def _answer(self, said: ProbeMessage, found: Datagram) -> None:
        _remember(self._seen, said.nonce, None)
        _remember(self._heard, found.source, time.monotonic())
        reply = ProbeMessage(ANSWER, said.nonce, self._own_flags(), self.mtu, found.size)
        payload = reply.encode(len(found.payload))
        self._write(datagram(found.destination, found.source, payload, (UDP_PORT, found.port)))
        self.answers += 1
        if said.flags & UNANSWERED:
            self.unanswered(found.source)

    def _answered(self, said: ProbeMessage, source: Address) -> None:
        waiting = self._waiting.get(said.nonce)
        if waiting is None or waiting[2].done() or waiting[0] != source:
            return
        _remember(self._heard, source, time.monotonic())
        waiting[2].set_result(ProbeAnswer(time.monotonic() - waiting[1], said))

    def _on_host(self, listening: socket.socket) -> None:
        if not self._of_hosts.take():
            asyncio.get_running_loop().remove_reader(listening.fileno())
            asyncio.get_running_loop().call_later(1.0, self._listen_again, listening)
            return
        try:
            payload, who = listening.recvfrom(2048)
        except OSError:
            return
        said = message.decode(payload)
        if said is None or said.kind != ASK:
            return
        self.doubted()
        seen = SEEN if said.about != NOTHING and said.about in self._seen else 0
        flags = seen | self._own_flags()
        with contextlib.suppress(OSError):
            listening.sendto(ProbeMessage(ANSWER, said.nonce, flags, self.mtu, len(payload)).encode(len(payload)), who)

    def _listen_again(self, listening: socket.socket) -> None:
        if listening in self._hosts.values():
            asyncio.get_running_loop().add_reader(listening.fileno(), self._on_host, listening)

    def _on_asked(self, asking: socket.socket, future: "asyncio.Future[ProbeAnswer]") -> None:
        try:
            said = message.decode(asking.recv(2048))
        except ConnectionRefusedError:
            if not future.done():
                future.set_result(ProbeAnswer(refused=True))
            return
        except OSError:
            return
        waiting = self._waiting.get(said.nonce) if said is not None else None
        if said is not None and said.kind == ANSWER and waiting is not None and not future.done():
            future.set_result(ProbeAnswer(time.monotonic() - waiting[1], said))


def new_nonce() -> bytes:
    """By which an answer is known as one to this question: nobody but who saw the question can make it."""
    return secrets.token_bytes(8)


def _new_port() -> int:
    """From which to ask. Each question is a flow of its own, as a pod's new connection is: a filter that lets pass what
    is established would let one flow pass for ever."""
    return secrets.choice(_PORTS)


def _bound(address: Address) -> socket.socket:
    """The probe's UDP port at an address that need not be there yet. Raises OSError."""
    made = socket.socket(FAMILIES[len(address)], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(*_FREEBIND[len(address)], 1)
        made.bind((format_address(address), UDP_PORT))
    except BaseException:
        made.close()
        raise
    return made


def _remember(what: "OrderedDict[Any, Any]", key: Any, value: Any) -> None:
    what[key] = value
    what.move_to_end(key)
    if len(what) > REMEMBERED:
        what.popitem(last=False)
