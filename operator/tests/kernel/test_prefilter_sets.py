"""Devices whose prefilters are not the same: on each is dropped what is meant for it, also while they part."""

import asyncio
import contextlib
import errno
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.kernel.prefilter import bpf
from netloom.kernel.prefilter.maps import SETS
from netloom.kernel.prefilter.prefiltering import DeviceWish, Prefiltering
from netloom.kernel.prefilter.rule_sets import numbered
from tests.kernel.netns import Lab
from tests.kernel.prefilters import (
    IPV4,
    Filtered,
    Receiver,
    counted,
    ethernet,
    ipv4,
    lives,
    rules,
    wanted,
)

BAD, WORSE = ethernet(ipv4("198.51.100.1"), IPV4), ethernet(ipv4("203.0.113.1"), IPV4)
BOTH = rules({"198.51.100.0/24": "a", "203.0.113.0/24": "b"})
ONE, OTHER = rules({"198.51.100.0/24": "a"}), rules({"203.0.113.0/24": "b"})
APART = Prefiltering(ONE, (DeviceWish("wire0"), DeviceWish("wire2", rules=1)), (OTHER,))
TOGETHER = wanted(ONE, "wire0", "wire2")


@pytest.fixture
def receivers(filtered: Filtered, lab: Lab) -> Iterator[tuple[Receiver, Receiver]]:
    """Of wire0 and of wire2."""
    node, far = filtered.place, lab.namespace("far")
    with contextlib.ExitStack() as stack:
        made = []
        for number in (0, 2):
            lab.wire(node, f"wire{number}", far, f"wire{number + 1}")
            receiver = Receiver(node, f"wire{number}", far, f"wire{number + 1}")
            made.append(stack.enter_context(contextlib.closing(receiver)))
        yield made[0], made[1]


async def passing(receivers: tuple[Receiver, Receiver]) -> list[tuple[bool, bool]]:
    """By device, whether frames of `a` and of `b` get past."""
    return [(await each.passes(BAD), await each.passes(WORSE)) for each in receivers]


async def test_each_device_has_its_own_rules_and_all_share_their_counters(
    filtered: Filtered, receivers: tuple[Receiver, Receiver]
) -> None:
    keeper = await filtered.agent()
    report = await keeper.apply(APART)
    assert report.in_sync, report
    assert await passing(receivers) == [(False, True), (True, False)]
    report = await keeper.apply(Prefiltering(BOTH, APART.devices, (OTHER,)))
    assert dict(report.written) == {"newlink": 2, "program": 2, "entry": 3}, "only the entry is new"
    assert await passing(receivers) == [(False, False), (True, False)]
    assert {name: packets for name, (packets, _) in counted(keeper).items()} == {"a": 2, "b": 3}
    assert (await keeper.apply(Prefiltering())).in_sync
    assert (filtered.programs(), [each for each in filtered.pins() if "netloom" in each]) == ({}, [])


async def test_a_restarted_agent_knows_which_device_has_which(
    filtered: Filtered, receivers: tuple[Receiver, Receiver]
) -> None:
    await lives(filtered, APART)
    pins = filtered.pins()
    again = Prefiltering(OTHER, (DeviceWish("wire0", rules=1), DeviceWish("wire2")), (ONE,))
    for desired in (APART, again):
        report = await lives(filtered, desired)
        assert (report.in_sync, dict(report.written)) == (True, {}), "whatever order it knows the rules in"
    assert filtered.pins() == pins
    assert await passing(receivers) == [(False, True), (True, False)]
    await lives(filtered, Prefiltering())
    assert (filtered.programs(), [each for each in filtered.pins() if "netloom" in each]) == ({}, [])


@pytest.mark.slow
async def test_no_device_is_without_its_rules_or_has_others_while_they_part_and_come_together(
    filtered: Filtered, receivers: tuple[Receiver, Receiver]
) -> None:
    """`a` is dropped on both all the time. `b` is dropped on wire2 in every second state, and on wire0 never."""
    states = [TOGETHER, Prefiltering(ONE, APART.devices, (BOTH,))]
    keeper = await filtered.agent()
    await keeper.apply(TOGETHER)
    with receivers[0].flooded(WORSE), receivers[1].flooded(BAD):
        for turn in range(20):
            assert (await keeper.apply(states[turn % 2])).in_sync
            assert receivers[1].received(BAD) == 0
            assert counted(keeper).get("b", (0, 0))[0] == 0, "wire0 has never had the rules of wire2"
            programs = [each for each in filtered.pins() if "program_" in each]
            assert len(programs) == 1 + turn % 2
            await asyncio.sleep(0)
        assert receivers[0].received(WORSE) > 0
    assert len([each for each in filtered.pins() if "entries_" in each]) == 2


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
async def test_a_device_is_not_given_to_a_set_that_could_not_be_filled(
    filtered: Filtered, receivers: tuple[Receiver, Receiver], monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    keeper = await filtered.agent()
    await keeper.apply(TOGETHER)
    whole, writes = bpf.bpf, itertools.count()

    def full(command: int, attributes: bpf.Attributes) -> int:
        if command == bpf.UPDATE_BATCH and next(writes) >= fails:
            raise OSError(errno.ENOMEM, "cannot write to a map: Cannot allocate memory")
        return whole(command, attributes)

    monkeypatch.setattr(bpf, "bpf", full)
    for desired in (Prefiltering(ONE, APART.devices, (BOTH,)), TOGETHER, Prefiltering(BOTH, APART.devices, (ONE,))):
        await keeper.apply(desired)
        assert [a for a, _b in await passing(receivers)] == [False, False]
    monkeypatch.setattr(bpf, "bpf", whole)
    assert (await keeper.apply(APART)).in_sync
    assert await passing(receivers) == [(False, True), (True, False)]


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.integers(0, 3)), st.dictionaries(names, st.integers(0, 5), min_size=1))
def test_a_set_keeps_its_number_for_just_the_same_devices(running: dict[str, int], places: dict[str, int]) -> None:
    order = sorted(set(places.values()))
    groups = [{name for name in places if places[name] == place} for place in order]
    found = numbered(groups, running)
    assert len(set(found)) == len(groups)
    for number, group in zip(found, groups, strict=True):
        having = {name for name, its in running.items() if its == number} & places.keys()
        # Nobody gets the rules of a device that has others now, and what a set has is changed for nobody else.
        assert having <= group
        assert not having or {running[name] for name in group if name in running} == {number}
        running_as_one = {running.get(name) for name in group}
        if len(running_as_one) == 1 and {name for name in places if running.get(name) in running_as_one} == group:
            assert running_as_one in ({number}, {None})


def test_there_are_not_sets_without_end() -> None:
    groups = [{f"eth{at}"} for at in range(SETS + 1)]
    numbered(groups[: SETS // 2], {f"eth{at}": 0 for at in range(SETS // 2)})
    with pytest.raises(
        ValueError, match="17 groups of devices are to have rules of their own, of which there can be 8"
    ):
        numbered(groups, {})
