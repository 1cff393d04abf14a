"""Whether packets pass to a peer and back, and if not, what there is to see of where they are lost."""

import asyncio
import time
from typing import Literal

import msgspec

from netloom.cidr import Address, version_of
from netloom.kernel.probe import underlay
from netloom.kernel.probe.keeper import Egress
from netloom.kernel.probe.message import FORWARDS, NO_DEVICE, SEEN, ProbeMessage
from netloom.kernel.probe.packets import Rejection
from netloom.kernel.probe.prober import ProbeAnswer, Prober, new_nonce

SMALL = {4: 200, 16: 300}
"""Bytes of a packet that any path takes, by the length of an address."""


Host = Literal["", "answered", "refused", "silent"]


class ProbeTiming(msgspec.Struct, frozen=True):
    """answer: seconds that an answer may take. tries: questions in a row, none of which is answered when one fails."""

    answer: float = 1.0
    tries: int = 3


class Target(msgspec.Struct, frozen=True):
    """A peer. address: its probe's. host: its own in the tunnels, of the same family. underlay: its node's (IPv4)."""

    name: str
    address: Address
    host: Address = b""
    underlay: Address = b""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen.

    size:     bytes of the packets that were tried: the pods' MTU. largest: of the largest that pass; 0: none do.
    device:   whether there is a device for the pods' way; without one only the nodes' own way was looked at.
    rejected: an ICMP error that came back. forwards: whether this node's own forwarding lets the probe through.
    host:     what the nodes' own way gave: an answer, the word that no agent listens there, or nothing.
    seen:     the peer says, by that way, that the questions arrived. peer_forwards: as it says of itself.
    peer_device: whether there is such a device at the peer.
    heard:    packets of the peer arrive by the pods' way, asked for or not, since this node's are not answered.
    ping:     whether the peer's node answers on the network between the nodes; None: not tried, or not allowed.
    port_refused: the peer's node refuses what is sent to the tunnel's UDP port.
    """

    target: Target
    way: Egress
    size: int = 0
    largest: int = 0
    device: bool = True
    seconds: float = 0.0
    rejected: Rejection | None = None
    forwards: bool | None = None
    host: Host = ""
    seen: bool = False
    peer_forwards: bool = True
    peer_device: bool = True
    heard: bool = False
    ping: bool | None = None
    port_refused: bool = False

    @property
    def passes(self) -> bool:
        """Whether all that pods send passes."""
        return 0 < self.size <= self.largest

    @property
    def family(self) -> int:
        """IP version."""
        return version_of(self.target.address)


class Examination:
    """One look at one peer, by one address family. since: when (monotonic) the first question was not answered, if that
    was in an earlier look."""

    def __init__(
        self, prober: Prober, target: Target, way: Egress, timing: ProbeTiming, *, since: float | None = None
    ) -> None:
        self._prober = prober
        self._target = target
        self._way = way
        self._timing = timing
        self._size = way.mtu
        self._rejected: Rejection | None = None
        self._nonce = b""
        self._since = since if since is not None else time.monotonic()
        self._unanswered = since is not None

    async def once(self) -> Evidence | None:
        """One question in the full size; None where no answer came."""
        answer = await self._ask(self._size)
        return self._passed(answer) if answer is not None else None

    async def whole(self) -> Evidence:
        """As many questions as it takes, and where they are not answered, all that can be seen of why."""
        if self._prober.descriptor is None:
            return await self._by_nodes_alone()
        small, answer = SMALL[len(self._target.address)], None
        for number in range(self._timing.tries):
            beside = self._ask(small) if number else _nothing()
            full, answer = await asyncio.gather(self._ask(self._size), beside)
            if full is not None:
                return self._passed(full)
        if answer is None:
            return await self._lost()
        assert answer.said is not None
        if small <= answer.said.mtu < self._size:  # the peer's pods have no use for larger ones
            self._size = answer.said.mtu
            again = await self._ask(self._size)
            if again is not None:
                return self._passed(again)
        return self._evidence(largest=await self._largest(small, max(0.1, 4 * answer.seconds)), seconds=answer.seconds)

    async def _ask(self, size: int, seconds: float = 0.0) -> ProbeAnswer | None:
        self._nonce = new_nonce()
        wait = seconds or self._timing.answer
        unanswered = self._unanswered
        answer = await self._prober.ask(self._target.address, size, wait, nonce=self._nonce, unanswered=unanswered)
        if answer is not None and answer.said is not None:
            return answer
        self._unanswered = True
        if answer is not None and answer.rejected is not None:
            self._rejected = answer.rejected
            smaller = answer.rejected.mtu
            if answer.rejected.kind == "size" and SMALL[len(self._target.address)] <= smaller < self._size:
                self._size = smaller  # pods are told the same, and send smaller ones
        return None

    async def _largest(self, passes: int, seconds: float) -> int:
        """The size of the largest packet that passes, known to be at least `passes`, by halving."""
        low, high = passes, self._size
        while high - low > 1:
            middle = (low + high) // 2
            answer = await self._ask(middle, seconds) or await self._ask(middle, seconds)
            low, high = (middle, high) if answer is not None else (low, middle)
        return low

    async def _lost(self) -> Evidence:
        target = self._target
        own, (host, said), (ping, port_refused) = await asyncio.gather(
            self._prober.loop(len(target.address), self._timing.answer), self._by_host(), self._underlay()
        )
        forwards = FORWARDS[len(target.address)]
        flags = said.flags if said is not None else forwards
        return self._evidence(
            rejected=self._rejected or (own.rejected if own is not None else None),
            forwards=own is not None and own.said is not None,
            host=host,
            seen=bool(flags & SEEN),
            peer_forwards=bool(flags & forwards),
            peer_device=not flags & NO_DEVICE,
            heard=self._prober.heard(target.address, self._since),
            ping=ping,
            port_refused=port_refused,
        )

    async def _by_host(self) -> tuple[Host, ProbeMessage | None]:
        """By the nodes' own way: what came of it, and what the peer said."""
        for _ in range(2):
            answer = await self._prober.ask_host(self._target.host, self._nonce, self._timing.answer)
            if answer is not None:
                return "refused" if answer.refused else "answered", answer.said
        return "silent", None

    async def _underlay(self) -> tuple[bool | None, bool]:
        """Whether the peer's node answers a ping, and whether it refuses what is sent to the tunnel's port."""
        address, port, seconds = self._target.underlay, self._way.port, self._timing.answer
        if not address:
            return None, False
        ping = underlay.answers_ping(address, seconds)
        if not port:
            return await ping, False
        pinged, refused = await asyncio.gather(ping, underlay.refuses(address, port, seconds))
        return pinged, refused

    async def _by_nodes_alone(self) -> Evidence:
        """Without the device: small packets between the nodes' own addresses, which meet no forwarding."""
        host, said = await self._by_host()
        if host != "silent":
            largest = self._size if said is not None else 0
            return self._evidence(device=False, host=host, largest=largest)
        ping, port_refused = await self._underlay()
        return self._evidence(device=False, host=host, ping=ping, port_refused=port_refused)

    def _passed(self, answer: ProbeAnswer) -> Evidence:
        return self._evidence(largest=self._size, seconds=answer.seconds)

    def _evidence(self, **seen: object) -> Evidence:
        return Evidence(target=self._target, way=self._way, size=self._size, **seen)  # type: ignore[arg-type]


async def _nothing() -> None:
    """Nothing is asked, and nothing comes."""
