"""`netloom status` as people and programs read it."""

import json
import re

import pytest
import yaml

from netloom.api.cluster_facts import ClusterFacts, Sign
from netloom.api.v1alpha1 import NetloomNode
from netloom.api.verdict import judge
from netloom.cli.status import Network, StatusReport
from netloom.cli.status_text import printed
from tests.api.test_verdict import ALIVE, DEAD_LEADER, LEADER, NOW, SILENT, condition, network, node, obj


def report(
    *objects: NetloomNode, nodes: int = 0, agents: dict[str, Sign] | None = None, leader: Sign | None = LEADER
) -> StatusReport:
    """Of the NetloomNodes `objects`, and of so many Nodes, `node-0000` and so on."""
    names = [f"node-{number:04}" for number in range(nodes)] or [each.metadata.name for each in objects]
    held = network()
    known = ClusterFacts(
        nodes=[node(name) for name in names],
        netloom_nodes=objects,
        network=held,
        agents=dict.fromkeys(names, ALIVE) if agents is None else agents,
        operator=leader,
    )
    verdict = judge(known)
    return StatusReport(
        time="2026-01-01T12:00:05Z",
        network=Network(
            mode="cluster-pool",
            mode_in_force="cluster-pool",
            routing="tunnel",
            tunnel_protocol="vxlan",
            conditions=held.status.conditions,
        ),
        **{field: getattr(verdict, field) for field in verdict.__struct_fields__},
    )


def test_a_small_cluster_that_is_well() -> None:
    assert printed(report(obj("a"), obj("b", cidrs=("10.0.1.0/24", "fd00::/64"))), "text") == (
        "2 of 2 nodes ready\n"
        "operator  op-1_aa leads since 2026-01-01T10:00:00Z, heard of 5s ago\n"
        "agents    2 alive\n"
        "network   IPAM cluster-pool (in force: cluster-pool), tunnel vxlan\n"
        "\n"
        "NODE   READY   ADDRESS      POD CIDRS               ALLOCATED   DATAPLANE   AGENT   REASONS\n"
        "a      True    172.16.0.1   10.0.0.0/24                         True        alive\n"
        "b      True    172.16.0.1   10.0.1.0/24,fd00::/64               True        alive\n"
        "no problems"
    )


def test_what_is_wrong_is_said_and_who_is_dead() -> None:
    text = printed(report(obj("a"), obj("b"), agents={"a": SILENT}, leader=DEAD_LEADER), "text")
    assert text.splitlines()[:3] == [
        "0 of 2 nodes ready",
        "operator  NOT heard of: op-1_aa led since 2026-01-01T10:00:00Z, and was last heard of 60m ago",
        "agents    0 alive, 1 not heard of in time, 1 never heard of",
    ]
    plain = re.sub(r"\x1b\[\d+m", "", text)
    assert [line for line in plain.splitlines() if line.startswith("problem")] == [
        f"problem   {problem}"
        for problem in report(obj("a"), obj("b"), agents={"a": SILENT}, leader=DEAD_LEADER).problems
    ]
    assert "a      False   172.16.0.1   10.0.0.0/24               True        silent 60m   AgentSilent" in text
    assert "no problems" not in text


@pytest.mark.parametrize(
    ("leader", "said"),
    [
        (None, "operator  no sign of life of any"),
        (Sign("", NOW, NOW, 1, alive=True), "operator  NONE: the last one ended 5s ago"),
    ],
)
def test_no_operator(leader: Sign | None, said: str) -> None:
    assert said in printed(report(obj("a"), leader=leader), "text").splitlines()


def test_5_000_nodes_of_which_2_984_wait_are_told_in_a_few_lines() -> None:
    served = [obj(f"node-{number:04}") for number in range(2984, 5000)]
    found = report(*served, nodes=5000, leader=DEAD_LEADER)
    lines = printed(found, "text").splitlines()
    assert lines[0] == "2,016 of 5,000 nodes ready"
    assert "waiting   2,984 without addresses for pods" in lines
    assert "and 2,964 more nodes: -o wide lists all, -o json has their conditions, too" in lines
    assert len(lines) < 35
    assert sum(line.startswith("node-") for line in lines) == 20
    assert sum(line.startswith("node-") for line in printed(found, "wide").splitlines()) == 5000
    assert len(json.loads(printed(found, "json"))["nodes"]) == 5000


def test_a_large_cluster_that_is_well_lists_no_node() -> None:
    found = report(*(obj(f"node-{number:04}") for number in range(21)))
    assert printed(found, "text").splitlines()[-2:] == [
        "network   IPAM cluster-pool (in force: cluster-pool), tunnel vxlan",
        "no problems",
    ]


def test_lines_are_never_cut() -> None:
    """A table that knows of a terminal's width cuts at 80 columns in a pipe."""
    name, cidr = f"{'n' * 63}.{'x' * 63}", "fd00:1111:2222:3333:4444:5555:6666:7700/120"
    long = obj(name, condition("DataplaneReady", "False", "Degraded", "why " * 200), cidrs=(cidr, cidr, cidr, cidr))
    text = printed(report(long), "text")
    assert name in text
    assert ",".join([cidr] * 4) in text
    assert "why " * 100 in text


def test_wide_has_more_columns_and_all_cidrs() -> None:
    cidrs = tuple(f"10.0.{number}.0/24" for number in range(6))
    found = report(obj("a", condition("DataplaneReady", "True", "InSync"), condition("X", "True", "Y"), cidrs=cidrs))
    assert "10.0.3.0/24,+2 " in printed(found, "text")
    wide = printed(found, "wide")
    assert ",".join(cidrs) in wide
    assert "LAST HEARD             MODE           CONDITIONS" in wide
    assert f"{NOW}   cluster-pool   DataplaneReady=True,X=True" in wide


def test_what_others_wrote_cannot_command_a_terminal_nor_be_taken_for_markup() -> None:
    evil = obj("a", condition("DataplaneReady", "False", "Degraded", "\x1b[2Jgone\nproblem [/red] none"))
    text = printed(report(evil), "text")
    assert "\x1b[2J" not in text
    assert "DataplaneReady=False Degraded:  [2Jgone problem [/red] none" in text


def test_json_and_yaml_are_the_same_and_whole() -> None:
    found = report(obj("a"), obj("b", condition("Allocated", "False", "Why", "so"), cidrs=()), agents={"a": ALIVE})
    shown = json.loads(printed(found, "json"))
    assert yaml.safe_load(printed(found, "yaml")) == shown
    assert shown["healthy"] is False
    assert shown["totals"]["nodes"] == 2
    assert shown["operator"]["leader"] == "op-1_aa"
    assert shown["network"]["conditions"][0]["reason"] == "Accepted"
    assert shown["nodes"][0]["lastHeard"] == NOW
    assert shown["nodes"][1]["conditions"][0] == {
        "type": "Allocated",
        "status": "False",
        "reason": "Why",
        "message": "so",
        "lastTransitionTime": "2026-01-01T10:00:00Z",
    }
    assert {problem["reason"]: problem["names"] for problem in shown["problems"]} == {
        "Why": ["b"],
        "AgentNeverSeen": ["b"],
    }
