"""What is said of the surroundings of a node's data path: each sentence whole, as it is shown and followed."""

import socket

import pytest

from netloom.cidr import Cidr
from netloom.kernel.surroundings.detours import Detour
from netloom.kernel.surroundings.part import SurroundingsFound, UnfilteredBridge
from netloom.kernel.surroundings.rules import PolicyRule, before_main
from netloom.kernel.surroundings.tables import Conntrack, NeighbourTable, Tables
from netloom_reconcilers.node import surroundings_findings as findings

GIB = 1 << 30
RULE = PolicyRule(100, socket.AF_INET, 200, 1)


def said(found: SurroundingsFound, memory: int = 8 * GIB) -> tuple[list[str], list[str]]:
    return findings.errors(found, memory), findings.warnings(found, memory)


def neighbours(needed: int, *thresholds: int, **more: object) -> SurroundingsFound:
    first, second, third = thresholds or (128, 512, 1024)
    return SurroundingsFound(tables=Tables((NeighbourTable("ipv4", (first, second, third), expected=needed),)), **more)  # type: ignore[arg-type]


def connections(count: int, limit: int = 262144, **more: object) -> SurroundingsFound:
    return SurroundingsFound(tables=Tables(conntrack=Conntrack(count, limit)), **more)  # type: ignore[arg-type]


def test_nothing_is_said_of_a_node_with_room() -> None:
    assert said(neighbours(511)) == said(connections(100_000)) == said(SurroundingsFound()) == ([], [])


def test_more_peers_than_the_kernel_takes_neighbours() -> None:
    assert said(neighbours(234, 32, 64, 128)) == (
        [
            "net.ipv4.neigh.default.gc_thresh3 is 128, and this node's peers without a tunnel and its pods are 200 "
            "neighbours or more: beyond it the kernel takes no more, and drops packets to them. Raise it (sysctl -w "
            "net.ipv4.neigh.default.gc_thresh3=1024 net.ipv4.neigh.default.gc_thresh2=512 "
            "net.ipv4.neigh.default.gc_thresh1=128), or let agents do so (spec.limits.raise of NetloomNetwork default)."
        ],
        [],
    )


def test_the_sentence_does_not_change_with_every_peer() -> None:
    assert said(neighbours(1100)) == said(neighbours(1999))
    assert said(neighbours(1100)) != said(neighbours(2100))


def test_nearly_as_many_are_a_warning() -> None:
    errors, (warning,) = said(neighbours(600))
    assert errors == []
    assert warning.startswith("net.ipv4.neigh.default.gc_thresh2 is 512, and this node's peers without a tunnel and ")
    assert "net.ipv4.neigh.default.gc_thresh3=4096 net.ipv4.neigh.default.gc_thresh2=2048 " in warning


def test_a_table_that_was_full_though_nobody_knows_of_what() -> None:
    (error,), warnings = said(neighbours(10, 128, 512, 1024, refused={"ipv4": 7}))
    assert "gc_thresh3 is 1024, and was reached: beyond it" in error
    assert "sysctl -w net.ipv4.neigh.default.gc_thresh3=2048 net.ipv4.neigh.default.gc_thresh2=1024" in error
    assert warnings == []


def test_where_an_agent_may_not_raise_it_that_is_said() -> None:
    name = "net/ipv4/neigh/default/gc_thresh3"
    (error,), _ = said(neighbours(234, 128, 512, 128, unset={name: "Read-only file system"}))
    assert error.endswith(
        "The agent cannot raise it (Read-only file system); on the machine itself: sysctl -w "
        "net.ipv4.neigh.default.gc_thresh3=1024"
    )


def test_connections() -> None:
    nearly = (
        "net.netfilter.nf_conntrack_max is 262144, and so many connections are nearly reached. Raise it (sysctl -w "
    )
    errors, (warning,) = said(connections(240_000))
    assert errors == []
    assert warning.startswith(f"{nearly}net.netfilter.nf_conntrack_max=524288), or let agents do so (")
    (error,), warnings = said(connections(262_144, refused={"conntrack": 12}))
    assert (
        "connections were refused for want of room. Raise it (sysctl -w net.netfilter.nf_conntrack_max=524288)" in error
    )
    assert warnings == []
    (_, (small,)) = said(connections(240_000), memory=GIB // 2)
    assert small.endswith("The machine has too little memory for a higher limit: find out who opens so many.")


@pytest.mark.parametrize(
    ("detour", "sentence"),
    [
        (
            Detour(RULE, Cidr.parse("10.2.0.0/24"), "n2", 1, "tun0"),
            "ip rule 100 (from all lookup 200) leads packets to 10.2.0.0/24 (of n2) out of tun0, before the main "
            "table is asked, which has the route. Have the main table asked before it (ip rule add pref 99 to "
            "10.2.0.0/24 lookup main). If nobody needs the rule, take it away: ip rule delete pref 100 from all lookup "
            "200",
        ),
        (
            Detour(RULE, Cidr.parse("fd00:2::/64"), "n2", 3),
            "ip -6 rule 100 (from all lookup 200) drops packets to fd00:2::/64 (of n2) and 2 more CIDRs, before "
            "the main table is asked, which has the route. Have the main table asked before it (ip -6 rule "
            "add pref 99 lookup main suppress_prefixlength 0). If nobody needs the rule, take it away: ip -6 rule "
            "delete pref 100 from all lookup 200",
        ),
        (
            Detour(PolicyRule(1, socket.AF_INET, 200, 1), Cidr.parse("10.1.0.5/32"), "", 1, "eth1", inward=True),
            "ip rule 1 (from all lookup 200) leads packets to pods of this node (10.1.0.5/32) out of eth1, before"
            " the main table is asked, which has the route. If nobody needs the rule, take it away: ip rule "
            "delete pref 1 from all lookup 200",
        ),
        (
            Detour(before_main([PolicyRule(0, socket.AF_INET6, 255, 1)])[0], Cidr.parse("fd00:2::/64"), "n2", 3),
            "No ip -6 rule has the main table asked, which has the route: packets to fd00:2::/64 (of n2) and 2 more "
            "CIDRs are dropped. Put the kernel's own rule back: ip -6 rule add pref 32766 lookup main",
        ),
    ],
)
def test_rules(detour: Detour, sentence: str) -> None:
    assert said(SurroundingsFound(detours=(detour,))) == ([sentence], [])


def test_bridges() -> None:
    switch = "net/bridge/bridge-nf-call-iptables"
    errors, (off, absent) = said(
        SurroundingsFound(unfiltered=(UnfilteredBridge("cni0", switch, "0"), UnfilteredBridge("cni0", switch, "")))
    )
    assert errors == []
    assert off.startswith(
        "Bridge cni0: net.bridge.bridge-nf-call-iptables is 0, so packets between pods on it go around "
    )
    assert off.endswith(" sysctl -w net.bridge.bridge-nf-call-iptables=1")
    assert absent.endswith(" modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1")
