"""`make bench-cni`: what a pod's network costs, beside the CNI's own plugins bridge and host-local.

*add*, *delete*: two machines as network namespaces, one with Netloom's agent and plugin, one with bridge and
host-local. A round is some pods on the one, then as many on the other, one IPv4 address each: all are added, then all
deleted, as a container runtime calls plugins: a process for each. Rounds one at a time and AT_ONCE at a time come in
turns. The pods' namespaces are made before and removed after, outside of the time; what Netloom leaves to be done
behind its answer is waited for before the other's turn (`gone_ms`). `ratio`: Netloom's median by the other's.

*pods*: a real cluster (kubelet, containerd, runc) of one node that Netloom wires, then the same that bridge and
host-local wire: from `kubectl apply` to Ready, of one pod at a time and of a Deployment. `pods_ratio`: pods per second,
Netloom's by the other's.

Takes root. Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloom_e2e import bench, binaries, cni_plugin, kubelets, lone_agent, netloom_cluster
from netloom_e2e.bench import Wrong
from netloom_e2e.cni_plugin import Plugin
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import Lab, wait_for
from netloom_e2e.machines import Machine
from netloom_e2e.namespaces import NETNS, Namespace, add, remove
from netloom_e2e.netloom_image import netloom
from netloom_e2e.pod_networks import Bridge, PodNetwork

ONE, AT_ONCE = 1, 30
CIDR = "10.42.0.0/16"
SINGLE_PODS = 8
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: pause, image: "${{pause}}", imagePullPolicy: Never}}]
"""


@dataclass(frozen=True)
class Way:
    """One of the two ways to wire a pod. settle: waits until nothing goes on behind an answer."""

    name: str
    machine: Machine
    program: Path
    environment: dict[str, str]
    configuration: dict[str, Any]
    settle: Callable[[], None]

    def call(self, command: str, pod: str) -> float:
        """Seconds of one call, in the machine's namespace. Raises Wrong."""
        environment = self.environment | {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": str(NETNS / pod),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.program.parent),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
        }
        given = json.dumps(self.configuration).encode()
        began = time.perf_counter()
        done = subprocess.run([self.program], input=given, env=environment, capture_output=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise Wrong(f"{self.name}, {command} of {pod}: {done.stdout.decode()} {done.stderr.decode()}")
        return seconds

    def all_of(self, command: str, pods: Sequence[str], at_once: int) -> list[float]:
        """Seconds of each."""
        with ThreadPoolExecutor(at_once, initializer=self.machine.move_thread) as threads:
            return list(threads.map(lambda pod: self.call(command, pod), pods))


@contextlib.contextmanager
def _sandboxes(way: Way, number: int, count: int) -> Iterator[list[str]]:
    pods = [f"{way.machine.name}-r{number}-{each}" for each in range(count)]
    try:
        for pod in pods:
            add(Namespace(pod))
        yield pods
    finally:
        remove(pods)


def _netloom(stack: ExitStack, machine: Machine, folder: Path) -> Way:
    run_dir = folder / "run"
    plugin = Plugin(cni_plugin.built(), run_dir / "cni.sock", folder / "deletions")
    flags = ("--cni-socket", str(plugin.socket), "--cni-deletions", str(plugin.deletions))
    lone_agent.started(stack, machine, folder, [CIDR], run_dir, *flags)
    configuration = {"cniVersion": "1.1.0", "name": "netloom", "type": "netloom-cni"}
    environment = plugin.environment({})

    def serves() -> bool:
        asked = environment | {"CNI_COMMAND": "STATUS"}
        given = json.dumps(configuration).encode()
        return (
            subprocess.run([plugin.program], input=given, env=asked, capture_output=True, check=False).returncode == 0
        )

    def settle() -> None:
        left = ("-o", "link", "show", "type", "veth")
        wait_for("the devices to go", lambda: "netloom_p" not in machine.ip(*left), deadline=30, every=0.002)

    wait_for("the agent to add pods", serves, deadline=60)
    return Way("Netloom", machine, plugin.program, environment, configuration, settle)


def _bridge(machine: Machine, folder: Path) -> Way:
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "host-local"),
        "ranges": [[{"subnet": CIDR}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    configuration = {"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": True}
    program = binaries.cni_plugins() / "bridge"
    environment = {"PATH": os.environ["PATH"]}
    return Way("bridge + host-local", machine, program, environment, configuration | {"ipam": ipam}, lambda: None)


def calls(folder: Path, rounds: int, pods: int) -> dict[str, Any]:
    """ADD and DEL of both. Raises Wrong."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(f"nlbc{os.getpid() % 10000}"))
        ways = [_netloom(stack, lab.add_node("n1"), folder), _bridge(lab.add_node("n2"), folder)]
        seconds: dict[tuple[str, int, str], list[float]] = {}
        gone: list[float] = []
        for number in range(rounds + 1):
            for at_once in (ONE, AT_ONCE):
                for way in ways:
                    with _sandboxes(way, number, pods) as names:
                        added, deleted = (way.all_of(command, names, at_once) for command in ("ADD", "DEL"))
                        began = time.perf_counter()
                        way.settle()
                    if number:  # the first warms up
                        seconds.setdefault((way.name, at_once, "add"), []).extend(added)
                        seconds.setdefault((way.name, at_once, "del"), []).extend(deleted)
                        gone += [time.perf_counter() - began] if way is ways[0] else []
        return _figures(ways, seconds) | {"gone_ms": round(1000 * statistics.median(gone), 1)}


def _figures(ways: Sequence[Way], seconds: dict[tuple[str, int, str], list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ours, other = (way.name for way in ways)
    for at_once, suffix in ((ONE, ""), (AT_ONCE, f"_{AT_ONCE}")):
        for what in ("add", "del"):
            mine, theirs = seconds[ours, at_once, what], seconds[other, at_once, what]
            for key, values in ((what, mine), (f"bridge_{what}", theirs)):
                found[f"{key}{suffix}_p50_ms"] = round(1000 * bench.percentile(values, 50), 2)
                found[f"{key}{suffix}_p99_ms"] = round(1000 * bench.percentile(values, 99), 2)
            found[f"{what}{suffix}_ratio"] = round(statistics.median(mine) / statistics.median(theirs), 3)
    return found


# ------------------------------------------------------------------------------------------------------ real kubelets


def on_cluster(network: PodNetwork, replicas: int, further: Sequence[Any] = ()) -> tuple[float, float]:
    """Seconds from apply to Ready of one pod (median), and pods per second of a Deployment. Raises AssertionError."""
    with KubeletCluster(kubelets.prefix(), nodes=1, network=network, further=further) as cluster:
        _ready_after(cluster, "warm", 2)
        one = statistics.median(_ready_after(cluster, f"one-{number}", 1) for number in range(SINGLE_PODS))
        return one, replicas / _ready_after(cluster, "many", replicas)


def _ready_after(cluster: KubeletCluster, name: str, replicas: int) -> float:
    path = f"/apis/apps/v1/namespaces/default/deployments/{name}"

    def ready() -> bool:
        found = cluster.plane.client.request("GET", path)
        return bool(found.get("status", {}).get("readyReplicas", 0) == replicas)

    began = time.perf_counter()
    cluster.apply(DEPLOYMENT.format(name=name, replicas=replicas))
    wait_for(f"{replicas} pods of {name}", ready, deadline=300, every=0.01)
    return time.perf_counter() - began


def _row(found: dict[str, Any], what: str, suffix: str, at_once: int) -> tuple[str, ...]:
    figures = [found[f"{whose}{what}{suffix}_{part}_ms"] for whose in ("", "bridge_") for part in ("p50", "p99")]
    return (
        f"{what.upper()}, {at_once} at a time",
        *(f"{each:.2f}" for each in figures),
        f"{found[f'{what}{suffix}_ratio']:.2f}",
    )


def run(rounds: int, pods: int, replicas: int) -> dict[str, Any]:
    """All of it; what RESULT says. replicas: of the Deployment; 0: no cluster. Raises Wrong."""
    console = bench.console()
    cni_plugin.built()
    binaries.cni_plugins()
    image = netloom() if replicas else None
    if replicas:
        kubelets.prepare()
    console.print(bench.circumstances())
    with tempfile.TemporaryDirectory(prefix="netloom-bench-") as name:
        found = calls(Path(name), rounds, pods)
    rows = [
        _row(found, what, suffix, at_once)
        for suffix, at_once in (("", ONE), (f"_{AT_ONCE}", AT_ONCE))
        for what in ("add", "del")
    ]
    columns = ("ms", "Netloom p50", "p99", "bridge + host-local p50", "p99", "ratio")
    console.print(bench.table(f"The CNI's calls, {rounds} rounds of {pods} pods", columns, rows))
    if image is not None:
        network: PodNetwork = netloom_cluster.Netloom(image)
        one, many = on_cluster(network, replicas, [image])
        bridge_one, bridge_many = on_cluster(Bridge(), replicas)
        found |= {"one_s": round(one, 3), "bridge_one_s": round(bridge_one, 3)}
        found |= {"pods_per_s": round(many, 2), "bridge_pods_per_s": round(bridge_many, 2)}
        found["pods_ratio"] = round(many / bridge_many, 3)
        console.print(
            f"{replicas} pods on a kubelet: {many:.2f} per s, {bridge_many:.2f} with bridge + host-local; one: "
            f"{one:.2f} s, {bridge_one:.2f} s"
        )
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Pods' networks, by Netloom and by bridge + host-local.")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pods", type=int, default=60, help="of each round")
    parser.add_argument("--replicas", type=int, default=40, help="of the Deployment on a real kubelet; 0: no cluster")
    options = parser.parse_args()
    return bench.conclude("bench-cni", lambda: run(options.rounds, options.pods, options.replicas))


if __name__ == "__main__":
    sys.exit(main())
