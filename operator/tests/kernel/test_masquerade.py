"""The table as `nft` prints it: made, changed, left alone, removed; and what each change costs."""

import errno
from random import Random

import pytest

from netloom.cidr import Cidr
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.masquerade.sets import Masquerading
from netloom.kernel.netlink.nftables_socket import NftablesSocket
from tests.economy import seeds
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Namespace
from tests.kernel.nft import FaultyNftables, Masquerades, masquerades, masquerading, nft, ours, prefixes, rules, ruleset

__all__ = ["masquerades"]

GOLDEN = """\
table inet netloom {
    comment "Netloom's: it undoes changes"
    set pods4 {
        type ipv4_addr
        flags interval
        elements = { 10.1.0.0/24 }
    }

    set known4 {
        type ipv4_addr
        flags interval
        elements = { 10.1.0.0/24, 10.2.0.0/24,
                 10.3.0.0/24 }
    }

    set excluded4 {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8, 172.16.0.0/12,
                 224.0.0.0/4 }
    }

    set pods6 {
        type ipv6_addr
        flags interval
        elements = { fd00:1::/64 }
    }

    set known6 {
        type ipv6_addr
        flags interval
        elements = { fd00:1::/64,
                 fd00:2::/64,
                 fd00:3::/64 }
    }

    set excluded6 {
        type ipv6_addr
        flags interval
        elements = { fe80::/10,
                 ff00::/8 }
    }

    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr @pods4 ip daddr != @known4 ip daddr != @excluded4 oifname != "netloom_*" masquerade fully-random \
comment "netloom 05707986"
        ip6 saddr @pods6 ip6 daddr != @known6 ip6 daddr != @excluded6 oifname != "netloom_*" masquerade fully-random \
comment "netloom c2ec53b6"
    }
}
"""

FOREIGN = """\
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 masquerade
	}
}
table inet netloom_other {
	set known4 {
		type ipv4_addr
		elements = { 10.66.0.1 }
	}
}
table ip netloom {
	chain postrouting {
	}
}
"""


async def test_the_table(node: Namespace, masquerades: Masquerades) -> None:
    masquerade = await masquerades.open()
    report = await masquerade.apply(masquerading("10.0.0.0/8", "172.16.0.0/12"))
    assert ours(node) == GOLDEN
    assert report.in_sync
    assert report.families == ("4", "6")


@pytest.mark.parametrize(("ipv4", "ipv6"), [(True, False), (False, True)])
async def test_one_family(node: Namespace, masquerades: Masquerades, ipv4: bool, ipv6: bool) -> None:
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading(ipv4=ipv4, ipv6=ipv6))
    text = ours(node)
    assert ("ip saddr @pods4" in text, "ip6 saddr @pods6" in text) == (ipv4, ipv6)


async def test_a_family_comes_and_goes_in_a_table_that_stays(node: Namespace, masquerades: Masquerades) -> None:
    """A table that is made anew, though in one transaction, lets connections by that begin at that moment."""
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading())
    before = masquerade.stats
    await masquerade.apply(masquerading(ipv6=False))
    await masquerade.apply(masquerading())
    assert {kind: n - before.get(kind, 0) for kind, n in masquerade.stats.items() if n != before.get(kind, 0)} == {
        "delrule": 3,
        "newrule": 3,
    }


@pytest.mark.parametrize(
    "nothing",
    [Masquerading(), masquerading(ipv4=False, ipv6=False), Masquerading(rules(pods=()))],
    ids=["no rules", "switched off", "no pods"],
)
async def test_nothing_to_masquerade_is_no_table(
    node: Namespace, masquerades: Masquerades, nothing: Masquerading
) -> None:
    nft(node, FOREIGN)
    masquerade = await masquerades.open()
    assert (await masquerade.apply(nothing)).written == {}
    await masquerade.apply(masquerading())
    assert ours(node)
    assert (await masquerade.apply(nothing)).in_sync
    assert ruleset(node) == FOREIGN


async def test_cleanup_removes_our_table_and_nothing_else(node: Namespace, masquerades: Masquerades) -> None:
    nft(node, FOREIGN)
    await (await masquerades.open()).apply(masquerading())
    assert (await (await masquerades.open()).cleanup()).in_sync
    assert ruleset(node) == FOREIGN
    assert (await (await masquerades.open()).cleanup()).written == {}


async def test_a_restart_writes_nothing(node: Namespace, masquerades: Masquerades) -> None:
    await (await masquerades.open()).apply(masquerading("10.0.0.0/8"))
    before = ruleset(node)
    again = await masquerades.open()
    report = await again.apply(masquerading("10.0.0.0/8"))
    assert (report.written, report.in_sync, report.compared) == ({}, True, 1)
    assert ruleset(node) == before


async def test_a_restart_with_something_changed_writes_what_changed(node: Namespace, masquerades: Masquerades) -> None:
    await (await masquerades.open()).apply(masquerading())
    again = await masquerades.open()
    report = await again.apply(masquerading(peers=(2, 4)))
    assert report.written == {"newsetelem": 2, "delsetelem": 2}


async def test_a_change_of_families_is_one_transaction(node: Namespace, masquerades: Masquerades) -> None:
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading(ipv6=False))
    before = ours(node)
    await masquerade.apply(masquerading())
    assert "ip6 saddr @pods6" in ours(node)
    await masquerade.apply(masquerading(ipv6=False))
    assert ours(node) == before


def ten_thousand() -> Masquerading:
    desired = masquerading(peers=())
    for i in range(10_000):
        desired.set_known(f"node-{i}", prefixes(f"100.{64 + i // 256}.{i % 256}.0/24"))
    return desired


@pytest.mark.slow
async def test_one_cidr_of_ten_thousand_costs_one_element(node: Namespace, masquerades: Masquerades) -> None:
    desired = ten_thousand()
    masquerade = await masquerades.open()
    loaded = await masquerade.apply(desired)
    assert loaded.in_sync
    assert loaded.written == {
        "newtable": 1,
        "newset": 6,
        "newchain": 1,
        "newrule": 2,
        "newsetelem": 10_000 + 4 + 3,
    }
    desired.set_known("node-10000", prefixes("10.2.0.0/24"))
    report = await masquerade.apply(desired)
    assert report.written == {**loaded.written, "newsetelem": loaded.written["newsetelem"] + 1}
    desired.set_known("node-77", ())
    report = await masquerade.apply(desired)
    assert report.written == {**loaded.written, "newsetelem": loaded.written["newsetelem"] + 1, "delsetelem": 1}
    desired.rules = rules("100.64.0.0/10")
    report = await masquerade.apply(desired)
    assert report.written["newsetelem"] == loaded.written["newsetelem"] + 2, "a CIDR that contains all costs one, too"
    assert report.compared == 1
    text = ours(node)
    assert "10.2.0.0/24" in text
    assert "100.64.77.0/24" not in text
    again = await masquerades.open()
    assert (await again.apply(desired)).written == {}


@pytest.mark.parametrize(
    "cidrs",
    [
        ("0.0.0.0/0", "::/0"),
        ("255.255.255.0/24", "ffff::/16"),
        ("255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"),
        ("10.5.0.0/24", "10.5.1.0/24"),
        ("128.0.0.0/1", "128.0.0.0/2"),
    ],
)
async def test_cidrs_at_the_edges(node: Namespace, masquerades: Masquerades, cidrs: tuple[str, ...]) -> None:
    desired = masquerading()
    masquerade = await masquerades.open()
    await masquerade.apply(desired)
    before = ours(node)
    desired.set_known("edge", prefixes(*cidrs))
    assert (await masquerade.apply(desired)).in_sync
    assert cidrs[0].removesuffix("/32") in ours(node)
    again = await masquerades.open()
    assert (await again.apply(desired)).written == {}
    desired.set_known("edge", ())
    assert (await masquerade.apply(desired)).in_sync
    assert ours(node) == before


@pytest.mark.parametrize("seed", seeds(8))
async def test_any_sequence_of_changes_ends_in_what_a_fresh_start_gives(
    node: Namespace, masquerades: Masquerades, seed: int
) -> None:
    """CIDRs that repeat, meet and contain one another; the kernel takes every step, and never refuses."""
    random = Random(seed)
    desired, masquerade = masquerading(), await masquerades.open()
    for _ in range(40):
        cidrs = []
        for _ in range(random.randrange(6)):
            length = random.choice([0, 1, 2, 3, 4, 30, 31, 32])
            address = random.randrange(32) << 27 | random.choice([0, 1, 2, 3, (1 << 27) - 1])
            cidrs.append(Cidr.of(address.to_bytes(4, "big"), length))
        desired.set_known(random.choice("abc"), tuple(cidrs))
        assert (await masquerade.apply(desired)).in_sync
    assert masquerade.report.compared == 1, "nothing was refused"
    text = ours(node)
    assert (await (await masquerades.open()).apply(desired)).written == {}
    await masquerade.cleanup()
    await (await masquerades.open()).apply(desired)
    assert ours(node) == text


async def test_a_kernel_without_nftables_is_reported(node: Namespace, masquerades: Masquerades) -> None:
    here = False

    def make() -> NftablesSocket:
        if not here:
            raise KernelUnsupported("this kernel has no netfilter")
        return NftablesSocket()

    masquerade = await masquerades.open(commands=make)
    report = await masquerade.apply(masquerading())
    assert [failure.error for failure in report.failures] == ["this kernel has no netfilter"]
    assert (await masquerade.apply(Masquerading())).in_sync, "nothing is wanted of it"
    assert not (await masquerade.apply(masquerading())).in_sync
    here = True
    async with running(masquerade):
        await eventually(lambda: masquerade.report.in_sync, lambda: str(masquerade.report))
    assert ours(node)


async def test_a_kernel_without_nf_tables_is_named_in_plan_and_report(
    node: Namespace, masquerades: Masquerades
) -> None:
    """What nfnetlink says to a request for a subsystem that is not there, and cannot be loaded."""
    commands = FaultyNftables()
    masquerade = await masquerades.open(commands=lambda: commands)
    commands.fail_dumps(errno.EINVAL)
    await masquerade.apply(Masquerading())
    nft(node, "add table inet netloom")
    with pytest.raises(KernelUnsupported, match="this kernel has no nftables"):
        await masquerade.plan(masquerading())
    report = await masquerade.apply(masquerading())
    assert "this kernel has no nftables (nf_tables), so nothing can be masqueraded" in report.failures[0].error


async def test_a_plan_says_what_apply_would_do(node: Namespace, masquerades: Masquerades) -> None:
    masquerade = await masquerades.open()

    async def planned(desired: Masquerading) -> list[str]:
        changes = await masquerade.plan(desired)
        return [f"{change.text}  # {change.why}" if change.why else change.text for change in changes]

    first = await planned(masquerading(ipv6=False, peers=(2,)))
    assert first == [
        "nft add table inet netloom  # it is not there",
        "nft add element inet netloom pods4 { 10.1.0.0/24 }",
        "nft add element inet netloom known4 { 10.1.0.0/24 }",
        "nft add element inet netloom known4 { 10.2.0.0/24 }",
        "nft add element inet netloom excluded4 { 224.0.0.0/4 }",
        "nft add element inet netloom pods6 { fd00:1::/64 }",
        "nft add element inet netloom known6 { fd00:1::/64 }",
        "nft add element inet netloom known6 { fd00:2::/64 }",
        "nft add element inet netloom excluded6 { fe80::/10 }",
        "nft add element inet netloom excluded6 { ff00::/8 }",
        "nft add rule inet netloom postrouting (IPv4)  # it is not there",
    ]
    assert ruleset(node) == ""
    await masquerade.apply(masquerading(ipv6=False, peers=(2,)))
    assert await planned(masquerading(ipv6=False, peers=(2,))) == []
    assert await planned(masquerading(ipv6=False, peers=(4,))) == [
        "nft delete element inet netloom known4 { 10.2.0.0/24 }",
        "nft delete element inet netloom known6 { fd00:2::/64 }",
        "nft add element inet netloom known4 { 10.4.0.0/24 }",
        "nft add element inet netloom known6 { fd00:4::/64 }",
    ]
    assert await planned(Masquerading()) == ["nft delete table inet netloom  # nothing is to be masqueraded"]
