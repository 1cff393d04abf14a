"""The node's allocator as pods meet it: a real agent and API server, cluster-pool with both families."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom.ipam.address_records import Header, read, whole
from netloom_e2e import bench
from netloom_e2e.addresses import ADDRESSES, AddressSocket
from netloom_e2e.agents import NODES, Agents, running_agents
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Machine, wait_for
from netloom_e2e.mesh import NETLOOM, facts

BENCH = Path(__file__).parents[1] / "bench/ipam.py"
PODS = "/api/v1/namespaces/default/pods"
RESTORED = "AddressesRestored"


class Node:
    """n1, its agent and its socket. Its pods have 10.42.1.0/24 and fd00:42:0:1::/64."""

    def __init__(self, agents: Agents) -> None:
        self.agents = agents
        self.machine: Machine = agents.join("n1")
        self.folder = Path(agents.run_dir(self.machine))
        self.socket = AddressSocket(self.folder / "agent.sock")
        self.checkpoint = self.folder / "addresses.checkpoint"
        self.ready()

    def ready(self) -> None:
        def gives() -> bool:
            try:
                return self.socket.ask("GET", "/v1/status")[0] == 204
            except OSError:
                return False

        wait_for("n1 to give addresses", gives, deadline=30)

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        agent = self.agents.agents["n1"]
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)

    def start(self, *flags: str) -> None:
        self.agents.start(self.machine, flags=flags)

    def restart(self) -> None:
        self.kill()
        self.start()
        self.ready()

    def netloom(self, *words: str) -> str:
        command = [NETLOOM, "ip", *words, "--socket", self.socket.path]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    def run_in_api(self, name: str, *addresses: str) -> None:
        """A pod of n1 that the API server knows to run with these addresses."""
        client, pod = self.agents.plane.client, {"metadata": {"name": name}, "apiVersion": "v1", "kind": "Pod"}
        spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}
        client.request("POST", PODS, {**pod, "spec": spec})
        status = {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]}
        client.request("PATCH", f"{PODS}/{name}/status", {"status": status})


@pytest.fixture(scope="module")
def node(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    plane = crds_installed
    with running_agents(plane, "nlip", tmp_path_factory.mktemp("agents")) as agents:
        try:
            yield Node(agents)
        finally:
            plane.kubectl("delete", "pods", "--all", "--grace-period=0", "--force", "--namespace=default")
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


def test_what_an_agent_gave_it_knows_after_it_was_killed(node: Node) -> None:
    shown = node.netloom("allocate", "default/web", "--container", "c1").split()
    given = {f"default/{name}": node.socket.allocate(f"default/{name}", "c") for name in "abc"}
    assert shown == ["10.42.1.2", "fd00:42:0:1::2"], "the first two are the node's and a bridge's"
    assert len({address for addresses in given.values() for address in addresses} | set(shown)) == 8
    node.socket.release("default/c", "c")
    before = node.checkpoint.read_bytes()

    node.restart()
    assert node.checkpoint.read_bytes() == before, "a restart writes nothing"
    assert node.socket.allocate("default/web", "c1") == tuple(shown)
    assert node.socket.allocate("default/a", "c") == given["default/a"]
    assert ("default/c", "c") not in node.socket.held()
    assert "default/web" in node.netloom("list")
    assert facts(node.machine)["inSync"]


def test_a_repeated_release_takes_nothing_from_a_living_pod(node: Node) -> None:
    """A kubelet repeats a DEL until it succeeds, with the result of a life ago, and the address is another pod's by
    then: here at once, as the checkpoint is cut, which loses that it rests."""
    first = node.socket.allocate("default/old", "x1")
    assert node.socket.release("default/old", "x1", *first) == first
    node.kill()
    lines = node.checkpoint.read_bytes().splitlines(keepends=True)
    node.checkpoint.write_bytes(b"".join(lines[:1]))
    node.start()
    node.ready()
    living = node.socket.allocate("default/new", "x2")
    while not set(living) & set(first):
        living = node.socket.allocate(f"default/new{len(node.socket.held())}", "x2")
    held = node.socket.held()
    assert node.socket.release("default/old", "x1", *first) == ()
    assert node.socket.release("default/old", "x2", *first) == ()
    assert node.socket.held() == held


def test_living_pods_keep_their_addresses_whatever_becomes_of_the_checkpoint(node: Node) -> None:
    routed, known = node.socket.allocate("default/routed", "r1"), node.socket.allocate("default/known", "k1")
    node.machine.add_pod("r", *routed, mtu=1450)
    node.run_in_api("known", *known)
    kept = node.checkpoint.read_bytes()
    mine = read(kept)
    assert mine.header
    other, _ = whole(Header("n2", mine.header.boot, mine.header.file), mine.records)
    for where, data in {"header": kept[:30], "record": kept[: len(kept) // 2], "other": other}.items():
        node.kill()
        node.checkpoint.write_bytes(data)
        node.start()
        node.ready()
        got = [address for n in range(20) for address in node.socket.allocate(f"{where}/{n}", "z")]
        assert len(set(got)) == 40, where
        assert not set(got) & {*routed, *known}, where
        held = {address for addresses in node.socket.held().values() for address in addresses}
        assert {*routed, *known} <= held, where
        said = facts(node.machine)
        assert said["addresses"]["checkpointLost"], (where, said)  # type: ignore[index]
        for n in range(20):
            node.socket.release(f"{where}/{n}", "z")
    reason = "is that of node n2"
    wait_for("a condition", lambda: reason in node.agents.condition("n1", RESTORED).get("message", ""), deadline=20)
    assert facts(node.machine)["inSync"], "pods get addresses"
    metrics = node.machine.run("curl", "-s", "127.0.0.1:9964/metrics")
    assert 'netloom_address_checkpoint{found="node"} 1.0' in metrics
    node.restart()
    wait_for("it to be well", lambda: node.agents.condition("n1", RESTORED)["status"] == "True", deadline=20)


def test_nobody_but_root_is_answered(node: Node) -> None:
    """Also where the mode of the socket means nothing."""
    path = node.socket.path
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    curl = ["curl", "-sS", "--unix-socket", path.name, "http://agent/v1/addresses"]
    command = ["setpriv", "--reuid=65534", "--clear-groups", *curl]
    nobody = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False, timeout=30)
    path.chmod(0o600)
    assert json.loads(nobody.stdout)["reason"] == "NotRoot", nobody.stderr
    assert node.socket.ask("POST", ADDRESSES, {"name": ""})[1]["reason"] == "BadRequest"
    assert node.socket.ask("PUT", ADDRESSES)[0] == 404


def test_what_cannot_be_written_down_is_not_given_and_all_else_goes_on(node: Node, tmp_path: Path) -> None:
    node.kill()
    (tmp_path / "file").write_text("")
    node.start("--state-dir", str(tmp_path / "file" / "state"))
    said: dict[str, object] = {}

    def told() -> bool:
        said.update(facts(node.machine))
        return bool(said.get("errors"))

    wait_for("the agent to say it", told, deadline=30)
    assert "cannot be written: Not a directory. No pod of this node gets an address meanwhile" in str(said["errors"])
    status, answer = node.socket.ask("POST", ADDRESSES, {"name": "default/late"})
    assert (status, answer["reason"]) == (503, "CheckpointUnwritable")
    node.machine.ip("link", "show", "netloom_vxlan")
    node.agents.plane.client.request("PATCH", f"{NODES}/n1", {"metadata": {"labels": {"a": "b"}}})
    node.restart()
    assert node.socket.allocate("default/late")


def test_the_bench_counts() -> None:
    """It fails by itself where an answer is wrong."""
    result = bench.result_of(BENCH, "--rounds=1", "--no-peer", "--nodes=0", "--growth=10", "--growth-seconds=2")
    assert result["socket"]["in_flight"] == 4
    assert {"per_s", "p50_ms", "p99_ms"} <= result["socket"].keys()
    assert result["socket"]["cpu_ms"] > 0
    assert result["growth_10"]["growths"] > 10
    assert result["growth"] == result["growth_10"]
    assert 1 <= result["growth_10"]["requests"] <= 1.1
