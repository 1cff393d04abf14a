"""The record: a mode is written at once, names seldom, nothing from half a cache, and by what was read before."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from netloom.api.cilium import CiliumNode, CiliumNodeIPAM, CiliumNodeSpec
from netloom.api.core import CONFIG_MAPS, ConfigMap, ManagedFields, ManagedMeta, Node
from netloom.api.events import ObjectReference
from netloom.api.meta import ObjectMeta
from netloom.guard.cluster_state import CILIUM_IN_USE, CILIUM_MODE, ClusterState, Users
from netloom.runtime.errors import Conflict
from netloom.runtime.store import Store
from netloom.runtime.wire import Listing
from netloom_reconcilers.guard_record import DISTANCE_SECONDS, UNSEEN_SECONDS, VANISHED_SECONDS, GuardRecord

KEY = "netloom-system/netloom-guard"


class World:
    """A guard of Cilium with a clock of its own, and an API server that holds one record."""

    def __init__(self) -> None:
        self.now = 100.0
        self.unseen = ""
        self.patches: list[Mapping[str, Any]] = []
        self.events: list[tuple[str, str]] = []
        self.version = 0
        self.stored: list[ConfigMap] = []
        self.lists = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self.record = Store(CONFIG_MAPS)
        self.config = Store(CONFIG_MAPS)
        self.live = ClusterState(Users())
        self.record.subscribe(self.live.record)
        self.config.subscribe(self.live.cilium_config)
        self.reconciler = GuardRecord(
            api=self,
            events=self,
            live=self.live,
            record=self.record,
            config=self.config,
            namespace="netloom-system",
            name="netloom-guard",
            keys=(CILIUM_MODE, CILIUM_IN_USE),
            field_manager="netloom-guard-cilium",
            unseen=lambda: self.unseen,
            clock=lambda: self.now,
        )

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> Any:
        """The API server's side of a server-side apply."""
        self.patches.append(patch)
        stored = self.record.get(KEY)
        version = stored.metadata.resource_version if stored else "0"
        if patch["metadata"].get("resourceVersion", version) != version:
            raise Conflict(409, "Conflict", "somebody was faster")
        self.meanwhile()
        return record(patch["data"], version=str(int(version) + 1), by=options["field_manager"])

    def event(self, ref: ObjectReference, type_: str, reason: str, message: str) -> None:
        self.events.append((f"{ref.kind} {ref.namespace}/{ref.name}", reason))

    async def list(self, res: Any, *, namespace: str, field_selector: str) -> Listing[ConfigMap]:
        """Cilium's configuration as it is stored, whatever of it the guard has heard."""
        assert (namespace, field_selector) == ("kube-system", "metadata.name=cilium-config")
        self.lists += 1
        return Listing(self.stored[-1:], str(self.version))

    def configure(self, ipam: str, *, heard: bool = True) -> ConfigMap:
        self.version += 1
        meta = ManagedMeta(name="cilium-config", namespace="kube-system", resource_version=str(self.version))
        self.stored.append(ConfigMap(metadata=meta, data={"ipam": ipam}))
        if heard:
            self.config.put(self.stored[-1])
        return self.stored[-1]

    def hold(self, *names: str) -> None:
        for name in names:
            self.version += 1
            spec = CiliumNodeSpec(ipam=CiliumNodeIPAM(pod_cidrs=("10.0.0.0/24",)))
            meta = ObjectMeta(name=name, resource_version=str(self.version))
            self.live.cilium_node(name, None, CiliumNode(metadata=meta, spec=spec))

    async def turn(self) -> float | None:
        return await self.reconciler._reconcile("record")

    @property
    def written(self) -> dict[str, str]:
        record = self.record.get(KEY)
        return record.data if record else {}


@pytest.fixture
async def world() -> World:
    return World()


async def test_the_first_write_is_at_once_and_the_next_a_while_later(world: World) -> None:
    world.configure("cluster-pool")
    world.hold("a")
    assert await world.turn() is None
    assert world.written == {CILIUM_MODE: "cluster-pool", CILIUM_IN_USE: "1 node holds addresses (a)"}
    world.now += DISTANCE_SECONDS / 4
    world.hold("b")
    assert await world.turn() == DISTANCE_SECONDS * 3 / 4
    world.now += DISTANCE_SECONDS
    world.hold("c")
    assert await world.turn() is None
    assert world.written[CILIUM_IN_USE] == "3 nodes hold addresses (a, b, c)"
    assert len(world.patches) == 2


async def test_a_mode_that_comes_or_goes_does_not_wait(world: World) -> None:
    world.configure("cluster-pool")
    world.hold("a")
    await world.turn()
    world.live.cilium_node("a", None, None)
    assert await world.turn() is None
    assert world.written == {}
    world.hold("b")
    assert await world.turn() is None
    assert world.written[CILIUM_MODE] == "cluster-pool"


async def test_what_is_right_is_not_written_again(world: World) -> None:
    world.configure("cluster-pool")
    world.hold("a")
    await world.turn()
    world.now += 100
    assert await world.turn() is None
    assert len(world.patches) == 1


async def test_a_cache_that_is_not_complete_clears_nothing(world: World) -> None:
    world.record.put(record({CILIUM_MODE: "cluster-pool", CILIUM_IN_USE: "1 node holds addresses (a)"}))
    world.unseen = "not listed yet"
    assert await world.turn() == UNSEEN_SECONDS
    assert world.patches == []
    world.unseen = ""
    assert await world.turn() is None
    assert world.written == {}, "now it is known that nobody holds anything"


async def test_who_saw_an_older_record_is_told_so(world: World) -> None:
    world.record.put(record({}, version="5"))
    world.configure("cluster-pool")
    world.hold("a")
    assert world.record.get(KEY) is not None
    await world.turn()
    assert world.patches[0]["metadata"]["resourceVersion"] == "5"


async def test_keys_of_another_guard_are_left_alone(world: World) -> None:
    world.record.put(record({"netloomMode": "kubernetes"}))
    assert await world.turn() is None
    assert world.patches == []


async def test_a_change_past_the_guard_is_told_once(world: World) -> None:
    world.configure("cluster-pool")
    world.hold("a")
    await world.turn()
    world.configure("kubernetes")
    for _ in range(3):
        await world.turn()
    assert world.events == [("ConfigMap kube-system/cilium-config", "ModeBypassed")]
    assert world.written[CILIUM_MODE] == "cluster-pool"


def record(data: Mapping[str, str], version: str = "1", by: str = "netloom-guard-cilium") -> ConfigMap:
    fields = {"f:data": {f"f:{key}": {} for key in data}}
    managed = ManagedFields(manager=by, operation="Apply", fields_v1=fields)
    meta = ManagedMeta(
        name="netloom-guard", namespace="netloom-system", resource_version=version, managed_fields=(managed,)
    )
    return ConfigMap(metadata=meta, data=dict(data))


async def test_a_cilium_node_is_missed_after_a_while(world: World) -> None:
    """And told once, however many follow."""
    world.configure("cluster-pool")
    for name in ("a", "b"):
        world.live.node(name, None, Node(metadata=ObjectMeta(name=name)))
        world.hold(name)
    await world.turn()
    world.live.cilium_node("a", None, None)
    assert await world.turn() == VANISHED_SECONDS
    assert world.events == []
    world.now += VANISHED_SECONDS
    await world.turn()
    world.live.cilium_node("b", None, None)
    world.now += DISTANCE_SECONDS
    await world.turn()
    assert world.events == [("ConfigMap kube-system/cilium-config", "CiliumNodesVanished")]
    assert world.written[CILIUM_IN_USE] == "2 nodes hold addresses (a, b)"
    world.hold("a", "b")
    await world.turn()
    world.live.cilium_node("b", None, None)
    assert await world.turn() == VANISHED_SECONDS, "once it was well, it counts anew"


async def test_a_node_that_is_heard_before_the_configuration_it_joined_under(world: World) -> None:
    """The watch of cilium-config lags behind: what came into force would be the mode that nobody has any more."""
    world.configure("kubernetes")
    changed = world.configure("cluster-pool", heard=False)
    world.hold("a")
    assert await world.turn() == UNSEEN_SECONDS
    assert world.written == {}, "not kubernetes"
    world.config.put(changed)
    assert await world.turn() is None
    assert world.written[CILIUM_MODE] == "cluster-pool"
    assert world.events == []
    world.now += DISTANCE_SECONDS
    world.hold("b")
    await world.turn()
    assert world.lists == 2, "only where a mode comes into force"


async def test_changes_on_both_sides_of_the_first_node(world: World) -> None:
    """Nothing of them is heard but the node: the mode that it joined under is in force, and the change past the guard
    is told of."""
    world.configure("kubernetes")
    before = world.configure("cluster-pool", heard=False)
    world.hold("a")
    behind = [world.configure(ipam, heard=False) for ipam in ("eni", "kubernetes")]
    for each in (before, *behind):
        assert await world.turn() == UNSEEN_SECONDS
        world.config.put(each)
    await world.turn()
    assert world.written[CILIUM_MODE] == "cluster-pool"
    await world.turn()
    assert world.events == [("ConfigMap kube-system/cilium-config", "ModeBypassed")]


async def test_a_second_edit_that_is_heard_before_the_answer_to_the_first(world: World) -> None:
    world.configure("cluster-pool")
    world.hold("a")
    await world.turn()
    world.record.put(record({CILIUM_MODE: "kubernetes"}, version="7", by="kubectl-edit"))
    world.meanwhile = lambda: world.record.put(record({CILIUM_MODE: "kubernetes"}, version="9", by="kubectl-edit"))
    await world.turn()
    world.meanwhile = lambda: None
    await world.turn()
    assert world.events == [("ConfigMap netloom-system/netloom-guard", "RecordTampered")] * 2
    assert world.written[CILIUM_MODE] == "cluster-pool"


async def test_a_record_that_somebody_edits_is_written_again(world: World) -> None:
    world.configure("cluster-pool")
    world.hold("a")
    await world.turn()
    world.record.put(record({CILIUM_MODE: "kubernetes"}, version="7", by="kubectl-edit"))
    assert await world.turn() is None
    assert world.written[CILIUM_MODE] == "cluster-pool"
    assert world.events == [("ConfigMap netloom-system/netloom-guard", "RecordTampered")]
    await world.turn()
    assert len(world.patches) == 2
