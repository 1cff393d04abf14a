"""How far what is known of a ledger may be relied on."""

import pytest

from netloom.cidr import Cidr
from netloom.ipam.known_ledgers import KnownLedger, KnownLedgers
from netloom.ipam.ledger import Entry, Ledger, LedgerError, Mark

RANGE = Cidr.parse("10.0.0.0/16")
ONE, OTHER = Cidr.parse("10.0.1.0/24"), Cidr.parse("10.0.2.0/24")
STRANGER = Mark("stranger", 7)


def a_ledger(mode: str = "cluster-pool", **nodes: str) -> Ledger:
    entries = {ONE: nodes.get("one"), OTHER: nodes.get("other")}
    return Ledger(RANGE, mode, 1, {cidr: Entry(node) for cidr, node in entries.items() if node})


def test_blocks_that_overlap_have_one_ledger() -> None:
    ledgers = KnownLedgers()
    known = ledgers.of(ONE)
    assert known is ledgers.of(Cidr.parse("10.0.0.0/17"))
    assert (known.name, known.range) == ("v4-10.0.0.0-16", RANGE)
    assert ledgers.of(Cidr.parse("10.1.0.0/24")) is not known


def test_only_what_others_wrote_is_a_foreign_change() -> None:
    known = KnownLedgers().of(ONE)
    assert known.load(None, "", 0.0)
    assert not known.load(None, "", 1.0)
    known.committed({ONE: Entry("a")}, a_ledger(one="a"), "5")
    assert not known.load(a_ledger(one="a"), "5", 2.0)
    assert known.foreign_changes == 1
    assert known.load(a_ledger(one="a", other="b"), "6", 3.0)
    assert known.foreign_changes == 2
    known.stale = True
    assert known.load(a_ledger(one="a", other="b"), "6", 4.0), "what is stale is taken in, whatever its version"
    assert (known.foreign_changes, known.stale) == (3, False)


def test_a_mark_is_waited_out_from_when_it_was_first_seen() -> None:
    known = KnownLedgers().of(ONE)
    entry = {ONE: Entry("a", (STRANGER,))}
    known.load(Ledger(RANGE, "cluster-pool", 1, entry), "1", 10.0)
    known.load(Ledger(RANGE, "cluster-pool", 1, {**entry, OTHER: Entry("b")}), "2", 50.0)
    assert (known.seen, known.marked) == ({STRANGER: 10.0}, {ONE})
    known.load(a_ledger(one="a"), "3", 60.0)
    assert (known.seen, known.marked) == ({}, set())


def test_a_commit_says_what_it_freed() -> None:
    known = KnownLedgers().of(ONE)
    known.load(a_ledger(one="a"), "1", 0.0)
    known.taken.add(OTHER)
    freed = known.committed({ONE: None, OTHER: Entry("b", (STRANGER,))}, a_ledger(other="b"), "2")
    assert freed == [ONE]
    assert known.taken.overlap(ONE) is None
    assert known.taken.overlap(OTHER) is not None
    assert (known.marked, known.version) == ({OTHER}, "2")


def stale(known: KnownLedger) -> None:
    known.stale = True


def unreadable(known: KnownLedger) -> None:
    known.load(LedgerError(known.name, "line 2 is odd"), "9", 0.0)


def of_another_mode(known: KnownLedger) -> None:
    known.load(a_ledger("kubernetes", one="a"), "9", 0.0)


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (stale, "LedgerBusy", "has to be read again"),
        (unreadable, "LedgerUnreadable", "is unreadable: line 2 is odd"),
        (of_another_mode, "ModeLocked", "holds blocks of IPAM mode kubernetes"),
    ],
)
def test_nothing_is_entered_in(state, reason: str, words: str) -> None:
    known = KnownLedgers().of(ONE)
    known.load(a_ledger(one="a"), "1", 0.0)
    assert known.deferral("cluster-pool") is None
    state(known)
    deferral = known.deferral("cluster-pool")
    assert deferral is not None
    assert deferral.reason == reason
    assert words in deferral.message
