"""What several lists of several prefilters come to, against a plain model, whatever order they came in."""

import ipaddress
import random
import struct
import tracemalloc
from collections.abc import Mapping

import pytest

from netloom.cidr import Cidr, Version, parse_address
from netloom.prefilter import merging
from netloom.prefilter.lists import ParsedList, parse_list
from netloom.prefilter.lookup import holding
from netloom.prefilter.merging import Contradiction, Merger, Source
from netloom.prefilter.node_rules import Filter, NodeRules
from netloom.prefilter.records import Records, record, text_of
from netloom.prefilter.rules import ALLOW, ENTRY_SIZES, SLOT, Entries
from netloom.prefilter.withheld import Lifeline, WithheldEntries, lifelines_of
from netloom_e2e.trie_entries import key, value

Lists = dict[Source, Mapping[Version, Records]]
SLOTS = {"a": 0, "b": 1}


def of(prefilter: str, text: str, *, allow: bool = False, name: str = "list") -> Lists:
    parsed = parse_list(text.replace(" ", "\n"))
    return {Source(prefilter, allow, name): {4: parsed.v4, 6: parsed.v6}}


def shown(merger: Merger) -> list[str]:
    """As `10.0.0.0/8 a`, `+` before what passes."""
    names = {slot: name for name, slot in merger.slots.items()}
    found = []
    for merged in merger.merged.values():
        for at, each in enumerate(merged.records):
            one = merged.value_at(at)
            found.append(f"{'+' if one & ALLOW else ''}{text_of(each)} {names[one & SLOT]}")
    return found


def test_of_the_same_cidr_an_exception_counts_then_who_is_first_by_name() -> None:
    merger = Merger()
    lists = of("b", "10.0.0.0/8 192.0.2.0/24") | of("a", "10.0.0.0/8 10.1.0.0/16", name="one")
    lists |= of("b", "10.1.0.0/16 2001:db8::/32", allow=True)
    merger.replace(lists, SLOTS)
    assert shown(merger) == ["10.0.0.0/8 a", "+10.1.0.0/16 b", "192.0.2.0/24 b", "+2001:db8::/32 b"]
    assert merger.contradictions[4] == (Contradiction(record(Cidr.parse("10.1.0.0/16")), "a", "b"),)


def test_an_exception_of_the_same_prefilter_is_what_exceptions_are_for() -> None:
    merger = Merger()
    merger.replace(of("a", "10.0.0.0/8") | of("a", "10.0.0.0/8", allow=True), SLOTS)
    assert (shown(merger), merger.contradictions[4]) == (["+10.0.0.0/8 a"], ())


def test_a_change_of_one_line_is_a_difference_of_one() -> None:
    merger = Merger()
    before = of("a", "10.0.0.0/8 10.1.0.0/16 10.2.0.0/16") | of("b", "10.1.0.0/16 172.16.0.0/12")
    merger.replace(before, SLOTS)
    after = before | of("a", "10.0.0.0/8 10.2.0.0/16 10.3.0.0/16")
    changed = merger.replace(after, SLOTS)
    assert changed == {4: {record(Cidr.parse(each)) for each in ("10.1.0.0/16", "10.3.0.0/16")}}
    assert shown(merger) == ["10.0.0.0/8 a", "10.1.0.0/16 b", "10.2.0.0/16 a", "10.3.0.0/16 a", "172.16.0.0/12 b"]
    assert merger.replace(dict(after), SLOTS) == {}


def test_entries_are_as_the_kernel_takes_them() -> None:
    merger = Merger()
    merger.replace(of("b", "10.0.0.0/8 10.1.0.0/16 fd00::/8") | of("a", "10.1.2.3", allow=True), SLOTS)
    four, six = merger.merged[4].entries, merger.merged[6].entries
    assert (four.keys, four.values) == (
        key(parse_address("10.0.0.0"), 8) + key(parse_address("10.1.0.0"), 16) + key(parse_address("10.1.2.3"), 32),
        value(1) + value(1) + value(0, allow=True),
    )
    assert (six.keys, six.values) == (struct.pack("<I", 8) + parse_address("fd00::"), struct.pack("<I", 1))
    left = merger.merged[4].withholding([record(Cidr.parse("10.1.0.0/16")), record(Cidr.parse("10.0.0.0/8"))])
    assert (left.entries.keys, left.entries.values) == (key(parse_address("10.1.2.3"), 32), value(0, allow=True))
    other = record(Cidr.parse("11.0.0.0/8"))
    assert merger.merged[4].withholding([other]).entries is merger.merged[4].entries, "nothing is copied for nothing"


def drawn_lists(draw: random.Random) -> dict[Source, list[str]]:
    """Of few bits, so that they meet."""
    found = {}
    for prefilter in "ab":
        for allow in (False, True):
            for name in "xy":
                count = draw.choice([0, 1, 5, 20])
                texts = []
                for _ in range(count):
                    if draw.random() < 0.5:
                        network = ipaddress.ip_network((draw.randrange(64) << 26, draw.randrange(0, 9)), strict=False)
                    else:
                        network = ipaddress.ip_network((draw.randrange(64) << 122, draw.randrange(0, 9)), strict=False)
                    texts.append(str(network))
                found[Source(prefilter, allow, name)] = texts
    return found


Plain = list[tuple[Source, ipaddress.IPv4Network | ipaddress.IPv6Network]]


def model(lists: Plain, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, bool]:
    """Slot and exception of what decides, by looking at all; (-1, False): nothing does."""
    candidates = [
        (-network.prefixlen, not source.allow, source.prefilter)
        for source, network in lists
        if address.version == network.version and address in network
    ]
    if not candidates:
        return -1, False
    _, denies, prefilter = min(candidates)
    return SLOTS[prefilter], not denies


@pytest.mark.parametrize("piece", [1 << 16, 3])
@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_changes_decides_as_the_plain_model(
    seed: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists change some by some and all at once; what is kept is what a new merger makes, and decides as the model."""
    monkeypatch.setattr(merging, "PIECE", piece)
    draw = random.Random(seed)
    merger, lists = Merger(), drawn_lists(draw)
    parsed: Lists = {}
    for turn in range(6):
        monkeypatch.setattr(merging, "FEW", draw.choice([0, 1000]))
        drawn = drawn_lists(draw)
        for source in draw.sample(list(lists), 2 if turn else len(lists)):
            lists[source] = drawn[source]
            parsed |= of(source.prefilter, " ".join(lists[source]), allow=source.allow, name=source.key)
        merger.replace(dict(parsed), SLOTS)
        fresh = Merger()
        fresh.replace(dict(parsed), SLOTS)
        assert (merger.merged, merger.contradictions, merger.counts) == (
            fresh.merged,
            fresh.contradictions,
            fresh.counts,
        )
        plain = [(source, ipaddress.ip_network(text)) for source, texts in lists.items() for text in set(texts)]
        for number in range(0, 64, 3):
            for address in (ipaddress.IPv4Address(number << 26), ipaddress.IPv6Address(number << 122)):
                merged = merger.merged[4 if address.version == 4 else 6]
                found = [merged.value_at(at) for at, _ in holding(merged.records, address.packed)][:1]
                decided = (found[0] & SLOT, bool(found[0] & ALLOW)) if found else (-1, False)
                assert decided == model(plain, address)


# What would cut the node off

MINE, PEER, GATEWAY = parse_address("10.1.0.5"), parse_address("10.1.0.6"), parse_address("192.0.2.1")
AROUND = lifelines_of(own=[MINE], gateways=[GATEWAY], peers=[(PEER, "b"), (parse_address("fd00::6"), "b")])


def withheld(
    lists: Lists, *, confirmed: frozenset[int] = frozenset(), around: tuple[Lifeline, ...] = AROUND
) -> list[str]:
    merger = Merger()
    merger.replace(lists, SLOTS)
    found = []
    for version, merged in merger.merged.items():
        withheld = WithheldEntries(version)
        withheld.look(merged, None, around, confirmed)
        found += [f"{text_of(each.record)}: {each.why}" for each in sorted(withheld.entries.values())]
    return found


def test_what_a_node_lives_by_is_withheld() -> None:
    lists = of("a", "0.0.0.0/0 10.0.0.0/8 10.1.0.6 192.0.2.0/24 198.51.100.0/24 fe80::1 fd00::/8 ::/0 2001:db8::/32")
    assert withheld(lists) == [
        "0.0.0.0/0: it drops everybody's packets",
        "10.0.0.0/8: it holds 10.1.0.5, an address of this node",
        "10.1.0.6/32: it holds 10.1.0.6, an address of node b",
        "192.0.2.0/24: it holds 192.0.2.1, a gateway of this node",
        "::/0: it drops everybody's packets",
        "fd00::/8: it holds fd00::6, an address of node b",
        "fe80::1/128: it is of fe80::/10, link-local neighbours, by whom IPv6 finds its ways",
    ]


def test_what_an_exception_lets_pass_needs_no_withholding() -> None:
    lists = of("a", "10.0.0.0/8") | of("b", "10.1.0.0/16", allow=True)
    assert withheld(lists) == []
    assert withheld(lists | of("a", "10.0.0.0/8 10.1.0.0/24")) == [
        "10.1.0.0/24: it holds 10.1.0.5, an address of this node"
    ]


def test_a_prefilter_that_says_so_may() -> None:
    lists = of("a", "10.0.0.0/8 0.0.0.0/0 fe80::/10") | of("b", "10.1.0.0/16")
    assert withheld(lists, confirmed=frozenset({0})) == ["10.1.0.0/16: it holds 10.1.0.5, an address of this node"]
    assert withheld(lists, confirmed=frozenset({0, 1})) == []


def test_pods_are_withheld_as_a_whole_and_single_ones_are_not() -> None:
    around = lifelines_of(pods=[(Cidr.parse("10.244.1.0/24"), "b")])
    assert withheld(of("a", "10.244.0.0/16 10.244.1.7 10.244.1.0/25"), around=around) == [
        "10.244.0.0/16: it holds 10.244.1.0/24, of pods on node b"
    ]


def test_a_withheld_entry_costs_no_second_copy_of_the_others() -> None:
    """What is kept of 40,000 entries, of which one is withheld, is what is kept where none is."""
    text = "\n".join(f"198.{18 + (number >> 15)}.{number >> 7 & 255}.{2 * number & 255}" for number in range(40_000))
    lists = {(False, "list"): parse_list(f"{text}\n10.1.0.0/16")}

    def kept(*around: Lifeline) -> int:
        rules = NodeRules()
        tracemalloc.start()
        rules.update([Filter("a", lists)], around)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(rules.rules.v4) == 40_001 - len(rules.shares["a"].withheld)
        return size

    whole = kept()
    assert whole > 40_000 * ENTRY_SIZES[4]
    assert kept(*AROUND) < whole + 16 * 1024


def test_what_is_withheld_stays_so_while_others_come_and_go() -> None:
    """Active and withheld ones stay apart while entries of both come, change hands and go."""
    rules, around = NodeRules(), AROUND

    def active(*filters: Filter) -> list[str]:
        rules.update(filters, around)
        return [text_of(rules.rules.v4.record(at)) for at in range(len(rules.rules.v4))]

    def of_list(text: str) -> dict[tuple[bool, str], ParsedList]:
        return {(False, "list"): parse_list(text.replace(" ", "\n"))}

    two = Filter("b", of_list("10.0.0.0/8"))
    assert active(Filter("a", of_list("10.0.0.0/8 192.0.2.0/24 198.51.100.0/24")), two) == ["198.51.100.0/24"]
    assert [len(rules.shares[name].withheld) for name in "ab"] == [2, 0]
    assert active(Filter("a", of_list("192.0.2.0/24 198.51.100.0/24 203.0.113.0/24")), two) == [
        "198.51.100.0/24",
        "203.0.113.0/24",
    ]
    assert [len(rules.shares[name].withheld) for name in "ab"] == [1, 1], "it is b's now, and withheld all the same"
    around = ()
    assert active(Filter("a", of_list("192.0.2.0/24 198.51.100.0/24")), two) == [
        "10.0.0.0/8",
        "192.0.2.0/24",
        "198.51.100.0/24",
    ]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_withheld_after_changes_is_what_a_first_look_says(seed: int) -> None:
    """And what is left drops no lifeline."""
    draw = random.Random(seed)
    merger, withheld = Merger(), {4: WithheldEntries(4), 6: WithheldEntries(6)}
    lists = drawn_lists(draw)
    parsed: Lists = {}
    for source, texts in lists.items():
        parsed |= of(source.prefilter, " ".join(texts), allow=source.allow, name=source.key)
    for _ in range(6):
        for source in draw.sample(list(lists), 1):
            kept = lists[source][: draw.randrange(4) or None]
            parsed |= of(source.prefilter, " ".join(kept), allow=source.allow, name=source.key)
        around = lifelines_of(peers=[((draw.randrange(64) << 26).to_bytes(4, "big"), "n") for _ in range(5)])
        around += (Lifeline(Cidr(4, draw.randrange(4) << 30, 2), "x", inside=True),)
        confirmed = frozenset({0}) if draw.random() < 0.2 else frozenset()
        changed = merger.replace(dict(parsed), SLOTS)
        for version, merged in merger.merged.items():
            withheld[version].look(merged, changed.get(version, set()), around, confirmed)
            first = WithheldEntries(version)
            first.look(merged, None, around, confirmed)
            assert withheld[version].entries.keys() == first.entries.keys()
            merger.merged[version] = merged.withholding(first.entries)
        fresh = Merger()
        fresh.replace(dict(parsed), SLOTS)
        assert merger.merged[4] == fresh.merged[4].withholding(withheld[4].entries)
        left = merger.merged[4]
        for each in around:
            if each.cidr.length == 32:
                assert not _drops(left.entries, each.cidr.packed) or 0 in confirmed


def _drops(entries: Entries, address: bytes) -> bool:
    best = (-1, False)
    for at in range(len(entries)):
        length, base = struct.unpack_from("<I4s", entries.keys, at * 8)
        (held,) = struct.unpack_from("<I", entries.values, at * 4)
        if int.from_bytes(base, "big") >> (32 - length) == int.from_bytes(address, "big") >> (32 - length):
            best = max(best, (length, not held & ALLOW))
    return best[1]
