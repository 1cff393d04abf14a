"""Mode multi-pool on a real API server: real operator processes, with the rights that they have in production; what
nodes' agents write is written for them."""

import subprocess
from collections import Counter

import pytest

from netloom_e2e import gauges
from netloom_e2e.allocations import NETLOOM_NODES, POOLS, Cluster, condition
from netloom_e2e.client import ApiFailure, collection_path
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import wait_for
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.operators import Operators


@pytest.fixture
def plane(crds_installed: ControlPlane) -> ControlPlane:
    return crds_installed


def ask(cluster: Cluster, name: str, **needed: int) -> None:
    edit(cluster, name, requested=requests(**needed))


def requests(**needed: int) -> list[object]:
    return [{"pool": pool, "needed": {"ipv4Addrs": count}} for pool, count in needed.items()]


def edit(cluster: Cluster, name: str, **pools: object) -> None:
    patch = {"spec": {"ipam": {"pools": pools}}}
    cluster.client.request("PATCH", f"{collection_path(NETLOOM_NODES)}/{name}", patch)


def netloom(cluster: Cluster, *arguments: str) -> list[str]:
    """What the command prints, by line."""
    command = [str(NETLOOM), *arguments, f"--kubeconfig={cluster.plane.kubeconfig('admin')}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()


def writes(cluster: Cluster) -> Counter[str]:
    """Of objects of a kind, as the API server counted them since it started."""
    found: Counter[str] = Counter()
    for write, count in gauges.writes(cluster.client).items():
        found[write.resource] += count
    return found


def ready(cluster: Cluster, pool: str) -> tuple[str, str]:
    found = cluster.pool(pool)
    return condition(found, "Ready")[:2] if "status" in found else ("", "")


def test_nodes_draw_on_pools_as_they_need_them(cluster: Cluster, operators: Operators) -> None:
    cluster.create_network(mode="multi-pool")
    cluster.create_pool("default", "10.50.0.0/26")
    cluster.create_pool("blue", "10.51.0.0/27")
    operator = operators.start()
    cluster.add_nodes("a", "b")
    wait_for("each has a block of the default pool", cluster.served)
    cluster.check()
    assert sorted(text for name in "ab" for text in cluster.of_pools(name)["default"]) == [
        "10.50.0.0/28",
        "10.50.0.16/28",
    ]
    assert cluster.network()["status"]["ipam"]["mode"] == "multi-pool"
    assert cluster.netloom_node("a")["metadata"]["generation"] == 1, "in its first write"

    # It grows: by the agent's write, a commit of the ledger, and the operator's write.
    before = writes(cluster)
    ask(cluster, "a", default=20)
    wait_for("a second block", lambda: len(cluster.of_pools("a")["default"]) == 2)
    after = writes(cluster)
    assert after["netloomnodes"] - before["netloomnodes"] == 2
    assert after["netloomledgers"] - before["netloomledgers"] <= 2, "marks of before may go by themselves"
    ask(cluster, "a", default=20, blue=28)
    wait_for("two of the other pool", lambda: len(cluster.of_pools("a").get("blue", ())) == 2)
    ask(cluster, "b", default=8, blue=1)
    wait_for("none is left", lambda: ready(cluster, "blue") == ("False", "PoolExhausted"), deadline=60)
    assert condition(cluster.netloom_node("b"), "Allocated")[:2] == ("False", "PoolExhausted")
    wait_for("an Event", lambda: ("Warning", "PoolExhausted") in cluster.events("blue"))
    assert operator.metric("netloom_pool_nodes", pool="blue", state="waiting") == 1
    wait_for("counts", lambda: cluster.pool("blue")["status"].get("ipv4", {}).get("used") == 2, deadline=60)
    shown = cluster.plane.kubectl("get", "nlpool", "blue").stdout.splitlines()
    assert shown[1].split()[:6] == ["blue", "2", "0", "1", "False", "False"] or shown[1].startswith("blue")

    # What one gives back another gets; nothing is lost.
    kept = [{"pool": "default", "cidrs": cluster.of_pools("a")["default"]}]
    edit(cluster, "a", allocated=kept, requested=requests(default=20))
    wait_for("another has it", lambda: len(cluster.of_pools("b").get("blue", ())) == 1)
    wait_for("it is content", lambda: condition(cluster.netloom_node("b"), "Allocated")[0] == "True")
    wait_for(
        "ledgers agree", lambda: set(cluster.ledger()) == {cidr for held in cluster.held().values() for cidr in held}
    )
    cluster.check()

    shown = netloom(cluster, "pools")
    assert shown[0].split()[:8] == ["POOL", "FAMILY", "BLOCKS", "USED", "FREE", "ORPHANED", "NODES", "WAITING"]
    shown = netloom(cluster, "pools", "show", "blue")
    assert shown[-1].split() == ["b", "1", "IPv4", *cluster.of_pools("b")["blue"]]

    # The last node leaves: the mode can be changed again, and not before.
    wrong = {"spec": {"ipam": {"mode": "kubernetes"}}}
    path = "/apis/netloom.dev/v1alpha1/netloomnetworks/default"
    with pytest.raises(ApiFailure, match="multi-pool"):
        cluster.client.request("PATCH", path, wrong)
    cluster.remove_nodes("a", "b")
    wait_for("no node is left", lambda: not cluster.held(), deadline=60)
    wait_for("the lock is clear", lambda: not cluster.network()["status"]["ipam"].get("mode"), deadline=60)
    cluster.client.request("PATCH", path, wrong)


def test_pools_that_overlap_and_are_made_at_the_same_moment(cluster: Cluster, operators: Operators) -> None:
    cluster.create_network(mode="multi-pool")
    for name in ("default", "second"):
        cluster.create_pool(name, "10.50.0.0/26")
    operators.start()
    cluster.add_nodes("a", "b")
    wait_for("each has a block", cluster.served)
    cluster.check()
    wait_for(
        "one says so", lambda: ("False", "PoolOverlap") in [ready(cluster, name) for name in ("default", "second")]
    )
    cluster.client.request("DELETE", f"{collection_path(POOLS)}/second")
    wait_for("all is well", lambda: ready(cluster, "default") == ("True", "Ready"), deadline=60)
