"""`make bench-prefilter-passed`: what a prefilter costs those whose packets pass.

Two machines on an Ethernet segment; the one that receives has a list that holds none of the sender's addresses: in a
prefilter (native and generic mode), in a set of nftables at netdev ingress, or none at all. iperf3 sends TCP, and
bursts of datagrams tell what one CPU carries all the way (`cpu`, in Gbit/s), all in turn; the order changes from round
to round.

The device is a veth, which hands over up to 64 KB at once where no program stands in native mode, and single frames
where one does: a network card's driver has single frames in any case. `ratio` is the throughput over that without a
list, of `tcp` the median of all rounds, of `cpu` the best over the best. Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from prefilter_kernel import Network, networks, rules_of

from netloom.kernel.prefilter.keeper import PrefilterKeeper
from netloom.kernel.prefilter.prefiltering import Mode, Prefiltering
from netloom_e2e import bench
from netloom_e2e.bench import Wrong
from netloom_e2e.lab import Lab, Machine
from netloom_e2e.traffic import CPU, gigabits, ratio, typical
from tests.kernel.prefilters import mounted_bpffs, wanted

DEVICE = "eth0"
MEASURES = ("tcp", CPU)
NOTHING = "nothing"

Way = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """No list."""
    yield


def prefilter(keeper: PrefilterKeeper, some: list[Network], mode: Mode) -> Way:
    """The list in a prefilter in that mode."""

    @asynccontextmanager
    async def filtered() -> AsyncIterator[None]:
        report = await keeper.apply(wanted(rules_of(some), DEVICE, mode=mode))
        if [each.mode for each in report.devices] != [mode]:
            raise Wrong(f"no prefilter in {mode} mode: {report}")
        yield
        await keeper.apply(Prefiltering())

    return filtered


def nftables(machine: Machine, some: list[Network]) -> Way:
    """The list in a set at netdev ingress."""
    elements = ",".join(f"{ipaddress.ip_address(address)}/{length}" for address, length in some)
    held = f"set s {{\n type ipv4_addr\n flags interval\n elements = {{ {elements} }}\n}}"
    chain = f'chain c {{\n type filter hook ingress device "{DEVICE}" priority 0\n ip saddr @s drop\n}}'

    @asynccontextmanager
    async def filtered() -> AsyncIterator[None]:
        machine.run("nft", "-f", "-", stdin=f"table netdev f {{\n{held}\n{chain}\n}}\n")
        yield
        machine.run("nft", "delete", "table", "netdev", "f")

    return filtered


async def _rounds(near: Machine, far: Machine, ways: dict[str, Way], rounds: int, seconds: int) -> dict[str, Any]:
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in sorted(ways, reverse=number % 2 == 1):
            async with ways[name]():
                for measure in MEASURES:
                    rate = await asyncio.to_thread(gigabits, near, far, measure, seconds)
                    found[name, measure].append(rate)
    return {
        measure: {
            "gbit_s": {name: round(typical(measure, found[name, measure]), 2) for name in ways},
            "ratio": {
                name: round(ratio(measure, found[name, measure], found[NOTHING, measure]), 3)
                for name in ways
                if name != NOTHING
            },
        }
        for measure in MEASURES
    }


async def _all(near: Machine, far: Machine, folder: Path, sets: int, rounds: int, seconds: int) -> dict[str, Any]:
    some = networks(sets)
    with mounted_bpffs(folder / "bpf") as bpffs:
        with far.entered():  # whose devices the keeper's thread looks after
            keeper = PrefilterKeeper(folder / "cache", bpffs=bpffs, resync_seconds=None)
            await keeper.apply(wanted(rules_of(some), DEVICE))
        ways: dict[str, Way] = {NOTHING: nothing, "nft_ingress": nftables(far, some)}
        ways |= {mode.value: prefilter(keeper, some, mode) for mode in (Mode.NATIVE, Mode.GENERIC)}
        try:
            await keeper.apply(Prefiltering())
            return await _rounds(near, far, ways, rounds, seconds)
        finally:
            await keeper.close()


def measured(sets: int, rounds: int, seconds: int) -> dict[str, Any]:
    """All of it; what RESULT says. Raises Wrong."""
    console = bench.console()
    console.print(f"{bench.circumstances()}, {rounds} rounds of {seconds} s")
    with tempfile.TemporaryDirectory(prefix="netloom-bench-") as folder, Lab(f"nlb{os.getpid() % 100000}") as lab:
        near, far = lab.add_node("near"), lab.add_node("far")
        found = asyncio.run(_all(near, far, Path(folder), sets, rounds, seconds))
    rows = [
        (f"{measure} {name}", f"{rate:.2f}", f"{found[measure]['ratio'].get(name, 1.0):.2f}")
        for measure in MEASURES
        for name, rate in found[measure]["gbit_s"].items()
    ]
    console.print(bench.table(f"Past a list of {sets} entries", ("", "Gbit/s", "/ without"), rows))
    return {"entries": sets, **found}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="What a prefilter costs those whose packets pass.")
    parser.add_argument("--sets", type=int, default=10_000, help="entries of the list")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=1, help="of TCP in each round")
    options = parser.parse_args()
    return bench.conclude("bench-prefilter-passed", lambda: measured(options.sets, options.rounds, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
