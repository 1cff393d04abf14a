"""The demo's main part: a cluster from `kubectl apply` on, with an operator and agents that run as processes."""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from netloom_e2e import crds
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import Lab, Machine, Namespace, Pod, parse_ping, wait_for
from netloom_e2e.mesh import NETLOOM, TUNNEL, facts, routes, state, tunnel_mtu
from netloom_e2e.report import Report

ROOT = Path(__file__).resolve().parents[2]
ICMP_HEADERS = 28
"""Bytes of IPv4 and ICMP header around a ping's payload."""

NETWORK = """\
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata: {name: default}
spec:
  ipam:
    mode: cluster-pool
    clusterPool: {ipv4PodCIDRList: [10.42.0.0/16], ipv4MaskSize: 24}
  routing: {mode: tunnel, tunnelProtocol: vxlan}
"""


@dataclass(frozen=True)
class Measured:
    """A repair, as the kernel's own event stream timed it."""

    milliseconds: float
    events: int


class Demo:
    """The cluster of the demo and its story."""

    def __init__(self, lab: Lab, plane: ControlPlane, state: Path, report: Report) -> None:
        self.lab = lab
        self.plane = plane
        self.state = state
        self.report = report
        self.processes: dict[str, subprocess.Popen[str]] = {}

    # The actors.

    def start_operator(self) -> None:
        """The operator runs beside the control plane."""
        identity = f"{self.lab.prefix}-operator"
        arguments = ["operator", "--identity", identity, "--kubeconfig", self.kubeconfig("netloom-operator")]
        self._start("operator", self.lab.switch, arguments)

    def start_agent(self, machine: Machine) -> None:
        """The agent of a node runs in the node's namespace."""
        arguments = ["agent", "--kubeconfig", self.kubeconfig("netloom-agent"), "--node-name", machine.node]
        self._start(machine.node, machine, [*arguments, "--run-dir", str(self.state / machine.node)])

    def _start(self, name: str, place: Namespace, arguments: list[str]) -> None:
        with (self.state / f"{name}.log").open("a") as log:
            self.processes[name] = place.popen([str(NETLOOM), *arguments], stdout=log)

    def kubeconfig(self, user: str) -> str:
        """Credentials of a user: `admin`, or one of those that docs/examples/rbac.yaml binds."""
        return str(self.plane.kubeconfig(user))

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The real kubectl, as the cluster's administrator."""
        return self.plane.kubectl(*arguments, input=stdin, check=check)

    def create_nodes(self, *machines: Machine) -> None:
        """What a kubelet does when it registers: a Node, and its address in the status."""
        nodes = [
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": m.node}, "status": _node_status(m.address)}
            for m in machines
        ]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes})
        self.kubectl("create", "-f", "-", stdin=text)

    def pod_cidr(self, node: str) -> str:
        """The first pod CIDR of a node, "" while it has none."""
        try:
            found = self.plane.client.request("GET", f"/apis/netloom.dev/v1alpha1/netloomnodes/{node}")
        except ApiFailure:
            return ""
        return str(next(iter(found["spec"]["ipam"].get("podCIDRs", ())), ""))

    def add_pod(self, machine: Machine, name: str = "pod") -> Pod:
        """A pod with the sixth address of its node's CIDR and the MTU of the tunnel."""
        mtu = tunnel_mtu(machine)
        cidr = self.pod_cidr(machine.node)
        address = cidr.split("/")[0].rsplit(".", 1)[0] + ".5"
        return machine.add_pod(name, address, mtu=mtu)

    # The story.

    def tell(self) -> None:
        """All steps, in order."""
        pods = self.mesh()
        self.join(pods)
        self.drift(pods)
        self.restart(pods)
        self.mode_lock()

    def mesh(self) -> dict[str, Pod]:
        """Three nodes from nothing to pods that ping each other."""
        self.report.head("2  kubectl apply: CRDs, a network, three nodes")
        self.report.saw("etcd and kube-apiserver are ready", f"after {self.plane.start_seconds:.1f} s", True)
        crds.install(self.plane)
        self.kubectl("apply", "-f", str(ROOT / "docs/examples/rbac.yaml"))
        self.start_operator()
        self.kubectl("apply", "-f", "-", stdin=NETWORK)
        machines = [self.lab.add_node(f"n{i}") for i in (1, 2, 3)]
        self.create_nodes(*machines)
        for machine in machines:
            self.start_agent(machine)
        took = wait_for("a CIDR for every node", lambda: all(self.pod_cidr(m.node) for m in machines), deadline=15)
        cidrs = {m.node: self.pod_cidr(m.node) for m in machines}
        saw = "  ".join(f"{node} {cidr}" for node, cidr in cidrs.items())
        self.report.saw("every node holds a CIDR of its own", saw, len(set(cidrs.values())) == 3 and took < 15)
        pods = {m.node: self.add_pod(m) for m in machines}
        for machine in machines:
            wait_for(f"routes on {machine.node}", lambda m=machine: len(routes(m)) == len(machines) - 1, deadline=15)  # type: ignore[misc]

        self.report.head("3  Pods ping each other through the tunnels")
        self.report.ping_all(pods, "small packets, all pairs", payload=56)
        mtu = 1450
        self.report.ping_all(pods, f"packets of the pods' MTU ({mtu} bytes), DF set", payload=mtu - ICMP_HEADERS)
        return pods

    def join(self, pods: dict[str, Pod]) -> None:
        """A fourth node appears and is pinged."""
        self.report.head("4  A fourth node joins; nobody does anything on the others")
        machine = self.lab.add_node("n4")
        start = time.monotonic()
        self.start_agent(machine)
        wait_for("the agent of n4 to run", lambda: facts(machine))
        took = time.monotonic() - start
        self.report.saw("the agent of n4 started, and waits for its Node", f"{took * 1000:.0f} ms", True)
        start = time.monotonic()
        self.create_nodes(machine)
        pod = pods["n4"] = self.add_pod(machine)
        source = pods["n1"]
        # How long it takes is for people to read: a machine that just compiled for minutes may be slow.
        while not (answered := source.ping(pod.address, wait=0.05).received) and time.monotonic() - start < 10:
            pass
        took = time.monotonic() - start
        step = "kubectl create node -> a pod on n1 pings a pod on n4"
        self.report.saw(step, f"{took * 1000:.0f} ms", answered > 0)
        self.report.ping_all(pods, "all pairs of four nodes", payload=56)

    def drift(self, pods: dict[str, Pod]) -> None:
        """Things deleted by hand come back on the kernel's event."""
        self.report.head("5  Somebody deletes things by hand; they come back on the kernel's event")
        node = self.lab.nodes["n1"]
        route = routes(node)[0].split()[0]
        neighbour = node.ip("neigh", "show", "dev", TUNNEL, "nud", "permanent").split()[0]
        nexthop = node.ip("nexthop", "show").splitlines()[0].split()[1]
        for words in (
            ["route", "del", route],
            ["neigh", "del", neighbour, "dev", TUNNEL],
            ["nexthop", "del", "id", nexthop],
            ["link", "del", TUNNEL],
        ):
            before = state(node)
            self.report.say(f"n1# ip {' '.join(words)}")
            measured = self.repaired(node, words, before)
            saw = (
                f"back after {measured.milliseconds:.1f} ms ({measured.events} kernel events)"
                if measured
                else "not back within 5 s"
            )
            self.report.saw(f"{words[0]} deleted and repaired", saw, measured is not None)
        self.report.ping_all(pods, "all pairs ping afterwards", payload=56)

    def repaired(self, node: Machine, words: list[str], before: str) -> Measured | None:
        """Delete something and time, in the kernel's events, until the state is what it was."""
        with monitor(node) as log:
            node.ip(*words)
            try:
                wait_for("repair", lambda: state(node) == before, deadline=5, every=0.005)
            except TimeoutError:
                return None
        times = [datetime.fromisoformat(stamp) for stamp in re.findall(r"\[(\S+)\]", "".join(log))]
        return Measured((times[-1] - times[0]).total_seconds() * 1000, len(times)) if times else None

    def restart(self, pods: dict[str, Pod]) -> None:
        """An agent dies under a running ping."""
        self.report.head("6  The agent of n1 is killed -9 under a running ping, and started again")
        node, count = self.lab.nodes["n1"], 1500
        command = pods["n2"].ping_command(pods["n1"].address, count=count, interval=0.002)
        before = state(node)
        with subprocess.Popen([*pods["n2"].enter, *command], stdout=subprocess.PIPE, text=True) as ping:
            agent = self.processes["n1"]
            agent.kill()
            agent.wait()
            self.start_agent(node)
            wait_for("the agent to be in sync", lambda: facts(node).get("inSync"), deadline=60)
            output, _ = ping.communicate(timeout=30)
        counted = parse_ping(output)
        self.report.saw(
            f"ping every 2 ms from n2: lost of {counted.sent}",
            f"{counted.lost} lost",
            counted.lost == 0 and counted.sent == count,
        )
        written = facts(node).get("netlinkWrites")
        self.report.saw(
            "what the new agent wrote to the kernel",
            f"{written} netlink messages",
            written == 0 and state(node) == before,
        )
        self.report.ping_all(pods, "all pairs ping afterwards", payload=56)

    def mode_lock(self) -> None:
        """The IPAM mode cannot change while nodes hold addresses; on an empty cluster it can."""
        self.report.head("7  The IPAM mode of a live cluster is asked to change")
        patch = ["patch", "nlnet", "default", "--type=merge", "-p", '{"spec":{"ipam":{"mode":"kubernetes"}}}']
        self.report.say(f"$ kubectl {' '.join(patch)}")
        refused = self.kubectl(*patch, check=False)
        self.report.saw(
            "refused while nodes hold addresses",
            "refused" if refused.returncode else "ACCEPTED",
            refused.returncode != 0,
        )
        self.report.say(" ".join(refused.stderr.split()))
        self.kubectl("delete", "node", "--all", "--wait=false")
        took = wait_for("the lock to clear", lambda: not self.mode_in_force(), deadline=15, every=0.1)
        self.report.saw("last node gone: the mode is free again", f"after {took:.1f} s", True)
        passed = self.kubectl(*patch, check=False)
        self.report.saw(
            "the same change on the empty cluster",
            passed.stdout.strip() or passed.stderr.strip(),
            passed.returncode == 0,
        )

    def mode_in_force(self) -> str:
        return self.kubectl("get", "nlnet", "default", "-o", "jsonpath={.status.ipam.mode}").stdout


@contextmanager
def monitor(node: Machine) -> Iterator[list[str]]:
    """`ip -ts monitor` of a node while the block lasts; its lines are in the list when the block has ended."""
    lines: list[str] = []
    command = ["stdbuf", "-oL", "ip", "-ts", "-o", "monitor", "link", "address", "route", "neigh", "nexthop"]
    with tempfile.TemporaryFile("w+") as log:
        process = node.popen(command, stdout=log)
        try:
            # Nothing must be missed: it listens once it has its sockets.
            wait_for("ip monitor to listen", lambda: _listens(process.pid), deadline=5, every=0.002)
            yield lines
        finally:
            with suppress(TimeoutError):  # on a busy machine it speaks long after the kernel has
                wait_for("ip monitor to speak", lambda: os.fstat(log.fileno()).st_size, deadline=5)
            time.sleep(0.05)
            process.terminate()
            process.wait()
        log.seek(0)
        lines += log


def _listens(pid: int) -> bool:
    """Whether the process, or what it became, has a netlink socket."""
    try:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return any(link.startswith("socket:") for link in links)


def _node_status(address: str) -> dict[str, object]:
    return {"addresses": [{"type": "InternalIP", "address": address}]}
