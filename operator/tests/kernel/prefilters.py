"""Prefilters on a node of their own, and frames that come to it as they would from a wire."""

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path

from netloom.cidr import VERSIONS, Version
from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.keeper import PrefilterKeeper, PrefilterReport
from netloom.kernel.prefilter.prefiltering import DeviceWish, Mode, Prefiltering
from netloom.prefilter.records import record_of
from netloom.prefilter.rules import ALLOW, ENTRY_SIZES, Entries, Rules, entry
from tests.kernel import meshes
from tests.kernel.netns import Namespace

_libc = ctypes.CDLL(None, use_errno=True)

IPV4, IPV6, VLAN, PROVIDER_VLAN, OLD_VLAN = 0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100


# ------------------------------------------------------------------------------------------------------------ rules


def rules(deny: Mapping[str, str], allow: Mapping[str, str] | None = None) -> Rules:
    """Of CIDRs, each with the name of its prefilter."""
    names = tuple(dict.fromkeys([*deny.values(), *(allow or {}).values()]))
    found: dict[Version, list[tuple[bytes, int, int]]] = {4: [], 6: []}
    for entries, allowed in ((deny, False), (allow or {}, True)):
        for cidr, name in entries.items():
            network = ipaddress.ip_network(cidr)
            place = (network.network_address.packed, network.prefixlen, names.index(name) | (ALLOW if allowed else 0))
            found[network.version].append(place)
    return Rules(*(packed(found[version], version) for version in VERSIONS), names=names)


def packed(entries: Iterable[tuple[bytes, int, int]], version: Version = 4) -> Entries:
    """Of (address, length, value)."""
    return Entries(b"".join(entry(record_of(a, n), v) for a, n, v in sorted(entries)), ENTRY_SIZES[version])


def wanted(some: Rules, *devices: str, mode: Mode = Mode.BEST_EFFORT) -> Prefiltering:
    """These rules on these devices."""
    return Prefiltering(some, tuple(DeviceWish(name, mode) for name in devices))


# ----------------------------------------------------------------------------------------------------------- frames


def ethernet(payload: bytes, kind: int, *tags: int) -> bytes:
    """A frame; `tags`: types of the VLAN tags before the payload, from the outside."""
    types = [*tags, kind]
    tagged = b"".join(struct.pack("!HH", 7 + at, following) for at, following in enumerate(types[1:]))
    return bytes.fromhex("ffffffffffff 020000000001") + struct.pack("!H", types[0]) + tagged + payload


def ipv4(
    source: str,
    *,
    to: str = "192.0.2.99",
    options: bytes = b"",
    fragment: int = 0,
    more: bool = False,
    payload: bytes = b"x" * 30,
) -> bytes:
    """A packet of UDP's; its checksum is not looked at."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | (5 + len(options) // 4),
        0,
        20 + len(options) + len(payload),
        1,
        (0x2000 if more else 0) | fragment,
        64,
        17,
        0,
        socket.inet_aton(source),
        socket.inet_aton(to),
    )
    return header + options + payload


def ipv6(source: str, *, next_header: int = 17, payload: bytes = b"x" * 30) -> bytes:
    """A packet; extension headers go into the payload."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, "2001:db8::99")
    return struct.pack("!IHBB", 0x60000000, len(payload), next_header, 64) + addresses + payload


# ------------------------------------------------------------------------------------------------------------- node


@contextlib.contextmanager
def mounted_bpffs(place: Path) -> Iterator[Path]:
    """A bpffs of the test's own."""
    place.mkdir()
    if _libc.mount(b"bpf", bytes(place), b"bpf", 0, None):
        raise OSError(ctypes.get_errno(), f"cannot mount a bpffs on {place}")
    try:
        yield place
    finally:
        _libc.umount2(bytes(place), 2)


class Filtered:
    """A node on which prefilters run: agents of it come and go."""

    def __init__(self, place: Namespace, bpffs: Path, cache: Path, stack: contextlib.AsyncExitStack) -> None:
        self.place = place
        self.bpffs = bpffs
        self.cache = cache
        self._stack = stack

    async def agent(self, *, running: bool = False, **options: object) -> PrefilterKeeper:
        """A keeper as an agent has it; `running`: with its loop."""
        given = {"bpffs": self.bpffs, "resync_seconds": None, **options}
        keeper = PrefilterKeeper(self.cache, **given)  # type: ignore[arg-type]
        await keeper.open()
        self._stack.push_async_callback(keeper.close)
        if running:
            await self._stack.enter_async_context(meshes.running(keeper))
        return keeper

    def pins(self) -> list[str]:
        """Paths below the bpffs."""
        return sorted(str(path.relative_to(self.bpffs)) for path in self.bpffs.rglob("*"))

    @contextlib.contextmanager
    def opened_program(self) -> Iterator[int]:
        """A descriptor of the program that is pinned."""
        (path,) = self.bpffs.glob("netloom/*/program_*")
        descriptor = bpf.open_pin(str(path))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def programs(self) -> dict[str, str]:
        """By device, the modes in which programs run there, and their names, as `ip` knows them."""
        found = {}
        for link in self.place.ip_json("link"):
            xdp = link.get("xdp")
            if xdp:
                mode = {1: "native", 2: "generic"}[xdp["mode"]]
                found[link["ifname"]] = f"{mode} {xdp['prog']['name'][:8]}"
        return found


class Receiver:
    """Sees the frames that get past the prefilter of a device, and what is sent into it from the far end."""

    def __init__(self, node: Namespace, device: str, far: Namespace, far_device: str) -> None:
        with node.entered():
            self._taken = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._taken.bind((device, 3))
        self._taken.setblocking(False)
        self._sent = 0
        with far.entered():
            self._sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sender.bind((far_device, 0))

    def send(self, frame: bytes) -> None:
        """From the far end, as it is."""
        self._sender.send(frame)

    async def passes(self, frame: bytes, seconds: float = 10) -> bool:
        """Whether it gets past: of two frames that are sent after each other, the second always does. They are told by
        their source MACs, as the kernel takes tags off before anybody sees a frame."""
        self._sent += 2
        macs = [bytes.fromhex("0200") + (self._sent + at).to_bytes(4, "big") for at in range(2)]
        self.send(frame[:6] + macs[0] + frame[12:])
        self.send(_MARK[:6] + macs[1] + _MARK[12:])
        seen, until = False, time.monotonic() + seconds
        while True:
            got = self._receive()
            if got is None:
                assert time.monotonic() < until, "not even the frame that nobody drops came"
                await asyncio.sleep(0.001)
            elif got[6:12] == macs[1]:
                return seen
            else:
                seen = seen or got[6:12] == macs[0]

    @contextlib.contextmanager
    def flooded(self, frame: bytes) -> Iterator[None]:
        """Meanwhile this frame is sent again and again, by a thread."""
        over = threading.Event()

        def flood() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):  # the queue is full
                    self.send(frame)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def received(self, frame: bytes) -> int:
        """How often it has come since the last time that somebody asked."""
        count = 0
        while (got := self._receive()) is not None:
            count += got == frame
        return count

    def _receive(self) -> bytes | None:
        try:
            return self._taken.recv(1 << 16)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._taken.close()
        self._sender.close()


_MARK = bytes.fromhex("ffffffffffff 020000000001 88b5") + b"a frame that nobody drops".ljust(50, b".")


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30) -> None:
    """Wait until it holds."""
    until = time.monotonic() + seconds
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < until, "it did not come to hold"
        await asyncio.sleep(0.005)


def counted(keeper: PrefilterKeeper) -> dict[str, tuple[int, int]]:
    """Packets and bytes by prefilter."""
    return {name: (each.packets, each.bytes) for name, each in keeper.dropped().items()}


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def lives(filtered: Filtered, desired: Prefiltering) -> PrefilterReport:
    """An agent that comes, does what is to be done, and is gone."""
    keeper = PrefilterKeeper(filtered.cache, bpffs=filtered.bpffs, resync_seconds=None)
    await keeper.open()
    try:
        return await keeper.apply(desired)
    finally:
        await keeper.close()
