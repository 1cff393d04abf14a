"""A node on which pods are added: the real allocator and checkpoint, and a kernel's side that a test makes fail."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netloom.cidr import Cidr, format_address
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, Wired, WiringFailed, device_of
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint
from netloom_reconcilers.node.addresses.service import AddressService
from netloom_reconcilers.node.endpoints.attachments import Attachments
from netloom_reconcilers.node.endpoints.commands import Commands
from netloom_reconcilers.node.endpoints.connection import Reply, Sandbox
from netloom_reconcilers.node.endpoints.deletions import Deletions
from netloom_reconcilers.node.endpoints.framing import Call
from netloom_reconcilers.node.endpoints.networks import Networks

NETNS = Sandbox(-1, -1)
"""Descriptors that nobody reads here."""


@dataclass
class FaultyWiring:
    """Holds what is wired. fails: raised by the next calls, by name. hold: keeps `wire` waiting."""

    endpoints: Endpoints = field(default_factory=Endpoints)
    fails: dict[str, WiringFailed] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    wired: int = 0
    found: list[str] = field(default_factory=list)

    async def wire(self, endpoint: Endpoint, netns: int, inside: int) -> Wired:
        self.wired += 1
        if self.hold is not None:
            await self.hold.wait()
        if "wire" in self.fails:
            raise self.fails["wire"]
        self.endpoints.put(endpoint)
        return Wired(endpoint.device, endpoint.host_mac, endpoint.pod_mac, endpoint.mtu or 1500)

    async def unwire(self, container: str, interface: str) -> bool:
        if "unwire" in self.fails:
            raise self.fails["unwire"]
        device = device_of(container, interface)
        had = self.endpoints.get(device) is not None
        self.endpoints.discard(device)
        return had

    async def differences(self, endpoint: Endpoint, inside: int) -> list[str]:
        return self.found


class Node:
    """Of 10.0.0.0/28, and what a runtime asks it."""

    def __init__(self, folder: Path, cidr: str = "10.0.0.0/28", rest: float = 0.0) -> None:
        self.folder = folder
        self.service = AddressService(
            NodeAllocator(rest),
            Checkpoint(folder, "n1"),
            lambda pool: frozenset({4}),
            lambda owner, short: f"{owner.name} gets none: all are taken." if owner else "pods get none",
            clock=lambda: 1000.0,
        )
        assert self.service.begin() is not None
        self.service.provide(Supply(blocks={"": (Cidr.parse(cidr),)}))
        self.service.obstacle = ""
        self.obstacle = self.lack = ""
        self.wiring = FaultyWiring()
        self.attachments = Attachments(self.service, self.wiring, Networks(folder), lambda: 1450)
        self.wiring.endpoints = self.attachments.endpoints
        self.commands = Commands(
            self.service, self.attachments, self.wiring.differences, lambda: self.obstacle, lambda: self.lack
        )
        self.deletions = Deletions(folder / "deletions", self.commands.make_up_for)
        self.commands.deletions = self.deletions

    def held(self) -> dict[str, str]:
        """By `name container interface`, who has which addresses."""
        return {
            " ".join(owner): " ".join(map(format_address, holding.addresses))
            for owner, holding in self.service.allocator.held()
        }

    def wired(self) -> set[tuple[str, str]]:
        return {(each.container, each.interface) for each in self.attachments.endpoints}

    async def ask(self, command: str, container: str = "c1", pod: str = "web", **said: Any) -> dict[str, Any]:
        """The answer's JSON, {} where there is none; an error has its code."""
        return said_by(await self.answer(command, container, pod, **said))

    async def answer(self, command: str, container: str = "c1", pod: str = "web", **said: Any) -> Reply:
        sandbox = said.pop("sandbox", NETNS if command in ("ADD", "CHECK") else None)
        return await self.commands.handle(call(command, container, pod, **said), sandbox)

    async def add(self, container: str = "c1", pod: str = "web", **said: Any) -> str:
        """The address that it has then."""
        got = await self.ask("ADD", container, pod, **said)
        assert "ips" in got, got
        return str(got["ips"][-1]["address"]).removesuffix("/32")


def said_by(answer: Reply) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(answer.output or b"{}")
    assert (answer.status != 0) is ("code" in said), said
    return said


def call(command: str, container: str = "c1", pod: str = "web", **said: Any) -> Call:
    """As a runtime asks. uid, ifname, and fields of the configuration."""
    uid, ifname = said.pop("uid", ""), said.pop("ifname", "eth0")
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}" + (f";K8S_POD_UID={uid}" if uid else "")
    config: Mapping[str, Any] = {"cniVersion": "1.1.0", "name": "netloom", "type": "netloom-cni", **said}
    netns = f"/run/netns/{container}" if command in ("ADD", "CHECK", "DEL") else ""
    return Call(
        command=command,
        containerid=container if command in ("ADD", "CHECK", "DEL") else "",
        netns=netns,
        ifname=ifname if command in ("ADD", "CHECK", "DEL") else "",
        args=args if pod else "",
        stdin=json.dumps(config).encode(),
    )


def valid(*attachments: tuple[str, ...]) -> dict[str, Any]:
    """For GC: containers, with their interfaces or without."""
    entries = [dict(zip(("containerID", "ifname"), each, strict=False)) for each in attachments]
    return {"cni.dev/valid-attachments": entries}


def owner(pod: str, container: str, interface: str = "eth0") -> Owner:
    return Owner(f"default/{pod}", container, interface)
