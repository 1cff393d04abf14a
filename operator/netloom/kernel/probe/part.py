"""The device of the probe and the routes to its addresses, as a part. Rare and short: read anew each time.

The device stands for a pod, and holds no address: one that somebody put on it would take a pod's packets in. What it is
asked by is the last address of a pod CIDR of the node, which no IPAM gives to a pod. The routes to these are in table
`local`, in front of what else may be there: a bridge that holds the CIDR makes its last IPv4 address the broadcast
address in that table, which the kernel looks into before all others.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
import structlog

from netloom.cidr import Address, format_address
from netloom.kernel import sysctl
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.netlink import links, wire
from netloom.kernel.netlink.links import Link, LocalAddress, is_endpoint, read_address, read_link
from netloom.kernel.netlink.messages import AddressMessage, LinkMessage, RouteMessage, decode, encode
from netloom.kernel.netlink.netconf import DEFAULT, read_netconf
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all, read_one
from netloom.kernel.netlink.wire import RT_TABLE_LOCAL
from netloom.kernel.ownership import PROBE, ROUTE_PROTOCOL
from netloom.kernel.probe import tun

log = structlog.get_logger(__name__)

DEVICE = PROBE.links[0]
MTU = 65535
"""Bytes: what arrives is not to be refused by this device."""


class ProbeNode(msgspec.Struct, frozen=True):
    """What is wanted: the addresses that stand for a pod of this node, at most one of each family; none: no device."""

    addresses: tuple[Address, ...] = ()


class ProbeStep(msgspec.Struct, frozen=True):
    """One step: as `ip` would say it, and its message; without one, the device is opened."""

    kind: str
    key: str
    text: str
    message: bytes = b""

    @property
    def item(self) -> Item:
        """By which it is known."""
        return self.kind, self.key


class ProbeFound(msgspec.Struct, frozen=True):
    """What the kernel holds of ours."""

    link: Link | None = None
    routes: frozenset[Address] = frozenset()
    addresses: tuple[LocalAddress, ...] = ()


class ProbeDevice(Part[ProbeNode]):
    """See the module. descriptor: of the device while it is open, by this process; lacking: why it cannot be, as a
    sentence, which is no failure: the check does with less then. `moved` is called after either changed."""

    owns = PROBE
    state = ("dump", "the probe's device")
    groups = ("link", "ipv4-addr", "ipv6-addr", "ipv4-netconf")
    due = True
    kinds = frozenset((wire.RTM_NEWLINK, wire.RTM_DELLINK, wire.RTM_NEWADDR, wire.RTM_NEWNETCONF))

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self.lacking = ""
        self.moved: Callable[[], None] = lambda: None
        self._node = ProbeNode()
        self._ifindex = 0
        self._expected = False
        self._undone: frozenset[Item] = frozenset()  # another one with each change: reports are made beside the thread

    def want(self, desired: ProbeNode, retries: Retries) -> None:
        """Take over the addresses."""
        if desired != self._node:
            self._node = desired
            self.due = self._expected = True

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Whether somebody changed the device, or whether it is to forward."""
        if self.due:
            return
        if kind == wire.RTM_NEWNETCONF:
            switch = read_netconf(buffer, start, end)
            known = (DEFAULT, self._ifindex)
            self.due = switch is not None and switch.forwarding is not None and switch.ifindex in known
        elif kind == wire.RTM_NEWADDR:
            seen = read_address(buffer, start, end)
            self.due = seen is not None and seen.ifindex == self._ifindex
        else:
            link = None if is_endpoint(buffer, start, end) else read_link(buffer, start, end)
            self.due = link is not None and (link.ifindex == self._ifindex or self.owns.link(link.name))

    def doubt(self) -> None:
        """All is to be looked at again."""
        self.due = True

    def pending(self) -> Iterable[Item]:
        """What could not be done, or has to wait."""
        return self._undone

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Make what is missing."""
        if not self.due and self._undone <= attempt.delayed:
            return Outcome()
        self.due = False
        if self.descriptor is not None and not await worker.call(self._holds):
            self.close()
        before = self.descriptor, self.lacking
        outcome = await worker.call(lambda commands: self._work(commands, attempt))
        if (self.descriptor, self.lacking) != before:
            self.moved()
        return outcome

    def close(self) -> None:
        """The device stays, and what is routed to it is dropped."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            self.moved()  # who reads it, ends to
            os.close(descriptor)

    def plan(self, commands: CommandSocket, node: ProbeNode) -> list[PlannedChange]:
        """What would be changed."""
        changes = list(changes_to(look(commands), node))
        return [PlannedChange(f"ip {change.text}", "the probe's device") for change in changes]

    # ------------------------------------------------------------------------------------------- in the thread

    def _work(self, commands: CommandSocket, attempt: Attempt) -> Outcome:
        done: list[Item] = []
        refused: list[RefusedEntry] = []
        self._undone = frozenset()
        found = look(commands)
        if self._node.addresses and self.descriptor is None:
            self._open(done, there=found.link is not None)
            found = look(commands)
        self._ifindex = found.link.ifindex if found.link is not None else 0
        if self.descriptor is not None or not self._node.addresses:
            self._switch(found, done, refused)
            for change in changes_to(found, self._node):
                self._do(commands, change, attempt, done, refused)
            if found.addresses:  # the last one of a device takes all routes of its family along, and no event tells us
                for change in changes_to(look(commands), self._node):
                    self._do(commands, change, attempt, done, refused)
        drift, self._expected = not self._expected, False
        return Outcome([(kind, [key]) for kind, key in done], done if drift else [], refused)

    def _holds(self, commands: CommandSocket) -> bool:
        """Whether the descriptor is wanted, and that of the device that is there; of one that was deleted it is good
        for nothing. One that was renamed goes: under that name nobody would know whose it is."""
        assert self.descriptor is not None
        try:
            if tun.name_of(self.descriptor) != DEVICE:
                tun.give_up(self.descriptor)
                return False
            there = look(commands).link is not None
        except OSError:
            return False
        return there and bool(self._node.addresses)

    def _open(self, done: list[Item], *, there: bool) -> None:
        try:
            self.descriptor = tun.open_tun(DEVICE)
        except OSError as error:
            lacking = tun.explain(error)
            if lacking != self.lacking:
                log.warning("the check does without a device of its own", why=lacking)
            self.lacking = lacking
            return
        self.lacking = ""
        if not there:
            done.append(("link", DEVICE))
            log.info("device changed", change=f"ip tuntap add dev {DEVICE} mode tun")

    def _switch(self, found: ProbeFound, done: list[Item], refused: list[RefusedEntry]) -> None:
        """As of a pod's device that is made now: it forwards if those that are new do."""
        if found.link is None or not self._node.addresses:
            return
        wanted = {}
        with suppress(OSError):
            wanted[f"net/ipv4/conf/{DEVICE}/forwarding"] = sysctl.read("net/ipv4/conf/default/forwarding")
        if any(len(address) == 16 for address in self._node.addresses):
            wanted[f"net/ipv6/conf/{DEVICE}/disable_ipv6"] = "0"
        for name, value in wanted.items():
            item: Item = ("sysctl", name)
            try:
                if sysctl.read(name) != value:
                    (sysctl.ROOT / name).write_text(value, encoding="ascii")
                    done.append(item)
            except OSError as error:
                self._undone |= {item}
                refused.append(RefusedEntry(item, f"cannot set {name} to {value}: {error}", error.errno or 0))

    def _do(
        self,
        commands: CommandSocket,
        change: ProbeStep,
        attempt: Attempt,
        done: list[Item],
        refused: list[RefusedEntry],
    ) -> None:
        if change.item in attempt.delayed or change.item in self._undone:
            self._undone |= {change.item}
            return
        refusal = commands.execute([change.message]).get(0)
        if refusal is None:
            log.info("device changed", change=f"ip {change.text}")
            done.append(change.item)
        else:
            self._undone |= {change.item}
            refused.append(RefusedEntry(change.item, f"`ip {change.text}`: {refusal}", refusal.errno))


def look(commands: CommandSocket) -> ProbeFound:
    """What there is of the probe's in the kernel. Raises RefusedError, OSError."""
    link = None
    with suppress(RefusedError):
        link = read_one(commands, encode(LinkMessage, wire.RTM_GETLINK, 0, {}, ifname=DEVICE), read_link)
    if link is None:
        return ProbeFound()
    routes = (read_all(commands, _dump(family), _address_on(link.ifindex)) for family in wire.SIZES)
    known = frozenset(address for each in routes for address in each)
    addresses = read_all(commands, encode(AddressMessage, wire.RTM_GETADDR, 0, {"index": link.ifindex}), read_address)
    return ProbeFound(link, known, tuple(each.local for each in addresses if each.ifindex == link.ifindex))


def changes_to(found: ProbeFound, node: ProbeNode) -> Iterable[ProbeStep]:
    """What is to be done, in its order."""
    link = found.link
    if not node.addresses:
        if link is not None:
            yield ProbeStep("link", DEVICE, f"link delete {DEVICE}", links.delete_link(link.ifindex))
        return
    if link is None:
        yield ProbeStep("link", DEVICE, f"tuntap add dev {DEVICE} mode tun")
    ifindex = link.ifindex if link is not None else 0
    if link is None or link.generates_addresses:
        message = links.set_no_generated_addresses(ifindex)
        yield ProbeStep("link", DEVICE, f"link set {DEVICE} addrgenmode none", message)
    if link is None or link.mtu != MTU:
        yield ProbeStep("link", DEVICE, f"link set {DEVICE} mtu {MTU}", links.change(ifindex, mtu=MTU))
    if link is None or not link.up:
        yield ProbeStep("link", DEVICE, f"link set {DEVICE} up", links.set_up(ifindex))
    for local in found.addresses:
        key = f"{local} dev {DEVICE}"
        yield ProbeStep("address", key, f"address delete {key}", links.delete_address(ifindex, local))
    for address in node.addresses:
        if address not in found.routes:
            yield _route(address, ifindex)
    for address in sorted(found.routes.difference(node.addresses)):
        yield _route(address, ifindex, gone=True)


def _dump(family: int) -> bytes:
    return encode(
        RouteMessage, wire.RTM_GETROUTE, 0, {"family": family, "table": RT_TABLE_LOCAL, "proto": ROUTE_PROTOCOL}
    )


def _address_on(ifindex: int) -> Callable[[bytes, int, int], Address | None]:
    def read(buffer: bytes, start: int, end: int) -> Address | None:
        seen = decode(RouteMessage, buffer, start)
        ours = (
            seen["table"] == RT_TABLE_LOCAL and seen["proto"] == ROUTE_PROTOCOL and seen.get_attr("RTA_OIF") == ifindex
        )
        return seen.get_attr("RTA_DST") if ours else None

    return read


def _route(address: Address, ifindex: int, *, gone: bool = False) -> ProbeStep:
    fields = {
        "family": wire.FAMILIES[len(address)],
        "dst_len": len(address) * 8,
        "table": RT_TABLE_LOCAL,
        "proto": ROUTE_PROTOCOL,
    }
    fields |= {"type": wire.RTN_UNICAST, "scope": wire.RT_SCOPE_LINK if len(address) == 4 else 0}
    kind, verb, flags = (wire.RTM_DELROUTE, "delete", 0) if gone else (wire.RTM_NEWROUTE, "prepend", wire.CREATE)
    key = f"{format_address(address)} dev {DEVICE} table local"
    message = encode(RouteMessage, kind, flags, fields, dst=address, oif=ifindex)
    return ProbeStep("route", key, f"route {verb} {key} proto {ROUTE_PROTOCOL}", message)
