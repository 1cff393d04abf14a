"""What is wrong with a host end, and how it is put right.

As with a tunnel's device, what stops or misleads packets is put back, and what does not is left as it is.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from netloom.kernel import sysctl
from netloom.kernel.endpoints import link_messages
from netloom.kernel.endpoints.alias import alias_of, says
from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.endpoints.link_messages import SWITCHES, End
from netloom.kernel.endpoints.wiring import DEFAULT_MTU, ipv6_switches, look
from netloom.kernel.keeper.table_writer import ALREADY_GONE
from netloom.kernel.mac import format_mac
from netloom.kernel.netlink import links
from netloom.kernel.netlink.sockets import CommandSocket


class Adjustment(msgspec.Struct, frozen=True):
    """One change: as `ip` or `sysctl` would say it, and its message; or else the switch below /proc/sys and its value.
    flushes: the kernel drops what stands on the device with it. inherited: a new device has it of the node."""

    text: str
    message: bytes = b""
    switch: str = ""
    value: str = ""
    flushes: bool = False
    inherited: bool = False


def steps(endpoint: Endpoint, end: End, cookie: int = 0) -> Iterator[Adjustment]:
    """What is to be done to the host end, in its order; up comes last. None: it is as it should be. cookie: of the
    pod's network namespace, if that is known, for an alias that is written anew."""
    name, index = endpoint.device, end.ifindex

    def step(text: str, message: bytes, *, flushes: bool = False) -> Adjustment:
        return Adjustment(f"ip link set {name} {text}", message, flushes=flushes)

    if end.name != name:
        yield Adjustment(f"ip link set {end.name} name {name}", links.change(index, ifname=name))
    if end.no_arp:  # to change that, on or off, takes all neighbours along
        yield step("arp on", links.set_arp(index), flushes=True)
    if end.generates_addresses:
        yield step("addrgenmode none", links.set_no_generated_addresses(index))
    if end.mac != endpoint.host_mac:
        yield step(f"address {format_mac(endpoint.host_mac)}", links.change(index, address=endpoint.host_mac))
    if end.mtu != (endpoint.mtu or DEFAULT_MTU):
        mtu = endpoint.mtu or DEFAULT_MTU
        yield step(f"mtu {mtu}", links.change(index, mtu=mtu))
    if end.master:
        yield step("nomaster", links.change(index, master=0))
    if not says(endpoint, end.alias):
        alias = alias_of(endpoint, cookie)
        yield step(f"alias '{alias}'", link_messages.set_alias(index, alias))
    yield from _switches(name, end)
    for switch, value in ipv6_switches(endpoint, end).items():
        text = f"sysctl -w {switch.replace('/', '.')}={value}"
        yield Adjustment(text, switch=switch, value=str(value))
    if not end.up:
        yield step("up", links.set_up(index), flushes=True)


def _switches(name: str, end: End) -> Iterator[Adjustment]:
    wrong = [
        f"net.ipv4.conf.{name}.{switch}={value}"
        for (switch, value), now in zip(SWITCHES.values(), end.switches, strict=True)
        if now != value
    ]
    if wrong:
        message = link_messages.set_switches(end.ifindex, ipv6=False)
        yield Adjustment(f"sysctl -w {' '.join(wrong)}", message, inherited=True)


# ------------------------------------------------------------------------------------------- in a worker's thread


def read_again(commands: CommandSocket, ends: Mapping[str, int]) -> list[tuple[str, End | None]]:
    """These, by name and ifindex, as they are now. Raises RefusedError, OSError."""
    return [(device, look(commands, ifindex)) for device, ifindex in ends.items()]


def do(commands: CommandSocket, end: End, wrong: Iterable[Adjustment]) -> tuple[End | None, str]:
    """Do these steps to a host end; what it is then, and a sentence if any of it failed. Raises AnswerLost, OSError."""
    failed = ""
    for step in wrong:
        try:
            if step.switch:
                sysctl.write(step.switch, step.value)
                continue
        except OSError as error:
            failed = failed or f"`{step.text}`: {error.strerror or error}"
            continue
        refusal = commands.execute([step.message]).get(0)
        if refusal is not None and refusal.errno not in ALREADY_GONE:
            failed = failed or f"`{step.text}`: {refusal}"
    return look(commands, end.ifindex), failed
