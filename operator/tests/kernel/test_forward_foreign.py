"""Filters at the forward hook that are not ours to open: what is said of each, and whether that is what pings meet."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.kernel.forwarding.blocked import Blocked
from netloom.kernel.forwarding.opening import ForwardingState
from tests.kernel.forwards import ALL, DESIRED, NONE, TUNNELLED, Crossing, keeping
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import SOON, Lab

FIREWALLD = Path(__file__).parent / "firewalld"
"""Table `inet firewalld` as firewalld 1.3.3 makes it, as far as forwarded packets see it, with eth0 in zone public; and
after `firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16 --add-source=fd00:42::/32`, or with this node's
own pod CIDRs and --add-interface=netloom_vxlan in their stead."""

CLOSED = "table inet site { chain forward { type filter hook forward priority 0; policy drop; %s\n}\n}\n"
OPEN = "table inet site { chain forward { type filter hook forward priority 0; %s\n}\n}\n"

SURE = {
    "policy drop": CLOSED % "",
    "only what belongs to a connection": CLOSED % "ct state established,related accept",
    "the wiki's first lines": CLOSED % "ct state vmap { established : accept, related : accept, invalid : drop }",
    "other machines": CLOSED % "ip saddr 10.0.0.0/16 accept; ip6 saddr { fd01::/64, fd02::/64 } accept",
    "a router between other devices": CLOSED % 'iifname "lan0" oifname "wan*" accept',
    "by number": CLOSED % 'iif "lo" accept',
    "a goto that comes to its end": """
        table inet site {
            chain lan { iifname "lan0" accept; }
            chain forward { type filter hook forward priority 0; policy drop; goto lan; accept; }
        }""",
    "a return": CLOSED % "return; accept",
    "a final reject": OPEN % "ct state established,related accept; reject with icmpx admin-prohibited",
    "what comes in here": OPEN % 'iifname "eth0" drop; oifname "eth0" drop',
    "either": OPEN % "ip saddr 10.42.0.0/16 drop; ip6 saddr fd00:42::/32 drop",
    "new connections": OPEN % "ct state new drop",
    "one family in a table of its own": """
        table ip site { chain f { type filter hook forward priority 20; policy drop; }
 }
        table ip6 site { chain f { type filter hook forward priority -300; policy drop; }
 }""",
    "one chain is enough": (OPEN % "accept") + "\n" + CLOSED.replace("site", "other") % "",
    "by a jump": """
        table inet site {
            chain deny { counter; reject; }
            chain forward { type filter hook forward priority 0; jump deny; }
        }""",
    "by a map": OPEN % "meta nfproto vmap { ipv4 : drop, ipv6 : drop }",
    "by a range": OPEN % "ip saddr { 10.42.0.0-10.42.255.255 } drop; ip6 saddr != fd00:43::/32 drop",
    "mangle": "table ip mangle { chain FORWARD { type filter hook forward priority -150; policy drop; }\n}\n"
    "table ip6 mangle { chain FORWARD { type filter hook forward priority -150; policy drop; }\n}\n",
}

PERHAPS = {
    "by a port": CLOSED % "tcp dport 443 accept",
    "by a mark": CLOSED % "meta mark 1 accept",
    "by a limit": CLOSED % "limit rate 1/hour burst 1 packets accept; limit rate over 1/hour drop",
    "by a set that may change": (
        "table inet site { set known { type ipv4_addr; flags interval; }\n"
        "chain forward { type filter hook forward priority 0; policy drop;\n"
        "ip saddr @known accept; meta nfproto ipv6 accept; }\n}"
    ),
    "by both addresses at once": CLOSED
    % "ip saddr . ip daddr { 10.42.9.1 . 10.42.9.2 } accept; meta nfproto ipv6 accept",
}

FINE = {
    "no filter": "table inet site { chain c { drop; }\n}",
    "policy accept": OPEN % "",
    "pods, by the cluster's ranges": CLOSED % "ip saddr 10.42.0.0/16 accept; ip6 saddr fd00:42::/32 accept",
    "pods, by both ends": CLOSED
    % "ip saddr 10.42.0.0/16 ip daddr 10.42.0.0/16 accept; ip6 saddr fd00:42::/32 ip6 daddr fd00:42::/32 accept",
    "all but others": CLOSED % 'iifname { "lan0", "wan0" } drop; accept',
    "what comes and goes": CLOSED % 'iifname "eth0" accept; oifname "eth0" accept',
    "a jump": """
        table inet site {
            chain pods {
                ip saddr { 10.42.1.0/24, 10.42.2.0/24 } accept
                ip6 saddr { fd00:42:1::/64, fd00:42:2::/64 } accept
            }
            chain forward { type filter hook forward priority 0; policy drop; jump pods; }
        }""",
    "dormant": CLOSED.replace("chain forward", "flags dormant; chain forward") % "",
    "another hook": "table inet site { chain c { type filter hook input priority 0; policy drop; }\n}",
    "invalid packets": OPEN % "ct state invalid drop",
    "libvirt": """
        table ip libvirt_network {
            chain guest_input { oifname "virbr0" reject; }
            chain guest_output { iifname "virbr0" reject; }
            chain forward { type filter hook forward priority 0; jump guest_input; jump guest_output; }
        }""",
    "kube-proxy": """
        table ip kube-proxy {
            set cluster-ips { type ipv4_addr; elements = { 10.96.0.1 } }
            map no-endpoint-services {
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = { 10.96.0.9 . tcp . 80 : goto reject-chain }
            }
            chain reject-chain { reject; }
            chain cluster-ips-check {
                ip daddr @cluster-ips reject comment "no such port"
                ip daddr { 10.96.0.0/12 } drop comment "no such Service"
            }
            chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
            chain filter-forward {
                type filter hook forward priority -110;
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }
        }""",
}


@pytest.fixture
def crossing(lab: Lab) -> Iterator[Crossing]:
    made = Crossing(lab)
    with made.node.entered():
        yield made


async def said(crossing: Crossing, ruleset: str, desired: ForwardingState = DESIRED) -> tuple[Blocked, ...]:
    """Of a filter that is there when the agent starts, and of one that comes later."""
    crossing.feed("nft -f -", ruleset)
    async with keeping() as keeper:
        report = await keeper.apply(desired)
        assert report.in_sync
        assert report.written == {}
    return report.blocked


@pytest.mark.slow
async def test_what_drops_for_sure(crossing: Crossing) -> None:
    for name, ruleset in SURE.items():
        blocked = await said(crossing, ruleset)
        assert blocked, name
        assert all(each.sure for each in blocked), name
        assert {cidr for each in blocked for cidr in each.pods} == set(DESIRED.pods), name
        assert crossing.passes(SOON) == NONE, name
        crossing.node.exec("nft flush ruleset")


async def test_what_cannot_be_told(crossing: Crossing) -> None:
    for name, ruleset in PERHAPS.items():
        blocked = await said(crossing, ruleset)
        assert blocked, name
        assert not any(each.sure for each in blocked), name
        crossing.node.exec("nft flush ruleset")


async def test_no_false_alarm(crossing: Crossing) -> None:
    for name, ruleset in FINE.items():
        assert await said(crossing, ruleset) == (), name
        assert crossing.passes() == ALL, name
        crossing.node.exec("nft flush ruleset")


async def test_firewalld(crossing: Crossing) -> None:
    """It lets out what leaves by a device of the zone that it came in by, and rejects the rest."""
    (blocked,) = await said(crossing, (FIREWALLD / "default.nft").read_text())
    assert (str(blocked.base), blocked.sure, blocked.chain) == (
        "inet firewalld filter_FORWARD",
        True,
        "filter_FWD_public",
    )
    assert blocked.pods == DESIRED.pods
    assert crossing.passes(SOON) == NONE | {"4 out": True, "6 out": True}
    crossing.node.exec("nft flush ruleset")
    assert await said(crossing, (FIREWALLD / "trusted_sources.nft").read_text()) == ()
    assert crossing.passes() == ALL


async def test_firewalld_by_the_tunnels_device(lab: Lab) -> None:
    """Where nobody knows a range that holds all pods."""
    crossing = Crossing(lab, "netloom_vxlan")
    with crossing.node.entered():
        (blocked,) = await said(crossing, (FIREWALLD / "default.nft").read_text(), TUNNELLED)
        assert blocked.sure
        assert crossing.passes(SOON) == NONE
        crossing.node.exec("nft flush ruleset")
        assert await said(crossing, (FIREWALLD / "trusted_device.nft").read_text(), TUNNELLED) == ()
        assert crossing.passes() == ALL


async def test_filters_that_come_and_go_are_heard_of(crossing: Crossing) -> None:
    async with keeping() as keeper, running(keeper):  # type: ignore[arg-type]
        await keeper.apply(DESIRED)

        async def becomes(blocked: str, script: str) -> None:
            crossing.feed("nft -f -", script)
            await eventually(lambda: _text(keeper.report.blocked) == blocked, lambda: str(keeper.report.blocked))

        await becomes("inet site forward: policy", CLOSED % "")
        await becomes("", "insert rule inet site forward accept")
        await becomes("inet site forward: policy", "flush chain inet site forward")
        await becomes("", "add chain inet site forward { policy accept; }")
        await becomes(
            "inet site forward: rule of later",
            "add chain inet site later { drop; }\nadd rule inet site forward jump later",
        )
        await becomes("", "flush chain inet site later")
        await becomes("inet site forward: rule of later", "add rule inet site later drop")
        await becomes("", "add table inet site { flags dormant; }")
        await becomes("inet site forward: rule of later", "add table inet site")
        await becomes("", "delete table inet site")
        assert keeper.report.written == {}


def _text(blocked: tuple[Blocked, ...]) -> str:
    return "; ".join(f"{each.base}: {'policy' if each.policy else f'rule of {each.chain}'}" for each in blocked)
