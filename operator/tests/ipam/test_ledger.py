"""The wire form of a ledger: one text per content, and no content for any other text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import LedgerSpec, NetloomLedger
from netloom.cidr import Cidr
from netloom.ipam import ledger
from netloom.ipam.ledger import Entry, Ledger, LedgerError, Mark

NAME = "v4-10.0.0.0-16"
RANGE = Cidr.parse("10.0.0.0/16")
MARKS = st.builds(Mark, st.sampled_from(["a1", "b2"]), st.integers(1, 99))
NODES = st.sampled_from(["n", "node-1", "node-1.example.org"])


def decode(
    text: str, used: int, mode: str = "cluster-pool", ledger_range: str = "10.0.0.0/16", name: str = NAME
) -> Ledger:
    spec = LedgerSpec(mode=mode, range=ledger_range, used=used, entries=text)
    return ledger.decode(NetloomLedger(metadata=ObjectMeta(name=name), spec=spec))


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    entries = {}
    for index in draw(st.sets(st.integers(0, 255), max_size=12)):
        marks = draw(st.lists(MARKS, max_size=2, unique=True))
        entries[Cidr(4, RANGE.base + (index << 8), 24)] = Entry(draw(NODES), tuple(sorted(marks)))
    return Ledger(RANGE, "cluster-pool" if entries else draw(st.sampled_from(["", "kubernetes"])), 3, entries)


@given(ledgers())
def test_what_is_written_is_read(content: Ledger) -> None:
    text = ledger.text_of(content)
    assert decode(text, len(content.entries), content.mode) == content


@given(ledgers(), st.data())
def test_equal_ledgers_have_equal_text(content: Ledger, data: st.DataObject) -> None:
    order = data.draw(st.permutations(list(content.entries)))
    shuffled = Ledger(content.range, content.mode, content.epoch, {cidr: content.entries[cidr] for cidr in order})
    assert ledger.text_of(shuffled) == ledger.text_of(content)


@given(ledgers().filter(lambda content: len(content.entries) > 0), st.data())
def test_a_text_that_was_cut_is_no_ledger(content: Ledger, data: st.DataObject) -> None:
    text = ledger.text_of(content)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(LedgerError):
        decode(text[:cut], len(content.entries))


def test_it_reads_well() -> None:
    entries = {
        Cidr.parse("10.0.1.0/24"): Entry("node-b", (Mark("5f3a", 12),)),
        Cidr.parse("10.0.0.0/24"): Entry("node-a"),
    }
    text = ledger.text_of(Ledger(RANGE, "cluster-pool", 3, entries))
    assert text == "netloom-ledger/1 epoch=3\n10.0.0.0/24 node-a\n10.0.1.0/24 node-b 5f3a.12\n"


@pytest.mark.parametrize(
    ("text", "used", "says"),
    [
        ("", 0, "begins with '', not with a header of this version"),
        ("netloom-ledger/2 epoch=1\n", 0, "not with a header of this version"),
        ("netloom-ledger/1 epoch=1", 0, "it is cut off"),
        ("netloom-ledger/1 epoch=1\n10.0.0.0/24 a\n", 2, "spec.used says 2 blocks, spec.entries has 1 in 1 lines"),
        ("netloom-ledger/1 epoch=1\n10.0.0.0/24\n", 1, "line 2: '10.0.0.0/24' is not 'CIDR node [marks]'"),
        ("netloom-ledger/1 epoch=1\n10.0.0.0/24 a \n", 1, "line 2: '' is not a mark"),
        ("netloom-ledger/1 epoch=1\n10.0.0.0/24 a x.0\n", 1, "line 2: 'x.0' is not a mark"),
        ("netloom-ledger/1 epoch=1\n10.0.0.0/24 A\n", 1, "is not 'CIDR node [marks]'"),
        ("netloom-ledger/1 epoch=1\n10.0.0.1/24 a\n", 1, "line 2: '10.0.0.1/24' has bits set below its mask"),
        ("netloom-ledger/1 epoch=1\n10.1.0.0/24 a\n", 1, "10.1.0.0/24 of node a is outside 10.0.0.0/16"),
        ("netloom-ledger/1 epoch=1\nfd00::/64 a\n", 1, "fd00::/64 of node a is outside 10.0.0.0/16"),
        ("netloom-ledger/1 epoch=1\n10.0.0.0/24 a\n10.0.0.0/24 b\n", 2, "spec.entries has 1 in 2 lines"),
        (
            "netloom-ledger/1 epoch=1\n10.0.0.0/23 a\n10.0.1.0/24 b\n",
            2,
            "10.0.0.0/23 and 10.0.1.0/24 overlap (nodes a and b)",
        ),
    ],
)
def test_any_other_text_is_refused_and_named(text: str, used: int, says: str) -> None:
    with pytest.raises(LedgerError) as refused:
        decode(text, used)
    assert str(refused.value).startswith(f"NetloomLedger {NAME}: ")
    assert says in str(refused.value)


def test_a_ledger_belongs_to_its_name_and_is_empty_when_closed() -> None:
    header = "netloom-ledger/1 epoch=1\n"
    with pytest.raises(LedgerError, match=r"spec.range 10.1.0.0/16 belongs to v4-10.1.0.0-16"):
        decode(header, 0, ledger_range="10.1.0.0/16")
    with pytest.raises(LedgerError, match=r"10.0.0.0/24 is not a ledger range"):
        decode(header, 0, ledger_range="10.0.0.0/24")
    with pytest.raises(LedgerError, match=r"spec.mode is empty"):
        decode(header + "10.0.0.0/24 a\n", 1, mode="")


def test_marks_of_one_incarnation_replace_each_other_and_leave_others_alone() -> None:
    entry = ledger.marked(ledger.marked(Entry("a"), Mark("x", 1)), Mark("y", 5))
    assert ledger.marked(entry, Mark("x", 7)) == Entry("a", (Mark("x", 7), Mark("y", 5)))
    assert ledger.unmarked(entry, [Mark("x", 1), Mark("x", 2)]) == Entry("a", (Mark("y", 5),))


def test_an_edit_leaves_the_old_value_alone() -> None:
    one, other = Cidr.parse("10.0.0.0/24"), Cidr.parse("10.0.1.0/24")
    before = Ledger(RANGE, "cluster-pool", 1, {one: Entry("a")})
    after = before.edited({one: None, other: Entry("b")}, "cluster-pool", 2)
    assert dict(after.entries) == {other: Entry("b")}
    assert dict(before.entries) == {one: Entry("a")}
    assert (after.mode, after.epoch) == ("cluster-pool", 2)
