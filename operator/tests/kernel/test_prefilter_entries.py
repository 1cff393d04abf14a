"""What the prefilter's tries answer, how a change gets into them, and how it is seen what is wrong in them."""

import ipaddress
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloom.kernel.prefilter import bpf, tries
from netloom.kernel.prefilter.differences import Difference, Inspection, compare, order
from netloom.kernel.prefilter.maps import SLOTS, capacity_for
from netloom.kernel.prefilter.slots import assign, renumbered
from netloom.kernel.prefilter.tries import FamilyTrie
from netloom.prefilter.rules import ALLOW, EMPTY, Entries, Rules
from netloom_e2e.trie_entries import key, value
from tests.kernel.prefilters import IPV4, IPV6, Filtered, ethernet, ipv4, ipv6, packed, wanted

MANY = 1 << 20
Network = tuple[int, int]
"""Address and prefix length."""


def content(some: dict[Network, int], size: int = 4) -> Entries:
    entries = ((address.to_bytes(size, "big"), length, held) for (address, length), held in some.items())
    return packed(entries, 4 if size == 4 else 6)


def as_dict(entries: Entries, key_size: int = 8) -> dict[bytes, bytes]:
    return told(entries.keys, entries.values, key_size)


def told(keys: bytes, values: bytes, key_size: int = 8) -> dict[bytes, bytes]:
    """As the kernel tells them."""
    return {keys[at * key_size : (at + 1) * key_size]: values[at * 4 : (at + 1) * 4] for at in range(len(values) // 4)}


# Few addresses, so that prefixes cover each other and contents have much in common.
networks = st.tuples(st.integers(0, 15), st.integers(0, 8)).map(
    lambda pair: ((pair[0] << 28 >> (32 - pair[1]) << (32 - pair[1])) if pair[1] else 0, pair[1])
)
contents = st.dictionaries(networks, st.integers(0, 3), max_size=40)


@given(contents, contents)
def test_a_difference_leads_from_one_content_to_the_other(old: dict[Network, int], new: dict[Network, int]) -> None:
    before, after = as_dict(content(old)), as_dict(content(new))
    difference = compare(content(old), content(new), MANY)
    assert difference is not None
    assert dict(difference.put) == {k: v for k, v in after.items() if before.get(k) != v}
    assert dict(difference.gone) == {k: v for k, v in before.items() if k not in after}


@given(contents, contents, st.integers(1, 7))
def test_what_the_kernel_tells_is_held_against_what_it_should_hold(
    wanted_: dict[Network, int], held: dict[Network, int], run: int
) -> None:
    expected, told = as_dict(content(wanted_)), as_dict(content(held))
    inspection = Inspection(content(wanted_), 8, MANY)
    # Longer prefixes before those that they are in, as the kernel does.
    keys = sorted(told, key=lambda k: (int.from_bytes(k[4:], "big") | (1 << 32 - k[0]) - 1, -k[0]))
    for at in range(0, len(keys), run):
        part = keys[at : at + run]
        assert inspection.take(b"".join(part), b"".join(told[k] for k in part))
    difference = inspection.finish()
    assert difference is not None
    assert dict(difference.put) == {k: v for k, v in expected.items() if told.get(k) != v}
    assert dict(difference.gone) == {k: v for k, v in told.items() if k not in expected}


def test_a_large_difference_is_given_up_early() -> None:
    few = content({(at << 8, 24): 0 for at in range(10)})
    many = content({(at << 8, 24): 1 for at in range(10_000)})
    assert compare(few, many, 4096) is None
    inspection = Inspection(many, 8, 4096)
    assert not inspection.take(few.keys, few.values) or inspection.finish() is None


def test_one_entry_among_many_is_found_by_comparing_stretches() -> None:
    some = {(at << 4, 28): 0 for at in range(20_000)}
    old = content(some)
    for place in (0, 9_999, 19_999):
        new = dict(some)
        new[place << 4, 28] = 1
        del new[((place + 7) % 20_000) << 4, 28]
        new[(place << 4) + 3, 32] = 2
        difference = compare(old, content(new), 10)
        assert difference is not None
        assert (len(difference.put), len(difference.gone)) == (2, 1)


# ----------------------------------------------------------------------------------------------------- the kernel's


@pytest.mark.parametrize("version", [4, 6])
async def test_the_program_decides_as_ipaddress_does(filtered: Filtered, version: int) -> None:
    """Random rules, and addresses in and beside them, run through the program as it is loaded."""
    dice = random.Random(version)
    bits = 32 if version == 4 else 128
    nets: dict[ipaddress.IPv4Network | ipaddress.IPv6Network, int] = {}
    for _ in range(300):
        length = dice.choice([0, 1, 8, 12, 24, bits - 1, bits, *range(16, 33)])
        base = dice.choice([dice.getrandbits(bits), 10 << (bits - 8) | dice.getrandbits(bits - 16)])
        nets[network(version, base, length)] = dice.choice([0, 1, 2, ALLOW])
    some = content({(int(net.network_address), net.prefixlen): held for net, held in nets.items()}, bits // 8)
    keeper = await filtered.agent()
    names = ("a", "b", "c")
    rules = Rules(some, EMPTY[6], names) if version == 4 else Rules(EMPTY[4], some, names)
    assert (await keeper.apply(wanted(rules, "later"))).in_sync  # a device that is not there: nothing else is counted
    dropped = dict.fromkeys(names, 0)
    addresses = [dice.getrandbits(bits) for _ in range(200)]
    for net in nets:
        ends = (int(net.network_address), int(net.broadcast_address))
        addresses += [*ends, (ends[1] + 1) % (1 << bits), (ends[0] - 1) % (1 << bits)]
    lengths = sorted({net.prefixlen for net in nets}, reverse=True)
    with filtered.opened_program() as program:
        for address in addresses:
            covering = (network(version, address, length) for length in lengths)
            found = next((nets[net] for net in covering if net in nets), ALLOW)
            text = str(network(version, address, bits).network_address)
            frame = ethernet(ipv4(text), IPV4) if version == 4 else ethernet(ipv6(text), IPV6)
            assert bpf.run_program(program, frame)[0] == (2 if found & ALLOW else 1), text
            if not found & ALLOW:
                dropped[names[found]] += 1
    assert {name: each.packets for name, each in keeper.dropped().items()} == dropped
    assert min(dropped.values()) > 0


def network(version: int, address: int, length: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if version == 4:
        return ipaddress.IPv4Network((address, length), strict=False)
    return ipaddress.IPv6Network((address, length), strict=False)


@pytest.fixture
def trie(filtered: Filtered) -> Iterator[FamilyTrie]:
    """A trie without a program."""
    from netloom.kernel.prefilter.kernel_filter import KernelFilter

    kernel = KernelFilter(filtered.bpffs / "netloom" / "prefilter-test")
    kernel.need_maps()
    yield kernel.tries[0, "v4"]
    kernel.close()


def held(trie: FamilyTrie) -> dict[bytes, bytes]:
    """What the kernel holds."""
    if trie.trie is None:
        return {}
    runs = list(bpf.entries(trie.trie.descriptor, 8, 4))
    return told(b"".join(keys for keys, _ in runs), b"".join(values for _, values in runs))


@pytest.mark.slow
async def test_changes_go_into_the_trie_that_is_there_and_large_ones_into_another(trie: FamilyTrie) -> None:
    some = {(at << 8, 24): at % 3 for at in range(20_000)}
    assert trie.put(content(some)) == 20_000
    first = trie.trie
    dice = random.Random(1)
    for _ in range(5):
        for _ in range(100):
            some.pop(dice.choice(list(some)[:2000]))
            some[dice.getrandbits(32) >> 4 << 4, 28] = dice.choice([0, 1, ALLOW])
        assert trie.put(content(some)) == 200
        assert held(trie) == as_dict(content(some))
        assert trie.verify()
    assert trie.trie == first
    some = {(at << 8, 24): 0 for at in range(100_000, 100_000 + capacity_for(20_000) + 1)}
    assert trie.put(content(some)) == len(some)
    assert trie.trie is not None
    assert first is not None
    assert trie.trie.identity != first.identity
    assert held(trie) == as_dict(content(some))
    trie.put(EMPTY[4])
    assert (trie.trie, held(trie)) == (None, {})
    assert trie.verify()


async def test_what_somebody_does_to_the_entries_is_found_and_put_right(trie: FamilyTrie) -> None:
    some = {(at << 12, 20): 1 for at in range(20_000)} | {(0, 8): 2}
    wanted_ = content(some)
    trie.put(wanted_)
    assert trie.verify()
    assert trie.trie is not None
    edits = (
        lambda fd: bpf.delete(fd, key(bytes([0, 1, 16, 0]), 20)),
        lambda fd: bpf.delete(fd, key(bytes(4), 8)),
        lambda fd: bpf.update(fd, key(bytes([10, 0, 0, 0]), 8), value(1, allow=True)),
        lambda fd: bpf.update(fd, key(bytes([0, 1, 16, 0]), 20), value(7)),
        lambda fd: bpf.update(fd, key(bytes([0, 1, 16, 0]), 20), value(1 | 1 << 16)),  # a byte that says nothing
    )
    for edit in edits:
        edit(trie.trie.descriptor)
        assert not trie.verify()
        assert trie.put(wanted_) == 1
        assert held(trie) == as_dict(wanted_)
        assert trie.verify()


async def test_a_whole_content_that_is_gone_is_written_anew(trie: FamilyTrie) -> None:
    wanted_ = content({(at << 12, 20): 1 for at in range(20_000)})
    trie.put(wanted_)
    assert trie.trie is not None
    bpf.delete_all(trie.trie.descriptor, wanted_.keys, 8)
    assert not trie.verify()
    assert trie.put(wanted_) == 20_000
    assert held(trie) == as_dict(wanted_)


async def test_an_absent_key_does_not_end_a_deletion(trie: FamilyTrie) -> None:
    wanted_ = content({(at << 12, 20): 1 for at in range(100)})
    trie.put(wanted_)
    assert trie.trie is not None
    for at in (0, 50, 51, 99):
        bpf.delete(trie.trie.descriptor, wanted_.keys[at * 8 : at * 8 + 8])
    assert bpf.delete_all(trie.trie.descriptor, wanted_.keys, 8) == 4
    assert held(trie) == {}


async def test_what_stays_is_there_at_every_moment(trie: FamilyTrie, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each single call to the kernel, the entries that are in both contents are found where the program looks."""
    old = {(at << 8, 24): 0 for at in range(30_000)}
    trie.put(content(old))
    stays = [key((at << 8).to_bytes(4, "big"), 24) for at in (5, 4095, 29_999)]
    whole = bpf.bpf
    seen = []

    def watched(command: int, attributes: object) -> int:
        result = whole(command, attributes)  # type: ignore[arg-type]
        monkeypatch.setattr(bpf, "bpf", whole)
        identity = int.from_bytes(bpf.lookup(trie._outer, bytes(4), 4) or b"", "little")
        for name in trie._places:
            descriptor = trie._pins.open(name)
            if descriptor is not None and bpf.describe_map(descriptor).identity == identity:
                seen.append([bpf.lookup(descriptor, each, 4) for each in stays])
        monkeypatch.setattr(bpf, "bpf", watched)
        return result

    for new in ({**old, **{((at << 8) + 16, 28): 0 for at in range(30_000)}}, {**old, (1, 32): 0}):
        monkeypatch.setattr(bpf, "bpf", watched)
        trie.put(content(new))
        monkeypatch.setattr(bpf, "bpf", whole)
    assert len(seen) > 5
    assert all(values == [bytes(4)] * 3 for values in seen)


def test_exceptions_come_first_and_go_last() -> None:
    deny, allow = (key(bytes(4), 8), value(0)), (key(bytes(4), 9), value(0, allow=True))
    assert sorted([deny, allow], key=tries._denies) == [allow, deny]
    assert sorted([allow, deny], key=tries._denies, reverse=True) == [deny, allow]
    assert Difference() == Difference([], [])
    assert order(key(bytes([1, 0, 0, 0]), 8)) < order(key(bytes([1, 0, 0, 0]), 9)) < order(key(bytes([2, 0, 0, 0]), 8))


# ------------------------------------------------------------------------------------------------------------ slots


names = st.lists(st.sampled_from(["a", "b", "c", "d", "", "e"]), max_size=6).map(
    lambda some: tuple(name for at, name in enumerate(some) if not name or name not in some[:at])
)


@settings(max_examples=200)
@given(names, names)
def test_a_prefilter_keeps_its_counter(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    first = assign((), before)
    second = assign(first.names, after)
    for number, name in enumerate(after):
        if not name:
            continue
        place = second.places[number]
        assert second.names[place] == name
        assert (place in second.new) == (name not in before)
        assert name not in before or first.names[place] == name
    assert {name for name in second.names if name} == {name for name in after if name}


def test_there_are_so_many_counters_and_no_more() -> None:
    assign((), [f"p{at}" for at in range(SLOTS)])
    with pytest.raises(ValueError, match="257 prefilters apply to this node, which can count for 256"):
        assign((), [f"p{at}" for at in range(SLOTS + 1)])


def test_rules_that_number_their_prefilters_in_another_way_are_rewritten() -> None:
    some = content({(0, 8): 0, (1 << 24, 8): 1 | ALLOW})
    assert renumbered(some, (0, 1)) is some
    assert renumbered(some, (5, 3)) == content({(0, 8): 5, (1 << 24, 8): 3 | ALLOW})
