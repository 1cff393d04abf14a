"""How an endpoint is made: both ends, all of it or nothing. Runs in a worker's thread.

Three batches here (the pair; its ends and what stands on them; where its addresses lead) and one in the pod. The last
question decides: an address that leads anywhere else, by somebody's route or because the node has it itself, is no
pod's.

Why permanent neighbours on both sides: nobody ever asks for a MAC, so the first packet waits for nothing, no answer can
be forged, and the entries count against no limit. By proxy ARP the first packet of each pod waits for up to 0.8 s
(`proxy_delay`), and IPv6 has nothing like it.
"""

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import msgspec

from netloom.cidr import Address, format_address
from netloom.kernel import sysctl
from netloom.kernel.endpoints import inside as insides
from netloom.kernel.endpoints import link_messages, readiness, row_messages
from netloom.kernel.endpoints.alias import CONTAINER, alias_of, read_alias
from netloom.kernel.endpoints.endpoint import Endpoint, Reason, WiringFailed
from netloom.kernel.endpoints.inside import InsideSocket
from netloom.kernel.endpoints.link_messages import End, read_end
from netloom.kernel.endpoints.row_messages import gateway_of
from netloom.kernel.keeper.table_writer import ALREADY_GONE
from netloom.kernel.mac import link_local_of
from netloom.kernel.netlink.links import device_name
from netloom.kernel.netlink.neighbours import make_neighbour
from netloom.kernel.netlink.sockets import AnswerLost, CommandSocket, KernelRefusal, RefusedError, read_one
from netloom.kernel.netlink.wire import numbered
from netloom.kernel.ownership import ENDPOINTS

LEAST_MTU, LEAST_MTU_IPV6, MOST_MTU = 68, 1280, 65535
"""Bytes: RFC 791, RFC 8200, and of a veth."""
DEFAULT_MTU = 1500
"""Bytes: the kernel's for a veth."""
MOST_CONTAINER = 128

_INTERFACE = re.compile(r"[^\s/:%]{1,15}")


class WiringStep(NamedTuple):
    """What is done to an end, and its message. text: for people. address: that it leads to, or is given."""

    kind: Literal["link", "address", "neighbour", "route", "way out"]
    text: str
    message: bytes
    address: Address = b""


class Made(msgspec.Struct, frozen=True):
    """Both ends, as they are now. lacking: what packets have to wait for yet; "" if nothing."""

    host: End
    pod: End
    lacking: str = ""


# --------------------------------------------------------------------------------------------------- what is wanted


def check(endpoint: Endpoint) -> None:
    """Raises WiringFailed (invalid) for what cannot be."""
    if not CONTAINER.fullmatch(endpoint.container) or len(endpoint.container) > MOST_CONTAINER:
        why = f"1 to {MOST_CONTAINER} letters, digits, dots, dashes and underscores"
        raise _failed("invalid", endpoint, f"{endpoint.container!r} is no container id: {why}")
    too_long = len(endpoint.interface.encode()) > 15
    if not _INTERFACE.fullmatch(endpoint.interface) or endpoint.interface in (".", "..") or too_long:
        why = "1 to 15 bytes without blanks, '/', ':' and '%'"
        raise _failed("invalid", endpoint, f"{endpoint.interface!r} cannot be the name of a device: {why}")
    families = [len(address) for address in endpoint.addresses]
    if not families or len(set(families)) < len(families):
        given = ", ".join(map(format_address, endpoint.addresses)) or "none"
        raise _failed("invalid", endpoint, f"one address of each family at most, and one at least, not {given}")
    if endpoint.mac and (len(endpoint.mac) != 6 or endpoint.mac[0] & 1 or not any(endpoint.mac)):
        raise _failed("invalid", endpoint, f"{endpoint.mac.hex(':')} cannot be a device's MAC: 6 bytes, of no group")
    least = LEAST_MTU_IPV6 if 16 in families else LEAST_MTU
    if endpoint.mtu and not least <= endpoint.mtu <= MOST_MTU:
        why = f"from {least}{' (IPv6)' if 16 in families else ''} to {MOST_MTU}"
        raise _failed("invalid", endpoint, f"an MTU of {endpoint.mtu} is out of range: {why}; see spec.mtu")


# ------------------------------------------------------------------------------------------------------- one ADD


class Wiring:
    """One endpoint, on its way. Descriptors stay the caller's."""

    def __init__(self, commands: CommandSocket, endpoint: Endpoint, netns: int, inside: int) -> None:
        self._commands = commands
        self._endpoint = endpoint
        self._netns = netns
        self._inside_given = inside

    def make(self) -> Made:
        """All of it, or nothing. Raises WiringFailed."""
        endpoint = self._endpoint
        check(endpoint)
        self._enter()
        try:
            try:
                self._create()
                return self._set_up()
            except BaseException:
                self._undo()
                raise
        except RefusedError as error:
            raise self._explained(error.refusal, "reading what was made") from error
        except (AnswerLost, OSError) as error:
            raise _failed("lost", endpoint, f"no answer from the kernel ({error}); nothing is left of it") from error
        finally:
            self._inside.close()

    def _enter(self) -> None:
        """The namespace is one, not the node's own, and the socket is of it."""
        endpoint = self._endpoint
        try:
            of_pod = os.fstat(self._netns).st_ino
            self._inside = InsideSocket(self._inside_given)
        except OSError as error:
            why = f"the network namespace {endpoint.netns or 'of the pod'} cannot be used ({error}): is the pod gone?"
            raise _failed("namespace-gone", endpoint, why) from error
        try:
            self._cookie, of_socket = self._inside.cookie(), self._inside.namespace()
        except OSError as error:
            self._inside.close()
            raise _failed("namespace-gone", endpoint, f"its socket cannot be asked where it is ({error})") from error
        why = ""
        if of_pod == os.stat(insides.HERE).st_ino:  # noqa: PTH116 - one system call
            why = f"{endpoint.netns or 'its network namespace'} is the node's own: a pod with hostNetwork has none"
        elif of_socket and of_socket != of_pod:
            why = f"the socket is of another network namespace than {endpoint.netns or 'the pod'}"
        if why:
            self._inside.close()
            raise _failed("namespace-gone", endpoint, why)

    def _create(self) -> None:
        """The pair. What an earlier life left under its names goes; what is anybody else's stays."""
        message = link_messages.create_pair(self._endpoint, self._netns)
        refusal = self._commands.execute([message]).get(0)
        if refusal is not None and refusal.errno == errno.EEXIST:
            self._clear_away()
            refusal = self._commands.execute([message]).get(0)
        if refusal is not None:
            raise self._explained(refusal, "making the pair of devices")

    def _clear_away(self) -> None:
        """What had the names was an earlier pair of this endpoint, and is gone now. Raises WiringFailed."""
        endpoint = self._endpoint
        here = look(self._commands, endpoint.device)
        there = look(self._inside, endpoint.interface)
        if there is not None and (there.kind != "veth" or there.mac != endpoint.pod_mac):
            what = there.kind or "hardware"
            why = (
                f"the pod has a device {endpoint.interface} already ({what}, {there.mac.hex(':')}), which is not "
                "Netloom's: whoever made it has to remove it, or another name has to be configured"
            )
            raise _failed("interface-taken", endpoint, why)
        whose = read_alias(here.alias).identity if here is not None else ("", "")
        if here is not None and here.alias and whose != (endpoint.container, endpoint.interface):
            why = f"{here.name}, the name of its device here, is taken by container {whose[0] or here.alias!r}"
            raise _failed("interface-taken", endpoint, f"{why}; the runtime's next attempt has another name")
        for commands, end in ((self._commands, here), (self._inside, there)):
            if end is not None:
                refusal = commands.execute([link_messages.delete_named(end.name)]).get(0)
                if refusal is not None and refusal.errno not in ALREADY_GONE:
                    raise self._explained(refusal, f"removing what was left of {end.name}")

    def _set_up(self) -> Made:
        endpoint = self._endpoint
        host = self._found(self._commands, endpoint.device)
        pod = self._found(self._inside, endpoint.interface)
        self._do(self._inside, self._in_the_pod(pod))
        self._switch(host)
        self._do(self._commands, host_steps(endpoint, host, self._cookie))
        self._lead_there(host)
        lacking = readiness.lacking(self._commands, self._inside, endpoint)
        return Made(self._found(self._commands, endpoint.device), pod, lacking)

    def _switch(self, host: End) -> None:
        """What netlink cannot set: nobody in a pod configures this node, and IPv6 is on where the pod has it."""
        for name, value in ipv6_switches(self._endpoint, host).items():
            try:
                sysctl.write(name, str(value))
            except OSError as error:
                dotted = name.replace("/", ".")
                why = f"`sysctl -w {dotted}={value}`: {error.strerror}: /proc/sys has to be writable for the agent"
                raise _failed("not-permitted", self._endpoint, why) from error

    def _found(self, commands: CommandSocket, name: str) -> End:
        end = look(commands, name)
        if end is None:
            raise _failed(
                "refused", self._endpoint, f"{name} is gone again right after it was made: somebody removed it"
            )
        return end

    def _in_the_pod(self, pod: End) -> list[WiringStep]:
        """What is to be done there: addresses that are there at once, and the way out."""
        endpoint, index = self._endpoint, pod.ifindex
        six = any(len(address) == 16 for address in endpoint.addresses)
        steps = []
        if six:
            if pod.disable_ipv6:
                self._enable_ipv6()
            steps.append(WiringStep("link", "addrgenmode none", link_messages.generate_no_addresses(index)))
        steps.append(WiringStep("link", "up", link_messages.set_up(index)))
        given = endpoint.addresses
        steps += [
            WiringStep("address", f"address {format_address(each)}", row_messages.address(each, index))
            for each in given
        ]
        if six:
            local = link_local_of(endpoint.pod_mac)
            steps.append(
                WiringStep("address", f"address {format_address(local)}", row_messages.address(local, index, 64))
            )
        for address in endpoint.addresses:
            gateway = gateway_of(address)
            neighbour = make_neighbour((index, gateway), endpoint.host_mac)
            steps.append(WiringStep("neighbour", f"neighbour {format_address(gateway)}", neighbour))
            way_out = row_messages.default_route(gateway, index)
            steps.append(WiringStep("way out", f"default route by {format_address(gateway)}", way_out, gateway))
        return steps

    def _enable_ipv6(self) -> None:
        endpoint = self._endpoint
        try:
            insides.enable_ipv6(self._netns, endpoint.interface)
        except OSError as error:
            off = f"IPv6 is switched off in the pod (net.ipv6.conf.{endpoint.interface}.disable_ipv6=1), and"
            takes = (
                "that takes SYS_ADMIN to change" if error.errno == errno.EPERM else f"it stays so ({error.strerror})"
            )
            why = f"{off} {takes}: have the runtime leave it on, or give the pod no IPv6 address"
            raise _failed("not-permitted", endpoint, why) from error

    def _do(self, commands: CommandSocket, steps: Sequence[WiringStep]) -> None:
        refusals = commands.execute(numbered([step.message for step in steps]))
        for place, refusal in sorted(refusals.items()):
            step = steps[place]
            if refusal.errno == errno.EEXIST and step.kind == "route" and self._makes_room(step):
                continue
            if refusal.errno == errno.EEXIST and step.kind == "way out":
                raise self._has_a_way_out(step)
            where = "in the pod" if commands is self._inside else "on the node"
            raise self._explained(refusal, f"{step.text} {where}", step.kind)

    def _has_a_way_out(self, step: WiringStep) -> WiringFailed:
        indexes = row_messages.default_route_links(self._inside, len(step.address))
        found = [end for index in indexes if (end := look(self._inside, index))]
        device = next((end.name for end in found if end.name != self._endpoint.interface), "another device")
        why = f"the pod has a default route already (by {device}): Netloom makes one interface of a pod, which has it"
        return _failed("interface-taken", self._endpoint, f"{why}; leave the other network's plugin without one")

    def _makes_room(self, step: WiringStep) -> bool:
        """Whether the route is there now: one of ours stood in its place that leads to no pod, which somebody made, or
        an earlier life left. Raises WiringFailed."""
        endpoint, address = self._endpoint, step.address
        # The route itself decides, not where packets go: somebody else's may come before a pod's.
        for ifindex in row_messages.own_route_links(self._commands, address):
            device = device_name(ifindex)
            if ENDPOINTS.link(device) and device != endpoint.device:
                where = f"{device}, the device of a pod of which nothing else is known (yet)"
                raise _failed("address-taken", endpoint, f"{format_address(address)} leads to {where}")
        refusals = self._commands.execute(numbered([row_messages.remove_route(address), step.message]))
        return 1 not in refusals

    def _lead_there(self, host: End) -> None:
        """Raises WiringFailed (address-taken) where packets to an address go anywhere else."""
        for address, ifindex, own in row_messages.fib_lookups(self._commands, self._endpoint.addresses):
            if own:
                raise self._taken(
                    address, f"is an address of the node itself (ip address show to {format_address(address)})"
                )
            if ifindex != host.ifindex:
                device = device_name(ifindex) if ifindex else "nowhere"
                ask = f"ip {'-6 ' if len(address) == 16 else ''}route get {format_address(address)}"
                raise self._taken(address, f"leads to {device} all the same, by somebody's route or rule (`{ask}`)")

    def _taken(self, address: Address, why: str) -> WiringFailed:
        return _failed(
            "address-taken", self._endpoint, f"{format_address(address)} {why}; a pod with it would get no packet"
        )

    def _undo(self) -> None:
        """Whatever was made goes: the pod's end and all that stands on them go with the host's. (The device's name is
        not anybody else's: what had it before has been looked at.)"""
        end = None
        with suppress(AnswerLost, OSError):
            end = look(self._commands, self._endpoint.device)
        if end is not None and end.mac != self._endpoint.host_mac:
            return
        with suppress(AnswerLost, OSError):
            self._commands.execute([link_messages.delete_named(self._endpoint.device)])

    def _explained(self, refusal: KernelRefusal, what: str, kind: str = "") -> WiringFailed:
        reason: Reason = "refused"
        way = ""
        if refusal.errno == errno.EPERM:
            reason, way = (
                "not-permitted",
                ": the agent needs the capability NET_ADMIN, in the pod's user namespace, too",
            )
        elif refusal.errno == errno.EEXIST and kind in ("address", "route"):
            reason = "address-taken"
            way = ": another interface of the pod has it" if kind == "address" else ""
        elif refusal.errno in (errno.EBADF, errno.EINVAL) and "netns" in refusal.message:
            reason, way = "namespace-gone", ": is the pod gone?"
        return _failed(reason, self._endpoint, f"{what}: {refusal}{way}")


def host_steps(endpoint: Endpoint, host: End, cookie: int) -> list[WiringStep]:
    """What is to be done to a host end that is new: its switches, up, and what stands on it."""
    index = host.ifindex
    prepare = link_messages.prepare_host_end(index, alias_of(endpoint, cookie), ipv6=host.disable_ipv6 is not None)
    steps = [WiringStep("link", "switches", prepare), WiringStep("link", "up", link_messages.set_up(index))]
    for address in endpoint.addresses:
        neighbour = make_neighbour((index, address), endpoint.pod_mac)
        steps.append(WiringStep("neighbour", f"neighbour {format_address(address)}", neighbour))
        steps.append(
            WiringStep("route", f"route to {format_address(address)}", row_messages.route(address, index), address)
        )
    return steps


def ipv6_switches(endpoint: Endpoint, host: End) -> dict[str, int]:
    """Those that are not as they should be, by their names below /proc/sys once the host end has the name it should."""
    six = any(len(address) == 16 for address in endpoint.addresses)
    wrong = {"accept_ra": 0} if host.accept_ra else {}
    wrong |= {"disable_ipv6": 0} if host.disable_ipv6 and six else {}
    return {f"net/ipv6/conf/{endpoint.device}/{switch}": value for switch, value in wrong.items()}


# ------------------------------------------------------------------------------------------------------ questions


def look(commands: CommandSocket, which: str | int) -> End | None:
    """The link of that name or ifindex, None if there is none. Raises RefusedError, OSError."""
    try:
        return read_one(commands, link_messages.get_link(which), read_end)
    except RefusedError as error:
        if error.errno != errno.ENODEV:
            raise
    return None


def _failed(reason: Reason, endpoint: Endpoint, why: str) -> WiringFailed:
    return WiringFailed(reason, f"{endpoint}: {why}")
