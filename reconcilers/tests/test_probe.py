"""When the probe's findings are told: what fails twice, what passes at once, and never what cannot be known."""

import datetime as dt
import math
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest
from msgspec.structs import replace

from netloom.api.coordination import Lease, LeaseSpec
from netloom.api.meta import Condition, ObjectMeta
from netloom.api.v1alpha1 import NETLOOM_NODES, NetloomNetwork, NetloomNode, NetloomNodeStatus
from netloom.cidr import parse_address
from netloom.kernel.probe.examination import Evidence, ProbeTiming, Target
from netloom.kernel.probe.keeper import Egress
from netloom.kernel.probe.prober import Prober
from netloom.roles.sources import Sources
from netloom.runtime.errors import NotFound
from netloom_reconcilers.conditions import Conditions, Readiness
from netloom_reconcilers.features.node import NodeContext
from netloom_reconcilers.node.probe import ProbeFeature
from netloom_reconcilers.node.probing.findings import Finding
from netloom_reconcilers.node.probing.looks import Leases, Life
from netloom_reconcilers.node.probing.pace import TellingPace
from netloom_reconcilers.node.probing.targets import addresses_of

GOOD = Finding(peer="n2", family=4, way="vxlan:8472", passes=True, size=1450, largest=1450)
BAD = Finding(peer="n2", family=4, way="vxlan:8472", passes=False, reason="LostOneWay", text="packets to n2 are lost")
UNKNOWN = Finding(peer="n2", family=4, way="vxlan:8472", passes=None, reason="AgentSilent", text="nobody there")


@pytest.fixture
async def probe(tmp_path: Path) -> ProbeFeature:
    return ProbeFeature(NodeContext("n1", tmp_path, Sources(None)))


def said(probe: ProbeFeature) -> tuple[bool | None, str] | None:
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
    assert probe.readiness() == Readiness(False, "LostOneWay", "packets to n2 are lost")
    assert probe.facts()["probe"]["failing"] == ["packets to n2 are lost"]  # type: ignore[index]
    probe._take(GOOD)
    assert said(probe) == (True, "ProbesAnswered")


async def test_a_peer_of_which_nothing_can_be_known_is_no_alarm(probe: ProbeFeature) -> None:
    probe._take(GOOD)
    assert said(probe) == (True, "ProbesAnswered")
    for _ in range(5):
        probe._take(UNKNOWN)
    assert said(probe) == (True, "ProbesAnswered")
    assert probe.facts()["probe"]["unknown"] == ["nobody there"]  # type: ignore[index]


async def test_that_too_little_is_known_takes_nothing_back(probe: ProbeFeature) -> None:
    probe._take(BAD)
    probe._take(BAD)
    probe._take(Finding(peer="n2", family=4, way="vxlan:8472", passes=None, reason="NoAnswerAtAll", text="?"))
    assert said(probe) == (False, "LostOneWay")
    probe._take(replace(UNKNOWN, reason="NoAgentThere"))
    assert said(probe) == (False, "LostOneWay"), "its agent is started again"


async def test_where_nothing_passes_it_is_not_said_that_all_is_well(probe: ProbeFeature) -> None:
    for finding in (BAD, BAD):
        probe._take(finding)
    assert said(probe) == (False, "LostOneWay")
    probe._take(UNKNOWN)
    assert said(probe) == (None, "NothingKnown")
    probe._take(GOOD)
    assert said(probe) == (True, "ProbesAnswered")


async def test_what_is_not_known_is_neither_true_nor_false_nor_a_warning() -> None:
    patches, events = AsyncMock(), Mock()
    patches.clock.now = lambda: dt.datetime.now(dt.UTC)
    told = Condition("PodTrafficPasses", "False", "LostOneWay", "", "2026-01-01T00:00:00Z")
    node = NetloomNode(metadata=ObjectMeta(name="n1"), status=NetloomNodeStatus(conditions=(told,)))
    await Conditions(patches, events).set(NETLOOM_NODES, node, "PodTrafficPasses", Readiness(None, "NothingKnown", ""))
    assert patches.patch.await_args.args[2]["status"]["conditions"][0]["status"] == "Unknown"
    assert events.event.call_args.args[1] == "Normal"


class Lost:
    """An examination of a peer from which nothing comes."""

    def __init__(
        self, prober: Prober, target: Target, way: Egress, timing: ProbeTiming, *, since: float | None
    ) -> None:
        self.evidence = Evidence(target=target, way=way, size=1450, forwards=True, host="silent", ping=True)

    async def once(self) -> None:
        """Nothing."""

    async def whole(self) -> Evidence:
        """What was seen."""
        return self.evidence


async def test_a_node_that_may_be_gone_since_is_no_alarm(probe: ProbeFeature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom_reconcilers.node.probe.Examination", Lost)
    target, way = Target("n2", bytes(4)), Egress("netloom_vxlan", "vxlan", 8472, 1450)
    life: Life = "not yet"

    async def lives(*_: object) -> Life:
        return life

    monkeypatch.setattr(probe._leases, "life", lives)
    for _ in range(4):
        probe._take(await probe._examined(target, way, whole=False))
    assert not probe.verdicts.failing
    assert list(probe.verdicts.strikes) == [("n2", 4)], "it is looked at again soon"
    life = "alive"
    for _ in range(2):
        probe._take(await probe._examined(target, way, whole=False))
    assert [found.reason for found in probe.verdicts.failing.values()] == ["UnderlayPortDropped"]
    probe.verdicts._clear(("n2", 4), "")
    probe._take(replace(GOOD, peer="n3"))
    assert (await probe._examined(target, way, whole=False)).reason == "NeverAnswered"
    probe.verdicts.answered(("n2", 4))
    assert (await probe._examined(target, way, whole=False)).reason == "UnderlayPortDropped"


class Server:
    """Answers with one Lease, and counts."""

    def __init__(self) -> None:
        self.clock = self
        self.asked = 0
        self.renewed: dt.datetime | None = None

    def now(self) -> dt.datetime:
        """The time there."""
        return dt.datetime.now(dt.UTC)

    async def get(self, res: object, name: str, namespace: str) -> Lease:
        """The Lease."""
        self.asked += 1
        if self.renewed is None:
            raise NotFound(404, "NotFound", name)
        return Lease(spec=LeaseSpec(renew_time=self.renewed.isoformat(), lease_duration_seconds=40))


async def test_an_agent_lives_that_renews_its_lease_after_it_did_not_answer() -> None:
    server = Server()
    leases = Leases(SimpleNamespace(api=server, lease_namespace="kube-system"))  # type: ignore[arg-type]
    now = time.monotonic()
    assert await leases.life("n2", now, 2) == "silent"
    server.renewed = server.now() - dt.timedelta(seconds=10)
    assert await leases.life("n2", now, 2) == "not yet"
    assert await leases.life("n2", now - 30, 2) == "alive"
    assert server.asked == 2, "the answer is kept for a moment"
    server.renewed = server.now() - dt.timedelta(seconds=50)
    assert await leases.life("n3", now - 60, 2) == "silent"


def test_what_is_told_is_spread_over_the_nodes_and_in_a_large_cluster_told_seldom() -> None:
    now, later = 1000.0, list[float]()
    pace = TellingPace(later.append, share=lambda: 0.5, clock=lambda: now)
    good, bad = Readiness(True, "Good", ""), Readiness(False, "Bad", "")
    assert pace.tell(None, 5000) is None
    assert pace.tell(good, 5000) is None
    assert later == [250.1]
    now += 250
    assert pace.tell(good, 5000) == good
    now += 10
    assert pace.tell(bad, 5000) == good
    now += 489
    assert pace.tell(bad, 5000) == good
    now += 1
    assert pace.tell(bad, 5000) == bad
    now += 600
    assert pace.tell(good, 5000) == bad
    assert pace.tell(bad, 5000) == bad, "what did not last is not told"
    now += 600
    assert pace.tell(good, 2) == bad
    now += 0.1
    assert pace.tell(good, 2) == good


async def test_a_bounded_number_is_named(probe: ProbeFeature) -> None:
    for number in range(20):
        for _ in range(2):
            probe._take(Finding(peer=f"n{number}", family=4, way="w", passes=False, reason="R", text=f"lost {number}."))
    named = "lost 0. lost 1. lost 2. And more: /status of the agent names all."
    assert probe.readiness() == Readiness(False, "R", named)


@pytest.mark.parametrize(("mtu", "native"), [(0, 1500), (1400, 1400), (9000, 1500)])
async def test_without_a_tunnel_pods_send_no_more_than_the_network_is_said_to_carry(
    probe: ProbeFeature, monkeypatch: pytest.MonkeyPatch, mtu: int, native: int
) -> None:
    tunnel, by_router = Egress("netloom_vxlan", "vxlan", 8472, 1450), Egress("eth0", mtu=1500)

    async def ways(addresses: list[bytes]) -> list[Egress]:
        return [tunnel, by_router]

    monkeypatch.setattr(probe.keeper, "ways", ways)
    network = {"metadata": {"name": "default"}, "spec": {"mtu": mtu}}
    probe.context.networks.put(msgspec.convert(network, NetloomNetwork))
    assert [way.mtu for way in await probe._ways([b"1", b"2", b""])] == [1450, native, 0]


async def test_what_is_not_looked_at_any_more_is_told_no_more(
    probe: ProbeFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ways(addresses: list[bytes]) -> list[Egress]:
        return [Egress()] * len(addresses)

    async def examined(target: Target, way: Egress, *, whole: bool) -> Finding:
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
    assert set(probe.verdicts.failing) == {("n2", 4)}, "n2 has no IPv6, and this node no device"
    probe.prober.addresses = ()
    await probe._due()
    assert not probe.verdicts.failing
    assert said(probe) is None, "nothing is probed, so nothing is known"


async def test_who_asks_in_trouble_is_known_after_one_look_at_all_nodes(
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
    probe._notice()
    monkeypatch.setattr("netloom_reconcilers.node.probe.addresses_of", counted)
    probe._changed.clear()
    probe._is_unanswered(parse_address("10.42.5.255"))
    assert list(probe._changed) == ["n5"]
    assert len(looked_at) <= 100
    put("n2", "10.43.0.0/24")
    put("n3", "10.42.2.0/24")
    probe._notice()
    looked_at.clear()
    for address, names in {"10.42.2.255": ["n3"], "10.43.0.255": ["n2"], "10.42.3.255": [], "10.42.7.9": []}.items():
        probe._changed.clear()
        probe._unanswered_at = 0.0
        probe._is_unanswered(parse_address(address))
        assert list(probe._changed) == names
    assert len(looked_at) <= 4


async def test_of_nodes_that_came_and_went_no_addresses_are_remembered(probe: ProbeFeature) -> None:
    """As where an autoscaler makes them, each of another name and with another CIDR."""

    def put(name: str, cidr: str) -> None:
        spec = {"ipam": {"podCIDRs": [cidr]}}
        probe.context.nodes.put(msgspec.convert({"metadata": {"name": name}, "spec": spec}, NetloomNode))
        probe._notice()

    for number in range(10):
        put(f"n{number}", f"10.42.{number}.0/24")
    for number in range(500):
        probe._unanswered_at = 0.0
        probe._is_unanswered(parse_address("10.42.5.255"))
        put(name := f"scaled-{number}", f"10.{50 + number // 250}.{number % 250}.0/24")
        probe.context.nodes.remove(name)
        probe.context.peers.forget(name)
        probe._notice()
        assert probe._whose is None or len(probe._whose) <= 40
    probe._changed.clear()
    probe._unanswered_at = 0.0
    probe._is_unanswered(parse_address("10.42.5.255"))
    assert list(probe._changed) == ["n5"]


async def test_without_the_device_it_is_said_what_cannot_be_seen(probe: ProbeFeature) -> None:
    probe.keeper.device.lacking = "/dev/net/tun is not there."
    probe._take(GOOD)
    found = probe.readiness()
    assert found is not None
    assert found[:2] == (True, "SeenInPart")
    assert found.message.endswith("cannot be seen: /dev/net/tun is not there.")
