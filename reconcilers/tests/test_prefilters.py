"""What agents say of a prefilter, gathered."""

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import NetloomPrefilter, NodeFilter, PrefilterFailure, PrefilterNodes
from netloom_reconcilers.cluster.prefilters import FAILURES, Gathered, gathered

PREFILTER = NetloomPrefilter(metadata=ObjectMeta(name="a", generation=2))


def filtered(**said: object) -> NodeFilter:
    return NodeFilter(name="a", **{"generation": 2, "ipv4_entries": 7, "ipv6_entries": 1, **said})  # type: ignore[arg-type]


def test_it_runs_everywhere() -> None:
    assert gathered(
        PREFILTER, ["n2", "n1"], {"n1": filtered(), "n2": filtered(), "n3": filtered(error="x")}
    ) == Gathered(
        PrefilterNodes(selected=2, active=2, failed=0),
        7,
        1,
        0,
        (),
        (),
        (True, "Active", "It runs on every node that it selects."),
        (True, "Whole", "All that it says is active where it runs."),
    )


def test_a_node_that_holds_the_generation_before_is_waited_for() -> None:
    found = gathered(PREFILTER, ["n1", "n2"], {"n1": filtered(generation=1), "n2": filtered()})
    assert (found.nodes, found.ready[:2]) == (PrefilterNodes(selected=2, active=1, failed=0), (False, "Waiting"))
    assert gathered(PREFILTER, ["n1"], {}).ready[:2] == (False, "Waiting")
    assert gathered(PREFILTER, [], {}).ready[:2] == (None, "NoNodes")


def test_the_first_that_fail_are_named() -> None:
    said = {f"n{number:02}": filtered(error="eth0: there is no such device.") for number in range(20)}
    found = gathered(PREFILTER, said, said)
    assert found.nodes == PrefilterNodes(selected=20, active=0, failed=20)
    assert len(found.failures) == FAILURES
    assert found.failures[0] == PrefilterFailure("n00", "eth0: there is no such device.")
    assert found.ready == (
        False,
        "NodesFailed",
        "On n00: eth0: there is no such device. On n01: eth0: there is no such device. On n02: eth0: there is no such "
        "device. And on others: see status.failures.",
    )


def test_what_is_not_active_is_said_once() -> None:
    bad = "lists/drop:list: 1 line is left out: line 3 ('x') is no CIDR, address or range of addresses. Mend the list."
    held = "1 entries would cut this node off, and are not active: ..."
    said = {
        "n2": filtered(problems=(bad,), bad_lines=1),
        "n1": filtered(problems=(bad, held), bad_lines=1, withheld=1),
    }
    found = gathered(PREFILTER, said, said)
    assert found.problems == (f"on n1: {bad}", f"on n1: {held}")
    assert (found.withheld, found.whole[:2]) == (1, (False, "Withheld"))
    only = gathered(PREFILTER, ["n2"], said)
    assert only.whole == (False, "BadLines", f"on n2: {bad}")
    assert only.ready[0], "the good lines are active"
