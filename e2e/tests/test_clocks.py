"""A process whose wall clock is wrong for a while: the operator goes on leading, the agent follows its peers, and
nothing they write is dated by it. (Guards: test_guard_replicas.py.)"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e.agents import NODES, Agents, cidrs, netloom_node, running_agents
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.clocks import JUMPS, WallClock
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import Operators

LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/netloom-operator"
MINUTES = dt.timedelta(minutes=5)


def lease(plane: ControlPlane) -> dict[str, Any]:
    return dict(plane.client.request("GET", LEASE)["spec"])


def leases(plane: ControlPlane) -> list[dict[str, Any]]:
    """The lease, if it is there: the metric falls some time after the holder says that it leads no more."""
    collection, _, name = LEASE.rpartition("/")
    return list(plane.client.request("GET", f"{collection}?fieldSelector=metadata.name={name}")["items"])


def is_now(written: str) -> bool:
    return abs(dt.datetime.fromisoformat(written) - dt.datetime.now(dt.UTC)) < MINUTES


def waits(cluster: Cluster, node: str) -> bool:
    """Whether the node has no CIDR, and its condition and an Event say so."""
    told = condition(cluster.netloom_node(node), "Allocated")[1] == "ClusterPoolExhausted"
    return told and ("Warning", "ClusterPoolExhausted") in cluster.events(node)


def dates(cluster: Cluster, node: str) -> list[str]:
    """All that was written about a node, but for what the API server dates itself."""
    events = cluster.client.request("GET", "/api/v1/namespaces/default/events")["items"]
    about = [each for each in events if each["involvedObject"]["name"] == node]
    said = [each[key] for each in about for key in ("firstTimestamp", "lastTimestamp")]
    return said + [each["lastTransitionTime"] for each in cluster.netloom_node(node)["status"]["conditions"]]


def test_the_operator_leads_on_and_dates_what_it_writes(cluster: Cluster, operators: Operators, tmp_path: Path) -> None:
    clock = WallClock.made(tmp_path / "clock")
    cluster.create_network(ipv4PodCIDRList=["10.244.0.0/23"])
    leader = operators.start(env=clock.env, leader_elect=True)
    wait_for("it is there", leader.healthy, deadline=30)
    wait_for("it leads", lambda: leader.metric("netloom_leading") == 1)
    other = operators.start(leader_elect=True)
    wait_for("the other stands by", other.healthy, deadline=30)
    before = lease(cluster.plane)
    back, forward, far = JUMPS
    for node, by in (("in-time", back), ("in-time-too", forward), ("too-late", far)):
        with clock.jumped(by):
            renewed = lease(cluster.plane)["renewTime"]
            cluster.add_node(node)
            wait_for("the lease is renewed", lambda renewed=renewed: lease(cluster.plane)["renewTime"] != renewed)
            if by == far:
                wait_for("it is said that there is no block left", lambda node=node: waits(cluster, node))
            else:
                wait_for("the node is served", cluster.served)
        after = lease(cluster.plane)
        assert is_now(after["renewTime"])
        assert (after["holderIdentity"], after.get("leaseTransitions", 0)) == (before["holderIdentity"], 0)
    assert all(map(is_now, dates(cluster, "too-late")))

    cluster.client.request("DELETE", LEASE)
    wait_for("it has noticed", lambda: "not leading any more" in leader.process.log.read_text())
    wait_for("somebody leads again", lambda: leases(cluster.plane))
    assert lease(cluster.plane)["holderIdentity"] == before["holderIdentity"]
    wait_for("it says so", lambda: leader.metric("netloom_leading") == 1)
    assert leader.metric("netloom_component_restarts_total") == 0
    assert "Traceback" not in leader.process.log.read_text()


@pytest.fixture
def agents(crds_installed: ControlPlane, tmp_path: Path) -> Iterator[Agents]:
    try:
        with running_agents(crds_installed, "nlk", tmp_path) as made:
            yield made
    finally:
        crds_installed.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def test_an_agent_follows_its_peers_and_dates_what_it_writes(agents: Agents, tmp_path: Path) -> None:
    clock = WallClock.made(tmp_path / "clock")
    n1 = agents.enter("n1")
    agents.start(n1, env=clock.env)
    agents.in_sync(n1, peers=0)
    for number, by in enumerate(JUMPS, start=2):
        with clock.jumped(by):
            agents.enter(f"n{number}")
            agents.in_sync(n1, peers=number - 1)
            if by == JUMPS[-1]:
                # To a peer no route can be made: the condition changes.
                n1.ip("route", "add", "blackhole", cidrs("n99")[0])
                agents.plane.client.request("POST", NODES, netloom_node("odd", "192.0.2.9", *cidrs("n99")))
                wait_for("the condition", lambda: "odd" in agents.condition("n1").get("message", ""))
    assert is_now(agents.condition("n1")["lastTransitionTime"])
    assert agents.agents["n1"].poll() is None
    assert "Traceback" not in agents.log(n1)
