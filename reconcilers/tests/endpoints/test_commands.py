"""ADD, DEL, CHECK, STATUS and GC: what they leave, whatever goes wrong and whoever goes away."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from netloom.api.problem import Problem
from netloom.cidr import Cidr, parse_address
from netloom.ipam.address_stock import Supply
from netloom.kernel.endpoints.endpoint import FoundEndpoint, WiringFailed, device_of
from netloom.runtime.metrics import REGISTRY
from netloom_reconcilers.node.addresses.checkpoint import Unwritable
from netloom_reconcilers.node.addresses.running import seen
from netloom_reconcilers.node.endpoints import attachments as module
from netloom_reconcilers.node.endpoints.attachments import Attachments
from netloom_reconcilers.node.endpoints.networks import FILE, Networks
from tests.endpoints.world import Node, call, owner, said_by, valid
from tests.runtime.scripted import until


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# ------------------------------------------------------------------------------------------------------------- adding


async def test_a_pod_gets_an_address_and_an_interface(node: Node) -> None:
    got = await node.ask("ADD")
    assert got["ips"] == [{"address": "10.0.0.2/32", "gateway": "169.254.1.1", "interface": 1}]
    assert [each.get("sandbox", "") for each in got["interfaces"]] == ["", "/run/netns/c1"]
    assert got["interfaces"][1]["mtu"] == 1450
    assert node.held() == {"default/web c1 eth0": "10.0.0.2"}
    (endpoint,) = node.attachments.endpoints
    assert (endpoint.pod, endpoint.netns) == ("default/web", "/run/netns/c1")


async def test_who_is_no_pod_goes_by_its_container(node: Node) -> None:
    """cnitool has no pods."""
    assert await node.add("c1", "") == "10.0.0.2"
    assert node.held() == {"c1 c1 eth0": "10.0.0.2"}
    assert await node.ask("DEL", "c1", "") == {}
    assert node.held() == {}


async def test_a_second_interface_of_a_container_is_its_own(node: Node) -> None:
    assert await node.add() == "10.0.0.2"
    assert await node.add(ifname="net1") == "10.0.0.3"
    assert await node.ask("DEL", ifname="net1") == {}
    assert node.held() == {"default/web c1 eth0": "10.0.0.2"}


async def test_what_the_runtime_wants_is_done(node: Node) -> None:
    got = await node.ask("ADD", runtimeConfig={"mac": "02:00:00:00:00:09"}, dns={"nameservers": ["10.96.0.10"]})
    assert got["interfaces"][1]["mac"] == "02:00:00:00:00:09"
    assert got["dns"] == {"nameservers": ["10.96.0.10"]}


async def test_an_add_without_a_del_before_it_is_refused_and_changes_nothing(node: Node) -> None:
    await node.add()
    before = node.held()
    for pod in ("web", "other"):  # and where the container's id is used again
        again = await node.ask("ADD", pod=pod)
        assert again["code"] == 101
        assert "container c1 has eth0 already as that of default/web" in again["details"]
    assert node.held() == before
    assert node.wired() == {("c1", "eth0")}


@pytest.mark.parametrize(
    ("reason", "code"),
    [("namespace-gone", 3), ("interface-taken", 101), ("address-taken", 11), ("lost", 11), ("refused", 102),
     ("not-permitted", 102), ("invalid", 7)],
)  # fmt: skip
async def test_where_the_kernel_refuses_nothing_is_left(node: Node, reason: Any, code: int) -> None:
    node.wiring.fails["wire"] = WiringFailed(reason, "eth0: somebody has taken it.")
    got = await node.ask("ADD")
    assert (got["code"], got["details"]) == (code, "eth0: somebody has taken it.")
    assert node.held() == {}
    assert not node.service.allocator.unwritten, "the checkpoint knows of it"
    node.wiring.fails.clear()
    assert await node.add()


async def test_no_address_is_a_passing_failure_in_the_allocators_words(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ADD_SECONDS", 0.01)
    node.service.provide(Supply())
    got = await node.ask("ADD")
    assert (got["code"], got["details"]) == (11, "default/web gets none: all are taken.")
    assert node.held() == {}


async def test_what_will_not_pass_has_another_code(node: Node) -> None:
    async def no_pool(*_: object) -> Problem:
        return Problem("Pod default/web", "netloom.dev/ip-pool", "blue", "PoolMissing", "there is none.", "Make it.")

    node.service.pool_of = no_pool
    got = await node.ask("ADD")
    assert got["code"] == 100
    assert "blue" in got["details"]


async def test_nothing_is_done_before_all_is_known(node: Node) -> None:
    node.obstacle = "the agent has just begun."
    for command in ("ADD", "CHECK", "GC"):
        got = await node.ask(command, **valid(), prevResult={})
        assert (got["code"], got["details"]) == (11, "the agent has just begun.")
    assert (await node.ask("STATUS"))["code"] == 50
    node.obstacle = ""
    assert await node.ask("STATUS") == {}
    node.lack = "it holds no addresses."
    assert (await node.ask("STATUS"))["details"] == "it holds no addresses."
    assert await node.add(), "who comes all the same is served, or waits"
    node.lack = ""
    node.service.obstacle = "there is no NetloomNode n1."
    assert await node.ask("STATUS") == {
        "cniVersion": "1.1.0",
        "code": 50,
        "msg": "netloom: plugin not available",
        "details": "there is no NetloomNode n1.",
    }


async def test_without_a_namespace_nothing_is_given(node: Node) -> None:
    assert (await node.ask("ADD", sandbox=None))["code"] == 4
    assert (await node.ask("CHECK", sandbox=None, prevResult={}))["code"] == 3
    assert node.held() == {}


# ---------------------------------------------------------------------------------------------------------- chaining


async def test_plugins_ahead_may_have_made_other_interfaces(node: Node) -> None:
    loopback = {"interfaces": [{"name": "lo", "sandbox": "/run/netns/c1"}], "cniVersion": "1.1.0"}
    ours = ("127.0.0.1/8", "::1/128", "0:0:0:0:0:0:0:1/128")
    loopback["ips"] = [{"address": address, "interface": 0} for address in ours]
    got = await node.ask("ADD", prevResult=loopback)
    assert [each["name"] for each in got["interfaces"]] == ["lo", device_of("c1", "eth0"), "eth0"]
    assert [each["interface"] for each in got["ips"]] == [0, 0, 0, 2]


@pytest.mark.parametrize(
    "ahead",
    [
        {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}]},
        {"ips": [{"address": "10.1.0.2/24"}]},
    ],
)
async def test_a_network_ahead_is_refused(node: Node, ahead: dict[str, Any]) -> None:
    got = await node.ask("ADD", prevResult=ahead)
    assert got["code"] == 7
    assert "Put this one first" in got["details"]
    assert node.held() == {}


# ---------------------------------------------------------------------------------------------------------- deleting


async def test_a_deletion_gives_back_and_may_be_repeated(node: Node) -> None:
    result = await node.ask("ADD")
    assert await node.ask("DEL", prevResult=result) == {}
    assert node.held() == {}
    assert node.wired() == set()
    assert await node.ask("DEL", prevResult=result) == {}
    assert await node.ask("DEL", "never-seen") == {}


async def test_an_old_deletion_takes_nothing_from_who_came_after(tmp_path: Path) -> None:
    """There is one address, and it is another pod's by then."""
    node = Node(tmp_path, "10.0.0.0/30")
    old = await node.ask("ADD", "c1", "web", uid="u1")
    assert await node.ask("DEL", "c1", "web", uid="u1", prevResult=old) == {}
    other = await node.ask("ADD", "c2", "other", uid="u2")
    assert other["ips"] == old["ips"]
    assert await node.ask("DEL", "c1", "web", uid="u1", prevResult=old) == {}
    assert node.held() == {"default/other c2 eth0": "10.0.0.2"}
    assert node.wired() == {("c2", "eth0")}


def _blocks(*texts: str) -> list[Cidr]:
    return [Cidr.parse(text) for text in texts]


@pytest.mark.parametrize(
    "asked",
    [
        {"pod": "other"},
        {"uid": "u0"},
        {"prevResult": {"ips": [{"address": "10.0.0.9/32", "interface": 0}], "interfaces": [{"name": "eth0"}]}},
    ],
)
async def test_a_deletion_of_something_else_by_this_name_takes_nothing(node: Node, asked: dict[str, Any]) -> None:
    await node.add("c1", "web", uid="u1")
    assert await node.ask("DEL", "c1", **asked) == {}
    assert node.held() == {"default/web c1 eth0": "10.0.0.2"}
    assert node.wired() == {("c1", "eth0")}


async def test_a_successor_of_the_same_name_is_another(node: Node) -> None:
    """A StatefulSet's pod: the old one's sandbox is still there when the new one is added."""
    old = await node.add("c1", "web", uid="u1")
    new = await node.add("c2", "web", uid="u2")
    assert await node.ask("DEL", "c1", "web", uid="u1") == {}
    assert node.held() == {"default/web c2 eth0": new}
    assert old != new


async def test_a_deletion_without_arguments_or_namespace_works(node: Node) -> None:
    await node.add()
    assert said_by(await node.commands.handle(call("DEL", pod=""), None)) == {}
    assert node.held() == {}


async def test_addresses_of_other_interfaces_are_no_reason_to_keep_this_one(node: Node) -> None:
    """prevResult is of the whole chain, and plugins behind may have added theirs."""
    got = await node.ask("ADD")
    got["interfaces"].append({"name": "net7", "sandbox": "/run/netns/c1"})
    got["ips"] = [{"address": "192.0.2.1/24", "interface": 2}]
    assert await node.ask("DEL", prevResult=got) == {}
    assert node.held() == {}


async def test_a_deletion_that_cannot_be_made_is_written_down(node: Node) -> None:
    await node.add()
    node.wiring.fails["unwire"] = WiringFailed("lost", "the kernel did not answer.")
    assert await node.ask("DEL") == {}, "no pod's end waits for the agent"
    assert node.held() == {"default/web c1 eth0": "10.0.0.2"}
    (name,) = node.deletions.names()
    await node.deletions.replay()
    assert node.deletions.names() == [name], "not yet"
    assert "the kernel did not answer" in node.deletions.errors()[0]
    node.wiring.fails.clear()
    await node.deletions.replay()
    assert node.deletions.names() == []
    assert node.deletions.errors() == []
    assert node.held() == {}


async def test_a_deletion_before_all_is_known_is_written_down(node: Node) -> None:
    await node.add()
    node.obstacle = "the agent has just begun."
    assert await node.ask("DEL") == {}
    assert node.wired() == {("c1", "eth0")}
    node.obstacle = ""
    assert await node.add("c2") == "10.0.0.3"
    assert node.held() == {"default/web c2 eth0": "10.0.0.3"}, "made up for before anything is added"


async def test_a_full_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given that is forgotten, and what is taken back stays so."""
    await node.add()

    def full(self: object, records: object) -> None:
        if records:
            raise Unwritable("No space left on device")

    checkpoint = type(node.service.checkpoint)
    with monkeypatch.context() as disk:
        disk.setattr(checkpoint, "append", full)
        got = await node.ask("ADD", "c2", "late")
        assert got["code"] == 11
        assert "cannot be written: No space left on device" in got["details"]
        assert node.held() == {"default/web c1 eth0": "10.0.0.2"}
        assert node.wired() == {("c1", "eth0")}
        assert await node.ask("DEL") == {}
        assert node.wired() == set(), "no route leads to it any more"
        assert len(node.deletions.names()) == 1
        monkeypatch.setattr("netloom_reconcilers.node.endpoints.deletions.os.fsync", _full)
        assert (await node.ask("DEL", "c7"))["code"] == 5, "and where that cannot be written down, it is said"
    monkeypatch.undo()
    await node.deletions.replay()
    assert node.deletions.names() == []
    assert node.held() == {}
    assert await node.add("c3") in {"10.0.0.2", "10.0.0.3", "10.0.0.4"}


def _full(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


# ------------------------------------------------------------------------------------------------- who goes away


async def asks(node: Node, command: str, *words: str, **said: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(node.ask(command, *words, **said))


async def test_who_goes_away_while_it_waits_for_an_address_has_none(node: Node) -> None:
    node.service.provide(Supply())
    waiting = await asks(node, "ADD")
    await until(lambda: node.service._waiters)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    node.service.provide(Supply(blocks={"": tuple(_blocks("10.0.0.0/28"))}))
    await asyncio.sleep(0)
    assert node.held() == {}
    assert not node.service.allocator.has_waiters


async def test_who_goes_away_while_it_is_wired_leaves_nothing(node: Node) -> None:
    """What comes next for this interface waits until all is as before."""
    node.wiring.hold = asyncio.Event()
    first = await asks(node, "ADD")
    await until(lambda: node.wiring.wired == 1)
    first.cancel()
    second = await asks(node, "ADD")
    third = await asks(node, "DEL")
    for _ in range(20):
        await asyncio.sleep(0)
    first.cancel()  # once more, in the middle of taking back
    assert node.wiring.wired == 1
    node.wiring.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert "ips" in await second
    assert await third == {}
    assert node.held() == {}
    assert node.wired() == set()
    assert not node.attachments.adding


async def test_a_deletion_ends_an_add_that_waits(node: Node) -> None:
    node.service.provide(Supply())
    adding = await asks(node, "ADD", uid="u1")
    await until(lambda: node.service._waiters)
    other = await asks(node, "DEL", uid="u2")
    for _ in range(20):  # it has long asked, and waits for its turn
        await asyncio.sleep(0)
    assert not other.done()
    assert not adding.done()
    assert not adding.cancelling()
    assert await node.ask("DEL", uid="u1") == {}
    assert await other == {}
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert node.held() == {}


async def test_who_is_not_there_to_be_told_has_nothing(node: Node) -> None:
    answer = await node.answer("ADD")
    assert answer.unheard is not None
    await answer.unheard()
    assert node.held() == {}
    assert node.wired() == set()


async def test_a_successor_of_who_was_not_told_keeps_all(node: Node) -> None:
    """Between the answer that failed and its taking back, the runtime deleted and added again."""
    answer = await node.answer("ADD")
    assert answer.unheard is not None
    assert await node.ask("DEL") == {}
    address = await node.add()
    await answer.unheard()
    assert node.held() == {"default/web c1 eth0": address}
    assert node.wired() == {("c1", "eth0")}


async def test_taking_back_ends_whatever_comes(node: Node) -> None:
    answer, refused = await node.answer("ADD"), await node.answer("ADD", "c2", "other")
    assert answer.unheard is not None
    assert refused.unheard is not None
    node.wiring.fails["unwire"] = WiringFailed("lost", "no answer.")
    await refused.unheard()
    assert len(node.held()) == 2, "until its DEL"
    node.wiring.fails.clear()
    task = asyncio.ensure_future(answer.unheard())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert list(node.held()) == ["default/other c2 eth0"]


async def test_what_somebody_had_before_stays_when_wiring_fails(node: Node) -> None:
    """An address that `netloom ip allocate` gave, or an earlier life."""
    await node.service.allocate(owner("web", "c1"))
    node.wiring.fails["wire"] = WiringFailed("refused", "no.")
    assert (await node.ask("ADD"))["code"] == 102
    assert node.held() == {"default/web c1 eth0": "10.0.0.2"}


# ----------------------------------------------------------------------------------------------------------- looking


async def test_check_compares_with_what_was_said(node: Node) -> None:
    result = await node.ask("ADD")
    assert await node.ask("CHECK", prevResult=result) == {}
    node.wiring.found = ["eth0 is down."]
    got = await node.ask("CHECK", prevResult=result)
    assert got["code"] == 103
    assert "eth0 is down." in got["details"]
    node.wiring.found = []
    got = await node.ask("CHECK", prevResult={**result, "ips": [{"address": "10.0.0.9/32"}]})
    assert got["code"] == 103
    assert "it has 10.0.0.2, which prevResult does not have" in got["details"]
    assert (await node.ask("CHECK", prevResult={**result, "interfaces": []}))["code"] == 103
    assert (await node.ask("CHECK"))["code"] == 7, "without prevResult"
    assert (await node.ask("CHECK", "c9", prevResult=result))["code"] == 3


async def test_check_takes_the_mac_of_the_whole_chain(node: Node) -> None:
    """tuning may have changed it behind this plugin."""
    result = await node.ask("ADD")
    result["interfaces"][1]["mac"] = "02:00:00:00:00:77"
    asked: list[bytes] = []

    async def differences(endpoint: Any, inside: int) -> list[str]:
        asked.append(endpoint.pod_mac)
        return []

    node.commands._differences = differences
    assert await node.ask("CHECK", prevResult=result) == {}
    assert asked == [bytes.fromhex("020000000077")]


# ------------------------------------------------------------------------------------------------- collecting garbage


async def test_gc_removes_what_the_runtime_does_not_know(node: Node) -> None:
    for number in range(4):
        await node.add(f"c{number}", f"p{number}")
    assert await node.ask("GC", **valid(("c1", "eth0"), ("c2",), ("c3", "net9"))) == {}
    assert sorted(node.held()) == ["default/p1 c1 eth0", "default/p2 c2 eth0"], (
        "c2's entry says no interface: all of it"
    )
    assert node.wired() == {("c1", "eth0"), ("c2", "eth0")}
    assert await node.ask("GC", **valid()) == {}
    assert node.held() == {}


async def test_gc_takes_nothing_that_was_added_since_it_looked(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        await node.add(f"c{number}", f"p{number}")
    unwire = node.wiring.unwire

    async def unwire_and_begin_anew(container: str, interface: str) -> bool:
        if container == "c1":
            assert await node.ask("DEL", "c2", "p2") == {}
            await node.add("c2", "p2")
        return await unwire(container, interface)

    monkeypatch.setattr(node.wiring, "unwire", unwire_and_begin_anew)
    assert await node.ask("GC", **valid()) == {}
    assert list(node.held()) == ["default/p2 c2 eth0"]
    assert node.wired() == {("c2", "eth0")}


async def test_who_goes_away_and_who_meets_a_fault_did_not_go_well(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(code: str) -> float:
        return REGISTRY.get_sample_value("netloom_cni_seconds_count", {"command": "ADD", "code": code}) or 0.0

    well, cancelled, faults = count("0"), count("cancelled"), count("11")
    node.wiring.hold = asyncio.Event()
    adding = await asks(node, "ADD")
    await until(lambda: node.wiring.wired == 1)
    adding.cancel()
    node.wiring.hold.set()
    await asyncio.wait([adding])

    async def fails(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(node.attachments, "add", fails)
    with pytest.raises(KeyError):
        await node.ask("ADD")
    assert (count("0") - well, count("cancelled") - cancelled, count("11") - faults) == (0, 1, 1)


async def test_a_network_that_cannot_be_noted_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Networks, "_write", full)
    got = await node.ask("ADD", name="blue")
    assert got["code"] == 11
    assert got["details"].endswith(
        "No space left on device. Make room there, or name another directory by --state-dir."
    )
    assert node.held() == {}
    assert await node.add(), "the node's own network needs no note"


async def test_gc_keeps_who_has_no_container_and_takes_nothing_without_a_list(node: Node) -> None:
    await node.add()
    await node.service.allocate(owner("router", "")._replace(container=""))
    got = await node.ask("GC")
    assert got["code"] == 7
    assert (await node.ask("GC", **{"cni.dev/valid-attachments": [{"containerID": ""}]}))["code"] == 7
    assert (await node.ask("GC", **{"cni.dev/valid-attachments": [{"ifname": "eth0"}]}))["code"] == 6
    assert len(node.held()) == 2
    assert await node.ask("GC", **{"cni.dev/valid-attachments": None}) == {}, "an empty list, as Go writes it"
    assert list(node.held()) == ["default/router  eth0"]


async def test_gc_beside_an_add_takes_nothing_of_it(node: Node) -> None:
    node.wiring.hold = asyncio.Event()
    adding = await asks(node, "ADD", "c1")
    await until(lambda: node.wiring.wired == 1)
    assert await node.ask("GC", **valid()) == {}
    node.wiring.hold.set()
    assert "ips" in await adding
    assert node.wired() == {("c1", "eth0")}


async def test_gc_goes_on_where_one_would_not_go(node: Node) -> None:
    await node.add("c1", "a")
    await node.add("c2", "b")
    node.wiring.fails["unwire"] = WiringFailed("lost", "no answer.")
    assert await node.ask("GC", **valid()) == {}
    assert node.deletions.names() == ["c1:eth0", "c2:eth0"], "they are made up for"
    node.wiring.fails.clear()
    await node.deletions.replay()
    assert node.held() == {}
    assert node.wired() == set()


async def test_gc_of_one_network_takes_nothing_of_another(node: Node, tmp_path: Path) -> None:
    """Also after a restart."""
    await node.add("c1", "a")
    await node.add("c2", "b", name="blue")
    assert (tmp_path / FILE).exists()
    assert await node.ask("GC", name="red", **valid()) == {}
    assert len(node.held()) == 2
    node.service.checkpoint.close()
    again = Node(tmp_path)
    again.attachments.restore(
        [FoundEndpoint(device=device_of("c2", "eth0"), container="c2", interface="eth0", mtu=1450)]
    )
    again.attachments.forget_others()
    assert await again.ask("GC", **valid()) == {}
    assert list(again.held()) == ["default/b c2 eth0"]
    assert await again.ask("GC", name="blue", **valid()) == {}
    assert again.held() == {}
    assert (tmp_path / FILE).read_text() == "{}"


async def test_what_was_there_before_a_boot_is_forgotten(node: Node, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"gone/eth0": "blue"}')
    again = Networks(tmp_path)
    attachments = Attachments(node.service, node.wiring, again)
    assert again.of(("gone", "eth0")) == "blue"
    attachments.forget_others()
    assert (tmp_path / FILE).read_text() == "{}"
    assert again.of(("gone", "eth0")) == "netloom"


# ----------------------------------------------------------------------------------------------------------- restarts


async def test_what_an_address_explains_is_kept_after_a_restart(node: Node, tmp_path: Path) -> None:
    await node.add("c1", "a")
    node.service.checkpoint.close()
    again = Node(tmp_path)
    lost, gone = parse_address("10.0.0.9"), parse_address("10.0.0.10")
    again.service.allocator.adopt(seen("default/lost"), [lost])
    again.attachments.restore(
        [
            FoundEndpoint(device="netloom_p1", container="c1", interface="eth0", netns="/run/netns/c1", mtu=1400),
            FoundEndpoint(device="netloom_p2", container="c2", interface="eth0", addresses=(lost,)),
            FoundEndpoint(device="netloom_p3", container="c3", interface="eth0", addresses=(gone,)),
            FoundEndpoint(device="netloom_p4", container="c4", interface="eth0"),
        ]
    )
    kept = {each.container: each for each in again.attachments.endpoints}
    assert kept.keys() == {"c1", "c2"}, "what nobody explains goes"
    assert (kept["c1"].pod, kept["c1"].netns, kept["c1"].mtu) == ("default/a", "/run/netns/c1", 1400)
    assert await again.ask("DEL", "c1", "a") == {}
    assert list(again.held()) == ["default/lost  "]


def test_the_wait_of_an_add_is_shorter_than_the_plugins() -> None:
    assert module.ADD_SECONDS < 30
