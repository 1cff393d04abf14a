"""How long a block has to be kept for requests that may still write it."""

from netloom.cidr import Cidr
from netloom.ipam.known_ledgers import KnownLedger, KnownLedgers
from netloom.ipam.ledger import Entry, Ledger, Mark
from netloom.ipam.marks import QUARANTINE_SECONDS, WINDOW_SECONDS, Marks
from netloom.ipam.plan import Block, ChosenBlocks

ONE = Cidr.parse("10.0.1.0/24")
CHOSEN = ChosenBlocks((Block("", ONE),))
STRANGER = Mark("stranger", 7)


def known_at(now: float, entry: Entry) -> KnownLedger:
    known = KnownLedgers().of(ONE)
    known.load(Ledger(known.range, "cluster-pool", 1, {ONE: entry}), "1", now)
    return known


def tidied(marks: Marks, known: KnownLedger, now: float) -> dict[Cidr, Entry | None]:
    edits: dict[Cidr, Entry | None] = {}
    marks.tidy(known, edits, now)
    return edits


def own(marks: Marks) -> Entry:
    marks.begin(0.0)
    return marks.marked(Entry("a"))


def test_every_batch_has_a_mark_of_its_own_which_replaces_the_older_one() -> None:
    marks = Marks("me")
    first = own(marks)
    assert first.marks == (Mark("me", 1),)
    marks.begin(0.0)
    assert marks.marked(Entry("a", (*first.marks, STRANGER))).marks == (Mark("me", 2), STRANGER)


def test_a_grant_is_good_for_a_while_and_keeps_the_block_until_it_is_finished() -> None:
    marks = Marks("me")
    known = known_at(0.0, own(marks))
    grant = marks.grant("a", "cluster-pool", CHOSEN, 100.0)
    assert grant.deadline == 100.0 + WINDOW_SECONDS
    assert marks.wait(known, "a", ONE, 1e9) == float("inf")
    assert marks.next_tidy([known]) == float("inf")
    assert tidied(marks, known, 1e9) == {}
    marks.finish(grant, None)
    assert marks.wait(known, "a", ONE, 101.0) == 0.0
    assert marks.next_tidy([known]) <= 101.0
    assert tidied(marks, known, 101.0) == {ONE: Entry("a")}


def test_a_request_without_an_answer_is_waited_out() -> None:
    marks = Marks("me")
    known = known_at(0.0, own(marks))
    first, second = (marks.grant("a", "cluster-pool", CHOSEN, 100.0) for _ in range(2))
    marks.finish(first, 103.0)
    assert marks.wait(known, "a", ONE, 1e9) == float("inf"), "the second may still be sent"
    marks.finish(second, None)
    assert marks.wait(known, "a", ONE, 110.0) == 103.0 + QUARANTINE_SECONDS - 110.0
    assert marks.next_tidy([known]) == 103.0 + QUARANTINE_SECONDS
    assert tidied(marks, known, 103.0 + QUARANTINE_SECONDS - 0.1) == {}
    assert tidied(marks, known, 103.0 + QUARANTINE_SECONDS) == {ONE: Entry("a")}


def test_a_stranger_s_mark_counts_from_when_it_was_first_seen() -> None:
    marks, known = Marks("me"), known_at(10.0, Entry("a", (STRANGER,)))
    assert marks.wait(known, "a", ONE, 40.0) == QUARANTINE_SECONDS - 30.0
    assert marks.wait(known, "b", ONE, 40.0) == 0.0, "the entry is not b's"
    assert marks.next_tidy([known]) == QUARANTINE_SECONDS + 10.0
    assert tidied(marks, known, 10.0 + QUARANTINE_SECONDS) == {ONE: Entry("a")}


def test_marks_of_a_ledger_that_is_not_known_well_stay() -> None:
    marks, known = Marks("me"), known_at(0.0, Entry("a", (STRANGER,)))
    known.stale = True
    assert tidied(marks, known, 1e9) == {}


def test_marks_go_from_what_the_batch_makes_of_an_entry_and_not_from_one_that_it_frees() -> None:
    marks, known = Marks("me"), known_at(0.0, Entry("a", (STRANGER,)))
    mine = own(marks).marks
    marks.grant("a", "cluster-pool", CHOSEN, 1e6)
    edits: dict[Cidr, Entry | None] = {ONE: Entry("a", (*mine, STRANGER))}
    marks.tidy(known, edits, 1e6)
    assert edits == {ONE: Entry("a", mine)}
    edits = {ONE: None}
    marks.tidy(known, edits, 1e6)
    assert edits == {ONE: None}


def test_what_was_never_answered_is_not_remembered_of_all_nodes_that_ever_were() -> None:
    marks = Marks("me")
    for number in range(2_000):
        now = 10.0 * number
        marks.begin(now)
        grant = marks.grant(f"node-{number}", "cluster-pool", CHOSEN, now)
        marks.finish(grant, now)
    known = known_at(now, Entry("node-1999", marks.marked(Entry("node-1999")).marks))
    assert marks.wait(known, "node-1999", ONE, now) == QUARANTINE_SECONDS
    assert len(marks) == QUARANTINE_SECONDS / 10.0
    marks.begin(now + QUARANTINE_SECONDS)
    assert len(marks) == 0
    assert marks.wait(known, "node-1999", ONE, now + QUARANTINE_SECONDS) == 0.0


def test_what_was_never_answered_is_remembered_while_the_node_may_be_written_again() -> None:
    marks = Marks("me")
    known = known_at(0.0, own(marks))
    first, second = (marks.grant("a", "cluster-pool", CHOSEN, 0.0) for _ in range(2))
    marks.finish(first, 1.0)
    marks.begin(1000.0)
    assert marks.wait(known, "a", ONE, 1000.0) == float("inf")
    marks.finish(second, 1001.0)
    assert marks.wait(known, "a", ONE, 1001.0) == QUARANTINE_SECONDS
