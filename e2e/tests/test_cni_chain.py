"""Other plugins behind ours and ahead of it, as the CNI's own library calls them, which container runtimes use."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netloom_e2e import binaries, cni_plugin
from netloom_e2e.agents import running_agents
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.cni_nodes import Node
from netloom_e2e.lab import NETNS, wait_for
from netloom_e2e.mesh import facts
from netloom_e2e.sandboxes import Sandbox
from netloom_reconcilers.node.endpoints.install import conflist

HOST_PORT, MAC = 8088, "02:00:00:00:00:09"
ASKED = {
    "portMappings": [{"hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 80_000_000, "ingressBurst": 800_000, "egressRate": 40_000_000, "egressBurst": 400_000},
    "mac": MAC,
}
SERVER = """
import socket
with socket.create_server(("0.0.0.0", 80)) as server:
    print("there", flush=True)
    while True:
        server.accept()[0].sendall(b"hello")
"""
CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(5).decode())"
BRIDGE = {"type": "bridge", "bridge": "first0", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}


class Chain:
    """A list of plugins, called by cnitool on a node. What the library keeps of results is kept in a folder."""

    def __init__(self, node: Node, sandbox: Sandbox, folder: Path) -> None:
        self.node, self.sandbox = node, sandbox
        self._folder = folder
        self._kept = folder / "var"
        self._kept.mkdir()

    def configure(self, said: bytes | list[Mapping[str, Any]]) -> None:
        """By a file as the agent writes it, or by these plugins."""
        file = (
            said
            if isinstance(said, bytes)
            else json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": said}).encode()
        )
        (self._folder / "05.conflist").write_bytes(file)
        self._name = json.loads(file)["name"]

    def __call__(self, command: str, **asked: Any) -> "subprocess.CompletedProcess[str]":
        plugin, machine = self.node.runtime.plugin, self.node.machine
        folders = f"{plugin.program.parent}:{binaries.cni_plugins()}"
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={self.sandbox.name};K8S_POD_UID=u1"
        environment = plugin.environment({"PATH": folders, "ARGS": args})
        environment |= {"NETCONFPATH": str(self._folder), "CAP_ARGS": json.dumps(asked)}
        private = ("unshare", "--mount", "sh", "-ec", f'mount --bind {self._kept} /var/lib; exec "$0" "$@"')
        words = [str(binaries.cnitool()), command, self._name, str(NETNS / self.sandbox.place.name)]
        return subprocess.run(
            [*machine.enter, *private, *words], capture_output=True, text=True, env=environment, timeout=60
        )

    def done(self, command: str, **asked: Any) -> dict[str, Any]:
        """What it prints."""
        done = self(command, **asked)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout or "{}")
        return found


@pytest.fixture(scope="module")
def node(crds_installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    plane, program = crds_installed, cni_plugin.built()
    binaries.cni_plugins(), binaries.cnitool()  # before a namespace is entered: they may have to be built
    with running_agents(plane, "nlchn", tmp_path_factory.mktemp("agents")) as agents:
        try:
            made = Node(agents, "n1", program)
            made.start()
            made.ready()
            yield made
        finally:
            plane.delete_all("netloomnodes.v1alpha1.netloom.dev", "netloomnetworks.v1alpha1.netloom.dev")


@pytest.fixture
def chain(node: Node, tmp_path: Path) -> Iterator[Chain]:
    sandbox = node.runtime.make("web")
    try:
        yield Chain(node, sandbox, tmp_path)
    finally:
        node.runtime.take_away(sandbox)
        wait_for("nothing to be left", node.is_empty)


@contextmanager
def listening(sandbox: Sandbox) -> Iterator[None]:
    """A server in the pod, meanwhile."""
    server = subprocess.Popen([*sandbox.place.enter, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "there\n"
        yield
    finally:
        server.kill()
        server.communicate()


def shapers(node: Node) -> list[str]:
    """What `bandwidth` sets up: queues, and devices for what pods send."""
    queues = node.machine.run("tc", "qdisc", "show").splitlines()
    return [line for line in queues if " tbf " in line]


def mappings(node: Node) -> list[str]:
    rules = node.machine.run("iptables", "-t", "nat", "-S").splitlines()
    return [rule for rule in rules if "-j DNAT" in rule]


def test_what_runs_behind_ours_does_its_work_on_its_interface_and_goes_with_it(chain: Chain) -> None:
    node, client = chain.node, chain.node.machine
    chain.configure(conflist(("portmap", "bandwidth", "loopback"), "1.0.0"))
    said = chain.done("add", **ASKED)
    eth0 = next(each for each in said["interfaces"] if each["name"] == "eth0")
    assert (eth0["mac"], eth0["sandbox"]) == (MAC, str(NETNS / chain.sandbox.place.name))
    address = said["ips"][0]["address"].partition("/")[0]
    assert [owner[0] for owner in node.addresses.held()] == ["default/web"]
    assert MAC in chain.sandbox.place.ip("link", "show", "eth0")
    assert len(shapers(node)) == 2
    assert [f"{address}:80" in rule for rule in mappings(node)] == [True]
    chain.done("check", **ASKED)
    with listening(chain.sandbox):
        for port, to in ((80, address), (HOST_PORT, client.address)):
            assert client.run(sys.executable, "-c", CLIENT, to, str(port)) == "hello\n"
        before = node.pod_state(), shapers(node)
        node.restart()
        assert (node.pod_state(), shapers(node)) == before
        assert facts(client)["written"] == {}, "nothing of others' is drift"
        chain.done("check", **ASKED)
        assert client.run(sys.executable, "-c", CLIENT, client.address, str(HOST_PORT)) == "hello\n"
    chain.done("del", **ASKED)
    assert (shapers(node), mappings(node), node.addresses.held()) == ([], [], {})
    chain.done("del", **ASKED)


def test_an_interface_that_another_plugin_made_before_is_kept_in_the_result(chain: Chain) -> None:
    chain.configure([{"type": "loopback"}, {"type": cni_plugin.NAME}, {"type": "portmap", "snat": True}])
    said = chain.done("add")
    assert {each["name"] for each in said["interfaces"] if each.get("sandbox")} == {"lo", "eth0"}
    assert all(said["interfaces"][each["interface"]]["name"] in ("lo", "eth0") for each in said["ips"])
    assert "127.0.0.1/8" in chain.sandbox.place.ip("address", "show", "lo")
    chain.done("check")
    chain.done("del")
    assert chain.node.addresses.held() == {}


def test_behind_a_plugin_that_makes_the_pods_network_it_makes_nothing(chain: Chain) -> None:
    chain.configure([BRIDGE, {"type": cni_plugin.NAME}])
    try:
        done = chain("add")
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "a plugin ahead of this one makes the container's network. Put this one first, or take it out." in said
        assert chain.node.addresses.held() == {}
        assert chain.node.devices() == []
        chain.done("del")
        assert chain.sandbox.place.ip("link", "show", "eth0", check=False) == ""
    finally:
        chain.node.machine.ip("link", "delete", "first0", check=False)


def test_who_wants_an_address_of_its_own_is_refused_and_nothing_runs_behind(chain: Chain) -> None:
    ours = {"type": cni_plugin.NAME, "capabilities": {"ips": True}}
    chain.configure([ours, {"type": "portmap", "capabilities": {"portMappings": True}}])
    done = chain("add", ips=["10.42.1.9/24"], portMappings=ASKED["portMappings"])
    assert done.returncode == 1
    assert "ips is 10.42.1.9/24: nobody can choose an address" in done.stdout + done.stderr
    assert (mappings(chain.node), chain.node.addresses.held()) == ([], {})
    chain.done("del")
