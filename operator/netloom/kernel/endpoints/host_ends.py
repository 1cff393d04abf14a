"""What is known of pods' host ends, and wanted of them: their devices here, the routes to their addresses, the pods'
neighbours. Pure.

Nothing walks over all pods but where all endpoints are handed over, or all was read.
"""

import time
from collections.abc import Iterable

from netloom.cidr import Address, Cidr
from netloom.kernel.endpoints.adjusting import steps
from netloom.kernel.endpoints.alias import read_alias
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints
from netloom.kernel.endpoints.kept_sockets import KeptSockets
from netloom.kernel.endpoints.link_messages import End
from netloom.kernel.endpoints.rivals import RivalPodRoutes
from netloom.kernel.endpoints.row_messages import RouteKey
from netloom.kernel.endpoints.rows import Rows, index_of
from netloom.kernel.endpoints.unknown_devices import UnknownDevices
from netloom.kernel.endpoints.wiring import Made
from netloom.kernel.keeper.retries import Item, Retries


class HostEnds:
    """See the module. ends: host ends by their names. odd: those that are missing, or not as they should be, or not
    wanted. doomed: those that somebody else is deleting. retaining: host ends that no endpoint explains are left alone.
    """

    def __init__(self, *, retaining: bool = True) -> None:
        self.rows = Rows()
        self.ends: dict[str, End] = {}
        self.doomed: set[str] = set()
        self.desired = Endpoints()
        self.odd: set[str] = set()
        self._names: dict[int, str] = {}
        """Of the ends, by ifindex: the name that each should have."""
        self._young: dict[str, float] = {}
        """Host ends, and when they were made (monotonic seconds), until somebody changes them."""
        self._dropped: dict[str, Endpoint] = {}
        """Endpoints that are no longer wanted, by host ends that may be there yet: they are not retained."""
        self._cookies: dict[str, int] = {}
        """Of the network namespaces of the endpoints, by host ends, as their aliases said."""
        self._look: dict[str, int] = {}
        """Ends that are to be read again, and their ifindexes: an event tells how one was, which by now may be past."""
        self._unknown = UnknownDevices()
        self.kept_sockets = KeptSockets()
        self._rivals = RivalPodRoutes(self.rows)
        self._left_out = False
        """Ends that somebody gave another name, and that nobody wanted then."""
        self._retaining = retaining
        self._applied = False
        self._resync_due = True

    # ------------------------------------------------------------------------------------------- what is wanted

    def want(self, desired: Endpoints, retries: Retries) -> None:
        """Take over the endpoints: of the same object as before, those that were put or discarded."""
        touched = desired.take_touched()
        if desired is not self.desired or not self._applied:
            self.desired, self._applied = desired, True
            self._resync_due = self._resync_due or self._left_out
            retries.clear()
            self._judge_all()
            return
        for device in touched:
            retries.forget([("link", device), *self.rows.items(device)])
            self._judge(device)
            retries.forget(self.rows.items(device))

    def made(self, endpoint: Endpoint, made: Made) -> None:
        """This one was just made, and is wanted."""
        device, index = endpoint.device, made.host.ifindex
        heard, self._unknown = self._unknown, UnknownDevices()
        self._look.pop(device, None)
        if index in heard.gone:
            self._judge(device)
            return
        self._take(made.host)
        self._young[device] = time.monotonic()
        self.rows.wrote(device)
        if index in heard.edited or not heard.replaced.isdisjoint(map(Cidr.of, endpoint.addresses)):
            self._resync_due = True
        elif heard.differs(made.host):
            self._look[device] = index
        self._rivals.doubtful |= heard.foreign & set(map(Cidr.of, endpoint.addresses))

    def drop(self, endpoint: Endpoint) -> None:
        """If a host end of this one is there, or comes to light, it goes, whether all endpoints are known or not."""
        self._dropped[endpoint.device] = endpoint
        self._judge(endpoint.device)

    def doom(self, device: str) -> None:
        """This one is not wanted, no route leads to it, and somebody else deletes it."""
        end = self.ends.get(device)
        if end is not None:
            self.doomed.add(device)
        self._judge(device)
        if end is not None:
            self.rows.drop_pending(end.ifindex)

    def spare(self, devices: Iterable[str]) -> None:
        """Whoever was to delete these has done so, or has not been able to."""
        for device in devices:
            self.doomed.discard(device)
            end = self.ends.get(device)
            if end is not None:
                self._look[device] = end.ifindex
            self._judge(device)

    def routes_on(self, device: str) -> list[RouteKey]:
        """The routes that lead to a host end of which no endpoint is known. Walks over all."""
        end = self.ends.get(device)
        return self.rows.on(end.ifindex) if end is not None else []

    def owner_of(self, address: Address) -> Endpoint | None:
        """The endpoint that has this address."""
        return self.desired.get(self.rows.owners.get(Cidr.of(address), ""))

    def release_retained(self) -> None:
        """All endpoints are known: what none of them explains goes."""
        self._retaining = False
        for table in self.rows.tables.values():
            table.retain(set())
        self._judge_all()

    def count_retained(self) -> int:
        """Host ends that no endpoint explains, and that are retained."""
        return len(self._unexplained()) if self._retaining else 0

    def _unexplained(self) -> list[End]:
        return [
            end
            for name, end in self.ends.items()
            if self.desired.get(name) is None and name not in self.doomed and not self._is_dropped(name)
        ]

    def _is_dropped(self, device: str) -> bool:
        endpoint, end = self._dropped.get(device), self.ends.get(device)
        return endpoint is not None and end is not None and self.is_fit(endpoint, end)

    def pending(self) -> Iterable[Item]:
        """All that differs from the kernel."""
        yield from (("link", device) for device in self.odd)
        for kind, table in self.rows.tables.items():
            yield from ((kind, key) for key in table.pending)
        yield from (("route", key) for key in self._rivals.found)

    def count_pending(self) -> int:
        """Without a walk over them."""
        tables = sum(len(table.pending) for table in self.rows.tables.values())
        return len(self.odd) + tables + len(self._rivals.found)

    def whose(self, item: Item) -> str:
        """The pod."""
        kind, key = item
        if kind not in ("link", "address", "route", "neighbour"):
            return ""
        device = str(key) if kind == "link" else self._names.get(index_of(key), "")
        endpoint = self.desired.get(device)
        return (endpoint.pod or endpoint.container) if endpoint is not None else ""

    def stands(self, ifindex: int) -> bool:
        """Whether that is a host end that is up."""
        end = self.ends.get(self._names.get(ifindex, ""))
        return end is not None and end.ifindex == ifindex and end.up

    # -------------------------------------------------------------------------------------------------- judging

    def _judge_all(self) -> None:
        for device in {*self.ends, *(endpoint.device for endpoint in self.desired), *self.odd}:
            self._judge(device)

    def _judge(self, device: str) -> None:
        """What is to be done about one host end, and what has to stand on it."""
        endpoint, end = self.desired.get(device), self.ends.get(device)
        fit = end is not None and endpoint is not None and self.is_fit(endpoint, end)
        self.rows.want(device, endpoint, end.ifindex if end is not None and fit else 0)
        if endpoint is None:
            self._cookies.pop(device, None)
            self._young.pop(device, None)
            self.kept_sockets.close(device)
        elif fit and end is not None and (cookie := read_alias(end.alias).cookie):
            self._cookies[device] = cookie
        if endpoint is not None:
            self._dropped.pop(device, None)
            odd = not fit or end is None or any(True for _ in steps(endpoint, end))
        else:
            kept = self._retaining and not self._is_dropped(device)
            odd = end is not None and not kept and device not in self.doomed
        if odd:
            self.odd.add(device)
        else:
            self.odd.discard(device)

    def is_fit(self, endpoint: Endpoint, end: End) -> bool:
        """Whether it is one end of the endpoint's pair: what is made by somebody under the name is not."""
        ours = end.mac == endpoint.host_mac or read_alias(end.alias).identity == (
            endpoint.container,
            endpoint.interface,
        )
        return end.kind == "veth" and ours

    def _take(self, end: End) -> None:
        """A host end is there, like this."""
        device = self._names.get(end.ifindex, end.name)
        before = self.ends.get(device)
        if before is not None and before.ifindex != end.ifindex:
            self._forget(device)
            before = None
        self.ends[device], self._names[end.ifindex] = end, device
        self._follow(device, before or end, end)
        self._judge(device)

    def _forget(self, device: str) -> None:
        """A host end is gone, and what stood on it."""
        end = self.ends.pop(device, None)
        self.doomed.discard(device)
        if end is not None:
            self._dropped.pop(device, None)
            self._names.pop(end.ifindex, None)
            self.rows.lost(device, end.ifindex)
            self.rows.drop_pending(end.ifindex)
        self._judge(device)

    def _follow(self, device: str, before: End, end: End) -> None:
        """What the kernel has dropped, as an end is, or was for a moment, as it says."""
        if not end.up:
            self.rows.lost(device, end.ifindex)
        elif before.no_arp != end.no_arp:
            self.rows.lost(device, end.ifindex, neighbours_only=True)
        if end.disable_ipv6 is None or end.disable_ipv6:
            self.rows.lost(device, end.ifindex, version=6)
