"""Mode crd by the whole feature: nothing is given before the agent has begun, and what is used is told."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS
from netloom.cidr import Address, parse_address
from netloom.ipam.node_allocator import Owner
from netloom.kernel.mesh.occupants import SingleAddresses
from netloom.roles.sources import Sources
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node.addresses import feature as module
from netloom_reconcilers.node.addresses import running
from netloom_reconcilers.node.addresses.feature import AddressesFeature
from netloom_reconcilers.node.addresses.service import NoAddress
from tests.allocation.parts import DirectApi
from tests.allocation.server import Json, ModelServer, Request
from tests.allocation.world import Said


class Node:
    """n1, which holds 10.7.0.5 and 10.7.0.6, the second for one pod alone; and what its API server knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = ModelServer()
        self.said = Said()
        spec = {"ipam": {"mode": "crd"}, "routing": {"mode": "native"}}
        self.write("create", "netloomnetworks", "default", {"metadata": {"name": "default"}, "spec": spec})
        self.write("patch", "netloomnetworks", "default", {"status": {"ipam": {"mode": "crd"}}}, "status", "merge")
        pool: Json = {"10.7.0.5": {"resource": "eni-1"}, "10.7.0.6": {"owner": "default/web"}}
        body = {"metadata": {"name": "n1"}, "spec": {"ipam": {"mode": "crd", "pool": pool}}}
        self.write("create", "netloomnodes", "n1", body)
        self.feature = self.begin()

    def write(self, verb: str, plural: str, name: str, body: Any, subresource: str = "", kind: str = "") -> None:
        self.server.execute(Request(verb, plural, name, body, subresource, kind))

    def begin(self) -> AddressesFeature:
        """The feature of an agent that starts."""
        context = NodeContext("n1", self.folder, Sources(None))
        context.api, context.events = DirectApi(self.server), self.said  # type: ignore[assignment]
        self.feature = AddressesFeature(context)
        context.networks.replace({})
        context.nodes.replace({})
        self.see()
        return self.feature

    def see(self) -> None:
        """The caches are as the server."""
        context = self.feature.context
        context.networks.put(msgspec.convert(self.server.all("netloomnetworks")["default"], NETWORKS.type))
        context.nodes.put(msgspec.convert(self.server.all("netloomnodes")["n1"], NETLOOM_NODES.type))

    async def work(self) -> None:
        """All that is to be done."""
        outside = self.feature.outside
        assert outside is not None
        for _ in range(3):
            await self.feature.reconcile()
            await outside.reconcile("n1")
            self.see()

    async def ask(self, name: str) -> str:
        """The address of a pod."""
        holding = await self.feature.service.allocate(Owner(name, "c"), wait=0)
        return ".".join(map(str, holding.addresses[0]))

    @property
    def status(self) -> Json:
        """status.ipam of its NetloomNode."""
        found: Json = self.server.all("netloomnodes")["n1"].get("status", {}).get("ipam", {})
        return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    async def kernel() -> SingleAddresses:
        return SingleAddresses(frozenset(), {})

    async def no_pods(_api: object, _node: str) -> dict[Address, str]:
        return {}

    monkeypatch.setattr(module, "single_addresses", kernel)
    monkeypatch.setattr(running, "pods_of", no_pods)
    return Node(tmp_path)


async def test_nothing_is_given_before_the_word_is_written_and_the_network_was_seen(node: Node) -> None:
    await node.feature.reconcile()
    with pytest.raises(NoAddress, match=r"the network's IPAM mode is not in force yet \(status.ipam.mode\)"):
        await node.ask("default/db")
    assert node.status == {}
    await node.work()
    assert node.status == {"mode": "crd"}
    assert await node.ask("default/web") == "10.7.0.6", "which is meant for it"
    assert await node.ask("default/db") == "10.7.0.5"
    with pytest.raises(NoAddress):
        await node.ask("default/more")


async def test_nothing_is_given_while_the_network_is_about_to_be_cleared(node: Node) -> None:
    node.write("patch", "netloomnetworks", "default", {"status": {"ipam": {"clearing": True}}}, "status", "merge")
    await node.work()
    with pytest.raises(NoAddress):
        await node.ask("default/web")
    node.write("patch", "netloomnetworks", "default", {"status": {"ipam": {"clearing": None}}}, "status", "merge")
    node.see()
    await node.work()
    assert await node.ask("default/web") == "10.7.0.6"


async def test_what_is_used_is_told_and_what_was_withdrawn_under_a_pod(node: Node) -> None:
    await node.work()
    assert await node.ask("default/web") == "10.7.0.6"
    assert await node.ask("default/db") == "10.7.0.5"
    await node.work()
    used = {
        "10.7.0.5": {"owner": "default/db", "resource": "eni-1"},
        "10.7.0.6": {"owner": "default/web", "resource": ""},
    }
    assert node.status == {"mode": "crd", "used": used}
    assert node.feature.errors() == []

    node.write("patch", "netloomnodes", "n1", {"spec": {"ipam": {"pool": {"10.7.0.5": None}}}}, kind="merge")
    node.see()
    await node.work()
    assert node.status == {"mode": "crd", "used": used}, "with what it belonged to"
    assert node.feature.errors() == [
        "NetloomNode n1: spec.ipam.pool: 10.7.0.5 (of default/db) withdrawn while in use: pods keep what they have "
        "until they end. Write them again, or delete these pods; until then no other node may have them."
    ]
    assert node.said.reasons("NetloomNode/n1") == ["AddressWithdrawn"]
    (withdrawn,) = (each for each in node.feature.metrics() if each.name == "netloom_addresses_withdrawn")
    assert [sample.value for sample in withdrawn.samples] == [1]

    node.feature.service.checkpoint.close()
    again = node.begin()
    await node.work()
    assert [owner.name for owner, _ in again.allocator.held()] == ["default/web", "default/db"]
    assert node.status == {"mode": "crd", "used": used}, "an agent that starts takes nothing back"


async def test_the_owner_of_an_entry_is_changed_under_the_pod_that_uses_it(node: Node) -> None:
    await node.work()
    assert await node.ask("default/db") == "10.7.0.5"
    pool = {"10.7.0.5": {"owner": "default/other"}}
    node.write("patch", "netloomnodes", "n1", {"spec": {"ipam": {"pool": pool}}}, kind="merge")
    node.see()
    await node.work()
    assert node.feature.errors() == [
        "NetloomNode n1: spec.ipam.pool: 10.7.0.5 is default/other's, and default/db uses it. Delete the pod that uses "
        "it, or correct the entry's owner."
    ]


async def test_what_the_object_says_of_its_use_makes_up_for_a_lost_checkpoint(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.work()
    assert await node.ask("default/db") == "10.7.0.5"
    await node.work()
    node.write("patch", "netloomnodes", "n1", {"spec": {"ipam": {"pool": {"10.7.0.5": None}}}}, kind="merge")

    async def pods_of(_api: object, _node: str) -> dict[Address, str]:
        return {parse_address("10.7.0.5"): "default/db"}

    monkeypatch.setattr(running, "pods_of", pods_of)
    for path in node.folder.iterdir():
        path.unlink()
    node.feature.service.checkpoint.close()
    node.begin()
    await node.work()
    assert list(node.status["used"]) == ["10.7.0.5"], "though it is in no pool any more"
