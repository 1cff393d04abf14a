"""Lists that come one after another are merged together, and what comes alone waits for nothing."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.prefilter import ListReference
from netloom.prefilter.node_rules import Filter, NodeRules
from netloom.prefilter.withheld import Lifeline
from netloom_reconcilers.node.prefilter.arrivals import PATIENCE_SECONDS, SETTLE_SECONDS, Arrivals
from netloom_reconcilers.node.prefilter.config_maps import ConfigMaps, ListConfigMap, Place, read
from tests.prefilter_setting import Setting, prefilter

SHORT = SETTLE_SECONDS / 4


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_comes_alone_waits_for_nothing(clock: Clock) -> None:
    arrivals = Arrivals(clock)
    assert arrivals.wait(missing=True) == 0, "nothing came: a change of what was there"
    for _ in range(3):
        arrivals.came()
        assert arrivals.wait(missing=True) == 0
        clock.now += 2 * SETTLE_SECONDS


def test_one_that_follows_another_waits_for_those_that_are_missing_and_not_for_more(clock: Clock) -> None:
    arrivals = Arrivals(clock)
    for number in range(20):
        arrivals.came()
        assert arrivals.wait(missing=True) == (SETTLE_SECONDS if number else 0)
        clock.now += SHORT
    assert arrivals.wait(missing=False) == 0, "the last"
    assert arrivals.wait(missing=True) == 0, "and what follows it is another matter"


def test_where_no_more_come_it_goes_on_without(clock: Clock) -> None:
    arrivals = Arrivals(clock)
    arrivals.came()
    arrivals.came()
    assert arrivals.wait(missing=True) == SETTLE_SECONDS
    clock.now += SETTLE_SECONDS
    assert arrivals.wait(missing=True) == 0


def test_what_is_there_is_taken_now_and_then_however_many_come(clock: Clock) -> None:
    arrivals, taken = Arrivals(clock), []
    for _ in range(round(4 * PATIENCE_SECONDS / SHORT)):
        arrivals.came()
        if not arrivals.wait(missing=True):
            taken.append(clock.now)
        clock.now += SHORT
    assert taken[0] == 100.0
    pauses = [later - earlier for earlier, later in pairwise(taken)]
    assert pauses
    assert all(PATIENCE_SECONDS <= each <= PATIENCE_SECONDS + 2 * SHORT for each in pauses)


# ------------------------------------------------------------------------------------------------------- the feature


class Following:
    """ConfigMaps of the setting's feature, which come when the test says so."""

    def __init__(self, setting: Setting, clock: Clock, count: int) -> None:
        self.setting = setting
        self.feature = setting.feature
        self.lists = ConfigMaps(None, "netloom-system", self.feature._turn)  # type: ignore[arg-type]
        self.lists._arrivals = Arrivals(clock)
        self.feature._lists = self.lists
        self.names = [f"list-{number}" for number in range(count)]

    async def begin(self) -> asyncio.Task[None]:
        """The prefilter that names them all is there, and none of them. The feature runs."""
        named = tuple(ListReference(name=each) for each in self.names)
        self.setting.prefilters.replace({"a": prefilter("a", deny_from_config_maps=named)})
        await self.feature.reconcile("prefilter")  # which asks for them
        for followed in self.lists._followed.values():
            followed.store.replace({})
        task = asyncio.create_task(self.feature.controller.run())
        await self.setting.kernel.dropping(0)
        return task

    def comes(self, number: int, text: str = "", version: int = 1) -> None:
        """One of them, of one entry unless it is said."""
        followed = self.lists._followed[Place("netloom-system", self.names[number])]
        meta = ObjectMeta(name=self.names[number], namespace="netloom-system", resource_version=str(version))
        followed.store.take(read(ListConfigMap(metadata=meta, data={"list": text or f"198.51.100.{number}"}), {}))


class Held:
    """Merges begin, and go on when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self._begun = threading.Event(), threading.Event()
        update = NodeRules.update

        def held(rules: NodeRules, filters: Sequence[Filter], lifelines: Sequence[Lifeline]) -> None:
            self._begun.set()
            assert self.go.wait(60)
            update(rules, filters, lifelines)

        monkeypatch.setattr(NodeRules, "update", held)

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 60)


async def test_lists_that_come_while_one_is_merged_are_one_merge_more(
    setting: Setting, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = Following(setting, clock, 25)
    task = await following.begin()
    held = Held(monkeypatch)
    following.comes(0)
    await held.begun()
    for number in range(1, 20):
        following.comes(number)
    held.go.set()
    await setting.kernel.dropping(1)
    for number in range(20, 24):  # some are missing still, and these come soon
        following.comes(number)
        await asyncio.sleep(0)
    assert len(setting.kernel.applied[-1].rules.v4) == 1
    following.comes(24)
    await setting.kernel.dropping(25)
    assert setting.feature.work == {"merged": 2, "entries": 25}
    task.cancel()


async def test_a_change_of_a_list_waits_for_none_that_is_missing(setting: Setting, clock: Clock) -> None:
    following = Following(setting, clock, 3)
    task = await following.begin()
    following.comes(0)
    await setting.kernel.dropping(1)
    following.comes(0, "198.51.100.0\n203.0.113.0", version=2)
    await setting.kernel.dropping(2)
    following.comes(1)  # soon after the first: it waits
    clock.now += SETTLE_SECONDS
    following.feature._turn()  # as its timer would
    await setting.kernel.dropping(3)
    task.cancel()


async def test_of_lists_that_nobody_names_any_more_nothing_is_left(setting: Setting, clock: Clock) -> None:
    following = Following(setting, clock, 3)
    task = await following.begin()
    for number in range(3):
        following.comes(number)
    clock.now += SETTLE_SECONDS
    following.feature._turn()
    await setting.kernel.dropping(3)
    followed = [*following.lists._followed.values()]
    stores = [weakref.ref(each.store) for each in followed]
    setting.prefilters.replace({})
    await setting.kernel.dropping(0)
    held = [(len(each.store), each.last, each._readers) for each in followed]
    assert held == [(0, None, {})] * 3, "their entries go at once"
    del followed, held
    gc.collect()
    assert [store() for store in stores] == [None] * 3, "no metric keeps the last of them"
    task.cancel()


@pytest.fixture
def setting(tmp_path: Any) -> Setting:
    return Setting(tmp_path)
