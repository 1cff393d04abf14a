"""`make bench-prefilter-kernel`: the kernel's side of the prefilter, a million entries, and what a dropped frame costs.

First a million random prefixes: CPU seconds until they are in force, for a change of one and of a thousand, and by how
much the process has grown then. Then frames of 1,024 denied sources are written into a tap device, and dropped in turn
by the prefilter (native and generic mode), by nftables (set with intervals, netdev ingress and input) and by iptables
with an ipset. What writing takes by itself, up to a program that drops at once, is measured beside and taken off.

A tap device hands a frame up within the call that writes it, so what it costs is CPU time of the one thread that
writes, whoever drops it: each way's own counter has to have all frames when the last call returns. That thread is not
interrupted by others meanwhile (SCHED_FIFO). A cost is the least of all rounds, as other work on the machine only adds;
the order changes from round to round. `halves` are the ratios by the even and by the odd rounds alone: how far the
figures can be trusted. `run_ns` is what the kernel's own test facility says of the program, for one source, so with all
nodes in the caches. Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import ipaddress
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Mode, Prefiltering
from netloom.prefilter.records import record_of
from netloom.prefilter.rules import MARK_SIZE, Entries, Rules, entry
from netloom_e2e import bench
from netloom_e2e.bench import Wrong
from tests.kernel.netns import Lab, Namespace, prepare
from tests.kernel.prefilters import IPV4, ethernet, ipv4, mounted_bpffs, wanted

DEVICE = "tap0"
SOURCES = 1024
REPEATS = 50
TRIES = 5
FRAMES = TRIES * REPEATS * SOURCES
"""For one cost."""
_DROP_ALL = bytes.fromhex("b700000001000000 9500000000000000")
_TUNSETIFF, _TAP_WITHOUT_HEADER = 0x400454CA, 0x1002

Network = tuple[int, int]


def networks(count: int, seed: int = 1) -> list[Network]:
    """Unicast, sorted, none in another: nft and ipset take no overlaps."""
    dice = random.Random(seed)
    found: set[Network] = set()
    while len(found) < count * 1.2:
        length, address = dice.choice([24, 28, 32, 32, 32]), dice.getrandbits(32)
        if 0 < address >> 24 < 224 and address >> 24 not in (10, 127):
            found.add((address >> (32 - length) << (32 - length), length))
    apart: list[Network] = []
    last = -1
    for address, length in sorted(found):
        if address > last:
            apart.append((address, length))
            last = address + (1 << (32 - length)) - 1
    return sorted(dice.sample(apart, count))


def rules_of(some: list[Network]) -> Rules:
    """All for one prefilter."""
    packed = b"".join(entry(record_of(address.to_bytes(4, "big"), length), 0) for address, length in some)
    return Rules(Entries(packed), names=("a",))


def rss_mib() -> float:
    """Of this process now."""
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


async def load(keeper: PrefilterKeeper, count: int) -> dict[str, float]:
    """A filter that grows to `count` entries, and is changed."""
    entries = rules_of(networks(count)).v4
    gc.collect()
    before = rss_mib()
    found: dict[str, float] = {"entries": count}

    async def measure(name: str, unit: float, slots: bytes) -> None:
        packed = bytearray(entries.packed)
        packed[entries.size - MARK_SIZE :: entries.size] = slots
        desired = wanted(Rules(Entries(bytes(packed)), names=("a", "b")), DEVICE)
        began = time.process_time()
        report = await keeper.apply(desired)
        if not report.in_sync:
            raise Wrong(str(report))
        found[name] = round(unit * (time.process_time() - began), 3)

    await measure("map_seconds", 1, bytes(count))
    one, many = bytearray(count), bytearray(count)
    one[count // 2] = 1
    many[:: count // 1000] = b"\x01" * len(many[:: count // 1000])
    await measure("change_one_ms", 1000, bytes(one))
    await measure("change_1000_ms", 1000, bytes(many))
    found["rss_growth_mib"] = round(rss_mib() - before, 1)
    return found


class Tap:
    """A device of the node's, into which frames of denied sources are written."""

    def __init__(self, node: Namespace, some: list[Network]) -> None:
        with node.entered():
            self.descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.descriptor, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _TAP_WITHOUT_HEADER))
        node.up(DEVICE)
        node.ip(f"address add 192.0.2.99/24 dev {DEVICE}")
        for name in ("all", DEVICE):
            node.sysctl(f"net.ipv4.conf.{name}.rp_filter", "0")
        mac = bytes.fromhex(node.ip_json(f"link show {DEVICE}")[0]["address"].replace(":", ""))
        self.frames = [mac + _frame(address)[6:] for address, _ in random.Random(2).sample(some, SOURCES)]

    def nanoseconds(self) -> float:
        """CPU time per frame, of FRAMES."""
        write, descriptor = os.write, self.descriptor

        def once() -> float:
            with uninterrupted():
                began = time.thread_time_ns()
                for _ in range(REPEATS):
                    for frame in self.frames:
                        write(descriptor, frame)
                return (time.thread_time_ns() - began) / REPEATS / SOURCES

        return min(once() for _ in range(TRIES))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """No other process has this thread's CPU meanwhile, nor the caches that belong to it."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _frame(source: int) -> bytes:
    """With a checksum, as a receiver looks at it before an input hook does."""
    packet = bytearray(ipv4(str(ipaddress.ip_address(source)), payload=struct.pack("!HHHH", 1, 9, 26, 0) + b"x" * 18))
    total = sum(struct.unpack("!10H", packet[:20]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = struct.pack("!H", ~total & 0xFFFF)
    return ethernet(bytes(packet), IPV4)


@contextlib.contextmanager
def nftables(node: Namespace, some: list[Network], hook: str) -> Iterator[None]:
    """A table that drops them, and has dropped FRAMES in the end."""
    family, device = ("netdev", f' device "{DEVICE}"') if hook == "ingress" else ("ip", "")
    elements = ",".join(f"{ipaddress.ip_address(address)}/{length}" for address, length in some)
    chain = f"chain c {{\n type filter hook {hook}{device} priority 0\n ip saddr @s counter drop\n}}"
    held = f"set s {{\n type ipv4_addr\n flags interval\n elements = {{ {elements} }}\n}}"
    node.exec("nft -f -", given=f"table {family} f {{\n{held}\n{chain}\n}}\n")
    yield
    if f"packets {FRAMES} " not in (said := node.exec(f"nft list chain {family} f c")):
        raise Wrong(f"nftables' {hook} hook did not drop {FRAMES} frames by itself: {said}")
    node.exec(f"nft delete table {family} f")


@contextlib.contextmanager
def ipset(node: Namespace, some: list[Network]) -> Iterator[None]:
    """A rule of iptables that drops them, and has dropped FRAMES in the end."""
    lines = [f"create s hash:net maxelem {2 * len(some)}"]
    lines += [f"add s {ipaddress.ip_address(address)}/{length}" for address, length in some]
    node.exec("ipset restore", given="\n".join(lines) + "\n")
    node.exec("iptables -A INPUT -m set --match-set s src -j DROP")
    yield
    said = node.exec("iptables -nvxL INPUT")
    if not any(line.split()[:1] == [f"{FRAMES}"] for line in said.splitlines()):
        raise Wrong(f"iptables did not drop {FRAMES} frames by itself: {said}")
    node.exec("iptables -F INPUT")
    node.exec("ipset destroy s")


async def drop(
    node: Namespace, keeper: PrefilterKeeper, bpffs: Path, tap: Tap, some: list[Network], rounds: int
) -> Any:
    """Nanoseconds per dropped frame, by who drops it, without the writing."""
    rules = rules_of(some)
    first = bpf.load_program("drop_all", _DROP_ALL)
    bpf.pin(first, str(bpffs / "drop_all"))
    os.close(first)

    async def prefilter(mode: Mode) -> float:
        await keeper.apply(wanted(rules, DEVICE, mode=mode))
        before = keeper.dropped()["a"].packets
        cost = tap.nanoseconds()
        if keeper.dropped()["a"].packets - before != FRAMES:
            raise Wrong(f"the prefilter dropped {keeper.dropped()['a'].packets - before} frames")
        await keeper.apply(replace(wanted(rules, DEVICE), devices=()))
        return cost

    async def writing() -> float:
        node.ip(f"link set {DEVICE} xdpdrv pinned {bpffs / 'drop_all'}")
        cost = tap.nanoseconds()
        node.ip(f"link set {DEVICE} xdpdrv off")
        return cost

    def within(made: Callable[[], contextlib.AbstractContextManager[None]]) -> Callable[[], Any]:
        async def measured() -> float:
            with made():
                return tap.nanoseconds()

        return measured

    ways: dict[str, Callable[[], Any]] = {
        "writing": writing,
        "native": lambda: prefilter(Mode.NATIVE),
        "generic": lambda: prefilter(Mode.GENERIC),
        "nft_ingress": within(lambda: nftables(node, some, "ingress")),
        "nft_input": within(lambda: nftables(node, some, "input")),
        "ipset": within(lambda: ipset(node, some)),
    }
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in sorted(ways, reverse=number % 2 == 1):
            costs[name].append(await ways[name]())
    own = _own(costs)
    halves = [_own({name: each[half::2] for name, each in costs.items()}) for half in (0, 1)]
    others = [name for name in own if name != "native"]
    return {
        "entries": len(some),
        "writing_ns": round(min(costs["writing"])),
        "ns": {name: round(each) for name, each in own.items()},
        **{f"ratio_{name}": round(own["native"] / own[name], 3) for name in others},
        "halves": {name: [round(each["native"] / each[name], 3) for each in halves] for name in others},
    }


def _own(costs: dict[str, list[float]]) -> dict[str, float]:
    """What each way takes beside the writing: other work on the machine only adds, so the least of all is nearest."""
    return {name: min(each) - min(costs["writing"]) for name, each in costs.items() if name != "writing"}


async def program_ns(keeper: PrefilterKeeper, bpffs: Path, some: list[Network]) -> int:
    """Of a run that drops."""
    await keeper.apply(wanted(rules_of(some), DEVICE))
    (path,) = bpffs.glob("netloom/*/program_*")
    program = bpf.open_pin(str(path))
    frame = _frame(some[len(some) // 2][0])
    took = min(bpf.run_program(program, frame, repeat=200_000)[1] for _ in range(TRIES))
    os.close(program)
    return took


def measured(entries: int, sets: int, rounds: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, {rounds} rounds")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # who writes a frame receives it, too
    prepare()
    lab = Lab()
    try:
        node = lab.namespace("node")
        with tempfile.TemporaryDirectory() as folder, mounted_bpffs(Path(folder) / "bpf") as bpffs, node.entered():
            found = asyncio.run(_all(node, bpffs, Path(folder) / "cache", entries, sets, rounds))
    finally:
        lab.close()
    rows = [(name, str(cost)) for name, cost in found["drop"]["ns"].items()]
    console.print(bench.table(f"A dropped frame, {sets} entries", ("", "ns"), rows))
    return found


async def _all(node: Namespace, bpffs: Path, cache: Path, entries: int, sets: int, rounds: int) -> dict[str, Any]:
    some = networks(sets)
    tap = Tap(node, some)
    keeper = PrefilterKeeper(cache, bpffs=bpffs, resync_seconds=None)
    await keeper.open()
    try:
        await keeper.apply(wanted(rules_of(some[:2]), DEVICE))  # compiled, loaded and attached
        loaded = await load(keeper, entries)
        took = await program_ns(keeper, bpffs, some)
        await keeper.apply(Prefiltering())
        dropped = await drop(node, keeper, bpffs, tap, some, rounds)
    finally:
        await keeper.close()
        os.close(tap.descriptor)
    return {"load": loaded, "drop": {**dropped, "run_ns": took}}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="The kernel's side of the prefilter.")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, default=10_000, help="entries of those that drop beside each other")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    return bench.conclude("bench-prefilter-kernel", lambda: measured(options.entries, options.sets, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
