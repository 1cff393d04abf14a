"""Refusals of a change of the IPAM mode: two texts, whatever stands in them."""

from netloom.guard.wording import CILIUM_MIGRATION, CILIUM_MODE, Wording
from netloom.webhook import cel

VALUES = {"in_use": "1 node holds addresses (a)", "mode": "cluster-pool", "wanted": "eni"}


def test_a_message_of_several_sentences_stays_one() -> None:
    """What to do is not found by a full stop: names and reasons may hold some."""
    problem = Wording("Stop. {in_use}, e.g. here.", "Keep {mode}. Or ask.").problem("Node a", "spec", "x", **VALUES)
    assert problem.message == "Stop. 1 node holds addresses (a), e.g. here."
    assert problem.way_out == "Keep cluster-pool. Or ask."
    assert (problem.object, problem.field, problem.value, problem.reason) == ("Node a", "spec", "x", "ModeLocked")


def test_a_hint_follows_what_to_do() -> None:
    with_hint = CILIUM_MODE + CILIUM_MIGRATION
    assert with_hint.message == CILIUM_MODE.message
    assert with_hint.text == f"{CILIUM_MODE.text} {CILIUM_MIGRATION}"


def test_a_policy_says_the_same_in_cel() -> None:
    """Literals and variables in turn, quoted as CEL has it."""
    values = {name: f"variables.{name}" for name in VALUES}
    text = Wording("{in_use}: 'no' \\ {mode}.", "Keep it.").text
    assert cel.filled(text, values) == r"variables.in_use + ': \'no\' \\ ' + variables.mode + '. Keep it.'"
