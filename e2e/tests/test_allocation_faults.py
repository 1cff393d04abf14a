"""No address is ever given twice: not by an operator that is killed between two writes, not by two at once."""

import ipaddress
import signal
from pathlib import Path

import pytest

from netloom_e2e.allocations import LEDGERS, NETLOOM_NODES, NETWORKS, Cluster, condition
from netloom_e2e.history import recorded
from netloom_e2e.interception import Fate, Interception
from netloom_e2e.lab import wait_for
from netloom_e2e.operators import USER, Operators

NODES = [f"node-{number}" for number in range(1, 5)]
NODE = "POST /apis/netloom.dev/v1alpha1/netloomnodes"
STATUS = "PATCH /apis/netloom.dev/v1alpha1/netloomnetworks/default/status"
WRITES = [
    *["PATCH /apis/netloom.dev/v1alpha1/netloomnetworks/default"],  # the finalizer
    *[STATUS],  # the lock, before the ledger is opened
    *["POST /apis/netloom.dev/v1alpha1/netloomledgers"],
    *[NODE] * 4,
    *[STATUS],  # condition Ready
    *[STATUS],  # who holds addresses
    *["PUT /apis/netloom.dev/v1alpha1/netloomledgers/v4-10.40.0.0-16"],  # the marks, when it ends
]
"""What a clean run of four nodes needs; the condition comes among the nodes or after them, who holds addresses is told
after both."""
IN_FORCE = {
    "mode": "cluster-pool",
    "ledgers": ["v4-10.40.0.0-16"],
    "ledgerRanges": ["10.40.0.0/16"],
    "inUse": "4 nodes hold addresses (node-1, node-2, node-3 and 1 more)",
    "serviceCIDRs": [],
}
"""status.ipam of the network after it, but for the epoch."""


def prepare(cluster: Cluster) -> None:
    """Four nodes, and just as many blocks: a block that leaks would leave a node without."""
    cluster.create_network(ipv4PodCIDRList=["10.40.0.0/26", "10.40.1.0/26"], ipv4MaskSize=27)
    cluster.add_nodes(*NODES)


def finished(cluster: Cluster) -> bool:
    return cluster.served() and condition(cluster.network(), "Ready")[0] == "True" and in_force(cluster) == IN_FORCE


def in_force(cluster: Cluster) -> dict[str, object]:
    ipam = cluster.network().get("status", {}).get("ipam", {})
    return {field: value for field, value in ipam.items() if field != "epoch"}


def first_life(cluster: Cluster, operators: Operators, proxy: Interception) -> None:
    """An operator that works behind the proxy, and ends by SIGTERM if nothing ends it before."""
    operator = operators.start(kubeconfig=proxy.kubeconfig)
    proxy.strike = operator.kill

    def done() -> bool:
        # What people wait for is true before the last write: it tidies up a ledger.
        return proxy.struck.is_set() or (len(proxy.writes) >= len(WRITES) and finished(cluster))

    wait_for("the work is done", done, deadline=30)
    if not proxy.struck.is_set():
        operator.process.send(signal.SIGTERM)
    wait_for("the operator ends", lambda: operator.process.status is not None, deadline=30)
    assert operator.process.status == (-signal.SIGKILL if proxy.struck.is_set() else 0), operator.process.tail()


def assert_as_in_a_clean_run(cluster: Cluster) -> None:
    held = cluster.check()
    assert held.keys() == set(NODES)
    assert sorted(held.values()) == [
        (cidr,)
        for part in ("10.40.0.0/26", "10.40.1.0/26")
        for cidr in ipaddress.IPv4Network(part).subnets(new_prefix=27)
    ]
    assert in_force(cluster) == IN_FORCE


def test_a_clean_run(cluster: Cluster, operators: Operators, tmp_path: Path):
    prepare(cluster)
    with Interception(cluster.plane.kubeconfig(USER), tmp_path).running() as proxy:
        first_life(cluster, operators, proxy)
    # A machine that stalls: told, and tidied up, in parts.
    more = [each for each in (STATUS, WRITES[-1]) if proxy.writes.count(each) > WRITES.count(each)]
    assert sorted(proxy.writes) == sorted([*WRITES, *more])
    assert proxy.writes[-2:] == WRITES[-2:], "nothing waits for the telling of who holds addresses"
    assert_as_in_a_clean_run(cluster)
    assert not any(entry.marks for entry in cluster.ledger().values())


@pytest.mark.parametrize("fate", ["unanswered", "late"])
def test_killed_at_any_write(cluster: Cluster, operators: Operators, tmp_path: Path, fate: Fate):
    for at in range(1, len(WRITES) + 1):
        prepare(cluster)
        with recorded(cluster) as history, Interception(cluster.plane.kubeconfig(USER), tmp_path).running() as proxy:
            proxy.arm(at, fate)
            first_life(cluster, operators, proxy)
            assert proxy.struck.is_set(), f"write {at} never came, only {proxy.writes}"
            assert len(proxy.writes) == at
            operators.start()
            wait_for(f"all is as it should be after a death at write {at}", lambda: finished(cluster))
            proxy.deliver()
            assert_as_in_a_clean_run(cluster)
        history.check()
        operators.kill()
        cluster.plane.delete_all(NETWORKS, "nodes", NETLOOM_NODES, LEDGERS)


def test_a_create_that_arrives_after_its_node_is_gone(cluster: Cluster, operators: Operators, tmp_path: Path):
    """The one write that could give a block twice: sent by an operator that is dead, for a node that has left."""
    cluster.create_network(ipv4PodCIDRList=["10.41.0.0/26"], ipv4MaskSize=27)  # 2 blocks
    cluster.add_nodes("node-1")
    with recorded(cluster) as history:
        with Interception(cluster.plane.kubeconfig(USER), tmp_path).running() as proxy:
            proxy.arm(1, "late", of=NODE)
            first_life(cluster, operators, proxy)
            assert proxy.struck.is_set()
            cluster.remove_nodes("node-1")
            operators.start()
            cluster.add_nodes("node-2", "node-3")
            # One gets the other block. The block of the node that left rests, so nobody else gets it.
            wait_for("one has a CIDR, one is told that none is left", lambda: waiting(cluster) == 1)
            assert {str(cidr) for cidrs in cluster.held().values() for cidr in cidrs} == {"10.41.0.32/27"}
            assert proxy.deliver() == [201]
        wait_for("the late NetloomNode is deleted", lambda: "node-1" not in cluster.held())
        assert waiting(cluster) == 1
    history.check()
    assert [type_ for type_, obj in history.versions if obj["metadata"]["name"] == "node-1"] == ["ADDED", "DELETED"]
    assert {str(cidr): bool(entry.marks) for cidr, entry in cluster.ledger().items() if entry.node == "node-1"} == {
        "10.41.0.0/27": True
    }


def waiting(cluster: Cluster) -> int:
    objects = cluster.list(NETLOOM_NODES)
    return sum(condition(obj, "Allocated")[1] == "ClusterPoolExhausted" for obj in objects)


def test_two_operators_at_once_under_load(cluster: Cluster, operators: Operators):
    """Both believe that they lead. There are hardly more blocks than nodes, so what one frees, the other takes."""
    cluster.create_network(ipv4PodCIDRList=["10.50.0.0/21"], ipv4MaskSize=28)  # 128 blocks
    nodes = [f"node-{number}" for number in range(120)]
    with recorded(cluster) as history:
        one, two = operators.start(), operators.start()
        wait_for("both run", lambda: one.healthy() and two.healthy(), deadline=30)
        cluster.add_nodes(*nodes)
        try:
            wait_for("all nodes have CIDRs", cluster.served, deadline=30)
        except TimeoutError as error:
            ready, marked = (
                condition(cluster.network(), "Ready"),
                {k: v for k, v in cluster.ledger().items() if v.marks},
            )
            raise AssertionError(f"{ready}\nmarked: {marked}\n{one.process.tail()}\n{two.process.tail()}") from error

        cluster.remove_nodes(*nodes[:60])
        cluster.add_nodes(*(f"new-{number}" for number in range(30)))
        one.freeze()  # with writes under way, it sleeps through what follows
        cluster.add_nodes(*nodes[:30])
        cluster.remove_nodes(*nodes[90:])
        assert two.metric("netloom_allocation_writes_total") > 0
        two.kill()
        three = operators.start()
        wait_for("the third runs", three.healthy, deadline=30)
        cluster.remove_nodes(*(f"new-{number}" for number in range(15)))
        one.thaw()
        cluster.add_nodes(*nodes[90:105])
        cluster.remove_nodes(*nodes[:15])
        cluster.add_nodes(*nodes[:15])

        # Blocks that the killed one may still be writing rest for two minutes; more space serves who waits for them.
        lists = {"ipv4PodCIDRList": ["10.50.0.0/21", "10.51.0.0/21"]}
        patch = {"spec": {"ipam": {"clusterPool": lists}}}
        cluster.client.request("PATCH", "/apis/netloom.dev/v1alpha1/netloomnetworks/default", patch)
        wait_for("all nodes have CIDRs", cluster.served, deadline=60)
    history.check()
    assert len(history.versions) > len(nodes) * 2
    entered = {(entry.node, cidr) for cidr, entry in cluster.ledger().items()}
    assert {(name, cidr) for name, cidrs in cluster.held().items() for cidr in cidrs} <= entered
    assert min(each.metric("netloom_allocation_writes_total") for each in (one, three)) > 0
    conflicts = sum(each.metric("netloom_ledger_commits_total", result="conflict") for each in (one, three))
    assert conflicts > 0, "they never got into each other's way"


def test_the_lease_passes_from_a_leader_that_was_killed(cluster: Cluster, operators: Operators):
    cluster.create_network(ipv4PodCIDRList=["10.60.0.0/16"])
    first = operators.start(leader_elect=True)
    cluster.add_nodes("node-1")
    wait_for("the first one leads", cluster.served, deadline=30)
    second = operators.start(leader_elect=True)
    wait_for("the second one runs", second.healthy, deadline=30)
    cluster.add_nodes("node-2")
    wait_for("the node has its CIDR", cluster.served)
    assert first.metric("netloom_allocation_writes_total") > 0
    assert second.metric("netloom_allocation_writes_total") == 0

    first.kill()
    cluster.add_nodes("node-3")
    wait_for("the second one takes over", cluster.served, deadline=60)
    assert second.metric("netloom_allocation_writes_total", kind="NetloomNode", verb="create") == 1
    cluster.check()
