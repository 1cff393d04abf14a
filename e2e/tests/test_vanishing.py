"""Objects that vanish while their nodes live: a mesh of three nodes, and 200 more in the API, loses nothing by it.

The pods send to each other all the time. Nodes are in the API as kubelets would register them; the NetloomNodes are
written by the test, as the operator would, unless an operator runs.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netloom.roles.operator import CONNECTIONS
from netloom_e2e import crds, load, peers
from netloom_e2e.agents import NETWORK, NODES, Agents, cidrs, netloom_node
from netloom_e2e.allocations import Cluster
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.fleet import RBAC, USER, network
from netloom_e2e.flow import Flows
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import facts, routes, state
from netloom_e2e.operators import running

THREE = ("n1", "n2", "n3")
FAKE = 200
CORE = "/api/v1/nodes"
NET = network(mode="tunnel")
"""Its pool holds the CIDRs of all 203."""

FORCE = '{"metadata": {"finalizers": null}}'


class World(Agents):
    """Three nodes that exist, with their agents, and 200 that are in the API only."""

    user = USER

    def register(self, machine: Machine) -> None:
        """What the kubelet does."""
        address = {"type": "InternalIP", "address": machine.address}
        node = {"metadata": {"name": machine.node}, "status": {"addresses": [address]}}
        self.plane.client.request("POST", CORE, {"apiVersion": "v1", "kind": "Node", **node})

    def allocate(self, *names: str) -> None:
        """What the operator does."""
        for name in names:
            machine = self.lab.nodes[name]
            made = netloom_node(name, machine.address, cidrs(name)[0])
            uid = self.plane.client.request("GET", f"{CORE}/{name}")["metadata"]["uid"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
            made["metadata"] = {"name": name, "ownerReferences": [owner]}
            self.plane.client.request("POST", NODES, made)

    def populate(self, kind: str) -> None:
        """The 200, as `nodes` or as `peers`."""
        with load.prepared(self.plane.kubeconfig(), kind, FAKE, peers.PREFIX, CONNECTIONS) as creation:
            creation.go()
            creation.result()

    def whole(self) -> list[Machine]:
        """Wait until all is well, as it is at first."""
        self.in_sync(*self.lab.nodes.values(), peers=FAKE + 2)
        return list(self.lab.nodes.values())

    def leave(self, name: str) -> None:
        """The Node is deleted, and the operator deletes its NetloomNode."""
        for path in (CORE, NODES):
            self.plane.client.request("DELETE", f"{path}/{name}")

    def kernel(self) -> list[str]:
        """All that the nodes have in their kernels."""
        tables = [m.run("nft", "list", "table", "inet", "netloom") for m in self.lab.nodes.values()]
        return [state(machine) for machine in self.lab.nodes.values()] + tables

    def says(self, machine: Machine, *words: str) -> None:
        """Wait until the node's agent says this."""
        try:
            wait_for(f"{machine.node} to say {words}", lambda: all(word in str(facts(machine)) for word in words))
        except TimeoutError as error:
            raise AssertionError(f"{error}; it says {facts(machine)}\n{self.log(machine)[-3000:]}") from error

    def asked(self, verb: str) -> float:
        """Requests for Nodes that the API server has answered."""
        found = re.findall(
            r"^apiserver_request_total{([^}]*)} (\S+)$", self.plane.client.request("GET", "/metrics"), re.M
        )
        return sum(float(n) for labels, n in found if 'resource="nodes"' in labels and f'verb="{verb}"' in labels)


@pytest.fixture(scope="module")
def world(control_plane_binaries: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A control plane of its own: the others' would miss their CRDs."""
    with (
        ControlPlane(hosts=[Lab.address]) as plane,
        Lab(f"nlv{os.getpid() % 10000}") as lab,
        gateway(lab, plane.port),
    ):
        crds.install(plane)
        plane.kubectl("apply", "-f", str(RBAC))
        made = World(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, NET)
        try:
            made.populate("nodes")
            made.populate("peers")
            for number, name in enumerate(THREE, 1):
                machine = lab.add_node(name)
                machine.add_pod("pod", f"10.42.{number}.5", mtu=1400)
                made.register(machine)
                made.allocate(name)
                made.start(machine)
            made.whole()
            yield made
        finally:
            made.stop()


@contextmanager
def undisturbed(world: World) -> Iterator[None]:
    """The pods send to each other while the block lasts, and lose nothing; afterwards the kernels are as before."""
    before = world.kernel()
    pods = {name: world.lab.nodes[name].pods["pod"] for name in THREE}
    with Flows(pods, rate=300) as flows:
        wait_for("traffic", lambda: flows.now > 0.2)
        yield
        until = flows.now + 0.5
        wait_for("traffic after the change", lambda: flows.now > until)
        report = flows.stop()
    assert report.lossless, str(report)
    assert world.kernel() == before


def written(*machines: Machine) -> list[int]:
    return [int(facts(machine)["netlinkWrites"]) for machine in machines]


def test_definitions_that_are_deleted_and_applied_again(world: World) -> None:
    """One agent is restarted meanwhile, and knows nobody then: its own object is the first to come back."""
    n1, n2, n3 = machines = world.whole()
    before = written(*machines)
    with undisturbed(world):
        # The nodes' first: the network stays for long where an operator's finalizer holds it.
        world.plane.kubectl("delete", "crd", "netloomnodes.netloom.dev")
        world.plane.kubectl("delete", "--ignore-not-found", "-f", str(crds.FOLDER))
        for machine in machines:
            # Of how many it hears that they are gone depends on how fast it reads: the stream ends with the kind.
            world.says(machine, "there is no NetloomNetwork", f"'peers': {FAKE + 2}", "so they stay peers")
        world.end("n1")
        world.start(n1)
        crds.install(world.plane)
        world.plane.client.request("POST", NETWORK, NET)
        world.allocate("n1")
        world.says(n1, f"'retained': {FAKE + 2}", "no known peer's")
        world.allocate("n2")
        world.says(n2, f"'peersHeld': {FAKE + 1}", " lives.")
        world.says(n3, f"'peersHeld': {FAKE}", "this node's own, is not there")
        assert [len(routes(machine)) for machine in machines] == [FAKE + 2] * 3
        world.populate("peers")
        world.allocate("n3")
        world.whole()
        assert written(*machines) == [0, *before[1:]]


def test_all_objects_deleted_while_nobody_makes_them_anew(world: World) -> None:
    machines = world.whole()
    n1 = machines[0]
    with undisturbed(world):
        world.plane.client.request("DELETE", NODES)  # `kubectl delete nln --all`, without its 0.2 s for each
        for machine in machines:
            world.says(machine, "this node's own, is not there")
        world.allocate("n1")
        world.says(n1, "it is not believed that their Nodes left", " lives.")
        metrics = n1.run("curl", "-s", "http://127.0.0.1:9964/metrics")
        assert f"netloom_peers_held {FAKE + 2}.0" in metrics
        world.allocate("n2", "n3")
        world.populate("peers")
        world.whole()


def test_an_address_that_an_object_loses_stays(world: World) -> None:
    n1, n2, _ = world.whole()
    with undisturbed(world):
        world.plane.client.request("PATCH", f"{NODES}/n2", {"spec": {"addresses": []}})
        world.says(n1, "NetloomNode n2: spec.addresses has no IPv4 address of type InternalIP any more")
        world.readdress(n2)
        world.whole()


def test_with_an_operator_living_nodes_get_back_what_they_had(world: World) -> None:
    world.whole()
    cluster, crd = Cluster(world.plane), "netloomnetworks.netloom.dev"
    with running(world.plane) as operators:
        operators.start()
        wait_for("the operator to enter what is held", lambda: len(cluster.ledger()) == FAKE + 3, deadline=30)
        before = cluster.check()
        with undisturbed(world):
            world.plane.client.request("DELETE", NODES)
            wait_for("all to be made anew", lambda: cluster.held() == before, deadline=60)
            world.whole()
        with undisturbed(world):
            world.plane.kubectl("delete", "--wait=false", "-f", str(crds.FOLDER))
            # Addresses are in use, so the operator lets go of the network only when it is told to.
            world.plane.kubectl("patch", "netloomnetwork", "default", "--type=merge", "-p", FORCE)
            world.plane.kubectl("wait", "--for=delete", f"crd/{crd}", "--timeout=30s")
            crds.install(world.plane)
            world.plane.client.request("POST", NETWORK, NET)
            wait_for("all to be made anew", lambda: cluster.held() == before, deadline=60)
            world.whole()


def test_a_node_that_leaves_goes_for_one_request_of_each_agent(world: World) -> None:
    n1, *_ = machines = world.whole()
    gone, other = peers.peer(7), peers.peer(8)
    gets, lists = world.asked("GET"), world.asked("LIST")
    world.leave(gone.name)
    for machine in machines:
        wait_for("the route to go", lambda m=machine: gone.cidr not in str(routes(m)))  # type: ignore[misc]
    world.in_sync(*machines, peers=FAKE + 1)
    assert (world.asked("GET") - gets, world.asked("LIST") - lists) == (3, 0)

    world.end("n1")
    world.leave(other.name)
    assert other.cidr in str(routes(n1))
    world.start(n1)
    wait_for("the route of one that left meanwhile to go", lambda: other.cidr not in str(routes(n1)))
    world.in_sync(*machines, peers=FAKE)
    assert (world.asked("GET") - gets, world.asked("LIST") - lists) == (7, 1), (
        "its own Node, whether that is this machine, and how many there are"
    )


def test_many_nodes_that_leave_at_once_cost_few_requests(world: World) -> None:
    machines = list(world.lab.nodes.values())
    there = int(facts(machines[0])["peers"])
    names = [peers.peer(number).name for number in range(20, 40)]
    for name in names:
        world.plane.client.request("DELETE", f"{CORE}/{name}")
    gets, lists = world.asked("GET"), world.asked("LIST")
    for name in names:
        world.plane.client.request("DELETE", f"{NODES}/{name}")
    world.in_sync(*machines, peers=there - 20)
    assert world.asked("GET") - gets + world.asked("LIST") - lists <= 3 * 5 * 2, "and not 20 of each agent"
