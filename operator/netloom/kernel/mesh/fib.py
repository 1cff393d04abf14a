"""Which peers are on a network of this node, as the kernel's own routing decides, and through which device packets go.

The kernel is asked, not modelled: policy rules, metrics and other tables have their say. It is asked again about the
addresses that a change can concern: a changed route for those that it covers, a changed policy rule for all, a device
that came or went for those behind it. A peer that does not answer on its network (a failed neighbour) is not on it. No
I/O here: who reads `due` asks, and says what the answers were.

That a route has no gateway does not make a peer's packets arrive. A default route on a device is no network: who
answers there for any address (proxy ARP) knows nothing of pods. On a narrow device (point-to-point, or without ARP)
nobody is asked for a gateway's address: all goes to the other end, so the peer has to be that, with a route of its own.
What leads into a VPN (WireGuard, a program behind a tun device) is let through there by its destination, so pods'
packets are mostly not; it counts where nothing else leads to the peer.
"""

from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence

import msgspec

from netloom.cidr import Address, Cidr
from netloom.cidr.interval_set import span


class FibResult(msgspec.Struct, frozen=True, gc=False):
    """Where packets to an address go first: through which device (ifindex; 0: nowhere), and whether the address is
    itself on that device's network (`direct`), or behind a gateway or a default route. `exact`: by a route to this
    address alone. source: from which address of this node; empty: from none."""

    outgoing: int = 0
    direct: bool = False
    exact: bool = False
    source: Address = b""


class Narrow(msgspec.Struct, frozen=True):
    """A device that is point-to-point, or has no ARP. `choosy`: it lets packets through by their destination."""

    choosy: bool = False


_NOWHERE = FibResult()
_WIDE = Narrow()


class FibLookups:
    """What is known of the FIB's answer for each peer's address, and what has to be asked.

    due:     addresses to ask the kernel about.
    changed: addresses about which the answer to `device` may have changed.
    """

    def __init__(self) -> None:
        self.due: set[Address] = set()
        self.changed: set[Address] = set()
        self._wanted: dict[Address, int] = {}
        self._results: dict[Address, FibResult] = {}
        self._outgoing: Counter[int] = Counter()
        self._sources: Counter[tuple[int, Address]] = Counter()
        self._failed: set[tuple[int, Address]] = set()
        self._stopped: set[int] = set()
        self._narrow: dict[int, Narrow] = {}
        self._sorted: dict[int, list[Address]] | None = None

    @property
    def outgoing(self) -> frozenset[int]:
        """ifindexes of the devices that packets to peers leave by."""
        return frozenset(self._outgoing)

    def sources(self, *, without: Container[int]) -> set[Address]:
        """IPv4 addresses that packets to peers are sent from, by devices but these."""
        return {source for ifindex, source in self._sources if len(source) == 4 and ifindex not in without}

    def behind(self, ifindex: int) -> list[tuple[Address, FibResult]]:
        """The peers' addresses to which packets leave by this device, by a walk over all peers."""
        return [(address, result) for address, result in self._results.items() if result.outgoing == ifindex]

    def count_behind(self, ifindex: int) -> int:
        """How many these are."""
        return self._outgoing[ifindex]

    def is_asked(self, address: Address) -> bool:
        """Whether a peer has this address."""
        return address in self._wanted

    @property
    def silent(self) -> list[tuple[int, Address]]:
        """(ifindex, address) of those that do not answer on their network, though the device carries."""
        return [
            (ifindex, address)
            for ifindex, address in self._failed
            if ifindex not in self._stopped and self._is_on(ifindex, self._results.get(address, _NOWHERE))
        ]

    def want(self, address: Address) -> None:
        """A peer has this address."""
        count = self._wanted[address] = self._wanted.get(address, 0) + 1
        if count == 1:
            self.due.add(address)
            self._sorted = None

    def unwant(self, address: Address) -> None:
        """One peer less has it."""
        self._wanted[address] -= 1
        if not self._wanted[address]:
            del self._wanted[address]
            if self._failed:
                self._failed = {key for key in self._failed if key[1] != address}
            self.due.discard(address)
            self.changed.discard(address)
            self._sorted = None
            self._count(self._results.pop(address, _NOWHERE), -1)

    def device(self, address: Address, *, sure: bool = True) -> int:
        """The ifindex of the device on whose network the address is; 0 if on none, or if it cannot be reached there.
        One that does not answer, or behind a choosy device, counts as such where it has to be `sure`."""
        result = self._results.get(address, _NOWHERE)
        outgoing = result.outgoing
        if not self._is_on(outgoing, result) or outgoing in self._stopped:
            return 0
        if sure and ((outgoing, address) in self._failed or self._narrow.get(outgoing, _WIDE).choosy):
            return 0
        return outgoing

    def _is_on(self, ifindex: int, result: FibResult) -> bool:
        return result.direct and result.outgoing == ifindex and (result.exact or ifindex not in self._narrow)

    def answered_all(self, answers: Sequence[tuple[Address, FibResult]]) -> None:
        """The kernel said so."""
        self.due.difference_update([address for address, _result in answers])
        self.due = self.due or set()  # an empty set keeps its room, 0.5 MiB of 5,000
        results, wanted = self._results, self._wanted
        moved: dict[tuple[FibResult, FibResult], int] = {}
        for address, result in answers:
            before = results.get(address, _NOWHERE)
            if before is not result and before != result and address in wanted:
                results[address] = result
                self.changed.add(address)
                moved[before, result] = moved.get((before, result), 0) + 1
        for (before, result), number in moved.items():
            self._count(result, number)
            self._count(before, -number)

    def route_changed(self, destination: Address, length: int) -> None:
        """Somebody's route to this prefix came, changed or went."""
        if self._sorted is None:
            self._sorted = {4: [], 16: []}
            for address in sorted(self._wanted):
                self._sorted[len(address)].append(address)
        addresses = self._sorted[len(destination)]
        start, end = span(addresses, Cidr.of(destination, length))
        self.due.update(addresses[start:end])

    def rules_changed(self) -> None:
        """Somebody changed the rules by which routes are chosen."""
        self.due.update(self._wanted)

    def link_changed(self, ifindex: int, *, running: bool) -> bool:
        """The device's state, as a link event or a dump shows it. Whether it is another than before."""
        if running != (ifindex in self._stopped):
            return False
        self._stopped ^= {ifindex}
        self.changed.update(self.device_changed(ifindex))
        return True

    def device_changed(self, ifindex: int) -> list[Address]:
        """Something about the device itself is different: the kernel may have dropped routes by it without a word.
        The peers' addresses behind it."""
        if not self._outgoing[ifindex]:
            return []  # as a pod's: no walk over all peers
        behind = [address for address, result in self._results.items() if result.outgoing == ifindex]
        self.due.update(behind)
        return behind

    def set_stopped(self, ifindexes: Collection[int]) -> None:
        """All devices that are down or without a carrier, as a dump shows them."""
        for ifindex in self._stopped - set(ifindexes):
            self.link_changed(ifindex, running=True)
        for ifindex in ifindexes:
            self.link_changed(ifindex, running=False)

    def set_narrow(self, devices: Mapping[int, Narrow]) -> None:
        """All devices that are narrow."""
        for ifindex in self._narrow.keys() | devices.keys():
            if self._narrow.get(ifindex) != devices.get(ifindex):
                self.changed.update(self.device_changed(ifindex))
        self._narrow = dict(devices)

    def neighbour_changed(self, ifindex: int, address: Address, *, failed: bool) -> None:
        """Whether the address answered on the network of the device."""
        key = (ifindex, address)
        if address in self._wanted and failed != (key in self._failed):
            self._failed ^= {key}
            self.changed.add(address)
            self.due.add(address)

    def take_changed(self) -> set[Address]:
        """Addresses about which the answer to `device` may have changed since the last call."""
        changed, self.changed = self.changed, set()
        return changed

    def _count(self, result: FibResult, by: int) -> None:
        if not result.outgoing:
            return
        self._outgoing[result.outgoing] += by
        if not self._outgoing[result.outgoing]:
            del self._outgoing[result.outgoing]
        sending = result.outgoing, result.source
        self._sources[sending] += by
        if not self._sources[sending]:
            del self._sources[sending]
