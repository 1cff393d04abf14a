"""The table of IPAM modes: what works with each does so from the Node to packets, and what does not is refused.

Real API server, operator and agents; two nodes behind a router, which knows the pods where the mode says that the
network does. Pods get their addresses of the agents' sockets, as the CNI plugin would ask.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e.addresses import AddressSocket
from netloom_e2e.agents import NODES, Agents
from netloom_e2e.allocations import Cluster, condition
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.echo import Echo, ask
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.operators import running

Json = dict[str, Any]
NETWORK = "/apis/netloom.dev/v1alpha1/netloomnetworks"
NATIVE = {"mode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/8"}
OUTSIDE = "192.0.2.10"


class Site:
    """Two nodes of one mode: their machines, their Nodes, and what runs there."""

    def __init__(self, lab: Lab, cluster: Cluster, folder: Path) -> None:
        self.lab, self.cluster = lab, cluster
        self.client = cluster.client
        self.agents = Agents(lab, cluster.plane, folder, user="netloom-agent")
        self.machines = [lab.add_node(name) for name in ("n1", "n2")]
        self.named: dict[str, str] = {}
        """What is said to a socket besides, where pods choose a pool and what asks is none."""
        self.sockets = [AddressSocket(Path(self.agents.run_dir(each)) / "agent.sock") for each in self.machines]

    def node(self, name: str, cidrs: Sequence[str] = (), labels: Json | None = None) -> None:
        """A Node as a kubelet registers it, with what its giver wrote."""
        address = self.lab.nodes[name].address
        body: Json = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
            },
        }
        self.client.request("POST", "/api/v1/nodes", body)

    def ipam(self, name: str) -> Json:
        """spec.ipam of a NetloomNode."""
        found: Json = self.cluster.netloom_node(name).get("spec", {}).get("ipam", {})
        return found

    def used(self, name: str) -> Json:
        """status.ipam of it."""
        found: Json = self.cluster.netloom_node(name).get("status", {}).get("ipam", {})
        return found

    @property
    def in_force(self) -> str:
        mode: str = self.cluster.network().get("status", {}).get("ipam", {}).get("mode", "")
        return mode

    def fill(self, name: str, pool: Json) -> None:
        """What a controller of mode crd writes."""
        self.client.request("PATCH", f"{NODES}/{name}", {"spec": {"ipam": {"pool": pool}}})

    def start(self) -> None:
        """The agents; each has read what it gave before."""
        for machine, socket in zip(self.machines, self.sockets, strict=True):
            self.agents.start(machine)
            wait_for(f"{machine.node} to give addresses", lambda socket=socket: _gives(socket), deadline=30)

    def pods(self) -> None:
        """One on each node, by an address that its agent gives; the router is told where the network knows them."""
        for machine, socket in zip(self.machines, self.sockets, strict=True):
            (address,) = socket.allocate(f"default/{machine.node}", "c", **self.named)
            machine.add_pod("pod", address, mtu=1400)

    def learn(self) -> None:
        """The network knows the way to both pods."""
        for machine in self.machines:
            self.lab.router.learn(machine, f"{machine.pods['pod'].address}/32")

    def reach(self) -> None:
        """The pods reach each other, as who they are."""
        (n1, n2) = self.machines
        pod, other = n1.pods["pod"], n2.pods["pod"]
        wait_for("the pods to reach each other", lambda: pod.ping(other.address, wait=0.3).lost == 0, deadline=20)
        assert pod.ping(other.address, count=3, interval=0.05).lost == 0

    def route(self, **routing: object) -> None:
        """Another way of routing, and all agents follow."""
        self.agents.edit(**routing)

    def close(self) -> None:
        self.agents.stop()
        for machine in self.machines:
            self.lab.router.ip("route", "flush", "via", machine.address)
            self.lab.remove_node(machine.node)


def _gives(socket: AddressSocket) -> bool:
    try:
        return socket.ask("GET", "/v1/status")[0] == 204
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------ what works


def by_the_node(site: Site) -> None:
    """CIDRs are configured by Kubernetes, or by GCP: they come with the Node."""
    site.node("n1", ["10.42.1.0/24"])
    site.node("n2", ["10.43.2.0/24"], labels={"cloud.google.com/gke-nodepool": "default-pool"})
    wait_for("both have the CIDR of their Node", site.cluster.served)
    assert [site.ipam(name)["podCIDRs"] for name in ("n1", "n2")] == [["10.42.1.0/24"], ["10.43.2.0/24"]]


def by_the_lists(site: Site) -> None:
    """CIDRs are configured by Netloom, and there are several per cluster: each list's first one has room for one."""
    site.node("n1")
    wait_for("n1 is served", site.cluster.served)
    site.node("n2")
    wait_for("both are served", site.cluster.served)
    assert [site.ipam(name)["podCIDRs"] for name in ("n1", "n2")] == [["10.42.1.0/24"], ["10.43.2.0/24"]]


def from_outside(site: Site) -> None:
    """Addresses are configured by somebody outside; there are no CIDRs."""
    for number, name in enumerate(("n1", "n2"), 1):
        site.node(name)
        wait_for(f"NetloomNode {name}", lambda name=name: bool(site.cluster.netloom_node(name)))  # type: ignore[misc]
        assert site.ipam(name) == {}
        site.fill(name, {f"10.4{number + 1}.{number}.7": {"resource": f"eni-{number}"}})
    wait_for("the mode is in force", lambda: site.in_force == "crd")
    wait_for("both record it", lambda: {site.ipam(name).get("mode") for name in ("n1", "n2")} == {"crd"})


def by_pools(site: Site) -> None:
    """CIDRs are configured by Netloom, in pools of several CIDRs."""
    ipv4 = {"cidrs": ["10.42.1.0/27", "10.43.2.0/24"], "maskSize": 28}
    body = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomIPPool", "metadata": {"name": "default"}}
    site.client.request("POST", "/apis/netloom.dev/v1alpha1/netloomippools", body | {"spec": {"ipv4": ipv4}})
    site.named = {"pool": "default"}
    for name in ("n1", "n2"):
        site.node(name)
    wait_for("both are served", site.cluster.served)


def outside_as_pods_need(site: Site) -> None:
    """Dynamic allocation: a pod waits for an address that is given then; all come back, and the mode is free."""
    n1, socket = site.machines[0], site.sockets[0]
    given: list[tuple[str, ...]] = []
    waiting = threading.Thread(target=lambda: given.append(socket.allocate("default/more", "d")))
    waiting.start()
    wait_for("the first use is told", lambda: site.used("n1").get("used") == {"10.42.1.7": _use("default/n1", "eni-1")})
    site.fill("n1", {"10.42.1.8": {"owner": "default/more"}, "10.42.1.9": {"owner": "default/none"}})
    waiting.join(20)
    assert given == [("10.42.1.8",)]
    with Echo(site.lab.add_outside(), site.agents.folder) as echo:
        wait_for("masqueraded like any pod", lambda: ask(n1.pods["pod"], OUTSIDE) == n1.address)
        assert set(echo.seen()) == {n1.address}
    assert "10.4" not in n1.ip("route", "show", "proto", "158"), "nothing leads to single addresses"
    with pytest.raises(ApiFailure, match="the IPAM mode of a live cluster cannot change: "):
        site.client.request("PATCH", f"{NETWORK}/default", {"spec": {"ipam": {"mode": "kubernetes"}}})
    # Withdrawn under a pod: kept, told, and in the way of a change of the mode as before.
    site.fill("n1", {"10.42.1.7": None, "10.42.1.8": None, "10.42.1.9": None})
    site.fill("n2", {"10.43.2.7": None})
    wait_for(
        "it is told",
        lambda: "withdrawn while in use" in condition(site.cluster.netloom_node("n1"), "DataplaneReady")[2],
    )
    wait_for("an Event", lambda: ("Warning", "AddressWithdrawn") in site.cluster.events("n1"))
    assert site.in_force == "crd"
    for pod, container, each in (("n1", "c", 0), ("more", "d", 0), ("n2", "c", 1)):
        site.sockets[each].release(f"default/{pod}", container)
    wait_for("the last came back", lambda: site.in_force == "", deadline=30)
    many = {f"10.{44 + n // 65536}.{n // 256 % 256}.{n % 256}": {} for n in range(4000)}
    site.fill("n2", many)
    wait_for("thousands are taken", lambda: site.in_force == "crd", deadline=20)
    site.fill("n2", dict.fromkeys(many))


def pools_as_pods_need(site: Site) -> None:
    """Dynamic allocation: several CIDRs per node, more when pods need them."""
    for number in range(20):
        site.sockets[0].allocate(f"default/more-{number}", "d", **site.named)
    assert len(site.ipam("n1")["pools"]["allocated"][0]["cidrs"]) > 1


def _use(owner: str, resource: str) -> Json:
    return {"owner": owner, "resource": resource}


@dataclass(frozen=True)
class Mode:
    """One column. give: how nodes get what they hold. network_routes: the network itself knows the way to pods. more:
    its dynamic allocation."""

    name: str
    spec: Json = field(default_factory=dict)
    give: Callable[[Site], None] = by_the_node
    tunnels: bool = True
    network_routes: bool = False
    more: Callable[[Site], None] | None = None


LISTS = {"ipv4PodCIDRList": ["10.42.1.0/24", "10.43.2.0/24"], "ipv4MaskSize": 24}
MODES = [
    Mode("kubernetes"),
    Mode("cluster-pool", {"clusterPool": LISTS}, by_the_lists),
    Mode("multi-pool", {}, by_pools, more=pools_as_pods_need),
    Mode("crd", {}, from_outside, tunnels=False, network_routes=True, more=outside_as_pods_need),
    Mode("gke", tunnels=False, network_routes=True),
]
"""The table, by columns."""


@pytest.fixture(scope="module")
def lab(crds_installed: ControlPlane) -> Iterator[Lab]:
    with Lab(f"nlit{os.getpid() % 10000}") as made, gateway(made, crds_installed.port):
        made.add_router()
        yield made


@pytest.fixture
def site(lab: Lab, cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    made = Site(lab, cluster, tmp_path)
    try:
        with running(cluster.plane) as operators:
            operators.start()
            yield made
    finally:
        made.close()
        cluster.plane.delete_all("netloomippools.v1alpha1.netloom.dev")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_yes_works_from_the_node_to_packets(site: Site, mode: Mode) -> None:
    routing = {"mode": "tunnel"} if mode.tunnels else NATIVE
    body = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNetwork", "metadata": {"name": "default"}}
    site.client.request(
        "POST", NETWORK, body | {"spec": {"ipam": {"mode": mode.name, **mode.spec}, "routing": routing}}
    )
    mode.give(site)
    site.start()
    site.pods()
    if mode.tunnels:
        site.reach()
        site.route(**NATIVE, autoDirectNodeRoutes=True)
        site.agents.moved("none")
    if mode.network_routes:
        site.learn()
    site.reach()
    if mode.more is not None:
        mode.more(site)


# ------------------------------------------------------------------------------------------------ what does not


def network(mode: str, routing: Json, **ipam: object) -> tuple[str, Json]:
    body = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNetwork", "metadata": {"name": "default"}}
    return NETWORK, body | {"spec": {"ipam": {"mode": mode, **ipam}, "routing": routing}}


def netloom_node(mode: str, **ipam: object) -> tuple[str, Json]:
    body = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": "n"}}
    return NODES, body | {"spec": {"ipam": {"mode": mode, **ipam}}}


def node(*cidrs: str) -> tuple[str, Json]:
    spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)}
    return "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": spec}


MORE = {"requested": [{"pool": "default", "needed": {"ipv4Addrs": 20}}]}
SINGLE = "nodes then hold single addresses given from outside, and a tunnel needs whole pod CIDRs."
VPC = "the VPC itself routes the pod CIDRs, and expects their packets unwrapped."
ONE_EACH = "may specify no more than one CIDR for each IP family"
NO_POOLS = "in IPAM mode {} a node is given no blocks of pools, and no more of them as its pods need them"
NO = [
    ("crd", "tunnel routing", network("crd", {"mode": "tunnel"}), SINGLE),
    ("crd", "hybrid routing", network("crd", {"mode": "hybrid"}), SINGLE),
    ("gke", "tunnel routing", network("gke", {**NATIVE, "mode": "tunnel"}), VPC),
    ("gke", "hybrid routing", network("gke", {**NATIVE, "mode": "hybrid"}), VPC),
    ("kubernetes", "several CIDRs per node", node("10.42.1.0/24", "10.42.2.0/24"), ONE_EACH),
    ("gke", "several CIDRs per node", node("10.42.1.0/24", "10.42.2.0/24"), ONE_EACH),
    (
        "cluster-pool",
        "several CIDRs per node",
        netloom_node("cluster-pool", pools=MORE),
        NO_POOLS.format("cluster-pool"),
    ),
    *(
        (mode, "dynamic allocation", netloom_node(mode, pools=MORE), NO_POOLS.format(mode))
        for mode in ("kubernetes", "cluster-pool", "gke")
    ),
]
"""Each `no` of the table: what somebody would write who wants it all the same, and what is said. Of a Node, by the API
server itself. Of which ranges Kubernetes gives Nodes their CIDRs nobody says here: any will do, as `by_the_node`
shows."""


@pytest.mark.parametrize(("mode", "row", "asked", "why"), NO, ids=[f"{mode}: {row}" for mode, row, *_ in NO])
def test_no_is_refused_at_admission_with_its_reason(
    cluster: Cluster, mode: str, row: str, asked: tuple[str, Json], why: str
) -> None:
    path, body = asked
    with pytest.raises(ApiFailure) as refusal:
        cluster.client.request("POST", path, body)
    assert refusal.value.status == 422
    assert why in str(refusal.value).replace("\\n", " "), f"{mode}: {row}"
