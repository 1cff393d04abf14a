"""How an agent tells which single addresses its pods use, and what it says while it cannot."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NodeIPAM,
    PoolAddress,
)
from netloom.cidr import Address, parse_address
from netloom.runtime.errors import ApiError
from netloom.runtime.store import Store
from netloom_reconcilers.node.single_addresses import OutsideSupply


class Server:
    """Takes the writes, or refuses them."""

    def __init__(self, nodes: Store[NetloomNode]) -> None:
        self.nodes = nodes
        self.fails = False
        self.told: list[list[str]] = []

    async def patch(self, res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> NetloomNode:
        if self.fails:
            raise ApiError(503, "ServiceUnavailable", "not now")
        used = {text: PoolAddress(**entry) for text, entry in patch["status"]["ipam"].get("used", {}).items()}
        self.told.append(list(used))
        node = self.nodes.get(name)
        assert node is not None
        ipam = msgspec.structs.replace(node.status.ipam, mode=patch["status"]["ipam"]["mode"], used=used)
        return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, ipam=ipam))


async def test_what_could_not_be_told_waits_for_the_controller_alone() -> None:
    nodes, networks = Store(NETLOOM_NODES), Store(NETWORKS)
    used: dict[Address, str] = {}
    server = Server(nodes)
    supply = OutsideSupply("a", networks, nodes, server, lambda: used, clock=lambda: 0.0)  # type: ignore[arg-type]
    networks.put(NetloomNetwork(metadata=ObjectMeta(name="default")))
    spec = NetloomNodeSpec(ipam=NodeIPAM(mode="crd", pool={"10.9.0.5": PoolAddress()}))
    node = NetloomNode(metadata=ObjectMeta(name="a", uid="u"), spec=spec)
    ipam = msgspec.structs.replace(node.status.ipam, mode="crd")
    nodes.put(msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, ipam=ipam)))
    used[parse_address("10.9.0.5")] = "default/p"
    server.fails = True
    for _ in range(2):
        with pytest.raises(ApiError):
            await supply.reconcile("a")
    server.fails = False
    await supply.reconcile("a")
    assert server.told == [["10.9.0.5"]]
