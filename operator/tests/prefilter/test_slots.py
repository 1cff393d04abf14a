"""Who counts where."""

from netloom.prefilter.slots import MOST, assigned


def test_a_prefilter_keeps_its_slot_whoever_comes_and_goes() -> None:
    assert assigned((), ["b", "a"]) == ("a", "b")
    assert assigned(("a", "b", "c"), ["b", "c"]) == ("", "b", "c")
    assert assigned(("", "b", "c"), ["b", "c", "a", "d"]) == ("a", "b", "c", "d")
    assert assigned(("a", "b"), ["a"]) == ("a",)
    assert assigned(("a", "b"), []) == ()


def test_more_than_there_are_slots_are_left_out_by_name() -> None:
    names = [f"{number:04}" for number in range(MOST + 2)]
    assert assigned((), names) == tuple(names[:MOST])
    assert assigned(("zzzz",), [*names, "zzzz"]) == ("zzzz", *names[: MOST - 1])
