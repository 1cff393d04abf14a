"""When the probe's findings are told: what fails twice, what passes at once, and never what cannot be known."""

import math
from pathlib import Path

import msgspec
import pytest

from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode
from netloom.cidr import parse_address
from netloom.kernel.probe.examination import Target
from netloom.kernel.probe.keeper import Way
from netloom.roles.sources import Sources
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node.probe import ProbeFeature
from netloom_reconcilers.node.probing.findings import Finding
from netloom_reconcilers.node.probing.targets import addresses_of

GOOD = Finding(peer="n2", family=4, way="vxlan:8472", passes=True, size=1450, largest=1450)
BAD = Finding(peer="n2", family=4, way="vxlan:8472", passes=False, reason="LostOneWay", text="packets to n2 are lost")
UNKNOWN = Finding(peer="n2", family=4, way="vxlan:8472", passes=None, reason="AgentSilent", text="nobody there")


@pytest.fixture
async def probe(tmp_path: Path) -> ProbeFeature:
    return ProbeFeature(NodeContext("n1", tmp_path, Sources(None)))


def said(probe: ProbeFeature) -> tuple[bool, str] | None:
    found = probe.readiness()
    return found[:2] if found is not None else None


async def test_what_fails_twice_in_a_row_is_told_and_taken_back_at_once(probe: ProbeFeature) -> None:
    assert said(probe) is None
    probe._take(GOOD)
    assert said(probe) == (True, "ProbesAnswered")
    for finding in (BAD, GOOD, BAD, GOOD):
        probe._take(finding)
        assert said(probe) == (True, "ProbesAnswered"), "one failure is nothing"
    probe._take(BAD)
    probe._take(BAD)
    assert probe.readiness() == (False, "LostOneWay", "packets to n2 are lost")
    assert probe.facts()["probe"]["failing"] == ["packets to n2 are lost"]  # type: ignore[index]
    probe._take(GOOD)
    assert said(probe) == (True, "ProbesAnswered")


async def test_a_peer_of_which_nothing_can_be_known_is_no_alarm(probe: ProbeFeature) -> None:
    probe._take(GOOD)
    for _ in range(5):
        probe._take(UNKNOWN)
    assert said(probe) == (True, "ProbesAnswered")
    assert probe.facts()["probe"]["unknown"] == ["nobody there"]  # type: ignore[index]


async def test_that_too_little_is_known_takes_nothing_back(probe: ProbeFeature) -> None:
    probe._take(BAD)
    probe._take(BAD)
    probe._take(Finding(peer="n2", family=4, way="vxlan:8472", passes=None, reason="NoAnswerAtAll", text="?"))
    assert said(probe) == (False, "LostOneWay")


async def test_a_bounded_number_is_named(probe: ProbeFeature) -> None:
    for number in range(20):
        for _ in range(2):
            probe._take(Finding(peer=f"n{number}", family=4, way="w", passes=False, reason="R", text=f"lost {number}."))
    assert probe.readiness() == (False, "R", "lost 0. lost 1. lost 2. And 17 more.")


@pytest.mark.parametrize(("mtu", "native"), [(0, 1500), (1400, 1400), (9000, 1500)])
async def test_without_a_tunnel_pods_send_no_more_than_the_network_is_said_to_carry(
    probe: ProbeFeature, monkeypatch: pytest.MonkeyPatch, mtu: int, native: int
) -> None:
    tunnel, by_router = Way("netloom_vxlan", "vxlan", 8472, 1450), Way("eth0", mtu=1500)

    async def ways(addresses: list[bytes]) -> list[Way]:
        return [tunnel, by_router]

    monkeypatch.setattr(probe.keeper, "ways", ways)
    network = {"metadata": {"name": "default"}, "spec": {"mtu": mtu}}
    probe.context.networks.put(msgspec.convert(network, NetloomNetwork))
    assert [way.mtu for way in await probe._ways([b"1", b"2", b""])] == [1450, native, 0]


async def test_what_is_not_looked_at_any_more_is_told_no_more(
    probe: ProbeFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ways(addresses: list[bytes]) -> list[Way]:
        return [Way()] * len(addresses)

    async def examined(target: Target, way: Way, *, whole: bool) -> Finding:
        return BAD

    monkeypatch.setattr(probe.keeper, "ways", ways)
    monkeypatch.setattr(probe, "_examined", examined)
    spec = {"ipam": {"podCIDRs": ["10.42.2.0/24"]}}
    probe.context.nodes.put(msgspec.convert({"metadata": {"name": "n2"}, "spec": spec}, NetloomNode))
    probe._next_round = math.inf
    six, own = msgspec.structs.replace(BAD, family=6), msgspec.structs.replace(BAD, peer="n1")
    for finding in (BAD, six, own) * 2:
        probe._take(finding)
    probe.prober.addresses = (parse_address("10.42.1.255"), parse_address("fd00:1::ffff"))
    probe._applied = True
    await probe._due()
    assert set(probe.failing) == {("n2", 4)}, "n2 has no IPv6, and this node no device"
    probe.prober.addresses = ()
    await probe._due()
    assert said(probe) == (True, "ProbesAnswered"), "nothing is probed, so nothing is known to fail"


async def test_who_asks_in_trouble_is_known_without_a_look_at_all_nodes(
    probe: ProbeFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []

    def counted(node: NetloomNode) -> dict[int, bytes]:
        looked_at.append(node.metadata.name)
        return addresses_of(node)

    def put(name: str, cidr: str) -> None:
        spec = {"ipam": {"podCIDRs": [cidr]}}
        probe.context.nodes.put(msgspec.convert({"metadata": {"name": name}, "spec": spec}, NetloomNode))

    for number in range(2, 100):
        put(f"n{number}", f"10.42.{number}.0/24")
    put("n2", "10.43.0.0/24")
    put("n3", "10.42.2.0/24")
    probe._notice()
    monkeypatch.setattr("netloom_reconcilers.node.probe.addresses_of", counted)
    for address, names in {"10.42.2.255": ["n3"], "10.43.0.255": ["n2"], "10.42.3.255": [], "10.42.7.9": []}.items():
        probe._changed.clear()
        probe._troubled_at = 0.0
        probe._is_troubled(parse_address(address))
        assert list(probe._changed) == names
    assert len(looked_at) <= 4


async def test_without_the_device_it_is_said_what_cannot_be_seen(probe: ProbeFeature) -> None:
    probe.keeper.device.lacking = "/dev/net/tun is not there."
    probe._take(GOOD)
    found = probe.readiness()
    assert found is not None
    assert found[:2] == (True, "SeenInPart")
    assert found.message.endswith("cannot be seen: /dev/net/tun is not there.")
