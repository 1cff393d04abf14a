"""Frames that come by a wire: which of them get past the prefilter, and that each that does not is counted, once."""

import contextlib
import fcntl
import os
import struct
from collections.abc import AsyncIterator

import pytest

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Mode
from tests.kernel.netns import Lab, Namespace
from tests.kernel.prefilters import (
    IPV4,
    IPV6,
    OLD_VLAN,
    PROVIDER_VLAN,
    VLAN,
    Filtered,
    Receiver,
    counted,
    ethernet,
    eventually,
    ipv4,
    ipv6,
    rules,
    wanted,
)

RULES = rules(
    {"198.51.100.0/24": "four", "203.0.113.128/25": "four", "2001:db8:1::/48": "six", "2001:db8:1:7:8::/80": "six"},
    {"198.51.100.7/32": "four", "2001:db8:1:7::/64": "six"},
)
BAD, BAD6, FINE, FINE6 = "198.51.100.1", "2001:db8:1::1", "192.0.2.1", "2001:db8:2::1"
DROP, PASS = 1, 2
HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60


def extended(source: str, *kinds: int) -> bytes:
    """An IPv6 packet with these extension headers, of 8 bytes each."""
    following = [*kinds[1:], 17]
    headers = b"".join(bytes([after, 0, 0, 0, 0, 0, 0, 0]) for after in following)
    return ipv6(source, next_header=kinds[0], payload=headers + b"x" * 20)


def four(source: str = BAD, *tags: int) -> bytes:
    return ethernet(ipv4(source), IPV4, *tags)


DROPPED = {
    "of a prefix": ("four", four()),
    "of a shorter prefix's half": ("four", four("203.0.113.200")),
    "with options": ("four", ethernet(ipv4(BAD, options=b"\x01" * 40), IPV4)),
    "a first fragment": ("four", ethernet(ipv4(BAD, more=True), IPV4)),
    "a later fragment": ("four", ethernet(ipv4(BAD, fragment=100), IPV4)),
    "without a payload": ("four", ethernet(ipv4(BAD, payload=b""), IPV4)),
    "802.1Q": ("four", four(BAD, VLAN)),
    "802.1ad": ("four", four(BAD, PROVIDER_VLAN)),
    "802.1ad over 802.1Q": ("four", four(BAD, PROVIDER_VLAN, VLAN)),
    "of an older kind of tag": ("four", four(BAD, OLD_VLAN, VLAN)),
    "with eight tags": ("four", four(BAD, *[VLAN] * 8)),
    "IPv6": ("six", ethernet(ipv6(BAD6), IPV6)),
    "IPv6 in a VLAN": ("six", ethernet(ipv6(BAD6), IPV6, VLAN)),
    "IPv6 in stacked VLANs": ("six", ethernet(ipv6(BAD6), IPV6, PROVIDER_VLAN, VLAN)),
    "IPv6 below an exception": ("six", ethernet(ipv6("2001:db8:1:7:8::1"), IPV6)),
    "IPv6 with extension headers": ("six", ethernet(extended(BAD6, HOP_BY_HOP, ROUTING, OPTIONS), IPV6)),
    "an IPv6 fragment": ("six", ethernet(extended(BAD6, FRAGMENT), IPV6)),
}
PASSED = {
    "of nobody's prefix": four(FINE),
    "of the other half": four("203.0.113.127"),
    "of an exception": four("198.51.100.7"),
    "to a denied address": ethernet(ipv4(FINE, to=BAD), IPV4),
    "in a VLAN": four(FINE, VLAN),
    "in stacked VLANs": four("198.51.100.7", PROVIDER_VLAN, VLAN),
    "IPv6": ethernet(ipv6(FINE6), IPV6),
    "of an IPv6 exception": ethernet(ipv6("2001:db8:1:7::1"), IPV6),
    "IPv6 with extension headers": ethernet(extended(FINE6, HOP_BY_HOP, FRAGMENT), IPV6),
    "an IPv4 address in an IPv6 one": ethernet(ipv6(f"::ffff:{BAD}"), IPV6),
    "ARP": ethernet(ipv4(BAD), 0x0806),
    "PPPoE": ethernet(ipv4(BAD), 0x8864),
    "MPLS": ethernet(ipv4(BAD), 0x8847),
    "IPv6's type and an IPv4 header": ethernet(ipv4(BAD, payload=b"x" * 60), IPV6),
    "IPv4's type and an IPv6 header": ethernet(ipv6(BAD6), IPV4),
    "a length in place of a type": ethernet(ipv4(BAD), 50),
    "no payload": ethernet(b"", IPV4),
    "an IPv4 header that is cut off": ethernet(ipv4(BAD)[:19], IPV4),
    "an IPv6 header that is cut off": ethernet(ipv6(BAD6)[:39], IPV6),
    "a header that is cut off behind a tag": ethernet(ipv4(BAD)[:19], IPV4, VLAN),
}


class TapReceiver(Receiver):
    """A tap device, into which frames are written."""

    def __init__(self, node: Namespace, device: str) -> None:
        self.descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        tap_without_header = 0x1002
        fcntl.ioctl(self.descriptor, 0x400454CA, struct.pack("16sH22x", device.encode(), tap_without_header))
        node.up(device)
        super().__init__(node, device, node, "lo")

    def send(self, frame: bytes) -> None:
        os.write(self.descriptor, frame)

    def close(self) -> None:
        super().close()
        os.close(self.descriptor)


@pytest.fixture(params=["veth native", "veth generic", "tap native", "bridge generic"])
async def receiving(
    request: pytest.FixtureRequest, filtered: Filtered, lab: Lab
) -> AsyncIterator[tuple[str, Receiver, PrefilterKeeper]]:
    """A device of that kind which is filtered in that mode."""
    kind, mode = request.param.split()
    node, far = filtered.place, lab.namespace("far")
    lab.wire(node, "wire0", far, "wire1")
    device = {"veth": "wire0", "tap": "tap0", "bridge": "bridge0"}[kind]
    if kind == "bridge":
        for family in ("", "6"):  # by which frames with a wrong checksum or length are dropped behind the port
            with contextlib.suppress(FileNotFoundError):
                node.sysctl(f"net.bridge.bridge-nf-call-ip{family}tables", "0")
        node.batch(["link add bridge0 type bridge", "link set wire0 master bridge0", "link set bridge0 up"])
    receiver = TapReceiver(node, device) if kind == "tap" else Receiver(node, device, far, "wire1")
    with contextlib.closing(receiver):
        keeper = await filtered.agent()
        report = await keeper.apply(wanted(RULES, device, mode=Mode(mode)))
        assert report.in_sync, report
        assert filtered.programs() == {device: f"{mode} netloom_"}
        # A bridge forwards once another thread of the kernel's has seen that its port is up.
        await eventually(lambda: receiver.passes(ethernet(b"", 0x88B6)))
        yield kind, receiver, keeper


async def test_what_is_denied_is_dropped_and_counted_and_nothing_else(
    receiving: tuple[str, Receiver, PrefilterKeeper],
) -> None:
    kind, receiver, keeper = receiving
    expected = {"four": (0, 0), "six": (0, 0)}
    for name, (prefilter, frame) in DROPPED.items():
        assert not await receiver.passes(frame), name
        packets, size = expected[prefilter]
        tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")
        # The kernel has taken the outer tag off before a bridge sees a frame.
        expected[prefilter] = packets + 1, size + len(frame) - (4 if kind == "bridge" and tagged else 0)
        assert counted(keeper) == expected, name
    for name, frame in PASSED.items():
        assert await receiver.passes(frame), name
    assert counted(keeper) == expected


async def test_more_tags_than_the_program_looks_through_hide_nothing(
    receiving: tuple[str, Receiver, PrefilterKeeper],
) -> None:
    _kind, receiver, keeper = receiving
    for count in (10, 20):
        assert not await receiver.passes(four(FINE, *[VLAN] * count))
    assert keeper.overtagged().packets == 2
    assert counted(keeper) == {"four": (0, 0), "six": (0, 0)}


async def test_a_frame_is_dropped_once_all_of_its_fixed_header_is_there(filtered: Filtered) -> None:
    """Of each frame every beginning. (The kernel itself drops some of them before anybody sees them.)"""
    keeper = await filtered.agent()
    await keeper.apply(wanted(RULES, "eth0"))
    with filtered.opened_program() as program:
        for name, (prefilter, frame) in DROPPED.items():
            tags = next(at for at in range(10) if frame[12 + 4 * at :][:2] in (b"\x08\x00", b"\x86\xdd"))
            whole = 14 + 4 * tags + (20 if prefilter == "four" else 40)
            verdicts = [bpf.run_program(program, frame[:length])[0] for length in range(14, len(frame) + 1)]
            assert verdicts == [PASS] * (whole - 14) + [DROP] * (len(frame) + 1 - whole), name


async def test_jumbo_frames_are_filtered_in_native_mode(filtered: Filtered, lab: Lab) -> None:
    node, far = filtered.place, lab.namespace("far")
    lab.wire(node, "wire0", far, "wire1")
    node.ip("link set wire0 mtu 9000")
    far.ip("link set wire1 mtu 9000")
    keeper = await filtered.agent()
    report = await keeper.apply(wanted(RULES, "wire0", mode=Mode.NATIVE))
    assert report.in_sync, report
    with contextlib.closing(Receiver(node, "wire0", far, "wire1")) as receiver:
        large = ethernet(ipv4(BAD, payload=b"x" * 8000), IPV4, VLAN)
        assert not await receiver.passes(large)
        assert await receiver.passes(ethernet(ipv4(FINE, payload=b"x" * 8000), IPV4))
    assert counted(keeper)["four"] == (1, len(large))
