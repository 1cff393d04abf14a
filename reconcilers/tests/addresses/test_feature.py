"""The feature: what it gives of, what it learns of what runs, what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom.api.core import Pod, PodIP, PodSpec, PodStatus
from netloom.api.meta import Condition, ObjectMeta
from netloom.api.v1alpha1 import (
    NETWORK_NAME,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetloomNodeStatus,
    NodeIPAM,
    PoolAddress,
)
from netloom.cidr import format_address, parse_address
from netloom.ipam.address_records import Gave, Header, whole
from netloom.ipam.node_allocator import Owner
from netloom.kernel.mesh.occupants import SingleAddresses
from netloom.roles.sources import Sources
from netloom.runtime.errors import ApiError, Forbidden, Unavailable
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node.addresses import feature as module
from netloom_reconcilers.node.addresses import machine, running
from netloom_reconcilers.node.addresses.checkpoint import NAME
from netloom_reconcilers.node.addresses.feature import AddressesFeature
from netloom_reconcilers.node.addresses.service import NoAddress


class Pauses:
    """Without jitter, and of one length."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def next(self) -> float:
        return self._seconds

    def reset(self) -> None:
        pass


class World:
    """What is there, as the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pods: dict[str, str] | ApiError = {}
        self.routed: dict[str, str] = {}
        self.own: tuple[str, ...] = ()
        self.not_it = ""
        self.asked = 0
        self.folder = folder
        self.now = 1000.0

        async def kernel() -> SingleAddresses:
            routed = {parse_address(text): name for text, name in self.routed.items()}
            return SingleAddresses(frozenset(map(parse_address, self.own)), routed)

        async def pods_of(_api: object, node: str) -> dict[bytes, str]:
            self.asked += 1
            assert node == "n1"
            if isinstance(self.pods, ApiError):
                raise self.pods
            return {parse_address(text): name for text, name in self.pods.items()}

        async def devices() -> frozenset[bytes]:
            return (await kernel()).own

        monkeypatch.setattr(module, "single_addresses", kernel)

        async def node(_api: object, name: str) -> str:
            assert name == "n1"
            return self.not_it

        monkeypatch.setattr(machine, "why_not", node)
        monkeypatch.setattr(module, "own_addresses", devices)
        monkeypatch.setattr(running, "pods_of", pods_of)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "Backoff", lambda first, most: Pauses(first))

    def feature(self, *cidrs: str, alone: bool = False, **ipam: Any) -> AddressesFeature:
        """Of an agent that just began. `alone`: it has no API server."""
        context = NodeContext("n1", self.folder, Sources(None))
        context.api = None if alone else object()  # type: ignore[assignment]
        made = AddressesFeature(context)
        made.service.clock = lambda: self.now
        context.networks.replace({NETWORK_NAME: NetloomNetwork(metadata=ObjectMeta(name=NETWORK_NAME))})
        context.nodes.replace({})
        if cidrs or ipam:
            self.say(made, *cidrs, **ipam)
        return made

    def say(self, made: AddressesFeature, *cidrs: str, **ipam: Any) -> None:
        spec = NetloomNodeSpec(ipam=NodeIPAM(pod_cidrs=cidrs, **ipam))
        made.context.nodes.put(NetloomNode(metadata=ObjectMeta(name="n1"), spec=spec))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def held(made: AddressesFeature) -> dict[str, str]:
    return {
        format_address(address): f"{owner.name} {owner.container}".strip()
        for owner, holding in made.allocator.held()
        for address in holding.addresses
    }


async def ask(made: AddressesFeature, name: str) -> str:
    holding = await made.service.allocate(Owner(name, "c"), wait=0)
    return " ".join(map(format_address, holding.addresses))


async def test_what_runs_and_is_not_written_down_is_entered_until_nothing_shows_it(world: World) -> None:
    world.pods = {"10.0.0.2": "default/known", "10.9.0.1": "default/elsewhere"}
    world.routed = {"10.0.0.2": "veth1", "10.0.0.3": "veth2", "10.9.0.2": "veth3"}
    made = world.feature("10.0.0.0/29")
    assert await made.reconcile() == module.LOOK_SECONDS[0]
    assert held(made) == {"10.0.0.2": "default/known", "10.0.0.3": "device:veth2"}
    assert await ask(made, "default/known") == "10.0.0.4", "whoever asks by a container is another one"
    assert await made.service.release(Owner("default/known", "x")) == ()

    world.now += module.SOON_SECONDS
    world.pods, world.routed = {}, {"10.0.0.2": "veth1"}
    await made.reconcile()
    assert held(made) == {"10.0.0.2": "default/known", "10.0.0.4": "default/known c"}
    asked = world.asked
    await made.reconcile()
    assert world.asked == asked, "it is looked again after a while, not whenever something changes"
    world.now += module.LOOK_SECONDS[0]
    world.routed = {}
    assert await made.reconcile() is None
    assert held(made) == {"10.0.0.4": "default/known c"}


async def test_records_of_an_earlier_life_are_not_kept_once_they_are_taken_in(world: World) -> None:
    """Of a busy node that is 3 MiB, for the whole life of its agent."""
    records = [Gave(f"default/{number}", "c", "eth0", "", (f"10.0.0.{number}",)) for number in range(2, 6)]
    data, _ = whole(Header("n1", machine.boot(), "f"), records)
    (world.folder / NAME).write_bytes(data)
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    assert len(held(made)) == len(records)
    assert made._found is not None
    assert (made._found.cause, made._found.records) == ("whole", ())


async def test_a_machine_gives_nothing_before_it_is_known_to_be_the_node(world: World) -> None:
    """It was set up anew with an old name, and the old one gives of the same CIDRs."""
    world.not_it = "Node n1 is another machine by what its kubelet says."
    made = world.feature("10.0.0.0/29")
    assert await made.reconcile() == module.AGAIN_SECONDS
    with pytest.raises(NoAddress, match="nothing is given yet: Node n1 is another machine") as refusal:
        await ask(made, "default/a")
    assert refusal.value.passing
    assert made.errors() == [world.not_it]
    world.not_it = ""
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.2"
    assert made.errors() == []
    world.not_it = "asked once"
    world.now += 1000.0
    await made.reconcile()
    assert await ask(made, "default/b") == "10.0.0.3"


async def test_nothing_is_given_before_it_is_known_what_runs(world: World) -> None:
    world.pods = Unavailable(0, "Timeout", "no answer")
    made = world.feature()
    await made.reconcile()
    with pytest.raises(NoAddress, match="there is no NetloomNode n1"):
        await ask(made, "default/a")
    world.say(made, "10.0.0.0/29")
    assert await made.reconcile() == module.AGAIN_SECONDS
    assert made.applied
    with pytest.raises(NoAddress, match="nothing is given yet: the pods of Node n1 cannot be listed"):
        await ask(made, "default/a")
    assert "cannot be listed" in made.errors()[0]
    world.pods = {}
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.2"
    assert made.errors() == []


async def test_without_the_right_to_list_pods_the_kernel_is_believed(world: World) -> None:
    world.pods = Forbidden(403, "Forbidden", "no right")
    world.routed = {"10.0.0.2": "veth1"}
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.3"
    assert "the agent may not list pods" in made.errors()[0]


async def test_once_it_may_list_pods_it_does_and_says_no_more(world: World) -> None:
    world.pods = Forbidden(403, "Forbidden", "no right")
    made = world.feature("10.0.0.0/29")
    assert await made.reconcile() == module.LOOK_SECONDS[0]
    assert made.errors()
    world.pods = {"10.0.0.2": "default/bridged"}
    world.now += module.LOOK_SECONDS[0]
    await made.reconcile()
    assert made.errors() == []
    assert held(made) == {"10.0.0.2": "default/bridged"}


async def test_who_was_known_by_a_pod_stays_where_pods_cannot_be_listed_any_more(world: World) -> None:
    world.pods, world.routed = {"10.0.0.2": "default/bridged"}, {"10.0.0.3": "veth1"}
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    for refusal in (Unavailable(0, "Timeout", "no answer"), Forbidden(403, "Forbidden", "no right")):
        world.now += module.LOOK_SECONDS[0]
        world.pods, world.routed = refusal, {}
        again = module.AGAIN_SECONDS if isinstance(refusal, Unavailable) else module.LOOK_SECONDS[0]
        assert await made.reconcile() == again
        assert held(made)["10.0.0.2"] == "default/bridged"
        assert bool(made.errors()) == isinstance(refusal, Forbidden), "an API server that is away is no fault here"
    assert "10.0.0.3" not in held(made), "the kernel's routes tell of that one"


async def test_a_cidr_that_comes_back_is_not_given_of_before_it_is_known_what_runs_there(world: World) -> None:
    made = world.feature("10.0.1.0/29")
    await made.reconcile()
    made.context.own.kept = {"10.0.0.0/29": "10.0.0.2/32 on veth1"}
    made.changed()
    world.pods = Unavailable(0, "Timeout", "no answer")
    world.say(made, "10.0.0.0/29")
    assert await made.reconcile() == module.AGAIN_SECONDS
    assert await ask(made, "default/a") == "10.0.1.2"
    world.pods = {"10.0.0.2": "default/lives"}
    await made.reconcile()
    assert await ask(made, "default/b") == "10.0.0.3"


async def test_what_devices_of_the_node_have_is_not_given(world: World) -> None:
    world.own = ("10.0.0.2", "192.168.0.1")
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.3"


async def test_what_a_device_has_by_now_is_not_given_when_the_node_is_given_it(world: World) -> None:
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    asked = world.asked
    world.own = ("10.1.0.2",)
    world.say(made, "10.0.0.0/29", "10.1.0.0/29")
    await made.reconcile()
    given = [await ask(made, f"default/{number}") for number in range(9)]
    assert "10.1.0.3" in given
    assert "10.1.0.2" not in given
    assert world.asked == asked, "pods are not listed for that"


async def test_what_was_said_stays_while_the_object_is_gone(world: World) -> None:
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    made.context.nodes.replace({})
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.2"


async def test_of_cidrs_that_are_kept_nothing_is_given_and_what_is_used_stays(world: World) -> None:
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.2"
    world.say(made, "10.0.1.0/29")
    made.context.own.kept = {"10.0.0.0/29": "10.0.0.2/32 on veth1"}
    made.changed()
    await made.reconcile()
    assert await ask(made, "default/b") == "10.0.1.2"
    assert held(made) == {"10.0.0.2": "default/a c", "10.0.1.2": "default/b c"}
    assert made.errors() == [], "it is told by who keeps them"
    assert made.allocator.idle("", 1e9) == []
    made.context.own.kept = {}
    made.changed()
    assert "does not hold 10.0.0.2 of default/a any more, which are in use" in made.errors()[0]

    world.pods = {"10.0.0.3": "default/began-meanwhile"}
    world.say(made, "10.0.0.0/29")
    await made.reconcile()
    assert await ask(made, "default/c") == "10.0.0.4"


async def test_a_single_address_that_is_withdrawn_while_used_stays_and_is_told(world: World) -> None:
    made = world.feature(alone=True, pool={"10.0.0.7": PoolAddress(owner="default/a")})
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.7"
    world.say(made, pool={"10.0.0.8": PoolAddress()})
    await made.reconcile()
    assert "does not hold 10.0.0.7 of default/a any more" in made.errors()[0]
    assert await ask(made, "default/a") == "10.0.0.7"


async def test_a_checkpoint_of_another_node_takes_nothing_from_anyone(world: World) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    records = [Gave("other/pod", "c", "eth0", "", ("10.0.0.3",))]
    (world.folder / NAME).write_bytes(whole(Header("n2", boot, "x"), records)[0])
    world.routed = {"10.0.0.2": "veth1"}
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    assert held(made) == {"10.0.0.2": "device:veth1"}
    told = made.readiness()
    assert told is not None
    assert (told.ready, told.reason) == (False, "CheckpointLost")
    assert "was not relied on, or not wholly: it is that of node n2." in told.message
    assert samples(made)["netloom_address_checkpoint"] == {("node",): 1}
    assert made.errors() == [], "pods get addresses"
    world.now += module.TOLD_SECONDS
    assert made.readiness() is None
    own = made.context.nodes.get("n1")
    assert own is not None
    before = Condition(made.condition, "False", "CheckpointLost", "of an earlier life", "2026-01-01T00:00:00Z")
    said = NetloomNodeStatus(conditions=(before,))
    made.context.nodes.put(msgspec.structs.replace(own, status=said))
    told = made.readiness()
    assert told is not None
    assert told.ready


async def test_what_it_says_of_itself(world: World) -> None:
    made = world.feature("10.0.0.6/31")
    await made.reconcile()
    assert await ask(made, "default/a") == "10.0.0.7", "the tunnel device has the other one"
    with pytest.raises(NoAddress):
        await ask(made, "default/b")
    assert made.facts()["addresses"]["pools"] == {  # type: ignore[index]
        "-": {
            "ipv4": {"used": 1, "waiting": 1, "free": 0, "resting": 0},
            "ipv6": {"used": 0, "waiting": 0, "free": 0, "resting": 0},
        }
    }
    assert made.errors()[0].startswith("pods get no IPv4 address on node n1: all usable addresses of 10.0.0.6/31 are")
    found = samples(made)
    assert found["netloom_node_addresses"]["", "ipv4", "used"] == 1
    assert found["netloom_address_changes"] == {("given",): 1, ("released",): 0}
    assert found["netloom_address_failures"] == {("AddressesExhausted",): 1}


def samples(made: AddressesFeature) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        metric.name: {tuple(sample.labels.values()): sample.value for sample in metric.samples}
        for metric in made.metrics()
    }


async def test_cleanup_removes_its_files(world: World) -> None:
    made = world.feature("10.0.0.0/29")
    await made.reconcile()
    made.service.checkpoint.close()
    planned = [f"rm {world.folder}/{name}" for name in ("addresses.checkpoint", "addresses.lock")]
    assert [each.text for each in await made.plan_cleanup()] == planned
    removed, failed = await made.cleanup()
    assert ([each.text for each in removed], list(failed)) == (planned, [])
    assert await made.plan_cleanup() == []


def test_pods_that_are_over_or_on_the_hosts_network_have_no_addresses() -> None:
    def pod(name: str, ip: str, phase: str = "Running", **spec: bool) -> Pod:
        status = PodStatus(phase=phase, pod_ips=(PodIP(ip),))
        return Pod(ObjectMeta(name=name, namespace="d"), PodSpec(**spec), status)

    pods = [
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2", "Failed"),
        pod("c", "10.0.0.3", host_network=True),
        pod("d", "x"),
    ]
    assert running.addresses_of(pods) == {parse_address("10.0.0.1"): "d/a"}


def test_an_address_that_two_have_stays_with_whom_it_is_written_down() -> None:
    made = module.NodeAllocator()
    made.adopt(Owner("default/a", "c"), [parse_address("10.0.0.2")])
    ours: Callable[[bytes], bool] = lambda address: True  # noqa: E731
    found = running.merge(made, {parse_address("10.0.0.2"): "default/b"}, {}, ours)
    assert found.contested == {parse_address("10.0.0.2"): ("default/a", "default/b")}
    assert made.user(parse_address("10.0.0.2")) == Owner("default/a", "c")
