"""The cache: what replaces what, and who is told."""

import asyncio
import random

import pytest

from netloom.api.core import NODES, Node
from netloom.api.meta import ObjectMeta
from netloom.runtime import store as store_module
from netloom.runtime.store import Store


def node(name: str, version: str = "", **labels: str) -> Node:
    return Node(metadata=ObjectMeta(name=name, resource_version=version, labels=labels))


@pytest.fixture
def told() -> list[tuple[str, Node | None, Node | None]]:
    return []


@pytest.fixture
def store(told: list[tuple[str, Node | None, Node | None]]) -> Store[Node]:
    made = Store(NODES)
    made.subscribe(lambda key, old, new: told.append((key, old, new)))
    return made


def test_a_change_is_told_with_what_was_and_what_is(store: Store[Node], told):
    one, two = node("a", "1"), node("a", "2")
    store.put(one)
    store.put(two)
    store.remove("a", "3")
    assert told == [("a", None, one), ("a", one, two), ("a", two, None)]
    assert len(store) == 0


def test_the_cache_has_changed_before_it_is_told():
    store = Store(NODES)
    seen: list[tuple[bool, int]] = []
    store.subscribe(lambda key, _old, new: seen.append((store.get(key) is new, len(store))))
    store.put(node("a", "1"))
    store.replace({"a": node("a", "2"), "b": node("b", "2")})
    store.remove("a", "3")
    assert [same for same, _ in seen] == [True] * 4
    assert [length for _, length in seen] == [1, 1, 2, 1]


def test_a_late_subscriber_is_told_what_is_there(store: Store[Node]):
    store.put(node("a", "1"))
    heard: list[str] = []
    store.subscribe(lambda key, _old, _new: heard.append(key))
    assert heard == ["a"]


@pytest.mark.parametrize("version", ["5", "4"])
def test_a_version_that_is_not_newer_changes_nothing(store: Store[Node], told, version: str):
    store.put(node("a", "5"))
    assert not store.put(node("a", version, x="y"))
    assert len(told) == 1
    assert not store.remove("a", "4")
    assert "a" in store


def test_versions_are_compared_as_numbers(store: Store[Node]):
    store.put(node("a", "9"))
    assert store.put(node("a", "10"))


def test_a_deletion_is_not_undone_by_a_late_event(store: Store[Node]):
    store.put(node("a", "5"))
    store.remove("a", "7")
    assert not store.put(node("a", "6"))
    assert "a" not in store
    assert store.put(node("a", "8"))  # created anew


def test_a_deletion_that_comes_before_its_object_is_remembered(store: Store[Node], told):
    assert not store.remove("a", "7")
    assert not store.put(node("a", "6"))
    assert not told


def test_deletions_are_remembered_up_to_a_number(store: Store[Node], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "TOMBSTONES", 3)
    for number in range(5):
        store.remove(f"n{number}", "10")
    assert [name for name in ("n0", "n1", "n2", "n3", "n4") if store.put(node(name, "9"))] == ["n0", "n1"]


def test_without_a_number_the_order_of_arrival_counts(store: Store[Node]):
    store.put(node("a", "x9"))
    assert store.put(node("a", "x1", last="yes"))
    assert store.put(node("a", "", later="yes"))
    assert store.remove("a")


def test_any_order_of_events_ends_in_the_same_cache():
    history = [node(name, str(version), v=str(version)) for version, name in enumerate("abcabcab", start=1)]
    for seed in range(50):
        shuffled = [*history, *history[:4]]
        random.Random(seed).shuffle(shuffled)
        store = Store(NODES)
        for obj in shuffled:
            store.put(obj)
        assert {key: obj.metadata.resource_version for key, obj in store.items()} == {"a": "7", "b": "8", "c": "6"}


def test_a_list_is_the_truth(store: Store[Node], told):
    same = node("same", "5")
    store.replace({"same": same, "gone": node("gone", "5"), "old": node("old", "9")})
    told.clear()
    assert store.synced.is_set()
    store.replace({"same": node("same", "5"), "old": node("old", "3"), "new": node("new", "4")})
    assert [(key, old is not None, new is not None) for key, old, new in told] == [
        ("gone", True, False),
        ("old", True, True),
        ("new", False, True),
    ]
    assert sorted(store) == ["new", "old", "same"]


def test_what_is_to_be_kept_survives_a_list(store: Store[Node]):
    store.put(node("a", "1"))
    store.replace({}, keep=frozenset({"a"}))
    assert list(store) == ["a"]


def test_an_irrelevant_change_is_cached_and_not_told(store: Store[Node], told):
    store.put(node("a", "1"))
    told.clear()
    store.take(node("a", "2", beat="1"), lambda _old, _new: False)
    store.replace({"a": node("a", "3", beat="2")}, lambda _old, _new: False)
    assert not told
    held = store.get("a")
    assert held is not None
    assert held.metadata.resource_version == "3"


def test_a_subscriber_that_fails_harms_no_other(store: Store[Node], told):
    broken = Store(NODES)
    heard: list[str] = []

    def fail(_key: str, _old: Node | None, _new: Node | None) -> None:
        raise ValueError("broken")

    broken.subscribe(fail)
    broken.subscribe(lambda key, _old, _new: heard.append(key))
    broken.put(node("a", "1"))
    assert heard == ["a"]


async def test_waiting_for_the_first_list_has_an_end(store: Store[Node]):
    with pytest.raises(TimeoutError):
        await store.wait_synced(0.01)
    waiting = asyncio.create_task(store.wait_synced(5))
    store.replace({})
    await waiting


def test_a_key_holds_the_namespace():
    obj = Node(metadata=ObjectMeta(name="a", namespace="n"))
    assert store_module.key_of(obj) == "n/a"
