"""Pods that another CNI wired are told of, and nobody else is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netloom.api.core import Pod, PodIP, PodSpec, PodStatus
from netloom.api.meta import ObjectMeta
from netloom.cidr import Address, parse_address
from netloom.runtime.errors import Unavailable
from netloom_reconcilers.node.endpoints.foreign_pods import ForeignPods


def pod(name: str, *addresses: str, phase: str = "Running", host: bool = False, going: str = "") -> Pod:
    return Pod(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", deletion_timestamp=going),
        spec=PodSpec(host_network=host, node_name="n1"),
        status=PodStatus(phase=phase, pod_ips=tuple(map(PodIP, addresses))),
    )


OURS = pod("ours", "10.0.0.2", "fd00::2")
OTHERS = (pod("a", "10.42.0.7"), pod("b", "10.0.0.3"))
"""The second one of a CNI that had the same pod CIDRs."""


class World:
    def __init__(self) -> None:
        self.pods: list[Pod] | Exception = [OURS]
        self.wired: set[Address] | None = {parse_address(each.ip) for each in OURS.status.pod_ips}
        self.changes = 0
        self.asked: list[str] = []
        api: Any = self
        self.foreign_pods = ForeignPods(api, "n1", lambda: self.wired, Path("/host/etc/cni/net.d"), self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def list(self, res: object, *, field_selector: str) -> SimpleNamespace:
        self.asked.append(field_selector)
        if isinstance(self.pods, Exception):
            raise self.pods
        return SimpleNamespace(objects=self.pods)


@pytest.fixture
def world() -> World:
    return World()


async def test_they_are_named_until_they_are_gone(world: World) -> None:
    world.pods = [OURS, *OTHERS]
    assert not await world.foreign_pods.look()
    assert world.foreign_pods.sentence == "", "they may just be going"
    assert not await world.foreign_pods.look()
    said = world.foreign_pods.sentence
    assert said.startswith("Another CNI wired pods of node n1: default/a, default/b. If they are from before")
    assert "does not go by /etc/cni/net.d alone" in said
    assert world.changes == 1
    world.pods = [OURS]
    assert await world.foreign_pods.look()
    assert (world.foreign_pods.sentence, world.changes) == ("", 2)
    assert {*world.asked} == {"spec.nodeName=n1"}


async def test_many_are_counted(world: World) -> None:
    world.pods = [pod(f"p{number}", f"10.42.0.{number}") for number in range(1, 9)]
    await world.foreign_pods.look()
    await world.foreign_pods.look()
    assert "default/p1, default/p2, default/p3 and 5 more." in world.foreign_pods.sentence


@pytest.mark.parametrize(
    "another",
    [
        pod("host", "172.31.1.1", host=True),
        pod("over", "10.42.0.7", phase="Succeeded"),
        pod("young", phase="Pending"),
        pod("going", "10.42.0.7", going="2026-01-01T00:00:00Z"),
        pod("both", "10.0.0.2", "fd00::9"),
    ],
    ids=lambda each: each.metadata.name,
)
async def test_who_is_none_of_them(world: World, another: Pod) -> None:
    world.pods = [OURS, another]
    for _ in range(2):
        assert await world.foreign_pods.look()
    assert world.foreign_pods.sentence == ""


async def test_nothing_is_said_of_what_is_not_known(world: World) -> None:
    world.pods = list(OTHERS)
    world.wired = None
    assert not await world.foreign_pods.look()
    assert world.asked == []
    world.wired = set()
    world.pods = Unavailable(0, "Unavailable", "no answer")
    assert not await world.foreign_pods.look()
    assert world.foreign_pods.sentence == ""
