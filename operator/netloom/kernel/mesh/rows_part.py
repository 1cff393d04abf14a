"""The rows of the mesh as a part: nexthops, neighbours and routes, and what the FIB says of the peers.

Several losses come without an event of their own, so the cause is followed: a deleted nexthop takes its routes with
it, and only the nexthop is announced; a device that goes down or away takes nexthops, routes and neighbours, and only
link and neighbour events are sent; one that loses its carrier takes its nexthops.

Before a row is written, what the node itself lives by is up to date with all events that have come.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from msgspec.structs import replace

from netloom.cidr import Address
from netloom.kernel.keeper.part import Attempt, Outcome, Part, Worker
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.mesh import reader
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.holes import Hole, hole_of
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.node_network import SeenNodeNetwork, read_node_route
from netloom.kernel.mesh.row_messages import encode_holes, probe_neighbour
from netloom.kernel.mesh.row_readers import (
    read_body,
    read_destination,
    read_foreign_route,
    read_nexthop,
    read_rival_prefix,
    read_route,
    route_is_ours,
    route_reader,
)
from netloom.kernel.mesh.rows import UNREACHABLE, OddRoute, RouteKey, SeenRoute
from netloom.kernel.mesh.withheld import cutting_off
from netloom.kernel.mesh.writer import Writer
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import is_endpoint, read_address, read_link
from netloom.kernel.netlink.neighbours import read_neighbour
from netloom.kernel.netlink.sockets import BATCH, AnswerLost
from netloom.kernel.ownership import DEVICE_PREFIX, MESH

PROBE_SECONDS = 3.0
"""Between questions to peers that do not answer on their network: as often as the kernel asks when it sends to them.
It does not send, their routes lead elsewhere, and two nodes that a switch kept apart would never meet again."""

MESH_STATE: Item = ("dump", "state of the kernel")


class MeshRows(Part[Desired]):
    """See the module. `mesh` holds the tables; what the rows stand on is told to it by whoever keeps the devices."""

    owns = MESH
    state = MESH_STATE
    groups = (
        "neigh", "ipv4-route", "ipv6-route", "nexthop", "ipv4-rule", "ipv6-rule", "link", "ipv4-addr", "ipv6-addr"
    )  # fmt: skip

    def __init__(self, mesh: Mesh, *, retain_unknown: bool) -> None:
        self.mesh = mesh
        self.reading_seconds = 0.0
        hear = (
            (wire.RTM_NEWROUTE, self._route),
            (wire.RTM_NEWNEIGH, self._neighbour),
            (wire.RTM_NEWNEXTHOP, self._nexthop),
            (wire.RTM_NEWLINK, self._link),
            (wire.RTM_NEWADDR, self._address),
            (wire.RTM_NEWRULE, self._rule),
        )
        self._hear = {kind + deleted: each for kind, each in hear for deleted in (0, 1)}
        """By message type: RTM_DELROUTE is behind RTM_NEWROUTE, and so with the others."""
        self.kinds = frozenset(self._hear)
        self._retaining = retain_unknown
        self._desired = Desired()
        self._applied = False
        self._late = False
        """A whole desired state is still to be taken over: there was no device yet, and all of it would be worked out
        twice."""
        self._resync_due = True
        self._probed_at = 0.0
        self._touched: set[Item] = set()
        self._found: list[Item] = []
        self._lost_nexthops: set[int] = set()
        self._writer = Writer(mesh)
        self._read_own = route_reader().read
        self.node_network = SeenNodeNetwork()

    # ------------------------------------------------------------------------------------------- what is wanted

    def want(self, desired: Desired, retries: Retries) -> None:
        """Take over the peers: of the same object as before, those that its journal names."""
        touched = desired.take_touched()
        mesh, node = self.mesh, desired.node
        mesh.holes.set_rules(node.holes if node is not None else None)
        if node is not None:
            mesh.set_device_state(replace(mesh.device_state, vni=node.vni, ipv6=node.ipv6, strict=node.strict))
            self.node_network.know(node.cidrs, (node.local, *node.claimed))
        self._look_around()
        if desired is not self._desired or not self._applied:
            self._desired, self._applied, self._late = desired, True, True
            retries.clear()
            if mesh.device_state.tunnels or mesh.peers:
                self._take_over()
            return
        self._take_over()
        for name in touched:
            retries.forget(mesh.items_of(name))
            peer = desired.peers.get(name)
            mesh.set_further(name, desired.further.get(name))
            if peer is None:
                mesh.remove_peer(name)
            else:
                mesh.set_peers((peer,))
            retries.forget(mesh.items_of(name))

    def _take_over(self) -> None:
        if self._late:
            self._late = False
            self.mesh.replace_peers(self._desired)
            if self._retaining:
                self._retain(self.mesh.routes.kernel)

    def pending(self) -> Iterable[Item]:
        """All that differs from the kernel."""
        return self.mesh.pending()

    def count_pending(self) -> int:
        """Without a walk over them."""
        return self._writer.unanswered + sum(len(table.pending) for table in self.mesh.tables.values())

    def whose(self, item: Item) -> str:
        """By the peers as they are."""
        kind, key = item
        return self.mesh.peer_of(kind, key) if kind in self.mesh.tables else ""

    @property
    def retained(self) -> int:
        """Routes from an earlier life that no peer explains, and that are retained."""
        return len(self.mesh.routes.retained)

    def release_retained(self) -> None:
        """All peers are known: what none of them explains goes."""
        self._retaining = False
        self.mesh.release_retained()

    def _retain(self, among: Collection[RouteKey]) -> None:
        self.mesh.retain_unknown(among, self._desired.node.addresses if self._desired.node else ())

    # ------------------------------------------------------------------------------------------------- one pass

    @property
    def due(self) -> bool:
        """Rows are to be read, or the FIB to be asked."""
        around = self.node_network.due or self.node_network.fresh
        return bool(self._resync_due or around or self.mesh.fib.due or self.mesh.fib.changed)

    def doubt(self) -> None:
        """Everything is to be read again."""
        self._resync_due = self.node_network.due = True

    async def read(self, worker: Worker) -> bool:
        """Ask the FIB what is not known, and read all rows if they are in doubt."""
        mesh = self.mesh
        self._take_over()  # the devices have had their turn
        if self.node_network.due:
            await worker.call(lambda commands: reader.load_node_network(commands, self.node_network))
        self._look_around()
        if mesh.natives:
            await self._look_up(worker)
        mesh.reached(mesh.fib.take_changed())
        whole = self._resync_due
        if whole:
            await self._resync(worker)
        mesh.make_way()
        if self._retaining:
            self._retain(mesh.routes.retained)
        return whole

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Write what is missing or different."""
        self._sort_out()
        outcome = await self._writer.update(worker, attempt)
        self.node_network.overwritten(key for kind, keys in outcome.written if kind == "route" for key in keys)
        self._resync_due = self._resync_due or self._writer.appended
        # Where all go through tunnels, the FIB decides nothing but the MTU, and rows need not wait for it.
        await self._look_up(worker)
        if self.later() <= time.monotonic():
            await self._probe(worker)
        return self._judged(outcome, attempt)

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Delete what is not wanted."""
        outcome = self._judged(await self._writer.remove(worker, attempt), attempt)
        if self.mesh.rivals.crowded:
            keys = (key for _, written in outcome.written for key in written)
            self._resync_due = self._resync_due or any(isinstance(key, OddRoute) and key.vague for key in keys)
        if not self.due:
            self._retaining = self._retaining and bool(self.retained)
        return outcome

    def _judged(self, outcome: Outcome, attempt: Attempt) -> Outcome:
        """A refusal that is new shows that what is known of the kernel may be wrong."""
        if any(refused.item not in attempt.failing for refused in outcome.refused):
            self._resync_due = True
        return outcome

    def _look_around(self) -> None:
        """Decide again what may be routed, if the node lives by something else than before."""
        if self.node_network.fresh:
            self.mesh.look_around(self.node_network.current())
            self.mesh.fib.set_narrow(self.node_network.narrow)

    async def free_node(self, worker: Worker, servers: Mapping[Address, str]) -> list[RouteKey | Hole]:
        """Addresses that the node cannot do without are known (each with what it is). While nothing is wanted yet,
        remove the routes of an earlier life that may keep it from learning what is. Returns those."""
        node_network = self.node_network
        node_network.know(node_network.cidrs, node_network.claimed, servers)
        if self._applied:
            return []
        if node_network.due:
            await worker.call(lambda commands: reader.load_node_network(commands, node_network))
        self._look_around()
        mesh = self.mesh
        keys = cutting_off(mesh.withheld.lifelines, mesh.routes.kernel, mesh.nexthops.kernel)
        await self._writer.delete_routes(worker, keys)
        holes = [hole for hole in mesh.holes.table.kernel if mesh.withheld.lifelines.holds_point(hole.prefix)]
        if holes:
            await worker.submit(encode_holes([(hole, None, UNREACHABLE) for hole in holes]))
            for hole in holes:
                mesh.holes.table.gone(hole)
        return [*keys, *holes]

    def _sort_out(self) -> None:
        """What was read before it was known which routes are wanted."""
        if self._applied:
            self.mesh.rivals.judge()
            self.mesh.rivals.sort_out()

    async def _look_up(self, worker: Worker) -> None:
        """Ask the kernel where packets go to the peers about which that is not known (any more)."""
        fib = self.mesh.fib
        if fib.due:
            addresses = list(fib.due)
            fib.answered_all(await worker.call(lambda commands: reader.fib_lookups(commands, addresses)))

    async def _resync(self, worker: Worker) -> None:
        """Read all that is owned in the kernel, and note what of it somebody changed, as far as no event told."""
        self._resync_due = False
        mesh, began = self.mesh, time.monotonic()
        ifindexes = list(mesh.device_state.tunnels.values())
        nexthops = await worker.call(reader.nexthops)
        neighbours = await worker.call(lambda commands: reader.neighbours(commands, ifindexes))
        concerns = mesh.rivals.concerns
        routes = await worker.call(lambda commands: reader.routes(commands, concerns))
        self.reading_seconds += time.monotonic() - began
        known = {kind: table.pending for kind, table in mesh.tables.items()}  # loading makes new sets
        mesh.seen.load(nexthops, neighbours, routes.ours, routes.foreign)
        self._sort_out()
        if self._applied:
            for kind, table in mesh.tables.items():
                self._found += [(kind, key) for key in table.pending - known[kind]]

    def later(self) -> float:
        """When peers that do not answer are to be probed."""
        return self._probed_at + PROBE_SECONDS if self.mesh.natives and self.mesh.fib.silent else float("inf")

    async def _probe(self, worker: Worker) -> None:
        """Ask again for peers that did not answer; if one does now, an event says so."""
        self._probed_at = time.monotonic()
        silent = self.mesh.fib.silent
        for at in range(0, len(silent), BATCH):
            with suppress(AnswerLost):
                await worker.submit(
                    [probe_neighbour(number, *each) for number, each in enumerate(silent[at : at + BATCH])]
                )

    # --------------------------------------------------------------------------------------------------- events

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event."""
        if kind != wire.RTM_DELNEXTHOP:
            self._forget_nexthops()
        self._hear[kind](kind, flags, buffer, start, end)

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """Rows that are not as desired, though nobody here changed them."""
        self._forget_nexthops()
        touched, self._touched = self._touched, set()
        found, self._found = self._found, []
        for kind, key in touched:
            if key in self.mesh.tables[kind].pending:
                yield (kind, key), not self._resync_due or isinstance(key, OddRoute)
        for item in found:
            yield item, False

    def _forget_nexthops(self) -> None:
        """Deleted nexthops come in thousands, and each time all that is pending has to be walked."""
        if self._lost_nexthops:
            self.mesh.seen.lost_nexthops(self._lost_nexthops)
            self._lost_nexthops = set()

    def _route(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        gone, replaced = kind == wire.RTM_DELROUTE, bool(flags & wire.REPLACE)
        if route_is_ours(buffer, start):
            seen = self._read_own(buffer, start, end)
            if seen is None:
                return
            if not seen.owned:
                if hole := hole_of(seen):
                    self.mesh.holes.saw(hole, None if gone else seen.content)
                return  # else another part's
            key = seen.key
            if key in self.mesh.rivals.crowded and (gone or replaced):
                self._resync_due = True  # of which of them this was told, is not
            elif not gone and self.mesh.seen.is_second(key, flags):
                key = self.mesh.rivals.saw_second(replace(seen, body=read_body(buffer, start, end)))
                self._touched.add(("route", key))
                return
        else:
            self._around(buffer, start, end, gone=gone, replaced=replaced)
            seen = read_route(buffer, start, end)
            if seen is None:
                return
            self._rival(seen, buffer, start, end, gone=gone, flags=flags)
        if self.mesh.seen.lost_route(seen) if gone else self.mesh.seen.saw_route(seen, replaced=replaced):
            self._touched.add(("route", seen.key))

    def _around(self, buffer: bytes, start: int, end: int, *, gone: bool, replaced: bool) -> None:
        """A foreign route, in whatever table, by which the node may reach others."""
        route = read_node_route(buffer, start, end)
        if route is not None:
            taken = replaced and not gone
            self.node_network.saw_route(route, gone=gone, replaced=taken)
            if taken and self.mesh.rivals.knows(route.destination):
                self.node_network.due = True  # it may have been another's, and ours is still there
        destination = read_destination(buffer, start, end)
        if destination is not None:
            self.mesh.fib.route_changed(*destination)

    def _rival(self, seen: SeenRoute, buffer: bytes, start: int, end: int, *, gone: bool, flags: int) -> None:
        """A foreign route that may come before one of ours."""
        rivals, prefix = self.mesh.rivals, read_rival_prefix(buffer, start, end)
        if prefix is None or not rivals.concerns(prefix):
            return
        if flags & wire.REPLACE and not gone and seen.key in self.mesh.routes.kernel:
            # Ours was replaced, if no other was there to be.
            self._resync_due = self._resync_due or rivals.knows(prefix)
            return
        route = read_foreign_route(buffer, start, end, behind=bool(flags & wire.APPEND))
        if not gone:
            rivals.saw_foreign(route, replaced=bool(flags & wire.REPLACE))
        elif not rivals.lost_foreign(route):
            self._resync_due = True

    def _neighbour(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        seen = read_neighbour(buffer, start, end)
        if seen is None:
            return
        if not self.mesh.is_tunnel(seen.ifindex):
            failed = kind == wire.RTM_NEWNEIGH and seen.failed
            self.mesh.fib.neighbour_changed(seen.ifindex, seen.address, failed=failed)
            return
        deleted = kind == wire.RTM_DELNEIGH
        if self.mesh.seen.lost_neighbour(seen.key) if deleted else self.mesh.seen.saw_neighbour(seen.key, seen.mac):
            self._touched.add(("neighbour", seen.key))

    def _nexthop(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        seen = read_nexthop(buffer, start, end)
        if kind == wire.RTM_DELNEXTHOP:
            self._lost_nexthops.add(seen.id)
            self._touched.add(("nexthop", seen.id))
        elif self.mesh.seen.saw_nexthop(seen):
            self._touched.add(("nexthop", seen.id))

    def _link(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        link = None if is_endpoint(buffer, start, end) else read_link(buffer, start, end)
        if link is None:
            return
        self.node_network.saw_link(link, gone=kind == wire.RTM_DELLINK)
        if self.mesh.is_tunnel(link.ifindex):
            if kind == wire.RTM_DELLINK or not link.running:
                self._resync_due = True
        elif not link.name.startswith(DEVICE_PREFIX):
            running = kind == wire.RTM_NEWLINK and link.running
            changed = self.mesh.fib.link_changed(link.ifindex, running=running)
            if not running and (
                (changed and self.mesh.stands_on(link.ifindex)) or self.mesh.rivals.go_by(link.ifindex)
            ):
                self._resync_due = True

    def _address(self, kind: int, _flags: int, buffer: bytes, start: int, end: int) -> None:
        seen, node = read_address(buffer, start, end), self._desired.node
        if seen is not None and not self.mesh.is_tunnel(seen.ifindex):
            self.node_network.saw_address(seen, gone=kind == wire.RTM_DELADDR)
        own = seen is None or self.mesh.is_tunnel(seen.ifindex) or (node and seen.local.address == node.local)
        if seen is not None and not own:
            self.mesh.fib.device_changed(seen.ifindex)

    def _rule(self, _kind: int, _flags: int, _buffer: bytes, _start: int, _end: int) -> None:
        self.mesh.fib.rules_changed()
