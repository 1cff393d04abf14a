"""Desired states for tests, and waiting for them to come true."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from netloom.cidr import Cidr, parse_address
from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import Desired, MeshNode, Peer
from netloom.kernel.mesh.encapsulation import VXLAN, Encapsulation

DEADLINE_SECONDS = 20.0
REST = 2.0
"""How much longer than a look the wait until the next one is: looking, which may be six processes, takes a third of the
time at most."""


def here(
    name: str = "node-1",
    local: str = "192.168.7.1",
    *addresses: str,
    encapsulations: tuple[Encapsulation, ...] = (VXLAN,),
    mtu: int = 0,
    **more: object,
) -> MeshNode:
    """This node; `addresses` default to one of each family."""
    own = addresses or ("10.1.0.0", "fd00:1::")
    return MeshNode(
        local=parse_address(local),
        mac=mac_of(name),
        encapsulations=encapsulations,
        mtu=mtu,
        addresses=tuple(parse_address(address) for address in own),
        **more,  # type: ignore[arg-type]
    )


def peer(
    number: int,
    *cidrs: str,
    name: str = "",
    since: str = "",
    encapsulations: tuple[Encapsulation, ...] = (VXLAN,),
    underlay6: str = "",
) -> Peer:
    """Node `number` of a mesh: `node-N` at 192.168.7.N with 10.N.0.0/24 and fd00:N::/64."""
    name = name or f"node-{number}"
    prefixes = cidrs or (f"10.{number}.0.0/24", f"fd00:{number:x}::/64")
    underlay = parse_address(f"192.168.{7 + number // 256}.{number % 256}")
    six = parse_address(underlay6) if underlay6 else b""
    return Peer(name, underlay, mac_of(name), tuple(Cidr.parse(cidr) for cidr in prefixes), since, encapsulations, six)


def mesh(*numbers: int) -> Desired:
    """Node 1's view of a mesh with these peers."""
    return Desired(here(), [peer(number) for number in numbers or (2, 3)])


def many(count: int) -> Desired:
    """Node 1's view of a mesh of `count` peers with an IPv4 CIDR each."""
    peers = []
    for i in range(count):
        name, high, low = f"peer-{i}", i // 250, i % 250 + 1
        cidr = Cidr.parse(f"10.{100 + high // 256}.{high % 256}.{low}/32")
        peers.append(Peer(name, parse_address(f"172.16.{high}.{low}"), mac_of(name), (cidr,)))
    return Desired(here(), peers)


@contextlib.asynccontextmanager
async def running(plane: Keeper[Any, Any]) -> AsyncIterator[None]:
    """The data path, or another keeper, follows events meanwhile."""
    task = asyncio.create_task(plane.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually(condition: Callable[[], bool], what: Callable[[], str] | str = "it") -> None:
    """Wait until it is so."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            began = time.monotonic()
            while not condition():
                await asyncio.sleep(max(0.005, REST * (time.monotonic() - began)))
                began = time.monotonic()
    except TimeoutError:
        raise AssertionError(
            f"not within {DEADLINE_SECONDS:g} s: {what if isinstance(what, str) else what()}"
        ) from None


async def becomes(read: Callable[[], str], wanted: str) -> None:
    """Wait until the text is `wanted`; the last text is in the failure."""
    last = ""

    def same() -> bool:
        nonlocal last
        last = read()
        return last == wanted

    try:
        await eventually(same)
    except AssertionError:
        had, has = wanted.splitlines(), last.splitlines()
        missing = "\n".join(f"- {line}" for line in had if line not in has)
        surplus = "\n".join(f"+ {line}" for line in has if line not in had)
        raise AssertionError(f"not within {DEADLINE_SECONDS:g} s:\n{missing}\n{surplus}") from None
