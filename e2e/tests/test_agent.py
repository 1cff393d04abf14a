"""The agent as its users run it: a process per node, real tunnels, the real API server; the kernel's state as text."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e.agents import NETWORK, NODES, Agents, cidrs, netloom_node, network
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.gateway import gateway
from netloom_e2e.lab import Lab, Machine, wait_for
from netloom_e2e.mesh import NETLOOM, TUNNEL, device_state, facts, holes, routes, state
from tests.kernel.tunnelled import VXLAN, header, inner

THREE = ("n1", "n2", "n3")


class Cluster(Agents):
    """Comes back to three nodes in sync, whatever the last test did."""

    def settle(self) -> list[Machine]:
        """Back to three nodes in sync, whatever the last test did."""
        self.plane.client.request("PATCH", f"{NETWORK}/default", network(routing={"mode": "tunnel"}))
        for name in [name for name in self.agents if name not in THREE]:
            self.lab.remove_node(name)
            self.agents.pop(name).wait()
        for node in self.plane.client.request("GET", NODES)["items"]:
            if (name := node["metadata"]["name"]) not in THREE:
                self.plane.client.request("DELETE", f"{NODES}/{name}")
        machines = [self.lab.nodes.get(name) or self.join(name) for name in THREE]
        for machine in machines:
            machine.remove_pods()
            if self.agents[machine.node].poll() is not None:
                self.start(machine)
        self.in_sync(*machines, peers=2)
        return machines


@pytest.fixture(scope="module")
def cluster(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    plane = crds_installed
    with Lab(f"nla{os.getpid() % 10000}") as lab, gateway(lab, plane.port):
        made = Cluster(lab, plane, tmp_path_factory.mktemp("agents"))
        plane.client.request("POST", NETWORK, network())
        try:
            yield made
        finally:
            made.stop()
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@pytest.fixture
def mesh(cluster: Cluster) -> list[Machine]:
    """Three nodes in sync."""
    return cluster.settle()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_writes_nothing_and_loses_nothing(cluster: Cluster, mesh: list[Machine], number: int) -> None:
    """The first of all, as what a node lets in of others that have left is forgotten after half a minute."""
    n1, n2, _ = mesh
    a, b = n1.add_pod("a", "10.42.1.5", mtu=1450), n2.add_pod("b", "10.42.2.5", mtu=1450)
    wait_for("what has left to be forgotten", lambda: not facts(n1)["tunnelSenders"]["lingering"], deadline=60)
    before = state(n1)
    with subprocess.Popen(
        [*b.enter, *b.ping_command(a.address, count=1000, interval=0.002)], stdout=subprocess.PIPE, text=True
    ) as ping:
        agent = cluster.agents["n1"]
        agent.send_signal(number)
        agent.wait(20)
        assert state(n1) == before, "the data path stays when the agent goes"
        cluster.start(n1)
        cluster.in_sync(n1, peers=2)
        output, _ = ping.communicate(timeout=60)
    assert "1000 packets transmitted, 1000 received" in output
    assert facts(n1)["netlinkWrites"] == 0
    assert state(n1) == before


def test_nodes_join_and_leave_and_the_others_follow(cluster: Cluster, mesh: list[Machine]) -> None:
    n1, n2, _ = mesh
    a, b = n1.add_pod("a", "10.42.1.5", mtu=1450), n2.add_pod("b", "10.42.2.5", mtu=1450)
    assert a.ping(b.address, count=3, interval=0.01, payload=1422).lost == 0

    n4 = cluster.join("n4")
    cluster.in_sync(*mesh, n4, peers=3)
    assert a.ping(n4.add_pod("d", "10.42.4.5", mtu=1450).address).lost == 0

    before = state(n1)
    cluster.plane.client.request("DELETE", f"{NODES}/n4")
    cluster.in_sync(*mesh, peers=2)
    assert "10.42.4.0/24" in before
    assert "10.42.4.0/24" not in device_state(n1)
    assert "10.42.4.0/24" in holes(n1), "what n4 had ends here for an hour"
    assert a.ping(b.address).lost == 0


def test_the_host_itself_reaches_remote_pods(cluster: Cluster, mesh: list[Machine]) -> None:
    n1, n2, _ = mesh
    pod = n2.add_pod("b", "10.42.2.5", mtu=1450)
    assert "1 received" in n1.run("ping", "-n", "-q", "-c", "1", "-W", "2", pod.address, check=False)


def test_ipv6_pods_ping_through_the_ipv4_underlay(cluster: Cluster, mesh: list[Machine]) -> None:
    n1, n2, _ = mesh
    a, b = n1.add_pod("a6", "fd00:42:0:1::5", mtu=1450), n2.add_pod("b6", "fd00:42:0:2::5", mtu=1450)
    assert a.ping(b.address, count=3, interval=0.01, payload=1402, wait=2).lost == 0


@pytest.mark.parametrize(
    "words",
    [
        ["route", "del", "10.42.2.0/24"],
        ["route", "replace", "10.42.2.0/24", "dev", "eth0"],
        ["neigh", "flush", "dev", TUNNEL, "nud", "permanent"],
        ["nexthop", "flush", "proto", "158"],
        ["link", "set", TUNNEL, "down"],
        ["link", "del", TUNNEL],
        ["link", "set", TUNNEL, "mtu", "1300"],
        ["addr", "flush", "dev", TUNNEL],
    ],
    ids=" ".join,
)
def test_what_is_deleted_by_hand_comes_back(cluster: Cluster, mesh: list[Machine], words: list[str]) -> None:
    n1, n2, _ = mesh
    a, b = n1.add_pod("a", "10.42.1.5", mtu=1450), n2.add_pod("b", "10.42.2.5", mtu=1450)
    before, repaired = state(n1), facts(n1)["driftRepaired"]
    n1.ip(*words, check=False)
    wait_for(f"repair after ip {' '.join(words)}", lambda: state(n1) == before)
    wait_for("the agent to say so", lambda: facts(n1).get("inSync"))
    assert a.ping(b.address).lost == 0
    assert facts(n1)["driftRepaired"] > repaired


def test_masquerading_follows_the_cluster_and_is_repaired(cluster: Cluster, mesh: list[Machine]) -> None:
    def table(machine: Machine = mesh[0]) -> str:
        return machine.run("nft", "list", "table", "inet", "netloom", check=False)

    n1 = mesh[0]
    before = table()
    assert all(cidr in before for name in ("n1", "n2", "n3") for cidr in cidrs(name))
    n1.run("nft", "delete", "table", "inet", "netloom")
    wait_for("repair of the table", lambda: table() == before)
    cluster.join("n4")
    wait_for("the new node's pod CIDRs", lambda: all(cidr in table() for cidr in cidrs("n4")))
    spec = {"masquerade": {"ipv6": False, "nonMasqueradeCIDRs": ["172.20.0.0/16"]}}
    cluster.plane.client.request("PATCH", f"{NETWORK}/default", {"spec": spec})
    wait_for("IPv6 to be switched off", lambda: "172.20.0.0/16" in table() and "ip6" not in table())
    cluster.plane.client.request("PATCH", f"{NETWORK}/default", {"spec": {"masquerade": {"ipv4": False}}})
    wait_for("the table to be gone", lambda: table() == "")
    wait_for("the agent to say so", lambda: facts(n1)["masquerade"] == {"families": [], "elements": 0})
    cluster.plane.client.request("PATCH", f"{NETWORK}/default", {"spec": {"masquerade": None}})
    wait_for("the default to be back", lambda: all("ip6" in table(machine) for machine in mesh))


def test_the_mesh_is_kept_while_the_api_server_is_away(cluster: Cluster, mesh: list[Machine]) -> None:
    n1 = mesh[0]
    before = state(n1)
    cluster.plane.kill_apiserver()
    try:
        n1.ip("route", "del", "10.42.2.0/24")
        wait_for("repair without an API server", lambda: state(n1) == before)
    finally:
        cluster.plane.start_apiserver()
    n4 = cluster.join("n4")
    cluster.in_sync(*mesh, n4, peers=3)


def test_the_condition_tells_and_is_written_only_when_it_changes(cluster: Cluster, mesh: list[Machine]) -> None:
    def condition() -> dict[str, str]:
        conditions = cluster.plane.client.request("GET", f"{NODES}/n1").get("status", {}).get("conditions", [])
        return next((dict(c) for c in conditions if c["type"] == "DataplaneReady"), {})

    wait_for("the condition", lambda: condition().get("status") == "True")
    version = cluster.plane.client.request("GET", f"{NODES}/n1")["metadata"]["resourceVersion"]
    cluster.join("n4")
    cluster.in_sync(*mesh, peers=3)
    assert cluster.plane.client.request("GET", f"{NODES}/n1")["metadata"]["resourceVersion"] == version, (
        "no write for a join"
    )

    mesh[0].ip("route", "add", "blackhole", "10.42.5.0/24")
    cluster.join("n5")
    wait_for("the trouble", lambda: condition().get("reason") == "Degraded")
    assert "route 10.42.5.0/24 of n5: EEXIST" in condition()["message"]
    events = cluster.plane.kubectl("get", "events", "--field-selector", "involvedObject.name=n1").stdout
    assert "Degraded" in events
    mesh[0].ip("route", "del", "blackhole", "10.42.5.0/24")


def test_two_nodes_that_claim_one_cidr_are_reported_and_the_older_keeps_it(
    cluster: Cluster, mesh: list[Machine]
) -> None:
    n1 = mesh[0]
    before = state(n1)
    thief = netloom_node("zz-thief", "172.31.9.9", "10.42.2.0/24")
    cluster.plane.client.request("POST", NODES, thief)
    wait_for("the report", lambda: facts(n1).get("warnings"))
    assert "10.42.2.0/24 is claimed by n2 and zz-thief; n2 is older and keeps it." in str(facts(n1)["warnings"])
    assert [line for line in state(n1).splitlines() if "10.42.2.0/24" in line] == [
        line for line in before.splitlines() if "10.42.2.0/24" in line
    ]
    cluster.plane.client.request("DELETE", f"{NODES}/zz-thief")
    cluster.in_sync(n1, peers=2)
    assert state(n1) == before


def test_manifests_steer_an_agent_without_a_cluster_and_a_mistake_in_one_changes_nothing(
    cluster: Cluster, mesh: list[Machine], tmp_path: Path
) -> None:
    n1 = mesh[0]
    before = state(n1)
    cluster.agents["n1"].kill()
    cluster.agents["n1"].wait()
    items = cluster.plane.client.request("GET", NODES)["items"]
    nodes = {str(node["metadata"]["name"]): with_kind(node) for node in items}
    write(tmp_path / "network.json", network())
    for name, node in nodes.items():
        write(tmp_path / f"{name}.json", node)
    command = [str(NETLOOM), "agent", "--manifests", str(tmp_path), "--node-name", "n1", "--run-dir"]
    with (cluster.folder / "manifests.log").open("w") as log:
        cluster.agents["n1"] = n1.popen([*command, cluster.run_dir(n1)], stdout=log)
    cluster.in_sync(n1, peers=2)
    assert state(n1) == before
    assert facts(n1)["netlinkWrites"] == 0, "the same objects, from another source"

    good = nodes["n2"]
    write(tmp_path / "n2.json", netloom_node("n2", "172.31.1.2", "10.42.2.1/24"))
    wait_for("the report", lambda: "n2.json" in readiness(n1))
    assert "spec.ipam.podCIDRs[0]: NetloomNode n2: bits are set after the prefix length" in readiness(n1)
    assert state(n1) == before, "the last good objects stay"

    (tmp_path / "n3.json").unlink()
    write(tmp_path / "n2.json", good)
    wait_for("n3 to be gone", lambda: len(routes(n1)) == 1)
    assert readiness(n1).endswith("ok\n")
    cluster.agents["n1"].kill()
    cluster.agents["n1"].wait()


def readiness(machine: Machine) -> str:
    return machine.ask(9964, "/readyz")


def write(path: Path, obj: dict[str, object]) -> None:
    path.with_suffix(".staged").write_text(json.dumps(obj))
    path.with_suffix(".staged").rename(path)


def with_kind(node: dict[str, object]) -> dict[str, object]:
    return {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", **node}


def test_plan_says_what_an_agent_would_do_and_cleanup_leaves_what_is_foreign(
    cluster: Cluster, mesh: list[Machine]
) -> None:
    n1 = mesh[0]
    kubeconfig = str(cluster.plane.kubeconfig(host=cluster.lab.address))
    plan = [str(NETLOOM), "plan", "--kubeconfig", kubeconfig, "--node-name", "n1", "--run-dir", cluster.run_dir(n1)]
    cleanup = [str(NETLOOM), "cleanup", "--yes", "--run-dir", cluster.run_dir(n1)]
    assert n1.run(*plan) == "nothing to change\n"

    cluster.agents["n1"].terminate()
    cluster.agents["n1"].wait(20)
    foreign = ["route add 10.99.0.0/24 dev eth0 proto 77", "nexthop add id 7 dev eth0"]
    n1.batch(foreign)
    n1.run("nft", "add", "table", "ip", "foreign")
    n1.ip("route", "del", "10.42.2.0/24")
    done = subprocess.run([*n1.enter, *plan], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("ip route add 10.42.2.0/24 proto 158 nhid ")
    assert len(done.stdout.splitlines()) == 1
    assert "10.42.2.0/24" not in state(n1), "a plan writes nothing"

    planned = n1.run(*cleanup, "--dry-run")
    assert "ip route delete 10.42.3.0/24 proto 158   # no peer has it\n" in planned
    assert "sysctl -w net.ipv4.ip_forward=0   # as before\n" in planned
    assert "10.42.3.0/24" in state(n1), "nothing was removed"
    assert n1.run(*cleanup) == planned
    assert "netloom" not in n1.ip("link")
    assert "proto 158" not in n1.ip("route") + n1.ip("-6", "route") + n1.ip("nexthop")
    assert n1.run("nft", "list", "tables") == "table ip foreign\n"
    assert "10.99.0.0/24" in n1.ip("route")
    assert "id 7 dev eth0" in n1.ip("nexthop")
    assert n1.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0", "put back as it was found"
    assert n1.run(*cleanup) == n1.run(*cleanup, "--dry-run") == "nothing to remove\n"


def test_a_rule_that_leads_pods_packets_elsewhere_is_told_until_it_is_gone(
    cluster: Cluster, mesh: list[Machine]
) -> None:
    n1, n2, _ = mesh
    cluster.edit_spec(limits={"raise": True})
    a, b = n1.add_pod("a", "10.42.1.5", mtu=1450), n2.add_pod("b", "10.42.2.5", mtu=1450)
    assert a.ping(b.address).lost == 0
    n1.ip("route", "add", "10.42.2.0/24", "via", cluster.lab.address, "table", "200")
    n1.ip("rule", "add", "pref", "100", "lookup", "200")
    wait_for("the condition", lambda: cluster.condition("n1").get("status") == "False")
    assert a.ping(b.address, wait=0.2).received == 0
    message = cluster.condition("n1")["message"]
    assert message.startswith("ip rule 100 (from all lookup 200) leads packets to 10.42.2.0/24 (of n2) out of eth0, ")
    mending = message.partition("asked before it (")[2].partition(")")[0]
    assert mending == "ip rule add pref 99 to 10.42.2.0/24 lookup main"
    n1.run(*mending.split())
    wait_for("the condition", lambda: cluster.condition("n1").get("status") == "True")
    assert a.ping(b.address).lost == 0
    n1.ip("rule", "delete", "pref", "99")
    n1.ip("rule", "delete", "pref", "100")


def test_status_shows_the_cluster_and_the_agent(cluster: Cluster, mesh: list[Machine]) -> None:
    n1 = mesh[0]
    kubeconfig = str(cluster.plane.kubeconfig(host=cluster.lab.address))
    shown = json.loads(n1.run(str(NETLOOM), "status", "-o", "json", "--kubeconfig", kubeconfig, check=False))
    assert [node["name"] for node in shown["nodes"]] == ["n1", "n2", "n3"]
    assert shown["nodes"][0]["podCIDRs"] == list(cidrs("n1"))
    assert (shown["agent"]["node"], shown["agent"]["peers"], shown["agent"]["inSync"]) == ("n1", 2, True)
    text = n1.run(str(NETLOOM), "status", "--kubeconfig", kubeconfig, check=False)
    assert "10.42.3.0/24" in text
    assert "n1: 2 peers, in sync" in text


SPOOF = """
import socket, sys
source, target, port, packets = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind((source, 0))
    for packet in packets.split(","):
        sock.sendto(bytes.fromhex(packet), (target, int(port)))
"""
RECEIVE = """
import socket, sys
inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
inbox.bind((sys.argv[1], 7777))
print("ready", flush=True)
while (told := inbox.recv(100)) != b"end":
    print(told.decode(), flush=True)
"""


def test_only_nodes_get_packets_into_the_tunnels(cluster: Cluster, mesh: list[Machine]) -> None:
    """A machine of the LAN that is no node sends with any VNI as a pod; and a node as a pod of another."""
    n1, n2, n3 = mesh
    b = n2.add_pod("b", "10.42.2.5", mtu=1450)
    stranger = cluster.lab.add_node("stranger")
    mac = bytes.fromhex(json.loads(n2.ip("-j", "link", "show", TUNNEL))[0]["address"].replace(":", ""))

    def spoof(machine: Machine, pod: str, *said: bytes) -> None:
        packets = [header(VXLAN, vni=1 + i) + inner(pod, b.address, word, mac) for i, word in enumerate(said)]
        words = [machine.address, n2.address, str(VXLAN.number), ",".join(packet.hex() for packet in packets)]
        machine.run(sys.executable, "-SEc", SPOOF, *words)

    def delivered() -> list[str]:
        inbox = b.popen([sys.executable, "-SEc", RECEIVE, b.address], stdout=subprocess.PIPE)
        try:
            assert inbox.stdout
            assert inbox.stdout.readline() == "ready\n"
            spoof(stranger, "10.42.1.5", *[b"stranger"] * 6)
            spoof(n1, "10.42.3.5", *[b"forged"] * 6)
            spoof(n1, n1.address, b"node")
            spoof(n1, "10.42.1.5", b"pod", b"end")
            return inbox.stdout.read().split()
        finally:
            inbox.kill()
            inbox.communicate()

    def counters() -> dict[str, int]:
        listed = json.loads(n2.run("nft", "-j", "list", "counters", "table", "inet", "netloom-tunnels"))["nftables"]
        return {each["counter"]["name"]: each["counter"]["packets"] for each in listed if "counter" in each}

    before = counters()  # a node that joined in an earlier test may have sent before n2 had heard of it
    assert delivered() == ["node", "pod"]
    after = counters()
    assert {name: after[name] - count for name, count in before.items()} == {"strangers": 6, "forged": 6}
    said: dict[str, Any] = {}

    def counted() -> bool:
        said.update(facts(n2)["tunnelSenders"])
        return (said["strangersDropped"], said["forgedDropped"]) == (after["strangers"], after["forged"])

    wait_for("what was dropped is counted", counted, deadline=30)
    assert stranger.address in said["strangers"]
    assert n1.address not in said["strangers"]
    assert said["forgers"] == [n1.address]
    assert len(facts(n2)["warnings"]) == 2
    assert facts(n2)["inSync"]

    cluster.edit(tunnelSenders="any")
    wait_for("anybody to be let in", lambda: "set nodes" not in n2.run("nft", "list", "ruleset"))
    assert delivered() == [*["stranger"] * 6, *["forged"] * 6, "node", "pod"]
    cluster.edit(tunnelSenders="nodes")
    wait_for("nodes alone to be let in", lambda: "set nodes" in n2.run("nft", "list", "ruleset"))
    assert delivered() == ["node", "pod"]
    cluster.lab.remove_node("stranger")
    assert n3.ip("route", "show", "10.42.2.0/24")


def test_a_node_on_two_networks_says_from_where_it_sends(cluster: Cluster, mesh: list[Machine]) -> None:
    """Its outer packets have the address that its own routes choose, which its Node need not report."""
    n1, n2, _ = mesh
    a, b = n1.add_pod("a", "10.42.1.5", mtu=1450), n2.add_pod("b", "10.42.2.5", mtu=1450)
    other = "172.31.77.1"
    n1.ip("address", "add", f"{other}/24", "dev", "eth0")
    try:
        spec = lambda: cluster.plane.client.request("GET", f"{NODES}/n1")["spec"]  # noqa: E731
        wait_for("the address to be told", lambda: spec().get("sourceAddresses") == [other])
        wait_for("n2 to hear it", lambda: f"{other} . 10.42.1.0" in n2.run("nft", "list", "ruleset"))
        n1.ip("route", "add", n2.address, "dev", "eth0", "src", other)
        assert a.ping(b.address, count=5, interval=0.01, wait=2).received == 5
        sent_from = n2.run("nft", "list", "set", "inet", "netloom-tunnels", "strangers4")
        assert other not in sent_from
    finally:
        n1.ip("address", "delete", f"{other}/24", "dev", "eth0")
