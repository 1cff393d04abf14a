"""What an agent takes in after a start of what the kernel shows."""

from pathlib import Path

import pytest

from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import FoundEndpoint, device_of
from netloom_reconcilers.node.addresses.running import MergedPods, merge, seen
from tests.endpoints.world import Node

MAC = bytes.fromhex("020000000009")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def found_endpoint(container: str, *addresses: str, interface: str = "eth0", mac: bytes = b"") -> FoundEndpoint:
    return FoundEndpoint(
        device=device_of(container, interface),
        container=container,
        interface=interface,
        addresses=tuple(map(parse_address, addresses)),
        mtu=1450,
        mac=mac,
    )


async def test_a_mac_that_was_asked_for_is_asked_for_again(node: Node) -> None:
    """Else the permanent neighbour would be put back to another one, and no packet reach the pod."""
    address = await node.add("c1", "web", runtimeConfig={"mac": "02:00:00:00:00:09"})
    made = node.attachments.endpoints.get(device_of("c1", "eth0"))
    assert made is not None
    assert made.mac == MAC
    node.attachments.endpoints.discard(made.device)
    node.attachments.restore([found_endpoint("c1", address, mac=MAC)])
    found = node.attachments.endpoints.get(made.device)
    assert found is not None
    assert found.pod_mac == MAC


async def test_whose_record_was_lost_keeps_its_address_until_its_end(node: Node) -> None:
    """As where the checkpoint is gone, and nobody has told the API server of the pod yet."""
    shown = [
        found_endpoint("c1", "10.0.0.2"),
        found_endpoint("c2", "10.0.0.3", "fd00::3"),
        found_endpoint("c3"),
        found_endpoint("", "10.0.0.5"),
    ]
    node.attachments.adopt(shown)
    node.attachments.restore(shown)
    assert node.held() == {"c1 c1 eth0": "10.0.0.2", "c2 c2 eth0": "10.0.0.3 fd00::3"}
    pods = {parse_address("10.0.0.2"): "default/web"}
    assert merge(node.service.allocator, pods, {}, lambda address: True) == MergedPods(), "the container is that pod's"
    assert node.wired() == {("c1", "eth0"), ("c2", "eth0")}
    assert await node.add("c9", "fresh") not in ("10.0.0.2", "10.0.0.3")
    refused = await node.ask("ADD", "c1", "web")
    assert refused["details"] == "container c1 has eth0 already. A DEL has to come before another ADD."
    node.service.checkpoint.close()
    again = Node(node.folder)
    again.attachments.adopt(shown)
    again.attachments.restore(shown)
    assert again.wired() == {("c1", "eth0"), ("c2", "eth0")}, "it is written down"
    for container in ("c1", "c2"):
        assert await again.ask("DEL", container, "web", uid="u1") == {}
    assert list(again.held()) == ["default/fresh c9 eth0"]
    assert again.wired() == set()


async def test_who_is_known_by_sight_has_its_name(node: Node) -> None:
    allocator = node.service.allocator
    allocator.adopt(seen("device:eth7"), [parse_address("10.0.0.2")])
    allocator.adopt(seen("default/web"), [parse_address("fd00::2")])
    shown = [found_endpoint("c1", "10.0.0.2", "fd00::2")]
    node.attachments.adopt(shown)
    node.attachments.restore(shown)
    assert [each.pod for each in node.attachments.endpoints] == ["default/web"]
    assert set(node.held()) == {"device:eth7  ", "default/web  "}


async def test_another_containers_address_explains_nothing(node: Node) -> None:
    address = await node.add("c1", "web")
    shown = [found_endpoint("c1", address), found_endpoint("c2", address)]
    node.attachments.adopt(shown)
    node.attachments.restore(shown)
    assert node.wired() == {("c1", "eth0")}
    assert list(node.held()) == ["default/web c1 eth0"]


async def test_who_has_addresses_and_no_interface_is_looked_for(node: Node) -> None:
    """As where a pod ended while no agent ran, and its runtime never said so."""
    for container in ("c1", "c2", "c3", "c4"):
        await node.add(container, container)
    node.service.allocator.adopt(seen("default/seen"), [parse_address("10.0.0.14")])
    address = node.held()["default/c1 c1 eth0"]
    node.service.checkpoint.close()
    again = Node(node.folder)
    again.attachments.restore([found_endpoint("c1", address)])
    again.attachments.forget_others()
    lost = again.attachments.lost
    assert [(each.pod, each.interface) for each in lost.values()] == [(f"default/c{n}", "eth0") for n in (2, 3, 4)]
    assert await again.ask("DEL", "c2", "c2") == {}
    await again.add("c3", "c3")
    assert list(lost) == [("c4", "eth0")]


async def test_a_pods_uid_outlives_the_agent_so_that_nobody_late_meets_its_successor(node: Node) -> None:
    """A StatefulSet's pod has the same name again; a runtime may use a container's id again."""
    address = await node.add("c1", "web-0", uid="u2")
    node.service.checkpoint.close()
    again = Node(node.folder)
    again.attachments.restore([found_endpoint("c1", address)])
    assert await again.ask("DEL", "c1", "web-0", uid="u1") == {}, "a DEL of what is gone succeeds"
    assert (again.held(), again.wired()) == ({"default/web-0 c1 eth0": address}, {("c1", "eth0")})
    refused = await again.ask("ADD", "c1", "web-0", uid="u1")
    assert refused["code"] == 101
    assert await again.ask("DEL", "c1", "web-0", uid="u2") == {}
    assert (again.held(), again.wired()) == ({}, set())


async def test_who_is_given_again_what_a_life_before_gave_is_who_has_it(node: Node) -> None:
    """The agent was killed between the record and the wiring, and the runtime asks for another pod by that id."""
    address = await node.add("c1", "web-0", uid="u1")
    node.service.checkpoint.close()
    again = Node(node.folder)
    assert await again.add("c1", "web-0", uid="u2") == address
    again.service.checkpoint.close()
    third = Node(node.folder)
    third.attachments.restore([found_endpoint("c1", address)])
    assert await third.ask("DEL", "c1", "web-0", uid="u1") == {}
    assert third.wired() == {("c1", "eth0")}
