"""The feature: in which order it begins, what it says, and that it rests when nothing happens."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from netloom.cidr import Cidr, parse_address
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner
from netloom.kernel.endpoints.endpoint import Endpoints, FoundEndpoint, device_of
from netloom.kernel.keeper.report import Failure, KeeperReport
from netloom.roles.sources import Sources
from netloom.runtime.errors import ApiError, Forbidden, Unavailable
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint
from netloom_reconcilers.node.addresses.running import seen
from netloom_reconcilers.node.addresses.server import AddressServer
from netloom_reconcilers.node.addresses.service import AddressService, NoAddress
from netloom_reconcilers.node.endpoints import feature as module
from netloom_reconcilers.node.endpoints import taint as taint_module
from netloom_reconcilers.node.endpoints.attachments import Wish
from netloom_reconcilers.node.endpoints.config import PodOf
from netloom_reconcilers.node.endpoints.connection import Sandbox
from netloom_reconcilers.node.endpoints.feature import EndpointsFeature
from netloom_reconcilers.node.endpoints.install import CONFLIST
from netloom_reconcilers.node.endpoints.options import CniOptions, Places
from netloom_reconcilers.node.status import readiness_of
from tests.endpoints.test_foreign_pods import pod
from tests.endpoints.test_taint import Server


class Mesh:
    """The mesh, as the test says."""

    applied = True
    pod_mtu = 1450

    def lifeline_at(self, address: bytes) -> str:
        return "a gateway of this node" if address == b"\x0a\0\0\x01" else ""


class Kernel:
    """What the keeper was asked, in its order."""

    def __init__(self, **options: Any) -> None:
        self.lifeline_at = options["lifeline_at"]
        self.found: list[FoundEndpoint] = []
        self.done: list[str] = []
        self.report = KeeperReport()
        self.there: set[str] = set()
        self.tell = options["on_report"]

    async def read_endpoints(self) -> list[FoundEndpoint]:
        return self.found

    async def apply(self, desired: Endpoints) -> None:
        self.done.append(f"apply {' '.join(sorted(each.container for each in desired))}".strip())

    async def prune(self) -> None:
        self.done.append("prune")

    def has(self, device: str) -> bool:
        return device in self.there

    async def differences(self, endpoint: object, inside: int) -> list[str]:
        return []


class World:
    """An agent with the feature, and nothing else but an allocator."""

    def __init__(self, folder: Path, options: CniOptions | None, *, addresses: bool = True, api: Any = None) -> None:
        self.folder = folder
        self.changes = 0
        self.tell: Callable[[], None] = lambda: None
        self.context = NodeContext("n1", folder, Sources(None), changed=self.changed, cni=options)
        self.context.mesh = Mesh()
        self.context.api = api
        self.context.readiness = lambda: readiness_of("Degraded", self.feature.errors() if self.feature else [])
        self.service = AddressService(
            NodeAllocator(), Checkpoint(folder, "n1"), lambda pool: frozenset({4}), lambda owner, short: "none."
        )
        if addresses:
            self.context.addresses = self.service
        self.feature: EndpointsFeature | None = None
        self.feature = EndpointsFeature(self.context)

    def changed(self) -> None:
        """As the agent does."""
        self.changes += 1
        self.tell()
        if self.feature is not None:
            self.feature.changed()

    @property
    def kernel(self) -> Any:
        assert self.feature is not None
        return self.feature.keeper


def installing(folder: Path, api: Any = None) -> World:
    """One that puts the plugin on a host."""
    (folder / "plugin").write_text(f"{folder / 'cni.sock'} {folder / 'deletions'}")
    for each in ("bin", "conf"):
        (folder / each).mkdir()
    places = Places(folder / "plugin", folder / "bin", folder / "conf", ())
    return World(folder, CniOptions(folder / "cni.sock", folder / "deletions", places), api=api)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)
    return World(tmp_path, CniOptions(tmp_path / "cni.sock", tmp_path / "deletions"))


def found_endpoint(container: str, *addresses: str) -> FoundEndpoint:
    device = device_of(container, "eth0")
    return FoundEndpoint(
        device=device, container=container, interface="eth0", addresses=tuple(map(parse_address, addresses)), mtu=1400
    )


def begin(world: World) -> None:
    """The checkpoint is read; nothing is known of what runs."""
    assert world.service.begin() is not None
    world.service.provide(Supply(blocks={"": (Cidr.parse("10.0.0.0/28"),)}))


async def test_the_order_of_a_start(world: World) -> None:
    feature = world.feature
    assert feature is not None
    await feature.reconcile()
    assert world.kernel.done == [], "not even the checkpoint is read"
    assert feature.applied
    begin(world)
    world.service.allocator.adopt(Owner("default/a", "c1"), [parse_address("10.0.0.2")])
    world.kernel.found = [
        found_endpoint("c1", "10.0.0.2"),
        found_endpoint("c2", "10.0.0.3"),
        found_endpoint("c3", "10.0.0.4"),
    ]
    world.kernel.found += [found_endpoint("c4"), found_endpoint("c5", "10.0.0.2")]
    assert not feature.applied
    await feature.reconcile()
    assert world.kernel.done == ["apply c1"], "what an address explains is kept; nothing is removed yet"
    assert feature.applied
    assert "what it gave before is still being read" in str(feature.facts()["endpoints"])
    assert feature._obstacle() == world.service.obstacle
    world.service.allocator.adopt(seen("default/b"), [parse_address("10.0.0.3")])
    world.service.obstacle = ""
    assert "the agent has just begun" in feature._obstacle()
    await feature.reconcile()
    started = ["apply c1", "apply c1 c2 c3", "prune"]
    assert world.kernel.done == started, "what lost its record stays; what no route leads to, or to others' ways, goes"
    assert feature._obstacle() == ""
    await feature.reconcile()
    assert world.kernel.done == started, "once"


async def test_it_rests_when_nothing_is_different(world: World) -> None:
    """`changed` is called by every feature for everything."""
    feature = world.feature
    assert feature is not None
    queued: list[str] = []
    feature.controller.enqueue = queued.append  # type: ignore[method-assign]
    world.changed()
    assert len(queued) == 1
    await feature.reconcile()
    for _ in range(10):
        world.changed()
    assert len(queued) == 1
    begin(world)
    world.service.obstacle = ""
    world.changed()
    assert len(queued) == 2
    await feature.reconcile()
    assert len(queued) == 3, "now it is ready, which others have to know"
    await feature.reconcile()
    world.changed()
    assert len(queued) == 3


async def test_pods_that_come_and_go_are_no_news_for_others(world: World) -> None:
    failure = Failure("link", "netloom_pabcdef", "no such device")
    for report, changes in (
        (KeeperReport(written={"RTM_NEWLINK": 1}), 0),
        (KeeperReport(written={"RTM_NEWLINK": 2}, failures=(failure,)), 1),
        (KeeperReport(written={"RTM_NEWLINK": 3}, failures=(failure,)), 1),
        (KeeperReport(written={"RTM_NEWLINK": 4}), 2),
    ):
        world.kernel.tell(report)
        assert world.changes == changes


async def test_nothing_is_added_before_the_ways_are_made(world: World) -> None:
    feature = world.feature
    assert feature is not None
    begin(world)
    world.service.obstacle = ""
    mesh: Any = world.context.mesh
    mesh.applied = False
    await feature.reconcile()
    assert "nor is the MTU of pods known" in feature._obstacle()
    assert feature.readiness() == Readiness(False, "NotReady", feature._obstacle())
    assert not feature.is_ready
    mesh.applied = True
    assert feature.is_ready
    assert feature.readiness() == Readiness(True, "Wired", "Pods that come get an address and an interface.")


async def test_a_node_without_addresses_is_not_ready(world: World) -> None:
    """No kubelet is to believe that pods can come."""
    feature = world.feature
    assert feature is not None
    assert world.service.begin() is not None
    world.service.obstacle = ""
    await feature.reconcile()
    assert not feature.is_ready
    said = feature.readiness()
    assert said is not None
    assert (said.ready, said.reason) == (False, "NoAddresses")
    assert "condition Allocated" in said.message
    world.service.provide(Supply(blocks={"": (Cidr.parse("10.0.0.0/28"),)}))
    assert feature.is_ready


async def test_no_pod_begins_with_an_mtu_that_is_not_known(world: World) -> None:
    """It keeps for life what it begins with."""
    feature = world.feature
    assert feature is not None
    begin(world)
    world.service.obstacle = ""
    await feature.reconcile()
    mesh: Any = world.context.mesh
    mesh.pod_mtu = 0
    assert not feature.is_ready
    said = feature.readiness()
    assert said is not None
    assert (said.ready, said.reason) == (False, "MtuUnknown")
    wish = Wish(("c1", "eth0"), PodOf("default/web"), "/run/netns/c1")
    with pytest.raises(NoAddress, match=r"spec\.mtu") as caught:
        await feature.attachments.add(wish, Sandbox(-1, -1))
    assert caught.value.passing
    assert list(world.service.allocator.held()) == []
    assert feature._obstacle() == "", "pods that go are gone all the same"
    mesh.pod_mtu = 1450
    assert feature.is_ready


def test_the_kernel_side_can_ask_what_the_node_lives_by(world: World) -> None:
    assert world.feature is not None
    keeper: Any = world.feature.keeper
    assert keeper.lifeline_at(b"\x0a\0\0\x01") == "a gateway of this node"
    assert keeper.lifeline_at(b"\x0a\0\0\x02") == ""
    world.context.mesh = None
    assert keeper.lifeline_at(b"\x0a\0\0\x01") == ""


async def test_what_it_says_when_something_is_wrong(world: World) -> None:
    feature = world.feature
    assert feature is not None
    assert feature.readiness() == Readiness(False, "NotReady", world.service.obstacle)
    feature.socket._say("cni.sock: another agent listens there.")
    assert feature.errors() == ["cni.sock: another agent listens there."]
    assert feature.readiness() == Readiness(False, "NotListening", "cni.sock: another agent listens there.")
    assert world.changes == 1
    feature.socket._say("cni.sock: another agent listens there.")
    assert world.changes == 1


async def test_what_is_not_installed_is_no_readiness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)
    places = Places(tmp_path / "plugin", tmp_path / "bin", tmp_path / "conf", ())
    world = World(tmp_path, CniOptions(tmp_path / "cni.sock", tmp_path / "deletions", places))
    feature = world.feature
    assert feature is not None
    assert feature.installer is not None
    begin(world)
    world.service.obstacle = ""
    await feature.reconcile()
    feature.installer.look()
    said = feature.readiness()
    assert said is not None
    assert said.reason == "NotInstalled"
    assert "--cni-plugin" in said.message
    (tmp_path / "plugin").write_text("x")
    for folder in ("bin", "conf"):
        (tmp_path / folder).mkdir()
    feature.installer.look()
    said = feature.readiness()
    assert said is not None
    assert said.ready is True
    assert sorted(each.name for each in (tmp_path / "bin").iterdir()) == ["netloom-cni"]


@pytest.mark.parametrize("error", [Forbidden(403, "Forbidden", "cannot patch"), Unavailable(0, "Unavailable", "no")])
async def test_the_taint_goes_although_it_could_not_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ApiError
) -> None:
    """An agent that is unready as long as it has not taken the taint off would never try again."""
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)
    monkeypatch.setattr(taint_module, "AGAIN_SECONDS", 0.001)
    server = Server({"key": taint_module.KEY, "effect": "NoSchedule"})
    server.fails.append(error)
    world = installing(tmp_path, server)
    feature = world.feature
    assert feature is not None
    assert feature.taint is not None
    begin(world)
    world.service.obstacle = ""
    await feature.reconcile()
    assert feature.installer is not None
    feature.installer.look()
    said: list[str] = []
    world.tell = lambda: said.extend(feature.warnings())
    task = asyncio.create_task(feature.taint.run())
    async with asyncio.timeout(10):
        while server.taints:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert any(taint_module.KEY in each for each in said), "it is told meanwhile"
    assert feature.warnings() == []


async def test_the_taint_goes_after_the_configuration_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet may be ready by another configuration: pods that came before ours would be wired by that one."""
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)
    world = installing(tmp_path, Server())
    feature = world.feature
    assert feature is not None
    assert feature.installer is not None
    begin(world)
    world.service.obstacle = ""
    await feature.reconcile()
    assert feature.is_ready
    assert not feature._may_come()
    before = world.changes
    feature.installer.look()
    assert world.changes == before + 1, "it says so"
    assert feature._may_come()
    (tmp_path / "conf" / CONFLIST).unlink()
    (tmp_path / "conf").rmdir()
    feature.installer.look()
    assert not feature._may_come()
    assert world.changes == before + 2


async def test_only_what_is_not_there_is_missing(world: World) -> None:
    """A device of which one step is refused is a running pod's."""
    feature = world.feature
    assert feature is not None
    begin(world)
    for number in (1, 2, 3):
        world.service.allocator.adopt(Owner(f"default/{number}", f"c{number}"), [parse_address(f"10.0.0.{number + 1}")])
    world.kernel.found = [found_endpoint("c1"), found_endpoint("c2")]
    world.service.obstacle = ""
    await feature.reconcile()
    one, two = device_of("c1", "eth0"), device_of("c2", "eth0")
    world.kernel.there.add(one)
    world.kernel.report = KeeperReport(failures=(Failure("link", one, "no"), Failure("link", two, "no")))
    assert [each.pod for each in feature._missing()] == ["default/2", "default/3"], "and who had none from the start"


async def test_what_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)
    feature = installing(tmp_path).feature
    assert feature is not None
    assert feature.installer is not None
    feature.deletions.done, feature.deletions.refused = 3, 1
    feature.installer.repairs[CONFLIST] = 2
    samples = [each for metric in feature.metrics() for each in metric.samples]
    found = {" ".join((each.name, *each.labels.values())): each.value for each in samples}
    assert found["netloom_endpoints"] == 0
    assert found["netloom_cni_deletions_total done"] == 3
    assert found["netloom_cni_deletions_total refused"] == 1
    assert found[f"netloom_cni_file_repairs_total {CONFLIST}"] == 2


def test_without_an_option_it_does_nothing(tmp_path: Path) -> None:
    feature = World(tmp_path, None).feature
    assert feature is not None
    feature.changed()
    assert feature.keeper is None
    assert feature.components() == {}
    assert feature.errors() == feature.warnings() == list(feature.metrics()) == []
    assert feature.facts() == {}
    assert feature.applied
    assert feature.readiness() is None


def test_without_addresses_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)
    feature = World(tmp_path, CniOptions(tmp_path / "s"), addresses=False).feature
    assert feature is not None
    assert feature.components() == {}
    assert "feature addresses of this agent is off" in feature.errors()[0]


async def test_components_have_names(world: World) -> None:
    assert world.feature is not None
    world.kernel.run = asyncio.sleep
    assert list(world.feature.components()) == ["endpoints", "pods' interfaces", "cni socket", "cni deletions"]


async def test_a_machine_that_is_not_alone_with_its_name_gives_nothing_and_says_so(world: World) -> None:
    """As one that was set up anew while the old one lives: both hold the same CIDRs."""
    feature = world.feature
    assert feature is not None
    begin(world)
    world.service.obstacle = ""
    await feature.reconcile()
    assert feature.is_ready
    world.service.twin = lambda: "Two agents run as node n1."
    assert not feature.is_ready
    why = "nothing is given, as both would give the same: Two agents run as node n1."
    assert feature.readiness() == Readiness(False, "TwoAgents", why)
    wish = Wish(("c1", "eth0"), PodOf("default/web"), "/run/netns/c1")
    with pytest.raises(NoAddress, match="Two agents") as caught:
        await feature.attachments.add(wish, Sandbox(-1, -1))
    assert caught.value.passing
    assert list(world.service.allocator.held()) == []
    assert feature._obstacle() == "", "pods that go are gone all the same"


async def test_by_hand_nothing_is_freed_that_an_interface_lives_by(world: World) -> None:
    feature, service = world.feature, world.service
    assert feature is not None
    begin(world)
    web, old = Owner("default/web", "c1"), Owner("default/old", "c2")
    for number, owner in enumerate((web, old), 2):
        service.allocator.adopt(owner, [parse_address(f"10.0.0.{number}")])
    service.obstacle = ""
    path = world.folder / "agent.sock"
    connector = aiohttp.UnixConnector(str(path))
    async with AddressServer(service, "n1").listening(path), aiohttp.ClientSession(connector=connector) as session:

        async def ask(method: str, url: str, **said: Any) -> tuple[int, str]:
            async with session.request(method, f"http://agent{url}", **said) as response:
                answer = await response.json()
                return response.status, answer.get("reason") or " ".join(answer["released"])

        release = "/v1/addresses?name=default/web&container=c1"
        assert await ask("DELETE", release) == (503, "NotReady"), "which interfaces there are is not known"
        world.kernel.found = [found_endpoint("c1", "10.0.0.2")]
        await feature.reconcile()
        assert await ask("DELETE", release) == (409, "Wired")
        assert await ask("POST", "/v1/gc", json={"valid": []}) == (409, "Wired")
        assert {owner for owner, _ in service.allocator.held()} == {web, old}
        assert await ask("POST", "/v1/gc", json={"valid": [{"container": "c1"}]}) == (200, "10.0.0.3")
        with pytest.raises(
            NoAddress, match=r"eth0 of default/web \(container c1\) has it and is wired\. Delete the pod"
        ):
            service.check_idle(web)
        feature.attachments.endpoints.discard(device_of("c1", "eth0"))
        assert await ask("DELETE", release) == (200, "10.0.0.2")


async def test_pods_that_run_with_a_larger_mtu_than_fits_are_named(world: World) -> None:
    feature = world.feature
    assert feature is not None
    begin(world)
    world.kernel.found = [found_endpoint(f"c{number}", f"10.0.0.{number}") for number in range(2, 7)]  # of 1400
    for number in range(2, 7):
        world.service.allocator.adopt(Owner(f"default/{number}", f"c{number}"), [parse_address(f"10.0.0.{number}")])
    world.service.obstacle = ""
    await feature.reconcile()
    assert feature.warnings() == [], "a smaller one does no harm"
    mesh: Any = world.context.mesh
    mesh.pod_mtu = 1350
    (said,) = feature.warnings()
    assert said.startswith(
        "Node n1: pods that come get an MTU of 1350, and default/2 1400, default/3 1400, default/4 1400"
    )
    assert " and 2 more have a larger one for life" in said
    assert feature.errors() == []


async def test_another_cni_is_never_silently_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it by a file before ours, with which no pod may come, or by pods whose interfaces it made."""
    monkeypatch.setattr(module, "EndpointsKeeper", Kernel)

    class Pods(Server):
        async def list(self, res: object, *, field_selector: str) -> SimpleNamespace:
            return SimpleNamespace(objects=running)

    running = [pod("ours", "10.0.0.2"), pod("theirs", "10.0.0.3")]
    world = installing(tmp_path, Pods())
    feature = world.feature
    assert feature is not None
    assert feature.installer is not None
    assert feature.foreign_pods is not None
    begin(world)
    world.service.obstacle = ""
    world.service.allocator.adopt(Owner("default/ours", "c1"), [parse_address("10.0.0.2")])
    world.kernel.found = [found_endpoint("c1", "10.0.0.2")]
    assert not await feature.foreign_pods.look(), "nobody knows yet which are ours"
    await feature.reconcile()
    other = tmp_path / "conf" / "00-bridge.conf"
    other.write_text('{"type": "bridge"}')
    feature.installer.look()
    said = feature.readiness()
    assert said == Readiness(False, "AnotherCNI", feature.installer.overruled)
    assert feature.errors() == [feature.installer.overruled]
    assert not feature._may_come()
    other.unlink()
    feature.installer.look()
    assert feature._may_come()
    for _ in range(2):
        await feature.foreign_pods.look()
    said = feature.readiness()
    assert said == Readiness(False, "AnotherCNI", feature.foreign_pods.sentence)
    assert "wired pods of node n1: default/theirs. If" in said.message
    assert (feature.errors(), feature._may_come()) == ([], True), "those that come are ours"
    running.pop()
    await feature.foreign_pods.look()
    assert feature.readiness() == Readiness(True, "Wired", "Pods that come get an address and an interface.")
