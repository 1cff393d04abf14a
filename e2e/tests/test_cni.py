"""Pods that a container runtime adds: the real plugin, real agents, a real API server, two nodes, both families."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netloom_e2e import cni_plugin
from netloom_e2e.agents import running_agents
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.cni_nodes import Node
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.lab import NETNS, wait_for
from netloom_e2e.machines import parse_ping
from netloom_e2e.mesh import NETLOOM, facts, state
from netloom_e2e.pod_traces import traces
from netloom_e2e.sandboxes import CniFailure, Runtime, Sandbox

HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP headers."""
MTU = 1450
ROUNDS, GROWTH = 5, 3.0
"""How often as many pods as a kubelet takes come and go, and MiB that the agent's memory may grow by from the first
time to the last: it grows by 0.3 to 1, and by 4.3 more for 10 KiB that each pod leaves. From the third time on there
are more than the node has addresses, if it is quick: who comes waits for some that rest."""


@pytest.fixture(scope="module")
def nodes(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    plane, program = crds_installed, cni_plugin.built()
    with running_agents(plane, "nlcni", tmp_path_factory.mktemp("agents")) as agents:
        try:
            made = [Node(agents, name, program) for name in ("n1", "n2")]
            for node in made:
                node.start()
            agents.in_sync(*(node.machine for node in made), peers=1)
            for node in made:
                node.ready()
            yield made
        finally:
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@pytest.fixture
def pair(nodes: list[Node]) -> Iterator[list[Node]]:
    """Without pods, and so again afterwards."""
    try:
        yield nodes
    finally:
        for node in nodes:
            node.clear()


@pytest.fixture
def node(pair: list[Node]) -> Node:
    return pair[0]


def reach(near: Sandbox, far: Sandbox) -> None:
    """By both families, at the full MTU, and not a byte more."""
    for version, headers in HEADERS.items():
        to = far.pod.of(version)
        assert near.pod.ping(to, count=2, payload=MTU - headers).lost == 0, (near.name, to)
        if near is not far:
            assert near.pod.ping(to, count=1, payload=MTU - headers + 1, wait=0.2).received == 0, (near.name, to)


def test_pods_reach_each_other_on_a_node_and_across(pair: list[Node]) -> None:
    n1, n2 = pair
    a, b, c = n1.runtime.run("a"), n1.runtime.run("b"), n2.runtime.run("c")
    assert a.addresses[0].startswith("10.42.1.")
    assert a.addresses[1].startswith("fd00:42:0:1:")
    for near in (a, b, c):
        for far in (a, b, c):
            reach(near, far)
    for sandbox, runtime in ((a, n1.runtime), (b, n1.runtime), (c, n2.runtime)):
        runtime.check(sandbox)
    assert a.place.ip("-o", "-4", "address", "show", "eth0").split()[3] == f"{a.addresses[0]}/32"
    assert f" mtu {MTU} " in a.place.ip("link", "show", "eth0")
    assert facts(n1.machine)["endpoints"]["pods"] == 2


def test_the_node_and_its_pods_reach_each_other(node: Node) -> None:
    a = node.runtime.run("a")
    for version in HEADERS:
        node.machine.run("ping", "-n", "-q", "-c1", "-W2", a.pod.of(version))
    assert a.pod.ping(node.machine.address).lost == 0


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_of_the_cni(node: Node, version: str) -> None:
    runtime = Runtime(node.machine, node.runtime.plugin, version, node.runtime.sandboxes)
    a = runtime.run("a")
    assert a.result["cniVersion"] == version
    assert all(("version" in each) is (version < "1.0.0") for each in a.result["ips"])
    if version >= "0.4.0":
        runtime.check(a)
    runtime.end(a)
    assert not node.addresses.held()


def test_what_is_deleted_is_gone_and_may_be_deleted_again(node: Node) -> None:
    a, b = node.runtime.run("a"), node.runtime.run("b")
    before = node.addresses.held()
    node.runtime.delete(a)
    assert a.place.ip("link", "show", "eth0", check=False) == ""
    assert set(before) - set(node.addresses.held()) == {("default/a", "id-a")}
    node.runtime.delete(a)
    node.runtime.take_away(a)
    node.runtime.delete(a)  # its namespace is gone by now
    reach(b, b)
    assert set(node.addresses.held()) == {("default/b", "id-b")}


def test_an_old_deletion_takes_nothing_from_a_successor(node: Node) -> None:
    """A StatefulSet's pod: the same name, another sandbox."""
    old = node.runtime.run("web-0", "old")
    node.runtime.delete(old)
    node.runtime.take_away(old)
    new = node.runtime.run("web-0", "new")
    held = node.addresses.held()
    node.runtime.delete(old)
    assert node.addresses.held() == held
    node.runtime.check(new)


def test_a_container_that_is_there_already(node: Node) -> None:
    a = node.runtime.run("a")
    with pytest.raises(CniFailure, match="already") as caught:
        node.runtime.ask("ADD", a)
    assert caught.value.code == 101
    node.runtime.check(a)


def test_an_interface_of_somebody_else_in_the_pod(node: Node) -> None:
    a = node.runtime.make("a")
    a.place.ip("link", "add", "eth0", "type", "bridge")
    with pytest.raises(CniFailure, match="eth0") as caught:
        node.runtime.add(a)
    assert caught.value.code == 101
    assert not node.addresses.held()
    a.place.ip("link", "delete", "eth0")
    node.runtime.add(a)


def test_ipv6_that_is_off_in_the_pod_is_switched_on(node: Node) -> None:
    """As some runtimes make their sandboxes."""
    a = node.runtime.make("a")
    a.place.sysctl(ipv6__conf__all__disable_ipv6=1, ipv6__conf__default__disable_ipv6=1)
    node.runtime.add(a)
    reach(a, a)


def test_check_finds_what_somebody_changed_in_the_pod(node: Node) -> None:
    a = node.runtime.run("a")
    a.place.ip("route", "delete", "default")
    with pytest.raises(CniFailure) as caught:
        node.runtime.check(a)
    assert caught.value.code == 103
    assert "default" in caught.value.said


def test_the_hosts_side_is_repaired(pair: list[Node]) -> None:
    n1, n2 = pair
    a, c = n1.runtime.run("a"), n2.runtime.run("c")
    (device,) = n1.devices()
    before = n1.pod_state()
    for deed in (
        f"route delete {a.addresses[0]}/32",
        f"-6 route delete {a.addresses[1]}/128",
        f"link set {device} down",
        f"link set {device} mtu 1280",
        f"neigh delete {a.addresses[0]} dev {device}",
    ):
        n1.machine.ip(*deed.split(), check=False)
        wait_for(f"`{deed}` to be undone", lambda: n1.pod_state() == before)
    reach(c, a)


def test_a_restart_loses_no_packet_and_writes_nothing(pair: list[Node]) -> None:
    n1, n2 = pair
    a, c = n1.runtime.run("a"), n2.runtime.run("c")
    before = n1.pod_state(), state(n1.machine), n1.addresses.held()
    commands = [a.pod.ping_command(c.addresses[0], count=400, interval=0.01)]
    commands.append(a.pod.ping_command(c.addresses[1], count=400, interval=0.01))
    flows = [subprocess.Popen([*a.place.enter, *each], stdout=subprocess.PIPE, text=True) for each in commands]
    n1.restart()
    n1.agents.end("n1")
    n1.start()
    n1.ready()
    for flow in flows:
        output, _ = flow.communicate(timeout=60)
        assert parse_ping(output).lost == 0
    assert (n1.pod_state(), state(n1.machine), n1.addresses.held()) == before
    said = facts(n1.machine)
    assert said["endpoints"]["pods"] == 1
    assert said["written"] == {}, "nothing was different"
    n1.runtime.check(a)
    n1.runtime.end(a)
    assert n1.is_empty() or wait_for("a to be gone", n1.is_empty)


def test_while_no_agent_runs_an_add_fails_and_a_deletion_is_kept(node: Node) -> None:
    a, b, late = node.runtime.run("a"), node.runtime.run("b"), node.runtime.make("late")
    node.kill()
    with pytest.raises(CniFailure) as caught:
        node.runtime.add(late)
    assert caught.value.code == 11
    with pytest.raises(CniFailure) as caught:
        node.runtime.status()
    assert caught.value.code == 50
    reach(a, b)
    node.runtime.delete(a)
    node.runtime.take_away(a)
    assert len(list((node.folder / "deletions").iterdir())) == 1
    (node.folder / "deletions" / "broken").write_bytes(b"nonsense")
    node.start()
    node.ready()
    node.runtime.add(late)
    assert set(node.addresses.held()) == {("default/b", "id-b"), ("default/late", "id-late")}
    assert [each.name for each in (node.folder / "deletions").iterdir()] == ["refused"]
    said = facts(node.machine)
    assert said["endpoints"]["deletions"] == {"madeUpFor": 1, "refused": 1}
    assert "what should be the deletion of a pod cannot be read" in str(said["errors"])
    (node.folder / "deletions" / "refused" / "broken").unlink()
    node.restart()


def test_a_deletion_that_appears_is_made_up_for_at_once(node: Node) -> None:
    """The plugin lost patience with a slow agent."""
    a = node.runtime.run("a")
    with node.agents.held("n1"):
        plugin = Plugin(node.program, node.folder / "nobody.sock", node.folder / "deletions")
        Runtime(node.machine, plugin).delete(a)
        assert node.devices()
    wait_for("the deletion to be made", node.is_empty)
    node.runtime.take_away(a)


def waits_inside(call: subprocess.Popen[bytes], sandbox: Sandbox) -> bool:
    """Whether a plugin has entered the pod's namespace, sent its request, and sleeps until the answer comes."""
    process = Path(f"/proc/{call.pid}")
    there = (NETNS / sandbox.place.name).stat().st_ino
    asleep = (process / "stat").read_text().rpartition(")")[2].split()[0] == "S"
    return asleep and (process / "ns/net").stat().st_ino == there


def test_who_hangs_up_in_the_middle_leaves_nothing(node: Node) -> None:
    a = node.runtime.make("a")
    for _ in range(3):
        with node.agents.held("n1"):
            call = node.runtime.begin("ADD", a)
            wait_for("the call to be there", lambda call=call: waits_inside(call, a))  # type: ignore[misc]
            call.kill()
            call.communicate()
        node.runtime.status()
    wait_for("nothing to be left", node.is_empty)
    assert a.place.ip("link", "show", "eth0", check=False) == ""
    node.runtime.add(a)
    node.runtime.check(a)


def test_garbage_is_collected_and_nothing_else(node: Node) -> None:
    a, b, lost = node.runtime.run("a"), node.runtime.run("b"), node.runtime.run("lost")
    node.runtime.take_away(lost)
    node.runtime.collect([{"containerID": "id-a", "ifname": "eth0"}, {"containerID": "id-b"}])
    assert set(node.addresses.held()) == {("default/a", "id-a"), ("default/b", "id-b")}
    reach(a, b)
    node.runtime.collect([])
    wait_for("nothing to be left", node.is_empty)


def test_pods_that_come_and_go_together_leave_nothing(node: Node) -> None:
    """As many as a kubelet takes, as when a node is filled. `make soak-pods` has a kubelet do it, again and again."""
    agent = node.agents.agents["n1"].pid
    sandboxes = [node.runtime.make(f"p{number}") for number in range(110)]
    folders = [node.folder]
    before = counted = traces(node.machine, agent, node.addresses, folders)
    memory = []
    for _ in range(ROUNDS):
        for command in ("ADD", "DEL"):
            calls = [node.runtime.begin(command, each) for each in sandboxes]
            for each in calls:
                output, _ = each.communicate(timeout=120)
                assert each.returncode == 0, output
            if command == "ADD":
                assert len(node.devices()) == len(sandboxes)
        with contextlib.suppress(TimeoutError):  # what is left is told below
            wait_for(
                "nothing to be left", lambda: not traces(node.machine, agent, node.addresses, folders).left(before)
            )
        counted = traces(node.machine, agent, node.addresses, folders)
        assert counted.left(before) == []
        memory.append(counted.memory)
    assert memory[-1] - memory[0] < GROWTH, f"MiB after each round: {memory}, before: {before.memory}"


def test_what_is_on_the_host_is_kept_and_taken_away_only_on_demand(node: Node) -> None:
    binary, conflist = node.host / "bin/netloom-cni", node.host / "conf/00-netloom.conflist"
    (node.host / "conf/10-other.conf").write_text("{}")
    installed = conflist.read_text()
    assert binary.read_bytes() == node.program.read_bytes()
    conflist.write_text(installed.replace("netloom-cni", "bridge"))
    wait_for("the configuration to be put back", lambda: conflist.read_text() == installed)
    binary.unlink()
    wait_for("the plugin to be put back", lambda: binary.exists() and binary.read_bytes() == node.program.read_bytes())
    metrics = node.machine.run("curl", "-s", "127.0.0.1:9964/metrics")
    assert 'netloom_cni_file_repairs_total{file="netloom-cni"} 1.0' in metrics
    assert 'netloom_cni_file_repairs_total{file="00-netloom.conflist"} 1.0' in metrics
    a = node.runtime.run("a")
    node.agents.end("n1")
    assert conflist.exists(), "an agent that ends is about to be started again"
    assert a.pod.ping(a.addresses[0]).lost == 0
    words = ["cleanup", "--run-dir", str(node.folder), "--cni-bin-dir", str(node.host / "bin")]
    words += ["--cni-conf-dir", str(node.host / "conf"), "--cni-deletions", str(node.folder / "deletions")]
    planned = node.machine.run(str(NETLOOM), *words, "--dry-run")
    assert planned.index(str(conflist)) < planned.index(str(binary)), planned
    assert conflist.exists()
    node.machine.run(str(NETLOOM), *words, "--yes")
    assert sorted(each.name for each in node.host.rglob("*") if each.is_file()) == ["10-other.conf"]
    assert node.devices() == []
    (node.host / "conf/10-other.conf").unlink()
    node.start()
    node.ready()
    wait_for("both to be there again", lambda: binary.exists() and conflist.exists())
    node.agents.in_sync(node.machine, peers=1)


def test_the_taint_goes_once_the_node_can_route(node: Node) -> None:
    client = node.agents.plane.client
    taints = [{"key": "node.netloom.dev/not-ready", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"taints": taints}}
    client.request("POST", "/api/v1/nodes", body)
    try:
        node.restart()

        def left() -> set[str]:
            """The API server puts one on as well, until a kubelet says that it is ready."""
            return {each["key"] for each in client.request("GET", "/api/v1/nodes/n1")["spec"].get("taints", ())}

        wait_for("the taint to go", lambda: "node.netloom.dev/not-ready" not in left(), deadline=30)
        assert "mine" in left()
        # Another write of the agent's, which may come after it.
        wait_for("PodsWired", lambda: node.agents.condition("n1", "PodsWired").get("status") == "True", deadline=30)
    finally:
        client.request("DELETE", "/api/v1/nodes/n1")


def test_a_node_that_is_unknown_gives_nothing(node: Node) -> None:
    """A machine that was set up anew, with an old name or another one."""
    node.kill()
    flags = ["--cni-socket", str(node.folder / "cni.sock"), "--cni-deletions", str(node.folder / "deletions")]
    node.agents.start(node.machine, flags=flags, node="n9")
    a = node.runtime.make("a")
    wait_for("it to listen", lambda: node.runtime.call("STATUS").code == 50 and (node.folder / "cni.sock").exists())
    with pytest.raises(CniFailure) as caught:
        node.runtime.add(a)
    assert caught.value.code == 11
    node.runtime.delete(a)
    node.kill()
    node.start()
    node.ready()
    node.runtime.add(a)
