"""Who asks the node's allocator, and when it answers: nothing is told that is not written down."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from netloom.api.problem import Problem
from netloom.api.v1alpha1 import PoolAddress
from netloom.cidr import Cidr, Version, format_address, parse_address
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner
from netloom_reconcilers.node.addresses import service as module
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint, Unwritable
from netloom_reconcilers.node.addresses.server import AddressServer, ServedSocket, SocketUnusable, bind
from netloom_reconcilers.node.addresses.service import (
    LEAST_REST_SECONDS,
    REPLACED,
    TOLD_SECONDS,
    UNREAD,
    AddressService,
    NoAddress,
)
from tests.runtime.virtual import on_both_loops, run

V4: frozenset[Version] = frozenset({4})
A, B, C = (Owner(f"default/{name}", name * 3) for name in "abc")


class Clock:
    """Time that a test makes pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(folder: Path, *cidrs: str, pool: str = "", rest: float = 30.0) -> AddressService:
    """One that gives of these."""
    made = AddressService(
        NodeAllocator(rest),
        Checkpoint(folder, "n1"),
        lambda pool: V4,
        lambda owner, short: f"{owner.name} gets none" if owner else "pods get none",
        clock=Clock(),
    )
    assert made.begin() is not None
    give(made, *cidrs, pool=pool)
    made.obstacle = ""
    return made


def give(service: AddressService, *cidrs: str, pool: str = "") -> None:
    service.provide(Supply(blocks={pool: tuple(map(Cidr.parse, cidrs))}))


async def ask(service: AddressService, owner: Owner, **how: Any) -> str:
    return " ".join(map(format_address, (await service.allocate(owner, **how)).addresses))


async def waits(service: AddressService, owner: Owner, **how: Any) -> asyncio.Task[str]:
    """One who asks, and has met a shortage."""
    task = asyncio.create_task(ask(service, owner, **how))
    while owner not in {waiter.owner for waiter in service._waiters}:
        await asyncio.sleep(0)
    return task


def next_life(service: AddressService, folder: Path) -> AddressService:
    service.checkpoint.close()
    return begun(folder, "10.0.0.0/29")


async def test_the_next_life_knows_what_was_told(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.0/29")
    assert await ask(service, A) == "10.0.0.2"
    assert await ask(service, B) == "10.0.0.3"
    await service.release(A)
    again = next_life(service, tmp_path)
    assert await ask(again, B) == "10.0.0.3"
    assert again.allocator.holding(A) is None
    assert again.allocator.need("", 0)[4].resting == 1


async def test_what_arrives_together_is_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = begun(tmp_path, "10.0.0.0/24")
    pieces: list[int] = []
    real = service.checkpoint.append
    monkeypatch.setattr(service.checkpoint, "append", lambda records: (pieces.append(len(records)), real(records))[1])
    given = await asyncio.gather(*(ask(service, Owner(f"d/{number}")) for number in range(50)))
    assert len(set(given)) == 50
    assert pieces == [50]


async def test_what_cannot_be_written_is_not_told_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = begun(tmp_path, "10.0.0.0/29")
    await ask(service, A)
    real, said = service.checkpoint.append, list[str]()
    service.changed = lambda: said.append(service.unwritable)

    def fails(_records: object) -> None:
        raise Unwritable("No space left on device")

    monkeypatch.setattr(service.checkpoint, "append", fails)
    with pytest.raises(
        NoAddress, match=r"cannot be written: No space left on device\. No pod of this node gets an address"
    ):
        await ask(service, B)
    with pytest.raises(NoAddress):
        await service.release(A)
    assert (service.failures, len(said)) == ({"CheckpointUnwritable": 1}, 1)
    assert service.allocator.holding(A) is not None, "nothing more is begun"
    monkeypatch.setattr(service.checkpoint, "append", real)
    assert await ask(service, C) == "10.0.0.4"
    assert (service.unwritable, said[-1]) == ("", "")
    again = next_life(service, tmp_path)
    assert {owner for owner, _ in again.allocator.held()} == {A, B, C}


async def test_where_nothing_can_be_written_from_the_beginning_it_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    service = AddressService(NodeAllocator(), Checkpoint(tmp_path / "state", "n1"), lambda pool: V4, lambda o, s: "")
    assert service.begin() is None
    assert "Not a directory" in service.unwritable or "File exists" in service.unwritable
    (tmp_path / "state").unlink()
    assert service.begin() is not None
    assert service.unwritable == ""


async def test_who_meets_a_shortage_waits_for_more(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.7/32", pool="web")
    await ask(service, A, pool="web")
    tasks = [await waits(service, each, pool="web") for each in (B, C)]
    give(service, "10.0.0.7/32", "10.0.1.0/31", pool="web")
    assert await asyncio.gather(*tasks) == ["10.0.1.0", "10.0.1.1"], "first come, first served"


async def test_who_meets_a_shortage_waits_for_what_rests(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.7/32", rest=0.02)
    service.clock = asyncio.get_running_loop().time
    await ask(service, A)
    await service.release(A)
    assert await ask(service, B, wait=20) == "10.0.0.7"


async def test_who_waited_in_vain_is_told_why_and_the_node_says_so(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.7/32")
    await ask(service, A)
    with pytest.raises(NoAddress, match="default/b gets none") as refusal:
        await ask(service, B, wait=0)
    assert (refusal.value.reason, refusal.value.passing) == ("AddressesExhausted", True)
    assert [why for _, why in service.failed.values()] == ["pods get none"]
    assert service.allocator.need("", 0)[4].waiting == 1, "it will ask again"
    service.allocator.rest_seconds = 0
    await service.release(A)
    assert await ask(service, B) == "10.0.0.7"
    assert service.failed == {}


async def test_who_is_released_while_it_waits_is_given_nothing_afterwards(tmp_path: Path) -> None:
    """A kubelet gives up an ADD, and sends a DEL. There will be no second one."""
    service = begun(tmp_path, "10.0.0.7/32")
    await ask(service, A)
    task = await waits(service, B)
    assert await service.release(B) == ()
    with pytest.raises(NoAddress, match="was released while it waited"):
        await task
    service.allocator.rest_seconds = 0
    await service.release(A)
    await asyncio.sleep(0)
    assert list(service.allocator.held()) == []


async def test_who_does_not_ask_again_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom_reconcilers.node.addresses.service.TOLD_SECONDS", 0.01)
    service, told = begun(tmp_path), asyncio.Event()
    service.clock = asyncio.get_running_loop().time
    with pytest.raises(NoAddress):
        await ask(service, A, wait=0)
    assert service.failed
    service.changed = told.set
    async with asyncio.timeout(20):
        await told.wait()
    assert not service.failed


async def test_the_pool_is_asked_for_once_and_a_problem_is_the_answer(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.0/31", pool="web")
    asked: list[Owner] = []

    async def pool_of(owner: Owner, _named: str | None, _uid: str) -> Mapping[str, frozenset[Version]] | Problem:
        asked.append(owner)
        problem = Problem("Pod default/b", "", "", "NoSuchPool", "there is none.", "Make it.")
        return {"web": frozenset()} if owner == A else problem

    service.pool_of = pool_of
    assert [await ask(service, A), await ask(service, A)] == ["10.0.0.0", "10.0.0.0"]
    with pytest.raises(NoAddress, match="Make it") as refusal:
        await ask(service, B)
    assert (refusal.value.reason, refusal.value.passing) == ("NoSuchPool", False)
    assert asked == [A, B]


async def test_who_is_released_while_its_pool_is_looked_for_is_given_none(tmp_path: Path) -> None:
    service, found = begun(tmp_path, "10.0.0.0/29"), asyncio.Event()

    async def pool_of(_owner: Owner, _named: str | None, _uid: str) -> Mapping[str, frozenset[Version]] | Problem:
        await found.wait()
        return {"": V4}

    service.pool_of = pool_of
    tasks = [asyncio.create_task(ask(service, owner)) for owner in (A, A, B)]
    await asyncio.sleep(0)
    await service.release(A)
    found.set()
    said = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, NoAddress) for each in said] == [True, True, False]
    assert [owner for owner, _ in service.allocator.held()] == [B]
    assert await ask(service, A) == "10.0.0.3", "who asks anew is given one"


async def test_families_may_come_of_two_pools_and_none_is_given_without_the_other(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.0/31", pool="four")

    async def pool_of(_owner: Owner, _named: str | None, _uid: str) -> Mapping[str, frozenset[Version]] | Problem:
        return {"four": V4, "six": frozenset({6})}

    service.pool_of = pool_of
    task = await waits(service, A)
    need = {pool: service.allocator.need(pool, 0) for pool in ("four", "six")}
    assert [(pool, each) for pool in need for each in (4, 6) if need[pool][each].waiting] == [("four", 4), ("six", 6)]
    both = {"four": (Cidr.parse("10.0.0.0/31"),), "six": (Cidr.parse("fd00::/127"),)}
    service.provide(Supply(blocks=both))
    assert await task == "10.0.0.0 fd00::"
    assert await ask(service, B, families=V4) == "10.0.0.1"
    with pytest.raises(NoAddress, match="gets none"):
        await ask(service, C, wait=0.01)
    service.provide(Supply(blocks=both, closed=frozenset({"six"})))
    await service.release(B)
    with pytest.raises(NoAddress, match="gets none"):
        await ask(service, C, wait=0.01)
    assert service.allocator.holding(C) is None


async def test_what_the_cni_does_not_have_any_more_is_taken_back(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.0/28")
    by_hand, second = Owner("by-hand"), Owner(A.name, A.container, "net1")
    for owner in (A, second, B, by_hand):
        await ask(service, owner)
    assert len(await service.collect({(A.container, "eth0")})) == 2
    assert {owner for owner, _ in service.allocator.held()} == {A, by_hand}


async def test_where_nothing_else_is_free_what_has_rested_longest_is_given_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many pods as a node's addresses, deleted and made again within the time for which addresses rest."""
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.2)
    monkeypatch.setattr(module, "LEAST_REST_SECONDS", 0.3)
    service = begun(tmp_path, "10.0.0.8/31")
    service.clock = asyncio.get_running_loop().time
    assert [await ask(service, A), await ask(service, B)] == ["10.0.0.8", "10.0.0.9"]
    await service.release(B)
    await service.release(A)
    task = asyncio.create_task(ask(service, C, wait=20))
    while not service.allocator.has_waiters:
        await asyncio.sleep(0)
    assert service.allocator.need("", service.clock())[4] == (0, 1, 0, 2), "whoever gives to the node is asked first"
    assert await task == "10.0.0.9", "the one that is free longest"
    assert service.failures == {}


async def test_as_many_pods_as_a_kubelet_runs_are_replaced_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of 110 pods, all of them within the time for which addresses rest: a /24 has 253."""
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.05)
    monkeypatch.setattr(module, "LEAST_REST_SECONDS", 0.1)
    service = begun(tmp_path, "10.0.0.0/24")
    service.clock = asyncio.get_running_loop().time
    for number in range(4):
        pods = [Owner(f"default/{number}-{each}", "c") for each in range(110)]
        given = await asyncio.gather(*(ask(service, each, wait=25) for each in pods))
        assert len(set(given)) == 110
        for each in pods:
            await service.release(each)
    assert (service.failures, service.allocator.need("", service.clock())[4].resting) == ({}, 253)


def timers() -> int:
    """That the loop keeps, in virtual time."""
    return len(asyncio.get_running_loop().timers())  # type: ignore[attr-defined]


@on_both_loops
def test_who_waits_for_what_rests_has_no_more_timers_for_each_look(loop: Callable[[], Any], tmp_path: Path) -> None:
    """Of a drained node's pods that come again, and each of which makes the service look at all who wait."""

    async def scene() -> None:
        service = begun(tmp_path, "10.0.0.0/28")
        service.clock = asyncio.get_running_loop().time
        before = [Owner(f"default/{number}", "before") for number in range(13)]
        for each in before:
            await ask(service, each)
        for each in before:
            await service.release(each)
        pods = [Owner(f"default/{number}", "after") for number in range(40)]
        tasks = [await waits(service, each, wait=1000) for each in pods]
        await asyncio.sleep(0.1)
        assert timers() == 2 * len(pods) + 1, "until it is pressed, and until it gives up; and one of the service"
        await asyncio.gather(*tasks[:13])
        assert asyncio.get_running_loop().time() == pytest.approx(LEAST_REST_SECONDS, abs=0.1)
        assert timers() == 27, "until each of the others gives up: nothing rests"
        for each in pods[:13]:
            await service.release(each)
        assert timers() == 28
        await asyncio.gather(*tasks[13:26])
        for task in tasks[26:]:
            task.cancel()
        await asyncio.wait(tasks)
        assert timers() == 0

    run(scene(), loop)


@pytest.mark.parametrize("pool", ["", "web"])
async def test_of_those_who_wait_for_the_same_only_the_first_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    """Else 110 pods on a full node were 12,000 looks for an address, and 0.2 s of CPU time."""
    service = begun(tmp_path, "10.0.0.8/31", pool=pool, rest=0)
    for each in (A, B):
        await ask(service, each, pool=pool)
    tasks = [await waits(service, Owner(f"default/{number}"), pool=pool) for number in range(40)]
    real, tried = service.allocator.allocate, list[Owner]()
    monkeypatch.setattr(
        service.allocator, "allocate", lambda owner, *how, **more: (tried.append(owner), real(owner, *how, **more))[1]
    )
    await service.release(A)
    assert await tasks[0] == "10.0.0.8"
    await asyncio.sleep(0)
    assert tried == [Owner("default/0"), Owner("default/1"), Owner("default/1")], (
        "the last one as something has changed"
    )
    service.allocator.adopt(Owner("default/7"), [parse_address("10.9.9.9")])
    assert await tasks[7] == "10.9.9.9", "who is seen to have some waits no longer"
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize(("meant_for", "tried_in_vain"), [("", 1), ("default/39", 39)])
async def test_of_single_addresses_others_are_tried_where_one_is_meant_for_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meant_for: str, tried_in_vain: int
) -> None:
    """Mode crd. Mostly none is, and 220 pods on a full node were 49,000 looks at 250 addresses."""
    service = begun(tmp_path, rest=0)
    singles = {parse_address(f"10.0.0.{number}"): PoolAddress() for number in (1, 2)}
    service.provide(Supply(singles=singles))
    for each in (A, B):
        await ask(service, each)
    tasks = [await waits(service, Owner(f"default/{number}")) for number in range(40)]
    service.provide(Supply(singles={**singles, parse_address("10.0.0.1"): PoolAddress(owner=meant_for)}))
    await asyncio.sleep(0)
    real, looked = service.allocator.stock.next, list[str]()
    monkeypatch.setattr(
        service.allocator.stock, "next", lambda owner, *how: (looked.append(owner), real(owner, *how))[1]
    )
    await service.release(A)
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert done == {tasks[39 if meant_for else 0]}, "who it is meant for, or else the first"
    looked.clear()
    service.allocator.on_change()
    await asyncio.sleep(0)
    assert len(looked) == tried_in_vain
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@on_both_loops
def test_failures_are_told_until_nobody_asks_by_one_timer(loop: Callable[[], Any], tmp_path: Path) -> None:
    async def scene() -> None:
        clock = asyncio.get_running_loop().time
        service, told = begun(tmp_path), asyncio.Event()
        service.clock = clock
        for pool in ("", "web") * 10:
            with pytest.raises(NoAddress):
                await ask(service, A, pool=pool, wait=1)
        assert timers() == 1
        for left in (1, 0):
            ends = min(at for at, _ in service.failed.values()) + TOLD_SECONDS
            service.changed = told.set
            await told.wait()
            told.clear()
            assert (clock(), len(service.failed)) == (pytest.approx(ends, abs=0.01), left)
        assert timers() == 0

    run(scene(), loop)


async def test_what_was_freed_just_now_is_given_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.0)
    service = begun(tmp_path, "10.0.0.8/32")
    await ask(service, A)
    await service.release(A)
    service.clock.now = LEAST_REST_SECONDS - 0.001  # type: ignore[attr-defined]
    with pytest.raises(NoAddress, match="gets none"):
        await ask(service, B, wait=0.05)
    service.clock.now = LEAST_REST_SECONDS  # type: ignore[attr-defined]
    assert await ask(service, B, wait=20) == "10.0.0.8"


async def test_while_another_machine_runs_as_this_node_nothing_is_given_and_what_was_can_go_back(
    tmp_path: Path,
) -> None:
    service = begun(tmp_path, "10.0.0.8/31")
    await ask(service, A)
    service.twin = lambda: "Two agents run as node n1."
    with pytest.raises(NoAddress, match=r"nothing is given, .*: Two agents run as node n1") as refusal:
        await ask(service, B)
    assert (refusal.value.reason, refusal.value.passing) == ("TwoAgents", True)
    assert len(await service.release(A)) == 1
    service.twin = lambda: ""
    assert await ask(service, B) == "10.0.0.9"


# ------------------------------------------------------------------------------------------------------- the socket


@contextlib.asynccontextmanager
async def listening(service: AddressService, path: Path) -> AsyncIterator[Callable[..., Any]]:
    connector = aiohttp.UnixConnector(str(path))
    async with AddressServer(service, "n1").listening(path), aiohttp.ClientSession(connector=connector) as session:

        async def request(method: str, url: str, body: object = None) -> tuple[int, Any]:
            data = body if isinstance(body, str) else None if body is None else json.dumps(body)
            async with session.request(method, f"http://agent{url}", data=data) as answer:
                return answer.status, json.loads(await answer.read() or b"null")

        yield request


async def test_the_socket_speaks_json(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.0/29")
    path = tmp_path / "agent.sock"
    async with listening(service, path) as request:
        assert path.stat().st_mode & 0o777 == 0o600
        assert await request("GET", "/v1/status") == (204, None)
        told = {"name": "d/a", "container": "c", "interface": "eth0", "pool": ""}
        told |= {"addresses": [{"address": "10.0.0.2", "cidr": "10.0.0.0/29"}]}
        assert await request("POST", "/v1/addresses", {"name": "d/a", "container": "c"}) == (200, told)
        assert await request("GET", "/v1/addresses") == (
            200,
            {
                "node": "n1",
                "assignments": [told],
                "pools": [{"pool": "", "family": 4, "used": 1, "free": 4, "resting": 0, "waiting": 0}],
                "orphans": [],
            },
        )
        assert await request("DELETE", "/v1/addresses?name=d/a&container=x") == (200, {"released": []})
        assert await request("DELETE", "/v1/addresses?name=d/a&container=c&address=10.0.0.3") == (200, {"released": []})
        gone = {"released": ["10.0.0.2"]}
        assert await request("DELETE", "/v1/addresses?name=d/a&container=c&address=10.0.0.2/32") == (200, gone)
        await request("POST", "/v1/addresses", {"name": "d/b", "container": "c"})
        assert await request("POST", "/v1/gc", {"valid": []}) == (200, {"released": ["10.0.0.3"]})
    assert not path.exists()


async def test_who_hangs_up_waits_no_longer(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.7/32")
    async with listening(service, tmp_path / "agent.sock") as request:
        await request("POST", "/v1/addresses", {"name": "d/a"})
        asking = asyncio.create_task(request("POST", "/v1/addresses", {"name": "d/b"}))
        async with asyncio.timeout(20):
            while not service._waiters:
                await asyncio.sleep(0.001)
            asking.cancel()
            while service._waiters:
                await asyncio.sleep(0.001)
    assert service.allocator.need("", 0)[4].waiting == 1, "it may ask again"


@pytest.mark.parametrize(
    ("method", "url", "body", "said"),
    [
        ("POST", "/v1/addresses", "{", "Input data was truncated"),
        ("POST", "/v1/addresses", {}, "Object missing required field `name`"),
        ("POST", "/v1/addresses", {"name": ""}, "name and interface cannot be empty"),
        ("POST", "/v1/addresses", {"name": "d/a", "families": [5]}, "families are 4 and 6"),
        ("DELETE", "/v1/addresses", None, "parameter 'name' is missing"),
        ("DELETE", "/v1/addresses?name=d/a&interface=", None, "name and interface cannot be empty"),
        ("DELETE", "/v1/addresses?name=d/a&address=10", None, "'10' is not an IP address"),
        ("DELETE", "/v1/addresses?name=d/a&address=10.0.0.2/", None, "'10.0.0.2/' is not a CIDR (address/length)"),
        ("DELETE", "/v1/addresses?name=d/a&address=10.0.0.2/x", None, "'10.0.0.2/x' is not a CIDR (address/length)"),
        (
            "DELETE",
            "/v1/addresses?name=d/a&address=10.0.0.2/33",
            None,
            "'10.0.0.2/33': an IPv4 prefix has at most 32 bits",
        ),
        ("POST", "/v1/gc", {"valid": [{}]}, "Object missing required field `container` - at `$.valid[0]`"),
    ],
)
async def test_what_cannot_be_understood_is_told(
    tmp_path: Path, method: str, url: str, body: object, said: str
) -> None:
    service = begun(tmp_path, "10.0.0.0/29")
    async with listening(service, tmp_path / "agent.sock") as request:
        message = f"the request cannot be understood: {said}."
        assert await request(method, url, body) == (400, {"reason": "BadRequest", "message": message})
        assert list(service.allocator.held()) == []


async def test_refusals_have_a_reason_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = begun(tmp_path, "10.0.0.7/32")
    async with listening(service, tmp_path / "agent.sock") as request:
        await request("POST", "/v1/addresses", {"name": "d/a"})
        full = {"reason": "AddressesExhausted", "message": "d/b gets none"}
        assert await request("POST", "/v1/addresses", {"name": "d/b", "waitSeconds": 0}) == (503, full)
        service.obstacle = "not yet."
        for method, url in (("GET", "/v1/status"), ("DELETE", "/v1/addresses?name=d/a")):
            assert await request(method, url) == (503, {"reason": "NotReady", "message": "not yet."})
        service.obstacle, service.twin = "", lambda: "Two agents run as node n1."
        assert (await request("GET", "/v1/status"))[1]["reason"] == "TwoAgents"
        assert (await request("GET", "/v1/nowhere"))[0] == 404
        monkeypatch.setattr(os, "geteuid", lambda: 1)
        monkeypatch.setattr("netloom_reconcilers.node.addresses.server._ROOT", -1)
        assert (await request("GET", "/v1/addresses"))[1]["reason"] == "NotRoot"


async def test_a_socket_that_an_agent_listens_on_is_not_taken(tmp_path: Path) -> None:
    path, said = tmp_path / "agent.sock", list[str]()
    first = bind(path)
    with pytest.raises(SocketUnusable, match="another agent listens there"):
        bind(path)
    server = AddressServer(begun(tmp_path, "10.0.0.0/29"), "n1")
    served = ServedSocket(server, path, lambda: said.append(served.fault), again=0.01)
    task = asyncio.create_task(served.run())
    while not said:
        await asyncio.sleep(0.001)
    first.close()
    while said[-1]:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not path.exists()


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(SocketUnusable, match="no pod can ask for an address: AF_UNIX path too long"):
        bind(tmp_path / ("x" * 120))


async def test_beside_another_agent_of_the_machine_nothing_is_given_and_no_second_directory_advised(
    tmp_path: Path,
) -> None:
    first = begun(tmp_path, "10.0.0.0/29")
    second = AddressService(NodeAllocator(), Checkpoint(tmp_path, "n1"), lambda pool: V4, lambda owner, short: "none")
    assert second.begin() is None
    assert "another agent uses it." in second.unwritable
    assert "Stop one of the two agents" in second.unwritable
    assert "--state-dir" not in second.unwritable
    with pytest.raises(NoAddress):
        await second.allocate(B)
    first.checkpoint.close()


async def test_what_could_not_be_read_may_be_another_answer_soon(tmp_path: Path) -> None:
    service = begun(tmp_path, "10.0.0.0/29")
    for reason, passing in ((UNREAD, True), (REPLACED, True), ("PoolMissing", False)):

        async def none(_owner: Owner, _asked: str | None, _uid: str, reason: str = reason) -> Problem:
            return Problem("Pod d/a", "", "", reason, "it is so.", "Wait.")

        service.pool_of = none
        with pytest.raises(NoAddress) as refusal:
            await service.allocate(A)
        assert refusal.value.passing is passing
