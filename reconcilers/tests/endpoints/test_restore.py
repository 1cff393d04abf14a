"""What an agent takes in after a start of what the kernel shows."""

from pathlib import Path

import pytest

from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import Remains, device_of
from tests.endpoints.world import Node

MAC = bytes.fromhex("020000000009")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def remains(container: str, *addresses: str, interface: str = "eth0", mac: bytes = b"") -> Remains:
    return Remains(
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
    node.attachments.restore([remains("c1", address, mac=MAC)])
    found = node.attachments.endpoints.get(made.device)
    assert found is not None
    assert found.pod_mac == MAC
