"""The host side of all local pods as a part: their devices here, the routes to their addresses, the pods' neighbours.

Nothing walks over all pods but a resync. What an event says is taken over for one device; several losses come without
an event of their own, so the cause is followed: a device that goes down takes routes and neighbours along.

A deleted host end took the pod's end with it. It is made anew where the pod's network namespace can be entered.
"""

import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from netloom.kernel.endpoints import reader, remaking, row_messages
from netloom.kernel.endpoints.adjusting import do, read_again, steps
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, WiringFailed
from netloom.kernel.endpoints.host_ends import HostEnds
from netloom.kernel.endpoints.kept_sockets import leading_nowhere
from netloom.kernel.endpoints.link_messages import read_end
from netloom.kernel.endpoints.reader import EndpointsSeen, device_at
from netloom.kernel.endpoints.reaping import delete_ends
from netloom.kernel.endpoints.rivals import may_come_first
from netloom.kernel.endpoints.row_messages import METRIC
from netloom.kernel.endpoints.row_writer import RowWriter
from netloom.kernel.endpoints.rows import SurplusAddress, index_of
from netloom.kernel.endpoints.unknown_devices import UnknownDevices, is_wrong
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.table import Table
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import read_address, read_name
from netloom.kernel.netlink.neighbours import read_neighbour
from netloom.kernel.netlink.netconf import read_netconf
from netloom.kernel.ownership import ENDPOINTS

YOUNG_SECONDS = 10.0
"""For so long somebody may write a new device's switches without that being drift: udev does, by systemd-sysctl."""


class EndpointsPart(HostEnds, Part[Endpoints]):
    """See the module. was_read: all that is owned, once at least."""

    owns = ENDPOINTS
    state = ("dump", "pods' devices")
    groups = ("link", "neigh", "ipv4-route", "ipv6-route", "ipv4-addr", "ipv6-addr", "ipv4-netconf")
    hears_peers = False

    def __init__(self, *, retaining: bool = True) -> None:
        super().__init__(retaining=retaining)
        self.was_read = False
        hear = (
            (wire.RTM_NEWLINK, self._link),
            (wire.RTM_NEWADDR, self._address),
            (wire.RTM_NEWROUTE, self._route),
            (wire.RTM_NEWNEIGH, self._neighbour),
        )
        self._hear: dict[int, Callable[[int, int, bytes, int, int], None]] = {wire.RTM_NEWNETCONF: self._netconf}
        self._hear |= {kind + deleted: each for kind, each in hear for deleted in (0, 1)}
        self.kinds = frozenset(self._hear)
        self._stirred: set[int] = set()
        """Ends that were made or changed since events were read, by ifindex: what the kernel tells of them may be how
        they were in between, as down before up."""
        self._touched: set[Item] = set()
        self._found: set[Item] = set()
        self._writer = RowWriter(self.rows, self.stands, self.whose)

    # ------------------------------------------------------------------------------------------------- one pass

    @property
    def due(self) -> bool:
        """All is to be read, or one end."""
        return self._resync_due or bool(self._look)

    @property
    def retained(self) -> int:
        """Host ends that no endpoint explains."""
        return self.count_retained()

    @property
    def wants_a_pass(self) -> bool:
        """Whether something is to be read or asked, though no event may come any more."""
        return self.due or bool(self._rivals.doubtful)

    def doubt(self) -> None:
        """Everything is to be read again."""
        self._resync_due = True

    async def read(self, worker: Worker) -> bool:
        """Read all, or the ends that are in doubt."""
        whole, self._resync_due = self._resync_due, False
        look_at, self._look = self._look, {}
        self._unknown = UnknownDevices()  # of what is being made nothing was told yet: that is done between passes
        self._stirred.clear()
        if whole:
            self._load(await worker.call(reader.read_everything))
        elif look_at:
            for device, end in await worker.call(lambda commands: read_again(commands, look_at)):
                if end is not None:
                    self._take(end)
                else:
                    self._forget(device)
                if self.desired.get(device) is not None and not self._is_greeted(device):
                    self._touched.add(("link", device))
        return whole

    def _is_greeted(self, device: str) -> bool:
        """Whether a device that is new has got the switches that the node gives to all, once: nobody's drift."""
        if time.monotonic() - self._young.pop(device, float("-inf")) > YOUNG_SECONDS:
            return False
        endpoint, end = self.desired.get(device), self.ends.get(device)
        wrong = list(steps(endpoint, end)) if endpoint is not None and end is not None else []
        return bool(wrong) and all(step.inherited for step in wrong)

    def _load(self, reading: EndpointsSeen) -> None:
        known = set(self.pending())
        # One that was given another name while nobody listened is known again if it is wanted and its own is free.
        renamed = {reader.home_of(end): end for end in reading.ends if not self.owns.link(end.name)}
        self.ends = {end.name: end for end in reading.ends if self.owns.link(end.name)}
        wanted = {name for name in renamed if name not in self.ends and self.desired.get(name) is not None}
        self.ends |= {device: renamed[device] for device in wanted}
        self._names = {end.ifindex: device for device, end in self.ends.items()}
        self._left_out = bool(renamed.keys() - wanted)
        if self._left_out:
            reading = reader.of_ends(reading, self._names)
        self.doomed &= self.ends.keys()
        self._dropped = {device: each for device, each in self._dropped.items() if device in self.ends}
        self.rows.load(reading)
        self._judge_all()
        self._rivals.doubt()
        if self._retaining:
            self.rows.retain({end.ifindex for end in self._unexplained()})
        if self._applied and self.was_read:
            self._found |= set(self.pending()) - known
        self.was_read = True

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Make or change what is missing or different."""
        outcome = Outcome()
        if to_look_at := self.kept_sockets.take_to_look_at():
            for device in await worker.call(lambda _commands: leading_nowhere(to_look_at)):
                # If nobody else holds the namespace, it goes, and the device with it.
                self.kept_sockets.close(device)
        routes = self.rows.routes
        in_the_way = [key for key in routes.pending if key not in routes.desired and self.rows.in_the_way(key)]
        if in_the_way:
            await worker.submit(row_messages.encode_routes([(key, None, None) for key in in_the_way]))
            for key in in_the_way:
                routes.gone(key)
        for device in [device for device in self.odd if ("link", device) not in attempt.delayed]:
            endpoint = self.desired.get(device)
            if endpoint is not None:
                await self._put_right(worker, endpoint, outcome)
        self._judged(outcome, await self._writer.update(worker, attempt), attempt)
        outcome.refused += await self._rivals.look(worker, attempt, self.whose)
        return outcome

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Delete what is not wanted."""
        outcome = self._judged(Outcome(), await self._writer.remove(worker, attempt), attempt)
        if any(kind == "address" and keys for kind, keys in outcome.written):
            self._resync_due = True  # the kernel may have dropped routes with it, see `_address`
        names = [
            device
            for device in self.odd
            if self.desired.get(device) is None and device in self.ends and ("link", device) not in attempt.delayed
        ]
        if names:
            refused = await worker.call(lambda commands: delete_ends(commands, names))
            for name in names:
                if name in refused:
                    error = f"`ip link delete {name}`: {refused[name]}"
                    outcome.refused.append(RefusedEntry(("link", name), error, refused[name].errno))
                else:
                    self._forget(name)
                    outcome.written.append(("link", [name]))
        return outcome

    def _judged(self, outcome: Outcome, rows: Outcome, attempt: Attempt) -> Outcome:
        """A refusal that is new shows that what is known of the kernel may be wrong."""
        if any(refused.item not in attempt.failing for refused in rows.refused):
            self._resync_due = True
        outcome.written += rows.written
        outcome.refused += rows.refused
        return outcome

    async def _put_right(self, worker: Worker, endpoint: Endpoint, outcome: Outcome) -> None:
        device, item = endpoint.device, ("link", endpoint.device)
        end, cookie, kept = self.ends.get(device), self._cookies.get(device, 0), self.kept_sockets.to(device)
        if end is None or not self.is_fit(endpoint, end):
            try:
                made = await worker.call(lambda commands: remaking.remake(commands, endpoint, end, cookie, kept))
            except WiringFailed as error:
                if error.reason == "lost":  # the answer may come yet, and be taken for another
                    self.kept_sockets.close(device)
                outcome.refused.append(RefusedEntry(item, error.sentence, peer=endpoint.pod))
                return
            self._forget(device)
            self.made(endpoint, made)
            self._stirred.add(made.host.ifindex)
        else:
            wrong = list(steps(endpoint, end, cookie))
            after, refused = await worker.call(lambda commands: do(commands, end, wrong))
            self._stirred.add(end.ifindex)
            if after is None:
                self._forget(device)
            elif not refused or after != end:
                if any(step.flushes for step in wrong):
                    self.rows.lost(device, end.ifindex)
                self._take(after)
            if not refused and after is not None and (left := next(steps(endpoint, after, cookie), None)):
                if left in wrong:
                    refused = f"`{left.text}` had no effect"
                else:  # one thing has led to another
                    self._look[device] = after.ifindex
            if refused:
                outcome.refused.append(RefusedEntry(item, refused, peer=endpoint.pod))
                return
        outcome.written.append(("link", [device]))

    # --------------------------------------------------------------------------------------------------- events

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event."""
        self._hear[kind](kind, flags, buffer, start, end)

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """What is not as desired, though nobody here changed it."""
        touched, self._touched = self._touched, set()
        found, self._found = self._found, set()
        for item in touched:
            if self._is_pending(item):
                yield item, True
        for item in found - touched:
            if self._is_pending(item):
                yield item, False

    def later(self) -> float:
        """When to look at the sockets in pods."""
        return self.kept_sockets.later()

    def _is_pending(self, item: Item) -> bool:
        kind, key = item
        return key in self.odd if kind == "link" else key in self.rows.tables[kind].pending

    def _link(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        if buffer[start] != socket.AF_UNSPEC:
            return  # a bridge has lost a port, say
        ifindex, name = read_name(buffer, start, end)
        if ifindex not in self._names and not self.owns.link(name):
            return
        device = self._names.get(ifindex, name)
        known = self.ends.get(device)
        if known is not None and known.ifindex != ifindex:
            return
        if kind == wire.RTM_DELLINK:
            if known is None:
                self._unknown.gone.add(ifindex)
            self._forget(device)
            self._touched.add(("link", device))
        elif known is None:
            self._look[device] = ifindex
            self._unknown.links[ifindex] = buffer[start:end]  # one that is being made is told six times
        elif (seen := read_end(buffer, start, end)) is not None and seen != known:
            if ifindex in self._stirred:  # by us, or by somebody: what stands on it now has to be read
                self._resync_due = True
            else:
                self._follow(device, known, seen)
            self._look[device] = ifindex

    def _netconf(self, _kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        seen = read_netconf(buffer, start, end)
        if seen is None:
            return
        device = self._names.get(seen.ifindex)
        if device is None:
            self._unknown.switch(seen)
        elif is_wrong(seen):
            self._look[device] = seen.ifindex

    def _address(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        if device_at(buffer, start) not in self._names:
            self._unknown.edited.add(device_at(buffer, start))
            return
        seen = read_address(buffer, start, end)
        if seen is None:
            return
        key = SurplusAddress(seen.ifindex, seen.local)
        if kind == wire.RTM_DELADDR:
            self.rows.addresses.gone(key)
            self._resync_due = (
                True  # with a device's last IPv4 address the kernel drops all its IPv4 routes, in silence
            )
        else:
            self.rows.addresses.saw(key, "")
            self._retain_alike(self.rows.addresses, key)
            self._touched.add(("address", key))

    def _route(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        replaced = kind == wire.RTM_NEWROUTE and bool(flags & wire.REPLACE)
        seen = row_messages.read_route(buffer, start, end)
        if seen is not None and not seen.owned and may_come_first(seen):
            self._rivals.hear(seen)
            self._unknown.foreign.add(seen.key.prefix)
        if seen is None or not (seen.owned or replaced):
            return
        displaced = self.rows.displaced(seen.key) if replaced else None
        if replaced and displaced is None and (seen.key.metric, seen.key.tos) == (METRIC, 0):
            self._unknown.replaced.add(seen.key.prefix)
        if displaced is not None:
            self.rows.routes.gone(displaced)
            self._touched.add(("route", displaced))
        if not seen.owned:
            if replaced and seen.key in self.rows.routes.kernel:
                self.rows.routes.gone(seen.key)
                self._touched.add(("route", seen.key))
            return
        if seen.key.ifindex not in self._names:
            self._unknown.edited.add(seen.key.ifindex)
        if kind == wire.RTM_DELROUTE:
            self.rows.routes.gone(seen.key)
        else:
            self.rows.routes.saw(seen.key, seen.content)
            self._retain_alike(self.rows.routes, seen.key)
        self._touched.add(("route", seen.key))

    def _neighbour(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        index = device_at(buffer, start)
        seen = read_neighbour(buffer, start, end)
        if seen is None:
            return
        key, mac = seen.key, seen.mac
        if index not in self._names:
            if mac or kind == wire.RTM_DELNEIGH:  # others the kernel makes by itself
                self._unknown.edited.add(index)
            return
        table = self.rows.neighbours
        if kind == wire.RTM_DELNEIGH or (not mac and key not in table.desired):
            table.gone(key)
        else:
            table.saw(key, mac)
            self._retain_alike(table, key)
        self._touched.add(("neighbour", key))

    def _retain_alike(self, table: Table[Any, Any], key: Any) -> None:
        """What comes to a host end that is retained is left alone with it."""
        if (
            self._retaining
            and key not in table.desired
            and not (table is self.rows.routes and self.rows.in_the_way(key))
        ):
            name = self._names.get(index_of(key))
            if name is None or self.desired.get(name) is None:
                table.retain({*table.retained, key})
