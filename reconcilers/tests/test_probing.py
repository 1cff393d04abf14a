"""Which peers are probed, and what is said of what was seen. Pure."""

from collections import Counter

import msgspec
import pytest
from msgspec.structs import replace

from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import format_address, parse_address
from netloom.kernel.probe.examination import Evidence, Target
from netloom.kernel.probe.keeper import Egress
from netloom.kernel.probe.packets import Rejection
from netloom_reconcilers.node.probing.findings import finding, sentences, told_apart
from netloom_reconcilers.node.probing.selection import PER_WAY, PROBERS, behind, by_way, concerns
from netloom_reconcilers.node.probing.targets import addresses_of, by_nodes, hosts_of, targets_of

NAMES = [f"node-{number}" for number in range(300)]
VXLAN, NATIVE = Egress("netloom_vxlan", "vxlan", 8472, 1450), Egress("eth0", mtu=1500)
N2 = Target("n2", parse_address("10.42.2.255"), parse_address("10.42.2.0"), parse_address("172.16.0.2"))
LOST = Evidence(target=N2, way=VXLAN, size=1450, forwards=True, host="silent")


def node(name: str, *cidrs: str) -> NetloomNode:
    spec = {"addresses": [{"type": "InternalIP", "ip": "172.16.0.2"}], "ipam": {"podCIDRs": cidrs}}
    return msgspec.convert({"metadata": {"name": name}, "spec": spec}, NetloomNode)


def test_each_node_is_probed_by_others_and_each_probes_few() -> None:
    probed = Counter(name for own in NAMES for name in by_way(behind(own, NAMES), ["vxlan"] * 64))
    assert probed == dict.fromkeys(NAMES, PER_WAY)


def test_each_way_in_use_is_probed() -> None:
    ways = ["vxlan"] * 10 + ["native", "vxlan", "geneve", "native", "native"]
    candidates = behind("node-1", NAMES, len(ways))
    assert [candidates.index(name) for name in by_way(candidates, ways)] == [0, 1, 10, 12, 13]


def test_a_change_is_looked_at_by_a_few_whatever_the_number() -> None:
    names = [f"node-{number}" for number in range(5000)]
    assert 1 <= sum(concerns(own, "node-7", len(names)) for own in names) <= 3 * PROBERS
    assert all(concerns(own, "node-7", 3) for own in names[:3])


def test_the_last_address_of_the_first_cidr_of_each_family_stands_for_a_pod() -> None:
    found = node("n2", "10.42.2.0/24", "10.99.0.0/16", "fd00:42:0:2::/64")
    assert [format_address(each) for each in addresses_of(found).values()] == [
        "10.42.2.255",
        "fd00:42:0:2:ffff:ffff:ffff:ffff",
    ]
    assert [format_address(each) for each in hosts_of(found)] == ["10.42.2.0", "fd00:42:0:2::", "172.16.0.2"]
    assert targets_of(found)[0] == N2
    assert by_nodes(N2, VXLAN) == N2
    assert by_nodes(N2, NATIVE).host == N2.underlay
    assert addresses_of(node("small", "10.42.2.4/31", "fd00::4/127")) == {}


def test_in_ipv6_pods_get_the_last_address_too_where_there_are_few() -> None:
    assert addresses_of(node("n2", "fd00:10::1:100/120")) == addresses_of(node("n2", "fd00:10::1:0/113")) == {}
    assert [format_address(each) for each in addresses_of(node("n2", "fd00:10::1:0/112")).values()] == [
        "fd00:10::1:ffff"
    ]


@pytest.mark.parametrize(
    ("evidence", "alive", "passes", "reason", "where", "text"),
    [
        (replace(LOST, largest=1450), None, True, "", "", ""),
        (replace(LOST, largest=1350), True, False, "PacketsTooLarge", "between", "set spec.mtu to 1400,"),
        (replace(LOST, way=NATIVE, size=1500, largest=1400), True, False, "PacketsTooLarge", "between", "to 1400,"),
        (replace(LOST, forwards=False), True, False, "ForwardHookDrops", "here", "this node's forward hook drops"),
        (replace(LOST, host="refused"), True, None, "NoAgentThere", "", "no agent answers"),
        (replace(LOST, host="refused", forwards=False), True, False, "ForwardHookDrops", "here", "this node's"),
        (replace(LOST, host="answered", peer_forwards=False), True, False, "ForwardHookDrops", "there", "hook of n2"),
        (replace(LOST, host="answered", peer_device=False), True, None, "NoDeviceThere", "", "n2: its agent has no"),
        (replace(LOST, peer_device=False, forwards=False), True, False, "ForwardHookDrops", "here", "this node's"),
        (replace(LOST, host="answered"), True, False, "ForwardHookDrops", "way there", "leaves by netloom_vxlan"),
        (replace(LOST, host="answered", seen=True), True, False, "ForwardHookDrops", "way back", "answers from n2"),
        (
            replace(LOST, rejected=Rejection(N2.host, N2.address, "filter")),
            True,
            False,
            "ForwardHookRefuses",
            "there",
            "the forward hook of n2 refuses",
        ),
        (replace(LOST, ping=True), True, False, "UnderlayPortDropped", "between", "drops UDP port 8472 (vxlan)"),
        (replace(LOST, ping=True, port_refused=True), True, False, "UnderlayPortRefused", "there", "refuses UDP port"),
        (replace(LOST, heard=True, ping=True), True, False, "LostOneWay", "way there", "from this node to 172.16.0.2"),
        (replace(LOST, way=NATIVE, ping=True), True, False, "NetworkDropsPods", "between", "routes to the pod CIDRs"),
        (replace(LOST, ping=False), True, False, "UnderlayUnreachable", "between", "does not answer ping either"),
        (replace(LOST, ping=False), None, None, "NoAnswerAtAll", "", "not known whether it lives"),
        (LOST, None, None, "NoAnswerAtAll", "", "not known whether it lives"),
        (LOST, True, False, "UnderlayUnreachable", "between", "this process may send no ping"),
        (replace(LOST, ping=False), False, None, "AgentSilent", "", "no sign of life"),
        (replace(LOST, ping=True), False, None, "AgentSilent", "", "no sign of life"),
        (replace(LOST, way=Egress()), True, False, "NoRoute", "here", "have no route"),
    ],
)
def test_what_was_seen_in_words(
    evidence: Evidence, alive: bool | None, passes: bool | None, reason: str, where: str, text: str
) -> None:
    found = finding(evidence, alive=alive)
    assert (found.passes, found.reason, found.where) == (passes, reason, where)
    assert text in found.text


def test_what_else_drops_a_port_that_is_allowed() -> None:
    for lost in (replace(LOST, ping=True), replace(LOST, ping=True, heard=True)):
        text = finding(lost, alive=True).text
        assert "`ctstate NEW`) does not match these packets" in text
        assert "n2 drops them as a stranger's" in text
    assert "stranger" not in finding(replace(LOST, way=NATIVE, heard=True), alive=True).text


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(LOST, ping=True), "UnderlayPortDropped"),
        (replace(LOST, way=NATIVE, ping=True), "NetworkDropsPods"),
        (replace(LOST, ping=False), "UnderlayUnreachable"),
    ],
)
def test_a_peer_that_never_answered_may_not_probe(evidence: Evidence, reason: str) -> None:
    sure, found = finding(evidence, alive=True), finding(evidence, alive=True, never=True)
    assert (sure.passes, sure.reason) == (False, reason)
    assert (found.passes, found.reason) == (None, "NeverAnswered")
    assert "drops UDP port 9966" in found.text
    assert found.text.endswith(sure.text)
    assert finding(replace(evidence, heard=True), alive=True, never=True).reason == "LostOneWay"


def test_a_switch_that_is_off_is_named_with_the_command() -> None:
    found = finding(replace(LOST, forwards=False), alive=True, switch="net.ipv4.ip_forward")
    assert "`sysctl -w net.ipv4.ip_forward=1`" in found.text


def test_what_both_families_have_in_common_is_said_once() -> None:
    six = replace(N2, address=parse_address("fd00::ffff"))
    found = [finding(replace(LOST, target=target, ping=True), alive=True) for target in (N2, six)]
    found.append(finding(replace(LOST, target=replace(N2, name="n3"), ping=True), alive=True))
    said = sentences(found)
    assert len(said) == 2
    assert sentences([finding(replace(LOST, target=six, forwards=False), alive=True)])[0].count("IPv6") == 1
    both = sentences([finding(replace(LOST, target=each, forwards=False), alive=True) for each in (N2, six)])
    assert "IPv4 and IPv6" in both[0]


def test_a_tunnel_that_carries_one_family_does_not_lose_the_other() -> None:
    six = replace(N2, address=parse_address("fd00::ffff"))
    passes = finding(replace(LOST, target=six, largest=1450), alive=True)
    silent = finding(replace(LOST, ping=True), alive=True)
    never = finding(replace(LOST, ping=True), alive=True, never=True)
    one_way = finding(replace(LOST, heard=True), alive=True)
    assert [each.reason for each in (silent, never, one_way)] == ["UnderlayPortDropped", "NeverAnswered", "LostOneWay"]
    for lost in (silent, never, one_way):
        told, other = told_apart([lost, passes])
        assert (told.passes, told.reason, told.where, other) == (False, "OneFamilyDropped", lost.where, passes)
        assert "are lost in IPv4 and pass in IPv6" in told.text
        assert "8472 (vxlan)" not in told.text
    # By another way, to another peer, of a known cause, or in both families: it stands.
    native = [finding(replace(each, way=NATIVE), alive=True) for each in (replace(LOST, ping=True), LOST)]
    of_native = replace(passes, way="native")
    of_another = replace(passes, peer="n3")
    here = finding(replace(LOST, forwards=False), alive=True)
    both = [silent, finding(replace(LOST, target=six, ping=True), alive=True)]
    for findings in ([*native, of_native], [silent, of_native, of_another], [here, passes], both):
        assert told_apart(findings) == findings
