"""Whatever somebody does to our table is undone on the kernel's event; resyncs by time are off in all these tests."""

import asyncio
import subprocess
from random import Random

import pytest

from tests.economy import first, seeds, spread
from tests.kernel.meshes import becomes, eventually, running
from tests.kernel.netns import Namespace
from tests.kernel.nft import (
    FaultyNftables,
    Masquerades,
    masquerades,
    masquerading,
    nft,
    ours,
    prefixes,
    ruleset,
)

__all__ = ["masquerades"]

T = "inet netloom"
C = f"{T} postrouting"
SAME_BUT_EMPTY = """
delete table inet netloom
table inet netloom {
  comment "Netloom's: it undoes changes";
  set pods4 { type ipv4_addr; flags interval; }
  set known4 { type ipv4_addr; flags interval; }
  set excluded4 { type ipv4_addr; flags interval; }
  set pods6 { type ipv6_addr; flags interval; }
  set known6 { type ipv6_addr; flags interval; }
  set excluded6 { type ipv6_addr; flags interval; }
  chain postrouting { type nat hook postrouting priority srcnat; policy accept; }
}
"""

DRIFT = {
    "the table is deleted": f"delete table {T}",
    "the whole ruleset is flushed": "flush ruleset",
    "the table is made dormant": f"add table {T} {{ flags dormant; }}",
    "the table is deleted and made again, empty": f"delete table {T}\nadd table {T}",
    "the table is replaced by one that looks alike": SAME_BUT_EMPTY,
    "the chain is flushed": f"flush chain {C}",
    "the chain is deleted": f"flush chain {C}\ndelete chain {C}",
    "the chain is hooked elsewhere": (
        f"flush chain {C}\ndelete chain {C}\nadd chain {C} {{ type nat hook postrouting priority 50; }}"
    ),
    "the chain drops what it does not know": f"add chain {C} {{ policy drop; }}",
    "a rule is added at the end": f"add rule {C} ip daddr 192.0.2.1 drop",
    "a rule is added at the front": f"insert rule {C} accept",
    "a set is added": f"add set {T} more {{ type ipv4_addr; }}",
    "a chain is added": f"add chain {T} more {{ type filter hook input priority 0; policy drop; }}",
    "a chain that is jumped to is added": f"add chain {T} more\nadd rule {C} jump more",
    "a counter is added": f"add counter {T} more",
    "sets are deleted": f"flush chain {C}\ndelete set {T} known4\ndelete set {T} pods6",
    "a set becomes another": (
        f"flush chain {C}\ndelete set {T} known4\nadd set {T} known4 {{ type ipv4_addr; flags timeout, interval; }}"
    ),
    "a set is flushed": f"flush set {T} known4",
    "all sets are flushed": "\n".join(
        f"flush set {T} {kind}{family}" for kind in ("pods", "known", "excluded") for family in "46"
    ),
    "an element is deleted": f"delete element {T} known4 {{ 10.2.0.0/24 }}",
    "an IPv6 element is deleted": f"delete element {T} known6 {{ fd00:2::/64 }}",
    "an element is added": f"add element {T} known4 {{ 192.0.2.0/24 }}",
    "an element that reaches the end is added": f"add element {T} pods4 {{ 255.255.255.0/24 }}",
    "an element is made smaller": (
        f"delete element {T} known4 {{ 10.2.0.0/24 }}\nadd element {T} known4 {{ 10.2.0.0/25 }}"
    ),
    "an element is made larger": (
        f"delete element {T} known4 {{ 10.2.0.0/24 }}\nadd element {T} known4 {{ 10.2.0.0-10.2.0.255, 10.2.1.0/24 }}"
    ),
    "an element gets a comment": (
        f'delete element {T} known4 {{ 10.2.0.0/24 }}\nadd element {T} known4 {{ 10.2.0.0/24 comment "mine" }}'
    ),
    "everything at once": (
        f"flush chain {C}\nadd rule {C} drop\nflush set {T} pods4\nadd element {T} pods4 {{ 0.0.0.0/0 }}"
    ),
}


@pytest.mark.parametrize("script", spread(DRIFT.values()), ids=DRIFT.keys())
async def test_drift_is_repaired_by_the_event(node: Namespace, masquerades: Masquerades, script: str) -> None:
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading())
    before = ours(node)
    async with running(masquerade):
        nft(node, script)
        await becomes(lambda: ours(node), before)
        await eventually(lambda: masquerade.report.in_sync, lambda: str(masquerade.report))
        await eventually(lambda: masquerade.report.repaired > 0)
    assert masquerade.report.contended == ()
    assert (await (await masquerades.open()).apply(masquerading())).written == {}


@pytest.mark.parametrize("words", ["masquerade", "masquerade random", "accept", "masquerade fully-random"])
async def test_an_edited_rule_is_repaired_though_it_carries_our_comment(
    node: Namespace, masquerades: Masquerades, words: str
) -> None:
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading())
    before = ours(node)
    handle = node.exec("nft -a list chain inet netloom postrouting").split('05707986" # handle ')[1].split()[0]
    async with running(masquerade):
        match = "ip saddr @pods4 ip daddr != @known4 ip daddr != @excluded4"
        nft(node, f'replace rule {C} handle {handle} {match} {words} comment "netloom 05707986"')
        await eventually(lambda: masquerade.report.repaired == 1)
        await becomes(lambda: ours(node), before)


async def test_one_element_is_repaired_for_the_price_of_one(node: Namespace, masquerades: Masquerades) -> None:
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading())
    before, written, compared = ours(node), masquerade.stats, masquerade.report.compared
    async with running(masquerade):
        nft(node, f"delete element {T} known4 {{ 10.2.0.0/24 }}")
        await eventually(lambda: masquerade.report.repaired == 1)
    assert ours(node) == before
    assert masquerade.stats == {**written, "newsetelem": written["newsetelem"] + 1}
    assert masquerade.report.compared == compared


async def test_a_resync_finds_what_no_event_told(node: Namespace, masquerades: Masquerades) -> None:
    masquerade = await masquerades.open(resync_seconds=0.05)
    await masquerade.apply(masquerading())
    before = ours(node)
    masquerade._ignore()
    masquerade._listener.close()  # type: ignore[union-attr]
    masquerade._listener = None
    nft(node, f"delete element {T} known4 {{ 10.2.0.0/24 }}")
    async with running(masquerade):
        await becomes(lambda: ours(node), before)


async def test_lost_events_end_in_a_comparison(node: Namespace, masquerades: Masquerades) -> None:
    """An event buffer that is too small for what happens while the event loop is busy."""
    masquerade = await masquerades.open(event_buffer=4096)
    desired = masquerading(peers=())
    for i in range(500):
        desired.set_known(f"node-{i}", prefixes(f"10.{100 + i // 256}.{i % 256}.0/24"))
    await masquerade.apply(desired)
    before, compared = ours(node), masquerade.report.compared
    async with running(masquerade):
        await asyncio.sleep(0)
        for i in range(0, 500, 50):  # blocks the event loop until all is done
            cidrs = ", ".join(f"10.{100 + j // 256}.{j % 256}.0/24" for j in range(i, i + 50))
            nft(node, f"delete element {T} known4 {{ {cidrs} }}")
        await becomes(lambda: ours(node), before)
        await eventually(lambda: masquerade.report.in_sync, lambda: str(masquerade.report))
    assert masquerade.report.compared > compared


async def test_events_of_others_are_none_of_our_business(node: Namespace, masquerades: Masquerades) -> None:
    commands = FaultyNftables()
    masquerade = await masquerades.open(commands=lambda: commands)
    await masquerade.apply(masquerading())
    written, dumps = masquerade.stats, commands.dumps
    async with running(masquerade):
        nft(
            node,
            "table ip netloom {\n set known4 { type ipv4_addr; elements = { 10.2.0.0 }\n }\n chain postrouting { }\n}",
        )
        nft(node, "table inet netloom2 { chain postrouting { type nat hook postrouting priority 100; masquerade; }\n}")
        nft(node, "delete table inet netloom2")
        nft(node, f"delete element {T} known4 {{ 10.2.0.0/24 }}")
        await eventually(lambda: masquerade.report.repaired == 1)
    assert masquerade.stats == {**written, "newsetelem": written["newsetelem"] + 1}
    assert commands.dumps == dumps, "nothing was read, either"


@pytest.mark.parametrize(
    ("script", "name", "request_type"),
    first(
        1,
        [
            (f"delete table {T}", f"table {T}", "newtable"),
            (f"flush chain {C}", f"rules {C}", "newrule"),
            (f"delete element {T} known4 {{ 10.2.0.0/24 }}", "element known4 10.2.0.0", "newsetelem"),
        ],
    ),
)
async def test_a_fight_is_bounded_and_reported(
    node: Namespace, masquerades: Masquerades, script: str, name: str, request_type: str
) -> None:
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading())
    before, written = ours(node), masquerade.stats[request_type]
    async with running(masquerade):
        for _ in range(30):
            nft(node, script)
            await eventually(lambda: ours(node) == before or bool(masquerade.report.contended))
            if masquerade.report.contended:
                break
        assert masquerade.report.contended == (name,)
        rounds = (masquerade.stats[request_type] - written) / (14 if request_type == "newsetelem" else 1)
        assert rounds < 26
        await becomes(lambda: ours(node), before)


async def test_others_tables_survive_all_of_it(node: Namespace, masquerades: Masquerades) -> None:
    nft(node, "table ip netloom { chain postrouting { type nat hook postrouting priority 100; }\n}")
    nft(node, "table inet firewalld { chain nat { type nat hook postrouting priority 110; masquerade; }\n}")
    foreign = ruleset(node)
    masquerade = await masquerades.open()
    await masquerade.apply(masquerading())
    async with running(masquerade):
        for script in (f"delete table {T}", f"flush chain {C}", f"add chain {T} more"):
            before = masquerade.report.repaired
            nft(node, script)
            await eventually(lambda: masquerade.report.repaired > before)  # noqa: B023
            await eventually(lambda: masquerade.report.in_sync)
    await masquerade.cleanup()
    assert ruleset(node) == foreign


@pytest.mark.parametrize("seed", seeds(3))
async def test_a_storm_of_edits_while_nodes_come_and_go(node: Namespace, masquerades: Masquerades, seed: int) -> None:
    """Another process edits the table without a pause; whatever is lost in between is found in the end."""
    random = Random(seed)
    scripts = random.choices(list(DRIFT.values()), k=40)
    desired, masquerade = masquerading(), await masquerades.open()
    await masquerade.apply(desired)
    shell = "".join(f"nft -f - <<'EOF'\n{script}\nEOF\n" for script in scripts)
    command = ["ip", "netns", "exec", node.name, "sh", "-c", shell]
    async with running(masquerade):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as storm:
            while storm.poll() is None:
                number = random.randrange(4, 20)
                desired.set_known(f"node-{number}", prefixes(f"10.{number}.{random.randrange(200)}.0/24"))
                await masquerade.apply(desired)
                desired.set_known(f"node-{random.randrange(4, 20)}", ())
                await masquerade.apply(desired)
        await masquerade.apply(desired)  # "in sync" means nothing while an event of the last edit is not read
        await eventually(lambda: masquerade.report.in_sync, lambda: str(masquerade.report))
    assert (await (await masquerades.open()).apply(desired)).written == {}
