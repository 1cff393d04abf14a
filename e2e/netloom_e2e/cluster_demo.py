"""`make demo-cluster`: Netloom's life in a cluster of kubelets, as its users see it: installed, upgraded, refused what
would break it, and taken away, by Helm.

Three nodes with real kubelets and containerd, which have no pod network. What a user would type is printed, and what
Helm and kubectl answer; then what was measured: how soon nodes are Ready, and which of the packets that pods send each
other all the while were lost. Every step says what it saw; the exit status is 1 if one differs from what is expected.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from netloom_e2e import binaries, crds, kubelets
from netloom_e2e.api_objects import objects
from netloom_e2e.chart import CHART, ROOT
from netloom_e2e.everyone import FLOW_SECONDS
from netloom_e2e.flow import Flows
from netloom_e2e.images import Image
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.machine_state import state
from netloom_e2e.machines import Pod
from netloom_e2e.mesh import TUNNEL
from netloom_e2e.netloom_cluster import NOT_READY, rerouted
from netloom_e2e.netloom_image import netloom
from netloom_e2e.report import Report
from netloom_e2e.stage import catch_signals, perform

PREFIX = "nlhelm"
NAMESPACE = "netloom-system"
REPOSITORY = "registry.example.com/netloom"
OLD, NEW = "0.1.0", "0.1.1"
"""Tags of the image, which is one and the same: what is shown is how pods with another image come."""
WEB = """\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: "${agnhost}", args: [netexec, --http-port=80]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
_LOGGED = re.compile(r'^level=INFO msg=(".*")$', re.MULTILINE)
_OF_DNS = re.compile(r"coredns|kube-dns|^IPAddress/|^ControllerRevision/default/")
"""Of the cluster's DNS, which comes after Netloom, and of the pods that were just deleted."""
_SECONDS = 90
"""That nodes and pods are given, on a machine with much to do."""


class ClusterDemo:
    """The cluster, and what is done to it. It is the cluster's own pod network: nothing else makes its nodes ready."""

    taints = (NOT_READY,)

    def __init__(self, image: Image, report: Report) -> None:
        names = tuple(f"{REPOSITORY}:{tag}" for tag in (OLD, NEW))
        self.report = report
        self.bed = KubeletCluster(PREFIX, network=self, further=[replace(image, aliases=names)])
        self.pods: dict[str, Pod] = {}
        self._machines: dict[str, set[str]] = {}
        self._objects: set[str] = set()
        """Both as they were before Netloom came."""

    # What a user types

    def helm(self, *words: str, shown: Sequence[str] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
        """Helm, as it is typed in a checkout. shown: how lines of its answer begin that are worth seeing."""
        return self._typed("helm", self.bed.plane.helm(*words, timeout=2 * _SECONDS, check=check), words, shown)

    def kubectl(self, *words: str, shown: Sequence[str] = ("",)) -> str:
        """What it answers."""
        return self._typed("kubectl", self.bed.plane.kubectl(*words, timeout=2 * _SECONDS), words, shown).stdout

    def _typed(
        self, program: str, done: subprocess.CompletedProcess[str], words: Sequence[str], shown: Sequence[str]
    ) -> subprocess.CompletedProcess[str]:
        self.report.say("$ " + " ".join([program, *(f"'{word}'" if _is_odd(word) else word for word in words)]))
        # Of a Job's log Helm makes one line of its own log.
        said = _LOGGED.sub(lambda line: str(json.loads(line[1])), done.stdout + done.stderr)
        for line in said.splitlines():
            if line.strip() and line.startswith(tuple(shown)):
                self.report.say(f"  {line.rstrip()}")
        return done

    # The story

    def tell(self, stack: ExitStack) -> None:
        """All steps, in order; the cluster goes with the stack."""
        self.report.head("1  three nodes with real kubelets and containerd, and no pod network")
        stack.enter_context(self.bed)
        self.meet()
        self.upgrade()
        self.refuse()
        self.uninstall()

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        """Called by the cluster when its nodes are registered."""
        report, bed = self.report, self.bed
        report.saw("nodes have registered", f"{len(nodes)} nodes", len(nodes) == len(bed.nodes))
        self.kubectl("get", "nodes")
        ready = [name for name in bed.nodes if bed.is_ready(name)]
        report.saw("without a pod network no node is Ready", f"{len(ready)} Ready", not ready)
        self._machines = {node.name: _things(node) for node in nodes}
        self._objects = objects(bed.plane)

        report.head("2  helm install")
        began = time.monotonic()
        image = f"image.repository={REPOSITORY},image.tag={OLD}"
        chart = str(CHART.relative_to(ROOT))
        where = (f"--namespace={NAMESPACE}", "--create-namespace")
        self.helm("install", "netloom", chart, *where, "--set", image, shown=("STATUS", "Netloom "))
        self.kubectl("wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={_SECONDS}s")
        took = time.monotonic() - began
        report.saw("from `helm install` to all nodes Ready", f"{took:.1f} s", all(map(bed.is_ready, bed.nodes)))
        self.kubectl("get", "netloomnetworks,netloomnodes")

    def meet(self) -> None:
        """Pods come, and find each other."""
        report, bed = self.report, self.bed
        done = self.helm("test", "netloom", f"--namespace={NAMESPACE}", "--logs", shown=("netloom", "status"))
        report.saw("`netloom status` from within finds nothing wrong", "passed", done.returncode == 0)
        report.head("3  pods")
        bed.apply(WEB)
        report.say("$ kubectl apply -f web.yaml    # a pod on every node, and a Service")
        self.kubectl("rollout", "status", "daemonset/web", f"--timeout={_SECONDS}s", shown=("daemon set",))
        self.kubectl("get", "pods", "--output=custom-columns=POD:.metadata.name,IP:.status.podIP,NODE:.spec.nodeName")
        named = bed.plane.client.request("GET", "/api/v1/namespaces/default/pods")["items"]
        self.pods = {each["spec"]["nodeName"]: bed.pod(each["metadata"]["name"]) for each in named}
        report.ping_all(self.pods, "pods of all nodes ping each other", payload=56)
        first = named[0]["metadata"]["name"]
        asked = ("exec", first, "--", "wget", "-qO-", "http://web.default.svc.cluster.local/hostname")
        answer = self.kubectl(*asked)
        names = {each["metadata"]["name"] for each in named}
        report.saw("a Service answers by its name", answer.strip(), answer.strip() in names)

    def upgrade(self) -> None:
        """Another image, another routing mode, and back, while pods talk."""
        bed = self.bed
        self.report.head("4  upgrades, while every pod sends every other 1,000 packets a second")
        with self._lossless("another image, node by node"):
            self._upgrade("--set", f"image.tag={NEW}", "--wait")
        running = self.kubectl(
            *("get", "pods", f"--namespace={NAMESPACE}"),
            "--output=custom-columns=POD:.metadata.name,IMAGE:.spec.containers[*].image",
        )
        self.report.saw("all run the new image", f"{running.count(NEW)} pods", f":{OLD}" not in running)
        with self._lossless("from tunnels to native routes"):
            self._upgrade("--set", "routingMode=native,autoDirectNodeRoutes=true")
            rerouted(bed, ["none"], "eth0")
        with self._lossless("`helm rollback`, to tunnels again"):
            self.helm("rollback", "netloom", "2", f"--namespace={NAMESPACE}", shown=("Rollback",))
            rerouted(bed, ["vxlan:8472"], TUNNEL)

    @contextmanager
    def _lossless(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        with Flows(self.pods, deadline=FLOW_SECONDS) as flows:
            yield
            took = time.monotonic() - began
            counted = flows.stop()
        self.report.saw(step, f"{counted.lost} of {counted.sent} packets lost, {took:.1f} s", counted.lossless)
        if not counted.lossless:
            self.report.say(str(counted))

    def _upgrade(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        where = (str(CHART.relative_to(ROOT)), f"--namespace={NAMESPACE}", "--reuse-values")
        return self.helm("upgrade", "netloom", *where, *words, shown=("STATUS", "Error"), check=check)

    def refuse(self) -> None:
        """The change that would break the cluster."""
        report = self.report
        report.head("5  the one change that breaks a live cluster")
        mode = ("--set", "ipam.mode=cluster-pool,ipam.operator.clusterPoolIPv4PodCIDRList={10.42.0.0/16}")
        done = self._upgrade(*mode, check=False)
        words = "the IPAM mode of a live cluster cannot change"
        report.saw("another IPAM mode is refused", "refused" if done.returncode else "ACCEPTED", words in done.stderr)
        mode_now = self.kubectl("get", "netloomnetwork", "default", "--output=jsonpath={.spec.ipam.mode}")
        report.saw("and nothing has changed", mode_now, mode_now == "kubernetes")
        done = self._upgrade("--set", "nonMasqueradeCIDRs={192.0.2.0/24}", check=False)
        report.saw("the next good upgrade works", "deployed" if not done.returncode else "FAILED", not done.returncode)

    def uninstall(self) -> None:
        """All goes."""
        report, bed = self.report, self.bed
        report.head("6  helm uninstall")
        self.kubectl("delete", "daemonset/web", "service/web")
        bed.wait("pods to go", lambda: not bed.plane.client.request("GET", "/api/v1/namespaces/default/pods")["items"])
        self.helm("uninstall", "netloom", f"--namespace={NAMESPACE}", shown=("",))
        for node in bed.nodes.values():
            left = _things(node) - self._machines[node.name]
            report.saw(f"of Netloom {node.name} has", ", ".join(sorted(left)) or "nothing", not left)
        self.kubectl("delete", "namespace", NAMESPACE)
        self.kubectl("delete", f"--filename={crds.FOLDER.relative_to(ROOT)}", shown=())
        left = {each for each in objects(bed.plane) - self._objects if not _OF_DNS.search(each)}
        report.saw("of Netloom the API server has", ", ".join(sorted(left)) or "nothing", not left)


def _things(node: KubeletNode) -> set[str]:
    """All that it has but for switches of the kernel: which of them stay, and why, is in what Helm says."""
    return {each for each in state(node) if not each.startswith("sysctl ")}


def _is_odd(word: str) -> bool:
    """Whether a shell would not take it as it is."""
    return any(sign in word for sign in " {}[]*$;|&()<>")


def _story(stack: ExitStack, folder: Path, report: Report) -> None:
    image = netloom()
    kubelets.prepare()
    binaries.helm()
    report.began = time.monotonic()  # what was built is built once
    ClusterDemo(image, report).tell(stack)


def main() -> int:
    """The exit status."""
    catch_signals()
    return perform("cluster-demo", _story)


if __name__ == "__main__":
    sys.exit(main())
